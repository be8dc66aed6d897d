//! Rotating the secret of a key.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use keyward_core::access::{Grant, Issue};
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, KeyId};
use keyward_core::narrowing::narrows;
use keyward_core::record::{AuditStamp, Effect, KeyRecord, OverlapStart, StoredSecret};
use keyward_core::rotation::{Overlap, REPLY_TIME_MS};
use keyward_core::secret::IssuedSecret;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::create::seal;
use super::{
    Authority, AuthorityError, COMMIT_ATTEMPTS_MAX, ChangeOptions, Changed, Issued, Operation, Resource, target,
};
use crate::first_use::{FirstUse, FirstUses};
use crate::store::{Commit, CommitError, ReadContext, RecordWrite, Retry};
use crate::util::hpke::PublicKey;

/// The call, as the log names it.
const ROTATE_KEY: &str = "RotateKey";

/// First uses that are recorded at a time. What fails is tried again before more are taken.
const RECORDED_TOGETHER: usize = 64;
/// How long until a record that failed is tried again.
const RECORD_AGAIN_AFTER: Duration = Duration::from_millis(250);

/// A key with another secret.
pub struct Rotated {
    /// The key.
    pub key: KeyRecord,
    /// Its new secret.
    pub secret: Issued,
    /// The revision of the change.
    pub revision: Revision,
}

impl Authority {
    /// Gives a key another secret.
    ///
    /// # Errors
    /// When there is no such key, its etag is another one, it is revoked or expired, it is the caller's own
    /// and the secret that they call with would end, it is the last lasting administrator and no older secret
    /// would work, or too many updates of this key wait.
    pub async fn rotate_key(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        overlap: Overlap,
        (options, reply_key): (&ChangeOptions, Option<&PublicKey>),
    ) -> Result<Rotated, AuthorityError> {
        let reader = ReadContext { caller: grant.actor(), urgent: overlap.starts == OverlapStart::AtIssue };
        let retry = options.retry(ROTATE_KEY, grant);
        let rotated = self.rotate_key_now(grant, key_id, overlap, (options, reply_key, retry.clone()));
        self.once(&reader, retry.as_ref(), rotated, |again| {
            let (key, secret, revision) = again.issued()?;
            Ok(Rotated { key, secret, revision })
        })
        .await
    }

    /// The same, whether or not it was made before.
    async fn rotate_key_now(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        overlap: Overlap,
        (options, reply_key, retry): (&ChangeOptions, Option<&PublicKey>, Option<Retry>),
    ) -> Result<Rotated, AuthorityError> {
        // The same as of the record that comes of it.
        let may_narrow = overlap.starts == OverlapStart::AtIssue;
        let reader = ReadContext { caller: grant.actor(), urgent: may_narrow };
        let environment = self.require_key(&reader, grant.tenant(), key_id).await?.spec.policy.environment;
        let prefix = self.require_tenant(grant.tenant()).await?.secret_prefix.clone();
        let secret = IssuedSecret::generate(&prefix, &environment, &*self.entropy)?;
        let (digest, hint) = {
            let presented = secret.as_presented();
            (self.peppers.current().digest(&presented), presented.hint())
        };
        let (secret, sealed) = match options.validate_only {
            true => (Issued::Nothing, None),
            false => seal((reply_key, options.request.as_ref()), ROTATE_KEY, secret)?,
        };
        let pepper = self.peppers.current().id();
        let _lock = self.key_locks.lock(grant.tenant(), key_id, (grant.actor(), may_narrow)).await?;
        let operation = Operation { method: ROTATE_KEY, may_narrow, only_narrows: false };
        let options = (options, retry.map(|retry| (retry, sealed)));
        let changed = self.change_now(grant, operation, key_id, options, |key, stamp| {
            if key.spec.policy.environment != environment {
                // Another key of the same id has come.
                return Err(AuthorityError::Outdated);
            }
            let (version, hint, issued) = (key.next_secret_version(), hint.clone(), Some(stamp.clone()));
            key.rotate(StoredSecret { version, digest, pepper, hint, issued }, overlap, stamp)?;
            keeps_own_secret(grant, key, stamp)?;
            Ok(Effect::Changed)
        });
        let Changed { record: key, revision } = changed.await?;
        Ok(Rotated { key, secret, revision })
    }

    /// Ends the previous secret of a key now. Without one, nothing changes.
    ///
    /// # Errors
    /// When there is no such key, its etag is another one, it is revoked, or it is the secret that the caller
    /// calls with.
    pub async fn finish_rotation(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        let operation = Operation { method: "FinishRotation", may_narrow: true, only_narrows: true };
        let finished = self.change(grant, operation, key_id, options, |key, stamp| {
            let effect = key.finish_rotation(stamp)?;
            keeps_own_secret(grant, key, stamp)?;
            Ok(effect)
        });
        finished.await
    }

