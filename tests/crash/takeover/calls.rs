//! The calls to the disk that a start makes on the files of a takeover, as strace sees them, and a start that
//! is killed at one of them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use tokio::time::timeout;

use crate::Failure;
use crate::run::Scene;
use crate::server::{END_LIMIT, SERVING, START_LIMIT};

/// All calls that name a file or work on an open one.
const CALLS: &str = "%file,%desc";

/// A call of the thread that takes over: its name, and how many calls of that name it has made with it. So
/// does strace count.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub(super) name: String,
    pub(super) nth: usize,
}

/// What that thread does up to the end of the takeover, and a little more.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pub(super) all: Vec<Call>,
    /// Where the takeover begins: it makes `format.new`.
    pub(super) first: usize,
}

/// Calls that are taken in behind the last one of the takeover.
const BEHIND: usize = 3;

/// Starts the server once, without harm, and counts. The scene's directory is taken over then.
pub(super) async fn count(scene: &Scene) -> Result<Calls, Failure> {
    let trace = scene.root.join("strace.txt");
    let mut launch = scene.launch.clone();
    launch.wrapper = strace(&scene.launch.data_dir, &trace, None)?;
    let mut server = launch.spawn()?;
    timeout(START_LIMIT, server.line(SERVING)).await??;
    let text = fs::read_to_string(&trace)?;
    server.signal(Signal::TERM)?;
    server.end(END_LIMIT).await?;
    let first = text.lines().find(|line| line.contains("format.new")).ok_or("the start takes nothing over")?;
    let (thread, _) = first.split_once(' ').ok_or("a line of strace has no thread")?;
    let (mut all, mut first, mut last, mut numbers) = (vec![], None, 0, BTreeMap::<String, usize>::new());
    // Of a call that was interrupted, only the beginning counts.
    for line in text.lines().filter_map(|line| line.strip_prefix(thread)).map(str::trim_start) {
        let Some((name, args)) = line.split_once('(').filter(|(name, _)| !name.contains(' ')) else { continue };
        if args.contains("format.new") {
            first.get_or_insert(all.len());
        }
        // The new segment gets its name at the end.
        if args.contains(".kwj.new") {
            last = all.len();
        }
        let nth = numbers.entry(name.to_owned()).or_default();
        *nth += 1;
        all.push(Call { name: name.to_owned(), nth: *nth });
    }
    all.truncate(last + 1 + BEHIND);
    Ok(Calls { all, first: first.ok_or("the takeover has no beginning")? })
}

/// Starts the server, and lets strace kill it at a call. `false`: it served, and was killed then.
pub(super) async fn kill_at(scene: &Scene, call: &Call) -> Result<bool, Failure> {
    let trace = scene.root.join("strace.txt");
    let mut launch = scene.launch.clone();
    launch.wrapper = strace(&scene.launch.data_dir, &trace, Some(call))?;
    let mut server = launch.spawn()?;
    let served = timeout(START_LIMIT, server.line(SERVING)).await;
    match served {
        Ok(Ok(_)) => {
            // It may be killed at this very moment too.
            if !server.has_ended()? {
                server.signal(Signal::KILL)?;
            }
            server.end(END_LIMIT).await?;
            Ok(false)
        }
        Ok(Err(failure)) => {
            let killed = fs::read_to_string(&trace)?.contains("SIGKILL");
            if killed { Ok(true) } else { Err(failure) }
        }
        Err(_) => Err(server.complaint("it neither serves nor is killed")),
    }
}

fn strace(data_dir: &Path, trace: &Path, kill_at: Option<&Call>) -> Result<Vec<String>, Failure> {
    // Without --seccomp-bpf, with which no signal comes.
    let mut words: Vec<String> = ["strace", "-f", "-qq", "-e"].map(str::to_owned).to_vec();
    words.push(format!("trace={}", kill_at.map_or(CALLS, |call| &call.name)));
    if let Some(Call { name, nth }) = kill_at {
        words.extend(["-e".to_owned(), format!("inject={name}:signal=KILL:when={nth}")]);
    }
    words.extend(["-o".to_owned(), trace.display().to_string()]);
    for path in paths(data_dir)? {
        words.extend(["-P".to_owned(), path.display().to_string()]);
    }
    Ok(words)
}

/// All that a takeover writes, and the directories that it syncs.
fn paths(data_dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let journal = data_dir.join("journal");
    let last = segments(data_dir)?.last().map_or(0, |(number, _)| *number);
    let mut paths = vec![data_dir.to_owned(), journal.clone()];
    paths.extend(["format", "format.new", "watermark", "watermark.new"].map(|name| data_dir.join(name)));
    let names = [format!("{last:012}.kwj"), format!("{:012}.kwj", last + 1), format!("{:012}.kwj.new", last + 1)];
    paths.extend(names.map(|name| journal.join(name)));
    Ok(paths)
}

/// The segments of the journal, in order: their numbers and paths.
pub(super) fn segments(data_dir: &Path) -> Result<Vec<(u64, PathBuf)>, Failure> {
    let mut segments = vec![];
    for entry in fs::read_dir(data_dir.join("journal"))? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".kwj")?.parse().ok());
        segments.extend(number.map(|number| (number, path)));
    }
    segments.sort();
    Ok(segments)
}
