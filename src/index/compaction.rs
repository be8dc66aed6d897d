//! Giving back the room of names that no entry uses: a further generation of names, and every shard anew with its numbers.
//!
//! Readers wait for nothing: each shard is replaced as by any change, and whoever reads the old one has the old names with it.
//! A writer packs what it puts within its turn at a shard, with the names of the shard that it finds there: so no entry has
//! numbers of one generation in a shard of another. Work is done in steps that are short, whatever the index holds.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::sleep;
use std::time::Duration;

use keyward_core::id::{Environment, TenantId};

use super::entry::each_name;
use super::interner::{NameKind, Names, Owner, TenantScope, translate};
use super::shard::{SHARDS, Shard};
use super::{Index, WRITE_LOCKS};

/// As long as no more names than these are kept unused, they stay: some megabytes.
const UNUSED_MIN: usize = 16_384;
/// Or no more than one for so many keys, each of which a compaction copies: it should be worth its while.
const KEYS_FOR_ONE_UNUSED: usize = 8;
/// One step goes through so many entries, or through so many shards if they are empty: about a millisecond.
const STEP_ENTRIES: usize = 4_096;
const STEP_SHARDS: usize = 1_024;
/// How often, and how long apart, it is looked whether readers have let go of what was replaced: a second in all. A reader
/// takes microseconds; one that takes longer frees the names itself.
const READERS_TRIES: usize = 500;
const READERS_PAUSE: Duration = Duration::from_millis(2);

/// A compaction under way.
#[derive(Debug)]
pub(super) struct Compaction {
    from: Arc<Names>,
    to: Arc<Names>,
    numbers: Renumbering,
    empty: Arc<Shard>,
    /// The next shard to take over.
    next: usize,
}

/// What is to follow a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CompactionStep {
    /// The next step.
    More,
    /// A pause: a checkpoint is being written, or somebody still reads what was replaced.
    Wait,
    /// Nothing. There are few unused names.
    Done,
}

/// The numbers of one generation in another, as far as they are known.
#[derive(Debug, Default)]
pub(super) struct Renumbering([Vec<Option<u32>>; NameKind::ALL.len()]);

impl Renumbering {
    /// The number that belongs to one of this kind, which is asked for the first time only.
    pub(super) fn of(&mut self, kind: NameKind, number: u32, new: impl FnOnce() -> u32) -> u32 {
        let (numbers, at) = (&mut self.0[kind as usize], number as usize);
        if numbers.len() <= at {
            numbers.resize(at + 1, None);
        }
        *numbers[at].get_or_insert_with(new)
    }
}

impl Index {
    /// Whether there are so many unused names that [`Index::compaction_step`] has work to do, or one has begun.
    #[must_use]
    pub fn wants_compaction(&self) -> bool {
        let names = self.current.lock().clone();
        let (all, used) = (names.len(), names.len_used());
        let unused = all.saturating_sub(used);
        unused > used.max(UNUSED_MIN).max(self.len() / KEYS_FOR_ONE_UNUSED) || self.compacting.load(Ordering::Relaxed)
    }

    /// Waits until there are so many unused names.
    pub async fn compaction_wanted(&self) {
        while !self.wants_compaction() {
            self.compaction_due.notified().await;
        }
    }

    /// Does a short piece of a compaction, and begins one if there is reason to.
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
        // Whoever lets go of the names last frees them all, which takes a while: that must not be a reader.
        if Arc::strong_count(&compaction.from) > 1 {
            return CompactionStep::Wait;
        }
        *state = None;
        self.compacting.store(false, Ordering::Relaxed);
        self.compactions.fetch_add(1, Ordering::Relaxed);
        CompactionStep::More
    }

    /// Gives the room of all unused names back, however few they are. It returns when that is done, but for what is still
    /// being read.
    pub fn compact(&self) {
        let mut state = self.compaction.lock();
        if state.is_none() {
            *state = Some(self.begin_compaction());
        }
        self.finish_compaction(&mut state);
    }

    /// Takes all remaining shards over.
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

    /// Takes some shards over into the next generation.
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
            // After it is counted there: so what is in use is never out of use for a moment.
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
    }
}
