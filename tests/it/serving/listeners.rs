//! Listeners that are described one by one: each serves what it is told to, to whom it is told to.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use keyward::app::{Adjustable, App, Deps, Engine, StartError};
use keyward::config::{Flags, ListenerSettings, Mistakes, Settings};
use keyward::grpc::calls::{STREAM_VERIFY, rpc};
use keyward::grpc::pb;
use keyward::grpc::pb::key_verify_client::KeyVerifyClient;
use keyward::server::addr::{ListenAddr, SocketAccess};
use keyward::server::passed::PassedSockets;
use keyward::services::{Demand, ServiceGroup, Services};
use keyward_core::clock::{Clock, ManualClock};
use keyward_core::entropy::Entropy;
use keyward_core::testing::SeededEntropy;
use prost::Message;
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use crate::support::harness::{Handle, Issued, KeptFilter, START, ask, new_key};
use crate::support::rpcs::{call, described, request};
use crate::support::tables::{agrees_with, aligned};

const REFLECTION: &str = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";

const DOORS_HEAD: &str = "\
# Which calls are served by a listener with one group of services. A test makes all of them as an administrator and
# compares with this file; see listeners.rs, which also writes it. A listener with several groups serves all of theirs.
#
# served    answered
# -         UNIMPLEMENTED, as any path that is no call

";

/// Settings with these listeners in their file.
fn described_in(dir: &TempDir, listeners: &str) -> Result<Settings, Mistakes> {
    let file = dir.path().join("keyward.toml");
    std::fs::write(&file, listeners).unwrap();
    let flags = Flags {
        data_dir: Some(dir.path().join("data")),
        ops_listen: Some("off".into()),
        log_filter: Some("off".into()),
        ..Flags::default()
    };
    Settings::load(&flags, Some(file)).map(|effective| effective.settings)
}

async fn start(settings: Settings, sockets: PassedSockets) -> Result<App, StartError> {
    let clock: Arc<dyn Clock> = Arc::new(ManualClock::at(START));
    let entropy: Arc<dyn Entropy> = Arc::new(SeededEntropy::new(1));
    let engine = Engine::Sled.configure(&settings, &clock, &entropy);
    App::start(
        settings,
        Deps {
            clock,
            entropy,
            sockets,
            adjustable: Adjustable { log: Some(Arc::<KeptFilter>::default()), ..Adjustable::default() },
            engine,
        },
    )
    .await
}

fn channel(addr: &ListenAddr) -> Channel {
    let uri = match addr {
        ListenAddr::Tcp(addr) => format!("http://{addr}"),
        ListenAddr::Unix(path) => format!("unix://{}", path.display()),
        ListenAddr::Passed(name) => panic!("{name} is no address"),
    };
    Endpoint::from_shared(uri).unwrap().connect_lazy()
}

fn admin_key(settings_dir: &TempDir) -> String {
    std::fs::read_to_string(settings_dir.path().join("data/admin.key")).unwrap().trim().to_owned()
}

/// The code of a call's answer.
fn code<T>(answered: Result<T, Status>) -> Code {
    answered.err().map_or(Code::Ok, |status| status.code())
}

/// What reflection answers.
async fn reflected(channel: &Channel, asked: MessageRequest) -> MessageResponse {
    let asked = ServerReflectionRequest { message_request: Some(asked), ..Default::default() }.encode_to_vec();
    let reply = call(channel, REFLECTION, None, &asked).await.unwrap();
    ServerReflectionResponse::decode(&reply[5..]).unwrap().message_response.unwrap()
}

/// Each group of services alone, and beside reflection, which tells of the others.
fn doors() -> Vec<Vec<ServiceGroup>> {
    let alone = ServiceGroup::ALL.map(|group| vec![group]);
    let reflected = ServiceGroup::ALL.into_iter().filter(|group| *group != ServiceGroup::Reflection);
    alone.into_iter().chain(reflected.map(|group| vec![group, ServiceGroup::Reflection])).collect()
}

