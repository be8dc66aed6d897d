//! Handshakes, on the core of their connection.
//!
//! A handshake costs as much as hundreds of verdicts. So only one of a core's handshakes takes a step at a
//! time, and after each step the core serves whoever else has something to be served.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Protocol;
use super::wiping::Wiping;
use crate::metrics::FailedHandshake;

/// How long a handshake may take.
pub const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(5);
/// Handshakes under way on a listener at most. With more, the oldest is given up.
pub const HANDSHAKES_MAX: usize = 512;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// It took too long.
    #[error("the handshake was not finished in time")]
    TimedOut,
    /// Others came after it, and it was given up for them.
    #[error("other handshakes needed its place")]
    Evicted,
    /// The client does not offer HTTP/2.
    #[error("the client has not offered h2 (ALPN)")]
    NoHttp2,
    /// The client broke a rule, has no good certificate, or refuses ours; or the network failed.
    #[error("{0}")]
    Failed(#[from] io::Error),
    /// The client showed a certificate that rustls takes and that cannot be read.
    #[error("the certificate of the client cannot be read")]
    Unreadable,
    /// The stream cannot be encrypted.
    #[error("it is not a TCP connection")]
    NotTcp,
}

impl HandshakeError {
    /// What it is counted as.
    #[must_use]
    pub fn kind(&self) -> FailedHandshake {
        match self {
            Self::TimedOut => FailedHandshake::Timeout,
            Self::Evicted => FailedHandshake::Evicted,
            Self::NoHttp2 => FailedHandshake::NoHttp2,
            Self::Failed(error) if error.kind() == io::ErrorKind::InvalidData => FailedHandshake::Refused,
            Self::Failed(_) => FailedHandshake::Network,
            Self::Unreadable | Self::NotTcp => FailedHandshake::Refused,
        }
    }
}

/// Whose turn it is to take a step, of the handshakes of a core. Clones share it.
#[derive(Clone, Debug)]
pub struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

/// The handshakes under way on a listener, the oldest first. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<Mutex<PendingState>>);

#[derive(Debug, Default)]
struct PendingState {
    next: u64,
    /// By number, so that they are in order.
    under_way: BTreeMap<u64, CancellationToken>,
}

/// A handshake under way.
struct PendingGuard {
    pending: Pending,
    number: u64,
    evicted: CancellationToken,
}

impl Pending {
    fn enter(&self) -> PendingGuard {
        let mut state = self.0.lock();
        if state.under_way.len() >= HANDSHAKES_MAX
            && let Some((_, oldest)) = state.under_way.pop_first()
        {
            oldest.cancel();
        }
        let (number, evicted) = (state.next, CancellationToken::new());
        state.next += 1;
        state.under_way.insert(number, evicted.clone());
        PendingGuard { pending: self.clone(), number, evicted }
    }
}

impl Drop for PendingGuard {
    fn drop(&mut self) {
        self.pending.0.lock().under_way.remove(&self.number);
    }
}

/// Answers a handshake. Also returns the certificates that the client showed.
///
/// # Errors
/// When there is no connection.
pub(in crate::server) async fn accept(
    config: Arc<ServerConfig>,
    protocol: Protocol,
    pending: &Pending,
    turns: &Turns,
    stream: TcpStream,
) -> Result<(TlsStream<Wiping<TcpStream>>, Vec<CertificateDer<'static>>), HandshakeError> {
    let guard = pending.enter();
    let mut accepting = pin!(TlsAcceptor::from(config).accept(Wiping::new(stream)));
    let taking_turns = async {
        loop {
            let turn = turns.0.acquire().await;
            // After the step of another one, the core looks first for what else has come.
            yield_now().await;
            let step = poll_fn(|cx| Poll::Ready(accepting.as_mut().poll(cx))).await;
            drop(turn);
            match step {
                Poll::Ready(accepted) => return accepted,
                // Nothing is awaited in between, so that no wake is lost.
                Poll::Pending => woken().await,
            }
        }
    };
    let in_time = guard.evicted.run_until_cancelled(timeout(HANDSHAKE_TIME_MAX, taking_turns)).await;
    let stream = in_time.ok_or(HandshakeError::Evicted)?.map_err(|_| HandshakeError::TimedOut)??;
    let (_, session) = stream.get_ref();
    // rustls has refused a client that offers something else; one that offers nothing is left.
    if protocol == Protocol::Http2 && session.alpn_protocol() != Some(protocol.alpn()) {
        return Err(HandshakeError::NoHttp2);
    }
    let shown = session.peer_certificates().unwrap_or_default();
    let shown = shown.iter().map(|certificate| certificate.clone().into_owned()).collect();
    Ok((stream, shown))
}

/// Ready when the task is woken after the first poll: by the stream, which was polled before.
async fn woken() {
    let mut polled = false;
    poll_fn(|_| match std::mem::replace(&mut polled, true) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}
