//! One row for each RPC: who may call it, and how it is served. A test holds the rows against the descriptors; a path
//! without a row is refused to everyone.

use keyward_core::access::Action;

use super::{ADMIN_REQUEST_BYTES_MAX, BATCH_REQUEST_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX};
use crate::http2::OPEN_MESSAGE_BYTES_MAX;

/// One verdict.
pub const VERIFY: &str = "/keyward.v1.KeyVerify/Verify";
/// Several verdicts.
pub const BATCH_VERIFY: &str = "/keyward.v1.KeyVerify/BatchVerify";
/// A stream of verdicts, whose caller is checked again for each of its messages.
pub const STREAM_VERIFY: &str = "/keyward.v1.KeyVerify/StreamVerify";

/// An RPC.
#[derive(Clone, Copy, Debug)]
pub struct Rpc {
    /// Its path.
    pub path: &'static str,
    /// The action that it takes. `None`: none.
    pub action: Option<Action>,
    /// Whether it answers callers without a credential.
    pub is_open: bool,
    /// Where it runs.
    pub runs: Runs,
    /// Whether its request is a stream of messages, which may stay open for days.
    pub has_stream: bool,
    /// Whether its reply may be long, up to some megabytes. (Streams and backups come in pieces.)
    pub has_long_reply: bool,
    /// Bytes that a message of its request may have. (A VerifyRequest must have fewer still, which is checked once it
    /// has been read.)
    pub message_bytes_max: usize,
}

/// Where a call runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Runs {
    /// On the core of its connection: it reads memory alone, or is a stream of such calls, which yields by itself.
    OnItsCore,
    /// On the runtime that all cores share.
    Shared,
    /// On a thread of its own, before others: it does nothing but take power away.
    First,
}

/// A call of KeyAdmin or KeyAudit, unless its row says otherwise.
const ADMIN: Rpc = Rpc {
    path: "unknown",
    action: None,
    is_open: false,
    runs: Runs::Shared,
    has_stream: false,
    has_long_reply: false,
    message_bytes_max: ADMIN_REQUEST_BYTES_MAX,
};
const URGENT: Rpc = Rpc { action: Some(Action::ChangeState), runs: Runs::First, ..ADMIN };
const VERDICT: Rpc =
    Rpc { action: Some(Action::Verify), runs: Runs::OnItsCore, message_bytes_max: BATCH_REQUEST_BYTES_MAX, ..ADMIN };
/// Probes have no credential, and reflection shows only what the repository shows.
const PROBE: Rpc = Rpc { is_open: true, runs: Runs::OnItsCore, message_bytes_max: OPEN_MESSAGE_BYTES_MAX, ..ADMIN };
const REFLECTION: Rpc = Rpc { runs: Runs::Shared, has_stream: true, ..PROBE };

/// Every RPC of the server.
pub const RPCS: &[Rpc] = &[
    Rpc { path: "/keyward.v1.KeyAdmin/CreateKey", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/GetKey", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/ListKeys", action: Some(Action::Read), has_long_reply: true, ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/UpdateKey", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/DisableKey", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/EnableKey", action: Some(Action::ChangeState), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/RevokeKey", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/CreateTenant", action: Some(Action::CreateTenant), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/GetTenant", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/ListTenants", action: Some(Action::Read), has_long_reply: true, ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/Backup", action: Some(Action::Backup), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAudit/GetHead", action: Some(Action::ReadHead), ..ADMIN },
    Rpc { path: VERIFY, ..VERDICT },
    Rpc { path: BATCH_VERIFY, has_long_reply: true, ..VERDICT },
    Rpc { path: STREAM_VERIFY, has_stream: true, message_bytes_max: STREAM_MESSAGE_BYTES_MAX, ..VERDICT },
    Rpc { path: "/grpc.health.v1.Health/Check", ..PROBE },
    Rpc { path: "/grpc.health.v1.Health/List", ..PROBE },
    Rpc { path: "/grpc.health.v1.Health/Watch", ..PROBE },
    Rpc { path: "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ..REFLECTION },
    Rpc { path: "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ..REFLECTION },
];

/// The RPCs that take a credential, each with its action.
pub fn guarded() -> impl Iterator<Item = (&'static str, Action)> {
    RPCS.iter().filter_map(|rpc| Some((rpc.path, rpc.action?)))
}

/// How a path is served. An unknown method of an open service is served as the known ones are, and answered with
/// UNIMPLEMENTED; an unknown service is served as KeyAdmin is.
#[must_use]
pub fn rpc(path: &str) -> &'static Rpc {
    let in_its_service = |rpc: &&Rpc| rpc.is_open && service(path).is_some() && service(path) == service(rpc.path);
    let named = RPCS.iter().find(|rpc| rpc.path == path);
    named.or_else(|| RPCS.iter().find(in_its_service)).unwrap_or(&ADMIN)
}

fn service(path: &str) -> Option<&str> {
    path.rsplit_once('/').map(|(service, _)| service)
}

/// The path as the log may show it: a caller may send anything as a path, so only known ones are repeated.
#[must_use]
pub fn log_name(path: &str) -> &'static str {
    RPCS.iter().find(|rpc| rpc.path == path).map_or("unknown", |rpc| rpc.path)
}
