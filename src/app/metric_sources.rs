//! The callbacks that metrics read their values from.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use grpc_h2::{Budget, Callers};
use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::record::State;
use tokio::sync::watch;

use crate::fast_path;
use crate::grpc::calls::guarded;
use crate::index::{Index, NameKind};
use crate::metrics::{MetricSources, Metrics, OptionalValueFn, ValueFn};
use crate::server::ops_http::Phase;
use crate::server::slots::Slots;
use crate::store::{Store, StoreStats, TableStats};

/// The store, once it is open.
pub(super) type Opened = Arc<OnceLock<Arc<dyn Store>>>;

pub(super) fn new_metrics(
    index: &Arc<Index>,
    slots: &Slots,
    budget: &Budget,
    writable: &Arc<AtomicBool>,
    opened: &Opened,
    clock: &Arc<dyn Clock>,
    phase: &watch::Sender<Phase>,
) -> Metrics {
    let (keys, revision, connections, writable) = (index.clone(), index.clone(), slots.clone(), writable.clone());
    let (strangers, turned_away) = (slots.clone(), slots.clone());
    let (unused, compactions) = (index.clone(), index.clone());
    let names = NameKind::ALL.map(|kind| {
        let (name, index) = (kind_name(kind), index.clone());
        let value: ValueFn = Box::new(move || index.names_in_use(kind) as u64);
        (name, value)
    });
    let table = |of: fn(TableStats) -> u64| -> ValueFn {
        let opened = opened.clone();
        Box::new(move || opened.get().map_or(0, |store| of(store.table_stats())))
    };
    let figure = |of: fn(StoreStats) -> u64| -> ValueFn {
        let opened = opened.clone();
        Box::new(move || opened.get().map_or(0, |store| of(store.stats())))
    };
    let found = |of: fn(StoreStats) -> Option<f64>| -> OptionalValueFn {
        let opened = opened.clone();
        Box::new(move || of(opened.get()?.stats()))
    };
    let states = State::ALL.map(|state| {
        let index = index.clone();
        let value: ValueFn = Box::new(move || index.len_in(state) as u64);
        (state.name(), value)
    });
    let phases = PHASES.map(|name| {
        let (phase, opened) = (phase.subscribe(), opened.clone());
        let value: ValueFn = Box::new(move || u64::from(phase_name(*phase.borrow(), opened.get().is_some()) == name));
        (name, value)
    });
    let (lasting, start_seconds, clock) = (opened.clone(), seconds(clock.now()), clock.clone());
    let administrators = move || lasting.get().map_or(0, |store| store.lasting_administrators(clock.now()) as u64);
    let callers = [("strangers", Callers::Strangers), ("known", Callers::Known)];
    let of_callers = |of: fn(&Budget, Callers) -> u64| {
        callers.map(|(name, callers)| -> (&'static str, ValueFn) {
            let budget = budget.clone();
            (name, Box::new(move || of(&budget, callers)))
        })
    };
    let sources = MetricSources {
        request_bytes: of_callers(|budget, callers| budget.held(callers) as u64).into(),
        requests_without_room: of_callers(|budget, callers| budget.refused(callers)).into(),
        start_seconds,
        phases: phases.into(),
        keys_by_state: states.into(),
        journal_revision: figure(|figures| figures.durable.0),
        table_revision: figure(|figures| figures.applied.0),
        changes_waiting: figure(|figures| figures.waiting as u64),
        disk_free_bytes: found(|figures| figures.free_bytes.map(|bytes| bytes as f64)),
        last_snapshot: found(|figures| figures.snapshot.map(seconds)),
        last_backup: found(|figures| figures.backup.map(seconds)),
        keys: Box::new(move || keys.len() as u64),
        revision: Box::new(move || revision.revision().0),
        connections: Box::new(move || connections.usage().all as u64),
        connections_of_strangers: Box::new(move || strangers.usage().by_strangers as u64),
        connections_turned_away: Box::new(move || turned_away.usage().turned_away),
        writable: Box::new(move || u64::from(writable.load(Ordering::Relaxed))),
        administrators: Box::new(administrators),
        names: names.into(),
        names_unused: Box::new(move || unused.names_unused() as u64),
        name_compactions: Box::new(move || compactions.compactions()),
        table_bytes: table(|figures| figures.bytes),
        table_record_bytes: table(|figures| figures.record_bytes),
        table_rebuilds: table(|figures| figures.rebuilds),
    };
    Metrics::new(guarded().map(|(path, _)| path), fast_path::PATHS, sources)
}

/// The labels of a server's phases.
const PHASES: [&str; 5] = ["loading", "checking", "serving", "draining", "stopping"];

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
    }
}
