//! TLS 1.3 and 1.2 for callers, by rustls.
//!
//! [`files`] makes a configuration of certificates and keys, [`reload`] looks after them while the server
//! runs, and [`handshake`] begins a connection on its core. `wiping` keeps plaintext out of its memory.
//! Nobody resumes a session: each connection shows its certificate anew.

mod certificate;
mod files;
pub mod handshake;
pub mod reload;
pub(in crate::server) mod wiping;

use std::path::PathBuf;

use keyward_core::clock::UnixMillis;
use serde::{Deserialize, Serialize};

pub use self::files::TlsError;

/// The files of a listener's TLS. All are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the server, followed by those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its private key: PKCS#8, PKCS#1 or SEC1.
    pub key: PathBuf,
    /// What callers' certificates are held against. `None`: they are asked for none.
    pub client: Option<ClientTls>,
}

/// How callers' certificates are checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// The certificates of the authorities that may have issued them.
    pub authorities: PathBuf,
    /// The lists of those that were revoked, one for each authority. With a list, an authority that none is
    /// about is not trusted.
    pub revoked: Option<PathBuf>,
    /// Whether a caller must show one.
    pub demand: ClientCertificates,
}

/// Whether callers show certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// A caller without one is not heard.
    #[default]
    Required,
    /// A caller may show one. One that is shown must be good.
    Optional,
}

/// What a connection speaks within TLS, as ALPN names it (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/2, which a client must offer (RFC 9113, section 3.3).
    Http2,
    /// HTTP/1.1, for probes and metrics. A client need offer nothing, and shows no certificate.
    Http1,
}

/// The state of the files, for metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TlsStatus {
    /// When the certificate that is served ends.
    pub not_after: UnixMillis,
    /// Whether the files as they are now cannot be used, so that older ones still are.
    pub is_stale: bool,
}