#[tokio::test]
async fn a_listener_serves_the_calls_that_it_is_told_to_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let tables = doors().into_iter().map(|groups| {
        let names: Vec<_> = groups.into_iter().map(ServiceGroup::name).collect();
        format!("[[listener]]\naddress = \"127.0.0.1:0\"\nservices = {names:?}\n")
    });
    let mut settings = described_in(&dir, &tables.collect::<String>()).unwrap();
    // Hundreds of calls are refused.
    settings.failed_authentication_delay = Duration::ZERO;
    let app = start(settings, PassedSockets::default()).await.unwrap();
    let admin = admin_key(&dir);
    let at = |groups: &[ServiceGroup]| channel(&app.addrs()[doors().iter().position(|door| door == groups).unwrap()]);
    let creator = Handle::new(at(&[ServiceGroup::Admin]), Some(admin.clone()));
    let role = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Verifier", &["keyward.verifier"]) };
    let verifier = creator.create(role).await.unwrap().secret;

    let (mut served, mut left_out) = (0, 0);
    let mut lines = vec![vec!["RPC".to_owned()]];
    lines.extend(described().into_iter().map(|path| vec![path.trim_start_matches('/').to_owned()]));
    for groups in doors() {
        // It is revoked at one of them.
        let target: Issued = creator.issued(new_key("Target", &[])).await;
        let (channel, services) = (at(&groups), groups.iter().copied().collect::<Services>());
        let is_alone = groups.len() == 1;
        lines[0].extend(is_alone.then(|| groups[0].name().to_owned()));
        for (path, line) in described().into_iter().zip(&mut lines[1..]) {
            let message = request(&path, &target, &format!("{groups:?}").to_lowercase());
            let made = async |credential| code(call(&channel, &path, credential, &message).await);
            if is_alone {
                let is_served = made(Some(&admin)).await != Code::Unimplemented;
                line.push(if is_served { "served" } else { "-" }.to_owned());
            }
            if services.serve_path(&path) {
                let expected = match path.rsplit('/').next() {
                    Some("CreateTenant") => Code::InvalidArgument,
                    // The target is revoked by then.
                    Some("RotateKey" | "FinishRotation" | "CancelRotation") => Code::FailedPrecondition,
                    _ => Code::Ok,
                };
                assert_eq!(made(Some(&admin)).await, expected, "{path} at {groups:?}");
                served += 1;
                continue;
            }
            // Like any path that is no call: who has no good credential is told nothing else.
            let is_open = rpc(&path).kind.is_open;
            let (unknown, unauthenticated) = (Code::Unimplemented, Code::Unauthenticated);
            for (credential, expected) in [
                (Some(&*admin), unknown),
                (Some(&*verifier), unknown),
                (Some(&*target.secret), if is_open { unknown } else { unauthenticated }),
                (None, if is_open { unknown } else { unauthenticated }),
            ] {
                assert_eq!(made(credential).await, expected, "{path} at {groups:?} with {credential:?}");
            }
            left_out += 1;
        }
    }
    agrees_with("tests/it/serving/doors.txt", &(DOORS_HEAD.to_owned() + &aligned(&lines)));
    // Two doors for each call, three for reflection's two.
    assert_eq!((served, served + left_out), (2 * described().len() - 2 * 2 + 2 * 5, doors().len() * described().len()));
    app.stop().await.unwrap();
}

#[tokio::test]
async fn reflection_tells_of_what_its_listener_serves() {
    let dir = tempfile::tempdir().unwrap();
    let door = "[[listener]]\naddress = \"127.0.0.1:0\"\nservices = [\"verify\", \"reflection\"]\n";
    let app = start(described_in(&dir, door).unwrap(), PassedSockets::default()).await.unwrap();
    let channel = channel(&app.addrs()[0]);
    let MessageResponse::ListServicesResponse(listed) =
        reflected(&channel, MessageRequest::ListServices(String::new())).await
    else {
        panic!()
    };
    let listed: Vec<_> = listed.service.into_iter().map(|service| service.name).collect();
    let v1 = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
    assert_eq!(listed, [v1[0], v1[1], "keyward.v1.KeyVerify"]);
    for (symbol, is_known) in [
        ("keyward.v1.KeyVerify", true),
        ("keyward.v1.KeyAdmin", false),
        ("keyward.v1.CreateKeyRequest", false),
        ("keyward.v1.KeyAudit.GetHead", false),
        ("grpc.health.v1.Health", false),
    ] {
        let told = reflected(&channel, MessageRequest::FileContainingSymbol(symbol.into())).await;
        assert_eq!(matches!(told, MessageResponse::FileDescriptorResponse(_)), is_known, "{symbol}");
    }
    app.stop().await.unwrap();
}

