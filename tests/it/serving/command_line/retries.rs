//! Changes whose answers are lost.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;

use super::User;

/// A reply to a change is longer, and all that comes before it shorter.
const BEFORE_A_REPLY_BYTES: usize = 200;

/// Passes connections on to a server. The first few are cut when the reply to a change comes on them. Returns
/// where it listens.
fn lossy(server: &str, lost: usize) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (addr, server) = (listener.local_addr().unwrap().to_string(), server.to_owned());
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let upstream = TcpStream::connect(&server).unwrap();
            let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
            thread::spawn(move || drop(std::io::copy(&mut from, &mut to)));
            thread::spawn(move || pass(upstream, client, number < lost));
        }
    });
    addr
}

fn pass(mut upstream: TcpStream, mut client: TcpStream, loses: bool) {
    let (mut bytes, mut passed) = ([0; 16 * 1024], 0);
    while let Ok(read @ 1..) = upstream.read(&mut bytes) {
        passed += read;
        if (loses && passed > BEFORE_A_REPLY_BYTES) || client.write_all(&bytes[..read]).is_err() {
            break;
        }
    }
    drop((client.shutdown(Shutdown::Both), upstream.shutdown(Shutdown::Both)));
}

#[test]
fn a_change_whose_answer_is_lost_is_asked_for_again_and_made_once() {
    let user = User::start();
    let through = |lost| lossy(&user.server.addr, lost);
    let issue = ["key", "create", "--display-name", "Zapier", "--output", "secret"];
    for lost in [1, 2] {
        let secret = user.does(&[&issue[..], &["--server", &through(lost)]].concat());
        let found = user.with_input(&["key", "find", "--secret-file", "-"], &secret);
        assert!(found.out.contains("DECISION_ALLOW"), "{} {}", found.out, found.err);
    }
    assert_eq!(user.json(&["key", "list"]).as_array().unwrap().len(), 2);
    user.does(&["tenant", "create", "acme", "--server", &through(2)]);
    user.does(&["key", "create", "a-key", "--display-name", "A"]);
    for change in [&["key", "disable", "a-key"][..], &["key", "enable", "a-key"], &["key", "label", "a-key", "B"]] {
        user.does(&[change, &["--server", &through(1)]].concat());
    }
    // It gives up, and says what may be.
    let server = through(3);
    user.fails(&[&issue[..], &["--server", &server]].concat(), 3, &["look before you try again"]);
}

#[test]
fn a_change_with_a_name_is_made_once_by_two_commands() {
    let user = User::start();
    let create = ["key", "create", "--display-name", "Zapier", "--request-id", "one"];
    user.does(&create);
    user.fails(&create, 6, &["SECRET_NOT_KEPT", "rotate"]);
    assert_eq!(user.json(&["key", "list"]).as_array().unwrap().len(), 1);
    user.does(&["key", "create", "a-key", "--display-name", "A"]);
    let disable = ["key", "disable", "a-key", "--request-id", "two"];
    let disabled = user.json(&disable);
    user.does(&["key", "enable", "a-key"]);
    assert_eq!(user.json(&disable), disabled);
    assert_eq!(user.json(&["key", "get", "a-key"])["state"], "STATE_ACTIVE");
    user.fails(&["key", "revoke", "a-key", "--request-id", "two"], 6, &["REQUEST_ID_REUSED", "--request-id"]);
    user.fails(&["key", "revoke", "a-key", "--request-id", "a b"], 2, &["--request-id"]);
}
