//! Durable changes through the contract of the store, beside a plain loop that syncs as many bytes in groups.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::store::local::disk_space::free_bytes;
use keyward::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::{Bounds, Commit, RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_bench::args::Args;
use keyward_bench::fixture::{Failure, NOW};
use keyward_bench::stats::{median, percentile, ratio, rounded};
use keyward_bench::typical_key::Typical;
use keyward_core::clock::ManualClock;
use keyward_core::digest::{Digest, PepperId};
use keyward_core::event::Revision;
use keyward_core::id::ActorId;
use serde_json::{Map, Value, json};
use tokio::task::JoinSet;
use zeroize::Zeroizing;

use crate::syncs::{self, Syncs};

/// Changes under way at once, and so in a group at most.
const CONCURRENCY: [usize; 3] = [1, 64, 256];

/// As the server has them by default.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;

/// A store in a directory of its own.
struct Bench {
    dir: tempfile::TempDir,
    store: Arc<LocalStore>,
    /// The number of the next key.
    next: u64,
}

/// What some commits came to.
struct Commits {
    per_s: f64,
    median_us: f64,
    p99_us: f64,
}

/// Commits a second and how long one takes, by how many are under way at once.
#[tokio::main]
pub(crate) async fn measure(mut options: Args) -> Result<Value, Failure> {
    let dir = options.dir()?;
    let groups = options.get("groups")?.unwrap_or(200);
    let rounds = options.get("rounds")?.unwrap_or(5);
    options.end()?;
    let mut found = Map::from_iter([("rounds".to_owned(), json!(rounds)), ("groups".to_owned(), json!(groups))]);
    let mut bench = Bench::open(&dir)?;
    for concurrency in CONCURRENCY {
        // Warms up, and says how many bytes there are to a group.
        let before = bench.journal_bytes()?;
        bench.commits(concurrency, groups).await?;
        let bytes = usize::try_from(bench.journal_bytes()? - before)? / groups;
        let (mut ours, mut plain) = (vec![], vec![]);
        for round in 0..rounds {
            if round % 2 == 0 {
                ours.push(bench.commits(concurrency, groups).await?);
                plain.push(syncs::run(&dir, bytes, groups)?);
            } else {
                plain.push(syncs::run(&dir, bytes, groups)?);
                ours.push(bench.commits(concurrency, groups).await?);
            }
        }
        found.insert(format!("concurrency_{concurrency}"), row(concurrency, bytes, &ours, &plain));
    }
    bench.store.close().await?;
    Ok(found.into())
}

fn row(concurrency: usize, bytes: usize, ours: &[Commits], plain: &[Syncs]) -> Value {
    let of_ours = |figure: fn(&Commits) -> f64| ours.iter().map(figure).collect::<Vec<_>>();
    let of_plain = |figure: fn(&Syncs) -> f64| plain.iter().map(figure).collect::<Vec<_>>();
    let plain_per_s: Vec<_> = plain.iter().map(|round| round.groups_per_s * concurrency as f64).collect();
    let compared = |ours: &[f64], plain: &[f64]| json!({ "ours": rounded(median(ours)), "plain": rounded(median(plain)), "ratio": ratio(ours, plain) });
    json!({
        "bytes_per_group": bytes,
        "commits_per_s": compared(&of_ours(|round| round.per_s), &plain_per_s),
        "median_us": compared(&of_ours(|round| round.median_us), &of_plain(|round| round.median_us)),
        "p99_us": compared(&of_ours(|round| round.p99_us), &of_plain(|round| round.p99_us)),
    })
}

impl Bench {
    fn open(dir: &Path) -> Result<Self, Failure> {
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
        Ok(Self { dir, store: Arc::new(store), next: 0 })
    }

    /// Issues keys, so many under way at once, until each has been through so many.
    async fn commits(&mut self, concurrency: usize, each: usize) -> Result<Commits, Failure> {
        let mut lists = vec![];
        for _ in 0..concurrency {
            lists.push((0..each).map(|_| self.commit()).collect::<Result<Vec<_>, _>>()?);
        }
        let mut tasks = JoinSet::new();
        let began = Instant::now();
        for list in lists {
            let store = self.store.clone();
            tasks.spawn(async move {
                let mut times = Vec::with_capacity(list.len());
                for commit in list {
                    let began = Instant::now();
                    store.commit(commit).await?;
                    times.push(began.elapsed().as_nanos() as f64 / 1_000.0);
                }
                Ok::<_, Failure>(times)
            });
        }
        let mut times = vec![];
        while let Some(ended) = tasks.join_next().await {
            times.extend(ended??);
        }
        let per_s = times.len() as f64 / began.elapsed().as_secs_f64();
        Ok(Commits { per_s, median_us: median(&times), p99_us: percentile(&times, 0.99) })
    }

    /// The commit that issues the next key.
    fn commit(&mut self) -> Result<Commit, Failure> {
        let (number, key) = (self.next, Typical::key(self.next));
        self.next += 1;
        let digest = Digest::from_bytes(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let target = format!("default/{}", key.key_id);
        Ok(Commit {
            actor: ActorId::keyward(),
            authorization: None,
            method: "CreateKey",
            target,
            time: NOW,
            narrows: false,
            urgent: false,
            writes: vec![RecordWrite::NewKey(Box::new(key.record(digest, PepperId(1), Revision(0))?))],
            retry: None,
        })
    }

    /// Bytes of the journal so far. Its segments are as long as they will be from the beginning, with zeros
    /// at their ends.
    fn journal_bytes(&self) -> Result<u64, Failure> {
        let mut bytes = 0;
        for entry in fs::read_dir(self.dir.path().join("journal"))? {
            let content = fs::read(entry?.path())?;
            bytes += content.iter().rposition(|byte| *byte != 0).map_or(0, |at| at as u64 + 1);
        }
        Ok(bytes)
    }
}
