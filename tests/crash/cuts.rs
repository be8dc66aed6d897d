//! Power cuts: the disk's image is copied at one instant under load, and a server is started on the copy.
//!
//! Life goes on upon the copy until the next cut, so one directory sees several.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::sleep;

use crate::Failure;
use crate::image::{Disk, freeze};
use crate::load::{Load, Mix, Shape};
use crate::oracle::Oracle;
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::server::{Launch, Server};
use crate::verify::{Findings, compare};

/// A disk is left for a new one after so many cuts.
const CUTS_PER_DISK: u64 = 10;
/// How long the load runs before a cut.
const LOAD_MILLIS: std::ops::Range<u64> = 50..1_500;
/// The keys of a bulk load; a cut comes after some of them.
const BULK_KEYS: u64 = 100_000;
/// In a short run the cut comes after fewer of them: a machine with other work takes minutes for all.
const BULK_KEYS_SHORT: u64 = 20_000;
/// A run of fewer cuts is short.
const SHORT_RUN: u64 = 100;
/// How long a bulk load may take.
const BULK_LIMIT: Duration = Duration::from_secs(600);
const BULK_POLL: Duration = Duration::from_millis(5);
/// How long the next segment may take to come, at several a second.
const SEGMENT_LIMIT: Duration = Duration::from_secs(30);
const SEGMENT_POLL: Duration = Duration::from_micros(200);
/// As many calls at a time as two connections carry.
const BULK: Shape =
    Shape { mix: Mix::Bulk, clients: 512, connections: 2, keys_per_client: BULK_KEYS as usize / 512 + 1 };
/// Segments that a bulk load or a plain one does not fill in no time.
const LARGE_SEGMENT: u64 = 4 * 1024 * 1024;

/// What happens when the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Clients do a bit of everything.
    Plain,
    /// Few keys change over and over, so that the table rewrites its segments.
    Churn,
    /// The journal goes on to a new segment several times a second.
    Rollover,
    /// As [`Self::Rollover`], and the power fails just after the first change in a new segment was
    /// acknowledged: most often no other sync has made the segment's name durable by then.
    NewSegment,
    /// 100,000 keys are being created by 512 clients at once.
    Bulk,
    /// The server is starting, also for the first time, and with its table removed.
    Start,
}

impl Variant {
    fn shape(self) -> Shape {
        match self {
            Self::Plain | Self::Rollover | Self::NewSegment | Self::Start => Shape::of(Mix::Ordinary),
            Self::Churn => Shape::of(Mix::Churn),
            Self::Bulk => BULK,
        }
    }

    pub(crate) fn segment_bytes(self) -> u64 {
        if matches!(self, Self::Rollover | Self::NewSegment) { SMALL_SEGMENT } else { LARGE_SEGMENT }
    }

    fn disk_mebibytes(self) -> u64 {
        if self == Self::Bulk { 2_048 } else { 384 }
    }

    fn cuts_per_disk(self) -> u64 {
        if self == Self::Bulk { 1 } else { CUTS_PER_DISK }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Plain => "cuts under plain load",
            Self::Churn => "cuts while few keys change over and over",
            Self::Rollover => "cuts with a new segment several times a second",
            Self::NewSegment => "cuts just after the first change in a new segment",
            Self::Bulk => "cuts during a bulk load of 100,000 keys",
            Self::Start => "cuts during a start",
        }
    }
}

/// Cuts the power so many times: one in forty during a bulk load, which takes longest, the rest in equal
/// parts.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    let bulk = count.div_ceil(40).min(count);
    let rest = count - bulk;
    let part = |n: u64| (rest + n) / 5;
    let plan = [
        (Variant::Plain, part(4)),
        (Variant::Churn, part(3)),
        (Variant::Rollover, part(2)),
        (Variant::NewSegment, part(1)),
        (Variant::Start, part(0)),
        (Variant::Bulk, bulk),
    ];
    for (variant, mut left) in plan {
        while left > 0 && !run.gives_up() {
            let scene = run.scene(variant.segment_bytes())?;
            let cuts = left.min(variant.cuts_per_disk());
            let bulk_until = if count < SHORT_RUN { BULK_KEYS_SHORT } else { BULK_KEYS };
            if let Err(failure) = some_cuts(run, &scene, variant, cuts, bulk_until).await {
                run.fail(&scene, &failure);
            }
            run.discard(&scene);
            left -= cuts;
        }
    }
    Ok(())
}

