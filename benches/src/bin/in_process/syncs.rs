//! The least that a durable change can cost: a loop that writes to a file which is there already, and syncs
//! it.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Instant;

use keyward_bench::args::Args;
use keyward_bench::fixture::Failure;
use keyward_bench::stats::{median, percentile, rounded};
use serde_json::{Value, json};

/// What the loop came to.
pub(crate) struct Syncs {
    pub(crate) groups_per_s: f64,
    pub(crate) median_us: f64,
    pub(crate) p99_us: f64,
}

/// The loop alone.
pub(crate) fn measure(mut options: Args) -> Result<Value, Failure> {
    let dir = options.dir()?;
    let bytes = options.get("bytes")?.ok_or("--bytes is missing")?;
    let groups = options.get("groups")?.unwrap_or(200);
    options.end()?;
    let syncs = run(&dir, bytes, groups)?;
    Ok(json!({
        "bytes": bytes,
        "groups_per_s": rounded(syncs.groups_per_s),
        "median_us": rounded(syncs.median_us),
        "p99_us": rounded(syncs.p99_us),
    }))
}

/// Writes so many groups of so many bytes, one after the other, each durable before the next.
pub(crate) fn run(dir: &Path, bytes: usize, groups: usize) -> Result<Syncs, Failure> {
    let mut file = tempfile::tempfile_in(dir)?;
    // Zeros, so that no sync has to tell the file system of new blocks.
    let zeros = vec![0; bytes];
    for _ in 0..groups {
        file.write_all(&zeros)?;
    }
    file.sync_all()?;
    let group = vec![b'x'; bytes];
    let (mut times, began) = (vec![], Instant::now());
    for nth in 0..groups {
        let began = Instant::now();
        file.write_all_at(&group, (nth * bytes) as u64)?;
        file.sync_data()?;
        times.push(began.elapsed().as_nanos() as f64 / 1_000.0);
    }
    let groups_per_s = groups as f64 / began.elapsed().as_secs_f64();
    Ok(Syncs { groups_per_s, median_us: median(&times), p99_us: percentile(&times, 0.99) })
}
