//! A connection against a peer that is told by hand.

use super::*;

/// Asks about items 0, 1, 2 and so on, and keeps which were answered.
struct Counting {
    next: usize,
    end: usize,
    replied: Vec<usize>,
}

impl Asks for Counting {
    fn next(&mut self) -> Option<usize> {
        let item = self.next;
        self.next += 1;
        (item < self.end).then_some(item)
    }

    fn reply(&mut self, item: usize, message: &[u8]) -> Result<(), Failure> {
        if message == [item as u8] {
            self.replied.push(item);
            Ok(())
        } else {
            Err("another item's".into())
        }
    }
}

fn requests(flags: u8, bytes: usize) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut head = vec![];
    push_frame(&mut head, HEADERS, frames::END_HEADERS, 0, b"h");
    let mut request = vec![];
    push_frame(&mut request, DATA, flags, 0, &vec![0; bytes]);
    (head, vec![request; 8])
}

/// The frames that were written: their kinds and streams.
fn written(conn: &mut Conn<'_>) -> Vec<(u8, u32)> {
    let (mut found, mut at) = (vec![], if conn.out.starts_with(PREFACE) { PREFACE.len() } else { 0 });
    while let Some(header) = Header::read(&conn.out[at..]) {
        found.push((header.kind, header.stream));
        at += HEADER_BYTES + header.length;
    }
    conn.out.clear();
    found
}

fn reply(item: u8) -> Vec<u8> {
    frames::prefixed(&[item])
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![];
    push_frame(&mut out, kind, flags, stream, payload);
    out
}

const WELL: &[u8] = b"\0\x0bgrpc-status\x010";

#[test]
fn a_call_is_answered_by_its_reply_and_its_trailers_and_another_takes_its_place() {
    let (head, requests) = requests(END_STREAM, 10);
    let mut conn = Conn::new(Sent { head: &head, requests: &requests, window: None }, 2);
    let mut asks = Counting { next: 0, end: 3, replied: vec![] };
    conn.ask(&mut asks);
    let begun = [(SETTINGS, 0), (WINDOW_UPDATE, 0), (HEADERS, 1), (DATA, 1), (HEADERS, 3), (DATA, 3)];
    assert_eq!(written(&mut conn), begun);
    let mut bytes = frame(DATA, 0, 3, &reply(1));
    bytes.extend(frame(HEADERS, END_STREAM, 3, WELL));
    // In two pieces, as a network delivers.
    let taken = conn.receive(&bytes[..12], &mut asks).unwrap();
    assert_eq!(conn.receive(&bytes[taken..], &mut asks).unwrap(), bytes.len() - taken);
    assert_eq!((written(&mut conn), &asks.replied[..]), (vec![(HEADERS, 5), (DATA, 5)], &[1][..]));
    assert!(conn.receive(&frame(DATA, 0, 1, &reply(1)), &mut asks).is_err(), "it is item 0's");
    assert!(conn.receive(&frame(HEADERS, END_STREAM, 5, WELL), &mut asks).is_err(), "it has no reply");
    assert!(conn.receive(&frame(HEADERS, END_STREAM, 5, b"\0\x0bgrpc-status\x017"), &mut asks).is_err());
    assert!(!conn.done());
}

#[test]
fn a_request_waits_until_the_windows_let_it() {
    let (head, requests) = requests(END_STREAM, 40_000);
    let mut conn = Conn::new(Sent { head: &head, requests: &requests, window: None }, 3);
    let mut asks = Counting { next: 0, end: 2, replied: vec![] };
    conn.ask(&mut asks);
    assert_eq!(written(&mut conn)[2..], [(HEADERS, 1), (DATA, 1), (HEADERS, 3)]);
    conn.receive(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0x10, 0]), &mut asks).unwrap();
    assert_eq!(written(&mut conn), []);
    conn.receive(&frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0x80, 0]), &mut asks).unwrap();
    assert_eq!(written(&mut conn), [(DATA, 3)]);
}

#[test]
fn a_stream_is_answered_in_order_and_ends_when_all_is() {
    let (head, requests) = requests(0, 10);
    let mut conn = Conn::new(Sent { head: &head, requests: &requests, window: Some(2) }, 1);
    let mut asks = Counting { next: 0, end: 3, replied: vec![] };
    conn.ask(&mut asks);
    assert_eq!(written(&mut conn)[2..], [(HEADERS, 1), (DATA, 1), (DATA, 1)]);
    // Two replies in one frame, the second of which goes on in the next.
    let both = [reply(0), reply(1)].concat();
    conn.receive(&frame(DATA, 0, 1, &both[..8]), &mut asks).unwrap();
    assert_eq!((written(&mut conn), &asks.replied[..]), (vec![(DATA, 1)], &[0][..]));
    conn.receive(&frame(DATA, 0, 1, &both[8..]), &mut asks).unwrap();
    conn.receive(&frame(DATA, 0, 1, &reply(2)), &mut asks).unwrap();
    assert_eq!((written(&mut conn), &asks.replied[..]), (vec![(DATA, 1)], &[0, 1, 2][..]), "its end");
    conn.receive(&frame(HEADERS, END_STREAM, 1, WELL), &mut asks).unwrap();
    assert!(conn.done());
}
