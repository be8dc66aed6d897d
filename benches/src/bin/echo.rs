//! The baseline: an empty service as tonic's guide writes one. Stock codec, stock multi-thread runtime,
//! system allocator.
//!
//! `echo <port> <bytes of a reply> [<certificate> <private key>]`: every reply is a gRPC message of that many
//! bytes, so that it weighs what the reply of the call beside it weighs. With a certificate, it speaks TLS as
//! tonic does by itself. Both files are PEM.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;

use tokio_stream::{Stream, StreamExt};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

use self::pb::Payload;
use self::pb::echo_server::{Echo, EchoServer};

#[expect(clippy::allow_attributes, clippy::too_many_lines, unreachable_pub, reason = "generated")]
mod pb {
    tonic::include_proto!("bench.v1");
}

struct Service {
    reply: Vec<u8>,
}

#[tonic::async_trait]
impl Echo for Service {
    async fn echo(&self, _request: Request<Payload>) -> Result<Response<Payload>, Status> {
        Ok(Response::new(Payload { data: self.reply.clone() }))
    }

    type StreamStream = Pin<Box<dyn Stream<Item = Result<Payload, Status>> + Send>>;

    async fn stream(&self, request: Request<Streaming<Payload>>) -> Result<Response<Self::StreamStream>, Status> {
        let reply = self.reply.clone();
        let replies = request.into_inner().map(move |sent| sent.map(|_| Payload { data: reply.clone() }));
        Ok(Response::new(Box::pin(replies)))
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(port), Some(bytes)) = (args.next(), args.next()) else {
        return Err("usage: echo <port> <bytes of a reply> [<certificate> <private key>]".into());
    };
    let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse()?));
    let service = Service { reply: payload_of(bytes.parse()?)? };
    let mut server = Server::builder();
    if let (Some(certificate), Some(key)) = (args.next(), args.next()) {
        let identity = Identity::from_pem(std::fs::read(certificate)?, std::fs::read(key)?);
        server = server.tls_config(ServerTlsConfig::new().identity(identity))?;
    }
    server.add_service(EchoServer::new(service)).serve(addr).await?;
    Ok(())
}

/// A payload whose message has this many bytes, with its tag and its length.
fn payload_of(message_bytes: usize) -> Result<Vec<u8>, &'static str> {
    let fits = |len: &usize| prost::Message::encoded_len(&Payload { data: vec![0; *len] }) == message_bytes;
    let len = (message_bytes.saturating_sub(5)..message_bytes).find(fits).ok_or("no message has this size")?;
    Ok(vec![b'x'; len])
}
