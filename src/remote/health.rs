//! A client of the health service.

use std::time::Duration;

use tonic::{Code, Request, Status};

use super::tls::endpoint;
use super::{ClientTls, EndpointError, RemoteAddr, failed_call, root_cause};
use crate::grpc::pb::health::HealthCheckRequest;
use crate::grpc::pb::health::health_check_response::ServingStatus;
use crate::grpc::pb::health::health_client::HealthClient;

/// The health of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceHealth {
    /// It answers calls.
    Serving,
    /// It answers no calls.
    NotServing,
}

/// Why the health could not be read.
#[derive(Debug, thiserror::Error)]
pub enum HealthError {
    /// No connection can be tried.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The server cannot be reached.
    #[error("no server answers at {addr}: {}", root_cause(source))]
    Connect {
        /// Its address.
        addr: RemoteAddr,
        /// What happened.
        source: tonic::transport::Error,
    },
    /// The server did not answer in time.
    #[error("{addr} has not answered within {}", humantime::format_duration(*within))]
    TimedOut {
        /// Its address.
        addr: RemoteAddr,
        /// The time that it had.
        within: Duration,
    },
    /// The server has no such service.
    #[error("the server at {addr} has no service '{service}'")]
    Unknown {
        /// Its address.
        addr: RemoteAddr,
        /// The service.
        service: String,
    },
    /// The server answered with an error, or the connection broke.
    #[error("{}", failed_call(.0))]
    Refused(#[from] Status),
}

/// Asks a server for the health of a service; the empty name is the server as a whole.
///
/// # Errors
/// See [`HealthError`]. `within` bounds all of it.
pub async fn health(
    addr: &RemoteAddr,
    tls: Option<&ClientTls>,
    service: &str,
    within: Duration,
) -> Result<ServiceHealth, HealthError> {
    let of_addr = |source| HealthError::Connect { addr: addr.clone(), source };
    let asked = async {
        let channel = endpoint(addr, tls)?.connect().await.map_err(of_addr)?;
        let request = Request::new(HealthCheckRequest { service: service.to_owned() });
        match HealthClient::new(channel).check(request).await {
            Ok(reply) if reply.get_ref().status() == ServingStatus::Serving => Ok(ServiceHealth::Serving),
            Ok(_) => Ok(ServiceHealth::NotServing),
            Err(status) if status.code() == Code::NotFound => {
                Err(HealthError::Unknown { addr: addr.clone(), service: service.to_owned() })
            }
            Err(status) => Err(status.into()),
        }
    };
    let answered = tokio::time::timeout(within, asked).await;
    answered.unwrap_or_else(|_| Err(HealthError::TimedOut { addr: addr.clone(), within }))
}
