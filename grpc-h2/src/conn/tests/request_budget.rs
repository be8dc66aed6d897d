//! What a connection holds of requests, and what it refuses when there is no room.

use super::*;
use crate::{CALL_BYTES, OWN_BYTES};

const MIB: usize = 1024 * 1024;

fn open_under(budget: &Budget) -> (Tested, Spawned) {
    open_with(LIMITS, budget.clone())
}

/// The head of a call with a credential.
fn head_of(stream: u32, path: &str) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_headers(&mut bytes, stream, false, |to| {
        to.extend([0x83, 0x86, 0x04, path.len() as u8]);
        to.extend(path.as_bytes());
        to.extend(b"\x0f\x08\x01x");
    });
    bytes
}

fn part(stream: u32, ends: bool, data: &[u8]) -> Vec<u8> {
    let mut bytes = vec![];
    frame::put_data(&mut bytes, stream, ends, data);
    bytes
}

fn message(length: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend((length as u32).to_be_bytes());
    message.resize(5 + length, b'm');
    message
}

#[test]
fn an_open_call_begins_when_its_request_is_whole_and_its_window_is_not_given_back_before() {
    for (path, is_stream) in [("/open", false), ("/open/stream", true)] {
        let (mut conn, spawned) = open();
        receive(&mut conn, &head(1, path)).unwrap();
        let sent = message(LIMITS.open_message_bytes_max);
        for piece in sent[..8_000].chunks(1_000) {
            receive(&mut conn, &part(1, false, piece)).unwrap();
        }
        assert_eq!(conn.window + conn.unclaimed, WINDOW_BYTES - 8_000, "{path}");
        // The caller of a stream may wait for the head of the reply first.
        assert_eq!(spawned.0.borrow().len(), usize::from(is_stream), "{path}");
        receive(&mut conn, &part(1, false, &sent[8_000..])).unwrap();
        assert_eq!(spawned.0.borrow().len(), usize::from(is_stream), "{path}");
        receive(&mut conn, &part(1, true, b"")).unwrap();
        assert_eq!(spawned.0.borrow()[..], [1], "{path}");
    }
}

#[test]
fn a_message_of_an_open_call_that_is_too_long_is_refused_by_its_first_bytes() {
    let (mut conn, spawned) = open();
    receive(&mut conn, &head(1, "/open")).unwrap();
    receive(&mut conn, &part(1, false, &message(LIMITS.open_message_bytes_max + 1)[..5])).unwrap();
    assert_eq!(spawned.0.borrow()[..], [1], "it is begun only to be refused");
    assert_eq!(conn.window + conn.unclaimed, WINDOW_BYTES);
    // The rest of it is not kept.
    receive(&mut conn, &part(1, false, &[0; 10_000])).unwrap();
    assert_eq!((conn.window + conn.unclaimed, conn.budget_bytes), (WINDOW_BYTES, 0));
}

#[test]
fn a_connection_without_a_credential_has_few_calls_under_way() {
    let calls = 7;
    let limits = Limits { stranger_calls_max: calls as usize, stranger_refusals_max: 3, ..LIMITS };
    let (mut conn, spawned) = open_within(limits);
    for nth in 0..calls {
        receive(&mut conn, &head(2 * nth + 1, "/open")).unwrap();
    }
    assert!(spawned.0.borrow().is_empty());
    receive(&mut conn, &head(2 * calls + 1, "/open")).unwrap();
    assert_eq!(spawned.0.borrow()[..], [2 * calls + 1], "one more is begun only to be refused");
    // Further calls are reset.
    let mut id = 2 * calls + 3;
    for _ in 0..64 {
        receive(&mut conn, &head(id, "/open")).unwrap();
        id += 2;
    }
    assert_eq!(spawned.0.borrow().len(), 3);
    // A valid credential makes room.
    receive(&mut conn, &head_of(id, "/long")).unwrap();
    receive(&mut conn, &head(id + 2, "/open")).unwrap();
    assert_eq!(spawned.0.borrow()[3..], [id]);
    assert_eq!(conn.pending_calls.len(), calls as usize + 1);
}

