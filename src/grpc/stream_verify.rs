//! KeyVerify.StreamVerify: one verdict after another, on a stream that may stay open for days.
//!
//! It has no task and no queue: the connection polls the next answer when it has room for it, and only then
//! is the next request read. HTTP/2's windows hold back a caller that sends and does not read.

use std::pin::Pin;

use futures_util::stream::try_unfold;
use futures_util::{Stream, StreamExt};
use keyward_core::access::Action;
use keyward_core::event::Revision;
use keyward_core::limits::CORRELATION_ID_BYTES_MAX;
use prost::Message;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Status};

use super::VERIFY_REQUEST_BYTES_MAX;
use super::calls::STREAM_VERIFY;
use super::fields::Fields;
use super::pb;
use super::pb::stream_verify_response::Result as Told;
use super::refusals;
use super::session::CallerSession;
use super::state::StateHandle;
use super::status::{Refusal, item_error, status};
use super::verify::{TURN_ITEMS, verdict, wait_for};

/// The answers of a stream, in the order of its requests.
pub type Answers = Pin<Box<dyn Stream<Item = Result<pb::StreamVerifyResponse, Status>> + Send>>;

/// Answers a stream of requests, until it ends or `stop` is cancelled.
///
/// # Errors
/// When the request does not say who calls.
pub fn answers(
    state: StateHandle,
    stop: &CancellationToken,
    request: Request<impl Stream<Item = Result<pb::StreamVerifyRequest, Status>> + Send + Unpin + 'static>,
) -> Result<Answers, Refusal> {
    let (_, mut extensions, requests) = request.into_parts();
    let session = extensions.remove::<CallerSession>().ok_or(Refusal::NoCredential)?;
    // A token of its own: a stream that waits registers there, and would meet all others on the common one's
    // lock. In a box, because it goes from one answer to the next by value.
    let open = Box::new(Open { state, session, requests, stop: stop.child_token(), in_turn: 0 });
    Ok(Box::pin(try_unfold(open, async |mut open| Ok(open.next().await?.map(|answer| (answer, open))))))
}

/// An open stream.
struct Open<R> {
    state: StateHandle,
    session: CallerSession,
    requests: R,
    stop: CancellationToken,
    /// Requests that were answered in this turn.
    in_turn: usize,
}

impl<R: Stream<Item = Result<pb::StreamVerifyRequest, Status>> + Unpin> Open<R> {
    /// The answer to the next request. `None`: there will be none.
    async fn next(&mut self) -> Result<Option<pb::StreamVerifyResponse>, Status> {
        if self.in_turn == TURN_ITEMS {
            self.in_turn = 0;
            tokio::task::yield_now().await;
            // A stream that never waits must see the stop too.
            if self.stop.is_cancelled() {
                return Err(status(Refusal::Stopping));
            }
        }
        self.in_turn += 1;
        let message = tokio::select! {
            // What has come is answered first.
            biased;
            message = self.requests.next() => message.transpose()?,
            () = self.stop.cancelled() => return Err(status(Refusal::Stopping)),
        };
        let Some(message) = message else { return Ok(None) };
        self.answer(message).await.map(Some).map_err(|refusal| {
            refusals::log(STREAM_VERIFY, &self.session.identity().into(), &refusal);
            status(refusal)
        })
    }

    async fn answer(&mut self, message: pb::StreamVerifyRequest) -> Result<pb::StreamVerifyResponse, Refusal> {
        let ready = self.state.ready()?;
        let correlation_id = message.request.as_ref().map(|request| request.correlation_id.clone()).unwrap_or_default();
        let request = match askable(message) {
            Ok(request) => wait_for(ready, Revision(request.min_revision)).await.map(|()| request),
            Err(refusal) => Err(refusal),
        };
        // After the wait, in which the caller may have lost the role.
        let caller = self.session.caller(ready, Action::Verify, ready.now())?;
        let (result, correlation_id) = match request.and_then(|request| verdict(ready, caller, request)) {
            Ok(response) => (Told::Response(response), correlation_id),
            Err(refusal) => (Told::Error(item_error(&refusal)), if_sound(correlation_id)),
        };
        Ok(pb::StreamVerifyResponse { result: Some(result), correlation_id })
    }
}

fn askable(message: pb::StreamVerifyRequest) -> Result<pb::VerifyRequest, Refusal> {
    let mut fields = Fields::default();
    if message.request.is_none() {
        fields.wrong("request", "must be given");
    }
    let request = fields.finish(message.request)?;
    if request.encoded_len() > VERIFY_REQUEST_BYTES_MAX {
        return Err(Refusal::TooLong { max: VERIFY_REQUEST_BYTES_MAX });
    }
    Ok(request)
}

/// A correlation id that breaks no rule, or none: nobody is sent a secret, or 64 KiB, for their error.
fn if_sound(correlation_id: String) -> String {
    let mut fields = Fields::default();
    let read = fields.opaque_text("correlation_id", correlation_id, CORRELATION_ID_BYTES_MAX);
    fields.finish(Some(read)).unwrap_or_default()
}
