//! One connection: its windows, its calls, and the replies to them. It does no I/O.

#[cfg(test)]
mod tests;

use keyward_bench::fixture::Failure;

use crate::frames::{
    self, ACK, DATA, END_STREAM, GOAWAY, HEADER_BYTES, HEADER_TABLE_SIZE, HEADERS, Header, INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS, PADDED, PING, PREFACE, PREFIX_BYTES, RST_STREAM, SETTINGS, WINDOW_AT_FIRST, WINDOW_MAX,
    WINDOW_UPDATE, push_frame, push_setting,
};

/// The peer is given its window back when this much of it is used: long before it has to wait.
const WINDOW_RETURNED: u32 = 1 << 28;
/// Places for calls, for each one that may be under way: stream ids share a place only if they lie this far
/// apart.
const PLACES_EACH: usize = 16;

/// Where requests come from and replies go.
pub(crate) trait Asks {
    /// What to ask next. `None`: nothing more.
    fn next(&mut self) -> Option<usize>;
    /// Takes a reply.
    fn reply(&mut self, item: usize, message: &[u8]) -> Result<(), Failure>;
}

/// The frames that are sent: made once, and given their stream when they are.
pub(crate) struct Sent<'a> {
    pub(crate) head: &'a [u8],
    pub(crate) requests: &'a [Vec<u8>],
    /// Requests that are under way on each stream. `None`: each request is a call.
    pub(crate) window: Option<usize>,
}

/// A call that is under way.
#[derive(Default)]
struct Call {
    id: u32,
    open: bool,
    /// Requests without a reply: a ring, whose oldest is at `answered`.
    items: Vec<u32>,
    asked: usize,
    answered: usize,
    /// What may be sent.
    window: i64,
    /// Bytes that came since the window was given back.
    came: u32,
    /// The beginning of a message that came in pieces.
    piece: Vec<u8>,
    /// Our side has ended.
    ended: bool,
}

/// A connection and its calls.
pub(crate) struct Conn<'a> {
    sent: Sent<'a>,
    /// What is to be written.
    pub(crate) out: Vec<u8>,
    calls: Vec<Call>,
    /// Streams that are to be open.
    streams: usize,
    open: usize,
    next_id: u32,
    window: i64,
    initial_window: i64,
    came: u32,
    /// The last trailers that were well: they are the same each time.
    well: Vec<u8>,
    more: bool,
    /// The next request of a stream, where there was no window for it.
    held: Option<usize>,
    /// Calls that have begun and whose request had no window.
    unsent: usize,
}

