//! Why a server does not start.

use std::io;
use std::path::PathBuf;

use grpc_h2::LimitsError;

use crate::authority::AuthorityError;
use crate::config::first_admin::FirstAdminError;
use crate::keyring::KeyringError;
use crate::server::addr::ListenAddr;
use crate::server::tls::TlsError;
use crate::store::StoreError;
use crate::store::engine::EngineError;
use crate::util::files;

/// Why a server does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The storage engine cannot be locked or opened.
    #[error("{0}{advice}", advice = advice(.0))]
    Engine(#[from] EngineError),
    /// The pepper file cannot be read or made.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key that was made before cannot be the first administrator's.
    #[error(transparent)]
    FirstAdmin(#[from] FirstAdminError),
    /// The threads that serve connections cannot be started.
    #[error(
        "cannot start {count} threads to serve on: {source}; {what}, or set serving_threads \
         (KEYWARD_SERVING_THREADS) to fewer",
        what = files::resource_limit(source).unwrap_or("look after the system")
    )]
    Threads {
        /// How many were wanted.
        count: usize,
        /// What happened.
        source: io::Error,
    },
    /// The data directory cannot be made or written.
    #[error("the data directory {path}: {source}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: ListenAddr,
        /// What happened.
        source: io::Error,
    },
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A socket that was passed to the process can be reached from other machines, and nothing encrypts
    /// there.
    #[error(
        "{passed} is a socket on {addr}, which can be reached from other machines, and keys would cross the network \
         unencrypted; give it TLS, or pass --allow-plaintext if something in between encrypts"
    )]
    Unencrypted {
        /// Its name.
        passed: ListenAddr,
        /// Its address.
        addr: ListenAddr,
    },
    /// The address for probes and metrics cannot be listened on.
    #[error(
        "cannot listen on {addr} for probes and metrics: {source}; set ops_listen (--ops-listen, KEYWARD_OPS_LISTEN) to \
         another address, or to off"
    )]
    OpsListen {
        /// The address.
        addr: ListenAddr,
        /// What happened.
        source: io::Error,
    },
    /// There are keys under a pepper that is not in the pepper file.
    #[error(
        "the data directory holds keys under pepper {pepper}, which the pepper file {path} does not have: put the file back \
         that belongs to this data"
    )]
    ForeignPepper {
        /// The name of the missing pepper.
        pepper: String,
        /// The pepper file.
        path: PathBuf,
    },
    /// The key of the first administrator cannot be made.
    #[error("cannot make the first administrator's key: {0}")]
    Bootstrap(#[from] AuthorityError),
    /// The start was interrupted by a stop.
    #[error("it was told to stop while it started")]
    Stopped,
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The limits of connections contradict each other.
    #[error("the limits of connections: {0}")]
    Limits(#[from] LimitsError),
    /// The descriptors for reflection cannot be decoded.
    #[error("reflection: {0}")]
    Reflection(#[from] prost::DecodeError),
}

/// What to do if data is missing.
fn advice(error: &EngineError) -> &'static str {
    match error.is_loss() {
        true => {
            "\nIf it cannot be put back, `keyward rebuild` says what can be had without it, and goes on with that only if it is told \
             to (--accept-data-loss)"
        }
        false => "",
    }
}
