//! A client that asks for verdicts without end, and holds each against the books: while a disk fails,
//! verdicts go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward::grpc::pb;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::Failure;
use crate::caller::Caller;
use crate::load::decides;
use crate::oracle::{Form, Key, Oracle};
use crate::server::Server;

/// A running client.
pub(crate) struct Watch {
    /// Its only task.
    tasks: JoinSet<Result<(), Failure>>,
    stop: CancellationToken,
    verdicts: Arc<AtomicU64>,
}

impl Watch {
    /// Begins to ask.
    pub(crate) async fn start(server: &Server, oracle: &Arc<Oracle>, seed: u64) -> Result<Self, Failure> {
        let (stop, verdicts) = (CancellationToken::new(), Arc::new(AtomicU64::new(0)));
        let watcher = Watcher {
            caller: server.caller().await?,
            oracle: oracle.clone(),
            rng: SmallRng::seed_from_u64(seed),
            verdicts: verdicts.clone(),
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(watcher.run(stop.clone()));
        Ok(Self { tasks, stop, verdicts })
    }

    /// Verdicts that were compared so far.
    pub(crate) fn verdicts(&self) -> u64 {
        self.verdicts.load(Ordering::Relaxed)
    }

    /// Ends it, and gives the number of verdicts. The oracle has noted those that were wrong.
    ///
    /// # Errors
    /// When a call had no answer in time, or one that is never right.
    pub(crate) async fn finish(self) -> Result<u64, Failure> {
        self.stop.cancel();
        self.tasks.join_all().await.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(self.verdicts.load(Ordering::Relaxed))
    }
}

struct Watcher {
    caller: Caller,
    oracle: Arc<Oracle>,
    rng: SmallRng,
    verdicts: Arc<AtomicU64>,
}

impl Watcher {
    async fn run(mut self, stop: CancellationToken) -> Result<(), Failure> {
        while !stop.is_cancelled() {
            let Some((book, key, secret)) = self.some_key() else {
                tokio::task::yield_now().await;
                continue;
            };
            let verdict = match self.caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await {
                Ok(verdict) => verdict,
                // The process has ended, which others judge.
                Err(status) if matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled) => {
                    return Ok(());
                }
                Err(status) => return Err(format!("asked for a verdict on {key:?} and got {status:?}").into()),
            };
            // Only if nothing has happened to the key meanwhile does the verdict have to be this one.
            if self.settled(book, &key.id).is_none_or(|now| now.revision != key.revision) {
                continue;
            }
            self.verdicts.fetch_add(1, Ordering::Relaxed);
            if verdict.reason() != Form::of(&key).verdict() || !decides(&verdict) {
                self.oracle.contradicted(format!("{} is {:?}, and the verdict is {verdict:?}", key.id, key.state));
            }
        }
        Ok(())
    }

    /// A key whose state is certain, its book and its secret.
    fn some_key(&mut self) -> Option<(usize, Key, String)> {
        let book = self.rng.random_range(0..self.oracle.books().len());
        let id = {
            let book = self.oracle.books()[book].lock();
            let keys = &book.keys;
            if keys.is_empty() {
                return None;
            }
            keys[self.rng.random_range(0..keys.len())].id.clone()
        };
        let key = self.settled(book, &id)?;
        let secret = key.secret.clone()?;
        Some((book, key, secret))
    }

    /// The key, if no change of it is pending.
    fn settled(&self, book: usize, id: &str) -> Option<Key> {
        let book = self.oracle.books()[book].lock();
        let open = book.pending.as_ref().is_some_and(|pending| pending.id == id);
        if open { None } else { book.key(id).cloned() }
    }
}
