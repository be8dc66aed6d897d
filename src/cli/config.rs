//! `keyward config`: what the settings come to.

use std::error::Error;
use std::path::PathBuf;

use crate::config::{Flags, Settings};

/// Prints the effective configuration as a TOML file.
pub(super) fn run((flags, file): (Flags, Option<PathBuf>)) -> Result<(), Box<dyn Error>> {
    let effective = Settings::load(&flags, file)?;
    for (name, value, source) in effective.listing {
        println!("{name} = {value} # {source}");
    }
    Ok(())
}
