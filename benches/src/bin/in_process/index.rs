//! The index beside its baselines: how fast it loads, what it weighs, and what [`crate::lookups`] finds.

use std::time::{Duration, Instant};

use keyward_bench::args::Args;
use keyward_bench::fixture::{Failure, Fixture};
use keyward_bench::stats::rounded;
use serde_json::{Value, json};

use crate::baselines::{Keeps, Locked, Ours, Papaya};
use crate::lookups;

/// With fewer keys than this, what they weigh is lost in what the allocator keeps.
const KEYS_WEIGHED_MIN: u64 = 100_000;
/// Memory that was freed goes back to the system within this time.
const PURGED_AFTER: Duration = Duration::from_millis(300);

/// A loaded contestant, and what its loading came to.
pub(crate) struct Contestant {
    pub(crate) name: &'static str,
    pub(crate) keeps: Box<dyn Keeps>,
    records_per_s: f64,
    bytes_per_key: f64,
}

/// Loads the index and its baselines one after the other, and looks keys up in all of them in turns.
pub(crate) fn measure(mut options: Args) -> Result<Value, Failure> {
    let keys: u64 = options.get("keys")?.ok_or("--keys is missing")?;
    let baselines_up_to = options.get("baselines-up-to")?.unwrap_or(1_000_000);
    let known = options.get("known")?.unwrap_or_else(|| (keys / 2).clamp(1, 65_536));
    let rounds = options.get("rounds")?.unwrap_or(7);
    options.end()?;
    let fixture = Fixture::new(keys, usize::try_from(known)?)?;

    let ours = Ours::new(&fixture);
    let load_ours = load(&fixture, &ours)?;
    if ours.len() as u64 != keys {
        return Err("the index has not as many keys as were folded in".into());
    }
    let contestant = |name, keeps: Box<dyn Keeps>, (records_per_s, bytes_per_key)| Contestant {
        name,
        keeps,
        records_per_s,
        bytes_per_key,
    };
    let mut contestants = vec![contestant("index", Box::new(ours), load_ours)];
    if keys <= baselines_up_to {
        // None is dropped before the end: what is freed would be the next one's memory, and not be counted.
        let baselines: [(_, Box<dyn Keeps>); 2] =
            [("locked_map", Box::<Locked>::default()), ("papaya", Box::<Papaya>::default())];
        for (name, keeps) in baselines {
            let loaded = load(&fixture, &*keeps)?;
            contestants.push(contestant(name, keeps, loaded));
        }
    }

    let mut found = json!({ "keys": keys, "known": known, "rounds": rounds });
    let ours_load = (contestants[0].records_per_s, contestants[0].bytes_per_key);
    for one in &contestants {
        let ratio = rounded(ours_load.0 / one.records_per_s);
        found[one.name] = json!({ "load": { "records_per_s": one.records_per_s.round(), "ratio": ratio } });
        if keys >= KEYS_WEIGHED_MIN {
            let ratio = rounded(ours_load.1 / one.bytes_per_key);
            found[one.name]["memory"] = json!({ "bytes_per_key": one.bytes_per_key.round(), "ratio": ratio });
        }
    }
    lookups::measure(&fixture, &contestants, rounds, &mut found)?;
    Ok(found)
}

/// Folds every key in. Records a second, in which making the records does not count; and resident bytes a
/// key.
fn load(fixture: &Fixture, keeps: &dyn Keeps) -> Result<(f64, f64), Failure> {
    let before = resident()?;
    let mut folding = Duration::ZERO;
    for batch in fixture.batches() {
        let batch = batch?;
        let began = Instant::now();
        keeps.fold(&batch);
        folding += began.elapsed();
    }
    let bytes = resident()?.saturating_sub(before);
    Ok((fixture.keys as f64 / folding.as_secs_f64(), bytes as f64 / fixture.keys as f64))
}

/// Bytes of memory that this process holds.
fn resident() -> Result<u64, Failure> {
    std::thread::sleep(PURGED_AFTER);
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    Ok(kib.ok_or("the system does not say how much memory there is")?.parse::<u64>()? * 1_024)
}
