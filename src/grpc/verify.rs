//! KeyVerify, by prost. What the fast path cannot answer comes here too.

use std::time::Duration;

use keyward_core::access::{Action, Caller};
use keyward_core::event::Revision;
use keyward_core::limits::BATCH_ITEMS_MAX;
use prost::Message;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use zeroize::Zeroizing;

use super::VERIFY_REQUEST_BYTES_MAX;
use super::fields::Fields;
use super::messages::{Detached, Messages};
use super::pb;
use super::query::{VerifyQuery, evaluate};
use super::session::CallerSession;
use super::state::{StateHandle, VerifyState};
use super::status::{Refusal, item_error, status};
use super::stream_verify::{Answers, answers};

/// How long a call waits for the revision it asks for.
const MIN_REVISION_WAIT: Duration = Duration::from_millis(50);

/// Items of a batch or a stream that are decided in one go.
pub(super) const TURN_ITEMS: usize = 100;

/// The service.
pub struct VerifyService {
    state: StateHandle,
    stop: CancellationToken,
}

impl VerifyService {
    /// The service over the server's state, whose streams end at a stop.
    #[must_use]
    pub fn new(state: StateHandle, stop: CancellationToken) -> Self {
        Self { state, stop }
    }
}

#[tonic::async_trait]
impl pb::key_verify_server::KeyVerify for VerifyService {
    async fn verify(&self, request: Request<pb::VerifyRequest>) -> Result<Response<pb::VerifyResponse>, Status> {
        let answered = async {
            let ready = self.state.ready()?;
            let (_, mut extensions, message) = request.into_parts();
            let mut session = extensions.remove::<CallerSession>().ok_or(Refusal::NoCredential)?;
            if message.encoded_len() > VERIFY_REQUEST_BYTES_MAX {
                return Err(Refusal::TooLong { max: VERIFY_REQUEST_BYTES_MAX });
            }
            wait_for(ready, Revision(message.min_revision)).await?;
            // The request is whole, and the wait is over: the caller may have lost the role since the head
            // came.
            let caller = session.caller(ready, Action::Verify, ready.now())?;
            verdict(ready, caller, message)
        };
        answered.await.map(logged).map_err(status)
    }

    async fn batch_verify(
        &self,
        request: Request<pb::BatchVerifyRequest>,
    ) -> Result<Response<pb::BatchVerifyResponse>, Status> {
        let answered = async {
            let ready = self.state.ready()?;
            let (_, mut extensions, message) = request.into_parts();
            let mut session = extensions.remove::<CallerSession>().ok_or(Refusal::NoCredential)?;
            let requests = message.requests;
            let mut fields = Fields::default();
            if !(1..=BATCH_ITEMS_MAX).contains(&requests.len()) {
                fields.wrong("requests", format!("must have 1 to {BATCH_ITEMS_MAX} entries"));
            }
            fields.finish(Some(()))?;
            // One wait for all items. Those whose revision is not reached by then get an error below.
            let latest = requests.iter().map(|message| message.min_revision).max().unwrap_or_default();
            let _in_time = wait_for(ready, Revision(latest)).await;
            let mut caller = session.caller(ready, Action::Verify, ready.now())?;
            let mut results = Vec::with_capacity(requests.len());
            for (at, message) in requests.into_iter().enumerate() {
                if at % TURN_ITEMS == TURN_ITEMS - 1 {
                    // Other calls have their turn.
                    tokio::task::yield_now().await;
                    caller = session.caller(ready, Action::Verify, ready.now())?;
                }
                results.push(item(ready, caller, message));
            }
            Ok(pb::BatchVerifyResponse { results })
        };
        answered.await.map(Response::new).map_err(|refusal: Refusal| status(refusal))
    }

    type StreamVerifyStream = Answers;

    async fn stream_verify(
        &self,
        request: Request<Streaming<pb::StreamVerifyRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (metadata, mut extensions, _) = request.into_parts();
        let messages = extensions.remove::<Detached>().map_or_else(Messages::empty, |body| body.messages());
        let request = Request::from_parts(metadata, extensions, messages);
        answers(self.state.clone(), &self.stop, request).map(Response::new).map_err(status)
    }
}

/// What the log has of a verdict, in the extensions of its reply.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The reason, as in the protocol.
    pub reason: &'static str,
    /// The tenant of a key that is allowed.
    pub tenant: Option<String>,
    /// The key, if it is known and the caller may see it.
    pub key_id: Option<String>,
}

fn logged(verdict: pb::VerifyResponse) -> Response<pb::VerifyResponse> {
    let key = verdict.key.as_ref();
    let decided = Decided {
        reason: verdict.reason().as_str_name(),
        tenant: key.map(|key| key.tenant.clone()).filter(|tenant| !tenant.is_empty()),
        key_id: key.map(|key| key.key_id.clone()),
    };
    let mut reply = Response::new(verdict);
    reply.extensions_mut().insert(decided);
    reply
}

fn item(ready: &VerifyState, caller: &Caller, message: pb::VerifyRequest) -> pb::BatchVerifyResult {
    let answered = match has(ready, Revision(message.min_revision)) {
        Ok(true) => verdict(ready, caller, message),
        Ok(false) => Err(Refusal::RevisionNotReached),
        Err(lost) => Err(lost),
    };
    let result = match answered {
        Ok(response) => pb::batch_verify_result::Result::Response(response),
        Err(refusal) => pb::batch_verify_result::Result::Error(item_error(&refusal)),
    };
    pb::BatchVerifyResult { result: Some(result) }
}

pub(super) async fn wait_for(ready: &VerifyState, revision: Revision) -> Result<(), Refusal> {
    if has(ready, revision)? {
        return Ok(());
    }
    let reached = ready.verifier.index().wait_for(revision);
    timeout(MIN_REVISION_WAIT, reached).await.map_err(|_| Refusal::RevisionNotReached)
}

fn has(ready: &VerifyState, revision: Revision) -> Result<bool, Refusal> {
    ready.verifier.index().has(revision).map_err(|line| Refusal::LostRevision { asked: revision, line })
}

pub(super) fn verdict(
    ready: &VerifyState,
    caller: &Caller,
    message: pb::VerifyRequest,
) -> Result<pb::VerifyResponse, Refusal> {
    let secret = Zeroizing::new(message.secret);
    let (all_scopes, any_scopes) = (borrowed(&message.all_scopes), borrowed(&message.any_scopes));
    let query = VerifyQuery {
        tenant: &message.tenant,
        all_scopes: &all_scopes,
        any_scopes: &any_scopes,
        audience: &message.audience,
        client_ip: &message.client_ip,
        mode: message.mode,
        explain: message.explain,
        correlation_id: &message.correlation_id,
        environment: &message.environment,
    };
    let presented = ready.verifier.read(&secret);
    let ruling = evaluate(ready, caller, &query, &presented, ready.now())?;
    ready.verdicts.count(caller, ruling.failure());
    ready.first_use(&ruling, &presented).into_iter().for_each(|used| ready.first_uses.note(used));
    Ok(ruling.to_pb(message.correlation_id))
}

fn borrowed(texts: &[String]) -> Vec<&str> {
    texts.iter().map(String::as_str).collect()
}
