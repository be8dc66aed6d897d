//! A server to test against, and handles to call it by.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use futures_util::Stream;
use keyward::app::{Adjustable, App, Deps, Engine, LogControl, StartError};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb;
use keyward::grpc::pb::key_admin_client::KeyAdminClient;
use keyward::grpc::pb::key_audit_client::KeyAuditClient;
use keyward::grpc::pb::key_verify_client::KeyVerifyClient;
use keyward::offline::{OfflineError, Source, restore_backup};
use keyward::server::addr::ListenAddr;
use keyward::server::passed::PassedSockets;
use keyward::store::local::OpenError;
use keyward::util::files::lock_with_retry;
use keyward_core::clock::{Clock, ManualClock, UnixMillis};
use keyward_core::entropy::Entropy;
use keyward_core::id::ActorId;
use keyward_core::identity::Identities;
use keyward_core::testing::SeededEntropy;
use prost_types::Timestamp;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

use super::certificates::Files;

/// When the tests' clock begins: 2026-01-01T00:00:00Z.
pub(crate) const START: UnixMillis = UnixMillis(1_767_225_600_000);

/// The log of the tests' process, which servers share: each keeps a filter that nothing uses.
#[derive(Default)]
pub(crate) struct KeptFilter(Mutex<String>);

impl LogControl for KeptFilter {
    fn filter(&self) -> String {
        self.0.lock().unwrap().clone()
    }

    fn set_filter(&self, filter: &str, _: &ActorId) -> Result<(), String> {
        filter.clone_into(&mut self.0.lock().unwrap());
        Ok(())
    }
}

/// A running server, its data directory, its clock, and the administrator that it made.
pub(crate) struct Site {
    app: Option<App>,
    engine: Engine,
    ops_listen: &'static str,
    /// What a start of this server changes in its settings.
    pub(crate) change: fn(&mut Settings),
    pub(crate) dir: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) identities: Arc<Identities>,
    entropy: Arc<SeededEntropy>,
    admin: String,
    channel: Channel,
}

impl Site {
    /// A server on disk.
    pub(crate) async fn start() -> Self {
        Self::with(Engine::Sled, "off").await
    }

    /// A server in memory, for tests that start many.
    pub(crate) async fn in_memory() -> Self {
        Self::with(Engine::Memory, "off").await
    }

    /// A server in memory that answers probes on a port of its own.
    pub(crate) async fn with_ops() -> Self {
        Self::with(Engine::Memory, "127.0.0.1:0").await
    }

    /// A server on disk whose files are small.
    pub(crate) async fn start_small() -> Self {
        Self::on(tempfile::tempdir().unwrap()).await
    }

    /// A server on a directory, whose files are small.
    pub(crate) async fn on(dir: TempDir) -> Self {
        Self::try_on(dir).await.unwrap()
    }

    pub(crate) async fn try_on(dir: TempDir) -> Result<Self, StartError> {
        Self::with_settings(small_settings(dir.path()), dir, Engine::Sled, "off").await
    }

    /// A server on a directory, with settings of the test's choice.
    pub(crate) async fn on_with(dir: TempDir, settings: Settings) -> Result<Self, StartError> {
        Self::with_settings(settings, dir, Engine::Sled, "off").await
    }

    async fn with(engine: Engine, ops_listen: &'static str) -> Self {
        Self::changed(engine, ops_listen, |_| {}).await
    }

    /// A server with other settings.
    pub(crate) async fn changed(engine: Engine, ops_listen: &'static str, change: fn(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path(), ops_listen);
        change(&mut settings);
        Self { change, ..Self::with_settings(settings, dir, engine, ops_listen).await.unwrap() }
    }

    async fn with_settings(
        settings: Settings,
        dir: TempDir,
        engine: Engine,
        ops_listen: &'static str,
    ) -> Result<Self, StartError> {
        let clock = Arc::new(ManualClock::at(START));
        let entropy = Arc::new(SeededEntropy::new(0));
        let identities = Arc::default();
        let (app, channel) = start(settings, engine, &clock, &entropy, &identities).await?;
        let admin = std::fs::read_to_string(dir.path().join("admin.key")).unwrap().trim().to_owned();
        Ok(Self { app: Some(app), engine, ops_listen, change: |_| {}, dir, clock, identities, entropy, admin, channel })
    }

