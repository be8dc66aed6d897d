//! A connection as its peer sees it.

use std::collections::BTreeMap;

use crate::Limits;
use crate::error::ErrorCode;
use crate::frame::{BITS_31, FRAME_HEAD_BYTES, FrameHead, PAYLOAD_BYTES_MAX, PREFACE, flag, kind, read_31, setting};
use crate::hpack::Decoder;

/// The initial size of windows (RFC 9113, section 6.9.2).
const WINDOW_BYTES_AT_FIRST: u64 = 65_535;

/// Holds what a server sends against RFC 9113 and against what its peer has sent before.
///
/// It follows the peer's frames only as far as it must to know an upper bound of what the server may answer:
/// which streams were begun, and how much may be sent on each.
pub struct Peer {
    sent: Sent,
    received: Received,
}

/// What the peer has sent.
#[derive(Default)]
struct Sent {
    /// What is not parsed yet.
    rest: Vec<u8>,
    has_preface: bool,
    /// A frame is too long: the server reads nothing after it.
    is_broken: bool,
    streams: BTreeMap<u32, Stream>,
    last_stream: u32,
    settings: u64,
    pings: u64,
    /// Bytes that the peer allows the server to send on the connection.
    window: u64,
    /// The largest SETTINGS_INITIAL_WINDOW_SIZE so far.
    initial_window: u64,
    /// Bytes of DATA frames.
    data: u64,
    /// Frames of the header block that is not at its end.
    block_frames: u32,
    /// Whether a block had more frames than allowed.
    is_block_too_long: bool,
}

/// A stream that the peer has begun.
#[derive(Default)]
struct Stream {
    /// Bytes that WINDOW_UPDATE added to what the server may send.
    window: u64,
    /// Bytes of DATA frames that the peer has sent.
    data: u64,
    /// Bytes that the server has sent.
    received: u64,
    /// Bytes of its window that the server has given back.
    given_back: u64,
    has_head: bool,
    has_ended: bool,
}

/// What the peer has received.
struct Received {
    rest: Vec<u8>,
    frames: u64,
    data: u64,
    /// Bytes of the connection's window that the server has added or given back.
    given: u64,
    settings_acks: u64,
    ping_acks: u64,
    /// The last stream of the last GOAWAY.
    goaway: Option<u32>,
    decoder: Decoder,
    /// The header block that is not at its end: its stream, whether it ends the stream, and its bytes.
    block: Option<(u32, bool, Vec<u8>)>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            sent: Sent { window: WINDOW_BYTES_AT_FIRST, initial_window: WINDOW_BYTES_AT_FIRST, ..Sent::default() },
            received: Received {
                rest: vec![],
                frames: 0,
                data: 0,
                given: 0,
                settings_acks: 0,
                ping_acks: 0,
                goaway: None,
                decoder: Decoder::new(),
                block: None,
            },
        }
    }
}

impl Peer {
    /// The peer sends bytes. Must be called before the server can read them.
    pub fn send(&mut self, bytes: &[u8]) {
        self.sent.rest.extend_from_slice(bytes);
        let mut rest = std::mem::take(&mut self.sent.rest);
        let used = self.sent.parse(&rest);
        rest.drain(..used);
        self.sent.rest = rest;
    }

