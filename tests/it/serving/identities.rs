//! Callers who are authenticated by their connection: by a client certificate, or as a user on a Unix socket.

use std::path::Path;

use futures_util::StreamExt;
use keyward::config::{Flags, Settings};
use keyward::grpc::pb::{self, Reason};
use keyward::server::addr::{ListenAddr, SocketAccess};
use keyward::server::connections::Http2;
use keyward::server::tls::ClientCertificates;
use keyward::services::Demand;
use keyward_core::access::RoleScope;
use keyward_core::identity::{Assignment, IdentityName};
use keyward_core::scope::Scope;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::api::stream::asking;
use crate::support::certificates::{Pair, Usage, write};
use crate::support::encrypted::{Encrypted, PATIENCE};
use crate::support::harness::{Handle, ask, disable, error_reason, new_key};

const BILLING: &str = "spiffe://test/billing";
const MAIL: &str = "dns:mail.internal";

fn assigned(name: &str, roles: &[&str], audience: Option<&str>) -> Assignment {
    let roles = roles.iter().map(|role| RoleScope::parse(&Scope::parse(role).unwrap()).unwrap()).collect();
    Assignment { name: IdentityName::parse(name).unwrap(), roles, audience: audience.map(str::to_owned) }
}

/// A server whose callers must show certificates, with these identities.
async fn server(identities: Vec<Assignment>) -> Encrypted {
    changed_server(identities, |_| {}).await
}

async fn changed_server(identities: Vec<Assignment>, change: impl FnOnce(&mut Settings)) -> Encrypted {
    Encrypted::start_with(Some(ClientCertificates::Required), |settings| {
        settings.identity = identities;
        change(settings);
    })
    .await
}

/// A caller with a certificate and no key.
fn with_certificate(server: &Encrypted, shown: &Pair) -> Handle {
    Handle::new(server.channel(Some(shown)), None)
}

fn billing(server: &Encrypted) -> Pair {
    server.files.authority.issue(40, Usage::Client(BILLING))
}

fn mail(server: &Encrypted) -> Pair {
    server.files.authority.issue(41, Usage::ClientNames(&[], &["Mail.internal"]))
}

fn reason_of<T: std::fmt::Debug>(refused: Result<T, Status>) -> (Code, String) {
    let status = refused.unwrap_err();
    (status.code(), error_reason(&status))
}

fn unauthenticated(reason: &str) -> (Code, String) {
    (Code::Unauthenticated, reason.to_owned())
}

#[tokio::test]
async fn a_certificate_has_the_roles_that_the_configuration_gives_its_identity() {
    for http2 in [Http2::Own, Http2::Hyper] {
        let identities = vec![
            assigned(BILLING, &["keyward.issuer@default", "keyward.verifier"], None),
            assigned(MAIL, &["keyward.verifier@acme"], None),
            assigned("spiffe://test/nothing", &[], None),
        ];
        let server = changed_server(identities, |settings| settings.http2 = http2).await;
        let issuer = with_certificate(&server, &billing(&server));
        let made = issuer.issue("Zapier", &[]).await;
        assert_eq!((&*made.key.created_by, &*made.key.updated_by), (BILLING, BILLING));
        for _ in 0..3 {
            assert_eq!(issuer.reason(&made.secret).await, Reason::Ok);
        }
        // A role that it has not, and a tenant where it has none.
        let refused = issuer.disable(disable(&made.key)).await;
        assert_eq!(reason_of(refused), (Code::PermissionDenied, "ROLE_MISSING".to_owned()));
        let elsewhere = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("X", &["keyward.admin"]) };
        assert_eq!(issuer.create(elsewhere).await.unwrap_err().code(), Code::NotFound);
        let narrow = with_certificate(&server, &mail(&server));
        assert_eq!(narrow.reason(&made.secret).await, Reason::Unknown, "the key is of another tenant");
        let nothing = server.files.authority.issue(42, Usage::Client("spiffe://test/nothing"));
        let refused = with_certificate(&server, &nothing).ask(ask(&made.secret)).await;
        assert_eq!(reason_of(refused), (Code::PermissionDenied, "ROLE_MISSING".to_owned()));
        server.app.stop().await.unwrap();
    }
}

