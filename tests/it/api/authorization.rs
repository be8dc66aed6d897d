//! Who may make which call. `authorization.txt` is the whole answer, for people to read and for reviews to
//! show: this test makes every call as everyone, and compares.

use std::fmt::Write;

use keyward::app::Engine;
use keyward::config::Settings;
use keyward::grpc::calls::rpc;
use keyward::grpc::pb::{self, Reason};
use keyward::server::addr::ListenAddr;
use keyward_core::access::{Action, Role, RoleScope};
use keyward_core::id::{Environment, SecretPrefix};
use keyward_core::identity::{Assignment, IdentityName};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;
use keyward_core::testing::SeededEntropy;
use prost::Message;
use tonic::transport::Endpoint;
use tonic::{Code, Status};

use crate::support::harness::{Handle, Issued, Site, after_start, new_key, rotate_at_use, strings};
use crate::support::rpcs::{call, described, request};
use crate::support::tables::{agrees_with, aligned};

const HEAD: &str = "\
# Who may make which call. A test makes all of them on a running server and compares with this file; see
# authorization.rs, which also writes it.
#
# A row is an RPC, with the tenant of what it is about where it is about a tenant. A column is a caller.
#
# ok                answered, and of a verdict: the key may
# denied            PERMISSION_DENIED
# not-found         NOT_FOUND: as if there were no such key or tenant
# unauthenticated   UNAUTHENTICATED
# unknown           a verdict: there is no such key
# not-listed        answered, without this tenant
# never             FAILED_PRECONDITION: allowed to nobody
";

/// Where those call who are known by their user.
const SOCKET: &str = "calls.sock";

/// What an RPC is about.
const TENANTS: [&str; 2] = ["acme", "system"];

/// A caller: its column, and how it calls.
type Caller = (String, Calls);

/// How a caller is known.
#[derive(Clone)]
enum Calls {
    /// By this credential.
    Key(String),
    /// By nothing.
    Nothing,
    /// By the identity of the connection, which has these roles.
    Identity(Vec<String>),
}

/// Where the roles of callers come from.
#[derive(Clone, Copy)]
enum By {
    Key,
    Identity,
}

async fn caller(site: &Site, name: &str, key: pb::CreateKeyRequest) -> (Caller, Issued) {
    let issued = site.admin().issued(pb::CreateKeyRequest { tenant: "system".into(), ..key }).await;
    ((name.to_owned(), Calls::Key(issued.secret.clone())), issued)
}

/// A caller with these roles.
async fn caller_with(site: &Site, by: By, name: &str, roles: &[&str]) -> Caller {
    match by {
        By::Key => caller(site, name, new_key("Caller", roles)).await.0,
        By::Identity => (name.to_owned(), Calls::Identity(strings(roles))),
    }
}

/// A caller for each role, plain or narrowed to a tenant, if it can be.
async fn callers_with_roles(site: &Site, by: By, tenant: Option<&str>) -> Vec<Caller> {
    let mut callers = vec![];
    for role in Role::ALL {
        let scope = role.scope().to_owned() + &tenant.map(|tenant| format!("@{tenant}")).unwrap_or_default();
        if RoleScope::parse(&Scope::parse(&scope).unwrap()).is_ok() {
            let name = role.scope().trim_start_matches("keyward.");
            callers.push(caller_with(site, by, name, &[&*scope]).await);
        }
    }
    callers
}

/// Callers whose credential does not work, or is none.
async fn callers_without_a_credential(site: &Site) -> Vec<Caller> {
    let admin = || new_key("Caller", &["keyward.admin"]);
    let never = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &SeededEntropy::new(7)).unwrap();
    let (disabled, key) = caller(site, "disabled", admin()).await;
    site.admin().disable_key(&key.key).await;
    let (revoked, key) = caller(site, "revoked", admin()).await;
    site.admin().revoke_key(&key.key).await;
    let expiring = pb::CreateKeyRequest { expire_time: after_start(1_000), ..admin() };
    let (expired, _) = caller(site, "expired", expiring).await;
    site.clock.advance_ms(1_000);
    let elsewhere = pb::CreateKeyRequest { allowed_cidrs: strings(&["192.0.2.0/24"]), ..admin() };
    let (elsewhere, _) = caller(site, "elsewhere", elsewhere).await;
    let ordinary = pb::CreateKeyRequest { tenant: "acme".into(), ..new_key("Ordinary", &["admin"]) };
    let ordinary = site.admin().issued(ordinary).await.secret;
    let given = |name: &str, secret: &str| (name.to_owned(), Calls::Key(secret.to_owned()));
    vec![
        ("none".to_owned(), Calls::Nothing),
        given("malformed", "garbage"),
        given("never-issued", &never.reveal()),
        disabled,
        revoked,
        expired,
        elsewhere,
        given("ordinary-key", &ordinary),
    ]
}

