//! The generated wire code, and Debug for the messages that carry a secret.

use std::fmt;

#[expect(
    clippy::allow_attributes,
    clippy::large_enum_variant,
    clippy::must_use_candidate,
    clippy::too_many_lines,
    reason = "generated"
)]
mod generated {
    tonic::include_proto!("keyward.v1");
}

pub use generated::*;

/// The descriptors of the services, with their comments.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/keyward_v1.bin"));

/// The descriptors of protobuf's own files.
pub const WELL_KNOWN_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/well_known.bin"));

/// The standard health service.
pub mod health {
    #[expect(clippy::allow_attributes, clippy::must_use_candidate, clippy::too_many_lines, reason = "generated")]
    mod generated {
        tonic::include_proto!("grpc.health.v1");
    }

    pub use generated::*;

    /// The descriptors of the service, with their comments.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/grpc_health_v1.bin"));
}

impl fmt::Debug for VerifyRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VerifyRequest").field("tenant", &self.tenant).finish_non_exhaustive()
    }
}

impl fmt::Debug for CreateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CreateKeyResponse").field("key", &self.key).finish_non_exhaustive()
    }
}

impl fmt::Debug for RotateKeyResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RotateKeyResponse").field("key", &self.key).finish_non_exhaustive()
    }
}
