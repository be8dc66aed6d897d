//! `keyward backup`.

use std::error::Error;
use std::path::PathBuf;

use clap::Args;

use crate::lifecycle::{Caught, Signals};
use crate::net::ListenAddr;
use crate::remote::{Server, backup};

#[derive(Debug, Args)]
pub(super) struct Options {
    /// The file to make; it must not be there yet
    #[arg(value_name = "FILE")]
    to: PathBuf,
    /// The server: an address, or unix:/path
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    server: ListenAddr,
    /// The file of an administrator's key
    #[arg(long, value_name = "FILE", default_value = "./data/admin.key")]
    key_file: PathBuf,
}

/// Fetches a backup and says what it holds. A signal ends it, and leaves nothing behind.
pub(super) fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let server = Server { addr: options.server, key_file: options.key_file };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fetched = runtime.block_on(async {
        let mut signals = Signals::listen(&[Caught::Terminate, Caught::Interrupt, Caught::Hangup])?;
        tokio::select! {
            fetched = backup(&server, &options.to) => Ok::<_, Box<dyn Error>>(fetched?),
            _ = signals.next() => Err("interrupted; there is no backup".into()),
        }
    })?;
    println!(
        "{}: {} keys at revision {}, {} bytes, read back and whole",
        options.to.display(),
        fetched.keys,
        fetched.revision,
        fetched.bytes
    );
    Ok(())
}
