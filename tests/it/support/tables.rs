//! Tables that are kept in files, for people to read and for reviews to show: a test makes the table anew,
//! and compares.

use std::path::Path;

const UPDATE: &str = "UPDATE_AUTHORIZATION";

/// Columns are wide enough for most outcomes, so that another one changes its own line alone.
pub(crate) fn aligned(lines: &[Vec<String>]) -> String {
    let width = |at: usize| lines.iter().map(|line| line[at].len()).max().unwrap_or_default().max("not-listed".len());
    let padded = lines.iter().map(|line| {
        let cells = line.iter().enumerate().map(|(at, cell)| format!("{cell:<width$}  ", width = width(at)));
        cells.collect::<String>().trim_end().to_owned() + "\n"
    });
    padded.collect()
}

/// Compares a file of the repository with what a server did, or writes it anew.
pub(crate) fn agrees_with(file: &str, tried: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os(UPDATE).is_some() {
        std::fs::write(&path, tried).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    let (kept, tried): (Vec<_>, Vec<_>) = (kept.lines().collect(), tried.lines().collect());
    let differing: Vec<_> = (0..kept.len().max(tried.len()))
        .filter(|at| kept.get(*at) != tried.get(*at))
        .map(|at| format!("line {}\n- {}\n+ {}", at + 1, kept.get(at).unwrap_or(&""), tried.get(at).unwrap_or(&"")))
        .collect();
    assert!(
        differing.is_empty(),
        "the server (+) does not do what {} says (-). If it should do so, {UPDATE}=1 writes the file anew: review \
         every line that changes.\n{}",
        path.display(),
        differing.join("\n")
    );
}
