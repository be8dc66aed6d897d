//! A caller's connection, with the ways that callers have to send a credential and a body.

use std::collections::{BTreeMap, BTreeSet};

use keyward::grpc::pb;
use keyward::server::addr::ListenAddr;

use crate::support::h2peer::*;
use crate::support::program::Program;

/// Calls that are under way at once.
const TOGETHER: usize = 200;
/// Every other write ends within a frame.
const WRITE_BYTES: usize = 10_007;

/// Whether a credential is put into the table of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Once,
    EachTime,
    Never,
    /// It is in the table, and is written out all the same.
    NowAndThen,
}

/// How a credential is written out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coded {
    Plain,
    Huffman,
}

/// A caller's credential and how it is sent.
pub(super) struct Credential {
    value: String,
    kept: Kept,
    coded: Coded,
    sent: usize,
}

impl Credential {
    pub(super) fn new(secret: &str, kept: Kept, coded: Coded) -> Self {
        Self { value: format!("Bearer {secret}"), kept, coded, sent: 0 }
    }

    /// The field of the next header block.
    fn field(&mut self) -> Vec<u8> {
        self.sent += 1;
        let first = self.sent == 1;
        match self.kept {
            Kept::Once | Kept::NowAndThen if first => self.literal(0x40),
            Kept::EachTime => self.literal(0x40),
            Kept::NowAndThen if self.sent.is_multiple_of(2) => self.literal(0),
            Kept::Once | Kept::NowAndThen => vec![0x80 | 62],
            Kept::Never => self.literal(0x10),
        }
    }

    fn literal(&self, form: u8) -> Vec<u8> {
        if self.coded == Coded::Plain {
            return field(form, "authorization", &self.value);
        }
        let value = huffman(&self.value);
        let mut field = vec![form, 13];
        field.extend(b"authorization");
        field.push(0x80 | u8::try_from(value.len()).unwrap());
        field.extend(value);
        field
    }
}

