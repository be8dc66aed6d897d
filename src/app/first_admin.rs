//! The key of the first administrator: made at the first start and written to a file, or made before, and
//! given in a file or as a digest.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use keyward_core::record::{AuditStamp, KeyRecord};
use zeroize::Zeroizing;

use super::error::StartError;
use crate::authority::{Authority, KeyMinter};
use crate::config::first_admin::{FirstAdmin, SECRET_HEAD, read_secret};
use crate::util::files;

const NAME: &str = "Bootstrap administrator";
const ADVICE: &str = "Replace it by a key of your own, and disable it.";

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
            path = %path.display(),
            "the first administrator's key still lies beside the data; move it to a safe place, or replace it by a key of \
             your own, disable it and remove the file"
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
        FirstAdmin::File(path) => read_secret(path, |secret| (minter.peppers.current().digest(secret), secret.hint()))?,
        // Its last characters are not known.
        FirstAdmin::Digest(digest) => (*digest, format!("{SECRET_HEAD}…")),
    };
    Ok(minter.administrator_of((NAME, &format!("Given at the first start. {ADVICE}")), given, stamp)?)
}