    /// Stops the server and starts another one on the same data.
    pub(crate) async fn restart(&mut self) {
        self.stop().await;
        self.try_start().await.unwrap();
    }

    pub(crate) async fn stop(&mut self) {
        self.app.take().unwrap().stop().await.unwrap();
    }

    /// Starts a server on the data of one that was stopped.
    pub(crate) async fn try_start(&mut self) -> Result<(), StartError> {
        self.try_start_with(|_| {}).await
    }

    /// The same, with other settings.
    pub(crate) async fn try_start_with(&mut self, change: impl FnOnce(&mut Settings)) -> Result<(), StartError> {
        let mut settings = settings(self.dir.path(), self.ops_listen);
        (self.change)(&mut settings);
        change(&mut settings);
        let (app, channel) = start(settings, self.engine, &self.clock, &self.entropy, &self.identities).await?;
        (self.app, self.channel) = (Some(app), channel);
        Ok(())
    }

    /// Restores into the directory of a server that was stopped, which must be empty but for the pepper file.
    pub(crate) fn restore(&self, source: &Source) -> Result<(), OfflineError> {
        restore_backup(&settings(self.dir.path(), self.ops_listen), source).map(drop)
    }

    pub(crate) fn app(&mut self) -> App {
        self.app.take().unwrap()
    }

    /// The address that it listens on.
    pub(crate) fn addr(&self) -> ListenAddr {
        self.app.as_ref().unwrap().addrs()[0].clone()
    }

    /// The address of probes and metrics.
    pub(crate) fn ops_addr(&self) -> ListenAddr {
        self.app.as_ref().unwrap().ops_addr().unwrap().clone()
    }

    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The administrator.
    pub(crate) fn admin(&self) -> Handle {
        self.caller(&self.admin)
    }

    pub(crate) fn admin_secret(&self) -> &str {
        &self.admin
    }

    /// A caller with any text as credential.
    pub(crate) fn caller(&self, secret: &str) -> Handle {
        Handle::new(self.channel.clone(), Some(secret.to_owned()))
    }

    /// A caller without a credential.
    pub(crate) fn nobody(&self) -> Handle {
        Handle::new(self.channel.clone(), None)
    }

    /// A caller with a new key of tenant `system` that has these roles.
    pub(crate) async fn with_roles(&self, roles: &[&str]) -> Handle {
        let key = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", roles) };
        self.caller(&self.admin().create(key).await.unwrap().secret)
    }
}

/// The table of a server that was stopped, as sled has it. Threads of its own may still hold its file for a
/// moment.
pub(crate) fn open_table(dir: &Path) -> sled::Db {
    let path = dir.join("table");
    lock_with_retry(&std::fs::File::open(path.join("db")).unwrap()).unwrap();
    sled::open(path).unwrap()
}

/// Settings under which the journal's files are as small as they can be.
pub(crate) fn small_settings(dir: &Path) -> Settings {
    Settings { journal_segment_bytes: 64 * 1024, ..settings(dir, "off") }
}

/// Certificates by which the servers of tests encrypt, where `TESTS_OVER_TLS` is set: tests/tls sets it.
pub(crate) static TLS: LazyLock<Option<(TempDir, Files)>> = LazyLock::new(|| {
    std::env::var_os("TESTS_OVER_TLS")?;
    let dir = tempfile::tempdir().unwrap();
    let files = Files::write(dir.path());
    Some((dir, files))
});

/// Settings of a server that encrypts, if those of tests do.
pub(crate) fn perhaps_encrypted(settings: Settings) -> Settings {
    let tls = TLS.as_ref().map(|(_, files)| files.settings(None));
    Settings { tls, ..settings }
}

/// What connects to such a server.
pub(crate) fn endpoint(addr: &impl Display) -> Endpoint {
    match &*TLS {
        Some((_, files)) => files.endpoint(addr, None),
        None => Endpoint::from_shared(format!("http://{addr}")).unwrap(),
    }
}

fn settings(dir: &Path, ops_listen: &str) -> Settings {
    let flags = Flags {
        data_dir: Some(dir.to_owned()),
        listen: vec!["127.0.0.1:0".into()],
        ops_listen: Some(ops_listen.into()),
        log_filter: Some("off".into()),
        ..Flags::default()
    };
    let settings = Settings::load(&flags, None).unwrap().settings;
    // Tests have bad credentials by the hundred.
    perhaps_encrypted(Settings { failed_authentication_delay: Duration::ZERO, ..settings })
}

