//! A caller with a credential that asks and does not read: what its replies take of the server's memory has a
//! bound, and all of them come when it reads at last, if slowly.
//!
//! The server is a process of its own, and its memory is what the kernel says.

use std::fs;

use keyward::grpc::pb;
use keyward::server::addr::ListenAddr;

use super::amplified::kibibytes;
use crate::support::h2peer::*;
use crate::support::harness::{ask, new_key};
use crate::support::program::{Program, admin_of};

const BATCH: &str = "/keyward.v1.KeyVerify/BatchVerify";
const INITIAL_WINDOW_SIZE: u16 = 4;
/// Calls of a thousand secrets each.
const CALLS: u32 = 100;
/// PINGs that are answered one after the other, while the server could make replies all the time.
const PINGS: u32 = 1_000;
/// Replies of 4 MiB and one more, the requests that wait, 7 MiB, and as much again for the batch that is
/// being answered and what the allocator takes at a time. All replies would be 19 MiB more.
const GROWTH_KIB_MAX: u64 = 24 * 1_024;

/// A connection that sends as far as the server's window goes.
struct Asker {
    peer: Peer,
    window: usize,
    reads: bool,
    ended: u32,
}

impl Asker {
    async fn open(program: &Program) -> Self {
        let mut peer = Peer::to(&ListenAddr::Tcp(program.addr.parse().unwrap())).await;
        peer.start(&[(INITIAL_WINDOW_SIZE, 0)]).await;
        Self { peer, window: 65_535, reads: false, ended: 0 }
    }

    async fn take(&mut self, frame: Frame) {
        match frame.kind {
            WINDOW_UPDATE if frame.stream == 0 => {
                self.window += u32::from_be_bytes(frame.payload.try_into().unwrap()) as usize;
            }
            // The window of the connection alone, which is small: this is a slow reader.
            DATA if self.reads && !frame.payload.is_empty() => {
                self.peer.window_update(0, frame.payload.len() as u32).await;
            }
            RST_STREAM | GOAWAY => panic!("{frame:?}"),
            HEADERS => self.ended += u32::from(frame.ends()),
            _ => {}
        }
    }

    /// Takes what comes until the server has had time for all that it means to do.
    async fn settle(&mut self) {
        for _ in 0..PINGS {
            for frame in self.peer.until_pong(1).await {
                self.take(frame).await;
            }
        }
    }

    /// Waits until the window has room, and reads if there will be none otherwise.
    async fn wait_for_room(&mut self, bytes: usize) {
        let mut pings = 0;
        while self.window < bytes {
            if self.reads {
                let frame = self.peer.next().await.unwrap();
                self.take(frame).await;
            } else if pings < PINGS {
                pings += 1;
                for frame in self.peer.until_pong(1).await {
                    self.take(frame).await;
                }
            } else {
                self.read_replies().await;
            }
        }
    }

    async fn read_replies(&mut self) {
        self.reads = true;
        self.peer.settings(&[(INITIAL_WINDOW_SIZE, 0x7fff_ffff)]).await;
    }
}

/// How much more memory than before is taken at most, in KiB.
async fn growth(program: &Program, admin: &str, batch: &[u8]) -> u64 {
    fs::write(format!("/proc/{}/clear_refs", program.pid()), "5").unwrap();
    let before = kibibytes(program, "VmRSS");
    let (block, mut asker) = (head_of(BATCH, admin), Asker::open(program).await);
    for call in 0..CALLS {
        let stream = 2 * call + 1;
        asker.peer.send(HEADERS, END_HEADERS, stream, &block).await;
        let mut chunks = batch.chunks(16_384).peekable();
        while let Some(chunk) = chunks.next() {
            asker.wait_for_room(chunk.len()).await;
            asker.window -= chunk.len();
            asker.peer.send(DATA, if chunks.peek().is_none() { END } else { 0 }, stream, chunk).await;
        }
    }
    if !asker.reads {
        asker.settle().await;
        asker.read_replies().await;
    }
    while asker.ended < CALLS {
        let frame = asker.peer.next().await.unwrap();
        asker.take(frame).await;
    }
    kibibytes(program, "VmHWM").saturating_sub(before)
}

#[tokio::test]
async fn batches_whose_replies_are_not_read_take_bounded_memory_on_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let program = Program::serve(dir.path(), &[]);
    let admin = admin_of(&dir);
    let key = pb::CreateKeyRequest { owner: "o".repeat(60), ..new_key(&"n".repeat(60), &["a"]) };
    let issued = program.caller(&admin).issued(key).await;
    let at_once = pb::BatchVerifyRequest { requests: vec![ask(&issued.secret); 1_000] };
    let mut as_call = at_once.clone();
    as_call.requests[0].explain = true;
    for (way, batch) in [("at once", at_once), ("as a call", as_call)] {
        let kib = growth(&program, &admin, &body(&batch)).await;
        assert!(kib <= GROWTH_KIB_MAX, "{way}: {kib} KiB more");
    }
}
