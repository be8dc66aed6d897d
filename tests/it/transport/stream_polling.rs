//! A stream of verdicts, polled by hand, without a network.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::{Stream, StreamExt, poll, stream};
use keyward::grpc::pb::stream_verify_response::Result::{Error, Response};
use keyward::grpc::pb::{self, Reason};
use keyward::grpc::session::CallerSession;
use keyward::grpc::state::{StateHandle, VerifyState};
use keyward::grpc::stream_verify::{Answers, answers};
use keyward::index::Index;
use keyward::metrics::{MetricSources, Metrics};
use keyward::services::Demand;
use keyward::verify::Verifier;
use keyward_core::clock::ManualClock;
use keyward_core::digest::{Pepper, PepperRing};
use keyward_core::event::{Record, Revision};
use keyward_core::id::{Environment, SecretPrefix, TenantId};
use keyward_core::identity::{Peer, PeerIdentity};
use keyward_core::record::{KeyPolicy, KeyRecord, KeySpec, State, StoredSecret};
use keyward_core::scope::Scope;
use keyward_core::secret::IssuedSecret;
use keyward_core::testing::SeededEntropy;
use tokio_util::sync::CancellationToken;
use tonic::codec::{Codec, EncodeBody};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;
use zeroize::Zeroizing;

use crate::api::stream::asking;
use crate::support::harness::{START, ask};
use crate::support::local_store::key;

/// What a stream is answered from: an index that the test fills, with the key of a verifier.
struct Desk {
    state: StateHandle,
    index: Arc<Index>,
    stop: CancellationToken,
    metrics: Metrics,
    verifier: KeyRecord,
    secret: Zeroizing<String>,
}

impl Desk {
    fn new() -> Self {
        let entropy = Arc::new(SeededEntropy::new(3));
        let peppers = Arc::new(PepperRing::new(vec![Pepper::new(Zeroizing::new([7; 32]))]).unwrap());
        let issued =
            IssuedSecret::generate(&SecretPrefix::parse("kw").unwrap(), &Environment::live(), &*entropy).unwrap();
        let digest = peppers.current().digest(&issued.as_presented());
        let base = key(1);
        let verifier = KeyRecord {
            tenant: TenantId::system(),
            secret: StoredSecret { digest, pepper: peppers.current().id(), ..base.secret },
            spec: KeySpec {
                policy: KeyPolicy { scopes: vec![Scope::parse("keyward.verifier").unwrap()], ..KeyPolicy::default() },
                ..base.spec
            },
            revision: Revision(1),
            ..base
        };
        let index = Arc::new(Index::default());
        let zero = || -> keyward::metrics::ValueFn { Box::new(|| 0) };
        let sources = MetricSources {
            keys: zero(),
            revision: zero(),
            connections: zero(),
            writable: zero(),
            ..MetricSources::default()
        };
        let metrics = Metrics::new(std::iter::empty(), keyward::fast_path::PATHS, sources);
        let state = StateHandle::default();
        state.open(VerifyState {
            verifier: Verifier::new(index.clone(), peppers.clone()),
            peppers,
            verdicts: metrics.verdicts(),
            first_uses: keyward::first_use::FirstUses::default(),
            identities: Arc::default(),
            clock: Arc::new(ManualClock::at(START)),
        });
        let desk = Self { state, index, stop: CancellationToken::new(), metrics, verifier, secret: issued.reveal() };
        desk.fold(&desk.verifier);
        desk
    }

    /// Applies the next change.
    fn fold(&self, key: &KeyRecord) {
        let next = Revision(self.index.revision().0 + 1);
        self.index.apply_records(&[Record::Key(Arc::new(KeyRecord { revision: next, ..key.clone() }))]);
        self.index.advance_to(next);
    }

    /// The answers to a stream of requests of the verifier.
    fn answers(&self, requests: impl Stream<Item = pb::StreamVerifyRequest> + Send + 'static) -> Answers {
        self.answers_to(&Peer::default(), requests)
    }

    /// The same, on a connection.
    fn answers_to(
        &self,
        peer: &Peer,
        requests: impl Stream<Item = pb::StreamVerifyRequest> + Send + 'static,
    ) -> Answers {
        let mut codec = ProstCodec::<pb::StreamVerifyRequest, pb::StreamVerifyRequest>::default();
        let body = EncodeBody::new_client(codec.encoder(), requests.map(Ok), None, None);
        let mut request = Request::new(Streaming::new_request(codec.decoder(), body, None, None));
        let ready = self.state.ready().unwrap();
        let session = CallerSession::find(ready, Some(&self.secret), peer, Demand::Either).unwrap();
        request.extensions_mut().insert(session);
        answers(self.state.clone(), &self.stop, request).unwrap()
    }
}

fn numbered(number: usize) -> pb::StreamVerifyRequest {
    asking(pb::VerifyRequest { correlation_id: number.to_string(), ..ask("garbage") })
}

/// The answers that come without waiting, and what follows: nothing yet, or the end.
async fn at_once(answers: &mut Answers) -> (Vec<pb::StreamVerifyResponse>, Poll<Option<Status>>) {
    let mut given = vec![];
    loop {
        assert!(given.len() <= 1_000, "it never pauses");
        match poll!(answers.next()) {
            Poll::Ready(Some(Ok(answer))) => given.push(answer),
            Poll::Ready(Some(Err(status))) => return (given, Poll::Ready(Some(status))),
            Poll::Ready(None) => return (given, Poll::Ready(None)),
            Poll::Pending => return (given, Poll::Pending),
        }
    }
}

