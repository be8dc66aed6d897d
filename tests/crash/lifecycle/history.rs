//! What the writers wanted and what was acknowledged: a file that survives them, and what follows from it.
//!
//! A line each, its words separated by tabs:
//!
//! ```text
//! try NUMBER TIME WRITE...   before a change is asked for; a WRITE is its kind, a colon and a record in hex
//! made NUMBER REVISION       it was acknowledged, or was found made after a kill
//! refused NUMBER             it was refused, or was found not made after a kill
//! ordinal TENANT/KEY REVISION NUMBER
//!                            the number that the store gave the key that was created at a revision
//! ```
//!
//! A line without its end was cut off by a kill, and is as if it had not been begun: a change is asked for
//! after its line.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use data_encoding::HEXLOWER;
use keyward::store::RecordWrite;
use keyward::store::record::{
    decode_issuer, decode_key, decode_owner, decode_purge_mark, decode_tenant, encode_issuer, encode_key, encode_owner,
    encode_purge_mark, encode_tenant,
};
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{KeyId, TenantId};
use keyward_core::record::{IssuerRecord, KeyRecord, OwnerRecord, PurgeMark, TenantRecord};
use parking_lot::Mutex;

use crate::Failure;

/// What a record is of. A key and its purge mark have the same name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Name {
    Tenant(String),
    Owner(String, String),
    Issuer(String),
    Key(String, String),
}

impl Name {
    pub(super) fn key(tenant: &TenantId, key_id: &KeyId) -> Self {
        Self::Key(tenant.to_string(), key_id.to_string())
    }
}

/// A record as the store has it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored {
    Tenant(TenantRecord),
    Owner(OwnerRecord),
    Issuer(IssuerRecord),
    Key(Box<KeyRecord>),
    Purged(PurgeMark),
}

impl Stored {
    /// `None` for a line: none begins here.
    pub(crate) fn of(record: &Record) -> Option<Self> {
        Some(match record {
            Record::Tenant(tenant) => Self::Tenant(TenantRecord::clone(tenant)),
            Record::Owner(owner) => Self::Owner(OwnerRecord::clone(owner)),
            Record::Issuer(issuer) => Self::Issuer(IssuerRecord::clone(issuer)),
            Record::Key(key) => Self::Key(Box::new(KeyRecord::clone(key))),
            Record::Purged(mark) => Self::Purged(PurgeMark::clone(mark)),
            Record::Line(_) => return None,
        })
    }

    pub(crate) fn name(&self) -> Name {
        match self {
            Self::Tenant(tenant) => Name::Tenant(tenant.tenant.to_string()),
            Self::Owner(owner) => Name::Owner(owner.tenant.to_string(), owner.owner.clone()),
            Self::Issuer(issuer) => Name::Issuer(issuer.actor.to_string()),
            Self::Key(key) => Name::key(&key.tenant, &key.key_id),
            Self::Purged(mark) => Name::key(&mark.tenant, &mark.key_id),
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        match self {
            Self::Tenant(tenant) => tenant.revision,
            Self::Owner(owner) => owner.revision,
            Self::Issuer(issuer) => issuer.revision,
            Self::Key(key) => key.revision,
            Self::Purged(mark) => mark.revision,
        }
    }

    /// Whether it is the same record, but for the number of a key, which the store gives.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Key(one), Self::Key(other)) => {
                **one == KeyRecord { ordinal: one.ordinal, ..KeyRecord::clone(other) }
            }
            _ => self == other,
        }
    }
}

/// A write of a change, with the revision that its record must have had before.
#[derive(Clone, Debug)]
pub(super) enum Write {
    NewKey(Box<KeyRecord>),
    Key(Box<KeyRecord>),
    RotatedKey(Box<KeyRecord>),
    /// Only tenant, key and revision of the mark count.
    Purge(PurgeMark),
    NewTenant(TenantRecord),
    Tenant(TenantRecord),
    Owner(OwnerRecord),
    Issuer(IssuerRecord),
}

impl Write {
    pub(super) fn name(&self) -> Name {
        match self {
            Self::NewKey(key) | Self::Key(key) | Self::RotatedKey(key) => Name::key(&key.tenant, &key.key_id),
            Self::Purge(mark) => Name::key(&mark.tenant, &mark.key_id),
            Self::NewTenant(tenant) | Self::Tenant(tenant) => Name::Tenant(tenant.tenant.to_string()),
            Self::Owner(owner) => Name::Owner(owner.tenant.to_string(), owner.owner.clone()),
            Self::Issuer(issuer) => Name::Issuer(issuer.actor.to_string()),
        }
    }

