//! SIGKILL within the takeover of a data directory of version 1: at each call to the disk that it makes, with
//! another kill in the next start for every second one, and a third one under changes. What the directory had
//! must be there in every record, and only what version 2 writes may have changed.

mod calls;
pub(crate) mod child;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::RngExt;
use tokio::time::{sleep, timeout};

use self::calls::{Call, Calls, kill_at, segments};
use crate::Failure;
use crate::offline::Offline;
use crate::process::Process;
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::START_LIMIT;
use crate::verify::Findings;

/// The last program of version 1, which makes the large directory.
const LAST_OF_VERSION_1: &str = "5f419a3";
/// Keys of the large directory.
const LARGE_KEYS: u64 = 100_000;
/// Directories as programs of version 1 have left them, the second after a restore.
const KEPT: [&str; 2] = ["v1", "v1-restored"];
/// How long changes are made before the last kill.
const LOAD_MILLIS: std::ops::Range<u64> = 0..300;
/// Where a segment's and a watermark's header say their version.
const SEGMENT_VERSION_AT: usize = 8;
const WATERMARK_VERSION_AT: usize = 4;

/// Kills the takeover of a small directory at every call. With a count, those of another small one too, and
/// that of a large one at so many calls.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/data-directories");
    for name in &KEPT[..if count > 0 { 2 } else { 1 }] {
        let original =
            Original { data_dir: kept.join(name).join("data"), expected: run.out().join(format!("{name}.txt")) };
        takeovers(run, &original, None).await?;
    }
    if count > 0 {
        let data_dir = of_version_1(run.out())?;
        let original = Original { expected: data_dir.with_extension("txt"), data_dir };
        takeovers(run, &original, Some(usize::try_from(count)?)).await?;
    }
    Ok(())
}

/// A directory of version 1, which is never written to.
struct Original {
    data_dir: PathBuf,
    /// What it has.
    expected: PathBuf,
}

/// Kills at every call from the first of the takeover on, or at so many of all calls, those included.
async fn takeovers(run: &mut Run, original: &Original, count: Option<usize>) -> Result<(), Failure> {
    let scene = run.scene(SMALL_SEGMENT)?;
    copy(&original.data_dir, &scene.launch.data_dir)?;
    let paths = [scene.launch.data_dir.clone(), original.expected.clone()].map(Into::into);
    Process::spawn("takeover-child", paths, &scene.launch.log)?.stop().await?;
    let calls = calls::count(&scene).await?;
    run.discard(&scene);

    for (nth, call) in chosen(&calls, count).iter().enumerate() {
        if run.gives_up() {
            break;
        }
        let scene = run.scene(SMALL_SEGMENT)?;
        copy(&original.data_dir, &scene.launch.data_dir)?;
        if let Err(failure) = takeover(run, &scene, original, &calls, call, nth % 2 == 1).await {
            run.fail(&scene, &format!("killed at {} {}: {failure}", call.name, call.nth).into());
        }
        run.discard(&scene);
    }
    Ok(())
}

/// The calls to kill at: those of the takeover, and before them the nearest ones.
fn chosen(calls: &Calls, count: Option<usize>) -> &[Call] {
    let of_takeover = calls.all.len() - calls.first;
    let before = count.unwrap_or(0).saturating_sub(of_takeover).min(calls.first);
    &calls.all[calls.first - before..]
}

/// One directory, from the kill in its takeover to the last comparison.
async fn takeover(
    run: &mut Run,
    scene: &Scene,
    original: &Original,
    calls: &Calls,
    call: &Call,
    twice: bool,
) -> Result<(), Failure> {
    let offline = Offline::of(&run.program);
    let mut kills = kill(run, scene, call, "kills in a takeover").await?;
    offline.check_directory(&scene.launch, &mut run.tally)?;
    if twice {
        let call = &calls.all[run.rng.random_range(0..calls.all.len())];
        kills += kill(run, scene, call, "kills in the start after it").await?;
        offline.check_directory(&scene.launch, &mut run.tally)?;
    }
    let (process, findings) = compare(scene, original).await?;
    run.tally.add(&findings);
    run.judge(scene, &findings, kills);
    if !findings.is_clean() {
        return Ok(());
    }
    sleep(Duration::from_millis(run.rng.random_range(LOAD_MILLIS))).await;
    process.kill().await?;
    run.tally.count("kills under changes after it", 1);
    offline.check_directory(&scene.launch, &mut run.tally)?;

    let (process, findings) = compare(scene, original).await?;
    run.tally.add(&findings);
    run.judge(scene, &findings, 1);
    run.tally.add_changes(findings.changes + findings.lost, findings.changes);
    process.stop().await?;
    offline.check_directory(&scene.launch, &mut run.tally)?;
    is_of_version_2(scene, original)
}