/// Its fast path is the connection's, so it is looked at apart.
#[tokio::test]
async fn no_verdict_comes_from_a_listener_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let doors = "[[listener]]\naddress = \"127.0.0.1:0\"\nservices = [\"admin\"]\n\
                 [[listener]]\naddress = \"127.0.0.1:0\"\nservices = [\"verify\"]\n";
    let app = start(described_in(&dir, doors).unwrap(), PassedSockets::default()).await.unwrap();
    let [admin, verify] = [0, 1].map(|nth| Handle::new(channel(&app.addrs()[nth]), Some(admin_key(&dir))));
    let secret = admin.create(new_key("Key", &[])).await.unwrap().secret;
    assert_eq!(verify.reason(&secret).await, pb::Reason::Ok);
    for _ in 0..3 {
        assert_eq!(admin.ask(ask(&secret)).await.unwrap_err().code(), Code::Unimplemented);
    }
    let stream = call(&channel(&app.addrs()[0]), STREAM_VERIFY, Some(&admin_key(&dir)), &[]).await;
    assert_eq!(stream.unwrap_err().code(), Code::Unimplemented);
    app.stop().await.unwrap();
}

/// Both doors are on the same address. At one of them nobody is trusted.
#[tokio::test]
async fn a_trusted_proxy_says_whom_it_speaks_for_and_nobody_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let door = "[[listener]]\naddress = \"127.0.0.1:0\"\nservices = [\"verify\", \"admin\"]\n";
    let settings = described_in(&dir, &format!("{door}trusted_proxies = [\"127.0.0.1\", \"10.0.0.0/8\"]\n{door}"));
    let app = start(settings.unwrap(), PassedSockets::default()).await.unwrap();
    let [trusting, plain] = [0, 1].map(|nth| channel(&app.addrs()[nth]));
    let admin = Handle::new(plain.clone(), Some(admin_key(&dir)));
    let bound = pb::CreateKeyRequest {
        tenant: "system".into(),
        allowed_cidrs: vec!["198.51.100.0/24".into()],
        ..new_key("Caller", &["keyward.admin"])
    };
    let bound = admin.create(bound).await.unwrap().secret;
    let asked = async |channel: &Channel, forwarded: &[&str], slow: bool| {
        let mut request = tonic::Request::new(pb::VerifyRequest { explain: slow, ..ask("any") });
        let values = request.metadata_mut();
        values.insert("authorization", format!("Bearer {bound}").parse().unwrap());
        for value in forwarded {
            values.append("x-forwarded-for", value.parse().unwrap());
        }
        code(KeyVerifyClient::new(channel.clone()).verify(request).await)
    };
    let (good, bad) = (Code::Ok, Code::Unauthenticated);
    for slow in [false, false, true, false] {
        for (forwarded, at_trusting) in [
            (&["198.51.100.9"][..], good),
            (&["203.0.113.1"], bad),
            (&["203.0.113.1, 198.51.100.9, 10.7.7.7"], good),
            (&["198.51.100.9, 203.0.113.1"], bad),
            (&["198.51.100.9", "203.0.113.1"], bad),
            (&["198.51.100.9, garbage"], bad),
            (&[], bad),
        ] {
            assert_eq!(asked(&trusting, forwarded, slow).await, at_trusting, "{forwarded:?} {slow}");
            assert_eq!(asked(&plain, forwarded, slow).await, bad, "{forwarded:?} {slow}");
        }
    }
    app.stop().await.unwrap();
}

