//! Writes what the modes saw: a row for each into docs/reliability.md, and all of their counts into
//! docs/reliability-runs.md, which has nothing else.

use std::fs;
use std::path::Path;

use crate::Failure;
use crate::run::Tally;

/// The rows go between these lines of the document.
const BEGIN: &str = "<!-- results: written by `tests/crash/run report` -->";
const END: &str = "<!-- end of results -->";
/// Modes in this order; what is not named here comes after, by name.
const ORDER: [&str; 9] = ["kills", "lifecycle", "takeover", "retries", "cuts", "controls", "faults", "disks", "flips"];

/// Puts the tallies in `out` into the document, and their counts into a page of their own.
pub(crate) fn write(out: &Path, document: &Path, details: &Path) -> Result<(), Failure> {
    let tallies = read(out)?;
    let text = fs::read_to_string(document).map_err(|e| format!("{}: {e}", document.display()))?;
    let (before, rest) = text.split_once(BEGIN).ok_or_else(|| format!("{} lacks {BEGIN}", document.display()))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| format!("{} lacks {END}", document.display()))?;
    fs::write(document, format!("{before}{BEGIN}\n{}\n{END}{after}", table(&tallies)))?;
    fs::write(details, page(&tallies)).map_err(|e| format!("{}: {e}", details.display()))?;
    println!("report: wrote {} rows into {}, and {}", tallies.len(), document.display(), details.display());
    Ok(())
}

fn read(out: &Path) -> Result<Vec<Tally>, Failure> {
    let mut tallies = vec![];
    for entry in fs::read_dir(out).map_err(|e| format!("{}: {e}", out.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let tally = serde_json::from_str::<Tally>(&fs::read_to_string(&path)?);
            tallies.push(tally.map_err(|e| format!("{}: {e}", path.display()))?);
        }
    }
    if tallies.is_empty() {
        return Err(format!("{} has no results; run a mode first", out.display()).into());
    }
    let place = |tally: &Tally| ORDER.iter().position(|mode| *mode == tally.mode).unwrap_or(ORDER.len());
    tallies.sort_by_key(|tally| (place(tally), tally.mode.clone()));
    Ok(tallies)
}

fn table(tallies: &[Tally]) -> String {
    let mut lines = vec![
        String::new(),
        "| mode | passed | failed | changes acknowledged | changes verified | changes lost | wrong verdicts | inventions | \
         keys compared | verdicts compared | seconds | seed | date |"
            .to_owned(),
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|".to_owned(),
    ];
    for tally in tallies {
        let Tally { mode, passed, failed, seconds, seed, date, .. } = tally;
        let numbers = [
            tally.acknowledged,
            tally.verified,
            tally.lost,
            tally.wrong_verdicts,
            tally.inventions,
            tally.keys_compared,
            tally.verdicts_compared,
        ];
        let numbers = numbers.map(thousands).join(" | ");
        lines.push(format!(
            "| `{mode}` | {} | {} | {numbers} | {} | {seed} | {date} |",
            thousands(*passed),
            thousands(*failed),
            thousands(*seconds),
        ));
    }
    let mut machines: Vec<&str> = tallies.iter().map(|tally| tally.machine.as_str()).collect();
    machines.dedup();
    lines.extend([String::new(), format!("Measured on: {}.", machines.join("; ")), String::new()]);
    lines.join("\n")
}

/// The counts of each mode, as a document.
fn page(tallies: &[Tally]) -> String {
    let mut lines = vec![
        "# What each mode of tests/crash counted".to_owned(),
        String::new(),
        "Written by `tests/crash/run report`; changes by hand are lost. [reliability.md](reliability.md) says what the modes"
            .to_owned(),
        "do, and has a row of results for each.".to_owned(),
    ];
    for tally in tallies {
        let Tally { mode, passed, failed, seed, date, machine, counts, .. } = tally;
        let (passed, failed) = (thousands(*passed), thousands(*failed));
        lines.extend([
            String::new(),
            format!("## {mode}"),
            String::new(),
            format!("{passed} passed, {failed} failed, on {date}, with seed {seed}, on {machine}."),
            String::new(),
            "| what | count |".to_owned(),
            "|---|--:|".to_owned(),
        ]);
        lines.extend(counts.iter().map(|(what, count)| format!("| {what} | {} |", thousands(*count))));
    }
    lines.push(String::new());
    lines.join("\n")
}

/// A number with commas between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}
