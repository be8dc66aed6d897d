//! One verdict after another, on a stream. What happens between its messages is in `turns`.

use std::time::Duration;

use futures_util::{StreamExt, stream};
use keyward::grpc::pb::key_verify_client::KeyVerifyClient;
use keyward::grpc::pb::stream_verify_response::Result::{Error, Response};
use keyward::grpc::pb::{self, Reason};
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::support::harness::{
    Handle, Issued, Site, after_start, ask, bad_fields, endpoint, error_reason, new_key, strings, update,
};

/// Far longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn asking(request: pb::VerifyRequest) -> pb::StreamVerifyRequest {
    pb::StreamVerifyRequest { request: Some(request) }
}

/// An open stream.
pub(crate) struct Talk {
    requests: mpsc::Sender<pb::StreamVerifyRequest>,
    answers: Streaming<pb::StreamVerifyResponse>,
}

impl Talk {
    pub(crate) async fn open(caller: &Handle) -> Self {
        let (requests, sent) = mpsc::channel(1);
        Self { requests, answers: caller.stream(ReceiverStream::new(sent)).await.unwrap() }
    }

    async fn say(&self, message: pb::StreamVerifyRequest) {
        self.requests.send(message).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Option<pb::StreamVerifyResponse>, Status> {
        timeout(PATIENCE, self.answers.message()).await.unwrap()
    }

    pub(crate) async fn ask(&mut self, request: pb::VerifyRequest) -> Result<pb::StreamVerifyResponse, Status> {
        // At its end a stream takes nothing more, and says why when it is listened to.
        drop(self.requests.send(asking(request)).await);
        self.hear().await.map(Option::unwrap)
    }

    async fn reason(&mut self, secret: &str) -> Reason {
        verdict(self.ask(ask(secret)).await.unwrap()).reason()
    }

    /// Why the stream ends at the next request.
    async fn end(&mut self, secret: &str) -> Status {
        let ended = self.ask(ask(secret)).await.unwrap_err();
        assert!(self.hear().await.unwrap().is_none(), "nothing comes after the end");
        ended
    }
}

fn verdict(answer: pb::StreamVerifyResponse) -> pb::VerifyResponse {
    let Some(Response(verdict)) = answer.result else { panic!("{answer:?}") };
    verdict
}

async fn tenant(site: &Site, tenant: &str) {
    site.admin().create_tenant(pb::CreateTenantRequest { tenant: tenant.into(), ..Default::default() }).await.unwrap();
}

/// A caller whose key is bound to networks and an audience.
async fn service(site: &Site) -> (Handle, Issued) {
    let key = pb::CreateKeyRequest {
        tenant: "system".into(),
        allowed_cidrs: strings(&["127.0.0.0/8"]),
        audiences: strings(&["keyward"]),
        ..new_key("Service", &["keyward.verifier"])
    };
    let issued = site.admin().issued(key).await;
    (site.caller(&issued.secret), issued)
}

#[tokio::test]
async fn answers_are_those_of_verify_in_the_order_of_the_requests() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let (caller, _) = service(&site).await;
    let mut requests = vec![];
    for number in 0..40 {
        let issued = admin.issue("Key", &["a"]).await;
        if number % 3 == 0 {
            admin.disable_key(&issued.key).await;
        }
        requests.push(pb::VerifyRequest { all_scopes: strings(&["a"]), ..ask(&issued.secret) });
        requests.push(pb::VerifyRequest { any_scopes: strings(&["b"]), explain: true, ..ask(&issued.secret) });
        requests.push(ask("garbage"));
        requests.push(ask(site.admin_secret()));
    }
    for (at, request) in requests.iter_mut().enumerate().filter(|(at, _)| at % 5 != 0) {
        request.correlation_id = format!("{}-é", at / 2);
    }
    let mut expected = vec![];
    for request in &requests {
        let verdict = caller.ask(request.clone()).await.unwrap();
        assert_eq!(verdict.correlation_id, request.correlation_id);
        expected.push(verdict);
    }
    let answers = caller.stream(stream::iter(requests.clone().into_iter().map(asking))).await.unwrap();
    let answers: Vec<_> = timeout(PATIENCE, answers.map(Result::unwrap).collect()).await.unwrap();
    assert_eq!(answers.len(), requests.len());
    for (at, (answer, expected)) in answers.into_iter().zip(expected).enumerate() {
        assert_eq!(answer.correlation_id, expected.correlation_id, "{at}");
        assert_eq!(verdict(answer), expected, "{at}");
    }
}

