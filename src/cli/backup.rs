//! `keyward backup`.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};

use clap::Args;

use super::tls::TlsArgs;
use crate::remote::{RemoteAddr, Server, backup, backup_to};
use crate::server::lifecycle::{Caught, Signals};

#[derive(Debug, Args)]
pub(super) struct BackupArgs {
    /// The file to make, which must not be there yet; - is standard output
    #[arg(value_name = "FILE")]
    to: PathBuf,
    /// The server: a host or an address with a port, or unix:/path
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    server: RemoteAddr,
    /// The file of a key with the role keyward.backup or keyward.admin
    #[arg(long, value_name = "FILE", default_value = "./data/admin.key")]
    key_file: PathBuf,
    /// The format: 1 for programs before format 2, which fails if there is anything that it cannot have
    #[arg(long, value_name = "NUMBER", default_value = "2", value_parser = clap::value_parser!(u32).range(1..=2))]
    format: u32,
    #[command(flatten)]
    tls: TlsArgs,
}

/// Fetches a backup and prints a summary. After a signal nothing is left behind.
pub(super) fn run(args: BackupArgs) -> Result<(), Box<dyn Error>> {
    let BackupArgs { to, server: addr, key_file, format, tls } = args;
    let tls = tls.read();
    let to_stdout = to == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err("a backup is no text for a terminal: send it to a file or a program".into());
    }
    if !addr.is_local() && tls.is_none() {
        eprintln!(
            "keyward: the key and the backup go to {addr} unencrypted, unless something in between encrypts \
             (--tls, --ca)"
        );
    }
    let server = Server { addr, tls, key_file, format };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fetching = async {
        let mut signals = Signals::listen(&[Caught::Terminate, Caught::Interrupt, Caught::Hangup])?;
        let fetched =
            async { if to_stdout { backup_to(&server, io::stdout()).await } else { backup(&server, &to).await } };
        tokio::select! {
            fetched = fetched => Ok::<_, Box<dyn Error>>(fetched?),
            _ = signals.next() => Err("interrupted; there is no backup".into()),
        }
    };
    let fetched = runtime.block_on(fetching);
    // After a signal, the thread that checks the backup is not waited for.
    runtime.shutdown_background();
    let fetched = fetched?;
    let (keys, revision, bytes) = (fetched.keys, fetched.revision, fetched.bytes);
    let holds = format!("{keys} keys at revision {revision}, {bytes} bytes");
    if to_stdout {
        eprintln!("{holds}, checked on the way");
    } else {
        println!("{}: {holds}, read back and whole", to.display());
    }
    Ok(())
}
