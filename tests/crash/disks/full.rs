//! A full disk: a small tmpfs that somebody else fills. Changes are refused, those that take power away last;
//! verdicts go on; with room again all goes on. A start on a full disk answers verdicts, writes nothing, and
//! goes on when there is room.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use rand::RngExt;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::{sleep, timeout};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{POLL, has_ended_within, judge, load_for_a_while, says};
use crate::Failure;
use crate::caller::Caller;
use crate::health::Probe;
use crate::image::command;
use crate::load::decides;
use crate::oracle::{Change, Form, Key, Oracle};
use crate::run::{Run, Scene};
use crate::server::{END_LIMIT, Launch, SERVING, START_LIMIT};
use crate::watch::Watch;

const DISK_BYTES: &str = "size=192m";
/// With this much left, changes are refused, but for those that take power away.
const SCARCE_BYTES: u64 = 40 * 1024 * 1024;
/// How long the disk stays full: long enough for sled to flush by itself, and for the table to be looked at.
const FULL_FOR: Duration = Duration::from_secs(4);
/// With room again, a change succeeds within this time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(15);
/// A failure of the table that a change has met ends the process within this time; the table is written
/// behind.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);
/// Books: those of the load, and one for the changes of this mode.
const BOOKS: usize = 9;
const OWN_BOOK: usize = 8;
/// 2100-01-01, when a narrowed key ends.
const END_SECONDS: i64 = 4_102_444_800;
const NO_SPACE: [&str; 3] = ["os error 28)", "code: 28,", "disk is full"];

/// Fills a disk under a server, makes room, fills it again, and starts a server on it.
pub(crate) async fn run(run: &mut Run, scene: &Scene) -> Result<(), Failure> {
    let disk = Tmpfs::mount(&scene.root.join("full"))?;
    let mut launch = scene.launch.clone();
    launch.data_dir = disk.0.join("data");
    let oracle = scene.oracle(BOOKS)?;
    let mut server = launch.serve().await?;
    load_for_a_while(run, &server, &oracle).await?;
    let caller = server.caller().await?;
    let watch = Watch::start(&server, &oracle, run.rng.random()).await?;
    let kept = create(&caller, &oracle).await?.map_err(|refused| format!("there is room, and yet: {refused:?}"))?;

    let mut probe = Probe::connect(&server).await?;
    probe.wait_for_admin(true).await?;
    let filler = disk.fill(SCARCE_BYTES)?;
    probe.wait_for_admin(false).await?;
    refused_for_room(&create(&caller, &oracle).await?)?;
    // What this build does with little room: it takes power away, and gives none.
    let narrowed = Change::Relabel("narrowed".to_owned());
    change(&caller, &oracle, &kept, narrowed).await?.map_err(|e| format!("little room, no narrowing update: {e:?}"))?;
    change(&caller, &oracle, &kept, Change::Disable("leaked".to_owned()))
        .await?
        .map_err(|e| format!("little room, no disable: {e:?}"))?;
    refused_for_room(&change(&caller, &oracle, &kept, Change::Enable(String::new())).await?)?;
    change(&caller, &oracle, &kept, Change::Delete("left".to_owned()))
        .await?
        .map_err(|e| format!("little room, no delete: {e:?}"))?;
    run.tally.count("full disks: with little room only a narrowing update, a disable and a delete were made", 1);

    let rest = disk.fill(0)?;
    refused_for_room(&create(&caller, &oracle).await?)?;
    refused_for_room(&change(&caller, &oracle, &kept, Change::Revoke(String::new())).await?)?;
    let seen = watch.verdicts();
    if has_ended_within(&mut server, FULL_FOR).await? {
        let status = server.end(END_LIMIT).await?;
        if !says(&server, &NO_SPACE, "start keyward again") {
            return Err(server.complaint(&format!("it ended with {status} on a full disk, and does not say why")));
        }
        run.tally.count("full disks: the process ended, with cause and advice", 1);
    } else {
        if watch.verdicts() == seen {
            return Err(server.complaint("no verdicts while the disk is full"));
        }
        run.tally.count("full disks: verdicts went on", 1);
        fs::remove_file(&rest)?;
        fs::remove_file(&filler)?;
        let works = works_again(&caller, &oracle).await;
        // The table may have failed while the disk was full. Verdicts went on all the same; the first change
        // notices.
        if has_ended_within(&mut server, NOTICED_WITHIN).await? {
            let status = server.end(END_LIMIT).await?;
            if !says(&server, &NO_SPACE, "start keyward again") {
                return Err(
                    server.complaint(&format!("it ended with {status} after a full disk, and does not say why"))
                );
            }
            run.tally.count("full disks: the process ended when there was room, with cause and advice", 1);
        } else {
            works.map_err(|failure| server.complaint(&failure.to_string()))?;
            probe.wait_for_admin(true).await?;
            run.tally.count("full disks: changes went on when there was room", 1);
            disk.fill(0)?;
            server.kill().await?;
        }
    }
    run.tally.count("verdicts compared while a disk failed", watch.finish().await?);

    disk.fill(0)?;
    let mut start = launch.clone();
    start.env.push(("KEYWARD_OPS_LISTEN".to_owned(), "127.0.0.1:0".to_owned()));
    start_on_full_disk(run, &disk, &start, &oracle).await?;
    start_of_new_data(run, &disk, &start).await?;
    disk.make_room()?;
    judge(run, scene, &launch, &oracle).await
}

