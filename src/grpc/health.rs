//! grpc.health.v1: Check, List and Watch.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::try_unfold;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::pb::health::health_check_response::ServingStatus;
use super::pb::health::health_server;
use super::pb::health::{HealthCheckRequest, HealthCheckResponse, HealthListRequest, HealthListResponse};
use super::status::{Refusal, status};
use crate::health::{Health, Statuses};

/// The service.
pub struct HealthService {
    health: Health,
    stop: CancellationToken,
}

impl HealthService {
    /// The service that tells this. Watches end when `stop` is cancelled.
    #[must_use]
    pub fn new(health: Health, stop: CancellationToken) -> Self {
        Self { health, stop }
    }
}

#[tonic::async_trait]
impl health_server::Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match status_of(&self.health.subscribe().borrow(), &request.get_ref().service) {
            ServingStatus::ServiceUnknown => Err(status(Refusal::NoSuchService)),
            found => Ok(Response::new(told(found))),
        }
    }

    async fn list(&self, _: Request<HealthListRequest>) -> Result<Response<HealthListResponse>, Status> {
        let statuses = self.health.subscribe();
        let statuses = statuses.borrow();
        let told = |name: &&'static str| ((*name).to_owned(), told(status_of(&statuses, name)));
        Ok(Response::new(HealthListResponse { statuses: statuses.keys().map(told).collect() }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let watching = Watching {
            statuses: self.health.subscribe(),
            service: request.into_inner().service,
            last: None,
            // A token of its own: what all share, all cores would wait for.
            stop: self.stop.child_token(),
        };
        let told =
            try_unfold(watching, async |mut watching| Ok(watching.next().await.map(|status| (told(status), watching))));
        Ok(Response::new(Box::pin(told)))
    }
}

/// An open Watch.
struct Watching {
    statuses: watch::Receiver<Statuses>,
    service: String,
    last: Option<ServingStatus>,
    stop: CancellationToken,
}

impl Watching {
    /// The next status that differs from the last one. `None`: the server stops.
    async fn next(&mut self) -> Option<ServingStatus> {
        loop {
            let now = status_of(&self.statuses.borrow_and_update(), &self.service);
            if self.last.replace(now) != Some(now) {
                return Some(now);
            }
            tokio::select! {
                // Before the stop, its watchers hear that nothing is served any more.
                biased;
                changed = self.statuses.changed() => changed.ok()?,
                () = self.stop.cancelled() => return None,
            }
        }
    }
}

fn status_of(statuses: &Statuses, service: &str) -> ServingStatus {
    match statuses.get(service) {
        Some(true) => ServingStatus::Serving,
        Some(false) => ServingStatus::NotServing,
        None => ServingStatus::ServiceUnknown,
    }
}

fn told(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;
    use health_server::Health as _;

    use super::*;

    #[tokio::test]
    async fn a_watch_of_an_unknown_name_tells_when_it_becomes_known() {
        let (health, stop) = (Health::new(&["old"]), CancellationToken::new());
        let service = HealthService::new(health.clone(), stop.clone());
        let request = Request::new(HealthCheckRequest { service: "new".into() });
        let mut watch = service.watch(request).await.unwrap().into_inner();
        let mut next = async || watch.next().await.map(|told| told.unwrap().status());
        assert_eq!(next().await, Some(ServingStatus::ServiceUnknown));
        health.set(&["old"], true);
        health.set(&["new"], true);
        assert_eq!(next().await, Some(ServingStatus::Serving), "others' changes are not told");
        health.set(&["new"], false);
        stop.cancel();
        assert_eq!(next().await, Some(ServingStatus::NotServing), "what is known at the stop is told");
        assert_eq!(next().await, None);
    }
}