async fn start(
    settings: Settings,
    engine: Engine,
    clock: &Arc<ManualClock>,
    entropy: &Arc<SeededEntropy>,
    identities: &Arc<Identities>,
) -> Result<(App, Channel), StartError> {
    let (clock, entropy): (Arc<dyn Clock>, Arc<dyn Entropy>) = (clock.clone(), entropy.clone());
    let engine = engine.configure(&settings, &clock, &entropy);
    let deps = Deps {
        clock,
        entropy,
        sockets: PassedSockets::default(),
        adjustable: Adjustable {
            identities: identities.clone(),
            log: Some(Arc::<KeptFilter>::default()),
            ..Adjustable::default()
        },
        engine,
    };
    let app = App::start(settings, deps).await?;
    let ListenAddr::Tcp(addr) = app.addrs()[0].clone() else { panic!("a TCP listener") };
    Ok((app, endpoint(&addr).connect_lazy()))
}

/// The local engine's own error, because of which a server does not start.
pub(crate) fn open_error(refused: &StartError) -> &OpenError {
    let StartError::Engine(error) = refused else { panic!("{refused}") };
    error.downcast_ref().unwrap_or_else(|| panic!("{refused}"))
}

/// Calls the server as somebody.
#[derive(Clone)]
pub(crate) struct Handle {
    admin: KeyAdminClient<Channel>,
    audit: KeyAuditClient<Channel>,
    verify: KeyVerifyClient<Channel>,
    secret: Option<String>,
}

macro_rules! calls {
    ($($name:ident: $client:ident.$call:ident($request:ident) -> $response:ident;)*) => {
        $(pub(crate) async fn $name(&self, message: pb::$request) -> Result<pb::$response, Status> {
            self.$client.clone().$call(self.request(message)).await.map(tonic::Response::into_inner)
        })*
    };
}

impl Handle {
    pub(crate) fn new(channel: Channel, secret: Option<String>) -> Self {
        Self {
            admin: KeyAdminClient::new(channel.clone()),
            audit: KeyAuditClient::new(channel.clone()),
            verify: KeyVerifyClient::new(channel),
            secret,
        }
    }

    calls! {
        create: admin.create_key(CreateKeyRequest) -> CreateKeyResponse;
        get: admin.get_key(GetKeyRequest) -> GetKeyResponse;
        list: admin.list_keys(ListKeysRequest) -> ListKeysResponse;
        update: admin.update_key(UpdateKeyRequest) -> UpdateKeyResponse;
        disable: admin.disable_key(DisableKeyRequest) -> DisableKeyResponse;
        enable: admin.enable_key(EnableKeyRequest) -> EnableKeyResponse;
        revoke: admin.revoke_key(RevokeKeyRequest) -> RevokeKeyResponse;
        rotate: admin.rotate_key(RotateKeyRequest) -> RotateKeyResponse;
        finish: admin.finish_rotation(FinishRotationRequest) -> FinishRotationResponse;
        cancel: admin.cancel_rotation(CancelRotationRequest) -> CancelRotationResponse;
        delete: admin.delete_key(DeleteKeyRequest) -> DeleteKeyResponse;
        undelete: admin.undelete_key(UndeleteKeyRequest) -> UndeleteKeyResponse;
        create_tenant: admin.create_tenant(CreateTenantRequest) -> CreateTenantResponse;
        get_tenant: admin.get_tenant(GetTenantRequest) -> GetTenantResponse;
        list_tenants: admin.list_tenants(ListTenantsRequest) -> ListTenantsResponse;
        update_tenant: admin.update_tenant(UpdateTenantRequest) -> UpdateTenantResponse;
        suspend_tenant: admin.suspend_tenant(SuspendTenantRequest) -> SuspendTenantResponse;
        resume_tenant: admin.resume_tenant(ResumeTenantRequest) -> ResumeTenantResponse;
        suspend_owner: admin.suspend_owner(SuspendOwnerRequest) -> SuspendOwnerResponse;
        resume_owner: admin.resume_owner(ResumeOwnerRequest) -> ResumeOwnerResponse;
        set_epoch: admin.set_epoch(SetEpochRequest) -> SetEpochResponse;
        get_owner: admin.get_owner(GetOwnerRequest) -> GetOwnerResponse;
        get_issuer: admin.get_issuer(GetIssuerRequest) -> GetIssuerResponse;
        set_log_filter: admin.set_log_filter(SetLogFilterRequest) -> SetLogFilterResponse;
        head: audit.get_head(GetHeadRequest) -> GetHeadResponse;
        ask: verify.verify(VerifyRequest) -> VerifyResponse;
        ask_all: verify.batch_verify(BatchVerifyRequest) -> BatchVerifyResponse;
    }