/// Starts a server on a full disk, and makes room under it.
async fn start_on_full_disk(run: &mut Run, disk: &Tmpfs, launch: &Launch, oracle: &Arc<Oracle>) -> Result<(), Failure> {
    let before = files_below(&launch.data_dir)?;
    let mut server = launch.spawn()?;
    timeout(START_LIMIT, server.line("answering verdicts")).await??;
    let mut probe = Probe::connect(&server).await?;
    probe.wait_for_admin(false).await?;
    for (path, found) in [("/livez", "HTTP/1.1 200 OK"), ("/readyz", "HTTP/1.1 200 OK")] {
        if server.probe(path)? != found {
            return Err(
                server.complaint(&format!("a start on a full disk answers {path} with {}", server.probe(path)?))
            );
        }
    }
    let caller = server.caller().await?;
    let known: Vec<_> = oracle.books().iter().flat_map(|book| book.lock().settled()).collect();
    let mut found = [0_u64; 2];
    for key in known {
        let Some(secret) = key.secret.clone() else { continue };
        let verdict = caller.ask(pb::VerifyRequest { secret, ..Default::default() }).await?;
        if verdict.reason() != Form::of(&key).verdict() || !decides(&verdict) {
            return Err(server.complaint(&format!("started on a full disk, {key:?} gets {verdict:?}")));
        }
        found[usize::from(key.state == pb::State::Active)] += 1;
    }
    if found.contains(&0) {
        return Err(format!("no verdict of one kind was asked for: {found:?} denied and allowed").into());
    }
    run.tally.count("verdicts compared after a start on a full disk", found.iter().sum());
    let listed = caller.list(pb::ListKeysRequest::default()).await.map(drop);
    for answer in [create(&caller, oracle).await?.map(drop), listed] {
        let Err(refused) = answer else { return Err("a call was answered for which the disk must be written".into()) };
        let reason = refused.get_details_error_info().map(|info| info.reason);
        if refused.code() != Code::Unavailable || reason.as_deref() != Some("DISK_FULL") {
            return Err(server.complaint(&format!("started on a full disk, a change gets {refused:?}")));
        }
    }
    oracle.refused(OWN_BOOK);
    if files_below(&launch.data_dir)? != before {
        return Err("a start on a full disk has written".into());
    }
    disk.make_room()?;
    timeout(START_LIMIT, server.line(SERVING)).await??;
    probe.wait_for_admin(true).await?;
    create(&caller, oracle).await?.map_err(|refused| format!("there is room, and yet: {refused:?}"))?;
    if files_below(&launch.data_dir)? == before {
        return Err("nothing differs after a change: what is compared does not tell".into());
    }
    run.tally.count("full disks: a start on it answered verdicts, wrote nothing, and went on when there was room", 1);
    server.kill().await
}

/// Where there is nothing to answer from, a start says what it lacks.
async fn start_of_new_data(run: &mut Run, disk: &Tmpfs, launch: &Launch) -> Result<(), Failure> {
    disk.fill(0)?;
    let data_dir = disk.0.join("new");
    fs::create_dir(&data_dir)?;
    let mut server = Launch { data_dir, ..launch.clone() }.spawn()?;
    let status = server.end(END_LIMIT).await?;
    if status.code() != Some(1) || !says(&server, &["has no data yet, and its disk has 0 bytes free"], "keyward: ") {
        return Err(server.complaint(&format!("a first start on a full disk ended with {status}")));
    }
    run.tally.count("full disks: a first start on it was refused, with the cause", 1);
    Ok(())
}

/// All files below a directory, and what is in them.
fn files_below(dir: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>, Failure> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path)?);
        } else {
            found.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(found)
}

async fn works_again(caller: &Caller, oracle: &Arc<Oracle>) -> Result<(), Failure> {
    let began = Instant::now();
    loop {
        match create(caller, oracle).await? {
            Ok(_) => return Ok(()),
            Err(status) if status.code() == Code::ResourceExhausted && began.elapsed() < RECOVERY_LIMIT => {
                sleep(POLL).await;
            }
            Err(status) => return Err(format!("there is room again, and a change gets {status:?}").into()),
        }
    }
}

