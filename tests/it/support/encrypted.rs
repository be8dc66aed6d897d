//! A server that encrypts, with files of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use keyward::app::{Adjustable, App, Deps, Engine, StartError};
use keyward::config::{Flags, Settings};
use keyward::server::addr::ListenAddr;
use keyward::server::passed::PassedSockets;
use keyward::server::tls::reload::Reload;
use keyward::server::tls::{ClientCertificates, TlsFiles};
use keyward_core::clock::{Clock, ManualClock};
use keyward_core::entropy::Entropy;
use keyward_core::identity::Identities;
use keyward_core::testing::SeededEntropy;
use rustls::version::TLS13;
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::Channel;

use super::certificates::{Files, Pair, Usage, handshake};
use super::harness::{Handle, START};

/// For whatever comes at once, on a busy machine too.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// What a client of gRPC offers.
pub(crate) const H2: &[&[u8]] = &[b"h2"];

/// A server that encrypts.
pub(crate) struct Encrypted {
    pub(crate) app: App,
    pub(crate) files: Files,
    pub(crate) dir: TempDir,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) reload: Reload,
    pub(crate) identities: Arc<Identities>,
}

impl Encrypted {
    pub(crate) async fn start(demand: Option<ClientCertificates>) -> Self {
        Self::start_with(demand, |_| {}).await
    }

    pub(crate) async fn start_with(demand: Option<ClientCertificates>, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::write(dir.path());
        let mut settings = settings(&dir, files.settings(demand));
        change(&mut settings);
        let (clock, reload) = (Arc::new(ManualClock::at(START)), Reload::default());
        let identities = Arc::<Identities>::default();
        let app = start(settings, clock.clone(), reload.clone(), identities.clone()).await.unwrap();
        Self { app, files, dir, clock, reload, identities }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        let ListenAddr::Tcp(addr) = self.app.addrs()[0] else { panic!("a TCP listener") };
        addr
    }

    pub(crate) fn channel(&self, shown: Option<&Pair>) -> Channel {
        self.files.channel(self.addr(), shown)
    }

    pub(crate) fn admin(&self, shown: Option<&Pair>) -> Handle {
        let secret = std::fs::read_to_string(self.dir.path().join("data/admin.key")).unwrap();
        Handle::new(self.channel(shown), Some(secret.trim().to_owned()))
    }

    pub(crate) fn caller(&self, serial: u64) -> Pair {
        self.files.authority.issue(serial, Usage::Client("spiffe://test/billing"))
    }

    /// A metric's value.
    pub(crate) async fn metric(&self, name: &str) -> String {
        let addr = self.app.ops_addr().unwrap();
        let (_, text) = super::ops_client::http(addr, "GET", "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in\n{text}")).to_owned()
    }

    /// The serial number of the certificate that a new connection sees.
    pub(crate) async fn serial(&self) -> u64 {
        let stream = handshake(self.addr(), self.files.client(&[&TLS13], H2, None)).await.unwrap();
        let shown = &stream.get_ref().1.peer_certificates().unwrap()[0];
        let (_, read) = x509_parser::parse_x509_certificate(shown).unwrap();
        read.raw_serial().iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Asks for the files to be read, until the condition holds.
    pub(crate) async fn reload_until(&self, holds: impl AsyncFn() -> bool) {
        let waiting = async {
            while !holds().await {
                self.reload.ask();
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, waiting).await.unwrap();
    }
}

pub(crate) fn settings(dir: &TempDir, tls: TlsFiles) -> Settings {
    let flags = Flags {
        data_dir: Some(dir.path().join("data")),
        listen: vec!["127.0.0.1:0".into()],
        ops_listen: Some("127.0.0.1:0".into()),
        log_filter: Some("off".into()),
        ..Flags::default()
    };
    Settings { tls: Some(tls), ..Settings::load(&flags, None).unwrap().settings }
}

pub(crate) async fn start(
    settings: Settings,
    clock: Arc<dyn Clock>,
    reload: Reload,
    identities: Arc<Identities>,
) -> Result<App, StartError> {
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
    let engine = Engine::Memory.configure(&settings, &clock, &entropy);
    App::start(
        settings,
        Deps {
            clock,
            entropy,
            sockets: PassedSockets::default(),
            adjustable: Adjustable { reload, identities, log: None },
            engine,
        },
    )
    .await
}
