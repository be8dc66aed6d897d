//! The store of a server that was stopped, for changes that no call makes yet.

use std::sync::Arc;

use keyward::keyring::Keyring;
use keyward::store::local::{LocalStore, LockedDir, StoreOptions};
use keyward::store::{RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_core::clock::UnixMillis;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyRecord, OverlapStart, PreviousSecret, RetiredSecret, StoredSecret};
use keyward_core::secret::IssuedSecret;
use keyward_core::testing::SeededEntropy;

use super::harness::{START, Site};
use super::local_store::{commit, options};

/// The store of a server that was stopped.
pub(crate) struct Workshop {
    pub(crate) store: LocalStore,
    keyring: Keyring,
    entropy: SeededEntropy,
}

impl Workshop {
    pub(crate) fn open(site: &Site) -> Self {
        let keyring = Keyring::open(&site.dir.path().join("pepper"), false, &SystemEntropy).unwrap();
        let options = StoreOptions { chain_key: keyring.chain_key(), ..options(1 << 20) };
        let store = LocalStore::open(LockedDir::lock(site.dir.path()).unwrap(), &options, Arc::new(())).unwrap();
        // Another one each time, so that no secret comes twice.
        let entropy = SeededEntropy::new(store.revision().0);
        Self { store, keyring, entropy }
    }

    pub(crate) async fn commit(&self, writes: Vec<RecordWrite>) -> Revision {
        self.store.commit(commit(writes)).await.unwrap()
    }

    pub(crate) async fn key(&self, tenant: &str, id: &str) -> KeyRecord {
        let (tenant, id) = (TenantId::parse(tenant).unwrap(), KeyId::parse(id).unwrap());
        KeyRecord::clone(&self.store.key(&tenant, &id).await.unwrap().unwrap())
    }

    /// Changes a key. Its secrets may change too.
    pub(crate) async fn change(&self, tenant: &str, id: &str, change: impl FnOnce(&mut KeyRecord)) {
        let mut key = self.key(tenant, id).await;
        change(&mut key);
        self.commit(vec![RecordWrite::RotatedKey(Box::new(key))]).await;
    }

    /// Gives a key a new secret, and returns it. The one before works until a time, if it has an end.
    pub(crate) async fn rotate(&self, tenant: &str, id: &str, valid_until: Option<i64>) -> String {
        let (prefix, environment) = (SecretPrefix::kw(), Environment::live());
        let secret = IssuedSecret::generate(&prefix, &environment, &self.entropy).unwrap();
        let pepper = self.keyring.peppers.current();
        let issued = Some(AuditStamp { time: START, actor: ActorId::parse("rotator").unwrap() });
        let (digest, hint) = (pepper.digest(&secret.as_presented()), secret.as_presented().hint());
        self.change(tenant, id, |key| {
            let stored = StoredSecret { version: key.secret.version + 1, digest, pepper: pepper.id(), hint, issued };
            let secret = std::mem::replace(&mut key.secret, stored);
            let retired = key.previous.take();
            key.retired = retired.map(|older| RetiredSecret { secret: older.secret, time: START });
            key.previous = Some(PreviousSecret {
                secret,
                valid_until: valid_until.map(UnixMillis),
                overlap_ms: 1,
                overlap_starts: match valid_until {
                    Some(_) => OverlapStart::AtIssue,
                    None => OverlapStart::OnFirstUse,
                },
            });
        })
        .await;
        secret.reveal().to_string()
    }

    pub(crate) async fn close(self) {
        self.store.close().await.unwrap();
    }
}
