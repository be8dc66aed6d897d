//! Clients of a running server, for the command line: the calls of an administrator, backup and health.

mod addr;
mod backup;
mod client;
mod health;
mod refused;
mod tls;

use tonic::Status;

pub use self::addr::RemoteAddr;
pub use self::backup::{Fetched, RemoteError, Server, backup, backup_to};
pub use self::client::{CallError, Client, Target};
pub use self::health::{HealthError, ServiceHealth, health};
pub use self::refused::{Refused, RefusedKind};
pub use self::tls::{ClientTls, EndpointError};
/// The messages of the calls, as in proto/keyward/v1.
pub use crate::grpc::pb as wire;
/// What a sealed secret is bound to.
pub use crate::grpc::retry::seal_info;

/// The innermost cause of an error. The outermost says only "transport error".
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut bottom = error;
    while let Some(below) = bottom.source() {
        bottom = below;
    }
    bottom.to_string()
}

/// Why a call failed, for people.
fn failed_call(status: &Status) -> String {
    match std::error::Error::source(status) {
        // It did not come from the server.
        Some(cause) => format!(
            "the connection broke: {}; see whether the server encrypts (--tls, --ca) and demands a certificate \
             (--cert, --key)",
            root_cause(cause)
        ),
        None => format!("the server answered {:?}: {}", status.code(), status.message()),
    }
}