#[tokio::test]
async fn a_request_that_makes_no_sense_is_told_so_in_its_place_and_the_stream_goes_on() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &["a"]).await;
    let mut talk = Talk::open(&site.admin()).await;
    let named = || pb::VerifyRequest { correlation_id: "this".into(), ..ask(&issued.secret) };
    let labelled = |id: &str| pb::VerifyRequest { correlation_id: id.into(), ..ask("") };
    for (request, told, id) in [
        (None, "3 BAD_FIELDS request", ""),
        (Some(pb::VerifyRequest { all_scopes: strings(&["a.*"]), ..named() }), "3 BAD_FIELDS all_scopes[0]", "this"),
        (Some(pb::VerifyRequest { client_ip: "nowhere".into(), ..named() }), "3 BAD_FIELDS client_ip", "this"),
        (Some(pb::VerifyRequest { min_revision: u64::MAX, ..named() }), "9 REVISION_NOT_REACHED", "this"),
        (Some(pb::VerifyRequest { secret: "x".repeat(65_536), ..named() }), "8 REQUEST_TOO_LONG", "this"),
        // What is wrong with it must not come back.
        (Some(labelled(&issued.secret)), "3 BAD_FIELDS correlation_id", ""),
        (Some(labelled(&"x".repeat(65))), "3 BAD_FIELDS correlation_id", ""),
        (Some(labelled("a\nb")), "3 BAD_FIELDS correlation_id", ""),
    ] {
        talk.say(pb::StreamVerifyRequest { request }).await;
        let answer = talk.hear().await.unwrap().unwrap();
        let Some(Error(error)) = &answer.result else { panic!("{told}: {answer:?}") };
        let said = format!("{} {} {}", error.code, error.reason, error.message);
        assert!(said.starts_with(told), "{said}");
        assert!(!said.contains(&issued.secret));
        assert_eq!(answer.correlation_id, id, "{told}");
        assert_eq!(talk.reason(&issued.secret).await, Reason::Ok, "{told}");
    }
}

#[tokio::test]
async fn a_correlation_id_is_held_to_its_rules_in_every_call() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let with = |id: &str| pb::VerifyRequest { correlation_id: id.into(), ..ask(&issued.secret) };
    let longest = "x".repeat(64);
    assert_eq!(site.admin().ask(with(&longest)).await.unwrap().correlation_id, longest);
    for bad in [&*"x".repeat(65), "a\0", &issued.secret] {
        assert_eq!(bad_fields(&site.admin().ask(with(bad)).await.unwrap_err()), ["correlation_id"]);
    }
    let batch = pb::BatchVerifyRequest { requests: vec![with("one"), with(""), with("three")] };
    let results = site.admin().ask_all(batch).await.unwrap().results;
    let ids = results.into_iter().map(|result| match result.result {
        Some(pb::batch_verify_result::Result::Response(verdict)) => verdict.correlation_id,
        error => panic!("{error:?}"),
    });
    assert_eq!(ids.collect::<Vec<_>>(), ["one", "", "three"]);
}

#[tokio::test]
async fn a_key_disabled_while_a_stream_is_open_is_refused_at_its_next_request() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let issued = admin.issue("Key", &[]).await;
    let (caller, _) = service(&site).await;
    let mut talk = Talk::open(&caller).await;
    for _ in 0..50 {
        assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
        let disabled = admin.disable_key(&issued.key).await;
        let request = pb::VerifyRequest { min_revision: disabled.revision, ..ask(&issued.secret) };
        let refused = verdict(talk.ask(request).await.unwrap());
        assert_eq!(refused.reason(), Reason::Disabled);
        assert!(refused.as_of_revision >= disabled.revision);
        admin.enable_key(&issued.key).await;
    }
}

