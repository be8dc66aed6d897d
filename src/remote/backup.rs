//! A backup, fetched from a running server.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tonic::metadata::MetadataValue;
use tonic::metadata::errors::InvalidMetadataValue;
use tonic::{Request, Status};
use zeroize::Zeroizing;

use super::tls::endpoint;
use super::{ClientTls, EndpointError, RemoteAddr, failed_call, root_cause};
use crate::grpc::pb;
use crate::grpc::pb::key_admin_client::KeyAdminClient;
use crate::offline::{Contents, OfflineError, SnapshotError, check_backup, check_backup_bytes};
use crate::util::files::NewFile;

/// How long connecting may take.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a connection is silent before it is probed.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);
/// How long the answer to a probe may take.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// A server, and the caller's key.
#[derive(Debug)]
pub struct Server {
    /// Its address.
    pub addr: RemoteAddr,
    /// How to encrypt. `None`: not at all.
    pub tls: Option<ClientTls>,
    /// The file of the caller's key: one line.
    pub key_file: PathBuf,
    /// The format of the backup; 0 for the newest.
    pub format: u32,
}

/// A backup that was fetched.
#[derive(Debug)]
pub struct Fetched {
    /// Its revision.
    pub revision: u64,
    /// The number of its keys.
    pub keys: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// Why a backup failed.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The file exists already.
    #[error("{0} exists already; a backup never overwrites anything")]
    Exists(PathBuf),
    /// The key file cannot be read.
    #[error("the key file {path}: {source}; name a file that has a key with the role keyward.backup or keyward.admin")]
    KeyFile {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The key file does not hold a key.
    #[error("the key file holds no key: {0}")]
    Key(#[from] InvalidMetadataValue),
    /// No connection can be tried.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The server cannot be reached.
    #[error("no server answers at {addr}: {}", root_cause(source))]
    Connect {
        /// Its address.
        addr: RemoteAddr,
        /// What happened.
        source: tonic::transport::Error,
    },
    /// The server answered with an error, perhaps after a part of the backup, or the connection broke.
    #[error("{}", failed_call(.0))]
    Refused(#[from] Status),
    /// The file cannot be written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// The backup in the file is damaged or not whole.
    #[error(transparent)]
    Damaged(#[from] OfflineError),
    /// The backup on the output is damaged or not whole.
    #[error("what was written is not a whole backup: {0}")]
    NotWhole(#[from] SnapshotError),
    /// The output cannot be written.
    #[error("the backup cannot be written to where it should go: {0}")]
    Output(io::Error),
}

/// Fetches a backup into a file. The file appears once it is whole, durable and has been read back, or not at
/// all, even if the future is dropped.
///
/// # Errors
/// See [`RemoteError`].
pub async fn backup(server: &Server, to: &Path) -> Result<Fetched, RemoteError> {
    let of_file = |source| RemoteError::File { path: to.to_owned(), source };
    if to.try_exists().map_err(of_file)? {
        return Err(RemoteError::Exists(to.to_owned()));
    }
    let pieces = request_backup(server).await?;
    let mut file = NewFile::create(to).map_err(of_file)?;
    let fetched = receive(pieces, &mut file, to).await?;
    file.commit().map_err(of_file)?;
    Ok(fetched)
}

async fn request_backup(server: &Server) -> Result<tonic::Streaming<pb::BackupResponse>, RemoteError> {
    let of_key = |source| RemoteError::KeyFile { path: server.key_file.clone(), source };
    let key = Zeroizing::new(fs::read_to_string(&server.key_file).map_err(of_key)?);
    let mut credential = MetadataValue::try_from(&*Zeroizing::new(format!("Bearer {}", key.trim())))?;
    credential.set_sensitive(true);
    let of_addr = |source| RemoteError::Connect { addr: server.addr.clone(), source };
    let endpoint = endpoint(&server.addr, server.tls.as_ref())?.connect_timeout(CONNECT_TIME_MAX);
    let endpoint = endpoint.http2_keep_alive_interval(KEEPALIVE_INTERVAL).keep_alive_timeout(KEEPALIVE_TIMEOUT);
    let channel = endpoint.connect().await.map_err(of_addr)?;
    let mut request = Request::new(pb::BackupRequest { format: server.format });
    request.metadata_mut().insert("authorization", credential);
    Ok(KeyAdminClient::new(channel).backup(request).await?.into_inner())
}

async fn receive(
    mut pieces: tonic::Streaming<pb::BackupResponse>,
    file: &mut NewFile,
    to: &Path,
) -> Result<Fetched, RemoteError> {
    let of_file = |source| RemoteError::File { path: to.to_owned(), source };
    let (mut revision, mut bytes) = (0, 0);
    while let Some(response) = pieces.message().await? {
        file.write_all(&response.piece).map_err(of_file)?;
        (revision, bytes) = (response.revision, bytes + response.piece.len() as u64);
    }
    // From the file, not from memory.
    let contents = check_backup(file.sync().map_err(of_file)?)?;
    Ok(Fetched { revision, keys: contents.keys, bytes })
}

/// Fetches a backup and writes it to `out` as it comes. It is checked meanwhile; after an error, what was
/// written is useless.
///
/// # Errors
/// See [`RemoteError`].
pub async fn backup_to(server: &Server, out: impl Write + Send + 'static) -> Result<Fetched, RemoteError> {
    let mut pieces = request_backup(server).await?;
    let (checked, check) = io::pipe().map_err(RemoteError::Output)?;
    let checking = spawn_blocking(move || check_to_end(checked));
    let mut outputs = (out, check);
    let (mut revision, mut bytes) = (0, 0);
    while let Some(response) = pieces.message().await? {
        (revision, bytes) = (response.revision, bytes + response.piece.len() as u64);
        // Both may block, and a signal must be handled meanwhile.
        let written = spawn_blocking(move || {
            outputs.0.write_all(&response.piece)?;
            outputs.0.flush()?;
            outputs.1.write_all(&response.piece)?;
            Ok(outputs)
        });
        outputs = written.await.map_err(io::Error::other).flatten().map_err(RemoteError::Output)?;
    }
    drop(outputs);
    let contents = checking.await.map_err(|panic| RemoteError::Output(io::Error::other(panic)))??;
    Ok(Fetched { revision, keys: contents.keys, bytes })
}

/// Checks what comes through a pipe. It is read to its end even if it is damaged, so that the writer does not
/// block.
fn check_to_end(mut pipe: io::PipeReader) -> Result<Contents, SnapshotError> {
    let checked = check_backup_bytes(&mut pipe);
    io::copy(&mut pipe, &mut io::sink())?;
    checked
}
