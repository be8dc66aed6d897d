//! Offline operations on a data directory: check, rebuild, restore, create an administrator. Like
//! [`crate::app`], this module composes others and names an engine.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::digest::Digest;
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, KeyId};
use keyward_core::record::AuditStamp;
use keyward_core::secret::PresentedSecret;

use crate::authority::{AuthorityError, KeyMinter};
use crate::config::Settings;
use crate::config::first_admin::FirstAdminError;
use crate::keyring::{Keyring, KeyringError};
use crate::server::addr::ListenAddr;
use crate::server::tls::reload::Tls;
use crate::store::Bounds;
use crate::store::local::checkpoint::snapshot;
use crate::store::local::disk_space::free_bytes;
use crate::store::local::journal::scan::{Piece, scan_between, segment_numbers, segment_path, segment_start};
use crate::store::local::journal::{ChainKey, Position};
use crate::store::local::recovery::inspect::inspect;
use crate::store::local::recovery::offline_append::{MintError, OfflineLog};
use crate::store::local::recovery::restore::{RestoreError, Restored, restore};
use crate::store::local::recovery::salvage::{Salvaged, Unproven, preview, salvage};
use crate::store::local::{BackupLimits, Expectations, LocalStore, LockedDir, OpenError, Retention, StoreOptions};
use crate::store::record::pb;
use crate::util::files::with_path;
use crate::util::system::{SystemClock, SystemEntropy};

pub use crate::store::local::checkpoint::snapshot::{Contents, SnapshotError};
pub use crate::store::local::recovery::inspect::Inspected;
pub use crate::store::local::recovery::offline_append::ByState;
pub use crate::store::local::recovery::restore::{Source, rfc3339};

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The data directory is not opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Acknowledged changes are missing.
    #[error(
        "{loss}\nNothing was changed. If it cannot be put back, `keyward rebuild --accept-data-loss` gathers what can be had, says \
         what is gone, and moves the old files aside{}", .unproven.warning()
    )]
    Loss {
        /// Which.
        loss: OpenError,
        /// What cannot be shown to be of this log.
        unproven: Box<Unproven>,
    },
    /// The pepper file cannot be read.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key that was made before cannot be the first administrator's.
    #[error(transparent)]
    FirstAdmin(#[from] FirstAdminError),
    /// The backup cannot be used.
    #[error("{path}: {source}")]
    Backup {
        /// The backup.
        path: PathBuf,
        /// What is wrong with it.
        source: SnapshotError,
    },
    /// Nothing was restored.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// No administrator was made.
    #[error(transparent)]
    Mint(#[from] MintError),
    /// No key can be made.
    #[error(transparent)]
    Issue(#[from] AuthorityError),
    /// The new secret cannot be stored.
    #[error("the new key cannot be written to where it should go: {0}; nothing was changed")]
    Keep(io::Error),
}

/// A new administrator.
#[derive(Debug)]
pub struct Minted {
    /// Its id, in tenant `system`.
    pub key_id: KeyId,
    /// The revision at which it exists.
    pub revision: Revision,
}

/// What an operator accepts if the data is not intact.
#[derive(Clone, Copy, Debug, Default)]
pub struct AcceptedLoss {
    /// To continue without missing acknowledged changes.
    pub data_loss: bool,
    /// To take unproven changes too.
    pub unproven: bool,
}

/// How a rebuild went.
#[derive(Debug)]
pub enum Rebuilt {
    /// Nothing was missing: the table covers this revision.
    Whole(Revision),
    /// Data was lost.
    Salvaged(Salvaged),
}

/// Reads and checks a data directory, and compares its journal with [`Settings::expect_head`].
///
/// # Errors
/// When it cannot be read.
pub fn check(settings: &Settings) -> Result<Inspected, OfflineError> {
    let dir = LockedDir::lock_to_read(&settings.data_dir)?;
    let options = options(settings)?;
    Ok(inspect(&dir, &ChainKey(options.chain_key), settings.expect_head)?)
}

/// Checks the files and directories that settings name, and returns what a start would refuse. Nothing is
/// locked or written.
#[must_use]
pub fn check_files(settings: &Settings) -> Vec<String> {
    let listeners = settings.listeners();
    let addrs = listeners.iter().map(|listener| &listener.address).chain(&settings.ops_listen);
    let sockets = addrs.filter_map(|addr| match addr {
        ListenAddr::Unix(path) => check_socket(path).err(),
        ListenAddr::Tcp(_) | ListenAddr::Passed(_) => None,
    });
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let files = listeners.iter().filter_map(|listener| listener.tls.as_ref()).chain(&settings.tls);
    let tls = files.filter_map(|files| Tls::check(files, &clock).err());
    let tls: BTreeSet<_> = tls.map(|error| error.to_string()).collect();
    let data = check_data_dir(settings);
    data.err().map(|error| error.to_string()).into_iter().chain(sockets).chain(tls).collect()
}

fn check_data_dir(settings: &Settings) -> Result<(), OfflineError> {
    let (dir, pepper) = (&*settings.data_dir, &*settings.pepper_file);
    let is_dir = match fs::metadata(dir) {
        Ok(found) if !found.is_dir() => {
            return Err(OfflineError::Open(OpenError::NotADirectory { dir: dir.to_owned() }));
        }
        Ok(_) => true,
        // The start creates it, with its parents.
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => return Err(OpenError::from(with_path(dir)(error)).into()),
    };
    let has_data = is_dir && LockedDir::holds_data(dir)?;
    if !has_data {
        settings.first_admin.check(pepper)?;
    }
    match Keyring::open(pepper, false, &SystemEntropy) {
        Err(KeyringError::Missing { .. }) if !has_data => Ok(()),
        opened => Ok(opened.map(drop)?),
    }
}

fn check_socket(path: &Path) -> Result<(), String> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(format!("{} is to have a socket, and is no directory that can be entered", parent.display()));
    }
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(format!("{} is there, and no socket", path.display())),
        _ => Ok(()),
    }
}