/// The symbols whose codes have five bits and more, in the order of their codes (RFC 7541, appendix B).
const SYMBOLS: [&[u8]; 4] =
    [b"012aceiost", b" %-./3456789=A_bdfghlmnpru", b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz", b"&*,;XZ"];

/// A text in the code of header strings.
pub(super) fn huffman(text: &str) -> Vec<u8> {
    let mut codes = BTreeMap::new();
    let mut code = 0_u32;
    for (symbols, bits) in SYMBOLS.into_iter().zip(5..) {
        for symbol in symbols {
            codes.insert(*symbol, (code, bits));
            code += 1;
        }
        code <<= 1;
    }
    let mut bits = vec![];
    for byte in text.bytes() {
        let (code, length) = codes[&byte];
        bits.extend((0..length).rev().map(|bit| code >> bit & 1 == 1));
    }
    bits.resize(bits.len().next_multiple_of(8), true);
    bits.chunks(8).map(|byte| byte.iter().fold(0, |all, bit| all << 1 | u8::from(*bit))).collect()
}

/// A caller's connection.
pub(super) struct Line {
    peer: Peer,
    credential: Credential,
    next: u32,
}

impl Line {
    pub(super) async fn open(program: &Program, credential: Credential) -> Self {
        let mut peer = Peer::to(&ListenAddr::Tcp(program.addr.parse().unwrap())).await;
        peer.write(PREFACE).await;
        // Windows that are never in the way.
        peer.settings(&[(4, 0x7fff_ffff)]).await;
        peer.window_update(0, 0x7000_0000).await;
        Self { peer, credential, next: 1 }
    }

    /// Makes calls whose heads and bodies come in one piece each, and gives the bodies of the replies.
    pub(super) async fn call(&mut self, path: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<Vec<u8>> {
        let pieces = |stream, block: &[u8], body: &[u8]| {
            [frame(HEADERS, END_HEADERS, stream, block), data(stream, body, 16_384)].concat()
        };
        self.calls(path, bodies, pieces).await
    }

    /// The same in pieces: the head in three, the body in several, with padding.
    pub(super) async fn call_in_pieces(
        &mut self,
        path: &str,
        bodies: impl IntoIterator<Item = Vec<u8>>,
    ) -> Vec<Vec<u8>> {
        let pieces = |stream, block: &[u8], body: &[u8]| {
            let third = block.len() / 3;
            let first = body.len() / 2;
            [
                frame(HEADERS, 0, stream, &block[..third]),
                frame(CONTINUATION, 0, stream, &block[third..2 * third]),
                frame(CONTINUATION, END_HEADERS, stream, &block[2 * third..]),
                body[..first].chunks(1_000).flat_map(|part| frame(DATA, 0, stream, part)).collect(),
                frame(DATA, PADDED, stream, &[&[9], &body[first..first + 7], &[0; 9][..]].concat()),
                data(stream, &body[first + 7..], 900),
            ]
            .concat()
        };
        self.calls(path, bodies, pieces).await
    }

    async fn calls(
        &mut self,
        path: &str,
        bodies: impl IntoIterator<Item = Vec<u8>>,
        frames: impl Fn(u32, &[u8], &[u8]) -> Vec<u8>,
    ) -> Vec<Vec<u8>> {
        let bodies: Vec<_> = bodies.into_iter().collect();
        let mut replies = vec![];
        for bodies in bodies.chunks(TOGETHER) {
            let first = self.next;
            let mut sent = vec![];
            for body in bodies {
                let (stream, block) = self.begin(path);
                sent.extend(frames(stream, &block, body));
            }
            self.write(&sent).await;
            let mut open: BTreeMap<u32, Vec<u8>> = (first..self.next).step_by(2).map(|id| (id, vec![])).collect();
            let mut ended = BTreeSet::new();
            while ended.len() < open.len() {
                let frame = self.peer.next().await.unwrap();
                let Some(reply) = open.get_mut(&frame.stream) else { continue };
                assert_ne!(frame.kind, RST_STREAM);
                if frame.kind == DATA {
                    reply.extend(&frame.payload);
                }
                if frame.ends() {
                    ended.insert(frame.stream);
                }
            }
            replies.extend(open.into_values());
        }
        replies
    }

    fn begin(&mut self, path: &str) -> (u32, Vec<u8>) {
        let stream = self.next;
        self.next += 2;
        (stream, [head(path), self.credential.field()].concat())
    }

    async fn write(&mut self, bytes: &[u8]) {
        for part in bytes.chunks(WRITE_BYTES) {
            self.peer.write(part).await;
        }
    }

    /// Creates keys, and gives their secrets.
    pub(super) async fn create(&mut self, path: &str, bodies: impl IntoIterator<Item = Vec<u8>>) -> Vec<String> {
        let replies = self.call(path, bodies).await;
        replies.iter().map(|reply| message::<pb::CreateKeyResponse>(reply).secret).collect()
    }

    /// Opens a stream of requests that stays open when all of them are answered.
    pub(super) async fn stream(&mut self, path: &str, bodies: impl Iterator<Item = Vec<u8>>, replies: usize) {
        let (stream, block) = self.begin(path);
        let sent: Vec<u8> = bodies.flatten().collect();
        // Messages and frames have nothing to do with each other.
        let frames: Vec<_> = sent.chunks(1_500).flat_map(|part| frame(DATA, 0, stream, part)).collect();
        self.write(&[frame(HEADERS, END_HEADERS, stream, &block), frames].concat()).await;
        let (mut come, mut answered) = (vec![], 0);
        while answered < replies {
            let frame = self.peer.find(|frame| frame.stream == stream && frame.kind == DATA).await;
            come.extend(frame.payload);
            while let Some(prefix) = come.first_chunk::<5>() {
                let length = 5 + u32::from_be_bytes([prefix[1], prefix[2], prefix[3], prefix[4]]) as usize;
                if come.len() < length {
                    break;
                }
                come.drain(..length);
                answered += 1;
            }
        }
    }

    /// Says something, so that the server does not take it for gone.
    pub(super) async fn stay(&mut self) {
        self.peer.until_pong(3).await;
    }

    /// Sends half a message of a stream.
    pub(super) async fn begin_message(&mut self, path: &str, body: &[u8]) {
        let (stream, block) = self.begin(path);
        let frames = [frame(HEADERS, END_HEADERS, stream, &block), frame(DATA, 0, stream, &body[..body.len() - 3])];
        self.write(&frames.concat()).await;
        self.peer.until_pong(2).await;
    }

    /// Begins calls, sends nearly all of their bodies, and gives them up.
    pub(super) async fn give_up(&mut self, path: &str, bodies: impl Iterator<Item = Vec<u8>>) {
        for body in bodies {
            let (stream, block) = self.begin(path);
            let frames = [frame(HEADERS, END_HEADERS, stream, &block), frame(DATA, 0, stream, &body[..body.len() - 3])];
            self.write(&frames.concat()).await;
            self.peer.until_pong(1).await;
            self.peer.send(RST_STREAM, 0, stream, &[0, 0, 0, 8]).await;
        }
        self.peer.until_pong(1).await;
    }

    /// Ends the connection, and waits until the server has ended it too.
    pub(super) async fn close(self) {
        let (mut reader, writer) = self.peer.split();
        writer.end().await;
        while reader.next().await.is_some() {}
    }

    /// Breaks the rules, and sends calls after that.
    pub(super) async fn break_with(mut self, bodies: impl Iterator<Item = Vec<u8>>) {
        let mut sent = frame(PING, 0, 0, &[0; 3]);
        for body in bodies {
            let (stream, block) = self.begin(VERIFY);
            sent.extend(frame(HEADERS, END_HEADERS, stream, &block));
            sent.extend(data(stream, &body, 16_384));
        }
        let (mut reader, mut writer) = self.peer.split();
        for part in sent.chunks(WRITE_BYTES) {
            writer.write(part).await;
        }
        writer.end().await;
        reader.goaway().await;
    }
}

/// A body in frames of this length, the last of which ends the request.
fn data(stream: u32, body: &[u8], length: usize) -> Vec<u8> {
    let mut parts = body.chunks(length).peekable();
    let mut frames = vec![];
    while let Some(part) = parts.next() {
        frames.extend(frame(DATA, if parts.peek().is_none() { END } else { 0 }, stream, part));
    }
    frames
}