    pub(crate) async fn backup(&self) -> Result<Streaming<pb::BackupResponse>, Status> {
        self.backup_as(0).await
    }

    /// A backup of a format; 0 for the newest.
    pub(crate) async fn backup_as(&self, format: u32) -> Result<Streaming<pb::BackupResponse>, Status> {
        let request = self.request(pb::BackupRequest { format });
        self.admin.clone().backup(request).await.map(tonic::Response::into_inner)
    }

    /// Opens a stream of verifications.
    pub(crate) async fn stream(
        &self,
        requests: impl Stream<Item = pb::StreamVerifyRequest> + Send + 'static,
    ) -> Result<Streaming<pb::StreamVerifyResponse>, Status> {
        self.verify.clone().stream_verify(self.request(requests)).await.map(tonic::Response::into_inner)
    }

    /// Issues a key in tenant `default`.
    pub(crate) async fn issue(&self, label: &str, scopes: &[&str]) -> Issued {
        self.issued(new_key(label, scopes)).await
    }

    pub(crate) async fn issued(&self, request: pb::CreateKeyRequest) -> Issued {
        let created = self.create(request).await.unwrap();
        Issued { key: created.key.unwrap(), secret: created.secret, revision: created.revision }
    }

    /// The verdict on a secret alone.
    pub(crate) async fn verdict(&self, secret: &str) -> pb::VerifyResponse {
        self.ask(ask(secret)).await.unwrap()
    }

    /// The reason of that verdict.
    pub(crate) async fn reason(&self, secret: &str) -> pb::Reason {
        self.verdict(secret).await.reason()
    }

    pub(crate) async fn disable_key(&self, key: &pb::Key) -> pb::DisableKeyResponse {
        self.disable(disable(key)).await.unwrap()
    }

    pub(crate) async fn enable_key(&self, key: &pb::Key) -> pb::EnableKeyResponse {
        let name = disable(key);
        self.enable(pb::EnableKeyRequest { key_id: name.key_id, tenant: name.tenant, ..Default::default() })
            .await
            .unwrap()
    }

    pub(crate) async fn revoke_key(&self, key: &pb::Key) -> pb::RevokeKeyResponse {
        let name = disable(key);
        self.revoke(pb::RevokeKeyRequest { key_id: name.key_id, tenant: name.tenant, ..Default::default() })
            .await
            .unwrap()
    }

    /// Rotates a key, and returns it with its new secret.
    pub(crate) async fn rotated(&self, request: pb::RotateKeyRequest) -> Issued {
        let rotated = self.rotate(request).await.unwrap();
        Issued { key: rotated.key.unwrap(), secret: rotated.secret, revision: rotated.revision }
    }

    pub(crate) async fn finish_key(&self, key: &pb::Key) -> Result<pb::Key, Status> {
        let (key_id, tenant) = (key.key_id.clone(), key.tenant.clone());
        let request = pb::FinishRotationRequest { key_id, tenant, ..Default::default() };
        self.finish(request).await.map(|finished| finished.key.unwrap())
    }

    pub(crate) async fn cancel_key(&self, key: &pb::Key) -> Result<pb::Key, Status> {
        let (key_id, tenant) = (key.key_id.clone(), key.tenant.clone());
        let request = pb::CancelRotationRequest { key_id, tenant, ..Default::default() };
        self.cancel(request).await.map(|cancelled| cancelled.key.unwrap())
    }

    pub(crate) async fn delete_key(&self, key: &pb::Key) -> pb::DeleteKeyResponse {
        self.delete(delete(key)).await.unwrap()
    }