/// Kills a start at a call. Gives the number of kills.
async fn kill(run: &mut Run, scene: &Scene, call: &Call, kind: &str) -> Result<u64, Failure> {
    if !kill_at(scene, call).await? {
        run.tally.count("kills just after a takeover", 1);
        return Ok(1);
    }
    run.tally.count(kind, 1);
    run.tally.count(&format!("{kind}: {}", forms(&scene.launch.data_dir)?), 1);
    Ok(1)
}

/// What is of version 2 already.
fn forms(data_dir: &Path) -> Result<String, Failure> {
    let is = |yes: bool| if yes { 2 } else { 1 };
    let format = is(fs::read(data_dir.join("format"))? == b"keyward-data 2\n");
    let watermark = is(fs::read(data_dir.join("watermark"))?.get(WATERMARK_VERSION_AT) == Some(&2));
    let last = segments(data_dir)?.pop().ok_or("the journal has no segment")?;
    let segment = is(fs::read(last.1)?.get(SEGMENT_VERSION_AT) == Some(&2));
    Ok(format!("format {format}, watermark {watermark}, last segment {segment}"))
}

async fn compare(scene: &Scene, original: &Original) -> Result<(Process, Findings), Failure> {
    let paths = [scene.launch.data_dir.clone(), original.expected.clone(), scene.root.join("later.txt")];
    let mut process = Process::spawn("takeover-child", paths.map(Into::into), &scene.launch.log)?;
    match timeout(START_LIMIT, process.report()).await {
        Ok(findings) => Ok((process, findings?)),
        Err(_) => Err(process.complaint("the directory is not compared by now")),
    }
}

/// All that is written now is of version 2, and the segments of version 1 are as they were.
fn is_of_version_2(scene: &Scene, original: &Original) -> Result<(), Failure> {
    let told = forms(&scene.launch.data_dir)?;
    if told != "format 2, watermark 2, last segment 2" {
        return Err(format!("after the takeover: {told}").into());
    }
    for (number, path) in segments(&original.data_dir)? {
        let name = path.file_name().ok_or("a segment has no name")?;
        if fs::read(&path)? != fs::read(scene.launch.data_dir.join("journal").join(name))? {
            return Err(format!("segment {number} of version 1 was written to").into());
        }
    }
    Ok(())
}

/// Copies a directory that git has, which does not keep who may read a file.
fn copy(from: &Path, to: &Path) -> Result<(), Failure> {
    run_to_end(Command::new("cp").args(["-a", "--reflink=auto"]).arg(from).arg(to))?;
    Ok(fs::set_permissions(to.join("pepper"), fs::Permissions::from_mode(0o600))?)
}

/// Makes the large directory, once, with a program of version 1 that is built from the repository's history.
fn of_version_1(out: &Path) -> Result<PathBuf, Failure> {
    let data_dir = out.join(format!("v1-{LARGE_KEYS}-keys"));
    if data_dir.join("format").exists() {
        return Ok(data_dir);
    }
    println!("takeover: building the program of {LAST_OF_VERSION_1}, to make {LARGE_KEYS} keys of version 1");
    let source = out.join("v1-source");
    fs::create_dir_all(&source)?;
    let archive = out.join("v1-source.tar");
    let root = env!("CARGO_MANIFEST_DIR");
    let program = source.join("target/debug/seed_store");
    // Made elsewhere, and renamed when it is whole.
    let unfinished = data_dir.with_extension("new");
    drop(fs::remove_dir_all(&unfinished));
    let secrets = data_dir.with_extension("secrets");
    drop(fs::remove_file(&secrets));
    run_to_end(Command::new("git").current_dir(root).args(["archive", LAST_OF_VERSION_1, "-o"]).arg(&archive))?;
    run_to_end(Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&source))?;
    let mut cargo = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    cargo.current_dir(&source).env("CARGO_TARGET_DIR", source.join("target"));
    run_to_end(cargo.args(["build", "--quiet", "--locked", "-p", "keyward-bench", "--bin", "seed_store"]))?;
    run_to_end(Command::new(program).arg(&unfinished).arg(LARGE_KEYS.to_string()).arg(&secrets).arg("1"))?;
    fs::rename(&unfinished, &data_dir)?;
    Ok(data_dir)
}

fn run_to_end(command: &mut Command) -> Result<(), Failure> {
    let ended = command.status().map_err(|e| format!("cannot run {command:?}: {e}"))?;
    if ended.success() { Ok(()) } else { Err(format!("{command:?}: {ended}").into()) }
}
