//! Reads the files of a listener's TLS, and makes a configuration of them.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_core::clock::{Clock, UnixMillis};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{RootCertStore, ServerConfig};
use zeroize::Zeroizing;

use super::certificate::not_after;
use super::{ClientCertificates, ClientTls, Protocol, TlsFiles};
use crate::util::files::exposed_mode;

/// A longer file is not one of these.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why the files cannot be used. The messages name the file, and nothing of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("the {what} file {path}: {cause}")]
    Io {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What happened.
        cause: String,
    },
    /// Others may read or write the private key.
    #[error(
        "the TLS key file {path} may be read by others or written by a group (mode {mode:o}): chmod 600 it, or 640 for \
         one group"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// A file has not what it should have, or something that cannot be used.
    #[error("the {what} file {path}: {cause}")]
    Unusable {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        cause: String,
    },
}

/// The contents of the files.
pub(super) struct Contents {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
    authorities: Option<Vec<u8>>,
    revoked: Option<Vec<u8>>,
}

/// What was made of them.
pub(super) struct Material {
    pub(super) http2: Arc<ServerConfig>,
    pub(super) http1: Arc<ServerConfig>,
    /// What callers' certificates are checked with.
    pub(super) verifier: Option<Arc<dyn ClientCertVerifier>>,
    pub(super) not_after: UnixMillis,
}

const CERTIFICATE: &str = "TLS certificate";
const KEY: &str = "TLS key";
const AUTHORITIES: &str = "client CA";
const REVOKED: &str = "client CRL";

impl Contents {
    /// Reads the files.
    pub(super) fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let client = files.client.as_ref();
        check_mode(&files.key)?;
        let optional = |what, path: Option<&PathBuf>| path.map(|path| read(what, path)).transpose();
        Ok(Self {
            certificate: read(CERTIFICATE, &files.certificate)?,
            key: Zeroizing::new(read(KEY, &files.key)?),
            authorities: optional(AUTHORITIES, client.map(|client| &client.authorities))?,
            revoked: optional(REVOKED, client.and_then(|client| client.revoked.as_ref()))?,
        })
    }

    /// A digest, by which a change is seen.
    pub(super) fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        let optional = |contents: &Option<Vec<u8>>| contents.clone().unwrap_or_default();
        for part in [&self.certificate, &*self.key, &optional(&self.authorities), &optional(&self.revoked)] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.finalize().into()
    }

    /// Makes a configuration of them.
    pub(super) fn parse(&self, files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<Material, TlsError> {
        let certificate = |cause: String| unusable(CERTIFICATE, &files.certificate, cause);
        let chain: Vec<CertificateDer<'static>> = all(CERTIFICATE, &files.certificate, &self.certificate)?;
        let leaf = chain.first().ok_or_else(|| certificate("it has no certificate in PEM".to_owned()))?;
        let not_after = not_after(leaf).map_err(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&self.key);
        // The cause is not repeated: it may quote the file.
        let key = key.map_err(|_| unusable(KEY, &files.key, "it has no private key in PEM".to_owned()))?;
        let provider = Arc::new(provider());
        let verifier = match (&files.client, &self.authorities) {
            (Some(client), Some(authorities)) => {
                Some(verifier(client, authorities, self.revoked.as_deref(), provider.clone())?)
            }
            _ => None,
        };
        let config = |protocol| {
            let versions = ServerConfig::builder_with_details(provider.clone(), Arc::new(WallClock(clock.clone())))
                .with_protocol_versions(&[&TLS13, &TLS12])?;
            let clients = match (&verifier, protocol) {
                (Some(verifier), Protocol::Http2) => versions.with_client_cert_verifier(verifier.clone()),
                _ => versions.with_no_client_auth(),
            };
            let mut config = clients.with_single_cert(chain.clone(), key.clone_key())?;
            config.alpn_protocols = vec![protocol.alpn().to_vec()];
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
            Ok(Arc::new(config))
        };
        let of_pair = |error: rustls::Error| certificate(format!("{error} (with the key in {})", files.key.display()));
        let (http2, http1) = (config(Protocol::Http2).map_err(of_pair)?, config(Protocol::Http1).map_err(of_pair)?);
        Ok(Material { http2, http1, verifier, not_after })
    }
}

impl Protocol {
    pub(super) fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http2 => b"h2",
            Self::Http1 => b"http/1.1",
        }
    }
}

/// The cryptography. The hybrid of X25519 and ML-KEM-768 comes first: what is recorded today must stay secret
/// when X25519 is broken.
fn provider() -> CryptoProvider {
    let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1];
    CryptoProvider { kx_groups, ..default_provider() }
}

fn verifier(
    client: &ClientTls,
    authorities: &[u8],
    revoked: Option<&[u8]>,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let of_authorities = |cause: String| unusable(AUTHORITIES, &client.authorities, cause);
    let mut roots = RootCertStore::empty();
    for authority in all::<CertificateDer<'static>>(AUTHORITIES, &client.authorities, authorities)? {
        roots.add(authority).map_err(|error| of_authorities(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(of_authorities("it has no certificate in PEM".to_owned()));
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let (Some(path), Some(revoked)) = (&client.revoked, revoked) {
        let lists: Vec<CertificateRevocationListDer<'static>> = all(REVOKED, path, revoked)?;
        if lists.is_empty() {
            return Err(unusable(REVOKED, path, "it has no list of revoked certificates in PEM".to_owned()));
        }
        builder = builder.with_crls(lists);
    }
    if client.demand == ClientCertificates::Optional {
        builder = builder.allow_unauthenticated();
    }
    // The list is the only part that is not checked yet.
    let path = client.revoked.as_ref().unwrap_or(&client.authorities);
    let advice = "a list must be of version 2, with a number (with openssl: crlnumber in its configuration)";
    builder.build().map_err(|error| unusable(REVOKED, path, format!("{error}; {advice}")))
}

/// All objects of a kind in a file of PEM.
fn all<T: PemObject>(what: &'static str, path: &Path, pem: &[u8]) -> Result<Vec<T>, TlsError> {
    let objects = T::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    objects.map_err(|error| unusable(what, path, error.to_string()))
}

fn unusable(what: &'static str, path: &Path, cause: String) -> TlsError {
    TlsError::Unusable { what, path: path.to_owned(), cause }
}

fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let of_file = |error: io::Error| TlsError::Io { what, path: path.to_owned(), cause: error.to_string() };
    if fs::metadata(path).map_err(of_file)?.len() > FILE_BYTES_MAX {
        return Err(unusable(what, path, format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    fs::read(path).map_err(of_file)
}

/// Only the owner may read and write a private key, and one group may read it.
fn check_mode(path: &Path) -> Result<(), TlsError> {
    let found = fs::metadata(path).map_err(|error| TlsError::Io {
        what: KEY,
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    exposed_mode(&found).map_or(Ok(()), |mode| Err(TlsError::Exposed { path: path.to_owned(), mode }))
}

/// The server's clock, by which rustls looks whether certificates are valid.
struct WallClock(Arc<dyn Clock>);

impl fmt::Debug for WallClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WallClock")
    }
}

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now()))
    }
}

/// A time as rustls has it. A time before 1970 is its beginning.
pub(super) fn unix_time(time: UnixMillis) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(u64::try_from(time.0).unwrap_or_default()))
}
