//! A start from an image answers verdicts before it has read its table.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use keyward::app::{App, Deps, Engine};
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward_core::clock::ManualClock;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use tempfile::TempDir;
use tokio::task::spawn_blocking;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::ServingStatus;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::harness::{Handle, Issued, START, Seeded, new_key};

/// What is read of a snapshot to know where it stands.
const HEADER_BYTES: usize = 104;

/// A server that keeps little of its journal, so that there are snapshots and an image.
struct Small {
    dir: TempDir,
    admin: String,
}

impl Small {
    fn start(&self) -> impl Future<Output = App> + Send + use<> {
        let flags = Flags {
            data_dir: Some(self.data()),
            listen: vec![format!("unix:{}", self.socket().display())],
            ops_listen: Some("off".into()),
            log_filter: Some("off".into()),
            ..Flags::default()
        };
        let settings = Settings::load(&flags, None).unwrap().settings;
        let settings = Settings { journal_segment_bytes: 64 * 1024, journal_retention_bytes: 512 * 1024, ..settings };
        let deps =
            Deps { clock: Arc::new(ManualClock::at(START)), entropy: Arc::new(Seeded::new(11)), engine: Engine::Sled };
        async move { App::start(settings, deps).await.unwrap() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("unix://{}", self.socket().display())).unwrap().connect_lazy()
    }

    fn admin(&self) -> Handle {
        Handle::new(self.channel(), Some(self.admin.clone()))
    }

    fn files(&self, below: &str, ending: &str) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.data().join(below)) else { return vec![] };
        let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        found.retain(|path| path.extension().is_some_and(|found| found == ending));
        found.sort();
        found
    }

    /// A stopped server with snapshots, an image, and two keys that were changed after it.
    async fn stopped() -> (Self, [Issued; 2]) {
        let mut small = Self { dir: tempfile::tempdir().unwrap(), admin: String::new() };
        let app = small.start().await;
        small.admin = fs::read_to_string(small.data().join("admin.key")).unwrap().trim().to_owned();
        let admin = small.admin();
        let begun = Instant::now();
        while small.files("index", "kwi").is_empty() || small.files("snapshot", "kws").len() < 2 {
            let description = "d".repeat(512);
            admin.create(pb::CreateKeyRequest { description, ..new_key("One of many", &[]) }).await.unwrap();
            assert!(begun.elapsed() < Duration::from_secs(60), "there is no image, or no snapshots");
        }
        let (kept, disabled) = (admin.issue("Kept", &[]).await, admin.issue("Disabled", &[]).await);
        admin.disable_key(&disabled.key).await;
        app.stop().await.unwrap();
        (small, [kept, disabled])
    }

    async fn health(&self, service: &str) -> Option<ServingStatus> {
        let request = HealthCheckRequest { service: service.into() };
        let answer = HealthClient::new(self.channel()).check(request).await.ok()?;
        Some(if answer.into_inner().status == 1 { ServingStatus::Serving } else { ServingStatus::NotServing })
    }
}

/// Hands a reader of a pipe some bytes, as soon as there is one, and closes it.
fn feed(pipe: &Path, bytes: &[u8]) {
    File::options().write(true).open(pipe).unwrap().write_all(bytes).unwrap();
}

/// The table is gone, so that it is built from a snapshot; and the snapshot is a pipe, which says no more than what the start
/// asks for before it answers verdicts.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn verdicts_are_answered_while_the_table_is_built_and_changes_are_not() {
    let (small, [kept, disabled]) = Small::stopped().await;
    fs::remove_dir_all(small.data().join("table")).unwrap();
    let newest = small.files("snapshot", "kws").pop().unwrap();
    let moved = small.dir.path().join("moved");
    fs::rename(&newest, &moved).unwrap();
    mknodat(CWD, &newest, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let bytes = fs::read(&moved).unwrap();

    let starting = tokio::spawn(small.start());
    let (pipe, header) = (newest.clone(), bytes[..HEADER_BYTES].to_vec());
    spawn_blocking(move || feed(&pipe, &header)).await.unwrap();
    // It waits for the rest now, and goes no further.
    let begun = Instant::now();
    while small.health("keyward.v1.KeyVerify").await != Some(ServingStatus::Serving) {
        assert!(begun.elapsed() < Duration::from_secs(30), "verdicts are not answered");
        tokio::task::yield_now().await;
    }
    assert_eq!(small.health("").await, Some(ServingStatus::Serving));
    assert_eq!(small.health("keyward.v1.KeyAdmin").await, Some(ServingStatus::NotServing));
    let admin = small.admin();
    assert_eq!(admin.reason(&kept.secret).await, Reason::Ok);
    assert_eq!(admin.reason(&disabled.secret).await, Reason::Disabled);
    let refused = admin.create(new_key("Too early", &[])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let refused = admin.list(pb::ListKeysRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(!starting.is_finished());

    let pipe = newest.clone();
    let rest = spawn_blocking(move || {
        let mut pipe_end = File::options().write(true).open(&pipe).unwrap();
        // Whoever opens it from now on gets the real one.
        fs::rename(&moved, &pipe).unwrap();
        pipe_end.write_all(&bytes).unwrap();
    });
    rest.await.unwrap();
    let app = starting.await.unwrap();
    assert_eq!(small.health("keyward.v1.KeyAdmin").await, Some(ServingStatus::Serving));
    admin.enable_key(&disabled.key).await;
    assert_eq!(admin.reason(&disabled.secret).await, Reason::Ok);
    admin.create(new_key("In time", &[])).await.unwrap();
    drop(admin);
    app.stop().await.unwrap();
}
