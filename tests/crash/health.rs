//! What probes are told: the admin service stops serving while changes cannot be made, and the verify service
//! never does.

use std::time::{Duration, Instant};

use tokio::time::sleep;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::Failure;
use crate::server::Server;

/// The server looks at its disk each second, and calls it stuck after five.
const LIMIT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(100);

/// Asks as a probe does: without a credential.
pub(crate) struct Probe(HealthClient<Channel>);

impl Probe {
    pub(crate) async fn connect(server: &Server) -> Result<Self, Failure> {
        let (addr, _) = server.reach()?;
        Ok(Self(HealthClient::new(Endpoint::from_shared(format!("http://{addr}"))?.connect().await?)))
    }

    /// Waits until the admin service is told to serve, or not to.
    ///
    /// # Errors
    /// When it is not in time, or the verify service does not serve.
    pub(crate) async fn wait_for_admin(&mut self, serving: bool) -> Result<(), Failure> {
        let began = Instant::now();
        loop {
            if self.of("keyward.v1.KeyVerify").await? != ServingStatus::Serving {
                return Err("the verify service is said not to serve".into());
            }
            let found = self.of("keyward.v1.KeyAdmin").await?;
            if (found == ServingStatus::Serving) == serving {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                return Err(format!("the health of the admin service is {found:?} after {LIMIT:?}").into());
            }
            sleep(POLL).await;
        }
    }

    async fn of(&mut self, service: &str) -> Result<ServingStatus, Failure> {
        let request = HealthCheckRequest { service: service.to_owned() };
        Ok(self.0.check(request).await?.into_inner().status())
    }
}
