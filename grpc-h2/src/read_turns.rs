//! Turns of callers whose connections share a thread.
//!
//! In each round, the connections of a caller together may read a fixed number of bytes. However many
//! connections a caller has, others wait for no more than one turn of each caller. A connection past the turn
//! of its caller waits for the next round, in order of arrival. A round ends when the runtime has polled its
//! sockets, so that sockets that have become ready come before those that wait.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::yield_now;

thread_local! {
    static TURNS: RefCell<ReadTurns> = RefCell::default();
}

/// The turns on a thread.
#[derive(Default)]
struct ReadTurns {
    callers: HashMap<u64, CallerShare>,
    /// Entries in all queues, some of connections that have ended since.
    waiting: usize,
    /// Whether the end of this round is scheduled.
    is_ending: bool,
}

/// What a caller has read in this round, and its queue.
#[derive(Default)]
struct CallerShare {
    /// The turn of the connection that was polled last. Connections mostly have the same.
    bytes_max: usize,
    read_bytes: usize,
    waiting: VecDeque<(Arc<AtomicU8>, Waker)>,
}

/// The connection does not wait.
const IDLE: u8 = 0;
/// It is in the queue of its caller.
const WAITING: u8 = 1;
/// It was given the turn, and has not been polled since.
const NEXT: u8 = 2;
/// It has ended.
const GONE: u8 = 3;

/// A connection's part in the turns on its thread.
pub(super) struct ReadTurn {
    state: Arc<AtomicU8>,
    caller: u64,
    /// See [`Limits::turn_bytes_max`](super::Limits::turn_bytes_max).
    bytes_max: u32,
    /// Bytes read since the last pause.
    read_bytes: u32,
}

impl ReadTurn {
    pub(super) fn new(bytes_max: usize) -> Self {
        let bytes_max = u32::try_from(bytes_max).unwrap_or(u32::MAX);
        Self { state: Arc::new(AtomicU8::new(IDLE)), caller: 0, bytes_max, read_bytes: 0 }
    }

    /// Ready if the connection may read now, on behalf of this caller. Otherwise it is woken when it may.
    pub(super) fn poll(&mut self, caller: u64, cx: &Context<'_>) -> Poll<()> {
        let state = self.state.load(Ordering::Relaxed);
        if state == WAITING {
            return Poll::Pending;
        }
        self.caller = caller;
        TURNS.with_borrow_mut(|turns| {
            let share = turns.callers.entry(caller).or_default();
            share.bytes_max = self.bytes_max as usize;
            if share.read_bytes < share.bytes_max && (state == NEXT || share.waiting.is_empty()) {
                return Poll::Ready(());
            }
            self.state.store(WAITING, Ordering::Relaxed);
            share.waiting.push_back((self.state.clone(), cx.waker().clone()));
            turns.waiting += 1;
            Poll::Pending
        })
    }

    /// The same on a thread without turns by caller: it pauses from time to time.
    pub(super) fn poll_alone(&mut self, cx: &Context<'_>) -> Poll<()> {
        if self.read_bytes < self.bytes_max {
            return Poll::Ready(());
        }
        self.read_bytes = 0;
        wake_later(cx.waker());
        Poll::Pending
    }

    /// Counts a read of this many bytes; 0 if there were none.
    pub(super) fn has_read(&mut self, bytes: usize, has_core: bool) {
        if has_core {
            TURNS.with_borrow_mut(|turns| turns.callers.entry(self.caller).or_default().read_bytes += bytes);
        } else {
            self.read_bytes = if bytes == 0 { 0 } else { self.read_bytes.saturating_add(bytes as u32) };
        }
    }

