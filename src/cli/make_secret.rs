//! `keyward make-secret` and `keyward digest`: the key of an administrator that is made before the first
//! start.

use std::error::Error;
use std::io::{self, Read, Write};
use std::path::PathBuf;

use clap::Args;
use data_encoding::HEXLOWER;
use keyward_core::id::{Environment, SecretPrefix};
use keyward_core::limits::SECRET_BYTES_MAX;
use keyward_core::secret::{IssuedSecret, PresentedSecret};
use zeroize::Zeroizing;

use crate::offline;
use crate::util::system::SystemEntropy;

#[derive(Debug, Args)]
pub(super) struct DigestArgs {
    /// The file of Keyward's own secrets, whose first pepper keys the digest
    #[arg(long, value_name = "FILE")]
    pepper_file: PathBuf,
}

/// Prints a new secret. Standard output has nothing else, so that it can be redirected to a file.
pub(super) fn make_secret() -> Result<(), Box<dyn Error>> {
    let secret = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &SystemEntropy)?;
    let line = Zeroizing::new(format!("{}\n", *secret.reveal()));
    let mut out = io::stdout();
    out.write_all(line.as_bytes())?;
    Ok(out.flush()?)
}

/// Prints the digest of the secret on standard input.
pub(super) fn digest(args: DigestArgs) -> Result<(), Box<dyn Error>> {
    // With its final capacity: a string that grows would leave copies behind. One byte is for the end of the
    // line, and one more shows that there is too much.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_BYTES_MAX + 2));
    io::stdin().take(SECRET_BYTES_MAX as u64 + 2).read_to_string(&mut text)?;
    let secret = PresentedSecret::parse(text.trim_end())
        .map_err(|_| "standard input must be one secret, as `keyward make-secret` prints it")?;
    let digest = offline::digest(&args.pepper_file, &secret)?;
    Ok(writeln!(io::stdout(), "{}", HEXLOWER.encode(digest.as_bytes()))?)
}
