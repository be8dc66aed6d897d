//! One row for each RPC: who may call it, and how it is served. A test holds the rows against the
//! descriptors; a path without a row is refused to everyone.

use grpc_h2::{CallKind, Runs};
use keyward_core::access::Action;

use super::{ADMIN_REQUEST_BYTES_MAX, BATCH_REQUEST_BYTES_MAX, LIMITS, STREAM_MESSAGE_BYTES_MAX};

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
    /// How a connection serves it.
    pub kind: CallKind,
    /// Bytes that a message of its request may have. (A VerifyRequest must have fewer still, which is checked
    /// once it has been read.)
    pub message_bytes_max: usize,
}

/// A call of KeyAdmin or KeyAudit, unless its row says otherwise.
const ADMIN: Rpc = Rpc { path: "unknown", action: None, kind: SHARED, message_bytes_max: ADMIN_REQUEST_BYTES_MAX };
/// It does nothing but take power away.
const URGENT: Rpc = Rpc { action: Some(Action::ChangeState), kind: CallKind { runs: Runs::Urgent, ..SHARED }, ..ADMIN };
/// It reads memory alone. A stream of such calls yields by itself.
const VERDICT: Rpc =
    Rpc { action: Some(Action::Verify), kind: INLINE, message_bytes_max: BATCH_REQUEST_BYTES_MAX, ..ADMIN };
/// Open, because probes have no credential.
const PROBE: Rpc =
    Rpc { kind: CallKind { is_open: true, ..INLINE }, message_bytes_max: LIMITS.open_message_bytes_max, ..ADMIN };
/// Open, because it shows only what the repository shows.
const REFLECTION: Rpc = Rpc {
    kind: CallKind { is_open: true, has_stream: true, ..SHARED },
    message_bytes_max: LIMITS.open_message_bytes_max,
    ..ADMIN
};

const SHARED: CallKind = CallKind { runs: Runs::Shared, is_open: false, has_stream: false, has_long_reply: false };
const INLINE: CallKind = CallKind { runs: Runs::Inline, ..SHARED };
const LONG: CallKind = CallKind { runs: Runs::Bulk, has_long_reply: true, ..SHARED };
const LONG_INLINE: CallKind = CallKind { has_long_reply: true, ..INLINE };
const STREAM_INLINE: CallKind = CallKind { has_stream: true, ..INLINE };

/// Every RPC of the server.
pub const RPCS: &[Rpc] = &[
    Rpc { path: "/keyward.v1.KeyAdmin/CreateKey", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/GetKey", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/ListKeys", action: Some(Action::Read), kind: LONG, ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/UpdateKey", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/DisableKey", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/EnableKey", action: Some(Action::ChangeState), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/RevokeKey", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/RotateKey", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/FinishRotation", action: Some(Action::Issue), ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/CancelRotation", action: Some(Action::Issue), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/DeleteKey", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/UndeleteKey", action: Some(Action::ChangeState), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/CreateTenant", action: Some(Action::ManageTenants), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/GetTenant", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/ListTenants", action: Some(Action::Read), kind: LONG, ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/UpdateTenant", action: Some(Action::ManageTenants), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/SuspendTenant", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/ResumeTenant", action: Some(Action::ChangeState), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/SuspendOwner", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/ResumeOwner", action: Some(Action::ChangeState), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/SetEpoch", ..URGENT },
    Rpc { path: "/keyward.v1.KeyAdmin/GetOwner", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/GetIssuer", action: Some(Action::Read), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/Backup", action: Some(Action::Backup), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAdmin/SetLogFilter", action: Some(Action::SetLogFilter), ..ADMIN },
    Rpc { path: "/keyward.v1.KeyAudit/GetHead", action: Some(Action::ReadHead), ..ADMIN },
    Rpc { path: VERIFY, ..VERDICT },
    Rpc { path: BATCH_VERIFY, kind: LONG_INLINE, ..VERDICT },
    Rpc { path: STREAM_VERIFY, kind: STREAM_INLINE, message_bytes_max: STREAM_MESSAGE_BYTES_MAX, ..VERDICT },
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

/// How a path is served. An unknown method of an open service is served as the known ones are, and answered
/// with UNIMPLEMENTED; an unknown service is served as KeyAdmin is.
#[must_use]
pub fn rpc(path: &str) -> &'static Rpc {
    let in_its_service = |rpc: &&Rpc| rpc.kind.is_open && service(path).is_some() && service(path) == service(rpc.path);
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