async fn create(caller: &Caller, oracle: &Arc<Oracle>) -> Result<Result<Key, Status>, Failure> {
    let name = {
        let mut book = oracle.books()[OWN_BOOK].lock();
        book.names += 1;
        format!("own-{}", book.names)
    };
    oracle.ask(OWN_BOOK, &name, Change::Create(name.clone()));
    let request = pb::CreateKeyRequest { key_id: name.clone(), display_name: name.clone(), ..Default::default() };
    match caller.create(request).await {
        Ok(made) => {
            oracle.acknowledged_as(OWN_BOOK, made.key.as_ref(), Some(made.secret))?;
            let key = oracle.books()[OWN_BOOK].lock().key(&name).cloned();
            Ok(Ok(key.ok_or("the oracle has forgotten a key")?))
        }
        Err(status) => Ok(Err(refused(oracle, status))),
    }
}

async fn change(
    caller: &Caller,
    oracle: &Arc<Oracle>,
    key: &Key,
    change: Change,
) -> Result<Result<(), Status>, Failure> {
    let key_id = key.id.clone();
    oracle.ask(OWN_BOOK, &key_id, change.clone());
    let made = match change {
        Change::Disable(reason) => {
            caller.disable(pb::DisableKeyRequest { key_id, reason, ..Default::default() }).await.map(|made| made.key)
        }
        Change::Enable(reason) => {
            caller.enable(pb::EnableKeyRequest { key_id, reason, ..Default::default() }).await.map(|made| made.key)
        }
        Change::Revoke(reason) => {
            caller.revoke(pb::RevokeKeyRequest { key_id, reason, ..Default::default() }).await.map(|made| made.key)
        }
        // And narrows it: the key that had no end has one.
        Change::Relabel(display_name) => {
            let expire_time = Some(prost_types::Timestamp { seconds: END_SECONDS, nanos: 0 });
            let key = Some(pb::Key { key_id, display_name, expire_time, ..Default::default() });
            let paths = vec!["display_name".to_owned(), "expire_time".to_owned()];
            let update_mask = Some(prost_types::FieldMask { paths });
            caller.update(pb::UpdateKeyRequest { key, update_mask, ..Default::default() }).await.map(|made| made.key)
        }
        Change::Delete(reason) => {
            caller.delete(pb::DeleteKeyRequest { key_id, reason, ..Default::default() }).await.map(|made| made.key)
        }
        Change::Create(_)
        | Change::Suspend(_)
        | Change::Undelete(_)
        | Change::Rotate
        | Change::Finish
        | Change::Cancel => {
            return Err("not a change of this mode".into());
        }
    };
    match made {
        Ok(told) => {
            oracle.acknowledged_as(OWN_BOOK, told.as_ref(), None)?;
            Ok(Ok(()))
        }
        Err(status) => Ok(Err(refused(oracle, status))),
    }
}

/// Only what the server has surely not done is taken off the book.
fn refused(oracle: &Arc<Oracle>, status: Status) -> Status {
    if status.code() == Code::ResourceExhausted {
        oracle.refused(OWN_BOOK);
    }
    status
}

fn refused_for_room<T>(answer: &Result<T, Status>) -> Result<(), Failure> {
    let Err(status) = answer else { return Err("a change was made that there is no room for".into()) };
    let reason = status.get_details_error_info().map(|info| info.reason);
    if status.code() == Code::ResourceExhausted && reason.as_deref() == Some("DISK_FULL") {
        return Ok(());
    }
    Err(format!("without room, a change gets {status:?}").into())
}

/// A small disk in memory. Dropping it unmounts it.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Result<Self, Failure> {
        fs::create_dir(at)?;
        command("mount", &["-t", "tmpfs", "-o", DISK_BYTES, "tmpfs"], &[at])?;
        Ok(Self(at.to_owned()))
    }

    /// Fills it up to so many bytes; gives the file that does it.
    fn fill(&self, left: u64) -> Result<PathBuf, Failure> {
        let path = self.0.join(format!("filler-{left}"));
        let file = File::options().create(true).append(true).open(&path)?;
        for _ in 0..100 {
            let disk = statvfs(&self.0)?;
            let surplus = (disk.f_bavail * disk.f_frsize).saturating_sub(left);
            if surplus == 0 {
                break;
            }
            // Somebody else may take some of it meanwhile.
            match fallocate(&file, FallocateFlags::empty(), file.metadata()?.len(), surplus) {
                Ok(()) | Err(rustix::io::Errno::NOSPC) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(path)
    }

    fn make_room(&self) -> Result<(), Failure> {
        for entry in fs::read_dir(&self.0)? {
            let path = entry?.path();
            if path.is_file() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        if let Err(failure) = command("umount", &["--lazy"], &[&self.0]) {
            println!("{failure}");
        }
    }
}
