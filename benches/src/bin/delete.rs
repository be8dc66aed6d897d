//! Deletes keys at a running server through DeleteKey, to be purged as soon as may be, and says how many in a
//! second.
//!
//! `delete <address> <file of the admin's key> <first number> <keys> <one in> <under way>`
//!
//! The keys are those of `fill` and `seed_store`, by their numbers; of them every one whose number the fifth
//! argument divides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use keyward::grpc::pb::DeleteKeyRequest;
use keyward::grpc::pb::key_admin_client::KeyAdminClient;
use keyward_bench::fixture::Failure;
use keyward_bench::typical_key::Typical;
use keyward_core::limits::DELETED_KEPT_MS_MIN;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

/// Connections at most.
const CONNECTIONS: usize = 4;
/// Calls under way at most: less than the server's queue of changes that take power away holds of one caller.
const UNDER_WAY_MAX: usize = 256;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failure> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [addr, admin, first, keys, one_in, under_way] = &args[..] else {
        return Err("usage: delete <address> <admin key file> <first> <keys> <one in> <under way>".into());
    };
    let [first, keys, one_in] = [first.parse::<u64>()?, keys.parse::<u64>()?, one_in.parse::<u64>()?.max(1)];
    let under_way = under_way.parse::<usize>()?.clamp(1, UNDER_WAY_MAX);
    let credential: Arc<str> = format!("Bearer {}", std::fs::read_to_string(admin)?.trim()).into();
    let (began, next) = (Instant::now(), Arc::new(AtomicU64::new(first.div_ceil(one_in))));
    let end = (first + keys).div_ceil(one_in);
    let count = end - next.load(Ordering::Relaxed);
    let mut channels = vec![];
    for _ in 0..CONNECTIONS.min(under_way) {
        channels.push(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?);
    }
    let mut workers = tokio::task::JoinSet::new();
    for channel in channels.iter().cycle().take(under_way) {
        let client = KeyAdminClient::new(channel.clone());
        workers.spawn(delete(client, credential.clone(), next.clone(), end, one_in));
    }
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    println!("{count} {:.0}", count as f64 / began.elapsed().as_secs_f64());
    Ok(())
}

/// Deletes one key after the other until all numbers are taken.
async fn delete(
    mut client: KeyAdminClient<Channel>,
    credential: Arc<str>,
    next: Arc<AtomicU64>,
    end: u64,
    one_in: u64,
) -> Result<(), Failure> {
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= end {
            return Ok(());
        }
        let purge_after =
            Some(prost_types::Duration { seconds: i64::try_from(DELETED_KEPT_MS_MIN / 1_000)?, nanos: 0 });
        let key_id = Typical::key(number * one_in).key_id;
        let mut request = Request::new(DeleteKeyRequest { key_id, purge_after, ..Default::default() });
        request.metadata_mut().insert("authorization", credential.parse()?);
        client.delete_key(request).await?;
    }
}
