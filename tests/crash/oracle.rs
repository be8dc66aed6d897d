//! The oracle: what was asked for, what was acknowledged, and what may therefore be found after a crash.
//!
//! Each client owns a book with keys of its own and does one thing after the other, so there is never more
//! than one change in it whose outcome is open. Every acknowledgement is also appended to a file outside the
//! server's disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use keyward::grpc::pb;
use parking_lot::Mutex;

use crate::Failure;

/// What the oracle knows of a key.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    pub(crate) id: String,
    /// The current one. Unknown if the reply that told it was lost.
    pub(crate) secret: Option<String>,
    /// Its older secrets that are known, and those that were taken back, by their versions.
    pub(crate) older: BTreeMap<u32, String>,
    /// The versions of those that the server remembers, and what they are.
    pub(crate) secrets: Vec<(u32, pb::SecretState)>,
    pub(crate) label: String,
    pub(crate) state: pb::State,
    /// Of a deleted key, the state in which it comes back.
    pub(crate) undelete_state: pb::State,
    /// Whether it is disabled until a time.
    pub(crate) is_suspended: bool,
    /// Why it is in that state.
    pub(crate) reason: String,
    /// The revision of its last change.
    pub(crate) revision: u64,
    /// Its changes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Whether GetKey was compared since its last change.
    pub(crate) compared: bool,
}

impl Key {
    /// The version of its current secret.
    fn version(&self) -> u32 {
        self.secrets.first().map_or(0, |(version, _)| *version)
    }

    /// Every secret that is known of it, with its version.
    pub(crate) fn known_secrets(&self) -> Vec<(u32, String)> {
        let current = self.secret.clone().map(|secret| (self.version(), secret));
        self.older.iter().map(|(version, secret)| (*version, secret.clone())).chain(current).collect()
    }

    /// Whether the secret before the newest one works.
    pub(crate) fn has_previous(&self) -> bool {
        self.secrets.iter().any(|(_, state)| *state == pb::SecretState::Previous)
    }

    /// Takes over what the server tells of its secrets, and the new one if a reply had it.
    fn take_secret(&mut self, secrets: Vec<(u32, pb::SecretState)>, new: Option<String>) {
        let before = self.version();
        self.secrets = secrets;
        if self.version() != before {
            self.older.extend(self.secret.take().map(|secret| (before, secret)));
            self.secret = new.or_else(|| self.older.remove(&self.version()));
        }
    }
}

/// A change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It is created, active, with this label.
    Create(String),
    /// It gets this label.
    Relabel(String),
    /// It comes into a state for a reason, or gets another reason for the one that it is in.
    Disable(String),
    Enable(String),
    Revoke(String),
    /// It is disabled until a time that no run reaches.
    Suspend(String),
    /// It is deleted, to be purged at a time that no run reaches, and given back.
    Delete(String),
    Undelete(String),
    /// It gets another secret, and the one before works on for longer than a run takes.
    Rotate,
    /// The secret before the newest one ends.
    Finish,
    /// The newest one is taken back.
    Cancel,
}

/// What is compared of a key beside its revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) label: String,
    pub(crate) state: pb::State,
    pub(crate) undelete_state: pb::State,
    pub(crate) is_suspended: bool,
    pub(crate) reason: String,
    /// The versions of its secrets, and what they are: the current, the previous and the retired one.
    pub(crate) secrets: Vec<(u32, pb::SecretState)>,
}

/// The secrets of a key as the server tells of them.
fn secrets(told: &pb::Key) -> Vec<(u32, pb::SecretState)> {
    told.secrets.iter().map(|secret| (secret.version, secret.state())).collect()
}

impl Form {
    /// Of a key as the server tells of it.
    pub(crate) fn told(key: &pb::Key) -> Self {
        let (label, reason) = (key.display_name.clone(), key.state_reason.clone());
        let (undelete_state, is_suspended) = (key.undelete_state(), key.resume_time.is_some());
        Self { label, state: key.state(), undelete_state, is_suspended, reason, secrets: secrets(key) }
    }

    /// Of a key as a book has it.
    pub(crate) fn of(key: &Key) -> Self {
        let (label, reason) = (key.label.clone(), key.reason.clone());
        let &Key { state, undelete_state, is_suspended, .. } = key;
        Self { label, state, undelete_state, is_suspended, reason, secrets: key.secrets.clone() }
    }