    /// The peer receives bytes.
    ///
    /// # Panics
    /// When the server may not send them.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.rest.extend_from_slice(bytes);
        let mut rest = std::mem::take(&mut self.received.rest);
        let mut used = 0;
        while let Some(head) = FrameHead::read(&rest[used..]) {
            assert!(head.length <= PAYLOAD_BYTES_MAX, "a frame longer than SETTINGS_MAX_FRAME_SIZE: {head:?}");
            let Some((payload, _)) = head.split_payload(&rest[used..]) else { break };
            self.frame(head, payload);
            used += FRAME_HEAD_BYTES + head.length;
        }
        rest.drain(..used);
        self.received.rest = rest;
    }

    /// Whether a header block of the peer has more frames than `block_frames_max`, for which its
    /// connection must be closed.
    #[must_use]
    pub fn has_sent_endless_block(&self) -> bool {
        self.sent.is_block_too_long
    }

    /// Whether the server has sent GOAWAY.
    #[must_use]
    pub fn has_received_goaway(&self) -> bool {
        self.received.goaway.is_some()
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) {
        let Self { sent, received } = self;
        received.frames += 1;
        assert!(received.frames > 1 || head.kind == kind::SETTINGS, "the first frame is no SETTINGS: {head:?}");
        assert!(received.block.is_none() || head.kind == kind::CONTINUATION, "a block is interrupted: {head:?}");
        let id = head.stream;
        match head.kind {
            kind::DATA => {
                let allowed = sent.initial_window;
                let stream = sent.stream(id);
                assert!(stream.has_head && !stream.has_ended, "DATA without HEADERS, or after the end: {head:?}");
                stream.received += payload.len() as u64;
                stream.has_ended = head.has(flag::END_STREAM);
                assert!(stream.received <= allowed + stream.window, "more than the window of stream {id}");
                received.data += payload.len() as u64;
                assert!(received.data <= sent.window, "more than the window of the connection");
            }
            kind::HEADERS => {
                received.block = Some((id, head.has(flag::END_STREAM), payload.to_vec()));
                received.end_block(head, sent);
            }
            kind::CONTINUATION => {
                let Some((stream, _, block)) = &mut received.block else { panic!("CONTINUATION of nothing") };
                assert_eq!(*stream, id, "CONTINUATION of another stream");
                block.extend_from_slice(payload);
                received.end_block(head, sent);
            }
            kind::RST_STREAM => {
                let code = payload.first_chunk().map(|code| u32::from_be_bytes(*code));
                assert!(payload.len() == 4 && code.is_some_and(is_code), "RST_STREAM of an unknown code");
                assert!(id % 2 == 1 && id <= sent.last_stream, "RST_STREAM of stream {id}, which was never begun");
                // It may be a stream that was skipped, and so is closed.
                if let Some(stream) = sent.streams.get_mut(&id) {
                    stream.has_ended = true;
                }
            }
            kind::SETTINGS if head.has(flag::ACK) => {
                received.settings_acks += 1;
                assert!(payload.is_empty() && received.settings_acks <= sent.settings, "an ACK of no SETTINGS");
            }
            kind::SETTINGS => assert!(id == 0 && received.frames == 1 && payload.len().is_multiple_of(6)),
            kind::PING => {
                received.ping_acks += u64::from(head.has(flag::ACK));
                assert!(id == 0 && payload.len() == 8 && received.ping_acks <= sent.pings, "an ACK of no PING");
            }
            kind::GOAWAY => {
                let code = payload[4..].first_chunk().map(|code| u32::from_be_bytes(*code));
                let last = read_31(payload).unwrap_or_default();
                assert!(id == 0 && code.is_some_and(is_code), "GOAWAY of an unknown code");
                assert!(last == BITS_31 || last <= sent.last_stream, "GOAWAY names a stream that was never begun");
                let before = received.goaway.replace(last);
                assert!(before.is_none_or(|before| last <= before), "GOAWAY takes up what it has given up");
            }
            kind::WINDOW_UPDATE => {
                let bytes = u64::from(read_31(payload).unwrap_or_default());
                assert!(payload.len() == 4 && bytes > 0, "WINDOW_UPDATE by nothing");
                if id == 0 {
                    received.given += bytes;
                    let most = u64::from(Limits::DEFAULT.window_bytes) - WINDOW_BYTES_AT_FIRST + sent.data;
                    assert!(received.given <= most, "more of the window is given back than was used");
                } else {
                    let stream = sent.stream(id);
                    stream.given_back += bytes;
                    assert!(stream.given_back <= stream.data, "more of the window of stream {id} than was used");
                }
            }
            other => panic!("a server sends no frame of type {other}"),
        }
    }
}

