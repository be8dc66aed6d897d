//! SIGKILL at random instants: under load, during a start, while the table is rebuilt, during a backup, while
//! an administrator is made offline.

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use keyward::grpc::pb;
use rand::RngExt;
use tokio::time::{sleep, timeout};

use crate::Failure;
use crate::caller::Caller;
use crate::load::{Load, Mix, Shape};
use crate::offline::Offline;
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::{SERVING, START_LIMIT, Server};
use crate::verify::compare;

/// A data directory is left for a new one after so many kills: each start reads all of it.
const KILLS_PER_DIRECTORY: u64 = 25;
/// A directory begins with this many keys, so that a start and a rebuild take their time.
const FIRST_KEYS: Shape = Shape { mix: Mix::Bulk, clients: 64, connections: 2, keys_per_client: 32 };
/// How long the load runs before a kill.
const LOAD_MILLIS: std::ops::Range<u64> = 20..400;
/// Kills of starts in a row at most.
const STARTS_MAX: u32 = 3;
/// What the log says while the table is built.
const BUILDING: [&str; 2] = ["bringing the table up to the journal", "building the table"];

/// Kills the server so many times.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let mut kills = Kills {
        left: count,
        start_takes: Duration::from_millis(300),
        rebuild_takes: Duration::from_secs(1),
        backup_takes: Duration::ZERO,
        mint_takes: Duration::from_millis(300),
        minted: vec![],
        offline: Offline::of(&run.program),
    };
    while kills.left > 0 && !run.gives_up() {
        let scene = run.scene(SMALL_SEGMENT)?;
        if let Err(failure) = kills.directory(run, &scene).await {
            run.fail(&scene, &failure);
        }
        run.discard(&scene);
    }
    Ok(())
}

/// What a start finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// Nothing.
    First,
    /// What a kill left.
    Plain,
    /// The same, with its table removed or cut in half.
    Rebuild,
}

impl Start {
    fn name(self) -> &'static str {
        match self {
            Self::First => "kills in a first start",
            Self::Plain => "kills in a start",
            Self::Rebuild => "kills in a start with a damaged table",
        }
    }
}

struct Kills {
    left: u64,
    /// How long the last start took that was not disturbed; kills of starts aim at it.
    start_takes: Duration,
    /// The same with a table to be built.
    rebuild_takes: Duration,
    /// The same for a backup.
    backup_takes: Duration,
    /// The same for one administrator more.
    mint_takes: Duration,
    /// The keys of administrators that were made offline in the current directory.
    minted: Vec<String>,
    offline: Offline,
}

impl Kills {
    /// One data directory: from its first start to its last kill.
    async fn directory(&mut self, run: &mut Run, scene: &Scene) -> Result<(), Failure> {
        let oracle = scene.oracle(FIRST_KEYS.clients)?;
        self.minted.clear();
        let mut before = self.left;
        let end = self.left.saturating_sub(KILLS_PER_DIRECTORY);
        self.starts(run, scene, Start::First).await?;
        let mut server = scene.launch.serve().await?;
        Load::start(&server, &oracle, FIRST_KEYS, run.rng.random()).await?.complete().await?;

        self.whole_backup(run, scene, &server)?;
        let findings = compare(&server, &oracle).await?;
        let mut verified = findings.changes;
        run.tally.add(&findings);
        run.judge(scene, &findings, before - self.left);
        before = self.left;
        while self.left > end {
            let load = Load::start(&server, &oracle, Shape::of(Mix::Ordinary), run.rng.random()).await?;
            sleep(Duration::from_millis(run.rng.random_range(LOAD_MILLIS))).await;
            if run.rng.random_ratio(1, 3) {
                self.kill_in_a_backup(run, scene, &mut server).await?;
            } else {
                self.kill(run, &mut server, "kills under load").await?;
            }
            load.finish().await?;
            oracle.sync()?;
            if run.rng.random_ratio(1, 3) {
                self.offline.check_directory(&scene.launch, &mut run.tally)?;
            }

            if run.rng.random_ratio(1, 4) {
                self.mint(run, scene).await?;
            }
            let rebuild = match run.rng.random_range(0..4) {
                0 => {
                    self.starts(run, scene, Start::Plain).await?;
                    false
                }
                1 => {
                    damage(run, &scene.launch.data_dir.join("table"))?;
                    self.starts(run, scene, Start::Rebuild).await?;
                    true
                }
                _ => false,
            };
            let began = Instant::now();
            server = scene.launch.serve().await?;
            *(if rebuild { &mut self.rebuild_takes } else { &mut self.start_takes }) = began.elapsed();

            self.check_minted(&server).await?;
            let findings = compare(&server, &oracle).await?;
            verified = findings.changes;
            run.tally.add(&findings);
            run.judge(scene, &findings, before - self.left);
            before = self.left;
            if !findings.is_clean() {
                break;
            }
        }
        server.stop().await?;
        self.offline.check_directory(&scene.launch, &mut run.tally)?;
        run.tally.add_changes(oracle.acknowledged(), verified);
        run.tally.count("data directories", 1);
        Ok(())
    }

