//! Which call needs which permission. A test holds this list against the descriptors: a call that is not here
//! is refused to everyone.

use keyward_core::access::Action;

use super::{ADMIN_REQUEST_BYTES_MAX, BATCH_REQUEST_BYTES_MAX, STREAM_MESSAGE_BYTES_MAX};
use crate::http2::OPEN_MESSAGE_BYTES_MAX;

/// Every call of our own services, and the action it takes.
pub const CALLS: &[(&str, Action)] = &[
    ("/keyward.v1.KeyAdmin/CreateKey", Action::Issue),
    ("/keyward.v1.KeyAdmin/GetKey", Action::Read),
    ("/keyward.v1.KeyAdmin/ListKeys", Action::Read),
    ("/keyward.v1.KeyAdmin/UpdateKey", Action::Issue),
    ("/keyward.v1.KeyAdmin/DisableKey", Action::ChangeState),
    ("/keyward.v1.KeyAdmin/EnableKey", Action::ChangeState),
    ("/keyward.v1.KeyAdmin/RevokeKey", Action::ChangeState),
    ("/keyward.v1.KeyAdmin/CreateTenant", Action::CreateTenant),
    ("/keyward.v1.KeyAdmin/GetTenant", Action::Read),
    ("/keyward.v1.KeyAdmin/ListTenants", Action::Read),
    ("/keyward.v1.KeyAdmin/Backup", Action::Backup),
    ("/keyward.v1.KeyAudit/GetHead", Action::ReadHead),
    (VERIFY, Action::Verify),
    (BATCH_VERIFY, Action::Verify),
    (STREAM_VERIFY, Action::Verify),
];

/// One verdict.
pub const VERIFY: &str = "/keyward.v1.KeyVerify/Verify";

/// Several verdicts.
pub const BATCH_VERIFY: &str = "/keyward.v1.KeyVerify/BatchVerify";

/// The call whose caller is checked again for each of its messages.
pub const STREAM_VERIFY: &str = "/keyward.v1.KeyVerify/StreamVerify";

/// Services that answer without a credential: probes have none, and reflection shows only what the repository shows.
pub const OPEN_SERVICES: &[&str] =
    &["/grpc.health.v1.Health/", "/grpc.reflection.v1.ServerReflection/", "/grpc.reflection.v1alpha.ServerReflection/"];

/// Whether a call never takes long: it reads memory alone. Such calls are answered on the core of their
/// connection. So is a stream of verdicts, each of which is as short; it gives way to others by itself.
#[must_use]
pub fn is_quick(path: &str) -> bool {
    path.starts_with("/keyward.v1.KeyVerify/") || path.starts_with("/grpc.health.v1.Health/")
}

/// Whether the request of a call is a stream of messages, which may stay open for days.
#[must_use]
pub fn has_stream(path: &str) -> bool {
    path == STREAM_VERIFY || path.ends_with("/ServerReflectionInfo")
}

/// Whether a call does nothing but take power away. Such calls are answered before others, on a thread of their own.
#[must_use]
pub fn is_urgent(path: &str) -> bool {
    matches!(path, "/keyward.v1.KeyAdmin/DisableKey" | "/keyward.v1.KeyAdmin/RevokeKey")
}

/// Whether a reply may be long, up to some megabytes: the answers to a batch, and pages. A stream and a backup come in
/// pieces.
#[must_use]
pub fn has_long_reply(path: &str) -> bool {
    matches!(
        path,
        "/keyward.v1.KeyVerify/BatchVerify" | "/keyward.v1.KeyAdmin/ListKeys" | "/keyward.v1.KeyAdmin/ListTenants"
    )
}

/// The bytes of a message that a call takes at most. (A request of Verify must have fewer still, which is
/// seen once it is read.)
#[must_use]
pub fn message_bytes_max(path: &str) -> usize {
    match path {
        _ if is_open(path) => OPEN_MESSAGE_BYTES_MAX,
        STREAM_VERIFY => STREAM_MESSAGE_BYTES_MAX,
        _ if path.starts_with("/keyward.v1.KeyVerify/") => BATCH_REQUEST_BYTES_MAX,
        _ => ADMIN_REQUEST_BYTES_MAX,
    }
}

/// Whether a path needs no credential.
#[must_use]
pub fn is_open(path: &str) -> bool {
    OPEN_SERVICES.iter().any(|service| path.starts_with(service))
}

/// The path as the log may show it: a caller may send anything as a path, so only known ones are repeated.
#[must_use]
pub fn known(path: &str) -> &'static str {
    CALLS.iter().find(|(call, _)| *call == path).map_or("unknown", |(call, _)| call)
}

/// The action of a call. `None`: there is no such call.
#[must_use]
pub fn action_of(path: &str) -> Option<Action> {
    CALLS.iter().find(|(call, _)| *call == path).map(|(_, action)| *action)
}
