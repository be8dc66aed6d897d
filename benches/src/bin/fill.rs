//! Issues keys at a running server through CreateKey, as a service that provisions them would, and says how
//! long it took.
//!
//! `fill <address> <file of the admin's key> <first number> <keys> <file for secrets> <one secret kept in>
//! <under way>`
//!
//! It prints how many were issued in a second, and how many microseconds a call took, in the median.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use keyward::grpc::pb::key_admin_client::KeyAdminClient;
use keyward::grpc::pb::{CreateKeyRequest, CreateKeyResponse};
use keyward_bench::fixture::Failure;
use keyward_bench::stats::median;
use keyward_bench::typical_key::{EXPIRY_SECONDS, Typical, scope};
use tokio::sync::mpsc;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Connections at most.
const CONNECTIONS: usize = 4;
/// Calls under way at most: less than the server's queue of commits holds.
const UNDER_WAY_MAX: usize = 512;

/// The role of a caller that verifies.
const VERIFIER: &str = "keyward.verifier";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [addr, admin, first, keys, secrets, one_in, under_way] = &args[..] else {
        let usage = "usage: fill <address> <admin key file> <first> <keys> <secrets file> <one kept in> <under way>";
        return Err(usage.into());
    };
    let [first, keys, one_in] = [first.parse::<u64>()?, keys.parse::<u64>()?, one_in.parse::<u64>()?];
    let under_way = under_way.parse::<usize>()?.min(UNDER_WAY_MAX);
    let credential: Arc<str> = format!("Bearer {}", std::fs::read_to_string(admin)?.trim()).into();
    let mut kept = OpenOptions::new().append(true).create(true).mode(0o600).open(secrets)?;

    if first == 0 {
        let mut client = KeyAdminClient::connect(format!("http://{addr}")).await?;
        let mut request = Request::new(verifier());
        request.metadata_mut().insert("authorization", credential.parse()?);
        let response = client.create_key(request).await?.into_inner();
        writeln!(kept, "{} {VERIFIER}", response.secret)?;
    }

    let began = Instant::now();
    let next = Arc::new(AtomicU64::new(first));
    let (sender, mut created) = mpsc::channel(UNDER_WAY_MAX);
    let mut workers = tokio::task::JoinSet::new();
    let mut channels = vec![];
    for _ in 0..CONNECTIONS.min(under_way) {
        channels.push(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?);
    }
    for channel in channels.iter().cycle().take(under_way) {
        let client = KeyAdminClient::new(channel.clone());
        workers.spawn(issue(client, credential.clone(), next.clone(), first + keys, sender.clone()));
    }
    drop(sender);
    let (mut lines, mut micros) = (String::new(), vec![]);
    while let Some((number, response, took)) = created.recv().await {
        micros.push(took.as_secs_f64() * 1e6);
        if number.is_multiple_of(one_in) {
            lines.push_str(&format!("{} {}\n", response.secret, scope(number, 0)));
        }
    }
    kept.write_all(lines.as_bytes())?;
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let seconds = began.elapsed().as_secs_f64();
    println!("{:.0} {:.0}", keys as f64 / seconds, median(&micros));
    Ok(())
}

/// Issues one key after the other until all numbers are taken.
async fn issue(
    mut client: KeyAdminClient<Channel>,
    credential: Arc<str>,
    next: Arc<AtomicU64>,
    end: u64,
    created: mpsc::Sender<(u64, CreateKeyResponse, Duration)>,
) -> Result<(), Failure> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return Ok(());
        }
        let began = Instant::now();
        let mut request = Request::new(key(number));
        request.metadata_mut().insert("authorization", credential.parse()?);
        let response = client.create_key(request).await?.into_inner();
        created.send((number, response, began.elapsed())).await?;
    }
}

/// The key of the service that verifies. Its secret stands first in the file.
fn verifier() -> CreateKeyRequest {
    CreateKeyRequest {
        tenant: "system".into(),
        key_id: "bench".into(),
        display_name: "Bench".into(),
        scopes: vec![VERIFIER.into()],
        ..Default::default()
    }
}

/// A typical key, as a call asks for it.
fn key(number: u64) -> CreateKeyRequest {
    let key = Typical::key(number);
    CreateKeyRequest {
        key_id: key.key_id,
        display_name: key.display_name,
        owner: key.owner,
        scopes: key.scopes,
        expire_time: Some(prost_types::Timestamp { seconds: EXPIRY_SECONDS, nanos: 0 }),
        labels: key.labels.into_iter().collect(),
        ..Default::default()
    }
}