impl Sent {
    /// Follows whole frames, and returns how many bytes they have.
    fn parse(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        if !self.has_preface {
            let Some(further) = rest.strip_prefix(PREFACE) else { return 0 };
            (self.has_preface, rest) = (true, further);
        }
        while !self.is_broken
            && let Some(head) = FrameHead::read(rest)
        {
            self.is_broken = head.length > PAYLOAD_BYTES_MAX;
            let Some((payload, further)) = head.split_payload(rest) else { break };
            self.frame(head, payload);
            rest = further;
        }
        bytes.len() - rest.len()
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) {
        let id = head.stream;
        if !matches!(head.kind, kind::HEADERS | kind::CONTINUATION) {
            self.block_frames = 0;
        }
        match head.kind {
            kind::HEADERS if id % 2 == 1 => {
                self.last_stream = self.last_stream.max(id);
                self.streams.entry(id).or_default();
                self.block_frames = u32::from(!head.has(flag::END_HEADERS));
            }
            kind::CONTINUATION if self.block_frames > 0 => {
                self.block_frames += 1;
                self.is_block_too_long |= self.block_frames > Limits::DEFAULT.block_frames_max;
                if head.has(flag::END_HEADERS) {
                    self.block_frames = 0;
                }
            }
            kind::DATA => {
                self.data += payload.len() as u64;
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.data += payload.len() as u64;
                }
            }
            kind::SETTINGS if !head.has(flag::ACK) => {
                self.settings += 1;
                for [n1, n2, value @ ..] in payload.as_chunks::<6>().0 {
                    if u16::from_be_bytes([*n1, *n2]) == setting::INITIAL_WINDOW_SIZE {
                        self.initial_window = self.initial_window.max(u32::from_be_bytes(*value).into());
                    }
                }
            }
            kind::PING if !head.has(flag::ACK) => self.pings += 1,
            kind::WINDOW_UPDATE => {
                let bytes = u64::from(read_31(payload).unwrap_or_default());
                if id == 0 {
                    self.window += bytes;
                } else if let Some(stream) = self.streams.get_mut(&id) {
                    stream.window += bytes;
                }
            }
            _ => {}
        }
    }

    fn stream(&mut self, id: u32) -> &mut Stream {
        self.streams.get_mut(&id).unwrap_or_else(|| panic!("a frame of stream {id}, which was never begun"))
    }
}

impl Received {
    /// Reads the header block, if the frame is its last one.
    fn end_block(&mut self, head: FrameHead, sent: &mut Sent) {
        if !head.has(flag::END_HEADERS) {
            return;
        }
        let Some((id, ends, block)) = self.block.take() else { return };
        let stream = sent.stream(id);
        assert!(!stream.has_ended, "HEADERS after the end of stream {id}");
        let mut statuses = vec![];
        let read = self.decoder.decode(&block, |field| {
            if field.name == b":status" {
                statuses.push(field.value.to_vec());
            }
        });
        assert!(read.is_ok(), "a header block that cannot be read");
        if stream.has_head {
            assert!(ends && statuses.is_empty(), "trailers that do not end, or have a status");
        } else {
            assert!(statuses.len() == 1 && statuses[0].len() == 3, "a head without its status: {statuses:?}");
        }
        (stream.has_head, stream.has_ended) = (true, ends);
    }
}

fn is_code(code: u32) -> bool {
    use ErrorCode::{
        Compression, EnhanceYourCalm, FlowControl, FrameSize, Internal, NoError, Protocol, RefusedStream, StreamClosed,
    };
    let codes = [
        NoError,
        Protocol,
        Internal,
        FlowControl,
        StreamClosed,
        FrameSize,
        RefusedStream,
        Compression,
        EnhanceYourCalm,
    ];
    codes.iter().any(|known| *known as u32 == code)
}
