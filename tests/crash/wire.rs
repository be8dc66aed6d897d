//! A client of the least that a client can be: one request, ready as bytes, over a socket that blocks. What
//! it costs is not in the way of what it measures.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;

use grpc_h2::testing::{
    DATA, END, END_HEADERS, GOAWAY, HEADERS, PREFACE, RST_STREAM, SETTINGS, WINDOW_UPDATE, frame, head_of, prefixed,
    settings_payload,
};
use prost::Message;

use crate::Failure;

const INITIAL_WINDOW_SIZE: u16 = 4;
const WINDOW_MAX: u32 = i32::MAX as u32;
/// The server is told of bytes of replies when they are so many.
const TAKEN_MAX: u32 = 64 * 1024 * 1024;
const FRAME_HEAD_BYTES: usize = 9;
/// What a reply of gRPC has before its message.
const MESSAGE_HEAD_BYTES: usize = 5;

/// A connection that asks the same over and over.
pub(crate) struct Wire {
    socket: TcpStream,
    block: Vec<u8>,
    body: Vec<u8>,
    next_stream: u32,
    /// What has come and is not gone through.
    unread: Vec<u8>,
    /// Bytes of requests that the server has not said that it takes.
    window: i64,
    /// Calls whose reply has begun.
    begun: HashSet<u32>,
    /// Bytes of replies that the server has not been told were taken.
    taken: u32,
}

/// How a call ended whose reply nobody reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Replied,
    /// With an error, that speaks of the disk or not.
    Refused {
        disk: bool,
    },
}

/// How a call ended.
pub(crate) enum End<M> {
    Reply(M),
    Refused,
}

impl Wire {
    /// Connects to an address, to send this request to this call as the holder of a secret.
    pub(crate) fn connect(addr: &str, secret: &str, path: &str, request: &impl Message) -> Result<Self, Failure> {
        let mut socket = TcpStream::connect(addr)?;
        socket.set_nodelay(true)?;
        let settings = settings_payload(&[(INITIAL_WINDOW_SIZE, WINDOW_MAX)]);
        let update = (WINDOW_MAX - u32::from(u16::MAX)).to_be_bytes();
        let hello =
            [frame(SETTINGS, 0, 0, &settings), frame(SETTINGS, END, 0, &[]), frame(WINDOW_UPDATE, 0, 0, &update)];
        socket.write_all(&[PREFACE, &hello.concat()].concat())?;
        let mut wire = Self {
            socket,
            block: head_of(path, secret),
            body: vec![],
            next_stream: 1,
            unread: vec![],
            window: u16::MAX.into(),
            begun: HashSet::new(),
            taken: 0,
        };
        wire.ask_for(request);
        Ok(wire)
    }

    /// Sends this request from now on.
    pub(crate) fn ask_for(&mut self, request: &impl Message) {
        self.body = prefixed(&request.encode_to_vec());
    }

    /// Waits, before the first call, until the server takes the request so many times at once.
    pub(crate) fn wait_for_window(&mut self, times: usize) -> Result<(), Failure> {
        while self.window < (times * self.body.len()) as i64 {
            self.ended()?;
        }
        Ok(())
    }

    /// Sends the request so many times at once.
    pub(crate) fn send(&mut self, times: usize) -> Result<(), Failure> {
        let mut bytes = vec![];
        for _ in 0..times {
            bytes.extend(frame(HEADERS, END_HEADERS, self.next_stream, &self.block));
            bytes.extend(frame(DATA, END, self.next_stream, &self.body));
            self.next_stream += 2;
        }
        self.window -= (times * self.body.len()) as i64;
        if self.window < 0 {
            return Err("more was sent than the server takes".into());
        }
        Ok(self.socket.write_all(&bytes)?)
    }

    /// Waits for something to come, and gives the calls that have ended with it.
    pub(crate) fn receive<M: Message + Default>(&mut self) -> Result<Vec<End<M>>, Failure> {
        let mut space = [0; 64 * 1024];
        let bytes = self.socket.read(&mut space)?;
        if bytes == 0 {
            return Err("the server has closed the connection".into());
        }
        self.unread.extend_from_slice(&space[..bytes]);
        let (mut ends, mut done) = (vec![], 0);
        // A message is shorter than a frame, and its trailers come in the same turn.
        let mut reply = None;
        let mut at = 0;
        while let Some(head) = self.unread.get(at..at + FRAME_HEAD_BYTES) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let (kind, flags) = (head[3], head[4]);
            let Some(payload) = self.unread.get(at + FRAME_HEAD_BYTES..at + FRAME_HEAD_BYTES + length) else { break };
            at += FRAME_HEAD_BYTES + length;
            match kind {
                DATA => reply = Some(M::decode(payload.get(MESSAGE_HEAD_BYTES..).unwrap_or_default())?),
                HEADERS if flags & END == 0 => continue,
                HEADERS => ends.push(reply.take().map_or(End::Refused, End::Reply)),
                WINDOW_UPDATE if head[5..9] == [0; 4] => {
                    self.window += i64::from(u32::from_be_bytes(payload.try_into()?));
                }
                RST_STREAM | GOAWAY => return Err(format!("the server has sent a frame of kind {kind}").into()),
                _ => {}
            }
            if reply.is_none() {
                done = at;
            }
        }
        self.unread.drain(..done);
        Ok(ends)
    }

    /// Waits for something to come, and gives the calls that have ended with it. Replies may have any length,
    /// and are passed over.
    pub(crate) fn ended(&mut self) -> Result<Vec<Ended>, Failure> {
        let mut space = [0; 64 * 1024];
        let bytes = self.socket.read(&mut space)?;
        if bytes == 0 {
            return Err("the server has closed the connection".into());
        }
        self.unread.extend_from_slice(&space[..bytes]);
        let (mut ended, mut at) = (vec![], 0);
        while let Some(head) = self.unread.get(at..at + FRAME_HEAD_BYTES) {
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let (kind, flags) = (head[3], head[4]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let begin = at + FRAME_HEAD_BYTES;
            let Some(payload) = self.unread.get(begin..begin + length as usize) else { break };
            at = begin + length as usize;
            match kind {
                DATA => self.taken += length,
                HEADERS if flags & END == 0 => drop(self.begun.insert(stream)),
                HEADERS if self.begun.remove(&stream) => ended.push(Ended::Replied),
                // Its text is as it is: the server codes no strings.
                HEADERS => ended.push(Ended::Refused { disk: payload.windows(4).any(|text| text == b"disk") }),
                WINDOW_UPDATE if stream == 0 => self.window += i64::from(u32::from_be_bytes(payload.try_into()?)),
                RST_STREAM | GOAWAY => return Err(format!("the server has sent a frame of kind {kind}").into()),
                _ => {}
            }
        }
        self.unread.drain(..at);
        if self.taken > TAKEN_MAX {
            let taken = std::mem::take(&mut self.taken).to_be_bytes();
            self.socket.write_all(&frame(WINDOW_UPDATE, 0, 0, &taken))?;
        }
        Ok(ended)
    }
}
