//! Makes a data directory with many keys, through the store and without a server, for sizes at which
//! CreateKey takes hours.
//!
//! `seed_store <data directory> <keys> <file for secrets> <secrets kept>`
//!
//! The journal, its chain and its retention, the table and the pepper file are what the server makes; so is
//! the first commit, with the administrator's key. Each key is a commit of its own. What differs is the
//! order: sled is slow where inserts fall all over a tree that exceeds its cache, so keys come in the order
//! of their digests, with ids in the same order. What is read back is the same, but sled's pages are fuller,
//! and lie in the file as they are read at a start.
//!
//! It prints how many keys were committed in a second.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::authority::{Authority, AuthorityDeps, KeyMinter};
use keyward::index::Index;
use keyward::keyring::Keyring;
use keyward::store::local::disk_space::free_bytes;
use keyward::store::local::{
    BackupLimits, COMMIT_QUEUE_OF_ONE_MAX, Expectations, LocalStore, LockedDir, Retention, StoreOptions,
};
use keyward::store::{Bounds, Commit, RecordWrite, Store};
use keyward::util::files::{create_private_dir, write_durably};
use keyward::util::system::{SystemClock, SystemEntropy};
use keyward_bench::fixture::{Failure, ascending};
use keyward_bench::typical_key::{Typical, scope};
use keyward_core::clock::Clock;
use keyward_core::digest::{Digest, Pepper};
use keyward_core::event::Revision;
use keyward_core::id::{ActorId, Environment, KeyId, SecretPrefix, TenantId};
use keyward_core::record::{AuditStamp, KeyRecord};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// The server's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// As the server has them by default.
const SEGMENT_BYTES: u64 = 16 * 1024 * 1024;
const RETENTION: Retention = Retention { bytes: 4 * 1024 * 1024 * 1024, time: Duration::from_secs(365 * 24 * 60 * 60) };

/// The role of a caller that verifies.
const VERIFIER: &str = "keyward.verifier";

/// Keys between two words of how far it is.
const TOLD_EVERY: u64 = 500_000;

// One thread: tasks then begin in the order in which they were spawned, and digests reach the table in
// theirs.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [data, keys, secrets, kept] = &args[..] else {
        return Err("usage: seed_store <data directory> <keys> <secrets file> <secrets kept>".into());
    };
    let (data, keys, kept) = (Path::new(data), keys.parse::<u64>()?, kept.parse::<u64>()?);
    if kept > keys {
        return Err("no more secrets can be kept than there are keys".into());
    }
    create_private_dir(data)?;
    let dir = LockedDir::lock(data)?;
    if dir.has_data()? {
        return Err("there is data already".into());
    }
    let keyring = Keyring::open(&data.join("pepper"), true, &SystemEntropy)?;
    let options = StoreOptions {
        segment_bytes: SEGMENT_BYTES,
        chain_key: keyring.chain_key(),
        retention: RETENTION,
        backup: BackupLimits { time: Duration::ZERO, aside_bytes: 0 },
        clock: Arc::new(SystemClock),
        entropy: Arc::new(SystemEntropy),
        bounds: Bounds::NONE,
        free_bytes,
        expectations: Expectations::default(),
    };
    let store = Arc::new(LocalStore::open(dir, &options, Arc::new(()))?);
    let (page_token_key, peppers) = (keyring.page_token_key(), Arc::new(keyring.peppers));
    let pepper = peppers.current();

    // The authority waits until verdicts see its commit. There are none, so its index has seen everything
    // beforehand.
    let index = Arc::new(Index::default());
    index.advance_to(Revision(1));
    let (clock, entropy) = (Arc::new(SystemClock), Arc::new(SystemEntropy));
    let parts = AuthorityDeps { store: store.clone(), index, peppers: peppers.clone(), clock, entropy, page_token_key };
    let admin = |minter: &KeyMinter<'_>, stamp: &AuditStamp| {
        let (key, secret) = minter.mint_administrator("Administrator", "", stamp)?;
        write_durably(&data.join("admin.key"), format!("{}\n", *secret.reveal()).as_bytes())?;
        Ok::<_, Failure>(key)
    };
    Authority::new(parts).bootstrap(admin).await?;

    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(secrets)?;
    let caller = issue(pepper)?;
    store.commit(commit(verifier(caller.0, pepper)?)).await?;
    writeln!(file, "{} {VERIFIER}", caller.1)?;

    let mut known = (0..kept).map(|_| issue(pepper)).collect::<Result<Vec<_>, _>>()?;
    known.sort_unstable();
    let mut lines = vec![];
    let began = Instant::now();
    let room = Arc::new(Semaphore::new(COMMIT_QUEUE_OF_ONE_MAX));
    let mut commits = JoinSet::new();
    let mut known = known.into_iter().peekable();
    let mut others = ascending(keys - kept).peekable();
    for number in 0..keys {
        let digest = match known.next_if(|known| others.peek().is_none_or(|other| known.0 < *other)) {
            Some((digest, secret)) => {
                lines.push(format!("{secret} {}\n", scope(number, 0)));
                digest
            }
            None => others.next().ok_or("there are fewer digests than keys")?,
        };
        let key = Typical::key(number).record(Digest::from_bytes(digest), pepper.id(), Revision(0))?;
        let place = room.clone().acquire_owned().await?;
        let store = store.clone();
        commits.spawn(async move {
            store.commit(commit(key)).await?;
            drop(place);
            Ok::<_, Failure>(())
        });
        while let Some(ended) = commits.try_join_next() {
            ended??;
        }
        if (number + 1).is_multiple_of(TOLD_EVERY) {
            eprintln!("{} keys, {:.0} s", number + 1, began.elapsed().as_secs_f64());
        }
    }
    while let Some(ended) = commits.join_next().await {
        ended??;
    }
    let seconds = began.elapsed().as_secs_f64();
    store.close().await?;
    // Those that are asked about are in no order, as those of callers are not.
    lines.sort_unstable();
    file.write_all(lines.concat().as_bytes())?;
    file.sync_all()?;
    println!("{:.0}", keys as f64 / seconds);
    Ok(())
}

/// A new secret, and what it is stored under.
fn issue(pepper: &Pepper) -> Result<([u8; 32], String), Failure> {
    let secret = IssuedSecret::generate(&SecretPrefix::kw(), &Environment::live(), &SystemEntropy)?;
    let digest = *pepper.digest(&secret.as_presented()).as_bytes();
    Ok((digest, secret.reveal().to_string()))
}

/// The key of the service that verifies.
fn verifier(digest: [u8; 32], pepper: &Pepper) -> Result<KeyRecord, Failure> {
    let mut key = Typical::key(0).record(Digest::from_bytes(digest), pepper.id(), Revision(0))?;
    key.tenant = TenantId::system();
    key.key_id = KeyId::parse("bench")?;
    key.spec.policy.scopes = vec![Scope::parse(VERIFIER)?];
    Ok(key)
}

/// The commit that issues a key.
fn commit(key: KeyRecord) -> Commit {
    Commit {
        actor: ActorId::keyward(),
        authorization: None,
        method: "CreateKey",
        target: format!("{}/{}", key.tenant, key.key_id),
        time: SystemClock.now(),
        narrows: false,
        urgent: false,
        writes: vec![RecordWrite::NewKey(Box::new(key))],
        retry: None,
    }
}
