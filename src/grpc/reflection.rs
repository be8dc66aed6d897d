//! grpc.reflection, v1 and v1alpha: the services' descriptors, for tools such as grpcurl.
//!
//! An unknown symbol is answered with an error_response, and the stream stays open. A stream has no task: the
//! connection polls the next answer when it has room for it.

mod catalogue;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::try_unfold;
use futures_util::{Stream, StreamExt};
use http::Uri;
use prost::DecodeError;
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use tonic::codegen::http::Request as HttpRequest;
use tonic::server::NamedService;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest as Asked;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse as Told;
use tonic_reflection::pb::v1::server_reflection_server::{ServerReflection, ServerReflectionServer};
use tonic_reflection::pb::v1::{
    ErrorResponse, ExtensionNumberResponse, FileDescriptorResponse, ListServiceResponse, ServerReflectionRequest,
    ServerReflectionResponse, ServiceResponse,
};
use tower_service::Service;

use self::catalogue::Catalogue;
use super::status::{Refusal, status};
use super::{LIMITS, pb};
use crate::services::Services;

/// The path of the call in v1.
const V1_PATH: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

/// The service in v1.
pub type V1 = ServerReflectionServer<Reflection>;

/// The service in v1alpha, whose messages are those of v1.
#[derive(Clone)]
pub struct V1Alpha(V1);

/// The service in both versions. It tells of the services that are served, and its streams end when `stop`
/// is cancelled.
///
/// # Errors
/// When the descriptors do not decode, which a build that passed its tests does not have.
pub fn services(stop: CancellationToken, served: Services) -> Result<(V1, V1Alpha), DecodeError> {
    let sets = [
        pb::DESCRIPTORS,
        pb::health::DESCRIPTORS,
        pb::WELL_KNOWN_DESCRIPTORS,
        tonic_types::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let catalogue = Catalogue::of(&sets, |service| served.serve(service))?;
    let reflection = Reflection { catalogue: Arc::new(catalogue), stop };
    let v1 = ServerReflectionServer::new(reflection).max_decoding_message_size(LIMITS.open_message_bytes_max);
    Ok((v1.clone(), V1Alpha(v1)))
}

impl Service<HttpRequest<Body>> for V1Alpha {
    type Response = <V1 as Service<HttpRequest<Body>>>::Response;
    type Error = <V1 as Service<HttpRequest<Body>>>::Error;
    type Future = <V1 as Service<HttpRequest<Body>>>::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Service::<HttpRequest<Body>>::poll_ready(&mut self.0, cx)
    }

    fn call(&mut self, mut request: HttpRequest<Body>) -> Self::Future {
        if request.uri().path().ends_with("/ServerReflectionInfo") {
            *request.uri_mut() = Uri::from_static(V1_PATH);
        }
        self.0.call(request)
    }
}

impl NamedService for V1Alpha {
    const NAME: &'static str = "grpc.reflection.v1alpha.ServerReflection";
}

/// Answers what is asked of the interface.
pub struct Reflection {
    catalogue: Arc<Catalogue>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl ServerReflection for Reflection {
    type ServerReflectionInfoStream = Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        let requests = request.into_inner();
        // A token of its own: what all share, all cores would wait for.
        let open = Box::new(Open { requests, catalogue: self.catalogue.clone(), stop: self.stop.child_token() });
        let answers = try_unfold(open, async |mut open| Ok(open.next().await?.map(|answer| (answer, open))));
        Ok(Response::new(Box::pin(answers)))
    }
}

/// An open stream.
struct Open {
    requests: Streaming<ServerReflectionRequest>,
    catalogue: Arc<Catalogue>,
    stop: CancellationToken,
}

impl Open {
    /// The answer to the next request. `None`: there will be none.
    async fn next(&mut self) -> Result<Option<ServerReflectionResponse>, Status> {
        let request = tokio::select! {
            // First, so that a stream that never pauses ends too.
            biased;
            () = self.stop.cancelled() => return Err(status(Refusal::Stopping)),
            request = self.requests.next() => request.transpose()?,
        };
        Ok(request.map(|request| ServerReflectionResponse {
            message_response: Some(answer(&self.catalogue, request.message_request.as_ref())),
            valid_host: request.host.clone(),
            original_request: Some(request),
        }))
    }
}

fn answer(catalogue: &Catalogue, asked: Option<&Asked>) -> Told {
    let file = |found: Option<&[u8]>| {
        let file = |bytes: &[u8]| FileDescriptorResponse { file_descriptor_proto: vec![bytes.to_vec()] };
        found.map(|bytes| Told::FileDescriptorResponse(file(bytes)))
    };
    let (what, told) = match asked {
        None => return error(Code::InvalidArgument, "message_request must be given"),
        Some(Asked::FileByFilename(name)) => ("file", file(catalogue.file(name))),
        Some(Asked::FileContainingSymbol(name)) => ("symbol", file(catalogue.file_of_symbol(name))),
        Some(Asked::FileContainingExtension(asked)) => {
            ("extension", file(catalogue.file_of_extension(&asked.containing_type, asked.extension_number)))
        }
        Some(Asked::AllExtensionNumbersOfType(name)) => {
            let told = catalogue.extensions_of(name).map(|numbers| {
                let extension_number = numbers.collect();
                Told::AllExtensionNumbersResponse(ExtensionNumberResponse {
                    base_type_name: name.clone(),
                    extension_number,
                })
            });
            ("message type", told)
        }
        Some(Asked::ListServices(_)) => {
            let service = |name: &str| ServiceResponse { name: name.to_owned() };
            let service = catalogue.services().map(service).collect();
            ("", Some(Told::ListServicesResponse(ListServiceResponse { service })))
        }
    };
    told.unwrap_or_else(|| error(Code::NotFound, &format!("there is no such {what}")))
}

fn error(code: Code, message: &str) -> Told {
    Told::ErrorResponse(ErrorResponse { error_code: code.into(), error_message: message.to_owned() })
}
