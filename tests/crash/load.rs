//! The clients: each does one thing after the other with keys of its own, and writes every answer into its
//! book.

use std::sync::Arc;

use keyward::grpc::pb;
use keyward::util::system::SystemClock;
use keyward_core::clock::Clock;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::Failure;
use crate::caller::{Caller, Refused};
use crate::oracle::{Change, Form, Key, Oracle};
use crate::server::Server;

/// What clients do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mix {
    /// A quarter creates; the rest relabels, rotates, disables, also until a time, enables, revokes,
    /// deletes, undeletes, and asks for verdicts.
    Ordinary,
    /// Few keys, relabelled over and over with long labels; a deleted one is given back first.
    Churn,
    /// Nothing but new keys.
    Bulk,
}

/// How many do it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) mix: Mix,
    pub(crate) clients: usize,
    /// Clients share these. A connection carries at most 256 calls at a time.
    pub(crate) connections: usize,
    /// Each client ends when its book has this many keys; only for [`Mix::Bulk`].
    pub(crate) keys_per_client: usize,
}

impl Shape {
    /// Eight clients, each with a connection of its own.
    pub(crate) const fn of(mix: Mix) -> Self {
        Self { mix, clients: 8, connections: 8, keys_per_client: usize::MAX }
    }
}

/// Keys of a client that churns.
const CHURNED_KEYS: usize = 4;
/// Bytes of a label that churns: as long as the server allows, less the part that tells labels apart.
const CHURNED_LABEL_PADDING: usize = 100;

/// How long the secret before a new one works: longer than any run.
const OVERLAP_SECONDS: i64 = 30 * 86_400;

/// A time ahead that no run reaches.
const FAR_AHEAD_SECONDS: i64 = 365 * 24 * 60 * 60;

/// Running clients.
pub(crate) struct Load {
    clients: JoinSet<Result<End, Failure>>,
    stop: CancellationToken,
}

/// Why a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to, or had nothing more to do.
    Done,
    /// The server did not answer any more. Its last change is pending.
    Broken,
}

impl Load {
    /// Connects the clients and lets them work until the server is gone or they are told to stop.
    pub(crate) async fn start(server: &Server, oracle: &Arc<Oracle>, shape: Shape, seed: u64) -> Result<Self, Failure> {
        let mut callers = vec![];
        for _ in 0..shape.connections {
            callers.push(server.caller().await?);
        }
        let (mut clients, stop) = (JoinSet::new(), CancellationToken::new());
        for number in 0..shape.clients {
            if oracle.books()[number].lock().pending.is_some() {
                return Err("a client begins with a change whose outcome is open".into());
            }
            let client = Client {
                number,
                shape,
                oracle: oracle.clone(),
                caller: callers[number % callers.len()].clone(),
                rng: SmallRng::seed_from_u64(seed ^ (number as u64) << 32),
            };
            clients.spawn(client.run(stop.clone()));
        }
        Ok(Self { clients, stop })
    }

    /// Waits until the clients have nothing more to do. Only for a shape that ends.
    ///
    /// # Errors
    /// When a client got an answer that is never right, or the server is gone.
    pub(crate) async fn complete(self) -> Result<(), Failure> {
        let ends = self.clients.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        if ends.contains(&End::Broken) {
            return Err("calls broke off although nobody touched the server".into());
        }
        Ok(())
    }

    /// Tells the clients to stop after what they are at, if they have not ended yet, and waits for them.
    /// Gives the number of those whose calls broke off.
    ///
    /// # Errors
    /// When a client got an answer that is never right, or none.
    pub(crate) async fn finish(self) -> Result<usize, Failure> {
        self.stop.cancel();
        let ends = self.clients.join_all().await.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(ends.iter().filter(|end| **end == End::Broken).count())
    }
}

struct Client {
    number: usize,
    shape: Shape,
    oracle: Arc<Oracle>,
    caller: Caller,
    rng: SmallRng,
}

impl Client {
    async fn run(mut self, stop: CancellationToken) -> Result<End, Failure> {
        while !stop.is_cancelled() {
            let keys = self.oracle.books()[self.number].lock().keys.len();
            if keys >= self.shape.keys_per_client {
                return Ok(End::Done);
            }
            let done = if self.rng.random_ratio(1, 20) && self.shape.mix == Mix::Ordinary && keys > 0 {
                self.ask(keys).await
            } else {
                self.change(keys).await?
            };
            match done {
                Ok(()) => {}
                Err(Refused::Busy) => {
                    self.oracle.refused(self.number);
                    tokio::task::yield_now().await;
                }
                Err(Refused::Unknown) => return Ok(End::Broken),
                Err(Refused::Wrong(status)) => {
                    let pending = self.oracle.books()[self.number].lock().pending.clone();
                    return Err(format!("client {} asked for {pending:?} and got {status:?}", self.number).into());
                }
            }
        }
        Ok(End::Done)
    }