    /// Makes one administrator more offline, and kills that at a random instant once in a while.
    async fn mint(&mut self, run: &mut Run, scene: &Scene) -> Result<(), Failure> {
        if !self.offline.has_admin_key {
            run.tally.count("NOT DONE, the program has no `admin-key`", 1);
            return Ok(());
        }
        let began = Instant::now();
        let mut minting = self.offline.mint(&scene.launch)?;
        let killed = run.rng.random();
        if killed {
            sleep(self.mint_takes.mul_f64(run.rng.random_range(0.0..1.2))).await;
            minting.kill()?;
        }
        let minted = minting.wait_with_output()?;
        let secret = String::from_utf8_lossy(&minted.stdout).trim().to_owned();
        match (killed, minted.status.success()) {
            (false, false) => return Err(format!("admin-key: {}", minted.status).into()),
            (true, false) => run.tally.count("kills while an administrator was made offline", 1),
            (true, true) => run.tally.count("kills just after an administrator was made offline", 1),
            (false, true) => {
                self.mint_takes = began.elapsed();
                run.tally.count("administrators made offline", 1);
            }
        }
        // It hands the key over before the change is durable: an administrator whose key nobody has would
        // count as one. So it is the success that says that the key works.
        self.minted.extend(minted.status.success().then_some(secret));
        Ok(())
    }

    /// Those that were made offline are administrators.
    async fn check_minted(&self, server: &Server) -> Result<(), Failure> {
        for secret in &self.minted {
            let caller = Caller::connect(server.reach()?.0, secret).await?;
            let request = pb::ListKeysRequest { page_size: 1, ..Default::default() };
            caller.list(request).await.map_err(|e| format!("an administrator made offline is refused: {e:?}"))?;
        }
        Ok(())
    }

    async fn kill(&mut self, run: &mut Run, server: &mut Server, kind: &str) -> Result<(), Failure> {
        server.kill().await?;
        self.left = self.left.saturating_sub(1);
        run.tally.count("kills", 1);
        run.tally.count(kind, 1);
        Ok(())
    }

    /// Makes a backup without disturbing it, to know how long that takes.
    fn whole_backup(&mut self, run: &mut Run, scene: &Scene, server: &Server) -> Result<(), Failure> {
        if !self.offline.has_backup {
            return Ok(());
        }
        let (backup, began) = (scene.root.join("backup"), Instant::now());
        if !self.offline.backup(server, &backup)?.wait()?.success() {
            return Err("a backup of a server that nobody kills has failed".into());
        }
        self.backup_takes = began.elapsed();
        self.offline.check_backup(&backup, &mut run.tally)
    }

    /// Kills the server at a random instant after a backup has begun. Either the backup was whole by then, or
    /// there is none.
    async fn kill_in_a_backup(&mut self, run: &mut Run, scene: &Scene, server: &mut Server) -> Result<(), Failure> {
        if !self.offline.has_backup {
            run.tally.count("NOT DONE in a backup, the program has no `backup`", 1);
            return self.kill(run, server, "kills under load").await;
        }
        let backup = scene.root.join(format!("backup-{}", self.left));
        let mut fetching = self.offline.backup(server, &backup)?;
        sleep(self.backup_takes.mul_f64(run.rng.random_range(0.0..1.0))).await;
        let was_done = fetching.try_wait()?.is_some();
        self.kill(run, server, if was_done { "kills just after a backup" } else { "kills in a backup" }).await?;
        match (fetching.wait()?.success(), backup.exists()) {
            (true, true) => self.offline.check_backup(&backup, &mut run.tally),
            (false, false) => Ok(()),
            (true, false) => Err("a backup succeeded, and there is no file".into()),
            (false, true) => Err(format!("a backup failed, and left {} behind", backup.display()).into()),
        }
    }

    /// Starts the server a few times, and kills it at a random instant before it serves.
    async fn starts(&mut self, run: &mut Run, scene: &Scene, start: Start) -> Result<(), Failure> {
        let takes = if start == Start::Rebuild { self.rebuild_takes } else { self.start_takes };
        for _ in 0..run.rng.random_range(1..=STARTS_MAX) {
            if self.left == 0 {
                break;
            }
            let mut server = scene.launch.spawn()?;
            let mut instant = takes.mul_f64(run.rng.random_range(0.0..1.0));
            let mut builds = false;
            if start == Start::Rebuild && run.rng.random_ratio(2, 3) {
                // From the moment on when it begins to build, if it does.
                timeout(START_LIMIT, server.any_line(&[BUILDING[0], BUILDING[1], SERVING])).await??;
                instant = instant.saturating_sub(self.start_takes / 2);
                builds = true;
            }
            let served = |server: &Server| server.log().iter().any(|line| line.contains(SERVING));
            if !served(&server) && timeout(instant, server.serving(START_LIMIT)).await.is_err() {
                builds |= server.log().iter().any(|line| BUILDING.iter().any(|sign| line.contains(sign)));
                self.kill(run, &mut server, start.name()).await?;
                if builds && start == Start::Rebuild && !served(&server) {
                    run.tally.count("kills while the table was built", 1);
                }
            } else {
                self.kill(run, &mut server, "kills just after a start").await?;
            }
        }
        Ok(())
    }
}

/// Removes a table, or cuts off half of its largest file.
pub(crate) fn damage(run: &mut Run, table: &Path) -> Result<(), Failure> {
    if run.rng.random() {
        return Ok(fs::remove_dir_all(table)?);
    }
    let path = table.join("db");
    let file = File::options().write(true).open(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let bytes = file.metadata()?.len();
    Ok(file.set_len(bytes / 2)?)
}