#[tokio::test]
async fn a_stream_that_never_pauses_gives_way_after_100_verdicts_and_hears_of_a_stop() {
    let desk = Desk::new();
    let mut answers = desk.answers(stream::iter(0..).map(numbered));
    for turn in 0..3 {
        let (given, next) = at_once(&mut answers).await;
        assert!(next.is_pending());
        let numbers: Vec<usize> = given.iter().map(|answer| answer.correlation_id.parse().unwrap()).collect();
        assert_eq!(numbers, (turn * 100..(turn + 1) * 100).collect::<Vec<_>>());
    }
    desk.stop.cancel();
    let (given, Poll::Ready(Some(ended))) = at_once(&mut answers).await else { panic!("it goes on") };
    assert!(given.len() <= 100);
    assert_eq!(ended.code(), Code::Unavailable);
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn what_has_come_before_a_stop_is_answered_first() {
    let desk = Desk::new();
    let mut answers = desk.answers(stream::iter(0..3).map(numbered).chain(stream::pending()));
    desk.stop.cancel();
    let (given, Poll::Ready(Some(ended))) = at_once(&mut answers).await else { panic!("it goes on") };
    assert_eq!(given.len(), 3);
    assert_eq!(ended.code(), Code::Unavailable);
}

#[tokio::test]
async fn no_more_is_read_than_is_answered() {
    let desk = Desk::new();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = taken.clone();
    // Each is larger than the frames that carry it.
    let large = move |_| {
        counted.fetch_add(1, Ordering::Relaxed);
        asking(ask(&"x".repeat(40_000)))
    };
    let mut answers = desk.answers(stream::iter(0..).map(large));
    for answered in 1..50 {
        answers.next().await.unwrap().unwrap();
        assert!(taken.load(Ordering::Relaxed) <= answered + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_its_revision_and_holds_back_only_its_own_stream() {
    let desk = Desk::new();
    let waits = |min_revision| asking(pb::VerifyRequest { min_revision, ..ask(&desk.secret) });
    let next = desk.index.revision().0 + 1;
    let mut held = desk.answers(stream::iter([waits(next), waits(next + 1), waits(0)]));
    let mut free = desk.answers(stream::iter([waits(0)]));
    assert!(poll!(held.next()).is_pending());
    assert!(poll!(free.next()).is_ready());
    desk.fold(&key(2));
    let Some(Response(verdict)) = held.next().await.unwrap().unwrap().result else { panic!() };
    assert_eq!(verdict.as_of_revision, next);
    // The other one does not come.
    let began = tokio::time::Instant::now();
    let Some(Error(error)) = held.next().await.unwrap().unwrap().result else { panic!() };
    assert_eq!(error.reason, "REVISION_NOT_REACHED");
    assert!(began.elapsed() >= Duration::from_millis(50) && began.elapsed() < Duration::from_millis(60));
    let Some(Response(_)) = held.next().await.unwrap().unwrap().result else { panic!() };
    assert!(held.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_is_disabled_while_a_request_waits_gets_no_verdict() {
    let desk = Desk::new();
    let min_revision = desk.index.revision().0 + 1;
    let mut answers = desk.answers(stream::iter([asking(pb::VerifyRequest { min_revision, ..ask("garbage") })]));
    assert!(poll!(answers.next()).is_pending());
    let mut disabled = desk.verifier.clone();
    disabled.spec.policy.state = State::Disabled;
    desk.fold(&disabled);
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::Unauthenticated);
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn a_caller_whose_certificate_is_withdrawn_gets_no_verdict_though_the_connection_is_still_open() {
    let desk = Desk::new();
    let identity = Arc::new(PeerIdentity::new(None, None));
    let peer = Peer::new(None, Some(identity.clone()));
    let mut answers = desk.answers_to(&peer, stream::iter(0..).map(numbered));
    answers.next().await.unwrap().unwrap();
    identity.withdraw();
    assert_eq!(answers.next().await.unwrap().unwrap_err().code(), Code::Unauthenticated);
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn changes_of_other_keys_do_not_end_a_stream() {
    let desk = Desk::new();
    let mut answers = desk.answers(stream::iter(0..10).map(numbered));
    for number in 0..10 {
        let Some(Response(verdict)) = answers.next().await.unwrap().unwrap().result else { panic!() };
        assert_eq!(verdict.reason(), Reason::Malformed);
        desk.fold(&key(number));
    }
    assert!(answers.next().await.is_none());
}

#[tokio::test]
async fn each_verdict_of_a_stream_counts_and_an_error_does_not() {
    let desk = Desk::new();
    let wrong = asking(pb::VerifyRequest { client_ip: "nowhere".into(), ..ask("garbage") });
    let mut answers = desk.answers(stream::iter((0..7).map(numbered)).chain(stream::iter([wrong])));
    let (given, _) = at_once(&mut answers).await;
    assert_eq!(given.len(), 8);
    let text = desk.metrics.text(keyward::metrics::Format::Text).unwrap();
    let counted = text.lines().filter(|line| line.starts_with("keyward_verdicts_total") && !line.ends_with(" 0"));
    assert_eq!(counted.collect::<Vec<_>>(), ["keyward_verdicts_total{reason=\"MALFORMED\"} 7"]);
}
