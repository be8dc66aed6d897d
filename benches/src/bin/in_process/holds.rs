//! Suspending an owner: the durable change, and what the index does with it, beside however many keys and
//! other suspended owners there are.

use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::index::Index;
use keyward::store::local::disk_space::free_bytes;
use keyward::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::{Bounds, Commit, RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_bench::args::Args;
use keyward_bench::fixture::{Failure, Fixture, NOW};
use keyward_bench::stats::{median, percentile, rounded};
use keyward_core::clock::ManualClock;
use keyward_core::event::{Change, Record, Revision};
use keyward_core::id::{ActorId, TenantId};
use keyward_core::record::{AuditStamp, Hold, KeyRecord, OwnerRecord};
use serde_json::{Value, json};
use zeroize::Zeroizing;

/// Whose keys all of them are.
const OWNER: &str = "customer-7";

/// As the server has them by default.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// How long one change takes to be durable, and how long the index takes to apply it.
#[tokio::main]
pub(crate) async fn measure(mut options: Args) -> Result<Value, Failure> {
    let dir = options.dir()?;
    let keys: u64 = options.get("keys")?.unwrap_or(1_000_000);
    let holders: u64 = options.get("holders")?.unwrap_or(1_000);
    let rounds: usize = options.get("rounds")?.unwrap_or(2_000);
    options.end()?;

    let index = Index::default();
    for batch in Fixture::new(keys, 1)?.batches() {
        index.apply_records(&batch?.into_iter().map(owned).collect::<Vec<_>>());
    }
    index.finish_loading();
    let store = Holding::open(&dir)?;
    for number in 0..holders {
        let (_, change) = store.suspend(&format!("other-{number}"), true, Revision(0)).await?;
        index.apply(&[change]);
    }
    let (mut commits, mut applies, mut before) = (vec![], vec![], Revision(0));
    for round in 0..rounds {
        let began = Instant::now();
        let (made, change) = store.suspend(OWNER, round % 2 == 0, before).await?;
        commits.push(began.elapsed().as_nanos() as f64 / 1_000.0);
        before = made;
        let changes = [change];
        let began = Instant::now();
        index.apply(&changes);
        applies.push(began.elapsed().as_nanos() as f64 / 1_000.0);
    }
    let touched = index.secrets_of_owner(&TenantId::default_tenant(), OWNER);
    store.store.close().await?;
    let figures = |times: &[f64]| {
        let max = times.iter().copied().fold(0.0, f64::max);
        let (median, p99) = (median(times), percentile(times, 0.99));
        json!({ "median_us": rounded(median), "p99_us": rounded(p99), "max_us": rounded(max) })
    };
    Ok(json!({
        "keys_of_the_owner": touched,
        "other_suspended_owners": holders,
        "rounds": rounds,
        "commit": figures(&commits),
        "index_apply": figures(&applies),
    }))
}

fn owned(record: Record) -> Record {
    match record {
        Record::Key(key) => {
            let mut key = KeyRecord::clone(&key);
            key.spec.owner = OWNER.into();
            Record::Key(Arc::new(key))
        }
        other => other,
    }
}

/// A store in a directory of its own.
struct Holding {
    _dir: tempfile::TempDir,
    store: LocalStore,
}

impl Holding {
    fn open(dir: &std::path::Path) -> Result<Self, Failure> {
        let dir = tempfile::tempdir_in(dir)?;
        let options = StoreOptions {
            segment_bytes: SEGMENT_BYTES,
            chain_key: Zeroizing::new([7; 32]),
            retention: Retention { bytes: u64::MAX, time: Duration::MAX },
            backup: BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX },
            clock: Arc::new(ManualClock::at(NOW)),
            entropy: Arc::new(SystemEntropy),
            bounds: Bounds::NONE,
            free_bytes,
            expectations: Expectations::default(),
        };
        let store = LocalStore::open(LockedDir::lock(dir.path())?, &options, Arc::new(()))?;
        Ok(Self { _dir: dir, store })
    }

    /// Suspends an owner or resumes it: its revision, and the change as the index gets it.
    async fn suspend(
        &self,
        owner: &str,
        suspended: bool,
        before: Revision,
    ) -> Result<(Revision, Arc<Change>), Failure> {
        let by = AuditStamp { time: NOW, actor: ActorId::keyward() };
        let hold = Hold { suspended, reason: "unpaid".into(), changed: Some(by.clone()), ..Hold::default() };
        let (tenant, owner) = (TenantId::default_tenant(), owner.to_owned());
        let record = OwnerRecord { tenant, owner, hold, updated: by, revision: before };
        let commit = Commit {
            actor: ActorId::keyward(),
            authorization: None,
            method: if suspended { "SuspendOwner" } else { "ResumeOwner" },
            target: format!("default/owner:{}", record.owner),
            time: NOW,
            narrows: suspended,
            urgent: suspended,
            retry: None,
            writes: vec![RecordWrite::Owner(Box::new(record.clone()))],
        };
        let revision = self.store.commit(commit).await?;
        let records = vec![Record::Owner(Arc::new(OwnerRecord { revision, ..record }))];
        Ok((revision, Arc::new(Change { revision, records })))
    }
}