    /// The reason of a verdict on the current secret.
    pub(crate) fn verdict(&self) -> pb::Reason {
        match self.state {
            pb::State::Active => pb::Reason::Ok,
            pb::State::Disabled if self.is_suspended => pb::Reason::Suspended,
            pb::State::Disabled => pb::Reason::Disabled,
            _ if self.is_revoked() => pb::Reason::Revoked,
            pb::State::Deleted => pb::Reason::Unknown,
            pb::State::Revoked | pb::State::Unspecified => pb::Reason::Unspecified,
        }
    }

    fn is_revoked(&self) -> bool {
        self.state == pb::State::Revoked || self.undelete_state == pb::State::Revoked
    }

    /// The version of the secret that is the current, previous or retired one.
    fn version(&self, of: pb::SecretState) -> Option<u32> {
        self.secrets.iter().find(|(_, state)| *state == of).map(|(version, _)| *version)
    }

    /// With these as the current, the previous and the retired secret.
    fn with(self, current: Option<u32>, previous: Option<u32>, retired: Option<u32>) -> Self {
        let states = [pb::SecretState::Current, pb::SecretState::Previous, pb::SecretState::Retired];
        let secrets = [current, previous, retired].into_iter().zip(states);
        Self { secrets: secrets.filter_map(|(version, state)| Some((version?, state))).collect(), ..self }
    }
}

impl Change {
    /// What it leads to.
    pub(crate) fn outcome(&self, key: Option<&Key>) -> Form {
        let before = key.map_or(Form { state: pb::State::Active, ..Form::default() }, Form::of);
        let of = |state| before.version(state);
        let (current, previous) = (of(pb::SecretState::Current), of(pb::SecretState::Previous));
        let retired = of(pb::SecretState::Retired);
        let in_state = |state, reason: &String| Form {
            state,
            undelete_state: pb::State::Unspecified,
            is_suspended: false,
            reason: reason.clone(),
            ..before.clone()
        };
        let below = if before.is_revoked() { pb::State::Revoked } else { pb::State::Disabled };
        match self {
            Self::Create(label) => {
                let secrets = vec![(1, pb::SecretState::Current)];
                Form { label: label.clone(), state: pb::State::Active, secrets, ..Form::default() }
            }
            Self::Rotate => {
                let next = before.secrets.iter().map(|(version, _)| version + 1).max();
                before.with(next, current, previous.or(retired))
            }
            Self::Finish => before.with(current, None, previous.or(retired)),
            Self::Cancel => before.with(previous, None, current),
            Self::Relabel(label) => Form { label: label.clone(), ..before },
            Self::Disable(reason) => in_state(pb::State::Disabled, reason),
            Self::Enable(reason) => in_state(pb::State::Active, reason),
            Self::Revoke(reason) if before.state == pb::State::Deleted => {
                Form { undelete_state: pb::State::Revoked, ..in_state(pb::State::Deleted, reason) }
            }
            Self::Revoke(reason) => in_state(pb::State::Revoked, reason),
            Self::Suspend(reason) => Form { is_suspended: true, ..in_state(pb::State::Disabled, reason) },
            Self::Delete(reason) => Form { undelete_state: below, ..in_state(pb::State::Deleted, reason) },
            Self::Undelete(reason) => in_state(below, reason),
        }
    }
}

/// A change that was asked for and not answered yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) id: String,
    pub(crate) change: Change,
}

/// The keys of one client.
#[derive(Clone, Debug, Default)]
pub(crate) struct Book {
    pub(crate) keys: Vec<Key>,
    pub(crate) pending: Option<Pending>,
    /// Names that were given to keys and labels.
    pub(crate) names: u64,
    /// Changes that were acknowledged.
    pub(crate) acknowledged: u64,
    /// The highest revision that was seen.
    pub(crate) revision: u64,
}

impl Book {
    /// The key that a pending change is about, if it is known already.
    pub(crate) fn key(&self, id: &str) -> Option<&Key> {
        self.keys.iter().rev().find(|key| key.id == id)
    }

    /// The keys of which it is known how they are.
    pub(crate) fn settled(&self) -> Vec<Key> {
        let open = self.pending.as_ref().map(|pending| &pending.id);
        self.keys.iter().filter(|key| Some(&key.id) != open).cloned().collect()
    }

