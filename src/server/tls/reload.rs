//! Certificates and keys while the server runs: they are read again on SIGHUP and when their contents change.
//!
//! New connections use the new ones, and open ones stay. But a caller whose certificate is not good any more,
//! because its authority is gone, it was revoked or its time is over, is cut off.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use keyward_core::clock::{Clock, UnixMillis};
use keyward_core::identity::PeerIdentity;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use rustls::server::danger::ClientCertVerifier;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::certificate::{identity_of, not_after};
use super::files::{Contents, Material, unix_time};
use super::{Protocol, TlsError, TlsFiles, TlsStatus};

/// How often the files are looked at. The links of a volume of Kubernetes change without a signal.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// Asks for the files to be read again. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Reload(Arc<Notify>);

impl Reload {
    /// Asks for it.
    pub fn ask(&self) {
        self.0.notify_one();
    }
}

/// TLS as the files have it.
pub struct Tls {
    files: TlsFiles,
    clock: Arc<dyn Clock>,
    current: ArcSwap<Material>,
    /// Held while files are read, which may take long.
    looked: Mutex<Looked>,
    /// Whether the present files cannot be used. Of its own, because metrics must wait for no disk.
    is_stale: AtomicBool,
    callers: Mutex<Callers>,
}

/// The state of the files when they were looked at last.
struct Looked {
    /// The contents that are used.
    used: [u8; 32],
    /// Why the present ones are not.
    broken: Option<TlsError>,
}

/// The callers with a certificate, by the number of their connection.
#[derive(Default)]
struct Callers {
    next: u64,
    open: HashMap<u64, Caller>,
}

struct Caller {
    /// Its certificate, and those of the authorities between it and a root.
    chain: Vec<CertificateDer<'static>>,
    not_after: UnixMillis,
    identity: Arc<PeerIdentity>,
    close: CancellationToken,
}

/// A caller with a certificate, until it is dropped.
#[derive(Debug)]
pub struct CallerGuard {
    tls: Arc<Tls>,
    number: u64,
    identity: Arc<PeerIdentity>,
}

impl CallerGuard {
    /// What the certificate proves.
    #[must_use]
    pub fn identity(&self) -> &Arc<PeerIdentity> {
        &self.identity
    }
}