    /// As the store takes it.
    pub(super) fn to_record_write(&self) -> RecordWrite {
        match self.clone() {
            Self::NewKey(key) => RecordWrite::NewKey(key),
            Self::Key(key) => RecordWrite::Key(key),
            Self::RotatedKey(key) => RecordWrite::RotatedKey(key),
            Self::Purge(PurgeMark { tenant, key_id, revision, .. }) => RecordWrite::Purge { tenant, key_id, revision },
            Self::NewTenant(tenant) => RecordWrite::NewTenant(Box::new(tenant)),
            Self::Tenant(tenant) => RecordWrite::Tenant(Box::new(tenant)),
            Self::Owner(owner) => RecordWrite::Owner(Box::new(owner)),
            Self::Issuer(issuer) => RecordWrite::Issuer(Box::new(issuer)),
        }
    }

    /// What the store has, once it is made at a revision and a time on what was there before: the record, and
    /// the digests that lead nowhere from then on, though the key lives.
    pub(super) fn outcome(
        &self,
        before: Option<&Stored>,
        revision: Revision,
        time: UnixMillis,
    ) -> (Stored, Vec<Digest>) {
        let there = match before {
            Some(Stored::Key(key)) => Some(&**key),
            _ => None,
        };
        let stored = match self.clone() {
            Self::NewKey(key) => Stored::Key(Box::new(KeyRecord { revision, ordinal: None, ..*key })),
            Self::Key(key) | Self::RotatedKey(key) => Stored::Key(Box::new(KeyRecord { revision, ..*key })),
            Self::Purge(mark) => {
                let digests = there.into_iter().flat_map(KeyRecord::digests).collect();
                Stored::Purged(PurgeMark { digests, key_lives: false, time, revision, ..mark })
            }
            Self::NewTenant(tenant) | Self::Tenant(tenant) => Stored::Tenant(TenantRecord { revision, ..tenant }),
            Self::Owner(owner) => Stored::Owner(OwnerRecord { revision, ..owner }),
            Self::Issuer(issuer) => Stored::Issuer(IssuerRecord { revision, ..issuer }),
        };
        let dropped = match &stored {
            Stored::Key(key) => {
                there.into_iter().flat_map(KeyRecord::digests).filter(|it| key.secret_use(it).is_none())
            }
            _ => return (stored, vec![]),
        };
        let dropped = dropped.collect();
        (stored, dropped)
    }

    fn digests(&self) -> Vec<Digest> {
        match self {
            Self::NewKey(key) | Self::Key(key) | Self::RotatedKey(key) => key.digests().collect(),
            _ => vec![],
        }
    }

    fn to_word(&self) -> String {
        let (kind, bytes) = match self {
            Self::NewKey(key) => ("new-key", encode_key(key)),
            Self::Key(key) => ("key", encode_key(key)),
            Self::RotatedKey(key) => ("rotated-key", encode_key(key)),
            Self::Purge(mark) => ("purge", encode_purge_mark(mark)),
            Self::NewTenant(tenant) => ("new-tenant", encode_tenant(tenant)),
            Self::Tenant(tenant) => ("tenant", encode_tenant(tenant)),
            Self::Owner(owner) => ("owner", encode_owner(owner)),
            Self::Issuer(issuer) => ("issuer", encode_issuer(issuer)),
        };
        format!("{kind}:{}", HEXLOWER.encode(&bytes))
    }

    fn of_word(word: &str) -> Result<Self, Failure> {
        let (kind, hex) = word.split_once(':').ok_or("a write has no kind")?;
        let bytes = HEXLOWER.decode(hex.as_bytes())?;
        Ok(match kind {
            "new-key" => Self::NewKey(Box::new(decode_key(&bytes)?)),
            "key" => Self::Key(Box::new(decode_key(&bytes)?)),
            "rotated-key" => Self::RotatedKey(Box::new(decode_key(&bytes)?)),
            "purge" => Self::Purge(decode_purge_mark(&bytes)?),
            "new-tenant" => Self::NewTenant(decode_tenant(&bytes)?),
            "tenant" => Self::Tenant(decode_tenant(&bytes)?),
            "owner" => Self::Owner(decode_owner(&bytes)?),
            "issuer" => Self::Issuer(decode_issuer(&bytes)?),
            other => return Err(format!("there is no write of kind {other}").into()),
        })
    }
}

/// A change that was asked for.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) number: u64,
    pub(super) time: UnixMillis,
    pub(super) writes: Vec<Write>,
}

