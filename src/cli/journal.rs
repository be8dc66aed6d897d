//! `keyward journal`.

use std::error::Error;
use std::io::{self, BufWriter, Write};

use clap::Args;
use keyward_core::event::Revision;

use super::DataArgs;
use crate::config::Flags;
use crate::offline::{JournalLine, OfflineError, journal, rfc3339};

#[derive(Debug, Args)]
pub(super) struct JournalArgs {
    /// The first revision to print
    #[arg(long, value_name = "REVISION", default_value_t = 1)]
    from: u64,
    /// The last revision to print [default: all that is there]
    #[arg(long, value_name = "REVISION")]
    to: Option<u64>,
    /// Only what was done to this: TENANT/KEY_ID, or TENANT for the tenant itself
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Only what this caller did: the key_id of a key of tenant system, an identity such as
    /// spiffe://prod.example/api or unix:1001, or keyward for the program itself
    #[arg(long, value_name = "ACTOR")]
    actor: Option<String>,
    #[command(flatten)]
    data: DataArgs,
}

/// Prints a line for each change: revision, time, actor, method, target, the caller's address, what their
/// connection proved beside their key, and their name for the request, with tabs between them. `-` stands for
/// none.
pub(super) fn run(args: JournalArgs) -> Result<(), Box<dyn Error>> {
    let (settings, _log) = args.data.settings(Flags::default())?;
    let is_wanted = |noted: &JournalLine| {
        args.target.as_ref().is_none_or(|target| *target == noted.target)
            && args.actor.as_ref().is_none_or(|actor| *actor == noted.actor)
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let mut written = Ok(());
    let last = args.to.map_or(Revision(u64::MAX), Revision);
    let begins = journal(&settings, Revision(args.from)..=last, |noted| {
        if written.is_ok() && is_wanted(&noted) {
            let JournalLine { revision, time, actor, method, target, peer, identity, request_id } = &noted;
            let [peer, identity, request_id] =
                [peer, identity, request_id].map(|text| if text.is_empty() { "-" } else { text });
            written = writeln!(
                out,
                "{revision}\t{}\t{actor}\t{method}\t{target}\t{peer}\t{identity}\t{request_id}",
                rfc3339(*time)
            );
        }
    });
    let written = written.and_then(|()| out.flush());
    // What was printed is sound, even if something after it is damaged.
    let begins = begins.map_err(|error: OfflineError| error.to_string())?;
    match written {
        // The reader, such as `head`, has closed the pipe.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
        other => other?,
    }
    if begins.0 > args.from {
        eprintln!(
            "keyward: the journal begins with revision {begins}; what was before it has gone (journal_retention_time)"
        );
    }
    Ok(())
}