#[tokio::test]
async fn a_stream_ends_before_another_verdict_when_its_caller_loses_the_right_to_it() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    let issued = admin.issue("Key", &[]).await;

    let (caller, own) = service(&site).await;
    let mut talk = Talk::open(&caller).await;
    assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
    admin.disable_key(&own.key).await;
    let ended = talk.end(&issued.secret).await;
    assert_eq!((ended.code(), &*error_reason(&ended)), (Code::Unauthenticated, "CREDENTIAL_REFUSED"));
    assert!(ended.message().contains("disabled"), "{ended:?}");
    // A request that makes no sense is no way around it.
    admin.enable_key(&own.key).await;
    let mut talk = Talk::open(&caller).await;
    assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
    admin.revoke_key(&own.key).await;
    talk.say(pb::StreamVerifyRequest { request: None }).await;
    assert_eq!(talk.hear().await.unwrap_err().code(), Code::Unauthenticated);

    // Without the role, and without the network.
    for (changed, path, code) in [
        (pb::Key { scopes: strings(&["keyward.viewer"]), ..Default::default() }, "scopes", Code::PermissionDenied),
        (
            pb::Key { allowed_cidrs: strings(&["192.0.2.0/24"]), ..Default::default() },
            "allowed_cidrs",
            Code::Unauthenticated,
        ),
    ] {
        let (caller, own) = service(&site).await;
        let mut talk = Talk::open(&caller).await;
        assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
        let changed = pb::Key { key_id: own.key.key_id, tenant: own.key.tenant, ..changed };
        admin.update(update(&changed, &[path])).await.unwrap();
        assert_eq!(talk.end(&issued.secret).await.code(), code);
    }

    // By the clock alone, with no change of anything.
    let (caller, own) = service(&site).await;
    let until = pb::Key { expire_time: after_start(1_000), ..own.key };
    admin.update(update(&until, &["expire_time"])).await.unwrap();
    let mut talk = Talk::open(&caller).await;
    assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
    site.clock.advance_ms(999);
    assert_eq!(talk.reason(&issued.secret).await, Reason::Ok);
    site.clock.advance_ms(1);
    assert_eq!(talk.end(&issued.secret).await.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn a_stream_takes_the_role_of_a_verifier_and_stays_within_its_tenants_of_now() {
    let site = Site::in_memory().await;
    let admin = site.admin();
    tenant(&site, "acme").await;
    let ours = admin.issued(pb::CreateKeyRequest { tenant: "acme".into(), ..new_key("Ours", &[]) }).await;
    let theirs = admin.issue("Theirs", &[]).await;
    let viewer = site.with_roles(&["keyward.viewer"]).await;
    assert_eq!(viewer.stream(stream::empty()).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(site.nobody().stream(stream::empty()).await.unwrap_err().code(), Code::Unauthenticated);

    let (caller, own) = service(&site).await;
    let mut talk = Talk::open(&caller).await;
    assert_eq!(talk.reason(&ours.secret).await, Reason::Ok);
    assert_eq!(talk.reason(&theirs.secret).await, Reason::Ok);
    let narrowed = pb::Key { scopes: strings(&["keyward.verifier@acme"]), ..own.key };
    admin.update(update(&narrowed, &["scopes"])).await.unwrap();
    assert_eq!(talk.reason(&ours.secret).await, Reason::Ok);
    let unknown = verdict(talk.ask(ask(&theirs.secret)).await.unwrap());
    assert_eq!((unknown.reason(), unknown.key), (Reason::Unknown, None));
}

/// Answers are larger than requests here, so that they soon fill what lies between. Requests have 256 bytes
/// and more: of smaller frames, h2 closes the connection when it holds some thousands that nobody has read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_sends_and_does_not_read_is_held_back_and_loses_nothing() {
    const FAR_TOO_MANY: usize = 60_000;
    let mut site = Site::in_memory().await;
    let labels = (0..20).map(|number| (format!("label-{number}"), "x".repeat(100))).collect();
    let issued = site.admin().issued(pb::CreateKeyRequest { labels, ..new_key("Key", &[]) }).await;
    let app = site.app();
    let endpoint = endpoint(&app.addrs()[0]);
    let channel = endpoint.initial_stream_window_size(65_535).connect().await.unwrap();
    let caller = Handle::new(channel, Some(site.admin_secret().to_owned()));
    let Talk { requests, mut answers } = Talk::open(&caller).await;
    let mut accepted = 0;
    loop {
        let request = pb::VerifyRequest {
            correlation_id: format!("{accepted:064}"),
            audience: "x".repeat(128),
            ..ask(&issued.secret)
        };
        assert!(asking(request.clone()).encoded_len() >= 256);
        // Nobody makes room, so who waits this long waits for ever.
        match timeout(Duration::from_secs(1), requests.send(asking(request))).await {
            Ok(sent) => sent.unwrap(),
            Err(_) => break,
        }
        accepted += 1;
        assert!(accepted < FAR_TOO_MANY, "the server reads what it has no room to answer");
    }
    drop(requests);
    let mut answered = 0;
    while let Some(answer) = timeout(PATIENCE, answers.message()).await.unwrap().unwrap() {
        assert_eq!(answer.correlation_id, format!("{answered:064}"));
        assert_eq!(verdict(answer).reason(), Reason::Ok);
        answered += 1;
    }
    assert_eq!(answered, accepted);
    app.stop().await.unwrap();
}

#[tokio::test]
async fn a_stop_answers_what_was_read_and_ends_open_streams_with_unavailable() {
    let mut site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let mut idle = Talk::open(&site.admin()).await;
    assert_eq!(idle.reason(&issued.secret).await, Reason::Ok);
    // Both in one piece, so that the second has arrived when the first is answered.
    let two = [ask(&issued.secret), pb::VerifyRequest { min_revision: u64::MAX, ..ask("") }];
    let requests = stream::iter(two.into_iter().map(asking)).chain(stream::pending());
    let mut busy = site.admin().stream(requests).await.unwrap();
    assert_eq!(verdict(busy.message().await.unwrap().unwrap()).reason(), Reason::Ok);

    // The deadline of a stop is 10 s, and cuts off.
    let stopping = tokio::spawn(timeout(Duration::from_secs(5), site.app().stop()));
    let answer = timeout(PATIENCE, busy.message()).await.unwrap().unwrap().unwrap();
    let Some(Error(error)) = answer.result else { panic!("{answer:?}") };
    assert_eq!(error.reason, "REVISION_NOT_REACHED");
    for ended in [busy.message().await.unwrap_err(), idle.hear().await.unwrap_err()] {
        assert_eq!((ended.code(), &*error_reason(&ended)), (Code::Unavailable, "STOPPING"), "{ended:?}");
    }
    stopping.await.unwrap().expect("the stop is not held up").unwrap();
}

#[tokio::test]
async fn an_open_stream_is_ended_at_the_deadline_of_its_caller() {
    let site = Site::in_memory().await;
    let issued = site.admin().issue("Key", &[]).await;
    let (requests, sent) = mpsc::channel(1);
    let mut request = site.admin().request(ReceiverStream::new(sent));
    request.set_timeout(Duration::from_secs(3));
    let mut answers = KeyVerifyClient::new(site.channel()).stream_verify(request).await.unwrap().into_inner();
    requests.send(asking(ask(&issued.secret))).await.unwrap();
    assert_eq!(verdict(answers.message().await.unwrap().unwrap()).reason(), Reason::Ok);
    let ended = timeout(PATIENCE, answers.message()).await.unwrap().unwrap_err();
    assert_eq!((ended.code(), &*error_reason(&ended)), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"), "{ended:?}");
}
