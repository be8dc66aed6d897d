//! `keyward restore`.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;
use keyward_core::event::Revision;

use super::DataArgs;
use crate::config::Flags;
use crate::offline::{ByState, Source, restore_backup, rfc3339};

#[derive(Debug, Args)]
pub(super) struct RestoreArgs {
    /// The backup
    #[arg(value_name = "FILE")]
    from: PathBuf,
    /// The journal directory of the server that the backup was made of: changes since the backup are taken
    /// from it
    #[arg(long, value_name = "DIR")]
    journal: Option<PathBuf>,
    /// Goes on with the log of that journal, instead of beginning a new line of revisions: only if the old
    /// server is gone for good
    #[arg(long, requires = "journal", conflicts_with = "to_revision")]
    same_line: bool,
    /// The last revision to restore [default: all that is there]
    #[arg(long, value_name = "REVISION")]
    to_revision: Option<u64>,
    #[command(flatten)]
    data: DataArgs,
}

/// Restores, and prints what was restored.
pub(super) fn run(args: RestoreArgs) -> Result<(), Box<dyn Error>> {
    let (settings, _log) = args.data.settings(Flags::default())?;
    let (to, same_line) = (args.to_revision.map(Revision), args.same_line);
    let source = Source { backup: args.from, journal: args.journal, to, same_line };
    let restored = restore_backup(&settings, &source)?;
    let has_journal = source.journal.is_some();
    println!(
        "{}: restored to revision {}, from a backup of {} keys at revision {}",
        settings.data_dir.display(),
        restored.revision,
        restored.backup.keys,
        restored.backup.header.position.revision
    );
    let line = if same_line { "its line" } else { "a new line" };
    println!("the log goes on in {line}, from revision {}", restored.own);
    let ByState { active, disabled, revoked } = restored.keys;
    println!(
        "everything after revision {} of {} is missing; there are {} keys: {active} active, {disabled} disabled, {revoked} revoked",
        restored.revision,
        rfc3339(restored.time),
        active + disabled + revoked
    );
    println!(
        "keys that were disabled or revoked since then work again: disable them once more before you serve this data to anybody"
    );
    if !has_journal {
        println!(
            "with --journal DIR, the journal directory of the old server, a restore goes on with the changes since the backup, as far as \
             they are there"
        );
    }
    Ok(())
}