    /// Must be called after each poll of the connection. It passes the rest of an unused turn to another
    /// connection of the caller, and schedules the end of the round.
    pub(super) fn after_poll(&self) {
        let was_next = self.state.compare_exchange(NEXT, IDLE, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        pass_on(was_next.then_some(self.caller));
    }
}

impl Drop for ReadTurn {
    fn drop(&mut self) {
        let was_next = self.state.swap(GONE, Ordering::Relaxed) == NEXT;
        pass_on(was_next.then_some(self.caller));
    }
}

impl CallerShare {
    /// The next connection of this caller, if something is left of its turn.
    fn next(&mut self, waiting: &mut usize) -> Option<Waker> {
        while self.read_bytes < self.bytes_max {
            let (state, waker) = self.waiting.pop_front()?;
            *waiting -= 1;
            if state.compare_exchange(WAITING, NEXT, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return Some(waker);
            }
        }
        None
    }
}

/// Passes the turn of a caller on, and schedules the end of the round if anything waits for it.
fn pass_on(caller: Option<u64>) {
    // On a thread that ends nothing waits.
    let told = TURNS.try_with(|turns| {
        let ReadTurns { callers, waiting, is_ending } = &mut *turns.borrow_mut();
        let next = caller.and_then(|caller| callers.get_mut(&caller)?.next(waiting));
        (next, *waiting > 0 && !std::mem::replace(is_ending, *waiting > 0))
    });
    let Ok((next, ends)) = told else { return };
    if let Some(next) = next {
        next.wake();
    }
    if ends {
        wake_later(&Waker::from(Arc::new(EndOfRound)));
    }
}

/// Wakes a task after the runtime has polled its sockets. `wake` alone would come before that.
pub(super) fn wake_later(waker: &Waker) {
    // Its first poll registers the waker, and does nothing else.
    let _pending = pin!(yield_now()).poll(&mut Context::from_waker(waker));
}

/// Ends the round of the thread that it is woken on.
struct EndOfRound;

impl Wake for EndOfRound {
    fn wake(self: Arc<Self>) {
        let next: Vec<_> = TURNS.with_borrow_mut(|turns| {
            turns.is_ending = false;
            turns.callers.retain(|_, share| {
                share.read_bytes = 0;
                !share.waiting.is_empty()
            });
            turns.callers.values_mut().filter_map(|share| share.next(&mut turns.waiting)).collect()
        });
        next.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::collections::BTreeMap;
    use std::future::poll_fn;
    use std::rc::Rc;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixStream;
    use tokio::task::{JoinHandle, LocalSet, spawn_local};

    const TURN_BYTES_MAX: usize = 100;

    /// The caller of each turn, with the number of the connection.
    type Seen = Rc<RefCell<Vec<(u64, usize)>>>;

    /// A connection that always has more to read, for this many turns.
    fn flood(seen: &Seen, caller: u64, number: usize, turns: usize) -> JoinHandle<()> {
        let (seen, mut turn, mut left) = (seen.clone(), ReadTurn::new(TURN_BYTES_MAX), turns);
        spawn_local(poll_fn(move |cx| {
            while left > 0 && turn.poll(caller, cx).is_ready() {
                turn.has_read(TURN_BYTES_MAX, true);
                seen.borrow_mut().push((caller, number));
                left -= 1;
            }
            turn.after_poll();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }))
    }

    async fn all(floods: Vec<JoinHandle<()>>) {
        for flood in floods {
            flood.await.unwrap();
        }
    }

    fn local(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let time = std::time::Duration::from_secs(60);
        let test = async { tokio::time::timeout(time, test).await.expect("a connection waits for ever") };
        LocalSet::new().block_on(&runtime, test);
    }

    #[test]
    fn callers_have_equal_turns_however_many_connections_they_have() {
        local(async {
            let seen = Seen::default();
            let mut floods: Vec<_> = (0..50).map(|number| flood(&seen, 1, number, 20)).collect();
            floods.push(flood(&seen, 2, 0, 500));
            floods.push(flood(&seen, 3, 0, 500));
            all(floods).await;
            let seen = seen.borrow();
            // As long as all three have something to read, each has a third.
            let mut counts = BTreeMap::<u64, i64>::new();
            for (caller, _) in seen.iter().take(1_500) {
                *counts.entry(*caller).or_default() += 1;
                let most = counts.values().max().unwrap();
                assert!((1..=3).all(|caller| most - counts.get(&caller).unwrap_or(&0) <= 2), "{counts:?}");
            }
        });
    }

    #[test]
    fn connections_of_one_caller_have_their_turns_in_order() {
        local(async {
            let seen = Seen::default();
            all((0..7).map(|number| flood(&seen, 1, number, 30)).collect()).await;
            // The first one began before the others were there.
            let numbers: Vec<_> = seen.borrow().iter().skip(1).map(|(_, number)| *number).collect();
            assert!(numbers.iter().zip((0..7).cycle()).take(7 * 29).all(|(is, due)| *is == due), "{numbers:?}");
        });
    }

    #[test]
    fn a_connection_that_ends_blocks_no_other() {
        local(async {
            let seen = Seen::default();
            let floods: Vec<_> = (0..40).map(|number| flood(&seen, 1, number, 10)).collect();
            for round in 0..20 {
                tokio::task::yield_now().await;
                floods[2 * round].abort();
            }
            for (number, flood) in floods.into_iter().enumerate() {
                assert!(flood.await.is_ok() || number % 2 == 0);
            }
        });
    }

    /// The unused rest of a turn goes to the next connection.
    #[test]
    fn the_rest_of_a_turn_goes_to_the_next_connection() {
        local(async {
            let (mut first, mut second, mut third) =
                (ReadTurn::new(TURN_BYTES_MAX), ReadTurn::new(TURN_BYTES_MAX), ReadTurn::new(TURN_BYTES_MAX));
            let cx = &Context::from_waker(Waker::noop());
            assert!(first.poll(1, cx).is_ready());
            first.has_read(TURN_BYTES_MAX, true);
            for turn in [&mut first, &mut second, &mut third] {
                assert!(turn.poll(1, cx).is_pending());
            }
            first.after_poll();
            tokio::task::yield_now().await;
            assert!(second.poll(1, cx).is_pending(), "it is the turn of the first");
            drop(first);
            assert!(second.poll(1, cx).is_ready());
            second.has_read(TURN_BYTES_MAX - 1, true);
            assert!(third.poll(1, cx).is_pending());
            second.after_poll();
            assert!(third.poll(1, cx).is_ready(), "one byte is left");
        });
    }

    #[test]
    fn a_socket_that_becomes_ready_comes_before_the_next_round() {
        local(async {
            let seen = Seen::default();
            let floods: Vec<_> = (0..100).map(|number| flood(&seen, 1, number, 1_000)).collect();
            let (mut ours, mut theirs) = UnixStream::pair().unwrap();
            for _ in 0..20 {
                let before = seen.borrow().len();
                theirs.write_all(b"x").await.unwrap();
                ours.read_exact(&mut [0]).await.unwrap();
                let turns = seen.borrow().len() - before;
                assert!(turns <= 3, "{turns} turns of others");
            }
            floods.iter().for_each(JoinHandle::abort);
        });
    }
}