#[tokio::test]
async fn a_certificate_counts_only_by_its_one_uri_or_its_one_host() {
    let identities = [BILLING, MAIL, "dns:billing.internal"].map(|name| assigned(name, &["keyward.viewer"], None));
    let server = server(identities.to_vec()).await;
    let list = async |uris: &[&str], hosts: &[&str]| {
        let shown = server.files.authority.issue(50, Usage::ClientNames(uris, hosts));
        let listed = with_certificate(&server, &shown).list(pb::ListKeysRequest::default()).await;
        listed.map(drop).map_err(|refused| error_reason(&refused))
    };
    let unknown = || Err("IDENTITY_UNKNOWN".to_owned());
    for (uris, hosts, expected) in [
        (&[BILLING][..], &[][..], Ok(())),
        (&[BILLING], &["any.internal", "other.internal"], Ok(())),
        (&[], &["MAIL.internal"], Ok(())),
        // The common name is billing.internal in all of them.
        (&[], &[], unknown()),
        (&[BILLING, "spiffe://test/mail"], &[], unknown()),
        (&[BILLING, "https://billing.internal/"], &[], unknown()),
        (&["https://billing.internal/"], &["mail.internal"], unknown()),
        (&[], &["mail.internal", "billing.internal"], unknown()),
        (&["spiffe://test/billing/api"], &[], unknown()),
        (&["spiffe://test/billing/"], &[], unknown()),
        (&["spiffe://test/Billing"], &[], unknown()),
        (&["SPIFFE://test/billing"], &[], unknown()),
        (&["spiffe://other/billing"], &[], unknown()),
        (&[], &["*.internal"], unknown()),
        (&[], &["mail.internal.example"], unknown()),
    ] {
        assert_eq!(list(uris, hosts).await, expected, "{uris:?} {hosts:?}");
    }
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_key_decides_and_a_credential_that_is_bad_is_no_reason_to_ask_the_certificate() {
    let server = server(vec![assigned(BILLING, &["keyward.admin"], None)]).await;
    let shown = billing(&server);
    let admin = with_certificate(&server, &shown);
    let viewer = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Viewer", &["keyward.viewer"]) };
    let viewer = admin.issued(viewer).await;
    let with_key = Handle::new(server.channel(Some(&shown)), Some(viewer.secret.clone()));
    assert_eq!(with_key.create(new_key("X", &[])).await.unwrap_err().code(), Code::PermissionDenied);
    with_key.list(pb::ListKeysRequest::default()).await.unwrap();
    admin.disable_key(&viewer.key).await;
    for credential in [&*viewer.secret, "garbage", ""] {
        let bad = Handle::new(server.channel(Some(&shown)), Some(credential.to_owned()));
        for refused in [bad.create(new_key("X", &[])).await.err(), bad.ask(ask("x")).await.err()] {
            let refused = refused.unwrap();
            assert_eq!(refused.code(), Code::Unauthenticated);
            assert_eq!(error_reason(&refused), "CREDENTIAL_REFUSED", "{credential:?}");
        }
    }
    // Without any configuration of identities all is as it was.
    server.identities.replace([]);
    assert_eq!(reason_of(admin.create(new_key("X", &[])).await), unauthenticated("CREDENTIAL_MISSING"));
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_door_may_demand_a_key_and_an_identity() {
    let identities = vec![assigned(BILLING, &["keyward.admin"], None)];
    let server = changed_server(identities, |settings| {
        let mut door = settings.listeners().remove(0);
        door.demand = Demand::Both;
        (settings.listen, settings.listener) = (vec![], vec![door]);
    })
    .await;
    let shown = billing(&server);
    let both = server.admin(Some(&shown));
    let key = both.issue("Key", &[]).await;
    for _ in 0..3 {
        assert_eq!(both.reason(&key.secret).await, Reason::Ok);
    }
    let certificate_alone = with_certificate(&server, &shown);
    let stranger = server.files.authority.issue(60, Usage::Client("spiffe://test/unheard-of"));
    let key_alone = server.admin(Some(&stranger));
    for _ in 0..3 {
        assert_eq!(reason_of(certificate_alone.ask(ask(&key.secret)).await), unauthenticated("CREDENTIAL_MISSING"));
        assert_eq!(reason_of(key_alone.ask(ask(&key.secret)).await), unauthenticated("IDENTITY_MISSING"));
        assert_eq!(reason_of(key_alone.create(new_key("X", &[])).await), unauthenticated("IDENTITY_MISSING"));
    }
    // The identity goes while the connection is in use.
    server.identities.replace([assigned(MAIL, &[], None)]);
    assert_eq!(reason_of(both.ask(ask(&key.secret)).await), unauthenticated("IDENTITY_MISSING"));
    server.app.stop().await.unwrap();
}

/// What an open connection of an identity is answered: by the fast path, by the slow one, and on a stream
/// that was opened before.
struct Open {
    caller: Handle,
    requests: mpsc::UnboundedSender<pb::StreamVerifyRequest>,
    answers: tonic::Streaming<pb::StreamVerifyResponse>,
    secret: String,
}

impl Open {
    async fn new(caller: Handle, secret: &str) -> Self {
        let (requests, sent) = mpsc::unbounded_channel();
        requests.send(asking(ask(secret))).unwrap();
        let mut answers = caller.stream(UnboundedReceiverStream::new(sent)).await.unwrap();
        answers.next().await.unwrap().unwrap();
        let mut open = Self { caller, requests, answers, secret: secret.to_owned() };
        for _ in 0..3 {
            assert_eq!(open.codes().await, [Code::Ok; 3]);
        }
        open
    }

    async fn codes(&mut self) -> [Code; 3] {
        let code = |refused: Option<Status>| refused.map_or(Code::Ok, |status| status.code());
        let fast = self.caller.ask(ask(&self.secret)).await.err();
        let slow = self.caller.list(pb::ListKeysRequest::default()).await.err();
        drop(self.requests.send(asking(ask(&self.secret))));
        let streamed = self.answers.next().await.and_then(Result::err);
        [code(fast), code(slow), code(streamed)]
    }
}

#[tokio::test]
async fn an_identity_is_judged_at_every_call_of_an_open_connection_and_of_a_stream() {
    let both = ["keyward.verifier", "keyward.viewer"];
    let given = || vec![assigned(BILLING, &both, None), assigned(MAIL, &[], None)];
    let server = server(given()).await;
    let key = server.admin(Some(&mail(&server))).issue("Key", &[]).await;
    let open = async |until: i32| {
        let shown = server.files.authority.issue_until(40, Usage::Client(BILLING), until);
        Open::new(with_certificate(&server, &shown), &key.secret).await
    };
    // By what the configuration gives it, from one call to the next.
    for (left, expected) in [
        (vec![assigned(MAIL, &both, None)], Code::Unauthenticated),
        (vec![assigned(BILLING, &["keyward.backup"], None)], Code::PermissionDenied),
    ] {
        let mut caller = open(2080).await;
        server.identities.replace(left);
        assert_eq!(caller.codes().await, [expected; 3]);
        server.identities.replace(given());
        assert_eq!(caller.codes().await[..2], [Code::Ok; 2], "and back");
    }
    // By the end of its certificate, though nobody has looked at the files since.
    let mut caller = open(2027).await;
    server.clock.advance_ms(400 * 24 * 60 * 60 * 1_000);
    assert_eq!(caller.codes().await, [Code::Unauthenticated; 3]);
    server.app.stop().await.unwrap();
}

#[tokio::test]
async fn a_revoked_certificate_ends_its_identity() {
    let server = server(vec![assigned(BILLING, &["keyward.verifier", "keyward.viewer"], None)]).await;
    let mut caller = Open::new(with_certificate(&server, &billing(&server)), "any").await;
    write(&server.files.dir.join("crl.pem"), &server.files.authority.revoke(&[40]));
    let refused = timeout(PATIENCE, async {
        loop {
            server.reload.ask();
            match caller.caller.ask(ask("any")).await {
                Ok(_) => tokio::task::yield_now().await,
                Err(refused) => return refused,
            }
        }
    });
    // Refused on the open connection, or the connection is cut off already, and no other one is let in.
    drop(refused.await.unwrap());
    assert_ne!(caller.codes().await, [Code::Ok; 3]);
    server.app.stop().await.unwrap();
}

/// A key bound to one service is not good at another, whatever that one says.
#[tokio::test]
async fn the_audience_of_the_callers_identity_counts_whatever_the_request_says() {
    let verifier = &["keyward.verifier"];
    let identities = vec![
        assigned(BILLING, verifier, Some("billing")),
        assigned(MAIL, verifier, Some("mail")),
        assigned("spiffe://test/any", verifier, None),
    ];
    let server = server(identities).await;
    let authority = &server.files.authority;
    let shown = [billing(&server), mail(&server), authority.issue(42, Usage::Client("spiffe://test/any"))];
    let admin = server.admin(Some(&shown[2]));
    let bound = pb::CreateKeyRequest { audiences: vec!["billing".into()], ..new_key("Bound", &[]) };
    let (bound, free) = (admin.issued(bound).await, admin.issue("Free", &[]).await);
    let verifier = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Verifier", verifier) };
    let verifier = admin.issued(verifier).await.secret;
    let (ok, mismatch) = (Reason::Ok, Reason::AudienceMismatch);
    for (shown, expected) in shown.iter().zip([[ok, ok, ok], [mismatch; 3], [mismatch, ok, mismatch]]) {
        // With the identity alone, and with a key besides.
        for key in [None, Some(verifier.clone())] {
            let caller = Handle::new(server.channel(Some(shown)), key);
            for (audience, expected) in ["", "billing", "mail"].into_iter().zip(expected) {
                let asked = |explain| pb::VerifyRequest { audience: audience.into(), explain, ..ask(&bound.secret) };
                for explain in [false, false, true] {
                    assert_eq!(caller.ask(asked(explain)).await.unwrap().reason(), expected, "{audience:?}");
                }
                let batch = pb::BatchVerifyRequest { requests: vec![asked(false), asked(false)] };
                for result in caller.ask_all(batch).await.unwrap().results {
                    let pb::batch_verify_result::Result::Response(one) = result.result.unwrap() else { panic!() };
                    assert_eq!(one.reason(), expected, "{audience:?}");
                }
                let requests =
                    futures_util::stream::iter([asking(asked(false))]).chain(futures_util::stream::pending());
                let answer = caller.stream(requests).await.unwrap().next().await.unwrap().unwrap().result.unwrap();
                let pb::stream_verify_response::Result::Response(one) = answer else { panic!() };
                assert_eq!(one.reason(), expected, "{audience:?}");
            }
            assert_eq!(caller.reason(&free.secret).await, Reason::Ok, "a key for all audiences");
        }
    }
    server.app.stop().await.unwrap();
}

/// The user of this process: the owner of what it makes.
fn own_uid(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).unwrap())
}

