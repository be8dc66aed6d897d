//! Writes the table of docs/reliability.md from what the modes saw.

use std::fs;
use std::path::Path;

use crate::Failure;
use crate::run::Tally;

/// The table goes between these lines of the document.
const BEGIN: &str = "<!-- results: written by `tests/crash/run report` -->";
const END: &str = "<!-- end of results -->";
/// Modes in this order; what is not named here comes after, by name.
const ORDER: [&str; 6] = ["kills", "cuts", "controls", "faults", "disks", "flips"];

/// Puts the tallies in `out` into the document.
pub(crate) fn write(out: &Path, document: &Path) -> Result<(), Failure> {
    let tallies = read(out)?;
    let text = fs::read_to_string(document).map_err(|e| format!("{}: {e}", document.display()))?;
    let (before, rest) = text.split_once(BEGIN).ok_or_else(|| format!("{} lacks {BEGIN}", document.display()))?;
    let (_, after) = rest.split_once(END).ok_or_else(|| format!("{} lacks {END}", document.display()))?;
    fs::write(document, format!("{before}{BEGIN}\n{}\n{END}{after}", table(&tallies)))?;
    println!("report: wrote {} rows into {}", tallies.len(), document.display());
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
    lines.extend([String::new(), "| mode | of which | |".to_owned(), "|---|---|--:|".to_owned()]);
    for tally in tallies {
        let counts = tally.counts.iter();
        lines.extend(counts.map(|(what, count)| format!("| `{}` | {what} | {} |", tally.mode, thousands(*count))));
    }
    let mut machines: Vec<&str> = tallies.iter().map(|tally| tally.machine.as_str()).collect();
    machines.dedup();
    lines.extend([String::new(), format!("Measured on: {}.", machines.join("; ")), String::new()]);
    lines.join("\n")
}

/// A number with commas between thousands.
fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}
