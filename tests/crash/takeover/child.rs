//! What is asked of a directory: what it has while it is of version 1, and whether it still has that.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use keyward::index::Index;
use keyward::index::follow::follow_log;
use keyward::keyring::Keyring;
use keyward::store::local::{LocalStore, LockedDir};
use keyward::store::record::{encode_key, encode_tenant};
use keyward::store::{Commit, MaterializedView, RecordWrite, Store};
use keyward::util::system::SystemEntropy;
use keyward_core::clock::UnixMillis;
use keyward_core::digest::Digest;
use keyward_core::event::{Record, Revision};
use keyward_core::id::{ActorId, KeyId};
use keyward_core::record::KeyRecord;
use keyward_core::testing::key_record;
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::Failure;
use crate::lifecycle::child::{open, options};
use crate::lifecycle::history::Stored;
use crate::lifecycle::seen::backup_records;
use crate::process::{CLOSED, COMPARED, OPENED, say};
use crate::verify::Findings;

/// The ids of the keys that are made after a takeover begin with this.
const LATER: &str = "after-takeover-";

/// What it is started with.
#[derive(Args, Clone, Debug)]
pub(crate) struct ChildArgs {
    /// The data directory
    data_dir: PathBuf,
    /// The file with what it must have
    expected: PathBuf,
    /// The file with the keys that are made later. Without it, what must be there is written down, and the
    /// directory is left as it is
    later: Option<PathBuf>,
}

/// Writes down what a directory has, or compares it with that and makes keys until it is killed.
pub(crate) async fn run(args: &ChildArgs) -> Result<(), Failure> {
    match &args.later {
        None => write_down(&args.data_dir, &args.expected),
        Some(later) => compare_and_go_on(&args.data_dir, &args.expected, later).await,
    }
}

/// Reads a directory as a start without room on the disk does: nothing is written.
fn write_down(data_dir: &Path, expected: &Path) -> Result<(), Failure> {
    let dir = LockedDir::lock_unchanged(data_dir)?;
    let keyring = Keyring::open(&data_dir.join("pepper"), false, &SystemEntropy)?;
    let collector = Collector::default();
    LocalStore::fill(&dir, &options(&keyring, u64::MAX), &collector)?.ok_or("the directory cannot be read alone")?;
    let mut text = String::new();
    for stored in collector.0.lock().values() {
        let (name, found) = told(stored)?;
        writeln!(text, "{name}\t{found}")?;
    }
    fs::write(expected, text)?;
    say(CLOSED)
}

/// The newest form of every record.
#[derive(Default)]
struct Collector(Mutex<BTreeMap<String, Stored>>);

impl MaterializedView for Collector {
    fn load(&self, records: &[Record]) {
        let mut all = self.0.lock();
        for stored in records.iter().filter_map(Stored::of) {
            let held = all.entry(format!("{:?}", stored.name())).or_insert_with(|| stored.clone());
            if held.revision() < stored.revision() {
                *held = stored;
            }
        }
    }

    fn reset(&self) {
        self.0.lock().clear();
    }

    fn on_loaded(&self, _: Revision) {}

    fn revision(&self) -> Revision {
        Revision(u64::MAX)
    }

    fn latest_time(&self) -> UnixMillis {
        UnixMillis::MIN
    }

    fn advance_time(&self, _: UnixMillis) {}
}

/// The name of a record, and a hash of its bytes.
fn told(stored: &Stored) -> Result<(String, String), Failure> {
    let bytes = match stored {
        Stored::Key(key) => encode_key(key),
        Stored::Tenant(tenant) => encode_tenant(tenant),
        other => return Err(format!("version 1 has no such record: {other:?}").into()),
    };
    Ok((format!("{:?}", stored.name()), blake3::hash(&bytes).to_hex().to_string()))
}

