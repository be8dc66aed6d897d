//! How a client encrypts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use zeroize::Zeroizing;

use super::RemoteAddr;

/// What a client trusts and shows.
#[derive(Clone, Debug, Default)]
pub struct ClientTls {
    /// The file of the authorities that may have issued the server's certificate. `None`: those that the
    /// machine trusts.
    pub ca: Option<PathBuf>,
    /// The files of the client's certificate and of its key.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name that the server's certificate must have. `None`: the host of its address.
    pub server_name: Option<String>,
}

/// Why no connection can be tried.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What happened.
        source: io::Error,
    },
    /// A file of authorities has none.
    #[error("{0} has no certificate in PEM")]
    NoCertificate(PathBuf),
    /// A file does not hold what it should, or the address is none.
    #[error("TLS cannot be used: {}", super::root_cause(.0))]
    Tls(#[from] tonic::transport::Error),
    /// A Unix socket is not encrypted.
    #[error("TLS is for a host and a port: a Unix socket does not leave this machine")]
    UnixSocket,
}

/// A server to connect to.
///
/// # Errors
/// When a file cannot be used.
pub(super) fn endpoint(addr: &RemoteAddr, tls: Option<&ClientTls>) -> Result<Endpoint, EndpointError> {
    let endpoint = Endpoint::from_shared(addr.uri(tls.is_some()))?;
    let Some(tls) = tls else { return Ok(endpoint) };
    if matches!(addr, RemoteAddr::Unix(_)) {
        return Err(EndpointError::UnixSocket);
    }
    let mut config = match &tls.ca {
        Some(path) => {
            let pem = read(path)?;
            if !matches!(CertificateDer::pem_slice_iter(&pem).next(), Some(Ok(_))) {
                return Err(EndpointError::NoCertificate(path.clone()));
            }
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
        }
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &tls.identity {
        config = config.identity(Identity::from_pem(read(certificate)?, &*Zeroizing::new(read(key)?)));
    }
    if let Some(name) = &tls.server_name {
        config = config.domain_name(name);
    }
    Ok(endpoint.tls_config(config)?)
}

fn read(path: &Path) -> Result<Vec<u8>, EndpointError> {
    fs::read(path).map_err(|source| EndpointError::File { path: path.to_owned(), source })
}