    /// Chooses a change, asks for it, and notes the answer.
    async fn change(&mut self, keys: usize) -> Result<Result<(), Refused>, Failure> {
        let name = {
            let mut book = self.oracle.books()[self.number].lock();
            book.names += 1;
            book.names
        };
        let create = match self.shape.mix {
            Mix::Bulk => true,
            Mix::Churn => keys < CHURNED_KEYS,
            Mix::Ordinary => keys == 0 || self.rng.random_ratio(1, 4),
        };
        let padding = if self.shape.mix == Mix::Churn { CHURNED_LABEL_PADDING } else { 0 };
        let label = format!("label {name}{:.>padding$}", "");
        let (id, change) = if create {
            (format!("c{}-{name}", self.number), Change::Create(label))
        } else {
            let key = self.some_key(keys);
            (key.id.clone(), self.change_of(&key, label))
        };
        self.oracle.ask(self.number, &id, change.clone());
        let (told, secret) = match self.call(id, change).await {
            Ok(told) => told,
            Err(status) => return Ok(Err(status.into())),
        };
        self.oracle.acknowledged_as(self.number, told.as_ref(), secret)?;
        Ok(Ok(()))
    }

    fn some_key(&mut self, keys: usize) -> Key {
        let at = self.rng.random_range(0..keys);
        self.oracle.books()[self.number].lock().keys[at].clone()
    }

    /// A change that the key's state allows and that changes something. `name` is new, and so another reason.
    fn change_of(&mut self, key: &Key, name: String) -> Change {
        let churns = self.shape.mix == Mix::Churn;
        match (self.rng.random_range(0..13), key.state) {
            (0..10, pb::State::Deleted) => Change::Undelete(name),
            (_, pb::State::Deleted) => Change::Revoke(name),
            _ if churns => Change::Relabel(name),
            (7, _) => Change::Delete(name),
            (0..5, _) => Change::Relabel(name),
            (5, _) | (_, pb::State::Revoked) => Change::Revoke(name),
            (10, _) if key.has_previous() => Change::Finish,
            (11, _) if key.has_previous() => Change::Cancel,
            (10.., _) => Change::Rotate,
            (6, pb::State::Active) => Change::Enable(name),
            (6, _) => Change::Disable(name),
            (_, pb::State::Disabled) => Change::Enable(name),
            (8, _) => Change::Suspend(name),
            _ => Change::Disable(name),
        }
    }

    async fn call(&self, key_id: String, change: Change) -> Result<(Option<pb::Key>, Option<String>), Status> {
        let caller = &self.caller;
        Ok(match change {
            Change::Create(display_name) => {
                let request = pb::CreateKeyRequest { key_id, display_name, ..Default::default() };
                let created = caller.create(request).await?;
                (created.key, Some(created.secret))
            }
            Change::Relabel(display_name) => {
                let key = Some(pb::Key { key_id, display_name, ..Default::default() });
                let update_mask = Some(prost_types::FieldMask { paths: vec!["display_name".to_owned()] });
                (caller.update(pb::UpdateKeyRequest { key, update_mask, ..Default::default() }).await?.key, None)
            }
            Change::Disable(reason) => {
                let request = pb::DisableKeyRequest { key_id, reason, ..Default::default() };
                (caller.disable(request).await?.key, None)
            }
            Change::Enable(reason) => {
                (caller.enable(pb::EnableKeyRequest { key_id, reason, ..Default::default() }).await?.key, None)
            }
            Change::Rotate => {
                let overlap = Some(prost_types::Duration { seconds: OVERLAP_SECONDS, nanos: 0 });
                let rotated = caller.rotate(pb::RotateKeyRequest { key_id, overlap, ..Default::default() }).await?;
                (rotated.key, Some(rotated.secret))
            }
            Change::Finish => {
                (caller.finish(pb::FinishRotationRequest { key_id, ..Default::default() }).await?.key, None)
            }
            Change::Cancel => {
                (caller.cancel(pb::CancelRotationRequest { key_id, ..Default::default() }).await?.key, None)
            }
            Change::Suspend(reason) => {
                let seconds = SystemClock.now().0 / 1_000 + FAR_AHEAD_SECONDS;
                let resume_time = Some(prost_types::Timestamp { seconds, nanos: 0 });
                let request = pb::DisableKeyRequest { key_id, reason, resume_time, ..Default::default() };
                (caller.disable(request).await?.key, None)
            }
            Change::Delete(reason) => {
                (caller.delete(pb::DeleteKeyRequest { key_id, reason, ..Default::default() }).await?.key, None)
            }
            Change::Undelete(reason) => {
                (caller.undelete(pb::UndeleteKeyRequest { key_id, reason, ..Default::default() }).await?.key, None)
            }
            Change::Revoke(reason) => {
                (caller.revoke(pb::RevokeKeyRequest { key_id, reason, ..Default::default() }).await?.key, None)
            }
        })
    }

    /// Asks for a verdict on a key, which nobody else changes meanwhile.
    async fn ask(&mut self, keys: usize) -> Result<(), Refused> {
        let key = self.some_key(keys);
        let Some(secret) = key.secret.clone() else { return Ok(()) };
        let verdict = self.caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await?;
        if verdict.reason() != Form::of(&key).verdict() || !decides(&verdict) {
            self.oracle.contradicted(format!("{} is {:?}, and the verdict is {verdict:?}", key.id, key.state));
        }
        Ok(())
    }
}

/// Whether a verdict allows if, and only if, its reason is that all is well.
pub(crate) fn decides(verdict: &pb::VerifyResponse) -> bool {
    let allows = verdict.decision() == pb::Decision::Allow;
    allows == (verdict.reason() == pb::Reason::Ok) && (allows || verdict.decision() == pb::Decision::Deny)
}