#[tokio::test]
async fn a_socket_lets_in_the_users_that_it_names() {
    let dir = tempfile::tempdir().unwrap();
    let me = rustix_uid(&dir);
    let door = |name: &str, uid: u32| {
        let path = dir.path().join(name);
        format!(
            "[[listener]]\naddress = \"unix:{}\"\nservices = [\"health\"]\nsocket_mode = \"0600\"\n\
             allowed_uids = [{uid}]\n",
            path.display()
        )
    };
    let settings = described_in(&dir, &(door("mine", me) + &door("theirs", me + 1))).unwrap();
    let app = start(settings, PassedSockets::default()).await.unwrap();
    let check = "/grpc.health.v1.Health/Check";
    let mine = call(&channel(&app.addrs()[0]), check, None, &[]).await;
    assert!(mine.is_ok(), "{mine:?}");
    // It is closed before it has said anything.
    let theirs = tokio::net::UnixStream::connect(dir.path().join("theirs")).await.unwrap();
    let mut theirs = tokio::io::BufReader::new(theirs);
    let said = tokio::io::AsyncBufReadExt::fill_buf(&mut theirs).await.unwrap();
    assert!(said.is_empty(), "{said:?}");
    let mode = std::fs::metadata(dir.path().join("mine")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&mode) & 0o777, 0o600);
    app.stop().await.unwrap();
}

/// The user of this process: the owner of what it makes.
fn rustix_uid(dir: &TempDir) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(dir.path()).unwrap())
}

#[tokio::test]
async fn sockets_that_are_passed_are_taken_over_by_name_and_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let path = dir.path().join("passed.sock");
    let unix = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let doors = "[[listener]]\naddress = \"fd:calls\"\nservices = [\"health\"]\n";
    for _ in 0..2 {
        let passed = || -> Vec<(String, OwnedFd)> {
            // Two of one name.
            let tcp = OwnedFd::from(tcp.try_clone().unwrap());
            vec![("calls".into(), tcp), ("calls".into(), OwnedFd::from(unix.try_clone().unwrap()))]
        };
        let app = start(described_in(&dir, doors).unwrap(), PassedSockets::of(passed())).await.unwrap();
        let expected = [ListenAddr::Tcp(tcp.local_addr().unwrap()), ListenAddr::Unix(path.clone())];
        assert_eq!(app.addrs(), expected);
        for addr in app.addrs() {
            let checked = call(&channel(addr), "/grpc.health.v1.Health/Check", None, &[]).await;
            assert!(checked.is_ok(), "{addr}: {checked:?}");
        }
        app.stop().await.unwrap();
        assert!(path.exists(), "it is not the server's to remove");
        // Somebody else listens.
        drop(std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_socket_that_is_not_passed_or_does_not_listen_or_is_open_to_all_stops_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let door = |services: &str| {
        let table = format!("[[listener]]\naddress = \"fd:calls\"\nservices = [{services}]\n");
        described_in(&dir, &table).unwrap()
    };
    let refused = async |settings, name: &str, fd: OwnedFd| {
        let started = start(settings, PassedSockets::of(vec![(name.to_owned(), fd)])).await;
        started.err().unwrap().to_string()
    };
    let listening = |addr: &str| OwnedFd::from(std::net::TcpListener::bind(addr).unwrap());
    let local = "127.0.0.1:0";
    let said = refused(door("\"verify\""), "other", listening(local)).await;
    assert!(said.contains("fd:calls") && said.contains("there are other"), "{said}");
    let datagrams = OwnedFd::from(std::net::UdpSocket::bind(local).unwrap());
    let said = refused(door("\"verify\""), "calls", datagrams).await;
    assert!(said.contains("not a socket that listens"), "{said}");
    let said = refused(door("\"verify\", \"health\""), "calls", listening("0.0.0.0:0")).await;
    assert!(said.contains("fd:calls") && said.contains("--allow-plaintext"), "{said}");
    // Probes have one address.
    let twice = [local; 2].map(|addr| ("probes".to_owned(), listening(addr)));
    let settings = Settings { ops_listen: Some(ListenAddr::Passed("probes".into())), ..door("\"verify\"") };
    let sockets = PassedSockets::of([("calls".to_owned(), listening(local))].into_iter().chain(twice).collect());
    let said = start(settings, sockets).await.err().unwrap().to_string();
    assert!(said.contains("fd:probes") && said.contains("2 sockets have this name"), "{said}");
    // Nothing to lose there.
    let sockets = PassedSockets::of(vec![("calls".into(), listening("0.0.0.0:0"))]);
    start(door("\"health\""), sockets).await.unwrap().stop().await.unwrap();
}

#[test]
fn a_mistake_in_a_listener_names_its_number_and_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let told = |table: &str| match described_in(
        &dir,
        &format!("[[listener]]\naddress = \"127.0.0.1:0\"\nservices = [\"health\"]\n[[listener]]\n{table}\n"),
    ) {
        Ok(settings) => panic!("{table}: {:?}", settings.listener),
        Err(mistakes) => mistakes.0.join("\n"),
    };
    let health = "services = [\"health\"]";
    let local = "address = \"127.0.0.1:0\"";
    for (table, expected) in [
        (health.to_owned(), "number 2: missing field `address`"),
        (local.to_owned(), "missing field `services`"),
        (
            format!("{local}\nservices = []"),
            "services must have at least one of verify, admin, audit, health, reflection",
        ),
        (format!("{local}\nservices = [\"verfy\"]"), "services has 'verfy', and may have verify, "),
        (format!("address = \"nowhere\"\n{health}"), "address: must be an address with a port"),
        (format!("address = \"fd:\"\n{health}"), "address: must name a socket after fd:"),
        (format!("{local}\n{health}\nsevices = []"), "unknown field: found `sevices`"),
        (format!("{local}\n{health}\nsocket_mode = \"0600\""), "socket_mode is for a listener on unix:/path"),
        (format!("{local}\n{health}\nallowed_uids = [0]"), "allowed_uids is for a listener on a Unix socket"),
        (format!("address = \"unix:/x\"\n{health}\nsocket_mode = \"9\""), "socket_mode must be a text of octal digits"),
        (format!("address = \"unix:/x\"\n{health}\nsocket_group = \"nobody here\""), "socket_group must be a group"),
        (format!("{local}\n{health}\nconnections_max = 0"), "connections_max must be at least 1"),
        (format!("{local}\n{health}\ndemand = \"both\""), "demand is both, and nothing proves who connects"),
        (
            format!("{local}\n{health}\ntrusted_proxies = [\"10.1.1.1/8\"]"),
            "trusted_proxies has '10.1.1.1/8', which must",
        ),
        (format!("{local}\n{health}\ndemand = \"all\""), "number 2: demand is all, and must be either or both"),
        ("address = \"0.0.0.0:1\"\nservices = [\"verify\"]".to_owned(), "listener (in "),
    ] {
        let told = told(&table);
        assert!(told.contains(expected), "{table}\n{told}");
    }
    let open = "[[listener]]\naddress = \"0.0.0.0:0\"\nservices = [\"health\", \"reflection\"]";
    assert!(described_in(&dir, open).is_ok(), "nothing secret is told there");
}

