//! The listeners of a server with what each serves and how it encrypts, as the settings describe them.

use std::io;
use std::sync::Arc;

use keyward_core::clock::Clock;

use super::error::StartError;
use crate::config::{ListenerSettings, Settings};
use crate::server::addr::ListenAddr;
use crate::server::listener::Listener;
use crate::server::passed::PassedSockets;
use crate::server::stream::EncryptsWith;
use crate::server::tls::handshake::Pending;
use crate::server::tls::reload::Tls;
use crate::server::tls::{Protocol, TlsFiles};
use crate::services::Services;

/// A listener of callers.
pub(super) struct Door {
    pub(super) listener: Listener,
    pub(super) settings: ListenerSettings,
    pub(super) encryption: Option<EncryptsWith>,
}

/// All listeners.
pub(super) struct Doors {
    pub(super) of_callers: Vec<Door>,
    /// The one of probes and metrics.
    pub(super) ops: Option<(Listener, Option<EncryptsWith>)>,
    /// The certificates, each once.
    pub(super) tls: Vec<Arc<Tls>>,
}

impl Doors {
    /// Reads all certificates, and binds all listeners.
    ///
    /// # Errors
    /// When a file cannot be used, or an address not be listened on. Nothing is left behind then.
    pub(super) async fn open(
        settings: &Settings,
        sockets: &PassedSockets,
        clock: &Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let mut tls = vec![];
        let mut encryption = |files: Option<&TlsFiles>, protocol| {
            let opened = files.map(|files| {
                let known = tls.iter().find(|tls: &&Arc<Tls>| tls.files() == files);
                let known = known.cloned().map(Ok);
                known.unwrap_or_else(|| {
                    let opened = Arc::new(Tls::open(files.clone(), clock.clone())?);
                    tls.push(opened.clone());
                    Ok::<_, StartError>(opened)
                })
            });
            let with = |tls| EncryptsWith { tls, protocol, pending: Pending::default() };
            opened.transpose().map(|opened| opened.map(with))
        };
        // Before anything is bound: nobody is to connect to a server that will not start.
        let listeners = settings.listeners().into_iter().map(|listener| {
            let encryption = encryption(listener.tls.as_ref(), Protocol::Http2)?;
            Ok((listener, encryption))
        });
        let listeners = listeners.collect::<Result<Vec<_>, StartError>>()?;
        let ops_encryption = encryption(settings.tls.as_ref().filter(|_| settings.ops_tls), Protocol::Http1)?;

        let mut of_callers = vec![];
        for (described, encryption) in listeners {
            let opened = Listener::open(&described.address, &described.access, sockets).await;
            let opened = opened.map_err(|source| StartError::Listen { addr: described.address.clone(), source })?;
            for listener in opened {
                let is_open = encryption.is_none() && !described.services.are_public();
                if !listener.addr().is_local() && is_open && !settings.allow_plaintext {
                    let (passed, addr) = (described.address, listener.addr().clone());
                    return Err(StartError::Unencrypted { passed, addr });
                }
                let encryption = encryption.clone().filter(|_| leaves_machine(&listener));
                tell(listener.addr(), described.services, encryption.is_some());
                of_callers.push(Door { listener, settings: described.clone(), encryption });
            }
        }
        let ops = bind_ops(settings, sockets).await?.map(|listener| {
            let encryption = ops_encryption.filter(|_| leaves_machine(&listener));
            (listener, encryption)
        });
        for name in sockets.left() {
            tracing::warn!(name, "a socket was passed to the process that no setting names (fd:NAME)");
        }
        Ok(Self { of_callers, ops, tls })
    }
}

/// Whether what it accepts crosses a network. A socket in the file system, which may have been passed, is not
/// encrypted.
fn leaves_machine(listener: &Listener) -> bool {
    !matches!(listener.addr(), ListenAddr::Unix(_))
}

async fn bind_ops(settings: &Settings, sockets: &PassedSockets) -> Result<Option<Listener>, StartError> {
    let Some(addr) = &settings.ops_listen else { return Ok(None) };
    let opened = Listener::open(addr, &settings.sockets, sockets).await;
    let failed = |source| StartError::OpsListen { addr: addr.clone(), source };
    let opened = opened.map_err(failed)?;
    let [listener] = <[Listener; 1]>::try_from(opened).map_err(|opened| {
        failed(io::Error::other(format!("{} sockets have this name, and one is needed", opened.len())))
    })?;
    tracing::info!(listen = %listener.addr(), "ops listening");
    Ok(Some(listener))
}

fn tell(listen: &ListenAddr, services: Services, is_encrypted: bool) {
    // Fields that say nothing special are left out.
    let services = (services != Services::ALL).then_some(tracing::field::debug(services));
    let tls = is_encrypted.then_some(true);
    tracing::info!(%listen, services, tls, "listening");
}