/// The tables of the file: a title, and the callers of its columns. Those without a credential are tried by
/// key alone.
async fn tables(site: &Site, by: By) -> Vec<(&'static str, Vec<Caller>)> {
    let mut plain = callers_with_roles(site, by, None).await;
    let others = Role::ALL.iter().filter(|role| **role != Role::Admin).map(|role| role.scope());
    plain.push(caller_with(site, by, "all-but-admin", &others.collect::<Vec<_>>()).await);
    let mut tables = vec![
        ("Roles of all tenants", plain),
        ("Roles narrowed to acme", callers_with_roles(site, by, Some("acme")).await),
        ("Roles narrowed to globex", callers_with_roles(site, by, Some("globex")).await),
        ("Roles narrowed to system", callers_with_roles(site, by, Some("system")).await),
    ];
    if matches!(by, By::Key) {
        tables.push((
            "No credential, or one that does not work (disabled to elsewhere: of administrators)",
            callers_without_a_credential(site).await,
        ));
    }
    tables
}

/// Makes a call as a caller.
async fn called(site: &Site, path: &str, by: &Calls, message: &[u8]) -> Result<Vec<u8>, Status> {
    match by {
        Calls::Key(secret) => call(&site.channel(), path, Some(secret), message).await,
        Calls::Nothing => call(&site.channel(), path, None, message).await,
        Calls::Identity(roles) => {
            let roles = roles.iter().map(|role| RoleScope::parse(&Scope::parse(role).unwrap()).unwrap()).collect();
            let name = IdentityName::of_uid(rustix::process::getuid().as_raw()).unwrap();
            site.identities.replace([Assignment { name, roles, audience: None }]);
            let socket = format!("unix://{}", site.dir.path().join(SOCKET).display());
            call(&Endpoint::from_shared(socket).unwrap().connect_lazy(), path, None, message).await
        }
    }
}

/// An RPC, what it is about, and whether the table tells the tenant of that.
struct Row {
    path: String,
    target: Issued,
    has_tenant: bool,
}

impl Row {
    /// The first cells of its line.
    fn name(&self) -> [String; 2] {
        let path = self.path.trim_start_matches("/keyward.v1.").trim_start_matches('/');
        [path.to_owned(), if self.has_tenant { self.target.key.tenant.clone() } else { String::new() }]
    }
}

/// A row for each RPC that the server describes, or one for each tenant. Each has a key of its own.
async fn rows(site: &Site) -> Vec<Row> {
    let mut rows = vec![];
    for path in described() {
        let global = [Action::ManageTenants, Action::Backup, Action::ReadHead, Action::SetLogFilter];
        let has_tenant =
            rpc(&path).action.is_some_and(|action| !global.contains(&action)) && !path.ends_with("GetIssuer");
        for tenant in TENANTS.into_iter().take(if has_tenant { 2 } else { 1 }) {
            // A key of `system` has a role.
            let scopes: &[&str] = if tenant == "system" { &["keyward.viewer"] } else { &[] };
            let key = pb::CreateKeyRequest { tenant: tenant.into(), ..new_key("Target", scopes) };
            let target = site.admin().issued(key).await;
            rows.push(Row { path: path.clone(), target, has_tenant });
        }
    }
    rows
}

/// What came of a call, in the words of the file.
fn outcome(row: &Row, answered: Result<Vec<u8>, Status>) -> String {
    let reply = match answered {
        Ok(reply) => reply,
        Err(status) => return code(status.code()),
    };
    let message = reply.get(5..).unwrap_or_default();
    let verdict = |verdict: Option<pb::VerifyResponse>| match verdict.unwrap().reason() {
        Reason::Ok => "ok".to_owned(),
        reason => reason.as_str_name().trim_start_matches("REASON_").to_lowercase().replace('_', "-"),
    };
    match &*row.path {
        "/keyward.v1.KeyVerify/Verify" => verdict(Some(pb::VerifyResponse::decode(message).unwrap())),
        "/keyward.v1.KeyVerify/BatchVerify" => {
            let mut batch = pb::BatchVerifyResponse::decode(message).unwrap();
            let Some(pb::batch_verify_result::Result::Response(one)) = batch.results.remove(0).result else { panic!() };
            verdict(Some(one))
        }
        "/keyward.v1.KeyVerify/StreamVerify" => {
            let answer = pb::StreamVerifyResponse::decode(message).unwrap();
            let Some(pb::stream_verify_response::Result::Response(one)) = answer.result else { panic!() };
            verdict(Some(one))
        }
        "/keyward.v1.KeyAdmin/ListTenants" => {
            let listed = pb::ListTenantsResponse::decode(message).unwrap().tenants;
            let is_listed = listed.iter().any(|tenant| tenant.tenant == row.target.key.tenant);
            if is_listed { "ok" } else { "not-listed" }.to_owned()
        }
        _ => "ok".to_owned(),
    }
}