#[test]
fn listeners_replace_the_default_address_and_stand_beside_one_that_is_set() {
    let dir = tempfile::tempdir().unwrap();
    let door =
        "[[listener]]\naddress = \"unix:/a b\"\nservices = [\"verify\"]\nsocket_group = 0\nconnections_max = 7\n";
    let settings = described_in(&dir, door).unwrap();
    let described = ListenerSettings {
        address: ListenAddr::Unix(Path::new("/a b").into()),
        services: [ServiceGroup::Verify].into_iter().collect(),
        access: SocketAccess { group: Some("0".parse().unwrap()), ..SocketAccess::default() },
        allowed_uids: None,
        demand: Demand::Either,
        trusted_proxies: None,
        connections_max: Some(7),
        tls: None,
    };
    assert_eq!(settings.listeners(), std::slice::from_ref(&described));
    let settings = described_in(&dir, &format!("listen = \"127.0.0.1:1\"\nreflection = false\n{door}")).unwrap();
    let short = ListenerSettings {
        services: Services::ALL.without(ServiceGroup::Reflection),
        ..ListenerSettings::of("127.0.0.1:1".parse().unwrap(), SocketAccess::default())
    };
    assert_eq!(settings.listeners(), [short, described]);
    assert_eq!(described_in(&dir, "").unwrap().listeners().len(), 1);
    assert!(described_in(&dir, "listen = []").is_err());
}
