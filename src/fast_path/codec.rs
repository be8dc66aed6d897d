//! Verify's messages without prost: requests are read without copying, replies are written in one piece.
//!
//! The reader takes common messages and leaves all others to prost. Property tests show that it reads what
//! prost reads, and that the writer's bytes are prost's.

use bytes::{BufMut, Bytes, BytesMut};
use keyward_core::clock::UnixMillis;
use keyward_core::decision::Policy;

use crate::bytes_codec::{Cursor, put_varint, varint_bytes};
use crate::grpc::pb;
use crate::grpc::query::VerifyQuery;
use crate::index::Entry;

/// Scopes that the reader takes in each list. Longer lists are prost's.
const SCOPES_MAX: usize = 8;

/// The highest number of a field of VerifyRequest. Number 7 is unused.
const LAST_FIELD: u64 = 12;

/// The prefix of a gRPC message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// Bytes of an answer in a batch, about.
const ANSWER_BYTES_TYPICAL: usize = 192;

/// A VerifyRequest, borrowed from its bytes.
#[derive(Debug, Default, PartialEq)]
pub struct Request<'a> {
    /// See the proto.
    pub secret: &'a str,
    /// See the proto.
    pub tenant: &'a str,
    /// See the proto.
    pub all_scopes: Texts<'a>,
    /// See the proto.
    pub any_scopes: Texts<'a>,
    /// See the proto.
    pub audience: &'a str,
    /// See the proto.
    pub client_ip: &'a str,
    /// See the proto.
    pub mode: u64,
    /// See the proto.
    pub explain: bool,
    /// See the proto.
    pub min_revision: u64,
    /// See the proto.
    pub correlation_id: &'a str,
    /// See the proto.
    pub environment: &'a str,
}

/// A short list of texts.
#[derive(Debug, Default, PartialEq)]
pub struct Texts<'a> {
    texts: [&'a str; SCOPES_MAX],
    len: usize,
}

impl<'a> Texts<'a> {
    /// The texts.
    #[must_use]
    pub fn as_slice(&self) -> &[&'a str] {
        &self.texts[..self.len]
    }

    fn push(&mut self, text: &'a str) -> Option<()> {
        *self.texts.get_mut(self.len)? = text;
        self.len += 1;
        Some(())
    }
}

impl<'a> Request<'a> {
    /// Reads the body of a call: one message, not compressed. `None`: prost must read it, or refuse it.
    #[must_use]
    pub fn of_body(body: &'a [u8]) -> Option<Self> {
        Self::of_message(only_message(body)?)
    }

    /// Reads a message. `None`: prost must read it, or refuse it.
    #[must_use]
    pub fn of_message(message: &'a [u8]) -> Option<Self> {
        let (mut request, mut rest) = (Self::default(), Cursor(message));
        while !rest.0.is_empty() {
            let tag = rest.varint()?;
            match tag {
                // Number and wire type: 2 is a length and that many bytes, 0 a number.
                0x0a => request.secret = text(&mut rest)?,
                0x12 => request.tenant = text(&mut rest)?,
                0x1a => request.all_scopes.push(text(&mut rest)?)?,
                0x22 => request.any_scopes.push(text(&mut rest)?)?,
                0x2a => request.audience = text(&mut rest)?,
                0x32 => request.client_ip = text(&mut rest)?,
                0x40 => request.mode = rest.varint()?,
                0x48 => request.explain = rest.varint()? != 0,
                0x50 => request.min_revision = rest.varint()?,
                0x5a => request.correlation_id = text(&mut rest)?,
                0x62 => request.environment = text(&mut rest)?,
                // A known field of another type is for prost to refuse.
                _ if tag >> 3 <= LAST_FIELD && tag >> 3 != 7 => return None,
                _ => skip(&mut rest, tag)?,
            }
        }
        Some(request)
    }

    /// What it asks.
    #[must_use]
    pub fn query(&self) -> VerifyQuery<'_> {
        VerifyQuery {
            tenant: self.tenant,
            all_scopes: self.all_scopes.as_slice(),
            any_scopes: self.any_scopes.as_slice(),
            audience: self.audience,
            client_ip: self.client_ip,
            // As prost has it: the low half of the number.
            mode: self.mode as i32,
            explain: self.explain,
            correlation_id: self.correlation_id,
            environment: self.environment,
        }
    }
}

/// The secret in the body of a call of Verify. See [`secret_of_message`].
#[must_use]
pub fn secret_of(body: &[u8]) -> Option<&str> {
    secret_of_message(only_message(body)?)
}

/// The secret in a request, if it comes first, as it does from every client that writes fields in their
/// order.
#[must_use]
pub fn secret_of_message(message: &[u8]) -> Option<&str> {
    let mut rest = Cursor(message);
    (rest.varint()? == 0x0a).then(|| text(&mut rest)).flatten()
}

