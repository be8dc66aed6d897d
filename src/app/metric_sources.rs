//! The callbacks that metrics read their values from.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use grpc_h2::{Budget, Callers};
use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::record::State;
use tokio::sync::watch;

use crate::authority::Swept;
use crate::fast_path;
use crate::first_use::FirstUses;
use crate::grpc::calls::guarded;
use crate::index::{Index, NameKind};
use crate::layer::authn::CallerLimits;
use crate::layer::failures::REASONS;
use crate::metrics::{MetricSources, Metrics, OptionalValueFn, ValueFn};
use crate::server::ops_http::Phase;
use crate::server::slots::{SlotUsage, Slots};
use crate::server::tls::reload::Tls;
use crate::store::{Store, StoreStats, TableStats};

/// What metrics read, and a start supplies later. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Observed {
    /// The store, once it is open.
    pub(super) store: Arc<OnceLock<Arc<dyn Store>>>,
    /// Whether changes can be made.
    pub(super) writable: Arc<AtomicBool>,
    /// Where first uses of new secrets are noted.
    pub(super) first_uses: FirstUses,
    /// What the sweeper has done.
    pub(super) swept: Arc<Swept>,
}

/// What metrics are read from.
pub(super) struct Sources<'a> {
    pub(super) index: &'a Arc<Index>,
    pub(super) slots: &'a Slots,
    pub(super) limits: &'a CallerLimits,
    pub(super) budget: &'a Budget,
    pub(super) clock: &'a Arc<dyn Clock>,
    pub(super) phase: &'a watch::Sender<Phase>,
    pub(super) observed: &'a Observed,
    pub(super) tls: &'a [Arc<Tls>],
}