    pub(crate) async fn undelete_key(&self, key: &pb::Key) -> pb::UndeleteKeyResponse {
        let name = disable(key);
        self.undelete(pb::UndeleteKeyRequest { key_id: name.key_id, tenant: name.tenant, ..Default::default() })
            .await
            .unwrap()
    }

    /// Disables a key until so many milliseconds after the tests' clock began.
    pub(crate) async fn suspend_key(&self, key: &pb::Key, until_ms: i64) -> pb::DisableKeyResponse {
        self.disable(suspend(key, until_ms)).await.unwrap()
    }

    pub(crate) async fn read(&self, key: &pb::Key) -> pb::Key {
        let request = pb::GetKeyRequest { key_id: key.key_id.clone(), tenant: key.tenant.clone() };
        self.get(request).await.unwrap().key.unwrap()
    }

    pub(crate) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        if let Some(secret) = &self.secret {
            request.metadata_mut().insert("authorization", format!("Bearer {secret}").parse().unwrap());
        }
        request
    }
}

/// A key as its creator got it.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) key: pb::Key,
    pub(crate) secret: String,
    pub(crate) revision: u64,
}

pub(crate) fn new_key(label: &str, scopes: &[&str]) -> pb::CreateKeyRequest {
    pb::CreateKeyRequest { display_name: label.into(), scopes: strings(scopes), ..Default::default() }
}

pub(crate) fn ask(secret: &str) -> pb::VerifyRequest {
    pb::VerifyRequest { secret: secret.into(), ..Default::default() }
}

pub(crate) fn disable(key: &pb::Key) -> pb::DisableKeyRequest {
    pb::DisableKeyRequest { key_id: key.key_id.clone(), tenant: key.tenant.clone(), ..Default::default() }
}

/// A rotation of a key, whose older secret works for so many milliseconds.
pub(crate) fn rotate(key: &pb::Key, overlap_ms: i64) -> pb::RotateKeyRequest {
    let nanos = i32::try_from(overlap_ms.rem_euclid(1_000) * 1_000_000).unwrap();
    pb::RotateKeyRequest {
        key_id: key.key_id.clone(),
        tenant: key.tenant.clone(),
        overlap: Some(prost_types::Duration { seconds: overlap_ms.div_euclid(1_000), nanos }),
        ..Default::default()
    }
}

/// The same, where the time begins with the first use of the new secret.
pub(crate) fn rotate_at_use(key: &pb::Key, overlap_ms: i64) -> pb::RotateKeyRequest {
    pb::RotateKeyRequest { overlap_starts: pb::OverlapStart::OnFirstUse.into(), ..rotate(key, overlap_ms) }
}

pub(crate) fn suspend(key: &pb::Key, until_ms: i64) -> pb::DisableKeyRequest {
    pb::DisableKeyRequest { resume_time: after_start(until_ms), ..disable(key) }
}

pub(crate) fn delete(key: &pb::Key) -> pb::DeleteKeyRequest {
    pb::DeleteKeyRequest { key_id: key.key_id.clone(), tenant: key.tenant.clone(), ..Default::default() }
}

/// An update of the fields that `paths` name, to their values in `key`.
pub(crate) fn update(key: &pb::Key, paths: &[&str]) -> pb::UpdateKeyRequest {
    pb::UpdateKeyRequest {
        // Without its etag, which would be a condition.
        key: Some(pb::Key { etag: String::new(), ..key.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: strings(paths) }),
        ..Default::default()
    }
}

pub(crate) fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// A time this many milliseconds after the tests' clock began.
pub(crate) fn after_start(millis: i64) -> Option<Timestamp> {
    let at = START.0 + millis;
    let nanos = i32::try_from(at.rem_euclid(1_000) * 1_000_000).unwrap();
    Some(Timestamp { seconds: at.div_euclid(1_000), nanos })
}

/// The fields that a refusal names.
pub(crate) fn bad_fields(refused: &Status) -> Vec<String> {
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let violations = refused.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    violations.into_iter().map(|violation| violation.field).collect()
}

/// The reason that a refusal gives to programs.
pub(crate) fn error_reason(refused: &Status) -> String {
    refused.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// The only file of a directory's journal.
pub(crate) fn journal_segment(dir: &TempDir) -> PathBuf {
    dir.path().join("journal/000000000001.kwj")
}