/// The requests in the body of a BatchVerify. Where one of them is not to be read, `None` stands in its
/// place.
#[must_use]
pub fn messages(body: &[u8]) -> Option<impl Iterator<Item = Option<&[u8]>>> {
    let mut rest = Cursor(only_message(body)?);
    Some(std::iter::from_fn(move || {
        while !rest.0.is_empty() {
            let message = match rest.varint() {
                Some(0x0a) => rest.prefixed(),
                Some(tag) if tag >> 3 != 1 && skip(&mut rest, tag).is_some() => continue,
                _ => None,
            };
            if message.is_none() {
                // Where it ends is unknown.
                rest = Cursor(&[]);
            }
            return Some(message);
        }
        None
    }))
}

/// Skips a field that is not known, as protobuf has it. `None`: it is malformed, or a group.
fn skip(rest: &mut Cursor<'_>, tag: u64) -> Option<()> {
    // A tag has 32 bits, and its number is not zero.
    let is_number = u32::try_from(tag).is_ok_and(|tag| tag >> 3 != 0);
    match tag & 7 {
        0 if is_number => rest.varint().map(drop),
        1 if is_number => rest.take(8).map(drop),
        2 if is_number => rest.prefixed().map(drop),
        5 if is_number => rest.take(4).map(drop),
        _ => None,
    }
}

/// The one message of a body, if it is not compressed.
fn only_message(body: &[u8]) -> Option<&[u8]> {
    let (prefix, message) = body.split_first_chunk::<PREFIX_BYTES>()?;
    let [0, a, b, c, d] = *prefix else { return None };
    (message.len() == u32::from_be_bytes([a, b, c, d]) as usize).then_some(message)
}

fn text<'a>(rest: &mut Cursor<'a>) -> Option<&'a str> {
    std::str::from_utf8(rest.prefixed()?).ok()
}

/// A verdict to be written.
#[derive(Clone, Copy)]
pub struct Answer<'a> {
    /// Whether the key may be served.
    pub decision: pb::Decision,
    /// Why.
    pub reason: pb::Reason,
    /// What a web service should answer.
    pub http_status: u32,
    /// What is told of the key.
    pub key: ToldKey<'a>,
    /// Which of its secrets was presented.
    pub matched: pb::Matched,
    /// Until when the previous one works.
    pub previous_valid_until: Option<UnixMillis>,
    /// Every change up to this revision is in it.
    pub as_of_revision: u64,
    /// That of the request.
    pub correlation_id: &'a str,
}

/// What is told of a key.
#[derive(Clone, Copy)]
pub enum ToldKey<'a> {
    /// Nothing.
    Nothing,
    /// Its id.
    Id(&'a [u8]),
    /// What a service learns of a key that it may serve.
    All(&'a Entry<'a>),
}

impl Answer<'_> {
    /// The body of the reply: the message with its prefix.
    #[must_use]
    pub fn to_body(&self) -> Bytes {
        let mut out = body_of(self.message_bytes());
        self.put(&mut out);
        out.freeze()
    }

    fn key_bytes(&self) -> Option<usize> {
        match self.key {
            ToldKey::Nothing => None,
            ToldKey::Id(id) => Some(text_bytes(id)),
            ToldKey::All(entry) => Some(entry_bytes(entry)),
        }
    }

    fn message_bytes(&self) -> usize {
        number_bytes(self.decision as u64)
            + number_bytes(self.reason as u64)
            + number_bytes(self.http_status.into())
            + self.key_bytes().map_or(0, nested_bytes)
            + number_bytes(self.matched as u64)
            + self.previous_valid_until.map_or(0, |time| nested_bytes(time_bytes(time)))
            + number_bytes(self.as_of_revision)
            + text_bytes(self.correlation_id.as_bytes())
    }

    fn put(&self, out: &mut BytesMut) {
        put_number(out, 0x08, self.decision as u64);
        put_number(out, 0x10, self.reason as u64);
        put_number(out, 0x18, self.http_status.into());
        if let Some(bytes) = self.key_bytes() {
            out.put_u8(0x22);
            put_varint(out, bytes as u64);
        }
        match self.key {
            ToldKey::Nothing => {}
            ToldKey::Id(id) => put_text(out, 0x0a, id),
            ToldKey::All(entry) => put_entry(out, entry),
        }
        put_number(out, 0x28, self.matched as u64);
        put_time(out, 0x32, self.previous_valid_until);
        put_number(out, 0x40, self.as_of_revision);
        put_text(out, 0x5a, self.correlation_id.as_bytes());
    }
}

/// The answers to a batch, being written.
#[derive(Debug)]
pub struct BatchAnswer(BytesMut);

impl BatchAnswer {
    /// Begins a body with room for this many answers of the usual length.
    #[must_use]
    pub fn with_room_for(answers: usize) -> Self {
        let mut out = BytesMut::with_capacity(PREFIX_BYTES + answers * ANSWER_BYTES_TYPICAL);
        out.put_bytes(0, PREFIX_BYTES);
        Self(out)
    }

