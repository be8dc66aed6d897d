//! `keyward check`.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;

use super::DataArgs;
use crate::config::Flags;
use crate::offline::{Inspected, check, check_backup};

#[derive(Debug, Args)]
pub(super) struct CheckArgs {
    /// A backup to check, instead of a data directory
    #[arg(value_name = "FILE")]
    backup: Option<PathBuf>,
    /// The journal must lead through this head, REVISION:CHAIN, which was kept apart from it
    #[arg(long, value_name = "HEAD", conflicts_with = "backup")]
    expect_head: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

/// Prints what was found, and fails on any doubt.
pub(super) fn run(args: CheckArgs) -> Result<(), Box<dyn Error>> {
    if let Some(path) = args.backup {
        let contents = check_backup(&path)?;
        let (keys, revision) = (contents.keys, contents.header.position.revision);
        println!("ok     {}: whole, {keys} keys at revision {revision}", path.display());
        return Ok(());
    }
    let flags = Flags { expect_head: args.expect_head, ..Flags::default() };
    let (settings, _log) = args.data.settings(flags)?;
    let Inspected { findings, head } = check(&settings)?;
    for finding in &findings {
        println!("{finding}");
    }
    if let Some(head) = head {
        println!("head   {head}");
    }
    match findings.iter().filter(|finding| finding.doubt).count() {
        0 => Ok(()),
        doubts => {
            Err(format!("{}: {doubts} of {} parts are in doubt", settings.data_dir.display(), findings.len()).into())
        }
    }
}