    /// Takes the current secret of a key back, and makes the previous one current again.
    ///
    /// # Errors
    /// When there is no such key, its etag is another one, it is revoked, it has no previous secret that
    /// works, or the current one is what the caller calls with.
    pub async fn cancel_rotation(
        &self,
        grant: &Grant<Issue>,
        key_id: &KeyId,
        options: &ChangeOptions,
    ) -> Result<Changed<KeyRecord>, AuthorityError> {
        let _lock = self.key_locks.lock(grant.tenant(), key_id, (grant.actor(), true)).await?;
        let operation = Operation { method: "CancelRotation", may_narrow: true, only_narrows: false };
        let cancelled = self.change(grant, operation, key_id, options, |key, stamp| {
            key.cancel_rotation(stamp)?;
            keeps_own_secret(grant, key, stamp)?;
            Ok(Effect::Changed)
        });
        cancelled.await
    }

    /// Begins the overlaps that wait for the first use of a new secret, as such uses come, until `stop`. A
    /// record that fails is tried again; meanwhile the queue takes what it has room for.
    pub async fn record_first_uses(
        &self,
        uses: &FirstUses,
        mut queue: mpsc::Receiver<FirstUse>,
        stop: CancellationToken,
    ) {
        let mut batch = vec![];
        loop {
            let waits = batch.is_empty().then_some(queue.recv_many(&mut batch, RECORDED_TOGETHER));
            let come = async {
                match waits {
                    Some(recv) => recv.await > 0,
                    None => {
                        tokio::time::sleep(RECORD_AGAIN_AFTER).await;
                        true
                    }
                }
            };
            if stop.run_until_cancelled(come).await != Some(true) {
                return;
            }
            let records = stream::iter(batch.drain(..)).map(async |used| match self.begin_overlap(&used).await {
                Ok(()) => {
                    uses.forget(used.mark);
                    None
                }
                Err(error) => {
                    let FirstUse { tenant, key_id, .. } = &used;
                    tracing::debug!(%error, %tenant, %key_id, "a first use is not recorded yet");
                    Some(used)
                }
            });
            let failed: Vec<_> = records.buffer_unordered(RECORDED_TOGETHER).filter_map(async |it| it).collect().await;
            batch = failed;
        }
    }

    /// Begins the overlap of a rotation whose new secret was used, if it waits for that.
    async fn begin_overlap(&self, used: &FirstUse) -> Result<(), AuthorityError> {
        let FirstUse { tenant, key_id, digest, mark: _ } = used;
        let reader = ReadContext { caller: ActorId::keyward(), urgent: true };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let Some(before) = self.store.key_for(&reader, tenant, key_id).await? else { return Ok(()) };
            let stamp = AuditStamp { time: self.now().latest(), actor: ActorId::keyward() };
            let mut key = KeyRecord::clone(&before);
            if key.begin_overlap(digest, &stamp) == Effect::Unchanged {
                return Ok(());
            }
            let commit = Commit {
                actor: stamp.actor,
                authorization: None,
                method: "BeginOverlap",
                target: target(tenant, key_id),
                time: stamp.time,
                narrows: narrows(&before, &key),
                urgent: true,
                writes: vec![RecordWrite::Key(Box::new(key))],
                retry: None,
            };
            match self.commit(commit).await {
                Ok(_) => return Ok(()),
                Err(CommitError::Outdated) => {}
                Err(error) => return Err(AuthorityError::from_commit(error, Resource::Key)),
            }
        }
        Err(AuthorityError::Outdated)
    }
}

/// Checks that the caller may still call with the secret that they call with, if the key is theirs: a change
/// whose reply is lost must not lock its caller out.
fn keeps_own_secret(grant: &Grant<Issue>, key: &KeyRecord, stamp: &AuditStamp) -> Result<(), AuthorityError> {
    let works = |digest: &Digest| {
        let is_previous = key.previous.as_ref().is_some_and(|previous| previous.secret.digest == *digest);
        let lives = key.previous_end().is_none_or(|end| stamp.time.0.saturating_add(REPLY_TIME_MS) <= end.0);
        key.secret.digest == *digest || is_previous && lives
    };
    match grant.own_secret(&key.key_id) {
        Some(digest) if !works(digest) => Err(AuthorityError::OwnKey),
        _ => Ok(()),
    }
}
