//! Looking at the disk, on a thread of its own: a look that hangs holds up nothing else, and nothing else
//! holds up a look.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::Builder;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

use super::journal::writer::{Gauge, Room};
use super::latest::Latest;

type Look = oneshot::Sender<io::Result<Room>>;

/// Asks the thread that looks. It ends when this is dropped, once the disk lets go of it.
#[derive(Debug)]
pub(super) struct Looks(SyncSender<Look>);

impl Looks {
    pub(super) fn start(gauge: Gauge, latest: Arc<Latest>) -> io::Result<Self> {
        let (looks, asked) = sync_channel(1);
        Builder::new().name("disk".into()).spawn(move || look_when_asked(&asked, &gauge, &latest))?;
        Ok(Self(looks))
    }

    /// How much room there is. `None`: the disk has not answered within `patience`, this time or earlier.
    pub(super) async fn look(&self, patience: Duration) -> Option<io::Result<Room>> {
        let (look, room) = oneshot::channel();
        // Full: one hangs, and another one waits for it.
        self.0.try_send(look).ok()?;
        timeout(patience, room).await.ok()?.ok()
    }
}

fn look_when_asked(asked: &Receiver<Look>, gauge: &Gauge, latest: &Latest) {
    while let Ok(look) = asked.recv() {
        let room = gauge.room().map(|(free, room)| {
            latest.note_free_bytes(free);
            room
        });
        drop(look.send(room));
    }
}