impl Sources<'_> {
    /// The metrics of a server that starts now.
    pub(super) fn metrics(&self) -> Metrics {
        let writable = self.observed.writable.clone();
        let sources = MetricSources {
            start_seconds: seconds(self.clock.now()),
            phases: self.phases(),
            keys: self.index(|index| index.len() as u64),
            keys_by_state: State::ALL
                .map(|state| (state.name(), self.index(move |index| index.len_in(state) as u64)))
                .into(),
            revision: self.index(|index| index.revision().0),
            names: NameKind::ALL
                .map(|kind| (kind_name(kind), self.index(move |index| index.names_in_use(kind) as u64)))
                .into(),
            names_unused: self.index(|index| index.names_unused() as u64),
            name_compactions: self.index(Index::compactions),
            journal_revision: self.stats(|stats| stats.durable.0),
            table_revision: self.stats(|stats| stats.applied.0),
            changes_waiting: self.stats(|stats| stats.waiting as u64),
            disk_free_bytes: self.found(|stats| stats.free_bytes.map(|bytes| bytes as f64)),
            last_snapshot: self.found(|stats| stats.snapshot.map(seconds)),
            last_backup: self.found(|stats| stats.backup.map(seconds)),
            table_bytes: self.table(|table| table.bytes),
            table_record_bytes: self.table(|table| table.record_bytes),
            table_rebuilds: self.table(|table| table.rebuilds),
            tls_not_after: self.tls_not_after(),
            tls_stale: self.tls_stale(),
            administrators: self.administrators(),
            first_uses_dropped: self.first_uses_dropped(),
            resumed: self.swept(Swept::resumed),
            purged: self.swept(Swept::purged),
            due_late_seconds: self.due_late_seconds(),
            writable: Box::new(move || u64::from(writable.load(Ordering::Relaxed))),
            failed_authentications: self.failures(),
            refusals_waiting: self.of_limits(|limits| limits.failures.waiting()),
            slow_calls: self.of_limits(|limits| limits.in_flight.count() as u64),
            connections: self.slots(|usage| usage.all as u64),
            connections_of_strangers: self.slots(|usage| usage.by_strangers as u64),
            connections_turned_away: self.slots(|usage| usage.turned_away),
            request_bytes: self.budget(|budget, callers| budget.held(callers) as u64),
            requests_without_room: self.budget(Budget::refused),
        };
        Metrics::new(guarded().map(|(path, _)| path), fast_path::PATHS, sources)
    }

    fn phases(&self) -> Vec<(&'static str, ValueFn)> {
        let phase_is = |name: &'static str| -> ValueFn {
            let (phase, store) = (self.phase.subscribe(), self.observed.store.clone());
            Box::new(move || u64::from(phase_name(*phase.borrow(), store.get().is_some()) == name))
        };
        let names = Phase::ALL.iter().flat_map(|phase| [false, true].map(|is_open| phase_name(*phase, is_open)));
        // Most phases have one name, whether the store is open or not.
        names.collect::<BTreeSet<_>>().into_iter().map(|name| (name, phase_is(name))).collect()
    }

    fn index(&self, of: impl Fn(&Index) -> u64 + Send + Sync + 'static) -> ValueFn {
        let index = self.index.clone();
        Box::new(move || of(&index))
    }

    fn stats(&self, of: fn(StoreStats) -> u64) -> ValueFn {
        let store = self.observed.store.clone();
        Box::new(move || store.get().map_or(0, |store| of(store.stats())))
    }

    fn found(&self, of: fn(StoreStats) -> Option<f64>) -> OptionalValueFn {
        let store = self.observed.store.clone();
        Box::new(move || of(store.get()?.stats()))
    }

    fn table(&self, of: fn(TableStats) -> u64) -> ValueFn {
        let store = self.observed.store.clone();
        Box::new(move || store.get().map_or(0, |store| of(store.table_stats())))
    }

    fn tls_not_after(&self) -> OptionalValueFn {
        let tls = self.tls.to_vec();
        Box::new(move || tls.iter().map(|tls| tls.status().not_after).min().map(seconds))
    }

    fn tls_stale(&self) -> ValueFn {
        let tls = self.tls.to_vec();
        Box::new(move || tls.iter().filter(|tls| tls.status().is_stale).count() as u64)
    }

    fn administrators(&self) -> ValueFn {
        let (store, clock) = (self.observed.store.clone(), self.clock.clone());
        Box::new(move || store.get().map_or(0, |store| store.lasting_administrators(clock.now()) as u64))
    }

    fn first_uses_dropped(&self) -> ValueFn {
        let uses = self.observed.first_uses.clone();
        Box::new(move || uses.dropped())
    }

    fn swept(&self, of: fn(&Swept) -> u64) -> ValueFn {
        let swept = self.observed.swept.clone();
        Box::new(move || of(&swept))
    }

    fn due_late_seconds(&self) -> OptionalValueFn {
        let swept = self.observed.swept.clone();
        Box::new(move || Some(swept.late_ms() as f64 / 1e3))
    }

    fn of_limits(&self, of: fn(&CallerLimits) -> u64) -> ValueFn {
        let limits = self.limits.clone();
        Box::new(move || of(&limits))
    }

    fn failures(&self) -> Vec<(&'static str, ValueFn)> {
        let of_reason = |reason| -> (&'static str, ValueFn) {
            let failures = self.limits.failures.clone();
            (reason, Box::new(move || failures.count(reason)))
        };
        REASONS.map(of_reason).into()
    }

    fn slots(&self, of: fn(SlotUsage) -> u64) -> ValueFn {
        let slots = self.slots.clone();
        Box::new(move || of(slots.usage()))
    }

    fn budget(&self, of: fn(&Budget, Callers) -> u64) -> Vec<(&'static str, ValueFn)> {
        let of_callers = |(name, callers)| -> (&'static str, ValueFn) {
            let budget = self.budget.clone();
            (name, Box::new(move || of(&budget, callers)))
        };
        [("strangers", Callers::Strangers), ("known", Callers::Known)].map(of_callers).into()
    }
}

/// A phase as a label.
fn phase_name(phase: Phase, is_open: bool) -> &'static str {
    match phase {
        Phase::Loading => "loading",
        Phase::Serving if !is_open => "checking",
        Phase::Serving => "serving",
        Phase::Draining => "draining",
        Phase::Stopping => "stopping",
    }
}

/// A time in seconds since 1970.
fn seconds(time: UnixMillis) -> f64 {
    time.0 as f64 / 1e3
}

fn kind_name(kind: NameKind) -> &'static str {
    match kind {
        NameKind::Tenant => "tenant",
        NameKind::Owner => "owner",
        NameKind::Environment => "environment",
        NameKind::Scope => "scope",
        NameKind::Issuer => "issuer",
    }
}