/// The life of one disk.
async fn some_cuts(run: &mut Run, scene: &Scene, variant: Variant, cuts: u64, bulk_until: u64) -> Result<(), Failure> {
    let mut world = World::begin(scene, variant).await?;
    world.bulk_until = bulk_until;
    let mut verified = 0;
    for _ in 0..cuts {
        let findings = world.cut(run).await?;
        verified = findings.changes;
        run.tally.count(variant.name(), 1);
        run.tally.add(&findings);
        run.judge(scene, &findings, 1);
        if !findings.is_clean() {
            break;
        }
    }
    run.tally.add_changes(world.oracle.acknowledged(), verified);
    world.end();
    Ok(())
}

/// A disk, the server on it, and what its clients know.
pub(crate) struct World {
    scene: Scene,
    variant: Variant,
    launch: Launch,
    pub(crate) oracle: Arc<Oracle>,
    // In this order: the server ends before its disk goes.
    server: Option<Server>,
    disk: Disk,
    copies: u64,
    /// A cut during a bulk load comes before so many keys.
    bulk_until: u64,
    start_takes: Duration,
}

impl World {
    /// An empty disk, and a server on it.
    pub(crate) async fn begin(scene: &Scene, variant: Variant) -> Result<Self, Failure> {
        let disk = Disk::make(&scene.root.join("0.image"), variant.disk_mebibytes())?;
        let mut launch = scene.launch.clone();
        launch.data_dir = disk.mount.join("data");
        let oracle = scene.oracle(variant.shape().clients)?;
        let start_takes = Duration::from_millis(500);
        let mut world = Self {
            scene: scene.clone(),
            variant,
            launch,
            oracle,
            server: None,
            disk,
            copies: 0,
            bulk_until: BULK_KEYS,
            start_takes,
        };
        if variant != Variant::Start {
            world.server = Some(world.launch.serve().await?);
        }
        Ok(world)
    }

    /// Works on the disk until a random instant, cuts its power then, starts a server on what is left, and
    /// compares.
    pub(crate) async fn cut(&mut self, run: &mut Run) -> Result<Findings, Failure> {
        self.copies += 1;
        let image = self.scene.root.join(format!("{}.image", self.copies));
        let snapshot = match self.variant {
            Variant::Start => self.cut_a_start(run, &image).await?,
            _ => self.cut_the_load(run, &image).await?,
        };
        std::mem::replace(&mut self.disk, Disk::mount(&image)?).remove();
        self.launch.data_dir = self.disk.mount.join("data");
        self.oracle = snapshot;
        let began = Instant::now();
        let server = self.launch.serve().await?;
        self.start_takes = began.elapsed();
        let findings = compare(&server, &self.oracle).await?;
        self.server = Some(server);
        Ok(findings)
    }

    /// Copies the disk under load. The server has ended then.
    async fn cut_the_load(&mut self, run: &mut Run, image: &Path) -> Result<Arc<Oracle>, Failure> {
        let mut server = self.server.take().ok_or("no server")?;
        let load = Load::start(&server, &self.oracle, self.variant.shape(), run.rng.random()).await?;
        if self.variant == Variant::Bulk {
            reach(&self.oracle, run.rng.random_range(0..self.bulk_until)).await?;
        } else {
            sleep(Duration::from_millis(run.rng.random_range(LOAD_MILLIS))).await;
        }
        // Sometimes with nothing under way: then no later sync covers up for one that was left out.
        let mut load = Some(load);
        if self.variant == Variant::NewSegment {
            self.first_change_in_a_new_segment().await?;
        } else if self.variant != Variant::Bulk && run.rng.random_ratio(1, 3) {
            finish(load.take()).await?;
        }
        freeze(&server).await?;
        self.disk.copy(image).await?;
        // As late as this: what was acknowledged before the freeze has reached the clients by now, and must
        // be in the copy.
        let snapshot = self.oracle.snapshot()?;
        server.kill().await?;
        finish(load).await?;
        snapshot.sync()?;
        Ok(snapshot)
    }

