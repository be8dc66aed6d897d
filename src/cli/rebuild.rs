//! `keyward rebuild`.

use std::error::Error;

use clap::Args;

use super::Place;
use crate::offline::{Rebuilt, rebuild};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Where acknowledged changes are missing and cannot be put back: go on without them. A key whose disabling is among
    /// them works again. What is gone is printed and noted in the journal, and the old files are moved aside
    #[arg(long)]
    accept_data_loss: bool,
    #[command(flatten)]
    place: Place,
}

/// Rebuilds, and says what came of it.
pub(super) fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let (settings, _flush) = options.place.settings()?;
    let dir = settings.data_dir.display();
    match rebuild(&settings, options.accept_data_loss)? {
        Rebuilt::Whole(revision) => {
            println!("{dir}: the table was built anew, up to revision {revision}; nothing is missing")
        }
        Rebuilt::Salvaged(salvaged) => {
            println!("{dir}: {} keys were saved; the log goes on from revision {}", salvaged.keys, salvaged.revision);
            for (first, last) in &salvaged.missing {
                println!("gone: the changes {first} to {last}");
            }
            println!("the old files are in {}", salvaged.aside.display());
        }
    }
    Ok(())
}