impl Drop for CallerGuard {
    fn drop(&mut self) {
        self.tls.callers.lock().open.remove(&self.number);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn open(files: TlsFiles, clock: Arc<dyn Clock>) -> Result<Self, TlsError> {
        let contents = Contents::read(&files)?;
        let material = contents.parse(&files, &clock)?;
        let looked = Mutex::new(Looked { used: contents.digest(), broken: None });
        let tls = Self {
            files,
            clock,
            current: ArcSwap::from_pointee(material),
            looked,
            is_stale: AtomicBool::new(false),
            callers: Mutex::default(),
        };
        tls.tell("the TLS certificate was read");
        Ok(tls)
    }

    /// Reads files and makes nothing of them.
    ///
    /// # Errors
    /// When they could not be used.
    pub fn check(files: &TlsFiles, clock: &Arc<dyn Clock>) -> Result<(), TlsError> {
        Contents::read(files)?.parse(files, clock).map(drop)
    }

    /// The files that it reads.
    #[must_use]
    pub fn files(&self) -> &TlsFiles {
        &self.files
    }

    /// What the next handshake uses.
    pub(in crate::server) fn config(&self, protocol: Protocol) -> Arc<ServerConfig> {
        let current = self.current.load();
        match protocol {
            Protocol::Http2 => current.http2.clone(),
            Protocol::Http1 => current.http1.clone(),
        }
    }

    /// The state of the files, for metrics.
    #[must_use]
    pub fn status(&self) -> TlsStatus {
        TlsStatus { not_after: self.current.load().not_after, is_stale: self.is_stale.load(Ordering::Relaxed) }
    }

    /// Watches over a caller with this chain of certificates, which was good under `config`: `close` is
    /// cancelled when it is not good any more. `None`: it cannot be read.
    pub(in crate::server) fn watch(
        self: &Arc<Self>,
        chain: Vec<CertificateDer<'static>>,
        config: &Arc<ServerConfig>,
        close: CancellationToken,
    ) -> Option<CallerGuard> {
        let ends: Result<Vec<_>, _> = chain.iter().map(not_after).collect();
        let not_after = ends.ok()?.into_iter().min()?;
        let name = identity_of(chain.first()?);
        let identity = Arc::new(PeerIdentity::new(name, Some(not_after)));
        let number = {
            let mut callers = self.callers.lock();
            callers.next += 1;
            let number = callers.next;
            callers.open.insert(number, Caller { chain, not_after, identity: identity.clone(), close });
            number
        };
        let guard = CallerGuard { tls: self.clone(), number, identity };
        // Either a reload since the handshake has seen this caller, or this sees what was reloaded.
        if !Arc::ptr_eq(config, &self.current.load().http2) {
            self.judge_callers(|of, _| of == number);
        }
        Some(guard)
    }

    /// Reads the files again, if their contents have changed or `is_asked`.
    fn look(&self, is_asked: bool) {
        let mut looked = self.looked.lock();
        let read = Contents::read(&self.files);
        let digest = read.as_ref().ok().map(Contents::digest);
        if digest == Some(looked.used) && !is_asked {
            if looked.broken.take().is_some() {
                self.is_stale.store(false, Ordering::Relaxed);
                tracing::info!("the TLS files are again those that are in use");
            }
            return;
        }
        match read.and_then(|contents| contents.parse(&self.files, &self.clock)) {
            Ok(material) => {
                self.current.store(Arc::new(material));
                *looked = Looked { used: digest.unwrap_or(looked.used), broken: None };
                self.is_stale.store(false, Ordering::Relaxed);
                drop(looked);
                self.tell("the TLS certificate was read again");
                self.judge_callers(|_, _| true);
            }
            Err(error) => {
                if is_asked || looked.broken.as_ref() != Some(&error) {
                    tracing::error!(%error, "the TLS files cannot be used; those that were read before stay in use");
                }
                looked.broken = Some(error);
                self.is_stale.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Cuts off those callers whose time is over.
    fn end_expired(&self) {
        let now = self.clock.now();
        self.judge_callers(|_, caller| caller.not_after < now);
    }

    /// Cuts off those of the callers in question whose certificates are not good.
    fn judge_callers(&self, in_question: impl Fn(u64, &Caller) -> bool) {
        let (current, now) = (self.current.load_full(), unix_time(self.clock.now()));
        let is_good = |verifier: &Arc<dyn ClientCertVerifier>, chain: &[CertificateDer<'static>]| {
            let (leaf, others) = chain.split_first()?;
            verifier.verify_client_cert(leaf, others, now).ok()
        };
        let questioned: Vec<_> = {
            let callers = self.callers.lock();
            let questioned = callers.open.iter().filter(|(number, caller)| in_question(**number, caller));
            let parts = |caller: &Caller| (caller.chain.clone(), caller.identity.clone(), caller.close.clone());
            questioned.map(|(_, caller)| parts(caller)).collect()
        };
        let mut cut_off = 0;
        for (chain, identity, close) in questioned {
            if current.verifier.as_ref().and_then(|verifier| is_good(verifier, &chain)).is_none() {
                // First, so that a call under way whose connection is still open is refused as well.
                identity.withdraw();
                close.cancel();
                cut_off += 1;
            }
        }
        if cut_off > 0 {
            tracing::info!(connections = cut_off, "callers were cut off whose certificates are not good any more");
        }
    }

    fn tell(&self, what: &str) {
        let not_after = self.current.load().not_after;
        let left = not_after.0.saturating_sub(self.clock.now().0);
        let path = self.files.certificate.display();
        match u64::try_from(left) {
            Ok(left) => {
                let days_left = left / (24 * 60 * 60 * 1_000);
                tracing::info!(%path, days_left, "{what}");
            }
            Err(_) => tracing::warn!(%path, "{what}, and its time is over: callers will refuse it"),
        }
    }
}

/// Looks after the files of several listeners, until `stop`.
pub async fn look_after(all: Vec<Arc<Tls>>, reload: Reload, stop: CancellationToken) {
    loop {
        let asked = async { timeout(LOOK_INTERVAL, reload.0.notified()).await.is_ok() };
        let Some(is_asked) = stop.run_until_cancelled(asked).await else { return };
        for tls in &all {
            let tls = tls.clone();
            // Files may be on a disk that does not answer.
            let looked = spawn_blocking(move || {
                tls.look(is_asked);
                tls.end_expired();
            });
            if stop.run_until_cancelled(looked).await.is_none() {
                return;
            }
        }
    }
}
