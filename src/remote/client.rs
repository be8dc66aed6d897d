//! A client of the calls of KeyAdmin, and of the verdicts that it needs to find a key.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status, TimeoutExpired};
use zeroize::Zeroizing;

use super::refused::Refused;
use super::tls::endpoint;
use super::{ClientTls, EndpointError, RemoteAddr, root_cause};
use crate::grpc::pb;
use crate::grpc::pb::key_admin_client::KeyAdminClient;
use crate::grpc::pb::key_verify_client::KeyVerifyClient;
use crate::grpc::retry::Mutation;
use crate::util::files::exposed_mode;

/// A reply longer than this is not read. A page of 1,000 of the largest keys, each with three
/// secrets, has less than 7 MiB.
const REPLY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A key file longer than this holds no key.
const KEY_FILE_BYTES_MAX: u64 = 4096;
/// How long after it was not answered a change is asked for again: two times.
const RETRY_AFTER: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(1)];

/// Where a server is, and how it is called.
#[derive(Debug)]
pub struct Target {
    /// Its address.
    pub addr: RemoteAddr,
    /// How to encrypt. `None`: not at all.
    pub tls: Option<ClientTls>,
    /// The file of the caller's key: one line. `None`: the identity of the connection alone says who calls.
    pub key_file: Option<PathBuf>,
    /// How long connecting may take, and how long each call.
    pub within: Duration,
}

/// Why a call was not made, or not answered as hoped.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The key file cannot be read.
    #[error("the key file {path}: {source}")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// Others may read the key file.
    #[error("the key file {path} has mode {mode:04o}, and only its owner may use it")]
    ExposedKeyFile {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key file does not hold a key.
    #[error("the key file {path} holds no key: it must have one line, the secret of a key")]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// No connection can be tried.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The server cannot be reached.
    #[error("no server answers at {addr}: {}", root_cause(source))]
    Connect {
        /// Its address.
        addr: RemoteAddr,
        /// What happened.
        source: tonic::transport::Error,
    },
    /// The server did not answer in time.
    #[error("{addr} has not answered {call} within {}", humantime::format_duration(*within))]
    TimedOut {
        /// Its address.
        addr: RemoteAddr,
        /// The call, or what else took so long.
        call: &'static str,
        /// Whether it is a change, which may have been made.
        is_change: bool,
        /// The time that it had.
        within: Duration,
    },
    /// The connection broke before the answer.
    #[error("the connection broke before {call} was answered: {cause}")]
    Broken {
        /// The call.
        call: &'static str,
        /// Whether it is a change, which may have been made.
        is_change: bool,
        /// What happened.
        cause: String,
    },
    /// The server answered with an error.
    #[error("{0}")]
    Refused(Box<Refused>),
}

impl CallError {
    /// Whether the server may have made the change, or may make it when it is asked again.
    fn is_unanswered(&self) -> bool {
        match self {
            Self::TimedOut { .. } | Self::Broken { .. } => true,
            Self::Refused(refused) => refused.is_unavailable(),
            _ => false,
        }
    }
}

/// A connection to a server.
#[derive(Debug)]
pub struct Client {
    channel: Channel,
    credential: Option<MetadataValue<Ascii>>,
    addr: RemoteAddr,
    within: Duration,
}

/// Each call with its client, its messages, and the role that it needs. First, whether they are changes.
macro_rules! calls {
    ($is_change:literal; $($(#[$doc:meta])* $name:ident($client:ident, $request:ident) -> $reply:ident, $call:literal, $role:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`CallError`].
            pub async fn $name(&self, request: pb::$request) -> Result<pb::$reply, CallError> {
                let mut client = $client::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX);
                let request = self.request(request);
                self.answered(($call, $is_change), $role, async move { client.$name(request).await }).await
            }
        )*
    };
}

