//! Work in parts, on all cores.

use std::io;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, Builder};

/// Threads, at most: the parts are read from one disk.
const THREADS_MAX: usize = 8;

/// Calls `work` with each number below `count`, the smallest first, and returns the results in order. A panic
/// is propagated.
pub fn map<T: Send>(count: usize, work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return done;
            }
            done.push((number, work(number)));
        }
    };
    let threads = thread::available_parallelism().map_or(1, usize::from).clamp(1, THREADS_MAX).min(count);
    let mut done = thread::scope(|scope| {
        // If the system grants fewer threads, they do it all.
        let start = |_| Builder::new().spawn_scoped(scope, worker).ok();
        let others: Vec<_> = (1..threads).map_while(start).collect();
        let mut done = worker();
        for other in others {
            done.extend(other.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        done
    });
    done.sort_unstable_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Runs `other` on a thread of its own, and `here` meanwhile. A panic is propagated.
///
/// # Errors
/// When the thread cannot be started. Nothing was run then.
pub fn join<A: Send, B>(other: impl FnOnce() -> A + Send, here: impl FnOnce() -> B) -> io::Result<(A, B)> {
    thread::scope(|scope| {
        let other = Builder::new().spawn_scoped(scope, other)?;
        let here = here();
        Ok((other.join().unwrap_or_else(|panic| resume_unwind(panic)), here))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_is_done_once_and_given_in_order() {
        for count in [0, 1, 2, 1_000] {
            assert_eq!(map(count, |number| number * 2), (0..count).map(|number| number * 2).collect::<Vec<_>>());
        }
    }
}
