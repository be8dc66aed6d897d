//! A caller whose key was disabled does nothing more: not with a call that was begun before, and not with a
//! reply that is still on its way.

use std::future::poll_fn;

use bytes::Bytes;
use http_body::Frame;
use keyward::grpc::calls::guarded;
use keyward::grpc::pb;
use keyward::server::tls::ClientCertificates;
use keyward_core::access::RoleScope;
use keyward_core::identity::{Assignment, IdentityName};
use keyward_core::scope::Scope;
use prost::Message;
use tokio::sync::{mpsc, oneshot};
use tonic::body::Body;
use tonic::codegen::http::Request;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower_service::Service;

use crate::support::encrypted::Encrypted;
use crate::support::h2peer::prefixed;
use crate::support::harness::{Handle, Issued, Site, endpoint, error_reason, new_key, rotate_at_use};
use crate::support::rpcs::{Pieces, http_body_of, request, rest_of};

/// For each call that takes a credential, a request that would be answered.
fn requests(target: &Issued) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    guarded().map(|(path, _)| (path, request(path, target, "new")))
}

/// A call whose body is sent as the test sends it.
struct Call {
    body: mpsc::UnboundedSender<Bytes>,
    answered: tokio::task::JoinHandle<Result<Vec<u8>, Status>>,
}

impl Call {
    /// Begins a call, and returns when its head and `first` are on their way, before whatever follows on this
    /// channel.
    async fn begin(channel: &mut Channel, path: &str, secret: Option<&str>, first: Bytes) -> Self {
        let (body, mut pieces) = mpsc::unbounded_channel::<Bytes>();
        body.send(first).unwrap();
        let (on_its_way, is_on_its_way) = oneshot::channel();
        let (mut on_its_way, mut taken) = (Some(on_its_way), 0);
        let pieces = futures_util::stream::poll_fn(move |cx| {
            // Asked for the second piece, the client has put the first one behind the head.
            if taken == 1
                && let Some(on_its_way) = on_its_way.take()
            {
                on_its_way.send(()).unwrap();
            }
            pieces.poll_recv(cx).map(|piece| {
                taken += 1;
                piece.map(|piece| Ok::<_, Status>(Frame::data(piece)))
            })
        });
        let request = Request::post(format!("http://keyward{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        let request = match secret {
            Some(secret) => request.header("authorization", format!("Bearer {secret}")),
            None => request,
        };
        let request = request.body(Body::new(Pieces(pieces))).unwrap();
        poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        let answering = channel.call(request);
        let answered = tokio::spawn(async move {
            let response = answering.await.map_err(|error| Status::unknown(error.to_string()))?;
            if let Some(status) = Status::from_header_map(response.headers()) {
                return Err(status);
            }
            rest_of(response.into_body()).await.1
        });
        is_on_its_way.await.unwrap();
        Self { body, answered }
    }
}

async fn administrator(site: &Site) -> Issued {
    let request = pb::CreateKeyRequest { tenant: "system".into(), ..new_key("Caller", &["keyward.admin"]) };
    site.admin().issued(request).await
}

async fn revision(site: &Site) -> u64 {
    site.admin().list_tenants(pb::ListTenantsRequest::default()).await.unwrap().revision
}

#[tokio::test]
async fn a_call_whose_caller_is_disabled_before_its_request_is_whole_does_nothing() {
    let site = Site::start().await;
    let target = site.admin().issue("Target", &[]).await;
    let (mut all, mut whole) = (0, 0);
    for (path, message) in requests(&target) {
        all += 1;
        let caller = administrator(&site).await;
        let mut channel = site.channel();
        let body = prefixed(&message);
        let (last, first) = body.split_last().unwrap();
        let call = Call::begin(&mut channel, path, Some(&caller.secret), Bytes::copy_from_slice(first)).await;
        let disabled = site.admin().disable_key(&caller.key).await;
        // One that begins only now, on a busy machine, is refused without its body.
        whole += usize::from(call.body.send(Bytes::copy_from_slice(&[*last])).is_ok());
        drop(call.body);
        let refused = call.answered.await.unwrap().expect_err(path);
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"), "{path}");
        assert_eq!(revision(&site).await, disabled.revision, "{path}: nothing has changed since");
    }
    assert!(whole > all / 2, "{whole} of {all} requests were whole");
}

#[tokio::test]
async fn a_call_whose_identity_loses_its_roles_before_its_request_is_whole_does_nothing() {
    let name = IdentityName::parse("spiffe://test/billing").unwrap();
    let given = || {
        let admin = RoleScope::parse(&Scope::parse("keyward.admin").unwrap()).unwrap();
        Assignment { name: name.clone(), roles: vec![admin], audience: None }
    };
    let another = || Assignment { name: IdentityName::parse("unix:1").unwrap(), ..given() };
    let demand = Some(ClientCertificates::Required);
    let server = Encrypted::start_with(demand, |settings| settings.identity = vec![given()]).await;
    let mut channel = server.channel(Some(&server.caller(40)));
    let caller = Handle::new(channel.clone(), None);
    let target = caller.issue("Target", &[]).await;
    let revision = async || caller.list_tenants(pb::ListTenantsRequest::default()).await.unwrap().revision;
    let before = revision().await;
    for (path, message) in requests(&target) {
        let body = prefixed(&message);
        let (last, first) = body.split_last().unwrap();
        let call = Call::begin(&mut channel, path, None, Bytes::copy_from_slice(first)).await;
        // A round trip on the same connection: the head has come.
        revision().await;
        server.identities.replace([another()]);
        drop(call.body.send(Bytes::copy_from_slice(&[*last])));
        drop(call.body);
        let refused = call.answered.await.unwrap().expect_err(path);
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "IDENTITY_UNKNOWN"), "{path}");
        server.identities.replace([given()]);
        assert_eq!(revision().await, before, "{path}");
    }
}

