//! Measures parts of the server in this process, without a wire. Results are JSON on the standard output.
//!
//! ```text
//! inside decision [--keys N] [--rounds R]
//! inside index --keys N [--baselines-up-to N] [--known N] [--rounds R]
//! inside committer --dir DIR [--groups N] [--rounds R]
//! inside syncs --dir DIR --bytes N [--groups N]
//! ```
//!
//! ../../../README.md says what each of them is.

mod baselines;
mod committer;
mod decision;
mod index;
mod lookups;
mod syncs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use keyward_bench::world::Failure;

/// The server's: what is measured has the memory of the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What follows the name of a measurement: `--name value`.
struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(args: &[String]) -> Result<Self, Failure> {
        let pair = |pair: &[String]| match pair {
            [name, value] => Some((name.strip_prefix("--")?.to_owned(), value.clone())),
            _ => None,
        };
        let pairs: Option<_> = args.chunks(2).map(pair).collect();
        pairs.map(Self).ok_or_else(|| "options are pairs: --name value".into())
    }

    /// The value of an option, if it is there.
    fn get<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        Ok(self.0.remove(name).map(|value| value.parse()).transpose()?)
    }

    fn dir(&mut self) -> Result<PathBuf, Failure> {
        self.get("dir")?.ok_or_else(|| "--dir is missing".into())
    }

    fn end(self) -> Result<(), Failure> {
        match self.0.keys().next() {
            Some(unknown) => Err(format!("there is no option --{unknown}").into()),
            None => Ok(()),
        }
    }
}

fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let Some((what, rest)) = args.split_first() else {
        return Err("usage: inside <decision|index|committer|syncs> [--option value ...]".into());
    };
    let options = Options::parse(rest)?;
    let measured = match what.as_str() {
        "decision" => decision::measure(options)?,
        "index" => index::measure(options)?,
        "committer" => committer::measure(options)?,
        "syncs" => syncs::measure(options)?,
        _ => return Err(format!("nothing here is called {what}").into()),
    };
    println!("{measured:#}");
    Ok(())
}
