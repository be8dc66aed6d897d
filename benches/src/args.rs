//! Arguments of a program: pairs of `--name value`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use crate::fixture::Failure;

/// The pairs that were not asked for yet.
pub struct Args(BTreeMap<String, String>);

impl Args {
    /// Reads the pairs.
    ///
    /// # Errors
    /// When they are none.
    pub fn parse(args: &[String]) -> Result<Self, Failure> {
        let pair = |pair: &[String]| match pair {
            [name, value] => Some((name.strip_prefix("--")?.to_owned(), value.clone())),
            _ => None,
        };
        let pairs: Option<_> = args.chunks(2).map(pair).collect();
        pairs.map(Self).ok_or_else(|| "options are pairs: --name value".into())
    }

    /// The value of an option, if it is there.
    ///
    /// # Errors
    /// When it is no value of its kind.
    pub fn get<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &mut self,
        name: &str,
    ) -> Result<Option<T>, Failure> {
        Ok(self.0.remove(name).map(|value| value.parse()).transpose()?)
    }

    /// The value of an option that must be there.
    ///
    /// # Errors
    /// When it is missing, or no value of its kind.
    pub fn need<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(
        &mut self,
        name: &str,
    ) -> Result<T, Failure> {
        self.get(name)?.ok_or_else(|| format!("--{name} is missing").into())
    }

    /// The directory to work in.
    ///
    /// # Errors
    /// When it is missing.
    pub fn dir(&mut self) -> Result<PathBuf, Failure> {
        self.need("dir")
    }

    /// Says that there are no more options.
    ///
    /// # Errors
    /// When there are.
    pub fn end(self) -> Result<(), Failure> {
        match self.0.keys().next() {
            Some(unknown) => Err(format!("there is no option --{unknown}").into()),
            None => Ok(()),
        }
    }
}
