//! Notifies systemd, or another service manager that set `NOTIFY_SOCKET`, when the server is ready and when
//! it stops (`Type=notify`).

use sd_notify::NotifyState;
use tokio::sync::watch;

use crate::server::ops_http::Phase;

/// Sends READY as soon as `/readyz` succeeds, and STOPPING when the server stops. Without `NOTIFY_SOCKET`
/// nothing is sent.
pub async fn notify_phases(mut phase: watch::Receiver<Phase>) {
    if phase.wait_for(|&now| now != Phase::Loading).await.is_ok_and(|now| *now == Phase::Serving) {
        notify(&NotifyState::Ready);
    }
    if phase.wait_for(|now| matches!(now, Phase::Draining | Phase::Stopping)).await.is_ok() {
        notify(&NotifyState::Stopping);
    }
}

fn notify(state: &NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(state)) {
        tracing::warn!(%error, "cannot notify the service manager (NOTIFY_SOCKET)");
    }
}