/// What must be there under a name.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) stored: Stored,
    /// Writes of it that were made.
    pub(super) made: u64,
    /// The revision at which the key was created.
    pub(super) created_at: Revision,
    /// The mark of the key that had the id before. It was forgotten when this one was created, but that is no
    /// change of the log: a table that is built again may have it, until it is forgotten again.
    pub(super) mark_before: Option<Stored>,
}

/// What follows from a history.
#[derive(Clone, Debug, Default)]
pub(super) struct Oracle {
    /// What must be there.
    pub(super) known: BTreeMap<Name, Known>,
    /// Changes whose outcome is open.
    pub(super) open: BTreeMap<u64, Attempt>,
    /// The number of the next one.
    pub(super) next_number: u64,
    /// What each change must have written into the log.
    pub(super) log: BTreeMap<Revision, Vec<Stored>>,
    /// Every digest that a key was ever to have.
    pub(super) digests: HashSet<Digest>,
    /// Digests that have left a key that lives.
    pub(super) dropped: HashSet<Digest>,
    /// The numbers that keys have, each with its key and the revision at which that was created.
    pub(super) ordinals: BTreeMap<u32, (Name, Revision)>,
    /// Ids that were used again, and the revision of the purge before.
    pub(super) used_again: Vec<(Name, Revision)>,
    /// Writes that were made, by their kind.
    pub(super) kinds: BTreeMap<&'static str, u64>,
}

impl Oracle {
    /// Reads a history, and cuts off a line that was not finished.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let text = if path.exists() { fs::read_to_string(path)? } else { String::new() };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            File::options().write(true).open(path)?.set_len(whole as u64)?;
        }
        let mut oracle = Self::default();
        for line in text[..whole].lines() {
            let shown: String = line.chars().take(60).collect();
            oracle.take_line(line).map_err(|error| format!("the history has a line '{shown}': {error}"))?;
        }
        Ok(oracle)
    }

    fn take_line(&mut self, line: &str) -> Result<(), Failure> {
        let words: Vec<&str> = line.split('\t').collect();
        match words[..] {
            ["try", number, time, ref writes @ ..] => {
                let writes = writes.iter().map(|word| Write::of_word(word)).collect::<Result<_, _>>()?;
                self.tried(Attempt { number: number.parse()?, time: UnixMillis(time.parse()?), writes });
            }
            ["made", number, revision] => self.made(number.parse()?, Revision(revision.parse()?))?,
            ["refused", number] => self.refused(number.parse()?)?,
            ["ordinal", key, revision, ordinal] => {
                let (tenant, key_id) = key.split_once('/').ok_or("a key has no tenant")?;
                let name = Name::Key(tenant.to_owned(), key_id.to_owned());
                self.ordinals.insert(ordinal.parse()?, (name, Revision(revision.parse()?)));
            }
            _ => return Err("it is of no kind".into()),
        }
        Ok(())
    }

    /// Takes in that a change is about to be asked for.
    pub(super) fn tried(&mut self, attempt: Attempt) {
        self.next_number = self.next_number.max(attempt.number + 1);
        self.digests.extend(attempt.writes.iter().flat_map(Write::digests));
        self.open.insert(attempt.number, attempt);
    }

    /// Takes in that a change was not made.
    pub(super) fn refused(&mut self, number: u64) -> Result<(), Failure> {
        self.open.remove(&number).map(drop).ok_or_else(|| format!("change {number} is not open").into())
    }

    /// Takes in that a change was made.
    pub(super) fn made(&mut self, number: u64, revision: Revision) -> Result<(), Failure> {
        let attempt = self.open.remove(&number).ok_or_else(|| format!("change {number} is not open"))?;
        let mut logged = vec![];
        for write in &attempt.writes {
            let name = write.name();
            let before = self.known.get(&name);
            let (stored, dropped) = write.outcome(before.map(|known| &known.stored), revision, attempt.time);
            *self.kinds.entry(kind_of(write, before, &dropped)).or_default() += 1;
            logged.push(stored.clone());
            if let (Stored::Key(key), false) = (&stored, dropped.is_empty()) {
                let (tenant, key_id) = (key.tenant.clone(), key.key_id.clone());
                let (digests, time) = (dropped.clone(), attempt.time);
                logged.push(Stored::Purged(PurgeMark { tenant, key_id, digests, key_lives: true, time, revision }));
            }
            self.dropped.extend(dropped);
            let mut mark_before = before.and_then(|known| known.mark_before.clone());
            match (write, before.map(|known| &known.stored)) {
                (Write::NewKey(_), Some(Stored::Purged(mark))) => {
                    self.used_again.push((name.clone(), mark.revision));
                    mark_before = Some(Stored::Purged(mark.clone()));
                }
                (Write::Purge(_), _) => mark_before = None,
                _ => {}
            }
            let is_new = matches!(write, Write::NewKey(_));
            let created_at = before.filter(|_| !is_new).map_or(revision, |known| known.created_at);
            let made = before.map_or(0, |known| known.made) + 1;
            self.known.insert(name, Known { stored, made, created_at, mark_before });
        }
        self.log.insert(revision, logged);
        Ok(())
    }

    /// What must be there under some names, with the numbers of keys.
    pub(super) fn book(&self, is_wanted: impl Fn(&Name) -> bool) -> BTreeMap<Name, Stored> {
        let ordinals = self.ordinals.iter().map(|(ordinal, (name, created_at))| ((name, *created_at), *ordinal));
        let ordinals: BTreeMap<_, _> = ordinals.collect();
        let with_number = |(name, known): (&Name, &Known)| {
            let mut stored = known.stored.clone();
            if let Stored::Key(key) = &mut stored {
                key.ordinal = ordinals.get(&(name, known.created_at)).copied();
            }
            (name.clone(), stored)
        };
        self.known.iter().filter(|(name, _)| is_wanted(name)).map(with_number).collect()
    }

    /// Writes that were made.
    pub(super) fn writes_made(&self) -> u64 {
        self.known.values().map(|known| known.made).sum()
    }
}

