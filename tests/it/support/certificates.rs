//! Authorities, certificates and keys, made for a test; and clients that show them.

use std::fmt::Display;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use keyward::server::tls::{ClientCertificates, ClientTls, TlsFiles};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, ExtendedKeyUsagePurpose,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber, date_time_ymd,
};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

/// The name of the server in its certificates.
pub(crate) const SERVER: &str = "keyward.test";

/// An authority.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// What a certificate is for.
#[derive(Clone, Copy)]
pub(crate) enum Usage<'a> {
    Server,
    /// With a name as a URI.
    Client(&'a str),
    /// With these URIs and these names of hosts, and a common name.
    ClientNames(&'a [&'a str], &'a [&'a str]),
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2080, 1, 1));
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate until the end of 2079.
    pub(crate) fn issue(&self, serial: u64, usage: Usage<'_>) -> Pair {
        self.issue_until(serial, usage, 2080)
    }

    /// A certificate until the beginning of a year.
    pub(crate) fn issue_until(&self, serial: u64, usage: Usage<'_>, year: i32) -> Pair {
        let mut params = CertificateParams::new(vec![]).unwrap();
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(year, 1, 1));
        params.serial_number = Some(SerialNumber::from(serial));
        let (names, purpose) = match usage {
            Usage::Server => {
                let dns = SanType::DnsName(SERVER.try_into().unwrap());
                let loopback = SanType::IpAddress([127, 0, 0, 1].into());
                (vec![dns, loopback], ExtendedKeyUsagePurpose::ServerAuth)
            }
            Usage::Client(uri) => (vec![SanType::URI(uri.try_into().unwrap())], ExtendedKeyUsagePurpose::ClientAuth),
            Usage::ClientNames(uris, hosts) => {
                params.distinguished_name.push(rcgen::DnType::CommonName, "billing.internal");
                let uris = uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap()));
                let hosts = hosts.iter().map(|host| SanType::DnsName((*host).try_into().unwrap()));
                (uris.chain(hosts).collect(), ExtendedKeyUsagePurpose::ClientAuth)
            }
        };
        (params.subject_alt_names, params.extended_key_usages) = (names, vec![purpose]);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// A list of these as revoked.
    pub(crate) fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2025, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2025, 1, 1),
            next_update: date_time_ymd(2080, 1, 1),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.0).unwrap().pem().unwrap()
    }
}

/// Writes a file that only its owner may read.
pub(crate) fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

/// The files of a server, in a directory.
pub(crate) struct Files {
    pub(crate) dir: PathBuf,
    pub(crate) authority: Authority,
}

impl Files {
    /// A certificate with serial number 1, an authority of callers, and an empty list of revoked ones.
    pub(crate) fn write(dir: &Path) -> Self {
        let files = Self { dir: dir.to_owned(), authority: Authority::new("Test authority") };
        files.serve(&files.authority.issue(1, Usage::Server));
        write(&dir.join("ca.pem"), &files.authority.pem());
        write(&dir.join("crl.pem"), &files.authority.revoke(&[]));
        files
    }

    /// Puts a pair in place.
    pub(crate) fn serve(&self, pair: &Pair) {
        write(&self.dir.join("server.pem"), &pair.certificate);
        write(&self.dir.join("server.key"), &pair.key);
    }

    /// Settings that name them. Callers are asked for certificates if there is a demand.
    pub(crate) fn settings(&self, demand: Option<ClientCertificates>) -> TlsFiles {
        let client = demand.map(|demand| ClientTls {
            authorities: self.dir.join("ca.pem"),
            revoked: Some(self.dir.join("crl.pem")),
            demand,
        });
        TlsFiles { certificate: self.dir.join("server.pem"), key: self.dir.join("server.key"), client }
    }

    /// A channel of a client that trusts the authority and shows a certificate.
    pub(crate) fn channel(&self, addr: SocketAddr, shown: Option<&Pair>) -> Channel {
        self.endpoint(&addr, shown).connect_lazy()
    }

    /// The same, not connected.
    pub(crate) fn endpoint(&self, addr: &impl Display, shown: Option<&Pair>) -> Endpoint {
        let trusts =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.authority.pem())).domain_name(SERVER);
        let config = match shown {
            Some(pair) => trusts.identity(Identity::from_pem(&pair.certificate, &pair.key)),
            None => trusts,
        };
        Endpoint::from_shared(format!("https://{addr}")).unwrap().tls_config(config).unwrap()
    }

    /// What a client offers that trusts the authority, shows a certificate and speaks these versions.
    pub(crate) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[&[u8]],
        shown: Option<&Pair>,
    ) -> ClientConfig {
        // As clients have them by now.
        let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(CryptoProvider { kx_groups, ..default_provider() }));
        let builder = builder.with_protocol_versions(versions).unwrap().with_root_certificates(roots);
        let mut config = match shown {
            Some(pair) => {
                let chain = vec![CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config
    }
}

/// Makes a handshake.
pub(crate) async fn handshake(addr: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    encrypt(TcpStream::connect(addr).await?, config).await
}

/// Makes a handshake on an open connection.
pub(crate) async fn encrypt(stream: TcpStream, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(SERVER).unwrap(), stream).await
}