    /// Waits until the journal has gone on to a new segment, and a change was acknowledged after that.
    async fn first_change_in_a_new_segment(&self) -> Result<(), Failure> {
        let began = Instant::now();
        let last = self.last_segment()?;
        let mut acknowledged = None;
        while acknowledged.is_none_or(|then| self.oracle.acknowledged() == then) {
            if began.elapsed() > SEGMENT_LIMIT {
                return Err(format!("no change in a new segment after {SEGMENT_LIMIT:?}").into());
            }
            if acknowledged.is_none() && self.last_segment()? != last {
                acknowledged = Some(self.oracle.acknowledged());
            }
            sleep(SEGMENT_POLL).await;
        }
        Ok(())
    }

    /// The name of the journal's last segment: their names are in the order of their numbers.
    fn last_segment(&self) -> Result<Option<OsString>, Failure> {
        let mut last = None;
        for entry in std::fs::read_dir(self.launch.data_dir.join("journal"))? {
            let name = entry?.file_name();
            if Path::new(&name).extension().is_some_and(|extension| extension == "kwj") {
                last = last.max(Some(name));
            }
        }
        Ok(last)
    }

    /// Copies the disk while a server starts on it, with or without its table.
    async fn cut_a_start(&mut self, run: &mut Run, image: &Path) -> Result<Arc<Oracle>, Failure> {
        if let Some(mut server) = self.server.take() {
            let load = Load::start(&server, &self.oracle, self.variant.shape(), run.rng.random()).await?;
            sleep(Duration::from_millis(run.rng.random_range(LOAD_MILLIS))).await;
            server.kill().await?;
            load.finish().await?;
            if run.rng.random() {
                std::fs::remove_dir_all(self.launch.data_dir.join("table"))?;
            }
            if run.rng.random_ratio(1, 3) {
                return self.cut_after_a_start(run, image).await;
            }
        }
        let mut server = self.launch.spawn()?;
        sleep(self.start_takes.mul_f64(run.rng.random_range(0.0..1.2))).await;
        freeze(&server).await?;
        self.disk.copy(image).await?;
        let snapshot = self.oracle.snapshot()?;
        server.kill().await?;
        Ok(snapshot)
    }

    /// Copies the disk once the server has told what the kill left: what it has told must stay true.
    async fn cut_after_a_start(&mut self, run: &mut Run, image: &Path) -> Result<Arc<Oracle>, Failure> {
        let mut server = self.launch.serve().await?;
        let findings = compare(&server, &self.oracle).await?;
        run.tally.add(&findings);
        if !findings.is_clean() {
            return Err(format!("already before the cut: {:?}", findings.details).into());
        }
        freeze(&server).await?;
        self.disk.copy(image).await?;
        server.kill().await?;
        self.oracle.snapshot()
    }

    /// Ends the server, and removes the disk.
    pub(crate) fn end(self) {
        drop(self.server);
        self.disk.remove();
    }
}

async fn finish(load: Option<Load>) -> Result<(), Failure> {
    match load {
        Some(load) => load.finish().await.map(drop),
        None => Ok(()),
    }
}

/// Waits until so many changes are acknowledged.
async fn reach(oracle: &Oracle, changes: u64) -> Result<(), Failure> {
    let began = Instant::now();
    while oracle.acknowledged() < changes {
        if began.elapsed() > BULK_LIMIT {
            return Err(format!("{changes} keys are not created after {BULK_LIMIT:?}").into());
        }
        sleep(BULK_POLL).await;
    }
    Ok(())
}
