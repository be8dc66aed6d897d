//! TLS on the listeners of callers: what is offered and demanded, callers' certificates, and new files while
//! the server runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyward::grpc::pb::Reason;
use keyward::grpc::pb::health::HealthCheckRequest;
use keyward::grpc::pb::health::health_client::HealthClient;
use keyward::server::addr::ListenAddr;
use keyward::server::connections::Http2;
use keyward::server::tls::handshake::HANDSHAKES_MAX;
use keyward::server::tls::reload::Reload;
use keyward::server::tls::{ClientCertificates, TlsFiles};
use keyward_core::clock::ManualClock;
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, ProtocolVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use crate::support::certificates::{Authority, Files, Usage, handshake, write};
use crate::support::encrypted::{Encrypted, H2, PATIENCE, settings, start};
use crate::support::harness::{Handle, START, ask, new_key};
use crate::support::ops_client::wait_for_value;

/// Asks for the health of the server.
async fn checks(channel: &Channel) -> Result<(), String> {
    let checked = HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await;
    checked.map(drop).map_err(|status| status.to_string())
}

/// Until the server ends a connection.
async fn ended(stream: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<()> {
    let mut heard = [0; 1024];
    timeout(PATIENCE, async {
        while stream.read(&mut heard).await? > 0 {}
        Ok(())
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn calls_are_answered_within_tls_by_either_implementation() {
    for http2 in [Http2::Own, Http2::Hyper] {
        let server = Encrypted::start_with(None, |settings| settings.http2 = http2).await;
        let admin = server.admin(None);
        let key = admin.issue("Key", &[]).await;
        for _ in 0..3 {
            assert_eq!(admin.reason(&key.secret).await, Reason::Ok);
        }
        // Longer than one record, and than what the server keeps ready.
        for number in 0..200 {
            admin.create(new_key(&format!("{number}: {}", "x".repeat(40)), &[])).await.unwrap();
        }
        let mut listed = admin.list(keyward::grpc::pb::ListKeysRequest { page_size: 150, ..Default::default() }).await;
        assert_eq!(listed.as_mut().unwrap().keys.len(), 150);
        admin.disable_key(&key.key).await;
        assert_eq!(admin.reason(&key.secret).await, Reason::Disabled);
        assert_eq!(server.metric("keyward_tls_handshakes_total{result=\"OK\"}").await, "1");
        server.app.stop().await.unwrap();
    }
}

#[tokio::test]
async fn versions_1_3_and_1_2_are_spoken_and_the_hybrid_exchange_comes_first() {
    let server = Encrypted::start(None).await;
    for (version, expected, group) in
        [(&TLS13, ProtocolVersion::TLSv1_3, Some(NamedGroup::X25519MLKEM768)), (&TLS12, ProtocolVersion::TLSv1_2, None)]
    {
        let mut config = server.files.client(&[version], H2, None);
        config.resumption = rustls::client::Resumption::in_memory_sessions(8);
        let config = Arc::new(config);
        for _ in 0..2 {
            let stream = TcpStream::connect(server.addr()).await.unwrap();
            let connector = tokio_rustls::TlsConnector::from(config.clone());
            let name = rustls::pki_types::ServerName::try_from("keyward.test").unwrap();
            let mut stream = connector.connect(name, stream).await.unwrap();
            let session = stream.get_ref().1;
            assert_eq!(session.protocol_version(), Some(expected));
            assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
            assert_eq!(session.handshake_kind(), Some(rustls::HandshakeKind::Full), "nobody resumes a session");
            if group.is_some() {
                assert_eq!(session.negotiated_key_exchange_group().map(|used| used.name()), group);
            }
            // The server's first frame, SETTINGS.
            stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.unwrap();
            assert_eq!(head[3], 4, "{head:?}");
        }
    }
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_offer_http_2_gets_no_connection() {
    let server = Encrypted::start(None).await;
    // One that offers something else is told so.
    let refused = handshake(server.addr(), server.files.client(&[&TLS13], &[b"http/1.1"], None)).await;
    assert!(refused.unwrap_err().to_string().contains("NoApplicationProtocol"));
    // One that offers nothing is closed.
    let mut silent = handshake(server.addr(), server.files.client(&[&TLS13], &[], None)).await.unwrap();
    drop(ended(&mut silent).await);
    // So is one that does not speak TLS.
    let mut plain = TcpStream::connect(server.addr()).await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    drop(ended(&mut plain).await);
    // The client hears of the end before it is counted.
    let ops = server.app.ops_addr().unwrap();
    wait_for_value(ops, "keyward_tls_handshakes_total{result=\"NO_H2\"}", |count| count == 1.0).await;
    wait_for_value(ops, "keyward_tls_handshakes_total{result=\"REFUSED\"}", |count| count == 2.0).await;
    assert_eq!(checks(&server.channel(None)).await, Ok(()));
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_caller_shows_a_good_certificate_where_one_is_demanded() {
    let required = Encrypted::start(Some(ClientCertificates::Required)).await;
    let optional = Encrypted::start(Some(ClientCertificates::Optional)).await;
    let stranger = Authority::new("Another authority");
    let uri = Usage::Client("spiffe://test/billing");
    for server in [&required, &optional] {
        let is_required = std::ptr::eq(server, &required);
        let authority = &server.files.authority;
        for (shown, is_good, what) in [
            (None, !is_required, "none"),
            (Some(authority.issue(7, uri)), true, "a good one"),
            (Some(stranger.issue(7, uri)), false, "one of another authority"),
            (Some(authority.issue_until(8, uri, 2025)), false, "one whose time is over"),
            (Some(authority.issue(9, Usage::Server)), false, "one for servers"),
        ] {
            let checked = checks(&server.channel(shown.as_ref())).await;
            assert_eq!(checked.is_ok(), is_good, "{what}, required: {is_required}: {checked:?}");
        }
    }
    // Within, the key decides.
    let shown = required.caller(7);
    let nobody = Handle::new(required.channel(Some(&shown)), None);
    assert_eq!(nobody.create(new_key("Key", &[])).await.unwrap_err().code(), Code::Unauthenticated);
    required.admin(Some(&shown)).create(new_key("Key", &[])).await.unwrap();
    for server in [required, optional] {
        server.app.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_caller_whose_certificate_was_revoked_or_has_run_out_is_cut_off() {
    let server = Encrypted::start(Some(ClientCertificates::Required)).await;
    let uri = Usage::Client("spiffe://test/mail");
    let [revoked, short, stays] = [(10, 2080), (11, 2027), (12, 2080)]
        .map(|(serial, year)| server.files.authority.issue_until(serial, uri, year));
    // On a connection that each of them has open and uses.
    let [of_revoked, of_short] = [&revoked, &short].map(|shown| server.admin(Some(shown)));
    let stays_on = server.admin(Some(&stays));
    let key = stays_on.issue("Key", &[]).await;
    for caller in [&of_revoked, &of_short] {
        assert_eq!(caller.reason(&key.secret).await, Reason::Ok);
    }
    let is_cut_off = async |caller: &Handle| {
        timeout(PATIENCE, async {
            while caller.ask(ask(&key.secret)).await.is_ok() {
                server.reload.ask();
            }
        })
        .await
        .is_ok()
    };
    write(&server.files.dir.join("crl.pem"), &server.files.authority.revoke(&[10]));
    server.reload_until(async || checks(&server.channel(Some(&revoked))).await.is_err()).await;
    assert!(is_cut_off(&of_revoked).await);
    assert_eq!(of_short.reason(&key.secret).await, Reason::Ok);
    server.clock.advance_ms(400 * 24 * 60 * 60 * 1_000);
    server.reload_until(async || checks(&server.channel(Some(&short))).await.is_err()).await;
    assert!(is_cut_off(&of_short).await);
    let handshakes = async || server.metric("keyward_tls_handshakes_total{result=\"OK\"}").await;
    let before = handshakes().await;
    assert_eq!(stays_on.reason(&key.secret).await, Reason::Ok);
    assert_eq!(handshakes().await, before, "it is the same connection");
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn new_files_are_used_and_broken_ones_are_not() {
    let server = Encrypted::start(None).await;
    let (admin, stale) = (server.admin(None), "keyward_tls_files_stale");
    let key = admin.issue("Key", &[]).await;
    assert_eq!((server.serial().await, &*server.metric(stale).await), (1, "0"));
    let ends = server.metric("keyward_tls_certificate_expiry_timestamp_seconds").await;
    assert_eq!(ends.parse::<f64>().unwrap(), 3_471_292_800.0);
    // The certificate of another pair, as between the two writes of a renewal.
    let next = server.files.authority.issue_until(2, Usage::Server, 2050);
    write(&server.files.dir.join("server.pem"), &next.certificate);
    server.reload_until(async || server.metric(stale).await == "1").await;
    assert_eq!(server.serial().await, 1);
    write(&server.files.dir.join("server.key"), &next.key);
    server.reload_until(async || server.serial().await == 2).await;
    assert_eq!(server.metric(stale).await, "0");
    let ends = server.metric("keyward_tls_certificate_expiry_timestamp_seconds").await;
    assert_eq!(ends.parse::<f64>().unwrap(), 2_524_608_000.0);
    for broken in ["", "-----BEGIN CERTIFICATE-----\n", "not PEM at all"] {
        write(&server.files.dir.join("server.pem"), broken);
        server.reload_until(async || server.metric(stale).await == "1").await;
        assert_eq!(server.serial().await, 2);
        write(&server.files.dir.join("server.pem"), &next.certificate);
        server.reload_until(async || server.metric(stale).await == "0").await;
    }
    std::fs::remove_file(server.files.dir.join("server.key")).unwrap();
    server.reload_until(async || server.metric(stale).await == "1").await;
    assert_eq!(admin.reason(&key.secret).await, Reason::Ok);
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn files_that_cannot_be_used_stop_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let refused = async |change: &dyn Fn(&Files, &mut TlsFiles)| {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::write(dir.path());
        let mut tls = files.settings(Some(ClientCertificates::Required));
        change(&files, &mut tls);
        let started =
            start(settings(&dir, tls), Arc::new(ManualClock::at(START)), Reload::default(), Arc::default()).await;
        started.err().unwrap().to_string()
    };
    let path = |tls: &mut TlsFiles, to: &str| tls.certificate = Path::new(to).into();
    let said = refused(&|_, tls| path(tls, "/nowhere/server.pem")).await;
    assert!(said.contains("TLS certificate file /nowhere/server.pem: No such file"), "{said}");
    let said = refused(&|files, _| write(&files.dir.join("server.pem"), "nothing")).await;
    assert!(said.contains("it has no certificate in PEM"), "{said}");
    let said = refused(&|files, _| write(&files.dir.join("server.key"), "nothing")).await;
    assert!(said.contains("it has no private key in PEM"), "{said}");
    let said = refused(&|files, _| {
        write(&files.dir.join("server.key"), &files.authority.issue(3, Usage::Server).key);
    })
    .await;
    assert!(said.contains("keys may not be consistent") && said.contains("server.key"), "{said}");
    for mode in [0o644, 0o660, 0o604] {
        let expose = |files: &Files, _: &mut TlsFiles| {
            let mode = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(files.dir.join("server.key"), mode).unwrap();
        };
        let said = refused(&expose).await;
        assert!(said.contains("may be read by others") && said.contains(&format!("mode {mode:o}")), "{said}");
    }
    let said = refused(&|files, _| write(&files.dir.join("ca.pem"), "")).await;
    assert!(said.contains("client CA file") && said.contains("it has no certificate"), "{said}");
    let said = refused(&|files, _| write(&files.dir.join("crl.pem"), &files.authority.pem())).await;
    assert!(said.contains("client CRL file") && said.contains("it has no list"), "{said}");
    // One group may read the key.
    let dir = tempfile::tempdir().unwrap();
    let files = Files::write(dir.path());
    std::fs::set_permissions(dir.path().join("server.key"), std::fs::Permissions::from_mode(0o640)).unwrap();
    let started = start(
        settings(&dir, files.settings(None)),
        Arc::new(ManualClock::at(START)),
        Reload::default(),
        Arc::default(),
    )
    .await;
    started.unwrap().stop().await.unwrap();
}

#[tokio::test]
async fn handshakes_that_are_never_finished_make_room_for_others() {
    let server = Encrypted::start_with(None, |settings| settings.stranger_connections_per_address_max = 1_000).await;
    let mut crowd = vec![];
    for _ in 0..HANDSHAKES_MAX + 50 {
        crowd.push(TcpStream::connect(server.addr()).await.unwrap());
    }
    assert_eq!(checks(&server.channel(None)).await, Ok(()));
    // The first ones are given up, long before their time is over.
    for oldest in crowd.iter_mut().take(50) {
        drop(ended(oldest).await);
    }
    let evicted: u32 = server.metric("keyward_tls_handshakes_total{result=\"EVICTED\"}").await.parse().unwrap();
    assert!((50..60).contains(&evicted), "{evicted}");
    server.app.stop().await.unwrap();
}

/// The clock is paused, and jumps when everything waits.
#[tokio::test(start_paused = true)]
async fn a_handshake_has_five_seconds() {
    // On this runtime, whose clock is paused.
    let server = Encrypted::start_with(None, |settings| settings.serving_threads = 0).await;
    let mut silent = TcpStream::connect(server.addr()).await.unwrap();
    // The head of a record that never comes.
    silent.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
    let before = tokio::time::Instant::now();
    drop(silent.read_to_end(&mut vec![]).await);
    assert_eq!(before.elapsed().as_secs(), 5);
    assert_eq!(server.metric("keyward_tls_handshakes_total{result=\"TIMEOUT\"}").await, "1");
}

/// Neither one who has said nothing, nor one who has begun.
#[tokio::test]
async fn an_unfinished_handshake_does_not_hold_up_a_stop() {
    let server = Encrypted::start(None).await;
    let silent = TcpStream::connect(server.addr()).await.unwrap();
    let mut begun = TcpStream::connect(server.addr()).await.unwrap();
    begun.write_all(&[22, 3, 1, 1, 0]).await.unwrap();
    // Connections are accepted in order: when this one is answered, the others are served.
    assert_eq!(checks(&server.channel(None)).await, Ok(()));
    // Well within the 5 s that a handshake may take.
    let stopped = tokio::time::timeout(Duration::from_secs(3), server.app.stop()).await;
    stopped.expect("the stop is not held up").unwrap();
    drop((silent, begun));
}

#[tokio::test]
async fn a_socket_of_probes_is_not_encrypted() {
    let server = Encrypted::start_with(None, |settings| {
        settings.ops_tls = true;
        settings.ops_listen = Some(ListenAddr::Unix(settings.data_dir.with_file_name("ops.sock")));
    })
    .await;
    assert_eq!(server.metric("keyward_tls_files_stale").await, "0");
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn probes_and_metrics_are_encrypted_if_that_is_set() {
    let demand = Some(ClientCertificates::Required);
    let server = Encrypted::start_with(demand, |settings| settings.ops_tls = true).await;
    let ListenAddr::Tcp(addr) = *server.app.ops_addr().unwrap() else { panic!() };
    for alpn in [&[][..], &[&b"http/1.1"[..]]] {
        let mut stream = handshake(addr, server.files.client(&[&TLS13], alpn, None)).await.unwrap();
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: keyward\r\n\r\n").await.unwrap();
        let mut reply = vec![];
        drop(stream.read_to_end(&mut reply).await);
        let reply = String::from_utf8_lossy(&reply);
        assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
    }
    let mut plain = TcpStream::connect(addr).await.unwrap();
    plain.write_all(b"GET /readyz HTTP/1.1\r\nhost: keyward\r\n\r\n").await.unwrap();
    let mut reply = vec![];
    drop(plain.read_to_end(&mut reply).await);
    assert!(!reply.starts_with(b"HTTP"), "{reply:?}");
    server.app.stop().await.unwrap();
}
