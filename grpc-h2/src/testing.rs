//! A client for tests (feature `testing`): it writes and reads frame by frame, so that it can break every
//! rule. It panics where a test would. Sections are those of RFC 9113.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fmt;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::frame::{self, FRAME_HEAD_BYTES, FrameHead, flag, kind, put_head};
use crate::hpack::Decoder;

/// The client connection preface (section 3.4).
pub const PREFACE: &[u8] = frame::PREFACE;

/// Section 6.1.
pub const DATA: u8 = kind::DATA;
/// Section 6.2.
pub const HEADERS: u8 = kind::HEADERS;
/// Section 6.3.
pub const PRIORITY: u8 = kind::PRIORITY;
/// Section 6.4.
pub const RST_STREAM: u8 = kind::RST_STREAM;
/// Section 6.5.
pub const SETTINGS: u8 = kind::SETTINGS;
/// Section 6.6.
pub const PUSH_PROMISE: u8 = kind::PUSH_PROMISE;
/// Section 6.7.
pub const PING: u8 = kind::PING;
/// Section 6.8.
pub const GOAWAY: u8 = kind::GOAWAY;
/// Section 6.9.
pub const WINDOW_UPDATE: u8 = kind::WINDOW_UPDATE;
/// Section 6.10.
pub const CONTINUATION: u8 = kind::CONTINUATION;

/// END_STREAM of DATA and HEADERS, and ACK of SETTINGS and PING.
pub const END: u8 = flag::END_STREAM;
/// The header block ends with this frame.
pub const END_HEADERS: u8 = flag::END_HEADERS;
/// The frame is padded.
pub const PADDED: u8 = flag::PADDED;
/// The HEADERS frame has the fields of a priority.
pub const WITH_PRIORITY: u8 = flag::PRIORITY;

/// Far longer than anything takes that a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its type.
    pub kind: u8,
    /// Its flags.
    pub flags: u8,
    /// Its stream; 0 is the connection.
    pub stream: u32,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The fields of HEADERS, which come in one frame.
    pub fields: Vec<(String, String)>,
}

impl Frame {
    /// The code of RST_STREAM or GOAWAY.
    #[must_use]
    pub fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }

    /// Whether its stream ends with it.
    #[must_use]
    pub fn ends(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.flags & END != 0
    }

    /// The value of a field. `None`: it has none of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(found, _)| found == name).map(|(_, value)| &**value)
    }
}

/// One end of a connection.
pub struct Peer {
    reader: Reader,
    writer: Writer,
}

/// Its read half.
pub struct Reader {
    io: Box<dyn AsyncRead + Send + Unpin>,
    decoder: Decoder,
}

/// Its write half.
pub struct Writer(Box<dyn AsyncWrite + Send + Unpin>);

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a peer")
    }
}

impl Reader {
    /// The next frame. `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        timeout(PATIENCE, self.read()).await.unwrap()
    }

    /// The next frame, without a timeout.
    pub async fn read(&mut self) -> Option<Frame> {
        let mut head = [0; FRAME_HEAD_BYTES];
        // A TCP reset is an end too: the server closes on data that it has not read.
        self.io.read_exact(&mut head).await.ok()?;
        let FrameHead { length, kind, flags, stream } = FrameHead::read(&head)?;
        let mut payload = vec![0; length];
        self.io.read_exact(&mut payload).await.ok()?;
        let mut fields = vec![];
        if kind == HEADERS {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            self.decoder.decode(&payload, |field| fields.push((text(field.name), text(field.value)))).unwrap();
        }
        Some(Frame { kind, flags, stream, payload, fields })
    }

    /// Drops frames up to one that is `wanted`, and returns that.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        loop {
            let frame = self.next().await.unwrap();
            if wanted(&frame) {
                return frame;
            }
        }
    }

    /// The code of the GOAWAY that ends the connection.
    pub async fn goaway(&mut self) -> u32 {
        let code = self.find(|frame| frame.kind == GOAWAY).await.code();
        while let Some(frame) = self.next().await {
            assert_ne!(frame.kind, HEADERS, "nothing is answered after it");
        }
        code
    }
}

impl Writer {
    /// Writes. Ignores a server that has closed.
    pub async fn write(&mut self, bytes: &[u8]) {
        drop(self.flush_all(bytes).await);
    }

    /// Writes, and returns whether the server still reads.
    pub async fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.flush_all(bytes).await.is_ok()
    }

    /// Writes everything.
    pub async fn write_whole(&mut self, bytes: &[u8]) {
        self.flush_all(bytes).await.unwrap();
    }

    /// Ends what is written. Dropping it does not where a stream encrypts.
    pub async fn end(mut self) {
        drop(self.0.shutdown().await);
    }

    /// A stream that encrypts may keep a part until it is flushed.
    async fn flush_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Sends WINDOW_UPDATE.
    pub async fn window_update(&mut self, stream: u32, bytes: u32) {
        self.write_whole(&frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())).await;
    }
}

