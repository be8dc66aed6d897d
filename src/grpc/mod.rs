//! The gRPC services: from protobuf to the domain and back.
//!
//! [`pb`] is generated, [`convert`] and [`fields`] translate, [`status`] is the only place that builds a
//! `Status`, [`calls`] says which call needs which permission, [`admin`], [`audit`] and [`verify`] are the
//! services, [`stream_verify`] the one call that goes on, [`messages`] and [`codec`] how requests are read,
//! and [`session`] what a caller may meanwhile. [`health`] and [`reflection`] are open to anyone.

pub mod admin;
pub mod audit;
pub mod calls;
pub mod codec;
pub mod convert;
pub mod fields;
pub mod health;
mod holders;
pub mod keys;
pub mod messages;
pub mod pb;
pub mod query;
pub mod reflection;
pub mod refusals;
pub mod retry;
pub mod session;
pub mod state;
pub mod status;
pub mod stream_verify;
mod text;
pub mod verify;

use grpc_h2::Limits;
use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};

use self::admin::AdminService;
use self::audit::AuditService;
use self::health::HealthService;
use self::messages::Detaching;
use self::pb::health::health_server::HealthServer;
use self::pb::key_admin_server::KeyAdminServer;
use self::pb::key_audit_server::KeyAuditServer;
use self::pb::key_verify_server::KeyVerifyServer;
use self::state::StateHandle;
use self::verify::VerifyService;
use crate::health::Health;
use crate::services::{ServiceGroup, Services};

/// The bounds and times of callers' connections.
pub const LIMITS: Limits = Limits::DEFAULT;

/// An admin request longer than this is refused.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// A verify request longer than this is refused.
pub const VERIFY_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A batch longer than this is refused. One of 1,000 with long fields fits.
pub const BATCH_REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// A message that is longer ends its stream; one of a stream of verdicts whose request is too long is
/// answered with an error.
pub const STREAM_MESSAGE_BYTES_MAX: usize = 256 * 1024;

/// What a listener serves. Streams end when `stop` is cancelled.
///
/// # Errors
/// When the descriptors do not decode, which a build that passed its tests does not have.
pub fn routes(
    state: &StateHandle,
    stop: &CancellationToken,
    health: Health,
    served: Services,
) -> Result<Routes, prost::DecodeError> {
    let mut routes = RoutesBuilder::default();
    for group in served.groups() {
        match group {
            ServiceGroup::Health => {
                let health = HealthServer::new(HealthService::new(health.clone(), stop.clone()));
                routes.add_service(health.max_decoding_message_size(LIMITS.open_message_bytes_max))
            }
            ServiceGroup::Admin => {
                let admin = KeyAdminServer::new(AdminService::new(state.clone()));
                routes.add_service(admin.max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX))
            }
            ServiceGroup::Audit => {
                let audit = KeyAuditServer::new(AuditService::new(state.clone()));
                routes.add_service(audit.max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX))
            }
            ServiceGroup::Verify => {
                let verify = KeyVerifyServer::new(VerifyService::new(state.clone(), stop.clone()));
                routes.add_service(Detaching(verify.max_decoding_message_size(BATCH_REQUEST_BYTES_MAX)))
            }
            ServiceGroup::Reflection => {
                // Both: much software still speaks only v1alpha.
                let (v1, v1alpha) = reflection::services(stop.clone(), served)?;
                routes.add_service(v1).add_service(v1alpha)
            }
        };
    }
    Ok(routes.routes())
}
