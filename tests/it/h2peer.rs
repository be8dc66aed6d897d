//! An HTTP/2 client that writes and reads frames byte by byte, so that it can break every rule.

use std::time::Duration;

use keyward::net::ListenAddr;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::harness::Site;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING.
pub(crate) const END: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;
pub(crate) const WITH_PRIORITY: u8 = 0x20;

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const VERIFY: &str = "/keyward.v1.KeyVerify/Verify";

/// Far longer than any test takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    pub(crate) fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    pub(crate) fn ends(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END != 0
    }
}

/// One end of a connection.
pub(crate) struct Peer {
    reader: Reader,
    writer: Writer,
}

/// Its read half.
pub(crate) struct Reader(OwnedReadHalf);

/// Its write half.
pub(crate) struct Writer(OwnedWriteHalf);

impl Reader {
    /// The next frame. `None` at the end of the connection.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.unwrap()
    }

    /// The next frame, without a timeout.
    pub(crate) async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        // A TCP reset is an end too: the server closes on data that it has not read.
        self.0.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes(head[5..9].try_into().unwrap());
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Drops frames up to one that is `wanted`, and returns that.
    pub(crate) async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The code of the GOAWAY that ends the connection.
    pub(crate) async fn goaway(&mut self) -> u32 {
        let code = self.find(|frame| frame.kind == GOAWAY).await.code();
        while let Some(frame) = self.next().await {
            assert_ne!(frame.kind, HEADERS, "nothing is answered after it");
        }
        code
    }
}

impl Writer {
    /// Writes. Ignores a server that has closed.
    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        drop(self.0.write_all(bytes).await);
    }

    /// Writes, and returns whether the server still reads.
    pub(crate) async fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    pub(crate) async fn write_whole(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    pub(crate) async fn window_update(&mut self, stream: u32, bytes: u32) {
        self.write_whole(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())).await;
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
        let (reader, writer) = stream.into_split();
        Self { reader: Reader(reader), writer: Writer(writer) }
    }

    /// A connection with these settings, ready for calls.
    pub(crate) async fn with(site: &Site, settings: &[(u16, u32)]) -> Self {
        let mut peer = Self::silent(site).await;
        peer.write(PREFACE).await;
        peer.settings(settings).await;
        peer
    }

    pub(crate) async fn open(site: &Site) -> Self {
        Self::with(site, &[]).await
    }

    pub(crate) async fn write(&mut self, bytes: &[u8]) {
        self.writer.write_whole(bytes).await;
    }

    pub(crate) async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).await;
    }

    pub(crate) async fn settings(&mut self, settings: &[(u16, u32)]) {
        self.write(&frame(SETTINGS, 0, 0, &settings_payload(settings))).await;
    }

    pub(crate) async fn window_update(&mut self, stream: u32, bytes: u32) {
        self.writer.window_update(stream, bytes).await;
    }

    pub(crate) async fn next(&mut self) -> Option<Frame> {
        self.reader.next().await
    }

    /// The next frame, if it comes within this time.
    pub(crate) async fn next_in(&mut self, time: Duration) -> Option<Frame> {
        timeout(time, self.reader.read()).await.ok()?
    }

    pub(crate) async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        self.reader.find(wanted).await
    }

    /// Both halves, to write and read at once.
    pub(crate) fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// All frames until a PING comes back.
    pub(crate) async fn until_pong(&mut self, mark: u8) -> Vec<Frame> {
        self.send(PING, 0, 0, &[mark; 8]).await;
        let mut frames = vec![];
        loop {
            let Some(frame) = self.next().await else { panic!("the connection ended after {frames:?}") };
            if frame.kind == PING && frame.flags == END && frame.payload == [mark; 8] {
                return frames;
            }
            frames.push(frame);
        }
    }

    pub(crate) async fn goaway(&mut self) -> u32 {
        self.reader.goaway().await
    }

    /// A reset, or the code of a GOAWAY, whichever comes first.
    pub(crate) async fn until_reset_or_goaway(&mut self) -> Option<u32> {
        let frame = self.find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY)).await;
        (frame.kind == GOAWAY).then(|| frame.code())
    }

    /// The code of the RST_STREAM of a stream.
    pub(crate) async fn reset(&mut self, stream: u32) -> u32 {
        self.find(|frame| frame.kind == RST_STREAM && frame.stream == stream).await.code()
    }

    /// Makes a call with its head and its body in one frame each.
    pub(crate) async fn call(&mut self, stream: u32, block: &[u8], body: &[u8]) {
        let frames = [frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END, stream, body)].concat();
        self.write(&frames).await;
    }

    /// The message of a successful reply.
    pub(crate) async fn reply<M: Message + Default>(&mut self, stream: u32) -> M {
        let mut body = vec![];
        loop {
            let frame = self.find(|frame| frame.stream == stream).await;
            match frame.kind {
                DATA => body.extend(&frame.payload),
                HEADERS => {}
                other => panic!("a frame of type {other} in a reply"),
            }
            if frame.ends() {
                return message(&body);
            }
        }
    }
}

/// The message in the body of a reply.
pub(crate) fn message<M: Message + Default>(body: &[u8]) -> M {
    assert_eq!(body[..5], [&[0][..], &(body.len() as u32 - 5).to_be_bytes()].concat());
    M::decode(&body[5..]).unwrap()
}

pub(crate) fn settings_payload(settings: &[(u16, u32)]) -> Vec<u8> {
    settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A literal field: form 0 is not indexed, 0x40 is.
pub(crate) fn field(form: u8, name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![form];
    for text in [name, value] {
        match u8::try_from(text.len()).unwrap() {
            short @ ..0x7f => field.push(short),
            long => field.extend([0x7f, long - 0x7f]),
        }
        field.extend(text.as_bytes());
    }
    field
}

/// The head of a call without a credential.
pub(crate) fn head(path: &str) -> Vec<u8> {
    let fields = [field(0, ":path", path), field(0, "content-type", "application/grpc"), field(0, "te", "trailers")];
    [&[0x83, 0x86][..], &fields.concat()].concat()
}

/// The head of a call with a credential.
pub(crate) fn head_of(path: &str, secret: &str) -> Vec<u8> {
    [head(path), field(0, "authorization", &format!("Bearer {secret}"))].concat()
}

/// A message as a DATA payload of gRPC.
pub(crate) fn body(message: &impl Message) -> Vec<u8> {
    prefixed(&message.encode_to_vec())
}

/// The same for an encoded message.
pub(crate) fn prefixed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}
