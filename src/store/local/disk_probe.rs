//! Probes the disk on a thread of its own: a probe that hangs blocks nothing else, and nothing else delays a
//! probe.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::cached_stats::CachedStats;
use super::disk_space::{DiskSpace, DiskSpaceMeter};

type ProbeReply = oneshot::Sender<io::Result<DiskSpace>>;

/// Asks the probing thread. The thread ends when this is dropped and the disk has answered its last probe.
#[derive(Debug)]
pub(super) struct DiskProbe(SyncSender<ProbeReply>);

impl DiskProbe {
    pub(super) fn start(meter: DiskSpaceMeter, stats: Arc<CachedStats>) -> io::Result<Self> {
        let (requests, asked) = sync_channel(1);
        Builder::new().name("disk".into()).spawn(move || run(&asked, &meter, &stats))?;
        Ok(Self(requests))
    }

    /// How much space there is. `None`: the disk has not answered this probe, or an earlier one, within
    /// `patience`.
    pub(super) async fn probe(&self, patience: Duration) -> Option<io::Result<DiskSpace>> {
        let (reply, space) = oneshot::channel();
        // Full: a probe hangs, and the next one waits behind it.
        self.0.try_send(reply).ok()?;
        timeout(patience, space).await.ok()?.ok()
    }
}

fn run(asked: &Receiver<ProbeReply>, meter: &DiskSpaceMeter, stats: &CachedStats) {
    while let Ok(reply) = asked.recv() {
        let space = meter.measure().map(|(free, space)| {
            stats.note_free_bytes(free);
            space
        });
        drop(reply.send(space));
    }
}
