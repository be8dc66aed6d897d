//! Answers every call with its own request.
//!
//!     cargo run -p grpc-h2 --example echo -- 127.0.0.1:50070

use std::convert::Infallible;
use std::error::Error;
use std::future::{Future, pending};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use grpc_h2::{Budget, CallKind, Connection, Handlers, Incoming, NoFastPath, NoObserver, Runtimes, SharedLimits};
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::{Body, Frame};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tower_service::Service;

/// Bytes of unanswered requests of all connections together.
const REQUEST_BYTES_MAX: usize = 64 * 1024 * 1024;

/// A request's body as the body of a reply, and the trailers that gRPC ends it with.
struct Echoed(Option<Incoming>);

impl Body for Echoed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(request) = &mut self.0 else { return Poll::Ready(None) };
        match Pin::new(request).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) if frame.is_data() => Poll::Ready(Some(Ok(frame))),
            Poll::Ready(_) => {
                self.0 = None;
                let ok = ("grpc-status".parse(), HeaderValue::from_static("0"));
                let trailers = HeaderMap::from_iter(ok.0.map(|name| (name, ok.1)));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[derive(Clone)]
struct Echo;

impl Service<Request<Incoming>> for Echo {
    type Response = Response<Echoed>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Incoming>) -> Self::Future {
        let mut response = Response::new(Echoed(Some(request.into_body())));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        Box::pin(std::future::ready(Ok(response)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let addr = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:50070".to_owned());
    let listener = TcpListener::bind(&addr).await?;
    println!("listening on {}", listener.local_addr()?);
    let budget = Budget::new(REQUEST_BYTES_MAX, REQUEST_BYTES_MAX);
    let limits = SharedLimits::default();
    let here = Handle::current();
    let runtimes = Runtimes { shared: here.clone(), urgent: here.clone(), bulk: here };
    let mut connections = JoinSet::new();
    loop {
        let (socket, peer) = listener.accept().await?;
        socket.set_nodelay(true)?;
        let handlers = Handlers {
            fast_path: NoFastPath,
            service: Echo,
            call_kind: |_| CallKind { has_stream: true, ..CallKind::default() },
            runtimes: runtimes.clone(),
            extension: peer,
            budget: budget.clone(),
            limits: limits.clone(),
            observer: NoObserver,
        };
        connections.spawn(async move {
            if let Err(error) = Connection::new(socket, handlers).serve(pending(), false).await {
                eprintln!("{peer}: {error}");
            }
        });
        while connections.try_join_next().is_some() {}
    }
}
