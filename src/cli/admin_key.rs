//! `keyward admin-key`.

use std::error::Error;
use std::io::{self, Write};

use clap::Args;
use zeroize::Zeroizing;

use super::DataArgs;
use crate::config::Flags;
use crate::offline::mint_administrator;

#[derive(Debug, Args)]
pub(super) struct AdminKeyArgs {
    /// Go on where the watermark is missing beside a journal with changes: take the journal's end for the end
    /// of the log
    #[arg(long)]
    accept_watermark_loss: bool,
    #[command(flatten)]
    data: DataArgs,
}

/// Makes an administrator. Standard output has nothing but its key, so that it can be redirected to a file.
pub(super) fn run(args: AdminKeyArgs) -> Result<(), Box<dyn Error>> {
    let flags = Flags { accept_watermark_loss: args.accept_watermark_loss, ..Flags::default() };
    let (settings, _flush) = args.data.settings(flags)?;
    let mut printed = false;
    let minted = mint_administrator(&settings, |secret| {
        let line = Zeroizing::new(format!("{secret}\n"));
        let mut out = io::stdout();
        out.write_all(line.as_bytes())?;
        out.flush()?;
        printed = true;
        Ok(())
    });
    let minted = minted.map_err(|error| match printed {
        true => format!("{error}\nThe key that was printed may or may not work: try it after the next start"),
        false => error.to_string(),
    })?;
    eprintln!(
        "{}: {} is a new administrator, from revision {} on; its key was printed and is shown nowhere else",
        settings.data_dir.display(),
        minted.key_id,
        minted.revision
    );
    Ok(())
}