#[test]
fn the_youngest_requests_are_refused_when_there_is_no_room_for_all() {
    let budget = Budget::new(MIB, MIB);
    // One connection may have an eighth.
    let (mut conn, spawned) = open_under(&budget);
    receive(&mut conn, &head_of(1, "/long")).unwrap();
    receive(&mut conn, &head(3, "/")).unwrap();
    for stream in [1, 3, 1, 3] {
        receive(&mut conn, &part(stream, false, &[0; 15_000])).unwrap();
        conn.update_budget(0).unwrap();
    }
    receive(&mut conn, &head(5, "/")).unwrap();
    receive(&mut conn, &head(7, "/long")).unwrap();
    receive(&mut conn, &part(5, false, &[0; 16_000])).unwrap();
    receive(&mut conn, &part(5, false, &[0; 16_000])).unwrap();
    receive(&mut conn, &part(7, false, &[0; 16_000])).unwrap();
    conn.update_budget(0).unwrap();
    assert_eq!(budget.refused(Callers::Known), 0);
    receive(&mut conn, &part(1, false, &[0; 16_000])).unwrap();
    conn.update_budget(0).unwrap();
    assert_eq!(budget.refused(Callers::Known), 1, "the body of 7 is gone");
    assert_eq!(conn.streams[&7].budget_bytes, CALL_BYTES);
    receive(&mut conn, &part(1, false, &[0; 16_000])).unwrap();
    conn.update_budget(0).unwrap();
    assert_eq!((budget.refused(Callers::Known), spawned.0.borrow()[..].to_vec()), (2, vec![1, 7, 5]));
    assert!(budget.held(Callers::Known) <= MIB / 8);
    // The windows are given back; what is held belongs to calls 1 and 3.
    assert_eq!(conn.streams[&1].budget_bytes, CALL_BYTES + 62_000);
    drop(conn);
    assert_eq!(budget.held(Callers::Known), 0);
}

/// A request that is whole is not refused any more.
#[test]
fn requests_that_become_whole_within_a_read_have_no_more_room_than_others() {
    let budget = Budget::new(MIB, MIB);
    let (mut conn, _) = open_under(&budget);
    let calls: Vec<u32> = (0..10).map(|nth| 2 * nth + 1).collect();
    for id in &calls {
        receive(&mut conn, &head_of(*id, "/long")).unwrap();
    }
    for id in &calls {
        let read = [part(*id, false, &[0; 16_000]), part(*id, false, &[0; 16_000]), part(*id, true, b"x")];
        receive(&mut conn, &read.concat()).unwrap();
        conn.update_budget(0).unwrap();
        assert!(budget.held(Callers::Known) <= MIB / 8, "{} bytes", budget.held(Callers::Known));
    }
    assert_eq!(budget.refused(Callers::Known), 10);
}

#[test]
fn a_connection_without_a_credential_ends_when_there_is_no_room_for_what_it_holds_otherwise() {
    let budget = Budget::new(MIB, MIB);
    let (mut conn, _) = open_under(&budget);
    let mut others: Vec<_> = (0..8).map(|_| open_under(&budget).0).collect();
    for other in &mut others {
        (0..).take_while(|kib| other.update_budget(kib * 1024).is_ok()).for_each(drop);
    }
    let refused = budget.refused(Callers::Strangers);
    assert!(conn.update_budget(OWN_BYTES / 2).is_ok(), "each has that");
    let error = conn.update_budget(3 * OWN_BYTES).unwrap_err();
    assert_eq!(error.code, ErrorCode::EnhanceYourCalm);
    assert_eq!(budget.refused(Callers::Strangers), refused + 1);
    drop(others);
    assert!(conn.update_budget(3 * OWN_BYTES).is_ok());
}

#[test]
fn a_stream_of_a_caller_with_a_credential_holds_up_no_other_with_half_a_message() {
    let (mut conn, _) = open();
    let mut streams = 0;
    // Far more than the window of the connection.
    for nth in 0..40 {
        let id = 2 * nth + 1;
        receive(&mut conn, &head_of(id, "/stream")).unwrap();
        for _ in 0..6 {
            receive(&mut conn, &part(id, false, &[0; 16_000])).unwrap();
        }
        streams += 1;
    }
    assert_eq!(conn.streams.len(), streams);
    assert_eq!(conn.budget_bytes, streams * (CALL_BYTES + 96_000));
    conn.on_event(StreamEvent { stream: 1, event: Event::Read(90_000) });
    assert_eq!(conn.streams[&1].budget_bytes, CALL_BYTES + 6_000);
    const { assert!(96_000 < LIMITS.whole_bytes_max()) };
}