#[tokio::test]
async fn a_call_whose_caller_still_works_is_answered_however_late_its_request_is_whole() {
    let site = Site::start().await;
    for (path, _) in guarded() {
        // One of them revokes its target, and some end its rotation.
        let target = site.admin().issue("Target", &[]).await;
        site.admin().rotated(rotate_at_use(&target.key, 1_000)).await;
        let caller = administrator(&site).await;
        let mut channel = site.channel();
        let body = prefixed(&request(path, &target, "new"));
        let (last, first) = body.split_last().unwrap();
        let call = Call::begin(&mut channel, path, Some(&caller.secret), Bytes::copy_from_slice(first)).await;
        // Another key changes meanwhile, so that the caller is looked up again.
        site.admin().issue("Meanwhile", &[]).await;
        call.body.send(Bytes::copy_from_slice(&[*last])).unwrap();
        drop(call.body);
        let answered = call.answered.await.unwrap();
        assert!(answered.is_ok(), "{path}: {answered:?}");
    }
}

/// The judgement before the handler cannot see a disable that comes while the change waits for its turn.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_change_of_a_disabled_caller_has_a_later_revision() {
    let site = Site::start().await;
    for round in 0..20 {
        let caller = administrator(&site).await;
        let creating: Vec<_> = (0..8)
            .map(|_| {
                let issuer = site.caller(&caller.secret);
                tokio::spawn(async move {
                    let mut last = 0;
                    loop {
                        match issuer.create(new_key("New", &[])).await {
                            Ok(created) => last = created.revision,
                            Err(refused) => return (last, refused.code()),
                        }
                    }
                })
            })
            .collect();
        // They are at it.
        let begun = revision(&site).await;
        while revision(&site).await < begun + 20 {
            tokio::task::yield_now().await;
        }
        let disabled = site.admin().disable_key(&caller.key).await.revision;
        for creating in creating {
            let (last, code) = creating.await.unwrap();
            assert_eq!(code, Code::Unauthenticated);
            assert!(last < disabled, "round {round}: a key was made at {last}, its caller disabled at {disabled}");
        }
        assert_eq!(revision(&site).await, disabled, "round {round}");
    }
}

/// Keys that take a megabyte together.
async fn many_long_keys(site: &Site) {
    let note = "x".repeat(500);
    let annotations: std::collections::HashMap<_, _> = (0..6).map(|n| (format!("note-{n}"), note.clone())).collect();
    for number in 0..400 {
        let mut request = new_key(&format!("Key {number}"), &[]);
        request.annotations = annotations.clone().into_iter().collect();
        site.admin().create(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_long_reply_breaks_off_when_its_caller_is_disabled() {
    /// What may lie in the window of the stream and in the connection.
    const ON_ITS_WAY_MAX: usize = 256 * 1024;
    let site = Site::start().await;
    many_long_keys(&site).await;
    let list = pb::ListKeysRequest { page_size: 1_000, ..Default::default() }.encode_to_vec();
    for (path, message) in [("/keyward.v1.KeyAdmin/Backup", vec![]), ("/keyward.v1.KeyAdmin/ListKeys", list)] {
        let caller = administrator(&site).await;
        let keyward::server::addr::ListenAddr::Tcp(addr) = site.addr() else { panic!("a TCP listener") };
        let mut channel = endpoint(&addr).initial_stream_window_size(64 * 1024).connect().await.unwrap();
        let request = Request::post(format!("http://keyward{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", caller.secret))
            .body(Body::new(http_body_of(prefixed(&message))))
            .unwrap();
        poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
        let response = channel.call(request).await.unwrap();
        assert!(Status::from_header_map(response.headers()).is_none(), "{path}: it has begun");
        site.admin().disable_key(&caller.key).await;
        let (bytes, ended) = rest_of(response.into_body()).await;
        let refused = ended.expect_err(path);
        assert_eq!((refused.code(), &*error_reason(&refused)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"), "{path}");
        assert!(bytes <= ON_ITS_WAY_MAX, "{path}: {bytes} bytes");
    }
}
