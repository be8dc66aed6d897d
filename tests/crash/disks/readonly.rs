//! A disk that turns read-only under a server, as ext4 does after an error. The process ends or refuses and
//! says why; a start on it is refused; once it is mended, everything is there.

use std::fs;
use std::time::Duration;

use rand::RngExt;
use tokio::time::sleep;

use super::{LOAD_BEFORE, has_ended_within, judge, says};
use crate::Failure;
use crate::image::{Disk, command};
use crate::load::{Load, Mix, Shape};
use crate::run::{Run, Scene};
use crate::server::{END_LIMIT, START_LIMIT};
use crate::watch::Watch;

const DISK_MEBIBYTES: u64 = 192;
/// With clients at work, the end of a process that cannot write comes within this time.
const END_OF_PROCESS_LIMIT: Duration = Duration::from_secs(20);
/// A read-only file system, an aborted journal of ext4, and a failed write.
const CAUSES: [&str; 6] = ["os error 30)", "code: 30,", "os error 5)", "code: 5,", "os error 117)", "code: 117,"];

/// Provokes an error of the file system under a server.
pub(crate) async fn run(run: &mut Run, scene: &Scene) -> Result<(), Failure> {
    let image = scene.root.join("disk.img");
    let disk = Disk::make(&image, DISK_MEBIBYTES)?;
    command("mount", &["-o", "remount,errors=remount-ro"], &[&disk.mount])?;
    let mut launch = scene.launch.clone();
    launch.data_dir = disk.mount.join("data");
    let oracle = scene.oracle(8)?;
    let mut server = launch.serve().await?;
    let watch = Watch::start(&server, &oracle, run.rng.random()).await?;
    let load = Load::start(&server, &oracle, Shape::of(Mix::Ordinary), run.rng.random()).await?;
    sleep(LOAD_BEFORE).await;

    let switch = format!("/sys/fs/ext4/{}/trigger_fs_error", disk.device.trim_start_matches("/dev/"));
    fs::write(&switch, "1").map_err(|e| format!("{switch}: {e}"))?;
    if has_ended_within(&mut server, END_OF_PROCESS_LIMIT).await? {
        let status = server.end(END_LIMIT).await?;
        if !says(&server, &CAUSES, "start keyward again") {
            return Err(server.complaint(&format!("it ended with {status} on a read-only disk, and does not say why")));
        }
        run.tally.count("disks that turn read-only: the process ended, with cause and advice", 1);
    } else {
        // Then it must have refused what it cannot write, and be the one that says so.
        server.read_log();
        if !says(&server, &CAUSES, "changes are refused") {
            return Err(server.complaint("it lives on a read-only disk, and does not say that it refuses changes"));
        }
        run.tally.count("disks that turn read-only: changes were refused, with the cause", 1);
        server.kill().await?;
    }
    load.finish().await?;
    run.tally.count("verdicts compared while a disk failed", watch.finish().await?);

    let mut server = launch.spawn()?;
    if server.serving(START_LIMIT).await.is_ok() || !server.has_ended()? {
        return Err(server.complaint("a start on a read-only disk was not refused"));
    }
    let status = server.end(END_LIMIT).await?;
    if status.code() != Some(1) || !says(&server, &CAUSES, "keyward: ") {
        return Err(server.complaint(&format!("a start on a read-only disk ended with {status}, and does not say why")));
    }
    run.tally.count("disks that turn read-only: a start on it was refused, with the cause", 1);

    drop(disk);
    mend(&image)?;
    let disk = Disk::mount(&image)?;
    launch.data_dir = disk.mount.join("data");
    judge(run, scene, &launch, &oracle).await
}

/// What an operator does. Its exit status 1 says that it has mended something.
fn mend(image: &std::path::Path) -> Result<(), Failure> {
    let status = std::process::Command::new("e2fsck").args(["-f", "-y"]).arg(image).output()?.status;
    if matches!(status.code(), Some(0 | 1)) { Ok(()) } else { Err(format!("e2fsck: {status}").into()) }
}
