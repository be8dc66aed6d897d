//! Judges the caller again for each piece of a reply: reading a reply may take long, and a key that was
//! disabled meanwhile gets no more of it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use keyward_core::access::Action;
use pin_project_lite::pin_project;
use tonic::Status;
use tonic::body::Body;

use super::authn::Admission;
use crate::grpc::refusals;
use crate::grpc::status::{Refusal, status};

/// A piece that the caller is judged for, in bytes. Longer ones are cut.
const PIECE_BYTES_MAX: usize = 32 * 1024;

/// The body of a reply. It ends with an error when the caller loses the right to it.
pub(super) fn judged(body: Body, by: Admission) -> Body {
    if body.is_end_stream() {
        return body;
    }
    // A change that was made is told of. That its caller was disabled after it does not undo it.
    let is_free = matches!(by.action, Action::Issue | Action::ChangeState | Action::ManageTenants);
    Body::new(JudgedBody { inner: body, by, is_free, rest: Bytes::new(), ended: false })
}

pin_project! {
    struct JudgedBody {
        #[pin]
        inner: Body,
        by: Admission,
        // Whether the next piece goes out without a judgement.
        is_free: bool,
        // What has been read and not cut yet.
        rest: Bytes,
        ended: bool,
    }
}

impl HttpBody for JudgedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if this.rest.is_empty() {
            let last = match ready!(this.inner.poll_frame(cx)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        *this.rest = data;
                        None
                    }
                    Err(trailers) => Some(Some(Ok(trailers))),
                },
                end => Some(end),
            };
            if let Some(last) = last {
                *this.ended = true;
                return Poll::Ready(last);
            }
        }
        if !std::mem::take(this.is_free)
            && let Err(refusal) = judge(this.by)
        {
            *this.ended = true;
            this.rest.clear();
            let Admission { session, call, .. } = this.by;
            refusals::log(call, &session.identity().into(), &refusal);
            let mut trailers = HeaderMap::new();
            let told = status(refusal).add_header(&mut trailers);
            return Poll::Ready(Some(told.map(|()| Frame::trailers(trailers))));
        }
        let bytes = this.rest.len().min(PIECE_BYTES_MAX);
        Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(bytes)))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || (self.rest.is_empty() && self.inner.is_end_stream())
    }
}

fn judge(by: &mut Admission) -> Result<(), Refusal> {
    let Admission { state, session, action, .. } = by;
    let ready = state.ready()?;
    session.caller(ready, *action, ready.now()).map(drop)
}
