//! Negative controls: programs that break a promise on purpose must fail the power cuts. If one does not, the
//! cuts prove nothing, and this mode fails.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use keyward::grpc::pb;
use rand::RngExt;
use tokio::time::sleep;

use crate::Failure;
use crate::cuts::{Variant, World};
use crate::load::{Load, Mix, Shape};
use crate::oracle::{Book, Form, Key};
use crate::run::{Run, SMALL_SEGMENT, Scene};
use crate::verify::compare;

/// Cuts that a program may survive at most. The faulty ones are caught by the first few.
const CUTS_MAX: u64 = 30;
/// What a server says if acknowledged changes are missing.
const MISSING: &str = "were acknowledged, but the journal ends at";
/// How long clients work before their books are tampered with.
const DOCTORED_LOAD: Duration = Duration::from_secs(1);
/// Allows a program with a fault to run.
pub(crate) const CONSENT: (&str, &str) = ("ALLOW_FAULTY_KEYWARD", "1");

/// A promise that a feature of the package breaks, and the load under which that shows.
pub(crate) struct Control {
    pub(crate) feature: &'static str,
    variant: Variant,
}

/// All of them.
pub(crate) const CONTROLS: [Control; 2] = [
    Control { feature: "fault-ack-before-sync", variant: Variant::Plain },
    Control { feature: "fault-skip-dir-sync", variant: Variant::NewSegment },
];

/// Builds each program, and cuts its power until the comparison finds it out.
pub(crate) async fn run(run: &mut Run) -> Result<(), Failure> {
    for control in &CONTROLS {
        let program = build(control.feature, run.out())?;
        let mut scene = run.scene(control.variant.segment_bytes())?;
        scene.launch.program = program;
        refuses_without_consent(&scene.launch.program)?;
        scene.launch.env.push((CONSENT.0.to_owned(), CONSENT.1.to_owned()));
        match cuts_until_red(run, &scene, control).await {
            Ok(Some(cuts)) => {
                run.tally.passed += 1;
                run.tally.count(&format!("{}: red at cut", control.feature), cuts);
            }
            Ok(None) => {
                let green = format!("{} has lost nothing in {CUTS_MAX} cuts: the cuts see nothing", control.feature);
                run.fail(&scene, &green.into());
            }
            Err(failure) => run.fail(&scene, &failure),
        }
        run.discard(&scene);
    }
    let scene = run.scene(SMALL_SEGMENT)?;
    match doctored_books(run, &scene).await {
        Ok(()) => run.tally.passed += 1,
        Err(failure) => run.fail(&scene, &failure),
    }
    run.discard(&scene);
    Ok(())
}

/// A comparison with books that were tampered with must find exactly what does not fit, or it sees nothing.
async fn doctored_books(run: &mut Run, scene: &Scene) -> Result<(), Failure> {
    let shape = Shape::of(Mix::Ordinary);
    let oracle = scene.oracle(shape.clients)?;
    let server = scene.launch.serve().await?;
    let load = Load::start(&server, &oracle, shape, run.rng.random()).await?;
    sleep(DOCTORED_LOAD).await;
    load.finish().await?;
    let findings = compare(&server, &oracle).await?;
    if !findings.is_clean() || findings.verdicts == 0 {
        return Err(format!("true books do not fit: {findings:?}").into());
    }

    type Tamper = fn(&mut Book) -> Option<()>;
    let tampers: [(&str, Tamper, [u64; 3]); 7] = [
        ("a key is forgotten", |book| book.keys.pop().map(drop), [0, 0, 1]),
        ("a key has another label", |book| book.keys.first_mut().map(|key| key.label.push('!')), [0, 0, 1]),
        ("a key has another reason", |book| book.keys.first_mut().map(|key| key.reason.push('!')), [0, 0, 1]),
        ("a key has had another secret", |book| book.keys.first_mut().map(add_a_secret), [0, 0, 1]),
        ("a key is newer", |book| book.keys.first_mut().map(|key| key.revision += 1), [1, 0, 0]),
        ("a client has seen a later revision", see_the_future, [1, 0, 0]),
        ("two keys have each other's secret", swap_secrets, [0, 2, 0]),
    ];
    for (what, tamper, expected) in tampers {
        let doctored = oracle.snapshot()?;
        tamper(&mut doctored.books()[0].lock()).ok_or("a client has too few keys")?;
        let found = compare(&server, &doctored).await?;
        if [found.lost, found.wrong_verdicts, found.inventions] != expected {
            return Err(format!("{what} in the books, and the comparison finds {found:?}").into());
        }
        run.tally.count("books that were tampered with: found out", 1);
    }
    server.stop().await
}

