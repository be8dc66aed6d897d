//! The pepper file: the secrets that the authority itself keeps.
//!
//! ```text
//! # Keyward's own secrets. ...
//! root 64 hex digits
//! pepper 64 hex digits
//! ```
//!
//! The first pepper keys new digests; those after it are retired, and old keys are still found under them.
//! From the root come the key of the journal's chain and the key that seals page tokens, so that peppers can
//! change while those stay.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER_PERMISSIVE;
use keyward_core::digest::{Pepper, PepperRing};
use keyward_core::entropy::{Entropy, EntropyError};
use zeroize::Zeroizing;

use crate::util::files::write_durably;

/// The file is a few lines; a longer one is something else.
const FILE_BYTES_MAX: u64 = 64 * 1024;

const HEADING: &str = "\
# Keyward's own secrets. Keep a copy apart from the data: without this file no key verifies any more.
# The first pepper keys new digests. To rotate it, put a new 'pepper' line before the others and keep the old ones.
";

/// What the pepper file holds.
pub struct Keyring {
    /// The peppers.
    pub peppers: PepperRing,
    root: Zeroizing<[u8; 32]>,
}

/// Why the keyring cannot be opened. The messages name the file and the line, never their contents.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The file cannot be read or written.
    #[error("the pepper file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The file is gone and keys depend on it.
    #[error(
        "the pepper file {path} is missing, and the keys of this data verify only with it: put it back, or point \
         --pepper-file at it"
    )]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// A line is not of the form.
    #[error("the pepper file {path}, line {line}: {what}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// The file as a whole is not of the form.
    #[error("the pepper file {path} must have one 'root' line and 1 to 4 'pepper' lines")]
    Incomplete {
        /// The file.
        path: PathBuf,
    },
    /// Others may read the file.
    #[error("the pepper file {path} may be read by others (mode {mode:o}): chmod 600 it")]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// No randomness.
    #[error(transparent)]
    Entropy(#[from] EntropyError),
}

impl Keyring {
    /// Reads the file; makes it, with fresh secrets, if it is missing and `may_create`.
    ///
    /// # Errors
    /// When the file cannot be read or created, or is malformed. See [`KeyringError`].
    pub fn open(path: &Path, may_create: bool, entropy: &dyn Entropy) -> Result<Self, KeyringError> {
        let io = |source| KeyringError::Io { path: path.to_owned(), source };
        match fs::metadata(path) {
            Ok(found) if found.len() > FILE_BYTES_MAX => Err(KeyringError::Incomplete { path: path.to_owned() }),
            // A group may read it: secret volumes are mounted that way for a process that is not root.
            Ok(found) if found.permissions().mode() & 0o007 != 0 => {
                Err(KeyringError::Exposed { path: path.to_owned(), mode: found.permissions().mode() & 0o777 })
            }
            Ok(_) => Self::parse(path, &Zeroizing::new(fs::read_to_string(path).map_err(io)?)),
            Err(missing) if missing.kind() == io::ErrorKind::NotFound && may_create => {
                let text = Self::fresh(entropy)?;
                write_durably(path, text.as_bytes()).map_err(io)?;
                tracing::info!(path = %path.display(), "made a new pepper file; keep a copy apart from the data");
                Self::parse(path, &text)
            }
            Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
                Err(KeyringError::Missing { path: path.to_owned() })
            }
            Err(error) => Err(io(error)),
        }
    }

    /// The key of the journal's chain.
    #[must_use]
    pub fn chain_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key("keyward 2026-11-23 journal chain v1", &*self.root))
    }

    /// The key that seals page tokens.
    #[must_use]
    pub fn page_token_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key("keyward 2026-11-23 page token v1", &*self.root))
    }

    fn fresh(entropy: &dyn Entropy) -> Result<Zeroizing<String>, EntropyError> {
        let mut text = Zeroizing::new(String::with_capacity(1_024));
        text.push_str(HEADING);
        for name in ["root", "pepper"] {
            let mut secret = Zeroizing::new([0; 32]);
            entropy.fill(&mut *secret)?;
            let hex = Zeroizing::new(HEXLOWER_PERMISSIVE.encode(&*secret));
            // Writing to a string does not fail.
            let _ = writeln!(text, "{name} {}", *hex);
        }
        Ok(text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, KeyringError> {
        let (mut root, mut peppers) = (None, Vec::new());
        for (number, line) in text.lines().enumerate() {
            let wrong = |what| KeyringError::Line { path: path.to_owned(), line: number + 1, what };
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hex) = line.split_once(' ').ok_or_else(|| wrong("must be a name, a space and 64 hex digits"))?;
            let secret = secret_of(hex.trim()).ok_or_else(|| wrong("must have 64 hex digits after the name"))?;
            match name {
                "root" if root.is_some() => return Err(wrong("there is a 'root' line already")),
                "root" => root = Some(secret),
                "pepper" => peppers.push(Pepper::new(secret)),
                _ => return Err(wrong("must begin with 'root' or 'pepper'")),
            }
        }
        match (root, PepperRing::new(peppers)) {
            (Some(root), Some(peppers)) => Ok(Self { peppers, root }),
            _ => Err(KeyringError::Incomplete { path: path.to_owned() }),
        }
    }
}

fn secret_of(hex: &str) -> Option<Zeroizing<[u8; 32]>> {
    let mut secret = Zeroizing::new([0; 32]);
    let fits = hex.len() == 64 && HEXLOWER_PERMISSIVE.decode_mut(hex.as_bytes(), &mut *secret).is_ok();
    fits.then_some(secret)
}
