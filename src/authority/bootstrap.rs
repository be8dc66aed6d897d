//! The first commit of an empty log: the two tenants, and a key for the first administrator.

use keyward_core::event::Revision;
use keyward_core::id::{ActorId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, Hold, KeyRecord, TenantRecord};

use super::{Authority, AuthorityError, KeyMinter, Resource, target};
use crate::store::{Commit, RecordWrite};

impl Authority {
    /// Creates tenants `default` and `system` and a key for an administrator, if the log is empty. `make`
    /// makes the key, and must store its secret durably unless somebody has it: if it were lost, everyone
    /// would be locked out.
    ///
    /// # Errors
    /// When `make` fails, or the change cannot be made.
    pub async fn bootstrap<E: From<AuthorityError>>(
        &self,
        make: impl FnOnce(&KeyMinter<'_>, &AuditStamp) -> Result<KeyRecord, E>,
    ) -> Result<Option<Revision>, E> {
        if self.store.revision() > Revision(0) {
            return Ok(None);
        }
        let stamp = AuditStamp { time: self.now().latest(), actor: ActorId::keyward() };
        let tenant = |tenant: TenantId, display_name: &str| {
            RecordWrite::NewTenant(Box::new(TenantRecord {
                tenant,
                display_name: display_name.to_owned(),
                secret_prefix: SecretPrefix::kw(),
                hold: Hold::default(),
                keys_max: None,
                created: stamp.clone(),
                updated: None,
                revision: Revision(0),
            }))
        };
        let minter = KeyMinter { peppers: &self.peppers, entropy: &*self.entropy };
        let key = make(&minter, &stamp)?;
        let commit = Commit {
            actor: stamp.actor.clone(),
            authorization: None,
            method: "Bootstrap",
            target: target(&key.tenant, &key.key_id),
            time: stamp.time,
            narrows: false,
            urgent: false,
            writes: vec![
                tenant(TenantId::default_tenant(), "Default"),
                tenant(TenantId::system(), "Credentials of callers"),
                RecordWrite::NewKey(Box::new(key)),
            ],
            retry: None,
        };
        let revision = self.commit(commit).await.map_err(|e| AuthorityError::from_commit(e, Resource::Key))?;
        Ok(Some(revision))
    }
}