/// Checks a backup. It needs no pepper file, and detects damage only.
///
/// # Errors
/// When it is damaged.
pub fn check_backup(path: &Path) -> Result<Contents, OfflineError> {
    snapshot::verify_without_key(path).map_err(|source| OfflineError::Backup { path: path.to_owned(), source })
}

/// As [`check_backup`], for bytes from any source.
///
/// # Errors
/// When they are damaged, or cannot be read.
pub fn check_backup_bytes(input: impl Read) -> Result<Contents, SnapshotError> {
    snapshot::verify_bytes_without_key(input)
}

/// A change, as recorded in the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JournalLine {
    /// Its revision.
    pub revision: Revision,
    /// When.
    pub time: UnixMillis,
    /// Who: the `key_id` of the caller's key, the identity of a caller without one, or `keyward` for the
    /// program itself.
    pub actor: String,
    /// The call.
    pub method: String,
    /// What it was done to: `tenant/key_id` or `tenant`.
    pub target: String,
    /// The address that it was asked for from. Empty: a Unix socket, or it is not known.
    pub peer: String,
    /// What the connection of a caller with a key proved besides. Empty: nothing, or it is not known.
    pub identity: String,
    /// The caller's name for the request. Empty: none.
    pub request_id: String,
}

/// Reads the journal's records of some revisions, in order, and returns the first revision of the journal.
/// Changes nothing. What was passed on before an error is valid.
///
/// # Errors
/// When the directory is in use or has no data, the pepper file is not its own, or the journal is damaged.
pub fn journal(
    settings: &Settings,
    wanted: RangeInclusive<Revision>,
    mut visit: impl FnMut(JournalLine),
) -> Result<Revision, OfflineError> {
    let dir = LockedDir::lock_to_read(&settings.data_dir)?;
    let key = ChainKey(keyring(settings)?.chain_key());
    let (first, last) = wanted.into_inner();
    let until = (last < Revision(u64::MAX)).then_some(last);
    let after = Revision(first.0.saturating_sub(1));
    let read = scan_between(&dir.journal(), &key, after, until, |read: Piece<pb::JournalEntry>| {
        let Piece::Entries(entries, _) = read else { return };
        for entry in entries.into_iter().filter(|entry| (first.0..=last.0).contains(&entry.revision)) {
            visit(JournalLine {
                revision: Revision(entry.revision),
                time: UnixMillis(entry.time_ms),
                actor: entry.actor,
                method: entry.method,
                target: entry.target,
                peer: entry.peer,
                identity: entry.identity,
                request_id: entry.request_id,
            });
        }
    });
    read.map_err(OpenError::from)?;
    let begins = segment_numbers(&dir.journal()).map_err(OpenError::from)?.first().copied();
    let begins = begins.map(|number| segment_start(&segment_path(&dir.journal(), number))).transpose();
    Ok(begins.map_err(OpenError::from)?.unwrap_or(Position::START).revision.next())
}

