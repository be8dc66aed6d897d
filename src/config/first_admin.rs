//! Where the key of the first administrator comes from.

use std::fs;
use std::path::{Path, PathBuf};

use keyward_core::digest::Digest;
use keyward_core::secret::PresentedSecret;
use zeroize::Zeroizing;

use crate::util::files::exposed_mode;

/// A secret is a line of at most 256 bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024;
/// What the secrets of tenant `system` begin with.
pub const SECRET_HEAD: &str = "kw_live_";

/// Where the key of the first administrator comes from. It matters at the first start only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstAdmin {
    /// It is made at the first start and written to `<data_dir>/admin.key`.
    Made,
    /// `bootstrap_admin_file`: a file with its secret.
    File(PathBuf),
    /// `bootstrap_admin_digest`: the digest of its secret by the first pepper of the pepper file.
    Digest(Digest),
}

/// Why a key that was made before cannot be the first administrator's.
#[derive(Debug, thiserror::Error)]
pub enum FirstAdminError {
    /// The file cannot be used.
    #[error("bootstrap_admin_file {path}: {what}")]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The digest is by a pepper that does not exist.
    #[error(
        "bootstrap_admin_digest was made with a pepper, and the pepper file {path} is not there: put it in place, or \
         nobody could ever be the administrator"
    )]
    NoPepper {
        /// Where it should be.
        path: PathBuf,
    },
}

impl FirstAdmin {
    /// Whether a first start could go on with it. Nothing is made.
    ///
    /// # Errors
    /// When it could not.
    pub fn check(&self, pepper_file: &Path) -> Result<(), FirstAdminError> {
        match self {
            Self::File(path) => read_secret(path, |_| ()),
            Self::Digest(_) if !pepper_file.exists() => Err(FirstAdminError::NoPepper { path: pepper_file.to_owned() }),
            Self::Made | Self::Digest(_) => Ok(()),
        }
    }
}

/// Does something with the secret in a file, which has nothing else.
///
/// # Errors
/// When the file cannot be read or may be read by others, or has no secret.
pub fn read_secret<T>(path: &Path, with: impl FnOnce(&PresentedSecret<'_>) -> T) -> Result<T, FirstAdminError> {
    let wrong = |what: String| FirstAdminError::File { path: path.to_owned(), what };
    let found = fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    // A pipe or a device might never end.
    if !found.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    if let Some(mode) = exposed_mode(&found) {
        return Err(wrong(format!(
            "it may be read by others or written by a group (mode {mode:o}): chmod 600 it, or 640 for a group that \
             reads it"
        )));
    }
    if found.len() > FILE_BYTES_MAX {
        return Err(no_secret(path));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
    let secret = PresentedSecret::parse(text.trim_end()).ok().filter(|secret| secret.head() == SECRET_HEAD);
    secret.map(|secret| with(&secret)).ok_or_else(|| no_secret(path))
}

fn no_secret(path: &Path) -> FirstAdminError {
    let what = format!("it must have one secret that begins with {SECRET_HEAD}, as `keyward make-secret` prints it");
    FirstAdminError::File { path: path.to_owned(), what }
}
