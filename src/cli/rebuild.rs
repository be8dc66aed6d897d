//! `keyward rebuild`.

use std::error::Error;

use clap::Args;

use super::DataArgs;
use crate::config::Flags;
use crate::offline::{AcceptedLoss, Rebuilt, rebuild};

#[derive(Debug, Args)]
pub(super) struct RebuildArgs {
    /// Where acknowledged changes are missing and cannot be put back: go on without them. A key whose
    /// disabling is among them works again. What is gone is printed and noted in the journal, and the old
    /// files are moved aside
    #[arg(long)]
    accept_data_loss: bool,
    /// Then also take changes that are in the journal, or snapshots and tables, of which nothing shows that
    /// they are of this log. Anyone who can write to the directory may have put them there, an administrator
    /// among them. They are printed either way
    #[arg(long, requires = "accept_data_loss")]
    accept_unproven: bool,
    /// Go on where the watermark is missing beside a journal with changes: take the journal's end for the end
    /// of the log
    #[arg(long)]
    accept_watermark_loss: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Rebuilds, and prints what was kept and what is gone.
pub(super) fn run(args: RebuildArgs) -> Result<(), Box<dyn Error>> {
    let flags = Flags { accept_watermark_loss: args.accept_watermark_loss, ..Flags::default() };
    let (settings, _log) = args.data.settings(flags)?;
    let dir = settings.data_dir.display();
    let accepted = AcceptedLoss { data_loss: args.accept_data_loss, unproven: args.accept_unproven };
    match rebuild(&settings, accepted)? {
        Rebuilt::Whole(revision) => {
            println!("{dir}: the table was built anew, up to revision {revision}; nothing is missing")
        }
        Rebuilt::Salvaged(salvaged) => {
            println!("{dir}: {} keys were saved; the log goes on from revision {}", salvaged.keys, salvaged.revision);
            for (first, last) in &salvaged.missing {
                println!("gone: the changes {first} to {last}");
            }
            for (first, last) in &salvaged.behind_damage {
                println!(
                    "from behind damage: the changes {first} to {last}; they were made with this pepper file, and fit in with all \
                     else"
                );
            }
            if !salvaged.unproven.is_empty() {
                let what = match args.accept_unproven {
                    true => "taken, though nothing shows that it is of this log",
                    false => "left out, because nothing shows that it is of this log",
                };
                println!("{what}:{}", salvaged.unproven);
            }
            println!("the old files are in {}", salvaged.aside.display());
        }
    }
    Ok(())
}