/// Rebuilds the table. If acknowledged changes are missing, only if their loss is accepted.
///
/// # Errors
/// When the disk fails, or changes are missing and that is not accepted.
pub fn rebuild(settings: &Settings, accepted: AcceptedLoss) -> Result<Rebuilt, OfflineError> {
    let dir = LockedDir::lock_existing(&settings.data_dir)?;
    let options = options(settings)?;
    match LocalStore::rebuild(&dir, &options) {
        Ok(revision) => Ok(Rebuilt::Whole(revision)),
        Err(loss) if loss.is_loss() && accepted.data_loss => {
            tracing::warn!("{loss}");
            let salvaged = salvage(&dir, &options, accepted.unproven)?;
            LocalStore::rebuild(&dir, &options)?;
            Ok(Rebuilt::Salvaged(salvaged))
        }
        Err(loss) if loss.is_loss() => Err(OfflineError::Loss { loss, unproven: Box::new(preview(&dir, &options)?) }),
        Err(error) => Err(error.into()),
    }
}

/// Restores a backup into an empty data directory and builds its table, all or nothing.
///
/// When backup, journal or pepper file cannot be used, the directory is not empty, or the disk fails.
pub fn restore_backup(settings: &Settings, source: &Source) -> Result<Restored, OfflineError> {
    // Before anything is created, so that a missing pepper file can be added while the directory is empty.
    let keyring = keyring(settings)?;
    let dir = LockedDir::lock_empty(&settings.data_dir, Some(&settings.pepper_file))?;
    Ok(restore(&dir, &options_with(settings, &keyring), &|pepper| keyring.peppers.holds(pepper), source)?)
}

/// Adds a lasting administrator to a data directory, and changes nothing else. `keep` gets the secret before
/// the change is made and must put it where it stays: an administrator whose secret is lost would count as
/// one.
///
/// # Errors
/// When the directory is in use, damaged or empty, the pepper file is not its own, or the disk fails.
pub fn mint_administrator(
    settings: &Settings,
    keep: impl FnOnce(&str) -> io::Result<()>,
) -> Result<Minted, OfflineError> {
    let dir = LockedDir::lock_existing(&settings.data_dir)?;
    let keyring = keyring(settings)?;
    let log = OfflineLog::open(&dir, &options_with(settings, &keyring))?;
    let stamp = AuditStamp { time: SystemClock.now().max(log.latest_time()), actor: ActorId::keyward() };
    let minter = KeyMinter { peppers: &keyring.peppers, entropy: &SystemEntropy };
    let description = "Made offline by `keyward admin-key`. Replace it by a key of your own, and disable it.";
    let (key, secret) = minter.mint_administrator("Administrator made offline", description, &stamp)?;
    keep(&secret.reveal()).map_err(OfflineError::Keep)?;
    let key_id = key.key_id.clone();
    Ok(Minted { key_id, revision: log.append_key("MintAdministrator", key)? })
}

/// The digest of a secret by the first pepper of a pepper file.
///
/// # Errors
/// When the file cannot be read.
pub fn digest(pepper_file: &Path, secret: &PresentedSecret<'_>) -> Result<Digest, OfflineError> {
    let keyring = Keyring::open(pepper_file, false, &SystemEntropy)?;
    Ok(keyring.peppers.current().digest(secret))
}

fn options(settings: &Settings) -> Result<StoreOptions, KeyringError> {
    Ok(options_with(settings, &keyring(settings)?))
}

fn keyring(settings: &Settings) -> Result<Keyring, KeyringError> {
    Keyring::open(&settings.pepper_file, false, &SystemEntropy)
}

fn options_with(settings: &Settings, keyring: &Keyring) -> StoreOptions {
    StoreOptions {
        segment_bytes: settings.journal_segment_bytes,
        chain_key: keyring.chain_key(),
        retention: Retention { bytes: settings.journal_retention_bytes, time: settings.journal_retention_time },
        backup: BackupLimits { time: settings.backup_time_max, aside_bytes: settings.backup_aside_bytes_max },
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        // No change by a caller is made here.
        bounds: Bounds::NONE,
        free_bytes,
        // An expected head is for what is served. A rebuild uses the journal that is there; a restore or a
        // salvage begins another log.
        expectations: Expectations { head: None, accept_watermark_loss: settings.accept_watermark_loss },
    }
}