fn code(code: Code) -> String {
    match code {
        Code::PermissionDenied => "denied".to_owned(),
        Code::NotFound => "not-found".to_owned(),
        Code::Unauthenticated => "unauthenticated".to_owned(),
        // Tenant `system` is never suspended.
        Code::FailedPrecondition => "never".to_owned(),
        // No other one is about the caller.
        code => format!("{code:?}"),
    }
}

/// Brings the target into a state that the call changes, if the call before has left it in another one.
async fn ready(admin: &Handle, row: &Row) {
    let (key_id, tenant) = (row.target.key.key_id.clone(), row.target.key.tenant.clone());
    match &*row.path {
        "/keyward.v1.KeyAdmin/DeleteKey" => {
            admin.undelete(pb::UndeleteKeyRequest { key_id, tenant, ..Default::default() }).await.unwrap();
        }
        // They end a rotation that is pending.
        "/keyward.v1.KeyAdmin/FinishRotation" | "/keyward.v1.KeyAdmin/CancelRotation" => {
            admin.rotated(rotate_at_use(&row.target.key, 1_000)).await;
        }
        "/keyward.v1.KeyAdmin/UndeleteKey" => {
            admin.delete(pb::DeleteKeyRequest { key_id, tenant, ..Default::default() }).await.unwrap();
        }
        _ => {}
    }
}

/// Makes each call as each caller. Of the calls that are answered, those that make a change make one; no
/// other one does.
async fn tried(site: &Site, by: By) -> String {
    let admin = site.admin();
    for tenant in ["acme", "globex"] {
        admin.create_tenant(pb::CreateTenantRequest { tenant: tenant.into(), ..Default::default() }).await.unwrap();
    }
    let (tables, rows) = (tables(site, by).await, rows(site).await);
    let revision = async || site.admin().head(pb::GetHeadRequest {}).await.unwrap().revision;
    let (mut text, mut calls) = (HEAD.to_owned(), 0);
    for (title, callers) in tables {
        let names = callers.iter().map(|(name, _)| name.clone());
        let mut lines = vec![["RPC", "tenant"].map(str::to_owned).into_iter().chain(names).collect::<Vec<_>>()];
        for row in &rows {
            let changes =
                matches!(rpc(&row.path).action, Some(Action::Issue | Action::ChangeState | Action::ManageTenants));
            let mut line = row.name().to_vec();
            for (name, caller) in &callers {
                calls += 1;
                ready(&admin, row).await;
                let before = revision().await;
                let message = request(&row.path, &row.target, &format!("t-{calls}"));
                let answered = called(site, &row.path, caller, &message).await;
                let outcome = outcome(row, answered);
                let after = revision().await;
                let made = u64::from(changes && outcome == "ok");
                assert_eq!(after - before, made, "{title}, {name}, {:?}: {outcome}", row.name());
                line.push(outcome);
            }
            lines.push(line);
        }
        write!(text, "\n## {title}\n\n{}", aligned(&lines)).unwrap();
    }
    text
}

#[tokio::test]
async fn every_caller_may_make_the_calls_of_the_table_and_no_others() {
    // On disk, because what is in memory has no backup.
    let site = Site::start().await;
    agrees_with("tests/it/api/authorization.txt", &tried(&site, By::Key).await);
}

#[tokio::test]
async fn the_identity_of_a_connection_may_do_what_a_key_with_its_roles_may() {
    let listens = |settings: &mut Settings| settings.listen.push(ListenAddr::Unix(settings.data_dir.join(SOCKET)));
    let site = Site::changed(Engine::Sled, "off", listens).await;
    let tried = tried(&site, By::Identity).await;
    let of_keys = std::fs::read_to_string("tests/it/api/authorization.txt").unwrap();
    let (tables, _) = of_keys.split_once("\n## No credential").unwrap();
    assert_eq!(tried, tables);
}