#[tokio::test]
async fn a_user_on_a_unix_socket_has_the_roles_of_its_identity() {
    let dir = tempfile::tempdir().unwrap();
    let (uid, path) = (own_uid(dir.path()), dir.path().join("keyward.sock"));
    let name = format!("unix:{uid}");
    let server =
        changed_server(vec![assigned(&name, &["keyward.issuer", "keyward.verifier"], Some("mail"))], |settings| {
            settings.listen.push(ListenAddr::Unix(path.clone()));
            settings.sockets = SocketAccess::default();
        })
        .await;
    let caller = Handle::new(on_socket(&path), None);
    let made = caller.issue("Key", &[]).await;
    assert_eq!(made.key.created_by, name);
    for _ in 0..3 {
        assert_eq!(caller.reason(&made.secret).await, Reason::Ok);
    }
    server.identities.replace([assigned(&format!("unix:{}", uid + 1), &["keyward.verifier"], None)]);
    assert_eq!(reason_of(caller.ask(ask(&made.secret)).await), unauthenticated("IDENTITY_UNKNOWN"));
    // Nobody is a user on an address.
    let over_tcp = with_certificate(&server, &billing(&server));
    assert_eq!(reason_of(over_tcp.ask(ask(&made.secret)).await), unauthenticated("IDENTITY_UNKNOWN"));
    server.app.stop().await.unwrap();
}