    /// Takes the pending change as made, in the form in which the server tells of the key.
    pub(crate) fn settle(&mut self, told: &pb::Key, secret: Option<String>) {
        self.pending = None;
        self.revision = self.revision.max(told.revision);
        match self.keys.iter_mut().rev().find(|key| key.id == told.key_id) {
            Some(key) => {
                key.label.clone_from(&told.display_name);
                key.state = told.state();
                key.undelete_state = told.undelete_state();
                key.is_suspended = told.resume_time.is_some();
                key.reason.clone_from(&told.state_reason);
                key.take_secret(secrets(told), secret);
                key.revision = told.revision;
                key.compared = false;
            }
            None => self.keys.push(Key {
                id: told.key_id.clone(),
                secret,
                older: BTreeMap::new(),
                secrets: secrets(told),
                label: told.display_name.clone(),
                state: told.state(),
                undelete_state: told.undelete_state(),
                is_suspended: told.resume_time.is_some(),
                reason: told.state_reason.clone(),
                revision: told.revision,
                acknowledged: 0,
                compared: false,
            }),
        }
    }
}

/// The books of all clients.
pub(crate) struct Oracle {
    books: Vec<Mutex<Book>>,
    acknowledgements: Mutex<File>,
    /// Answers under load that contradict the books.
    contradictions: Mutex<Vec<String>>,
}

impl Oracle {
    /// Empty books for so many clients. Acknowledgements are appended to `log`.
    pub(crate) fn new(clients: usize, log: &Path) -> Result<Arc<Self>, Failure> {
        let log = File::options().create(true).append(true).open(log)?;
        let books = (0..clients).map(|_| Mutex::default()).collect();
        Ok(Arc::new(Self { books, acknowledgements: Mutex::new(log), contradictions: Mutex::default() }))
    }

    pub(crate) fn books(&self) -> &[Mutex<Book>] {
        &self.books
    }

    /// Changes that were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.books.iter().map(|book| book.lock().acknowledged).sum()
    }

    /// The state of all books now, for a disk as it is now.
    pub(crate) fn snapshot(&self) -> Result<Arc<Self>, Failure> {
        let books = self.books.iter().map(|book| Mutex::new(book.lock().clone())).collect();
        let acknowledgements = Mutex::new(self.acknowledgements.lock().try_clone()?);
        Ok(Arc::new(Self { books, acknowledgements, contradictions: Mutex::default() }))
    }

    /// Notes what a client is about to ask for.
    pub(crate) fn ask(&self, client: usize, id: &str, change: Change) {
        self.books[client].lock().pending = Some(Pending { id: id.to_owned(), change });
    }

    /// Notes that the server has refused the pending change, and so has not made it.
    pub(crate) fn refused(&self, client: usize) {
        self.books[client].lock().pending = None;
    }

    /// Notes that the server has acknowledged the pending change.
    ///
    /// # Errors
    /// When the reply is not what was asked for.
    pub(crate) fn acknowledged_as(
        &self,
        client: usize,
        told: Option<&pb::Key>,
        secret: Option<String>,
    ) -> Result<(), Failure> {
        let mut book = self.books[client].lock();
        let told = told.ok_or("a reply has no key")?;
        let pending = book.pending.clone().ok_or("a reply to nothing")?;
        if told.key_id != pending.id || Form::told(told) != pending.change.outcome(book.key(&pending.id)) {
            return Err(format!("{:?} was answered with {told:?}", pending).into());
        }
        if told.revision <= book.revision {
            return Err(format!("revision {} came after {}: {told:?}", told.revision, book.revision).into());
        }
        let line = format!("{}\t{client}\t{}\t{:?}\n", told.revision, told.key_id, pending.change);
        book.settle(told, secret);
        book.acknowledged += 1;
        if let Some(key) = book.keys.iter_mut().rev().find(|key| key.id == told.key_id) {
            key.acknowledged += 1;
        }
        Ok(self.acknowledgements.lock().write_all(line.as_bytes())?)
    }

    /// Makes the acknowledgements durable.
    pub(crate) fn sync(&self) -> Result<(), Failure> {
        Ok(self.acknowledgements.lock().sync_data()?)
    }

    /// Notes an answer under load that contradicts a book.
    pub(crate) fn contradicted(&self, what: String) {
        self.contradictions.lock().push(what);
    }

    /// Takes the contradictions that were noted.
    pub(crate) fn contradictions(&self) -> Vec<String> {
        std::mem::take(&mut self.contradictions.lock())
    }
}
