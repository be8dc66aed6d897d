//! Whole disks that fail: one that is full, one that hangs, one that turns read-only.

mod full;
mod hang;
mod readonly;

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::RngExt;
use tokio::time::sleep;

use crate::Failure;
use crate::load::{Load, Mix, Shape};
use crate::oracle::Oracle;
use crate::run::{Run, Scene};
use crate::server::{Launch, Server};
use crate::verify::compare;

/// How long clients work before the disk fails.
const LOAD_BEFORE: Duration = Duration::from_millis(700);
const POLL: Duration = Duration::from_millis(10);

/// Each kind of failure so many times.
pub(crate) async fn run(run: &mut Run, count: u64) -> Result<(), Failure> {
    for _ in 0..count {
        let scene = run.scene(crate::run::SMALL_SEGMENT)?;
        run.tally.count("full disks", 1);
        let done = full::run(run, &scene).await;
        end(run, &scene, done);

        let scene = run.scene(16 * 1024 * 1024)?;
        run.tally.count("hanging disks", 1);
        let done = hang::run(run, &scene).await;
        end(run, &scene, done);

        let scene = run.scene(crate::run::SMALL_SEGMENT)?;
        run.tally.count("disks that turn read-only", 1);
        let done = readonly::run(run, &scene).await;
        end(run, &scene, done);
        if run.gives_up() {
            break;
        }
    }
    Ok(())
}

fn end(run: &mut Run, scene: &Scene, done: Result<(), Failure>) {
    if let Err(failure) = done {
        run.fail(scene, &failure);
    }
    run.discard(scene);
}

/// Lets clients do a bit of everything for a while.
async fn load_for_a_while(run: &mut Run, server: &Server, oracle: &Arc<Oracle>) -> Result<(), Failure> {
    let load = Load::start(server, oracle, Shape::of(Mix::Ordinary), run.rng.random()).await?;
    sleep(LOAD_BEFORE).await;
    load.finish().await.map(drop)
}

/// Starts a server on a disk that works, and compares.
async fn judge(run: &mut Run, scene: &Scene, launch: &Launch, oracle: &Arc<Oracle>) -> Result<(), Failure> {
    let server = launch.serve().await?;
    let findings = compare(&server, oracle).await?;
    run.tally.add(&findings);
    run.tally.add_changes(oracle.acknowledged(), findings.changes);
    run.judge(scene, &findings, 1);
    Ok(())
}

/// Waits until the server has ended. `false`: it lives on.
async fn has_ended_within(server: &mut Server, limit: Duration) -> Result<bool, Failure> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if server.has_ended()? {
            return Ok(true);
        }
        sleep(POLL).await;
    }
    server.has_ended()
}

/// Whether the last word of a server that has ended names one of these causes, and what to do or where.
fn says(server: &Server, causes: &[&str], besides: &str) -> bool {
    let told = |line: &&String| causes.iter().any(|cause| line.contains(cause)) && line.contains(besides);
    !server.has_panicked() && server.log().iter().any(|line| told(&line))
}
