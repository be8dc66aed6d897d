//! Metrics of the process, with the names that Prometheus' client libraries give them. What the system does
//! not tell is left out.

use std::fmt;
use std::fs;

use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};

use super::callbacks::OptionalGaugeFn;

pub(super) fn register(registry: &mut Registry, start_seconds: f64) {
    let registry = registry.sub_registry_with_prefix("process");
    registry.register_with_unit("cpu", "Processor time of the process", Unit::Seconds, Cpu);
    let found = |read: fn() -> Option<f64>| OptionalGaugeFn(Box::new(read));
    let help = "Memory of the process that is in RAM";
    registry.register_with_unit("resident_memory", help, Unit::Bytes, found(|| memory("VmRSS:")));
    let help = "Addresses that the process has, most of them without memory behind them";
    registry.register_with_unit("virtual_memory", help, Unit::Bytes, found(|| memory("VmSize:")));
    registry.register("open_fds", "Open files and connections of the process", found(open_files));
    registry.register("max_fds", "Open files and connections that it may have", found(open_files_max));
    let help = "When the process started, by the clock of then";
    registry.register_with_unit(
        "start_time",
        help,
        Unit::Seconds,
        OptionalGaugeFn(Box::new(move || Some(start_seconds))),
    );
}

/// A value of `/proc/self/status`, in bytes; the file has KiB.
fn memory(name: &str) -> Option<f64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let kib: f64 = status.lines().find_map(|line| line.strip_prefix(name))?.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024.0)
}

/// Without the descriptor that this reads them with.
fn open_files() -> Option<f64> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count().saturating_sub(1) as f64)
}

fn open_files_max() -> Option<f64> {
    getrlimit(Resource::Nofile).current.map(|max| max as f64)
}

/// A counter of the process' CPU time.
#[derive(Debug)]
struct Cpu;

impl EncodeMetric for Cpu {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let used = clock_gettime(ClockId::ProcessCPUTime);
        let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
        encoder.encode_counter::<NoLabelSet, f64, f64>(&seconds, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}
