//! Metrics, and the text that Prometheus scrapes.
//!
//! All families and label sets are made at the start, so that counting is an atomic add on a handle: no lock,
//! no allocation and no lookup during a call. All labels are constants: nothing that a caller sends, and no
//! tenant, owner, key or secret, can become one; but for the names of authenticated callers, of whom at most
//! 200 have counters of their own.

mod callbacks;
mod fast_path;
mod http2;
mod process;
mod prometheus_text;
mod tls;
mod unknown_secrets;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use keyward_core::access::Caller;
use keyward_core::decision::DenyReason;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::info::Info;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::{Registry, Unit};

use self::callbacks::{CounterFn, GaugeFn, LabelledCounters, LabelledGauges, OptionalGaugeFn};
pub use self::fast_path::{FastPathCounts, SlowPathReason};
pub use self::http2::{Closed, Flood, Http2Counts, RefusedStream, Side};
pub use self::tls::{FailedHandshake, TlsCounts};
use self::unknown_secrets::UnknownSecrets;

/// The commit that the program was built from, if the build set it.
const COMMIT: &str = match option_env!("KEYWARD_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The exposition format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format, version 0.0.4.
    Text,
    /// OpenMetrics.
    OpenMetrics,
}

impl Format {
    /// Its content type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The names of gRPC's codes, by their numbers.
const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// The upper bounds of the buckets of durations, in microseconds. A verdict takes tens, a commit thousands.
const BUCKETS_MICROS: [u32; 19] = [
    10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000,
];

/// The label of all unknown calls.
const UNKNOWN_CALL: &str = "unknown";

type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Reads a value that is kept elsewhere.
pub type ValueFn = Box<dyn Fn() -> u64 + Send + Sync>;

/// Reads a value that is kept elsewhere, if it is known.
pub type OptionalValueFn = Box<dyn Fn() -> Option<f64> + Send + Sync>;

/// The values that are kept elsewhere.
pub struct MetricSources {
    /// When the process started, in seconds since 1970.
    pub start_seconds: f64,
    /// For each phase, 1 if the server is in it, else 0.
    pub phases: Vec<(&'static str, ValueFn)>,
    /// The number of keys.
    pub keys: ValueFn,
    /// For each state, the number of keys.
    pub keys_by_state: Vec<(&'static str, ValueFn)>,
    /// The revision of the last durable change.
    pub journal_revision: ValueFn,
    /// The revision of the last change in the table.
    pub table_revision: ValueFn,
    /// The number of changes in the queue.
    pub changes_waiting: ValueFn,
    /// Free bytes on the disk of the data directory.
    pub disk_free_bytes: OptionalValueFn,
    /// The time of the newest sound snapshot, in seconds since 1970.
    pub last_snapshot: OptionalValueFn,
    /// The time of the last backup, in seconds since 1970.
    pub last_backup: OptionalValueFn,
    /// The revision of the index.
    pub revision: ValueFn,
    /// For each reason, the number of failed authentications.
    pub failed_authentications: Vec<(&'static str, ValueFn)>,
    /// The number of refusals whose answers wait.
    pub refusals_waiting: ValueFn,
    /// The number of calls under way that are counted (`slow_calls_max`).
    pub slow_calls: ValueFn,
    /// The number of open connections of callers.
    pub connections: ValueFn,
    /// The number of those that have not had a working credential.
    pub connections_of_strangers: ValueFn,
    /// How many of these were closed to make room for others.
    pub connections_turned_away: ValueFn,
    /// 1 if changes can be made, else 0.
    pub writable: ValueFn,
    /// The number of lasting administrators.
    pub administrators: ValueFn,
    /// The number of first uses of new secrets that were not noted because too many waited.
    pub first_uses_dropped: ValueFn,
    /// Keys whose suspension has ended, made active by Keyward.
    pub resumed: ValueFn,
    /// Deleted keys purged.
    pub purged: ValueFn,
    /// How late the changes are that are due by the clock, in seconds.
    pub due_late_seconds: OptionalValueFn,
    /// For each kind of callers, the bytes held for requests under way.
    pub request_bytes: Vec<(&'static str, ValueFn)>,
    /// For each kind of callers, the number of requests that there was no room for.
    pub requests_without_room: Vec<(&'static str, ValueFn)>,
    /// For each kind of names, the number of names in use.
    pub names: Vec<(&'static str, ValueFn)>,
    /// The number of names that are kept but not used.
    pub names_unused: ValueFn,
    /// The number of compactions of names.
    pub name_compactions: ValueFn,
    /// Bytes of the table's files.
    pub table_bytes: ValueFn,
    /// Bytes of the records in the table.
    pub table_record_bytes: ValueFn,
    /// The number of rebuilds of the table.
    pub table_rebuilds: ValueFn,
    /// When the first of the TLS certificates that are served ends, in seconds since 1970.
    pub tls_not_after: OptionalValueFn,
    /// How many listeners use TLS files that are not those on the disk, which cannot be used.
    pub tls_stale: ValueFn,
}

/// Zero, or unknown.
impl Default for MetricSources {
    fn default() -> Self {
        let zero = || -> ValueFn { Box::new(|| 0) };
        let unknown = || -> OptionalValueFn { Box::new(|| None) };
        Self {
            start_seconds: 0.0,
            phases: vec![],
            keys: zero(),
            keys_by_state: vec![],
            journal_revision: zero(),
            table_revision: zero(),
            changes_waiting: zero(),
            disk_free_bytes: unknown(),
            last_snapshot: unknown(),
            last_backup: unknown(),
            revision: zero(),
            failed_authentications: vec![],
            refusals_waiting: zero(),
            slow_calls: zero(),
            connections: zero(),
            connections_of_strangers: zero(),
            connections_turned_away: zero(),
            writable: zero(),
            administrators: zero(),
            first_uses_dropped: zero(),
            resumed: zero(),
            purged: zero(),
            due_late_seconds: unknown(),
            request_bytes: vec![],
            requests_without_room: vec![],
            names: vec![],
            names_unused: zero(),
            name_compactions: zero(),
            table_bytes: zero(),
            table_record_bytes: zero(),
            table_rebuilds: zero(),
            tls_not_after: unknown(),
            tls_stale: zero(),
        }
    }
}

/// All metrics of a server.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    verdicts: Verdicts,
    calls: Arc<Calls>,
    fast_path: [FastPathCounts; 2],
    http2: Arc<Http2Counts>,
    tls: Arc<TlsCounts>,
}

impl Metrics {
    /// Metrics of a server that offers the calls at these paths, and answers two of them where they are read.
    #[must_use]
    pub fn new(
        paths: impl IntoIterator<Item = &'static str>,
        fast_path_calls: [&'static str; 2],
        sources: MetricSources,
    ) -> Self {
        // Help texts have no full stop: the crate adds it.
        let mut all = Registry::default();
        process::register(&mut all, sources.start_seconds);
        let registry = all.sub_registry_with_prefix("keyward");
        let build = [("version", env!("CARGO_PKG_VERSION")), ("commit", COMMIT)];
        registry.register("build", "The program", Info::new(build));
        let help = "1 for the phase of its life that it is in: loading (no verdicts yet), checking (verdicts, and no changes \
                    yet), serving, draining or stopping";
        registry.register("phase", help, LabelledGauges("phase", sources.phases));
        registry.register("keys", "Keys there are, in any state but deleted", GaugeFn(sources.keys));
        let help = "Keys by state; an expired key is in the state that it was in, and one whose suspension has ended is \
                    disabled until Keyward has made it active";
        registry.register("keys_by_state", help, LabelledGauges("state", sources.keys_by_state));
        registry.register("revision", "Every change up to this one is in verdicts", GaugeFn(sources.revision));
        let help = "The last change that is durable, in the journal";
        registry.register("journal_revision", help, GaugeFn(sources.journal_revision));
        let help = "The last change that is in the table, which is written behind the journal";
        registry.register("table_revision", help, GaugeFn(sources.table_revision));
        registry.register("changes_waiting", "Changes that wait to be made", GaugeFn(sources.changes_waiting));
        let help = "Free space of the disk of the data directory, as of a second ago";
        registry.register_with_unit("disk_free", help, Unit::Bytes, OptionalGaugeFn(sources.disk_free_bytes));
        let help = "When the newest sound snapshot in the data directory was made; absent if there is none";
        registry.register_with_unit(
            "last_snapshot_timestamp",
            help,
            Unit::Seconds,
            OptionalGaugeFn(sources.last_snapshot),
        );
        let help = "When the last backup was made that was read to its end; absent if there was none since the start";
        registry.register_with_unit("last_backup_timestamp", help, Unit::Seconds, OptionalGaugeFn(sources.last_backup));
        let help = "Calls whose caller could not be authenticated, by reason";
        let failed = LabelledCounters("reason", sources.failed_authentications);
        registry.register("failed_authentications", help, failed);
        let help = "Refusals of such calls that wait, because there are many of their origin";
        registry.register("refusals_waiting", help, GaugeFn(sources.refusals_waiting));
        let help =
            "Calls of authenticated callers under way, save Verify, BatchVerify and changes that only take power away";
        registry.register("slow_calls", help, GaugeFn(sources.slow_calls));
        registry.register("connections", "Open connections of callers", GaugeFn(sources.connections));
        let help = "Those that have not had a credential that works";
        registry.register("connections_without_credential", help, GaugeFn(sources.connections_of_strangers));
        let help = "Connections that have not had a credential that works and were ended so that others get in";
        registry.register("connections_turned_away", help, CounterFn(sources.connections_turned_away));
        registry.register(
            "writable",
            "1 if changes can be made, 0 if the disk is full or stuck",
            GaugeFn(sources.writable),
        );
        let help = "Administrators that last: active keys of tenant system with keyward.admin, without an end, networks or \
                    audiences; 0 also until changes can be made";
        registry.register("lasting_administrators", help, GaugeFn(sources.administrators));
        let help = "First uses of new secrets that did not begin an overlap, because too many waited to be recorded; a later use \
                    does";
        registry.register("first_uses_dropped", help, CounterFn(sources.first_uses_dropped));
        let help =
            "Keys whose suspension has ended and that were made active since the start; verdicts do not wait for it";
        registry.register("keys_resumed", help, CounterFn(sources.resumed));
        registry.register("keys_purged", "Deleted keys that were purged since the start", CounterFn(sources.purged));
        let help = "How late the changes are that Keyward makes by the clock, which are these; 0 if none is due";
        registry.register_with_unit("due_changes_late", help, Unit::Seconds, OptionalGaugeFn(sources.due_late_seconds));
        let help = "Held for requests under way, by whether their connection has had a credential that works";
        let held = LabelledGauges("callers", sources.request_bytes);
        registry.register_with_unit("requests_held", help, Unit::Bytes, held);
        let help = "Calls that were refused, and connections that ended, because that was as much as it may be";
        registry.register("requests_without_room", help, LabelledCounters("callers", sources.requests_without_room));
        let help = "Different names that keys use, in any tenant, by kind";
        registry.register("names", help, LabelledGauges("kind", sources.names));
        registry.register("names_unused", "Names that are kept and no key uses", GaugeFn(sources.names_unused));
        let help = "How often the room of unused names was given back";
        registry.register("name_compactions", help, CounterFn(sources.name_compactions));
        registry.register_with_unit("table", "Size of the table's files", Unit::Bytes, GaugeFn(sources.table_bytes));
        let help = "Size of the records in the table";
        registry.register_with_unit("table_records", help, Unit::Bytes, GaugeFn(sources.table_record_bytes));
        let help = "How often the table was built anew since the start, at the start itself included";
        registry.register("table_rebuilds", help, CounterFn(sources.table_rebuilds));
        let help = "When the first of the TLS certificates that are served ends; absent if there is none";
        registry.register_with_unit(
            "tls_certificate_expiry_timestamp",
            help,
            Unit::Seconds,
            OptionalGaugeFn(sources.tls_not_after),
        );
        let help = "Listeners whose TLS files cannot be used as they are now, so that older ones still are";
        registry.register("tls_files_stale", help, GaugeFn(sources.tls_stale));
        let verdicts = Verdicts::register(registry);
        let calls = Arc::new(Calls::register(registry, paths));
        let fast_path = FastPathCounts::register(registry, fast_path_calls.map(method_name));
        let http2 = Arc::new(Http2Counts::register(registry));
        let tls = Arc::new(TlsCounts::register(registry));
        Self { registry: all, verdicts, calls, fast_path, http2, tls }
    }

    /// The counters of verdicts.
    #[must_use]
    pub fn verdicts(&self) -> Verdicts {
        self.verdicts.clone()
    }

    /// The metrics of calls.
    #[must_use]
    pub fn calls(&self) -> Arc<Calls> {
        self.calls.clone()
    }

    /// Counts the calls that have a fast path by the path that they take, in the order in which they were
    /// given.
    #[must_use]
    pub fn fast_path(&self) -> [FastPathCounts; 2] {
        self.fast_path.clone()
    }

    /// The counters of callers' connections.
    #[must_use]
    pub fn http2(&self) -> Arc<Http2Counts> {
        self.http2.clone()
    }

    /// The counters of TLS handshakes.
    #[must_use]
    pub fn tls(&self) -> Arc<TlsCounts> {
        self.tls.clone()
    }

    /// All metrics as text.
    ///
    /// # Errors
    /// When a value cannot be written, such as a gauge beyond 63 bits.
    pub fn text(&self, format: Format) -> Result<String, fmt::Error> {
        let mut text = String::new();
        text::encode(&mut text, &self.registry)?;
        Ok(match format {
            Format::OpenMetrics => text,
            Format::Text => prometheus_text::from_open_metrics(&text),
        })
    }
}

/// Counters of verdicts by their reason.
#[derive(Clone, Debug)]
pub struct Verdicts {
    ok: Counter,
    malformed: Counter,
    unknown: Counter,
    rotated_out: Counter,
    owner_suspended: Counter,
    epoch_rejected: Counter,
    disabled: Counter,
    suspended: Counter,
    revoked: Counter,
    not_yet_valid: Counter,
    expired: Counter,
    environment_mismatch: Counter,
    audience_mismatch: Counter,
    ip_not_allowed: Counter,
    scope_missing: Counter,
    unknown_secrets: UnknownSecrets,
}

impl Verdicts {
    fn register(registry: &mut Registry) -> Self {
        let family = Family::<Labels<1>, Counter>::default();
        registry.register("verdicts", "Verdicts on keys, by reason; OK is the one that allows", family.clone());
        let counter = |reason| family.get_or_create_owned(&[("reason", reason)]);
        let unknown_secrets = UnknownSecrets::default();
        let help =
            "Verdicts on what is no key, by reason and by the caller who asked: at most 200 callers, then 'other'";
        registry.register("unknown_secrets", help, unknown_secrets.clone());
        Self {
            ok: counter("OK"),
            malformed: counter("MALFORMED"),
            unknown: counter("UNKNOWN"),
            rotated_out: counter("ROTATED_OUT"),
            owner_suspended: counter("OWNER_SUSPENDED"),
            epoch_rejected: counter("EPOCH_REJECTED"),
            disabled: counter("DISABLED"),
            suspended: counter("SUSPENDED"),
            revoked: counter("REVOKED"),
            not_yet_valid: counter("NOT_YET_VALID"),
            expired: counter("EXPIRED"),
            environment_mismatch: counter("ENVIRONMENT_MISMATCH"),
            audience_mismatch: counter("AUDIENCE_MISMATCH"),
            ip_not_allowed: counter("IP_NOT_ALLOWED"),
            scope_missing: counter("SCOPE_MISSING"),
            unknown_secrets,
        }
    }

    /// Counts a verdict for a caller: `None` allows, a reason denies.
    pub fn count(&self, caller: &Caller, failure: Option<DenyReason>) {
        self.unknown_secrets.note(caller, failure);
        let counter = match failure {
            None => &self.ok,
            Some(DenyReason::Malformed) => &self.malformed,
            Some(DenyReason::Unknown) => &self.unknown,
            Some(DenyReason::RotatedOut) => &self.rotated_out,
            Some(DenyReason::OwnerSuspended) => &self.owner_suspended,
            Some(DenyReason::EpochRejected) => &self.epoch_rejected,
            Some(DenyReason::Disabled) => &self.disabled,
            Some(DenyReason::Suspended) => &self.suspended,
            Some(DenyReason::Revoked) => &self.revoked,
            Some(DenyReason::NotYetValid) => &self.not_yet_valid,
            Some(DenyReason::Expired) => &self.expired,
            Some(DenyReason::EnvironmentMismatch) => &self.environment_mismatch,
            Some(DenyReason::AudienceMismatch) => &self.audience_mismatch,
            Some(DenyReason::IpNotAllowed) => &self.ip_not_allowed,
            Some(DenyReason::ScopeMissing) => &self.scope_missing,
        };
        counter.inc();
    }
}

/// Counters and durations of calls.
#[derive(Debug)]
pub struct Calls {
    known: Vec<(&'static str, Arc<CallMetrics>)>,
    unknown: Arc<CallMetrics>,
}

impl Calls {
    fn register(registry: &mut Registry, paths: impl IntoIterator<Item = &'static str>) -> Self {
        let counts = Family::<Labels<2>, Counter>::default();
        registry.register("calls", "Calls by gRPC code; CANCELLED are those that nobody waited for", counts.clone());
        let durations = Family::<Labels<1>, Histogram>::default();
        let help = "From the headers of a call to those of its reply";
        registry.register_with_unit("call_duration", help, Unit::Seconds, durations.clone());
        let call = |name| {
            Arc::new(CallMetrics {
                codes: CODES.map(|code| counts.get_or_create_owned(&[("call", name), ("code", code)])),
                durations: durations.get_or_create_owned(&[("call", name)]),
            })
        };
        Self {
            known: paths.into_iter().map(|path| (path, call(method_name(path)))).collect(),
            unknown: call(UNKNOWN_CALL),
        }
    }

    /// The metrics of the call at a path. All unknown paths share one.
    #[must_use]
    pub fn of(&self, path: &str) -> Arc<CallMetrics> {
        self.known.iter().find(|(known, _)| *known == path).map_or(&self.unknown, |(_, call)| call).clone()
    }
}

/// A call's name without its package: `/keyward.v1.KeyAdmin/CreateKey` is `KeyAdmin/CreateKey`.
fn method_name(path: &'static str) -> &'static str {
    path.rsplit('.').next().unwrap_or(path)
}

/// The metrics of one kind of call.
#[derive(Debug)]
pub struct CallMetrics {
    codes: [Counter; CODES.len()],
    durations: Histogram,
}

impl CallMetrics {
    /// Counts a call that was answered with this code. An invalid code counts as UNKNOWN.
    pub fn count(&self, code: i32, took: Duration) {
        self.count_many(1, code, took);
    }

    /// Counts so many calls with the same code and duration.
    pub fn count_many(&self, calls: u64, code: i32, took: Duration) {
        let [_, _, unknown, ..] = &self.codes;
        let counter = usize::try_from(code).ok().and_then(|code| self.codes.get(code)).unwrap_or(unknown);
        counter.inc_by(calls);
        self.durations.observe(calls, took);
    }
}

/// A histogram without a lock; the crate's own takes one for every observation.
#[derive(Clone, Debug, Default)]
struct Histogram(Arc<Buckets>);

#[derive(Debug, Default)]
struct Buckets {
    /// One for each bound, and one beyond the last.
    counts: [AtomicU64; BUCKETS_MICROS.len() + 1],
    /// It wraps after centuries of calls; Prometheus takes that for a restart.
    nanos: AtomicU64,
}

impl Histogram {
    fn observe(&self, times: u64, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = BUCKETS_MICROS.partition_point(|bound| u64::from(*bound) * 1_000 < nanos);
        self.0.counts[bucket].fetch_add(times, Ordering::Relaxed);
        self.0.nanos.fetch_add(nanos.wrapping_mul(times), Ordering::Relaxed);
    }
}

impl TypedMetric for Histogram {
    const TYPE: MetricType = MetricType::Histogram;
}

impl EncodeMetric for Histogram {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let bounds = BUCKETS_MICROS.iter().map(|bound| f64::from(*bound) / 1e6).chain([f64::INFINITY]);
        let counts = self.0.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let buckets: Vec<_> = bounds.zip(counts).collect();
        // Not a counter of its own: the count must be that of the last bucket, whatever is counted meanwhile.
        let count = buckets.iter().map(|(_, count)| count).sum();
        let sum = Duration::from_nanos(self.0.nanos.load(Ordering::Relaxed)).as_secs_f64();
        encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}
