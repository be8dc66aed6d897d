//! How requests are named, so that they can be asked for again.

use prost::Message;

use keyward_core::id::RequestId;

use super::fields::Fields;
use super::pb;
use super::status::Refusal;
use crate::authority::RequestName;

pub use crate::authority::seal_info;

/// A request for a change.
pub trait Mutation: Message {
    /// Its `request_id`.
    fn request_id(&mut self) -> &mut String;
}

/// Every change of KeyAdmin has a line here; a test holds them against the descriptors.
macro_rules! mutations {
    ($($request:ident),* $(,)?) => {
        $(impl Mutation for pb::$request {
            fn request_id(&mut self) -> &mut String {
                &mut self.request_id
            }
        })*
    };
}

mutations! {
    CreateKeyRequest,
    UpdateKeyRequest,
    DisableKeyRequest,
    EnableKeyRequest,
    RevokeKeyRequest,
    RotateKeyRequest,
    FinishRotationRequest,
    CancelRotationRequest,
    DeleteKeyRequest,
    UndeleteKeyRequest,
    CreateTenantRequest,
    UpdateTenantRequest,
    SuspendTenantRequest,
    ResumeTenantRequest,
    SuspendOwnerRequest,
    ResumeOwnerRequest,
    SetEpochRequest,
}

/// Takes the name of a request out of it. What is left is what the name stands for: its fields as they are
/// decoded, and so the same for the same request of any client. Fields that are not known do not count.
///
/// # Errors
/// When the name breaks its rule.
pub fn take_name(message: &mut impl Mutation) -> Result<Option<RequestName>, Refusal> {
    let given = std::mem::take(message.request_id());
    if given.is_empty() {
        return Ok(None);
    }
    let mut fields = Fields::default();
    let id = fields.parse("request_id", &given, RequestId::parse);
    if id.is_some() {
        // It is written to the log, where no secret may be.
        fields.opaque("request_id", &given, given.len());
    }
    let id = fields.finish(id)?;
    Ok(Some(RequestName { id, message_hash: *blake3::hash(&message.encode_to_vec()).as_bytes() }))
}