fn see_the_future(book: &mut Book) -> Option<()> {
    book.revision += 1_000_000;
    Some(())
}

fn add_a_secret(key: &mut Key) {
    key.secrets.push((u32::MAX, pb::SecretState::Retired));
}

fn swap_secrets(book: &mut Book) -> Option<()> {
    // Of deleted keys verdicts tell nothing, and so not which it is.
    let mut told = book.keys.iter_mut().filter(|key| Form::of(key).verdict() != pb::Reason::Unknown);
    let (first, second) = (told.next()?, told.next()?);
    std::mem::swap(&mut first.secret, &mut second.secret);
    Some(())
}

/// Gives the number of the cut after which acknowledged changes were gone.
async fn cuts_until_red(run: &mut Run, scene: &Scene, control: &Control) -> Result<Option<u64>, Failure> {
    let mut world = World::begin(scene, control.variant).await?;
    for cut in 1..=CUTS_MAX {
        let findings = match world.cut(run).await {
            Ok(findings) => findings,
            // The watermark may have reached the disk where the change has not: then the server itself finds
            // it out.
            Err(refusal) if refusal.to_string().contains(MISSING) => {
                println!("{}: red at cut {cut}, as it must be: the start is refused: {MISSING}", control.feature);
                run.tally.count(&format!("{}: acknowledged changes gone, the start refused", control.feature), 1);
                world.end();
                return Ok(Some(cut));
            }
            Err(failure) => return Err(failure),
        };
        if let Some(first) = findings.details.first() {
            println!("{}: red at cut {cut}, as it must be: {first}", control.feature);
        }
        if findings.lost > 0 {
            run.tally.count(&format!("{}: acknowledged changes gone", control.feature), findings.lost);
            world.end();
            return Ok(Some(cut));
        }
        if !findings.is_clean() {
            return Err(format!("{} has other findings than losses: {:?}", control.feature, findings.details).into());
        }
    }
    world.end();
    Ok(None)
}

/// Builds the program with a feature, and leaves `target/debug/keyward` to the program without it: cargo
/// keeps the builds of both, so that is quick.
pub(crate) fn build(feature: &str, out: &Path) -> Result<PathBuf, Failure> {
    let built = cargo(&["--features", feature])?;
    let program = out.join(format!("keyward-{feature}"));
    drop(fs::remove_file(&program));
    fs::copy(&built, &program).map_err(|e| format!("{}: {e}", built.display()))?;
    cargo(&[])?;
    Ok(program)
}

/// Builds the program, and says where it is.
fn cargo(args: &[&str]) -> Result<PathBuf, Failure> {
    let mut command = Command::new(option_env!("CARGO").unwrap_or("cargo"));
    command.args(["build", "--quiet", "--locked", "--bin", "keyward", "--message-format", "json"]).args(args);
    let built =
        command.current_dir(env!("CARGO_MANIFEST_DIR")).output().map_err(|e| format!("cannot run cargo: {e}"))?;
    if !built.status.success() {
        return Err(format!("cargo build {args:?}: {}", String::from_utf8_lossy(&built.stderr)).into());
    }
    let messages = String::from_utf8(built.stdout)?;
    let executable = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut executable = executable.filter_map(|message| message["executable"].as_str().map(PathBuf::from));
    executable.next().ok_or_else(|| "cargo built no program".into())
}

/// A faulty program must not be deployed by mistake.
fn refuses_without_consent(program: &Path) -> Result<(), Failure> {
    let ran = Command::new(program).arg("--version").env_clear().output()?;
    let error = String::from_utf8_lossy(&ran.stderr);
    if ran.status.success() || !error.contains("this is a test build") {
        return Err(format!("{} runs without {}=1", program.display(), CONSENT.0).into());
    }
    Ok(())
}
