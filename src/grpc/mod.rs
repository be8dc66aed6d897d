//! The wire: from protobuf to the domain and back, and nothing else.
//!
//! [`pb`] is generated, [`convert`] and [`fields`] translate, [`status`] is the only place that builds a `Status`,
//! [`calls`] says which call needs which permission, [`admin`], [`audit`] and [`verify`] are the services, [`stream_verify`]
//! the one call that goes on, [`messages`] what it reads, and [`standing`] what its caller may while it does.

pub mod admin;
pub mod audit;
pub mod calls;
pub mod convert;
pub mod fields;
pub mod messages;
pub mod pb;
pub mod ready;
pub mod refusals;
pub mod standing;
pub mod status;
pub mod stream_verify;
pub mod verify;
pub mod wire;

use tokio_util::sync::CancellationToken;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::pb::health_server::{Health, HealthServer};

use self::admin::AdminService;
use self::audit::AuditService;
use self::messages::Detaching;
use self::pb::key_admin_server::KeyAdminServer;
use self::pb::key_audit_server::KeyAuditServer;
use self::pb::key_verify_server::KeyVerifyServer;
use self::ready::Gate;
use self::verify::VerifyService;

/// An admin request longer than this is refused.
pub const ADMIN_REQUEST_BYTES_MAX: usize = 1024 * 1024;
/// A verify request longer than this is refused.
pub const VERIFY_REQUEST_BYTES_MAX: usize = 64 * 1024;
/// A batch longer than this is refused. One of 1,000 with long fields fits.
pub const BATCH_REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// All services. Streams end when `stop` is cancelled. Reflection is served if `reflection` is set.
///
/// # Errors
/// When the descriptors do not decode, which a build that passed its tests does not have.
pub fn routes(
    gate: &Gate,
    stop: CancellationToken,
    health: HealthServer<impl Health>,
    reflection: bool,
) -> Result<Routes, tonic_reflection::server::Error> {
    let mut routes = RoutesBuilder::default();
    routes.add_service(health);
    routes.add_service(
        KeyAdminServer::new(AdminService::new(gate.clone())).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX),
    );
    routes.add_service(
        KeyAuditServer::new(AuditService::new(gate.clone())).max_decoding_message_size(ADMIN_REQUEST_BYTES_MAX),
    );
    let verify = KeyVerifyServer::new(VerifyService::new(gate.clone(), stop));
    routes.add_service(Detaching(verify.max_decoding_message_size(BATCH_REQUEST_BYTES_MAX)));
    if reflection {
        // Both: much software still speaks only v1alpha.
        let builder = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(pb::DESCRIPTORS)
                .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
                .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        };
        routes.add_service(builder().build_v1()?);
        routes.add_service(builder().build_v1alpha()?);
    }
    Ok(routes.routes())
}
