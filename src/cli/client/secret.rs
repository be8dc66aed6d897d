//! Secrets on their way in and out: files that are new and private, a prompt without an echo. Never an
//! argument: other processes can read those, and shells keep them.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use keyward_core::limits::SECRET_BYTES_MAX;
use zeroize::Zeroizing;

use super::super::failure::{Exit, Failure};
use crate::util::files::{private_options, sync_parent};
use crate::util::terminal::{Unseen, read_line};

/// A longer text is no secret: one byte is for the end of the line, and one more shows that there is too
/// much.
const READ_BYTES_MAX: usize = SECRET_BYTES_MAX + 2;

/// A new file for a secret, made before the secret is asked for, so that none is issued that has no place.
/// Without a secret it is removed.
#[derive(Debug)]
pub(in crate::cli) struct SecretFile {
    path: PathBuf,
    file: File,
    is_kept: bool,
}

impl SecretFile {
    /// Makes it. Only its owner may read it.
    pub(in crate::cli) fn create(path: &Path) -> Result<Self, Failure> {
        match private_options().write(true).create_new(true).open(path) {
            Ok(file) => Ok(Self { path: path.to_owned(), file, is_kept: false }),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(Failure::new(Exit::Usage, format!("--secret-file: {} exists already", path.display()))
                    .hint("nothing was issued; name a file that is not there yet"))
            }
            Err(error) => Err(Failure::new(Exit::Failed, format!("--secret-file: {}: {error}", path.display()))
                .hint("nothing was issued")),
        }
    }

    /// Writes the secret as one line, and keeps the file.
    pub(in crate::cli) fn keep(mut self, secret: &str) -> io::Result<()> {
        self.file.write_all(Zeroizing::new(format!("{secret}\n")).as_bytes())?;
        self.file.sync_all()?;
        self.is_kept = true;
        sync_parent(&self.path)
    }
}

impl Drop for SecretFile {
    fn drop(&mut self) {
        if !self.is_kept {
            drop(fs::remove_file(&self.path));
        }
    }
}

/// A secret is on the command line. It must not be repeated.
pub(in crate::cli) fn as_argument() -> Failure {
    Failure::new(Exit::Usage, "a secret is no argument: other processes see those, and shells keep them")
        .hint("keyward key find reads it from --secret-file FILE, from standard input (-), or asks for it")
        .hint("if it was the secret of a key that works, it is known now: issue another, and disable this one")
}

/// A secret from a file, `-` for standard input, or from the terminal, where it is typed unseen.
pub(in crate::cli) async fn ask_for_secret(file: Option<&Path>) -> Result<Zeroizing<String>, Failure> {
    let secret = match file {
        Some(path) if path == Path::new("-") => read(io::stdin().lock()),
        Some(path) => File::open(path).and_then(read),
        None if io::stdin().is_terminal() => {
            // Seen again when this is dropped, by a signal too.
            let _unseen = Unseen::begin();
            eprint!("Secret (it is not shown): ");
            let typed = tokio::task::spawn_blocking(|| read_line(READ_BYTES_MAX)).await;
            typed.map_err(io::Error::other).flatten()
        }
        None => {
            return Err(Failure::new(Exit::Usage, "there is no terminal to ask for the secret")
                .hint("name a file that has it: --secret-file FILE, or --secret-file - for standard input"));
        }
    };
    let whence = file.map_or_else(|| "the terminal".to_owned(), |path| path.display().to_string());
    let secret = secret.map_err(|error| Failure::new(Exit::Failed, format!("the secret in {whence}: {error}")))?;
    match secret.trim() {
        "" => Err(Failure::new(Exit::Usage, format!("there is no secret in {whence}"))),
        bare => Ok(Zeroizing::new(bare.to_owned())),
    }
}

/// All that is there, or more than a secret can have.
fn read(from: impl Read) -> io::Result<Zeroizing<String>> {
    // With its final capacity: a string that grows would leave copies behind.
    let mut text = Zeroizing::new(String::with_capacity(READ_BYTES_MAX));
    from.take(READ_BYTES_MAX as u64).read_to_string(&mut text)?;
    Ok(text)
}
