//! The key of the first administrator: made at the first start and written to a file, or made before, and
//! given in a file or as a digest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keyward_core::digest::{Digest, Pepper};
use keyward_core::record::{AuditStamp, KeyRecord};
use keyward_core::secret::PresentedSecret;
use zeroize::Zeroizing;

use super::error::StartError;
use crate::authority::{Authority, KeyMinter};
use crate::config::{FirstAdmin, Settings};
use crate::util::files;

/// A secret is a line of at most 256 bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024;
/// What the secrets of tenant `system` begin with.
const HEAD: &str = "kw_live_";
const NAME: &str = "Bootstrap administrator";
const ADVICE: &str = "Replace it by a key of your own, and disable it.";

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
        "bootstrap_admin_digest was made with a pepper, and the pepper file {path} is not there: put it in place, or nobody \
         could ever be the administrator"
    )]
    NoPepper {
        /// Where it should be.
        path: PathBuf,
    },
}

/// Looks at what is to become the first administrator, before anything is made in an empty data directory.
///
/// # Errors
/// When it cannot.
pub(super) fn check(settings: &Settings) -> Result<(), FirstAdminError> {
    match &settings.first_admin {
        FirstAdmin::Made => Ok(()),
        FirstAdmin::File(path) => read(path).map(drop),
        FirstAdmin::Digest(_) if settings.pepper_file.exists() => Ok(()),
        FirstAdmin::Digest(_) => Err(FirstAdminError::NoPepper { path: settings.pepper_file.clone() }),
    }
}

/// If the log is empty, makes the first administrator.
///
/// # Errors
/// When the secret cannot be read or kept, or the change not be made.
pub(super) async fn bootstrap(
    authority: &Authority,
    first_admin: &FirstAdmin,
    data_dir: &Path,
) -> Result<(), StartError> {
    let path = data_dir.join("admin.key");
    let make = |minter: &KeyMinter<'_>, stamp: &AuditStamp| make(first_admin, &path, minter, stamp);
    let is_first = authority.bootstrap(make).await?.is_some();
    match first_admin {
        FirstAdmin::Made if is_first => {
            tracing::info!(path = %path.display(), "wrote the first administrator's key; move it to a safe place");
        }
        FirstAdmin::Made => {}
        FirstAdmin::File(path) if is_first => {
            tracing::info!(path = %path.display(), "the secret in bootstrap_admin_file is the first administrator's");
        }
        FirstAdmin::Digest(_) if is_first => {
            tracing::info!("the secret behind bootstrap_admin_digest is the first administrator's");
        }
        FirstAdmin::File(_) => tracing::info!("bootstrap_admin_file is passed over: this is not the first start"),
        FirstAdmin::Digest(_) => tracing::info!("bootstrap_admin_digest is passed over: this is not the first start"),
    }
    let lies_there = fs::metadata(&path);
    if lies_there.is_ok() && !is_first {
        tracing::warn!(
            path = %path.display(), "the first administrator's key still lies beside the data; move it to a safe place, or replace it by \
                                     a key of your own, disable it and remove the file"
        );
    }
    if lies_there.is_ok_and(|found| found.permissions().mode() & 0o077 != 0) {
        tracing::warn!(path = %path.display(), "the administrator's key can be read by others: chmod 600 it");
    }
    Ok(())
}

/// The record of the first administrator. A secret that is made here is written to `path` first: if it were
/// lost, everyone would be locked out.
fn make(
    first_admin: &FirstAdmin,
    path: &Path,
    minter: &KeyMinter<'_>,
    stamp: &AuditStamp,
) -> Result<KeyRecord, StartError> {
    let given = match first_admin {
        FirstAdmin::Made => {
            let (key, secret) =
                minter.mint_administrator(NAME, &format!("Made at the first start. {ADVICE}"), stamp)?;
            let line = Zeroizing::new(format!("{}\n", *secret.reveal()));
            let written = files::write_durably(path, line.as_bytes());
            written.map_err(|source| StartError::DataDir { path: path.to_owned(), source })?;
            return Ok(key);
        }
        FirstAdmin::File(path) => {
            digest_and_hint(&read(path)?, minter.peppers.current()).ok_or_else(|| no_secret(path))?
        }
        // Its last characters are not known.
        FirstAdmin::Digest(digest) => (*digest, format!("{HEAD}…")),
    };
    Ok(minter.administrator_of((NAME, &format!("Given at the first start. {ADVICE}")), given, stamp)?)
}

fn digest_and_hint(text: &str, pepper: &Pepper) -> Option<(Digest, String)> {
    let secret = PresentedSecret::parse(text.trim_end()).ok()?;
    Some((pepper.digest(&secret), secret.hint()))
}

/// The contents of the file: one secret and nothing else.
fn read(path: &Path) -> Result<Zeroizing<String>, FirstAdminError> {
    let wrong = |what: String| FirstAdminError::File { path: path.to_owned(), what };
    let found = fs::metadata(path).map_err(|error| wrong(error.to_string()))?;
    // A pipe or a device might never end.
    if !found.is_file() {
        return Err(wrong("it is not a regular file".to_owned()));
    }
    let mode = found.permissions().mode();
    if mode & 0o027 != 0 {
        let mode = mode & 0o777;
        return Err(wrong(format!(
            "it may be read by others or written by a group (mode {mode:o}): chmod 600 it, or 640 for a group that reads it"
        )));
    }
    if found.len() > FILE_BYTES_MAX {
        return Err(no_secret(path));
    }
    let text = Zeroizing::new(fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?);
    let is_of_system = PresentedSecret::parse(text.trim_end()).is_ok_and(|secret| secret.head() == HEAD);
    if is_of_system { Ok(text) } else { Err(no_secret(path)) }
}

fn no_secret(path: &Path) -> FirstAdminError {
    let what = format!("it must have one secret that begins with {HEAD}, as `keyward make-secret` prints it");
    FirstAdminError::File { path: path.to_owned(), what }
}
