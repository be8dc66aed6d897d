//! Frees names that no entry uses: moves every shard to a new generation of names, with new numbers.
//!
//! Readers never wait: each shard is replaced as by any change, and a reader of the old shard still has the
//! old names. A writer packs entries under the shard's lock, with the names of the shard found there, so
//! numbers of one generation never end up in a shard of another. Work is done in short steps, whatever the
//! size of the index.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use keyward_core::id::{ActorId, Environment, TenantId};
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use super::interner::{NameKind, Names, Owner, TenantScope, translate};
use super::packing::each_name;
use super::shard::{SHARDS, Shard};
use super::{Index, WRITE_LOCKS};
use crate::util::fatal::die;

/// Unused names up to this number are kept: some megabytes.
const UNUSED_MIN: usize = 16_384;
/// And up to one for this many keys: a compaction copies every key, and must be worth it.
const KEYS_FOR_ONE_UNUSED: usize = 8;
/// Entries, or empty shards, per step: about a millisecond.
const STEP_ENTRIES: usize = 4_096;
const STEP_SHARDS: usize = 1_024;
/// How often, and how long apart, it is checked whether readers have released the replaced shards: a second
/// in all. Reads take microseconds; a slower reader frees the names itself.
const READERS_TRIES: usize = 500;
const READERS_PAUSE: Duration = Duration::from_millis(2);
/// The pause before a compaction that has to wait is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Compacts the index's names whenever many are unused, until `stop`.
pub async fn compact_when_due(index: Arc<Index>, stop: CancellationToken) {
    let compacting = async {
        loop {
            index.compaction_wanted().await;
            let steps = {
                let (index, stop) = (index.clone(), stop.clone());
                // On a thread that may block: at the end, all names of a generation are freed at once.
                spawn_blocking(move || {
                    let mut step = CompactionStep::More;
                    while step == CompactionStep::More && !stop.is_cancelled() {
                        step = index.compaction_step();
                    }
                    step
                })
            };
            match steps.await {
                Ok(CompactionStep::Wait) => tokio::time::sleep(RETRY_PAUSE).await,
                Ok(CompactionStep::More | CompactionStep::Done) => {}
                Err(panic) => die("the compaction of names panicked", &panic),
            }
        }
    };
    tokio::select! {
        () = compacting => {}
        () = stop.cancelled() => {}
    }
}

/// A compaction in progress.
#[derive(Debug)]
pub(super) struct Compaction {
    from: Arc<Names>,
    to: Arc<Names>,
    numbers: Renumbering,
    empty: Arc<Shard>,
    /// The next shard to move.
    next: usize,
}

/// What must follow a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionStep {
    /// The next step.
    More,
    /// A pause: a checkpoint is being written, or a replaced shard is still being read.
    Wait,
    /// Nothing: there are few unused names.
    Done,
}

/// Maps the numbers of one generation to another, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Renumbering([Vec<Option<u32>>; NameKind::ALL.len()]);

impl Renumbering {
    /// The new number of a name. `new` is called for the first use only.
    pub(super) fn of(&mut self, kind: NameKind, number: u32, new: impl FnOnce() -> u32) -> u32 {
        let (numbers, at) = (&mut self.0[kind as usize], number as usize);
        if numbers.len() <= at {
            numbers.resize(at + 1, None);
        }
        *numbers[at].get_or_insert_with(new)
    }
}

impl Index {
    /// Whether there are enough unused names for [`Index::compaction_step`], or a compaction has begun.
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        let names = self.current.lock().clone();
        let (all, used) = (names.len(), names.len_used());
        let unused = all.saturating_sub(used);
        unused > used.max(UNUSED_MIN).max(self.len() / KEYS_FOR_ONE_UNUSED) || self.compacting.load(Ordering::Relaxed)
    }

    /// Waits until there are enough unused names for a compaction.
    pub async fn compaction_wanted(&self) {
        while !self.wants_compaction() {
            self.compaction_due.notified().await;
        }
    }

    /// Runs a short step of a compaction, and begins one if it is due.
    pub fn compaction_step(&self) -> CompactionStep {
        let Some(mut state) = self.compaction.try_lock() else { return CompactionStep::Wait };
        if state.is_none() {
            if !self.wants_compaction() {
                return CompactionStep::Done;
            }
            *state = Some(self.begin_compaction());
        }
        let Some(compaction) = &mut *state else { return CompactionStep::Done };
        if compaction.next < SHARDS {
            self.migrate_shards(compaction);
            return CompactionStep::More;
        }
        // The last owner of the old names frees them all, which takes a while, so it must not be a reader.
        if Arc::strong_count(&compaction.from) > 1 {
            return CompactionStep::Wait;
        }
        *state = None;
        self.compacting.store(false, Ordering::Relaxed);
        self.compactions.fetch_add(1, Ordering::Relaxed);
        CompactionStep::More
    }

    /// Frees all unused names, however few. Returns when that is done, except for what is still being read.
    pub fn compact(&self) {
        let mut state = self.compaction.lock();
        if state.is_none() {
            *state = Some(self.begin_compaction());
        }
        self.finish_compaction(&mut state);
    }

    /// Moves all remaining shards.
    pub(super) fn finish_compaction(&self, state: &mut Option<Compaction>) {
        let Some(compaction) = state else { return };
        while compaction.next < SHARDS {
            self.migrate_shards(compaction);
        }
        for _ in 0..READERS_TRIES {
            if Arc::strong_count(&compaction.from) == 1 {
                break;
            }
            sleep(READERS_PAUSE);
        }
        *state = None;
        self.compacting.store(false, Ordering::Relaxed);
        self.compactions.fetch_add(1, Ordering::Relaxed);
    }

    fn begin_compaction(&self) -> Compaction {
        self.compacting.store(true, Ordering::Relaxed);
        let mut current = self.current.lock();
        let from = current.clone();
        let to = from.next();
        *current = to.clone();
        let empty = Arc::new(Shard::empty(to.clone()));
        Compaction { from, to, numbers: Renumbering::default(), empty, next: 0 }
    }

    /// Moves some shards to the next generation.
    fn migrate_shards(&self, compaction: &mut Compaction) {
        let Compaction { from, to, numbers, empty, next } = compaction;
        let (mut entries, end) = (0, (*next + STEP_SHARDS).min(SHARDS));
        while *next < end && entries < STEP_ENTRIES {
            let _lock = self.write_locks[*next % WRITE_LOCKS].lock();
            let cell = &self.shards[*next];
            let old = cell.load_full();
            *next += 1;
            if old.len() == 0 {
                cell.store(empty.clone());
                continue;
            }
            entries += old.len();
            let shard = old.renumbered(to.clone(), |kind, number| {
                let number = numbers.of(kind, number, || translate_kind(kind, number, from, to));
                to.retain_kind(kind, number);
                number
            });
            cell.store(Arc::new(shard));
            // After it is counted in the new generation, so that a used name never counts as unused.
            old.all_packed().for_each(|packed| each_name(packed, |kind, number| from.release_kind(kind, number)));
        }
        if *next == SHARDS {
            from.usage.remove_generation(from);
        }
    }
}

fn translate_kind(kind: NameKind, number: u32, from: &Names, to: &Names) -> u32 {
    match kind {
        NameKind::Tenant => translate::<TenantId>(number, from, to),
        NameKind::Owner => translate::<Owner>(number, from, to),
        NameKind::Environment => translate::<Environment>(number, from, to),
        NameKind::Scope => translate::<TenantScope>(number, from, to),
        NameKind::Issuer => translate::<ActorId>(number, from, to),
    }
}
