//! The process that is killed: opens a store with an index, compares it with the history, and writes into
//! both.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use keyward::index::Index;
use keyward::index::follow::{IndexLoader, follow_log};
use keyward::keyring::Keyring;
use keyward::store::local::disk_space::free_bytes;
use keyward::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, Retention, StoreOptions};
use keyward::store::{Bounds, Commit, CommitError, Store};
use keyward::util::files::create_private_dir;
use keyward::util::system::{SystemClock, SystemEntropy};
use keyward_core::clock::Clock;
use keyward_core::event::Revision;
use keyward_core::id::ActorId;
use keyward_core::record::State;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::changes::{Inventor, WRITERS};
use super::compare::{compare, compare_tampered};
use super::history::{Attempt, History, Oracle, Stored, Write};
use super::seen::Seen;
use crate::Failure;
use crate::process::{CLOSED, COMPARED, OPENED, say};
use crate::run::SMALL_SEGMENT;
use crate::verify::Findings;

/// What it is started with.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    /// The data directory
    pub(super) data_dir: PathBuf,
    /// The file with the history
    pub(super) history: PathBuf,
    /// What the writers choose by
    pub(super) seed: u64,
    /// Bytes of the journal that are kept
    pub(super) retention_bytes: u64,
}

/// What a comparison came to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Report {
    pub(super) findings: Findings,
    /// Writes that were made so far.
    pub(super) made: u64,
    /// Those by their kind, and what else was counted.
    pub(super) kinds: BTreeMap<String, u64>,
    pub(super) counts: BTreeMap<String, u64>,
    /// What was tampered with and found out, and what was not.
    pub(super) found_out: Vec<String>,
    pub(super) missed: Option<String>,
}