/// Each change likewise. One that has a `request_id` is asked for again where it is not answered.
macro_rules! changes {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $reply:ident, $call:literal, $role:literal;)*) => {
        $(
            $(#[$doc])*
            ///
            /// # Errors
            /// See [`CallError`].
            pub async fn $name(&self, mut request: pb::$request) -> Result<pb::$reply, CallError> {
                let may_repeat = !request.request_id().is_empty();
                let mut client = KeyAdminClient::new(self.channel.clone()).max_decoding_message_size(REPLY_BYTES_MAX);
                let mut pauses = RETRY_AFTER.iter().filter(|_| may_repeat);
                loop {
                    let asked = self.request(request.clone());
                    let answer = self.answered(($call, true), $role, async { client.$name(asked).await }).await;
                    match (answer, pauses.next()) {
                        (Err(error), Some(pause)) if error.is_unanswered() => tokio::time::sleep(*pause).await,
                        (answer, _) => return answer,
                    }
                }
            }
        )*
    };
}

impl Client {
    /// Reads the caller's key and connects.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn connect(target: &Target) -> Result<Self, CallError> {
        let credential = target.key_file.as_deref().map(credential).transpose()?;
        let (addr, within) = (target.addr.clone(), target.within);
        let endpoint = endpoint(&addr, target.tls.as_ref())?;
        let timed_out = |_| CallError::TimedOut { addr: addr.clone(), call: "a connection", is_change: false, within };
        let connected = tokio::time::timeout(within, endpoint.connect()).await.map_err(timed_out)?;
        let channel = connected.map_err(|source| CallError::Connect { addr: addr.clone(), source })?;
        Ok(Self { channel, credential, addr, within })
    }

    calls! {
        false;
        /// Reads one key.
        get_key(KeyAdminClient, GetKeyRequest) -> GetKeyResponse, "GetKey", "keyward.viewer";
        /// Reads a page of keys.
        list_keys(KeyAdminClient, ListKeysRequest) -> ListKeysResponse, "ListKeys", "keyward.viewer";
        /// Reads one tenant.
        get_tenant(KeyAdminClient, GetTenantRequest) -> GetTenantResponse, "GetTenant", "keyward.viewer";
        /// Reads a page of tenants.
        list_tenants(KeyAdminClient, ListTenantsRequest) -> ListTenantsResponse, "ListTenants", "keyward.viewer";
        /// Reads one owner.
        get_owner(KeyAdminClient, GetOwnerRequest) -> GetOwnerResponse, "GetOwner", "keyward.viewer";
        /// Reads one issuer.
        get_issuer(KeyAdminClient, GetIssuerRequest) -> GetIssuerResponse, "GetIssuer", "keyward.viewer";
        /// Asks for a verdict.
        verify(KeyVerifyClient, VerifyRequest) -> VerifyResponse, "Verify", "keyward.verifier";
        /// Asks for many verdicts.
        batch_verify(KeyVerifyClient, BatchVerifyRequest) -> BatchVerifyResponse, "BatchVerify", "keyward.verifier";
    }

    calls! {
        true;
        /// Sets the filter of the server's log.
        set_log_filter(KeyAdminClient, SetLogFilterRequest) -> SetLogFilterResponse, "SetLogFilter", "keyward.admin";
    }

    changes! {
        /// Issues a key.
        create_key(CreateKeyRequest) -> CreateKeyResponse, "CreateKey", "keyward.issuer";
        /// Changes fields of a key.
        update_key(UpdateKeyRequest) -> UpdateKeyResponse, "UpdateKey", "keyward.issuer";
        /// Disables a key.
        disable_key(DisableKeyRequest) -> DisableKeyResponse, "DisableKey", "keyward.operator";
        /// Enables a key.
        enable_key(EnableKeyRequest) -> EnableKeyResponse, "EnableKey", "keyward.operator";
        /// Revokes a key.
        revoke_key(RevokeKeyRequest) -> RevokeKeyResponse, "RevokeKey", "keyward.operator";
        /// Gives a key another secret.
        rotate_key(RotateKeyRequest) -> RotateKeyResponse, "RotateKey", "keyward.issuer";
        /// Ends the previous secret of a key.
        finish_rotation(FinishRotationRequest) -> FinishRotationResponse, "FinishRotation", "keyward.issuer";
        /// Takes the newest secret of a key back.
        cancel_rotation(CancelRotationRequest) -> CancelRotationResponse, "CancelRotation", "keyward.issuer";
        /// Deletes a key.
        delete_key(DeleteKeyRequest) -> DeleteKeyResponse, "DeleteKey", "keyward.operator";
        /// Gives a deleted key back.
        undelete_key(UndeleteKeyRequest) -> UndeleteKeyResponse, "UndeleteKey", "keyward.operator";
        /// Creates a tenant.
        create_tenant(CreateTenantRequest) -> CreateTenantResponse, "CreateTenant", "keyward.admin";
        /// Sets an epoch. For an issuer it takes keyward.admin.
        set_epoch(SetEpochRequest) -> SetEpochResponse, "SetEpoch", "keyward.operator";
        /// Resumes an owner.
        resume_owner(ResumeOwnerRequest) -> ResumeOwnerResponse, "ResumeOwner", "keyward.operator";
        /// Suspends an owner.
        suspend_owner(SuspendOwnerRequest) -> SuspendOwnerResponse, "SuspendOwner", "keyward.operator";
        /// Resumes a tenant.
        resume_tenant(ResumeTenantRequest) -> ResumeTenantResponse, "ResumeTenant", "keyward.operator";
        /// Suspends a tenant.
        suspend_tenant(SuspendTenantRequest) -> SuspendTenantResponse, "SuspendTenant", "keyward.operator";
        /// Changes fields of a tenant.
        update_tenant(UpdateTenantRequest) -> UpdateTenantResponse, "UpdateTenant", "keyward.admin";
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.within);
        if let Some(credential) = &self.credential {
            request.metadata_mut().insert("authorization", credential.clone());
        }
        request
    }

    async fn answered<T>(
        &self,
        (call, is_change): (&'static str, bool),
        role: &'static str,
        answer: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CallError> {
        let timed_out = || CallError::TimedOut { addr: self.addr.clone(), call, is_change, within: self.within };
        let answer = tokio::time::timeout(self.within, answer).await.map_err(|_| timed_out())?;
        answer.map(Response::into_inner).map_err(|status| match std::error::Error::source(&status) {
            // Neither comes from the server.
            Some(cause) if has_timed_out(cause) => timed_out(),
            Some(cause) => CallError::Broken { call, is_change, cause: root_cause(cause) },
            // The server has the same deadline, and may be the first to notice.
            None if status.code() == Code::DeadlineExceeded => timed_out(),
            None => CallError::Refused(Box::new(Refused::read(call, role, &status))),
        })
    }
}

/// Whether the library itself gave a call up at its deadline.
fn has_timed_out(mut error: &(dyn std::error::Error + 'static)) -> bool {
    while !error.is::<TimeoutExpired>() {
        match error.source() {
            Some(below) => error = below,
            None => return false,
        }
    }
    true
}

/// The caller's key, as metadata.
fn credential(path: &Path) -> Result<MetadataValue<Ascii>, CallError> {
    let of_file = |source| CallError::KeyFile { path: path.to_owned(), source };
    let no_key = || CallError::NoKey { path: path.to_owned() };
    let found = fs::metadata(path).map_err(of_file)?;
    if let Some(mode) = exposed_mode(&found).filter(|_| found.is_file()) {
        return Err(CallError::ExposedKeyFile { path: path.to_owned(), mode });
    }
    if found.is_file() && found.len() > KEY_FILE_BYTES_MAX {
        return Err(no_key());
    }
    let key = Zeroizing::new(fs::read(path).map_err(of_file)?);
    let key = std::str::from_utf8(&key).map_err(|_| no_key())?.trim();
    if key.is_empty() || key.contains(char::is_whitespace) {
        return Err(no_key());
    }
    let mut credential = MetadataValue::try_from(&*Zeroizing::new(format!("Bearer {key}"))).map_err(|_| no_key())?;
    credential.set_sensitive(true);
    Ok(credential)
}
