//! `keyward config`: the effective settings, and a check of the files that they name.

use std::error::Error;
use std::path::PathBuf;

use crate::config::{Flags, Settings};
use crate::offline::check_files;

/// Prints the effective configuration as TOML, then checks the files that it names.
pub(super) fn run((flags, file): (Flags, Option<PathBuf>)) -> Result<(), Box<dyn Error>> {
    let effective = Settings::load(&flags, file)?;
    for (name, value, source) in effective.listing {
        println!("{name} = {value} # {source}");
    }
    let wrong = check_files(&effective.settings);
    match wrong.len() {
        0 => Ok(()),
        1 => Err(format!("a file that the configuration names is not as it must be: {}", wrong[0]).into()),
        count => {
            let lines: String = wrong.iter().map(|what| format!("\n  - {what}")).collect();
            Err(format!("{count} files that the configuration names are not as they must be:{lines}").into())
        }
    }
}
