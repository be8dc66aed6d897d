//! Measures parts of the server in this process, without a wire. Results are JSON on the standard output.
//!
//! ```text
//! in_process decision [--keys N] [--rounds R]
//! in_process index --keys N [--baselines-up-to N] [--known N] [--rounds R]
//! in_process committer --dir DIR [--groups N] [--rounds R]
//! in_process holds --dir DIR [--keys N] [--holders N] [--rounds R]
//! in_process syncs --dir DIR --bytes N [--groups N]
//! ```
//!
//! ../../../README.md says what each of them is.

mod baselines;
mod committer;
mod decision;
mod holds;
mod index;
mod lookups;
mod syncs;

use keyward_bench::args::Args;
use keyward_bench::fixture::Failure;
use mimalloc::MiMalloc;
use zeroizing_alloc::ZeroAlloc;

/// The server's: what is measured has the memory of the server.
#[global_allocator]
static ALLOCATOR: ZeroAlloc<MiMalloc> = ZeroAlloc(MiMalloc);

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let Some((what, rest)) = args.split_first() else {
        return Err("usage: in_process <decision|index|committer|holds|syncs> [--option value ...]".into());
    };
    let options = Args::parse(rest)?;
    let measured = match what.as_str() {
        "decision" => decision::measure(options)?,
        "index" => index::measure(options)?,
        "holds" => holds::measure(options)?,
        "committer" => committer::measure(options)?,
        "syncs" => syncs::measure(options)?,
        _ => return Err(format!("nothing here is called {what}").into()),
    };
    println!("{measured:#}");
    Ok(())
}
