//! An HTTP/2 client that writes and reads frame by frame, so that it can break every rule, and what it says
//! to a server of ours.

use std::ops::{Deref, DerefMut};

pub(crate) use grpc_h2::testing::*;
use keyward::server::addr::ListenAddr;
use prost::Message;
use rustls::version::TLS13;
use tokio::net::TcpStream;

use super::certificates::encrypt;
use super::harness::{Site, TLS};

pub(crate) const VERIFY: &str = "/keyward.v1.KeyVerify/Verify";

/// One end of a connection to a server.
pub(crate) struct Peer(grpc_h2::testing::Peer);

impl Deref for Peer {
    type Target = grpc_h2::testing::Peer;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Peer {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

impl Peer {
    /// A connection on which nothing was sent.
    pub(crate) async fn silent(site: &Site) -> Self {
        Self::to(&site.addr()).await
    }

    pub(crate) async fn to(addr: &ListenAddr) -> Self {
        let ListenAddr::Tcp(addr) = addr else { panic!("a TCP listener") };
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        if let Some((_, files)) = &*TLS {
            let stream = encrypt(stream, files.client(&[&TLS13], &[b"h2"], None)).await.unwrap();
            let (reader, writer) = tokio::io::split(stream);
            return Self(grpc_h2::testing::Peer::new(reader, writer));
        }
        let (reader, writer) = stream.into_split();
        Self(grpc_h2::testing::Peer::new(reader, writer))
    }

    /// A connection with these settings, ready for calls.
    pub(crate) async fn with(site: &Site, settings: &[(u16, u32)]) -> Self {
        let mut peer = Self::silent(site).await;
        peer.start(settings).await;
        peer
    }

    pub(crate) async fn open(site: &Site) -> Self {
        Self::with(site, &[]).await
    }

    /// Both halves, to write and read at once.
    pub(crate) fn split(self) -> (Reader, Writer) {
        self.0.split()
    }

    /// The message of a successful reply.
    pub(crate) async fn reply<M: Message + Default>(&mut self, stream: u32) -> M {
        message(&self.body(stream).await)
    }
}

/// The message in the body of a reply.
pub(crate) fn message<M: Message + Default>(body: &[u8]) -> M {
    assert_eq!(body[..5], [&[0][..], &(body.len() as u32 - 5).to_be_bytes()].concat());
    M::decode(&body[5..]).unwrap()
}

/// A message as a DATA payload of gRPC.
pub(crate) fn body(message: &impl Message) -> Vec<u8> {
    prefixed(&message.encode_to_vec())
}