    /// Writes the next answer.
    pub fn push(&mut self, answer: &Answer<'_>) {
        let out = &mut self.0;
        let bytes = answer.message_bytes();
        out.put_u8(0x0a);
        put_varint(out, nested_bytes(bytes) as u64);
        out.put_u8(0x0a);
        put_varint(out, bytes as u64);
        answer.put(out);
    }

    /// The body of the reply.
    #[must_use]
    pub fn to_body(mut self) -> Bytes {
        let bytes = self.0.len() - PREFIX_BYTES;
        self.0[..PREFIX_BYTES].copy_from_slice(&prefix(bytes));
        self.0.freeze()
    }
}

/// What stands before a message of this length: that it is not compressed, and the length.
fn prefix(message_bytes: usize) -> [u8; PREFIX_BYTES] {
    // A record has at most 4 KiB and a batch at most 1,000 of them.
    let [a, b, c, d] = u32::try_from(message_bytes).unwrap_or(u32::MAX).to_be_bytes();
    [0, a, b, c, d]
}

/// A body for a message of this size, with its prefix.
fn body_of(message_bytes: usize) -> BytesMut {
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + message_bytes);
    out.put_slice(&prefix(message_bytes));
    out
}

fn entry_bytes(entry: &Entry<'_>) -> usize {
    texts_of(entry).into_iter().map(text_bytes).sum::<usize>()
        + entry.scopes().map(|scope| nested_bytes(scope.as_str().len())).sum::<usize>()
        + entry.labels().map(|(name, value)| nested_bytes(label_bytes(name, value))).sum::<usize>()
        + entry.expire_time().map_or(0, |time| nested_bytes(time_bytes(time)))
}

/// What the first five fields say.
fn texts_of<'a>(entry: &'a Entry<'_>) -> [&'a [u8]; 5] {
    [
        entry.key_id_bytes(),
        entry.tenant().as_str().as_bytes(),
        entry.display_name_bytes(),
        entry.owner().as_bytes(),
        entry.environment().as_str().as_bytes(),
    ]
}

fn label_bytes(name: &str, value: &str) -> usize {
    text_bytes(name.as_bytes()) + text_bytes(value.as_bytes())
}

fn put_entry(out: &mut BytesMut, entry: &Entry<'_>) {
    for (tag, text) in [0x0a, 0x12, 0x1a, 0x22, 0x2a].into_iter().zip(texts_of(entry)) {
        put_text(out, tag, text);
    }
    for scope in entry.scopes() {
        put_item(out, 0x32, scope.as_str().as_bytes());
    }
    for (name, value) in entry.labels() {
        out.put_u8(0x3a);
        put_varint(out, label_bytes(name, value) as u64);
        put_text(out, 0x0a, name.as_bytes());
        put_text(out, 0x12, value.as_bytes());
    }
    put_time(out, 0x42, entry.expire_time());
}

fn put_time(out: &mut BytesMut, tag: u8, time: Option<UnixMillis>) {
    let Some(time) = time else { return };
    out.put_u8(tag);
    put_varint(out, time_bytes(time) as u64);
    let (seconds, nanos) = parts(time);
    put_number(out, 0x08, seconds);
    put_number(out, 0x10, nanos);
}

/// A time as the numbers of a Timestamp. Negative ones take ten bytes, as protobuf has it.
fn parts(time: UnixMillis) -> (u64, u64) {
    let nanos = time.0.rem_euclid(1_000) * 1_000_000;
    (time.0.div_euclid(1_000).cast_unsigned(), nanos.cast_unsigned())
}

fn time_bytes(time: UnixMillis) -> usize {
    let (seconds, nanos) = parts(time);
    number_bytes(seconds) + number_bytes(nanos)
}

/// Fields of these numbers have tags of one byte. What is zero or empty is not written.
fn number_bytes(number: u64) -> usize {
    if number == 0 { 0 } else { 1 + varint_bytes(number) }
}

fn text_bytes(text: &[u8]) -> usize {
    if text.is_empty() { 0 } else { nested_bytes(text.len()) }
}

fn nested_bytes(len: usize) -> usize {
    1 + varint_bytes(len as u64) + len
}

fn put_number(out: &mut BytesMut, tag: u8, number: u64) {
    if number != 0 {
        out.put_u8(tag);
        put_varint(out, number);
    }
}

fn put_text(out: &mut BytesMut, tag: u8, text: &[u8]) {
    if !text.is_empty() {
        put_item(out, tag, text);
    }
}

/// An entry of a list is written even if it is empty.
fn put_item(out: &mut BytesMut, tag: u8, text: &[u8]) {
    out.put_u8(tag);
    put_varint(out, text.len() as u64);
    out.put_slice(text);
}
