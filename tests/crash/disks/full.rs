//! A full disk: a small tmpfs that somebody else fills. Changes are refused, those that take power away last; verdicts go
//! on; with room again all goes on. A start on a full disk works, or says what it lacks.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use rand::RngExt;
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use tokio::time::sleep;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use super::{POLL, has_ended_within, judge, load_for_a_while, says};
use crate::Failure;
use crate::caller::Caller;
use crate::health::Probe;
use crate::image::command;
use crate::oracle::{Change, Key, Oracle};
use crate::run::{Run, Scene};
use crate::server::{END_LIMIT, START_LIMIT};
use crate::watch::Watch;

const DISK_BYTES: &str = "size=192m";
/// With this much left, changes are refused, but for those that take power away.
const SCARCE_BYTES: u64 = 40 * 1024 * 1024;
/// How long the disk stays full: long enough for sled to flush by itself, and for the table to be looked at.
const FULL_FOR: Duration = Duration::from_secs(4);
/// With room again, a change succeeds within this time.
const RECOVERY_LIMIT: Duration = Duration::from_secs(15);
/// A failure of the table that a change has met ends the process within this time; the table is written behind.
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
    run.tally.count("full disks: with little room only a narrowing update and a disable were made", 1);

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
        // The table may have failed while the disk was full. Verdicts went on all the same; the first change notices.
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

    let mut server = launch.spawn()?;
    match server.serving(START_LIMIT).await {
        Ok(()) => {
            run.tally.count("full disks: a start on it served", 1);
            server.kill().await?;
        }
        Err(failure) if !server.has_ended()? => return Err(failure),
        Err(_) => {
            let status = server.end(END_LIMIT).await?;
            if status.code() != Some(1) || !says(&server, &NO_SPACE, "keyward: ") {
                return Err(
                    server.complaint(&format!("a start on a full disk ended with {status}, and does not say why"))
                );
            }
            run.tally.count("full disks: a start on it was refused, with the cause", 1);
        }
    }
    disk.make_room()?;
    judge(run, scene, &launch, &oracle).await
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
        Change::Create(_) => return Err("not a change of this mode".into()),
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