/// What a write is called in the tally.
fn kind_of(write: &Write, before: Option<&Known>, dropped: &[Digest]) -> &'static str {
    let there = match before {
        Some(Known { stored: Stored::Key(key), .. }) => Some(key),
        _ => None,
    };
    match (write, there) {
        (Write::NewKey(_), _) if before.is_some() => "keys created under the id of a purged one",
        (Write::NewKey(_), _) => "keys created",
        (Write::RotatedKey(key), Some(there)) if key.secret.digest == there.secret.digest => "rotations finished",
        (Write::RotatedKey(_), _) if !dropped.is_empty() => "rotations that dropped a digest",
        (Write::RotatedKey(_), _) => "rotations",
        (Write::Key(key), Some(there)) if key.deletion.is_some() != there.deletion.is_some() => {
            if key.deletion.is_some() { "deletions" } else { "deletions taken back" }
        }
        (Write::Key(key), Some(there)) if key.resume_time.is_some() && there.resume_time != key.resume_time => {
            "suspensions until a time"
        }
        (Write::Key(key), Some(there)) if key.spec.policy.state != there.spec.policy.state => "changes of state",
        (Write::Key(_), _) => "other changes of keys",
        (Write::Purge(_), _) => "purges",
        (Write::NewTenant(_), _) => "tenants created",
        (Write::Tenant(_), _) => "changes of a tenant's hold",
        (Write::Owner(_), _) => "changes of an owner's hold",
        (Write::Issuer(_), _) => "changes of an issuer's hold",
    }
}

/// A history that is being written.
pub(super) struct History(Mutex<File>);

impl History {
    /// Goes on behind what [`Oracle::read`] has read.
    pub(super) fn append_to(path: &Path) -> Result<Self, Failure> {
        Ok(Self(Mutex::new(File::options().create(true).append(true).open(path)?)))
    }

    pub(super) fn tried(&self, attempt: &Attempt) -> Result<(), Failure> {
        let writes: String = attempt.writes.iter().map(|write| format!("\t{}", write.to_word())).collect();
        self.line(&format!("try\t{}\t{}{writes}\n", attempt.number, attempt.time.0))
    }

    pub(super) fn made(&self, number: u64, revision: Revision) -> Result<(), Failure> {
        self.line(&format!("made\t{number}\t{revision}\n"))
    }

    pub(super) fn refused(&self, number: u64) -> Result<(), Failure> {
        self.line(&format!("refused\t{number}\n"))
    }

    pub(super) fn ordinal(&self, name: &Name, created_at: Revision, ordinal: u32) -> Result<(), Failure> {
        let Name::Key(tenant, key_id) = name else { return Err("only a key has a number".into()) };
        self.line(&format!("ordinal\t{tenant}/{key_id}\t{created_at}\t{ordinal}\n"))
    }

    /// In one write: what a kill cuts off is the end of the last line.
    fn line(&self, line: &str) -> Result<(), Failure> {
        Ok(self.0.lock().write_all(line.as_bytes())?)
    }
}