async fn compare_and_go_on(data_dir: &Path, expected: &Path, later: &Path) -> Result<(), Failure> {
    let index = Arc::new(Index::default());
    let store = Arc::new(open(data_dir, u64::MAX, &index)?);
    say(OPENED)?;
    let (mut follower, following) = (JoinSet::new(), CancellationToken::new());
    follower.spawn(follow_log(store.clone(), index.clone(), following.clone()));
    let later_text = if later.exists() { fs::read_to_string(later)? } else { String::new() };
    let (findings, next) = compare(&store, &index, &fs::read_to_string(expected)?, &later_text).await?;
    let is_clean = findings.is_clean();
    say(&format!("{COMPARED}{}", serde_json::to_string(&findings)?))?;
    if is_clean {
        let stop = CancellationToken::new();
        let told = stop.clone();
        std::thread::spawn(move || {
            drop(std::io::stdin().read(&mut [0]));
            told.cancel();
        });
        let mut file = File::options().create(true).append(true).open(later)?;
        for number in next.. {
            if stop.is_cancelled() {
                break;
            }
            writeln!(file, "try\t{number}")?;
            store.commit(creation(number)?).await?;
            writeln!(file, "made\t{number}")?;
        }
    }
    following.cancel();
    follower.join_all().await;
    store.close().await?;
    drop(store);
    say(CLOSED)
}

/// Compares everything. Also gives the number of the next key to make.
async fn compare(store: &LocalStore, index: &Index, expected: &str, later: &str) -> Result<(Findings, u32), Failure> {
    let mut findings = Findings::default();
    let numbers = |word: &'static str| {
        let whole = later.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        whole.filter_map(move |line| line.strip_prefix(word)?.trim().parse::<u32>().ok())
    };
    let (tried, made): (HashSet<u32>, HashSet<u32>) = (numbers("try").collect(), numbers("made").collect());
    let mut found = BTreeMap::new();
    for stored in backup_records(store).await? {
        if let Stored::Key(key) = &stored {
            look_up(index, key, &mut findings);
            if let Some(number) = key.key_id.as_str().strip_prefix(LATER).and_then(|number| number.parse().ok()) {
                match (tried.contains(&number), made.contains(&number)) {
                    (true, true) => findings.changes += 1,
                    (true, false) => findings.open_made += 1,
                    (false, _) => findings.invent(format!("nobody asked for {stored:?}")),
                }
                continue;
            }
        }
        let (name, hash) = told(&stored)?;
        found.insert(name, hash);
    }
    findings.open_not_made = (tried.len() as u64).saturating_sub(findings.changes + findings.open_made);
    if (made.len() as u64) > findings.changes {
        findings.lose(made.len() as u64 - findings.changes, "keys that were made after the takeover".to_owned());
    }
    for line in expected.lines() {
        let (name, hash) = line.split_once('\t').ok_or("a line of what is expected has no hash")?;
        findings.keys += 1;
        match found.remove(name) {
            Some(there) if there == hash => {}
            Some(_) => findings.invent(format!("{name} is not as it was in version 1")),
            None => findings.lose(1, format!("{name} was there in version 1")),
        }
    }
    for name in found.keys() {
        findings.invent(format!("{name} was not there in version 1"));
    }
    Ok((findings, tried.into_iter().max().map_or(0, |last| last + 1)))
}

/// The key is found by its digest, in the same form.
fn look_up(index: &Index, key: &KeyRecord, findings: &mut Findings) {
    findings.verdicts += 1;
    let found = index.get(&key.secret.digest);
    let is_right = found.as_ref().is_some_and(|entry| {
        *entry.tenant() == key.tenant && entry.key_id() == key.key_id.as_str() && entry.revision() == key.revision
    });
    if !is_right {
        findings.doubt(format!("the digest of {key:?} leads to {:?}", found.map(|entry| entry.key_id().to_owned())));
    }
}

fn creation(number: u32) -> Result<Commit, Failure> {
    let mut key = key_record(number);
    key.key_id = KeyId::parse(&format!("{LATER}{number}"))?;
    key.secret.digest = Digest::from_bytes(*blake3::hash(key.key_id.as_str().as_bytes()).as_bytes());
    Ok(Commit {
        actor: ActorId::keyward(),
        authorization: None,
        method: "Test",
        target: format!("{}/{}", key.tenant, key.key_id),
        time: key.created.time,
        narrows: false,
        urgent: false,
        writes: vec![RecordWrite::NewKey(Box::new(key))],
        retry: None,
    })
}