fn on_socket(path: &Path) -> Channel {
    Endpoint::from_shared(format!("unix://{}", path.display())).unwrap().connect_lazy()
}

#[test]
fn a_mistake_in_an_identity_names_its_number_and_its_field() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keyward.toml");
    let told = |text: &str| {
        std::fs::write(&file, text).unwrap();
        match Settings::load(&Flags::default(), Some(file.clone())) {
            Ok(effective) => Ok(effective.settings.identity),
            Err(mistakes) => Err(mistakes.0.join("\n")),
        }
    };
    let socket = "[[listener]]\naddress = \"unix:/x\"\nservices = [\"verify\"]\n[[identity]]\n";
    let user = "name = \"unix:7\"\n";
    for (text, expected) in [
        (format!("{socket}roles = []"), "identity (in "),
        (format!("{socket}roles = []"), "number 1: missing field `name`"),
        (format!("{socket}name = \"billing\""), "name must be spiffe://<trust domain>/<path>"),
        (format!("{socket}name = \"key_1\""), "name must be spiffe://<trust domain>/<path>"),
        (
            format!("{socket}{user}roles = [\"verifier\"]"),
            "roles has 'verifier': in tenant 'system' a scope must be a role",
        ),
        (format!("{socket}{user}roles = [\"keyward.issuer@system\"]"), "roles has 'keyward.issuer@system': "),
        (format!("{socket}{user}audience = \"\""), "audience must have 1 to 128 bytes"),
        (format!("{socket}{user}audience = \"a\\nb\""), "audience must have 1 to 128 bytes and no control characters"),
        (format!("{socket}{user}role = []"), "unknown field: found `role`"),
        (format!("{socket}{user}[[identity]]\n{user}"), "number 2: unix:7 is there already"),
        (format!("{socket}name = \"spiffe://a/b\""), "no listener has a client_ca_file to check one with"),
        (
            format!("[[identity]]\n{user}"),
            "number 1: unix:7 is of a user of this machine, and no listener is a Unix socket",
        ),
    ] {
        let told = told(&text).expect_err(&text);
        assert!(told.contains(expected), "{text}\n{told}");
    }
    let given = told(&format!("{socket}{user}roles = [\"keyward.issuer@acme\"]\naudience = \"mail\"")).unwrap();
    assert_eq!(given, [assigned("unix:7", &["keyward.issuer@acme"], Some("mail"))]);
}