impl Peer {
    /// A connection on which nothing was sent.
    pub fn new(
        reader: impl AsyncRead + Send + Unpin + 'static,
        writer: impl AsyncWrite + Send + Unpin + 'static,
    ) -> Self {
        let reader = Reader { io: Box::new(reader), decoder: Decoder::new() };
        Self { reader, writer: Writer(Box::new(writer)) }
    }

    /// Sends the preface and these settings, and is ready for calls.
    pub async fn start(&mut self, settings: &[(u16, u32)]) {
        self.write(PREFACE).await;
        self.settings(settings).await;
    }

    /// Writes everything.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.writer.write_whole(bytes).await;
    }

    /// Sends a frame.
    pub async fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).await;
    }

    /// Sends SETTINGS.
    pub async fn settings(&mut self, settings: &[(u16, u32)]) {
        self.write(&frame(SETTINGS, 0, 0, &settings_payload(settings))).await;
    }

    /// Sends WINDOW_UPDATE.
    pub async fn window_update(&mut self, stream: u32, bytes: u32) {
        self.writer.window_update(stream, bytes).await;
    }

    /// The next frame. `None` at the end of the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        self.reader.next().await
    }

    /// The next frame, if it comes within this time.
    pub async fn next_in(&mut self, time: Duration) -> Option<Frame> {
        timeout(time, self.reader.read()).await.ok()?
    }

    /// Drops frames up to one that is `wanted`, and returns that.
    pub async fn find(&mut self, wanted: impl Fn(&Frame) -> bool) -> Frame {
        self.reader.find(wanted).await
    }

    /// Both halves, to write and read at once.
    #[must_use]
    pub fn split(self) -> (Reader, Writer) {
        (self.reader, self.writer)
    }

    /// All frames until a PING comes back.
    pub async fn until_pong(&mut self, mark: u8) -> Vec<Frame> {
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

    /// The code of the GOAWAY that ends the connection.
    pub async fn goaway(&mut self) -> u32 {
        self.reader.goaway().await
    }

    /// A reset, or the code of a GOAWAY, whichever comes first.
    pub async fn until_reset_or_goaway(&mut self) -> Option<u32> {
        let frame = self.find(|frame| matches!(frame.kind, RST_STREAM | GOAWAY)).await;
        (frame.kind == GOAWAY).then(|| frame.code())
    }

    /// The code of the RST_STREAM of a stream.
    pub async fn reset(&mut self, stream: u32) -> u32 {
        self.find(|frame| frame.kind == RST_STREAM && frame.stream == stream).await.code()
    }

    /// Makes a call with its head and its body in one frame each.
    pub async fn call(&mut self, stream: u32, block: &[u8], body: &[u8]) {
        let frames = [frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END, stream, body)].concat();
        self.write(&frames).await;
    }

    /// The body of a reply whose gRPC status is OK.
    pub async fn body(&mut self, stream: u32) -> Vec<u8> {
        let mut body = vec![];
        loop {
            let frame = self.find(|frame| frame.stream == stream).await;
            match frame.kind {
                DATA => body.extend(&frame.payload),
                HEADERS
                    if [(":status", "200"), ("grpc-status", "0")]
                        .iter()
                        .all(|(name, ok)| frame.field(name).is_none_or(|found| found == *ok)) => {}
                _ => panic!("{frame:?} in a reply"),
            }
            if frame.ends() {
                return body;
            }
        }
    }
}

/// The payload of SETTINGS.
#[must_use]
pub fn settings_payload(settings: &[(u16, u32)]) -> Vec<u8> {
    settings.iter().flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect()
}

/// A frame, in bytes.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![];
    put_head(&mut frame, payload.len(), kind, flags, stream);
    frame.extend(payload);
    frame
}

/// A literal field: form 0 is not indexed, 0x40 is. Its texts have at most 254 bytes.
#[must_use]
pub fn field(form: u8, name: &str, value: &str) -> Vec<u8> {
    let mut field = vec![form];
    for text in [name, value] {
        match text.len() {
            short @ ..0x7f => field.push(short as u8),
            long => field.extend([0x7f, u8::try_from(long - 0x7f).ok().filter(|rest| *rest < 0x80).unwrap()]),
        }
        field.extend(text.as_bytes());
    }
    field
}

/// The head of a call without a credential.
#[must_use]
pub fn head(path: &str) -> Vec<u8> {
    let fields = [field(0, ":path", path), field(0, "content-type", "application/grpc"), field(0, "te", "trailers")];
    [&[0x83, 0x86][..], &fields.concat()].concat()
}

/// The head of a call with a credential.
#[must_use]
pub fn head_of(path: &str, credential: &str) -> Vec<u8> {
    [head(path), field(0, "authorization", &format!("Bearer {credential}"))].concat()
}

/// A message as a DATA payload of gRPC.
#[must_use]
pub fn prefixed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &(message.len() as u32).to_be_bytes(), message].concat()
}
