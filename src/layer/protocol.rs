//! Answers requests that are not gRPC with a status of HTTP, before all else: content types other than
//! application/grpc with 415, a malformed grpc-timeout with 400, methods other than POST with 405 (gRPC over
//! HTTP/2, "Requests"). Order and codes are those of grpc-go.

use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use super::deadline::timeout_of;
use crate::grpc::status::{Refusal, status};

/// Refuses what is no call of gRPC.
#[derive(Clone, Copy, Debug)]
pub struct ProtocolLayer;

impl<S> Layer<S> for ProtocolLayer {
    type Service = Protocol<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Protocol { inner }
    }
}

/// See [`ProtocolLayer`].
#[derive(Clone, Debug)]
pub struct Protocol<S> {
    inner: S,
}

impl<S, B> Service<Request<B>> for Protocol<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Self::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match refusal_of(&request) {
            None => Either::Left(self.inner.call(request)),
            Some((refusal, http_status)) => {
                let mut response = status(refusal).into_http();
                *response.status_mut() = http_status;
                if http_status == StatusCode::METHOD_NOT_ALLOWED {
                    response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("POST"));
                }
                Either::Right(ready(Ok(response)))
            }
        }
    }
}

fn refusal_of<B>(request: &Request<B>) -> Option<(Refusal, StatusCode)> {
    let content_type = request.headers().get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
    if !content_type.is_some_and(is_grpc) {
        return Some((Refusal::NotGrpc, StatusCode::UNSUPPORTED_MEDIA_TYPE));
    }
    if timeout_of(request.headers()).is_err() {
        return Some((Refusal::BadTimeout, StatusCode::BAD_REQUEST));
    }
    let is_post = request.method() == Method::POST;
    (!is_post).then_some((Refusal::NotPost, StatusCode::METHOD_NOT_ALLOWED))
}

/// `application/grpc`, perhaps with the name of a codec or parameters behind it. `application/grpc-web` is
/// another protocol.
fn is_grpc(content_type: &[u8]) -> bool {
    const PLAIN: &[u8] = b"application/grpc";
    let (name, rest) = content_type.split_at_checked(PLAIN.len()).unwrap_or((content_type, b""));
    name.eq_ignore_ascii_case(PLAIN) && matches!(rest.first(), None | Some(b'+' | b';' | b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_grpc_is_grpc() {
        for yes in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"] {
            assert!(is_grpc(yes.as_bytes()), "{yes}");
        }
        for no in
            ["", "application/json", "application/proto", "application/grpc-web", "application/grpcx", "application"]
        {
            assert!(!is_grpc(no.as_bytes()), "{no}");
        }
    }
}