impl<'a> Conn<'a> {
    pub(crate) fn new(sent: Sent<'a>, streams: usize) -> Self {
        let mut out = PREFACE.to_vec();
        let mut settings = vec![];
        push_setting(&mut settings, HEADER_TABLE_SIZE, 0);
        push_setting(&mut settings, INITIAL_WINDOW_SIZE, WINDOW_MAX);
        push_frame(&mut out, SETTINGS, 0, 0, &settings);
        push_frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW_MAX - WINDOW_AT_FIRST).to_be_bytes());
        let depth = sent.window.unwrap_or(1);
        let place = || Call { items: vec![0; depth], ..Call::default() };
        let places = (streams * PLACES_EACH).next_power_of_two();
        Self {
            sent,
            out,
            calls: std::iter::repeat_with(place).take(places).collect(),
            streams,
            open: 0,
            next_id: 1,
            window: WINDOW_AT_FIRST.into(),
            initial_window: WINDOW_AT_FIRST.into(),
            came: 0,
            well: vec![],
            more: true,
            held: None,
            unsent: 0,
        }
    }

    /// Whether everything was asked and answered.
    pub(crate) fn done(&self) -> bool {
        !self.more && self.held.is_none() && self.open == 0
    }

    /// Asks as much as may be under way.
    pub(crate) fn ask(&mut self, asks: &mut impl Asks) {
        if self.sent.window.is_none() {
            while self.open < self.streams
                && let Some(item) = self.take(asks)
            {
                let at = self.begin();
                if !self.send(at, item) {
                    // Its head has gone, and the rest follows when there is a window.
                    self.calls[at].items[0] = item as u32;
                    self.unsent += 1;
                    break;
                }
            }
            return;
        }
        while self.more && self.open < self.streams {
            self.begin();
        }
        for at in 0..self.calls.len() {
            if self.calls[at].open {
                self.ask_on(at, asks);
            }
        }
    }

    /// Asks as much as may be under way on a stream, and ends it when there is nothing more.
    fn ask_on(&mut self, at: usize, asks: &mut impl Asks) {
        while self.calls[at].asked - self.calls[at].answered < self.calls[at].items.len()
            && let Some(item) = self.take(asks)
        {
            if !self.send(at, item) {
                self.held = Some(item);
                return;
            }
        }
        if !self.more && self.held.is_none() && !self.calls[at].ended {
            self.calls[at].ended = true;
            push_frame(&mut self.out, DATA, END_STREAM, self.calls[at].id, &[]);
        }
    }

    fn take(&mut self, asks: &mut impl Asks) -> Option<usize> {
        if let Some(held) = self.held.take() {
            return Some(held);
        }
        let next = if self.more { asks.next() } else { None };
        self.more = next.is_some();
        next
    }

    /// Begins a call, in a place that is free.
    fn begin(&mut self) -> usize {
        let mask = self.calls.len() - 1;
        while self.calls[(self.next_id >> 1) as usize & mask].open {
            self.next_id += 2; // ids may be left out
        }
        let at = (self.next_id >> 1) as usize & mask;
        let from = self.out.len();
        self.out.extend_from_slice(self.sent.head);
        self.out[from + 5..from + HEADER_BYTES].copy_from_slice(&self.next_id.to_be_bytes());
        let call = &mut self.calls[at];
        (call.id, call.open, call.window, call.came, call.ended) = (self.next_id, true, self.initial_window, 0, false);
        (call.asked, call.answered) = (0, 0);
        self.next_id += 2;
        self.open += 1;
        at
    }

    /// Sends a request, if the windows let it.
    fn send(&mut self, at: usize, item: usize) -> bool {
        let (frame, call) = (&self.sent.requests[item], &mut self.calls[at]);
        let bytes = (frame.len() - HEADER_BYTES) as i64;
        if self.window < bytes || call.window < bytes {
            return false;
        }
        self.window -= bytes;
        call.window -= bytes;
        let depth = call.items.len();
        call.items[call.asked % depth] = item as u32;
        call.asked += 1;
        let from = self.out.len();
        self.out.extend_from_slice(frame);
        self.out[from + 5..from + HEADER_BYTES].copy_from_slice(&call.id.to_be_bytes());
        true
    }

    /// Reads whole frames, and says how many bytes they were.
    pub(crate) fn receive(&mut self, bytes: &[u8], asks: &mut impl Asks) -> Result<usize, Failure> {
        let mut read = 0;
        while let Some(header) = Header::read(&bytes[read..]) {
            let Some(payload) = bytes[read + HEADER_BYTES..].get(..header.length) else { break };
            self.frame(header, payload, asks)?;
            read += HEADER_BYTES + header.length;
        }
        Ok(read)
    }

    fn frame(&mut self, header: Header, payload: &[u8], asks: &mut impl Asks) -> Result<(), Failure> {
        match header.kind {
            DATA => self.data(header, payload, asks)?,
            HEADERS => self.headers(header, payload, asks)?,
            SETTINGS if header.flags & ACK == 0 => self.settings(payload)?,
            PING if header.flags & ACK == 0 => push_frame(&mut self.out, PING, ACK, 0, payload),
            WINDOW_UPDATE => {
                let by = u32::from_be_bytes(*payload.first_chunk().ok_or("a WINDOW_UPDATE is too short")?);
                if header.stream == 0 {
                    self.window += i64::from(by);
                } else if let Some(call) = self.call(header.stream) {
                    call.window += i64::from(by);
                }
                self.go_on(asks);
            }
            RST_STREAM => return Err(format!("a call was reset: {payload:?}").into()),
            GOAWAY => return Err(format!("the server goes away: {payload:?}").into()),
            _ => {}
        }
        Ok(())
    }

    /// After the windows have grown.
    fn go_on(&mut self, asks: &mut impl Asks) {
        for at in 0..self.calls.len() {
            if self.unsent == 0 {
                break;
            }
            if self.calls[at].open && self.calls[at].asked == 0 {
                let item = self.calls[at].items[0] as usize;
                if !self.send(at, item) {
                    return;
                }
                self.unsent -= 1;
            }
        }
        self.ask(asks);
    }

    fn call(&mut self, stream: u32) -> Option<&mut Call> {
        let at = (stream >> 1) as usize & (self.calls.len() - 1);
        self.calls.get_mut(at).filter(|call| call.open && call.id == stream)
    }

    fn data(&mut self, header: Header, payload: &[u8], asks: &mut impl Asks) -> Result<(), Failure> {
        if header.flags & PADDED != 0 {
            return Err("a reply is padded".into());
        }
        let length = header.length as u32; // 24 bits
        self.came += length;
        if self.came >= WINDOW_RETURNED {
            push_frame(&mut self.out, WINDOW_UPDATE, 0, 0, &self.came.to_be_bytes());
            self.came = 0;
        }
        let call = self.call(header.stream).ok_or("a reply to no call")?;
        call.came += length;
        let returned = if call.came >= WINDOW_RETURNED { std::mem::take(&mut call.came) } else { 0 };
        let mut joined = std::mem::take(&mut call.piece);
        let mut rest = payload;
        if !joined.is_empty() {
            joined.extend_from_slice(payload);
            rest = &joined;
        }
        while let Some(length) = frames::message_bytes(rest)? {
            let Some(message) = rest.get(PREFIX_BYTES..PREFIX_BYTES + length) else { break };
            if call.answered == call.asked {
                return Err("a reply to nothing".into());
            }
            let item = call.items[call.answered % call.items.len()];
            call.answered += 1;
            asks.reply(item as usize, message)?;
            rest = &rest[PREFIX_BYTES + length..];
        }
        call.piece.extend_from_slice(rest);
        if returned > 0 {
            push_frame(&mut self.out, WINDOW_UPDATE, 0, header.stream, &returned.to_be_bytes());
        }
        if self.sent.window.is_some() {
            let at = (header.stream >> 1) as usize & (self.calls.len() - 1);
            self.ask_on(at, asks);
        }
        Ok(())
    }

    fn headers(&mut self, header: Header, block: &[u8], asks: &mut impl Asks) -> Result<(), Failure> {
        if header.flags & END_STREAM == 0 {
            return Ok(()); // what counts is in the trailers
        }
        if self.well != block {
            if !frames::says_ok(block) {
                return Err(format!("a call failed: {}", block.escape_ascii()).into());
            }
            self.well = block.to_vec();
        }
        let call = self.call(header.stream).ok_or("an end of no call")?;
        if call.answered != call.asked || !call.piece.is_empty() {
            return Err("a call ended before its reply".into());
        }
        call.open = false;
        self.open -= 1;
        if self.sent.window.is_none() {
            self.ask(asks);
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Failure> {
        for setting in payload.chunks_exact(6) {
            let [n0, n1, v0, v1, v2, v3] = *setting else { return Err("a setting is too short".into()) };
            let value = u32::from_be_bytes([v0, v1, v2, v3]);
            match u16::from_be_bytes([n0, n1]) {
                MAX_CONCURRENT_STREAMS if (value as usize) < self.streams => {
                    return Err(format!("the server takes {value} calls at most").into());
                }
                INITIAL_WINDOW_SIZE => {
                    let by = i64::from(value) - self.initial_window;
                    self.initial_window = value.into();
                    self.calls.iter_mut().for_each(|call| call.window += by);
                }
                _ => {}
            }
        }
        push_frame(&mut self.out, SETTINGS, ACK, 0, &[]);
        Ok(())
    }
}
