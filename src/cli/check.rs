//! `keyward check`.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;

use super::Place;
use crate::offline::{check, check_backup};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// A backup to check, instead of a data directory
    #[arg(value_name = "FILE")]
    backup: Option<PathBuf>,
    #[command(flatten)]
    place: Place,
}

/// Says what was found, and fails on any doubt.
pub(super) fn run(options: Options) -> Result<(), Box<dyn Error>> {
    if let Some(path) = options.backup {
        let contents = check_backup(&path)?;
        let (keys, revision) = (contents.keys, contents.header.position.revision);
        println!("ok     {}: whole, {keys} keys at revision {revision}", path.display());
        return Ok(());
    }
    let (settings, _flush) = options.place.settings()?;
    let findings = check(&settings)?;
    for finding in &findings {
        println!("{finding}");
    }
    match findings.iter().filter(|finding| finding.doubt).count() {
        0 => Ok(()),
        doubts => {
            Err(format!("{}: {doubts} of {} parts are in doubt", settings.data_dir.display(), findings.len()).into())
        }
    }
}