/// Opens, compares and writes until it is killed, or its standard input ends.
pub(crate) async fn run(args: &ChildArgs) -> Result<(), Failure> {
    let mut oracle = Oracle::read(&args.history)?;
    let history = Arc::new(History::append_to(&args.history)?);
    let index = Arc::new(Index::default());
    let store = Arc::new(open(&args.data_dir, args.retention_bytes, &index)?);
    say(OPENED)?;
    let (mut tasks, stop, following) = (JoinSet::new(), CancellationToken::new(), CancellationToken::new());
    let mut follower = JoinSet::new();
    follower.spawn(follow_log(store.clone(), index.clone(), following.clone()));

    let report = read_and_compare(&*store, &index, &args.data_dir, &mut oracle, &history).await?;
    let is_clean = report.findings.is_clean() && report.missed.is_none();
    say(&format!("{COMPARED}{}", serde_json::to_string(&report)?))?;
    if is_clean {
        let told = stop.clone();
        std::thread::spawn(move || {
            drop(std::io::stdin().read(&mut [0]));
            told.cancel();
        });
        let next_number = Arc::new(AtomicU64::new(oracle.next_number));
        for writer in 0..WRITERS {
            let book = oracle.book(|name| Inventor::owns(writer, name));
            let rng = SmallRng::seed_from_u64(args.seed ^ (writer as u64) << 32);
            let inventor = Inventor { writer, rng, book };
            let writer = Writer { inventor, store: store.clone(), history: history.clone(), next: next_number.clone() };
            tasks.spawn(writer.run(stop.clone()));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    following.cancel();
    follower.join_all().await;
    store.close().await?;
    drop(store);
    say(CLOSED)
}

/// Opens a data directory as a server does, with small segments.
pub(crate) fn open(data_dir: &Path, retention_bytes: u64, index: &Arc<Index>) -> Result<LocalStore, Failure> {
    create_private_dir(data_dir)?;
    let dir = LockedDir::lock(data_dir)?;
    let keyring = Keyring::open(&data_dir.join("pepper"), !dir.has_data()?, &SystemEntropy)?;
    let options = options(&keyring, retention_bytes);
    let (view, _loaded) = IndexLoader::new(index.clone());
    Ok(LocalStore::open(dir, &options, Arc::new(view))?)
}

/// How a directory is opened.
pub(crate) fn options(keyring: &Keyring, retention_bytes: u64) -> StoreOptions {
    StoreOptions {
        segment_bytes: SMALL_SEGMENT,
        chain_key: keyring.chain_key(),
        retention: Retention { bytes: retention_bytes, time: Duration::MAX },
        backup: BackupLimits { time: Duration::MAX, aside_bytes: u64::MAX },
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        bounds: Bounds::NONE,
        free_bytes,
        expectations: Expectations::default(),
    }
}

/// Compares, and writes down how open changes turned out, which is certain from now on.
async fn read_and_compare(
    store: &dyn Store,
    index: &Index,
    data_dir: &Path,
    oracle: &mut Oracle,
    history: &History,
) -> Result<Report, Failure> {
    let seen = Seen::read(store, index, &data_dir.join("journal"), oracle).await?;
    let (findings, settled, ordinals) = compare(oracle, &seen);
    let mut counts = BTreeMap::from([
        ("digests looked up".to_owned(), oracle.digests.len() as u64),
        ("changes compared in the log".to_owned(), seen.log.len() as u64),
    ]);
    let purged = oracle.known.values().filter(|known| matches!(known.stored, Stored::Purged(_))).count();
    counts.insert("purge marks compared".to_owned(), seen.marks.len() as u64);
    counts.insert("purge marks found forgotten".to_owned(), purged.saturating_sub(seen.marks.len()) as u64);
    counts.insert("starts with a journal that has lost its beginning".to_owned(), u64::from(seen.begins > Revision(1)));
    let (mut found_out, mut missed) = (vec![], None);
    if findings.is_clean() {
        for (number, made) in settled {
            match made {
                Some(revision) => history.made(number, revision)?,
                None => history.refused(number)?,
            }
        }
        for (name, created_at, ordinal) in ordinals {
            history.ordinal(&name, created_at, ordinal)?;
        }
        match compare_tampered(oracle, &seen) {
            Ok(what) => found_out = what.into_iter().map(str::to_owned).collect(),
            Err(what) => missed = Some(what),
        }
    }
    let kinds = oracle.kinds.iter().map(|(kind, count)| ((*kind).to_owned(), *count)).collect();
    Ok(Report { findings, made: oracle.writes_made(), kinds, counts, found_out, missed })
}

/// One writer: one change after the other.
struct Writer {
    inventor: Inventor,
    store: Arc<LocalStore>,
    history: Arc<History>,
    /// The number of the next change of all writers.
    next: Arc<AtomicU64>,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) -> Result<(), Failure> {
        while !stop.is_cancelled() {
            let time = SystemClock.now();
            let writes = self.inventor.next(time)?;
            let attempt = Attempt { number: self.next.fetch_add(1, Ordering::Relaxed), time, writes };
            self.history.tried(&attempt)?;
            match self.store.commit(commit(&attempt, self.inventor.writer)?).await {
                Ok(revision) => self.made(&attempt, revision).await?,
                Err(CommitError::Overloaded) => self.history.refused(attempt.number)?,
                Err(CommitError::Exists) if self.takes_a_purged_id(&attempt) => self.history.refused(attempt.number)?,
                Err(error) => return Err(format!("{:?} was answered with: {error}", attempt.writes).into()),
            }
        }
        Ok(())
    }

    fn takes_a_purged_id(&self, attempt: &Attempt) -> bool {
        let is_purged = |write: &Write| matches!(self.inventor.book.get(&write.name()), Some(Stored::Purged(_)));
        attempt.writes.iter().any(|write| matches!(write, Write::NewKey(_)) && is_purged(write))
    }

    async fn made(&mut self, attempt: &Attempt, revision: Revision) -> Result<(), Failure> {
        self.history.made(attempt.number, revision)?;
        for write in &attempt.writes {
            let name = write.name();
            let (mut stored, _) = write.outcome(self.inventor.book.get(&name), revision, attempt.time);
            if let (Write::NewKey(_), Stored::Key(key)) = (write, &mut stored) {
                let there = self.store.key(&key.tenant, &key.key_id).await?;
                key.ordinal = there.and_then(|there| there.ordinal);
                let ordinal = key.ordinal.ok_or_else(|| format!("{name:?} was created and has no number"))?;
                self.history.ordinal(&name, revision, ordinal)?;
            }
            self.inventor.book.insert(name, stored);
        }
        Ok(())
    }
}

/// A change as the store takes it.
fn commit(attempt: &Attempt, writer: usize) -> Result<Commit, Failure> {
    let narrows = matches!(&attempt.writes[..], [Write::Key(key)] if key.spec.policy.state != State::Active);
    Ok(Commit {
        actor: ActorId::parse(&format!("writer-{writer}"))?,
        authorization: None,
        method: "Test",
        target: format!("{:?}", attempt.writes[0].name()),
        time: attempt.time,
        narrows,
        urgent: narrows || matches!(attempt.writes[..], [Write::Purge(_)]),
        writes: attempt.writes.iter().map(Write::to_record_write).collect(),
        retry: None,
    })
}
