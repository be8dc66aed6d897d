//! The fast path for Verify and BatchVerify: most calls are answered from the bytes that were read, without
//! routing, a task, or maps of headers.
//!
//! It answers with verdicts alone. All else takes the slow path from its beginning, so that refusals are
//! written in one place: a caller to be refused, a field that breaks a rule, a revision to wait for, an
//! explanation, a long message. Both paths decide with [`crate::grpc::query::evaluate`]. [`codec`] reads and
//! writes the messages, [`prefetch`] hashes the secrets that come together.

pub mod codec;
pub mod prefetch;
mod reply;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use grpc_h2::{Bypass, FastPath, RequestHead};
use keyward_core::access::Action;
use keyward_core::clock::Now;
use keyward_core::identity::Peer;
use tonic::Code;

use self::codec::secret_of;
use self::prefetch::Prefetched;
use self::reply::ToReply;
use crate::grpc::calls::{BATCH_VERIFY, VERIFY, rpc};
use crate::grpc::session::CallerSession;
use crate::grpc::state::StateHandle;
use crate::layer::authn::credential_of;
use crate::layer::deadline::read_timeout;
use crate::layer::log::{self, AccessLog};
use crate::metrics::{CallMetrics, Calls, FastPathCounts, SlowPathReason};
use crate::server::slots::CredentialMark;
use crate::services::{FORWARDED_FOR, ServiceGroup, Terms};

/// The calls that have a fast path.
pub const PATHS: [&str; 2] = [VERIFY, BATCH_VERIFY];

/// Answers Verify and BatchVerify on one connection.
pub struct FastVerify {
    state: StateHandle,
    /// What holds where the connection came in.
    terms: Terms,
    access_log: AccessLog,
    /// Calls that the access log has chosen from.
    calls_seen: u64,
    peer: Peer,
    connection: CredentialMark,
    calls: [FastCall; 2],
    known: Option<Known>,
    /// The last head that was admitted, and for which call.
    admitted: Option<(u64, usize)>,
    /// The time at which the caller was last found to be good.
    good_at: Option<Now>,
    /// When what is gone through now was read.
    read_at: Instant,
    /// The same by the clock, once somebody has asked for it.
    now: Option<Now>,
    /// Secrets of calls that come next.
    prefetched: Prefetched,
}

/// One of the calls, on one connection.
struct FastCall {
    path: &'static str,
    /// What its caller must be allowed somewhere.
    action: Option<Action>,
    reply: ToReply,
    times: Arc<CallMetrics>,
    ways: FastPathCounts,
    /// Calls answered of what is gone through now, whose heads were read with it.
    answered: u64,
}

/// The caller that a connection's last call had.
struct Known {
    /// The number that heads with its credential have. The credential itself is in the head, and nowhere
    /// else.
    credential: u64,
    session: Arc<CallerSession>,
}

/// What admits a call.
pub struct Pass {
    which: usize,
    /// The caller as they were judged at `judged_at`. When the body is whole they may have lost the role.
    session: Arc<CallerSession>,
    judged_at: Now,
    /// When its head was read.
    began: Instant,
}

impl FastVerify {
    /// The fast path on a connection of this peer, whose listener may serve no verdicts. The connection is
    /// marked when it has had a credential that works.
    #[must_use]
    pub fn new(
        state: StateHandle,
        (terms, access_log): (Terms, AccessLog),
        calls: &Calls,
        ways: [FastPathCounts; 2],
        peer: Peer,
        connection: CredentialMark,
    ) -> Self {
        let [verify, batch_verify] = ways;
        let call = |path, reply, ways| FastCall {
            path,
            action: rpc(path).action,
            reply,
            times: calls.of(path),
            ways,
            answered: 0,
        };
        let calls =
            [call(VERIFY, reply::verify as ToReply, verify), call(BATCH_VERIFY, reply::batch_verify, batch_verify)];
        Self {
            state,
            terms,
            access_log,
            calls_seen: 0,
            peer,
            connection,
            calls,
            known: None,
            admitted: None,
            good_at: None,
            read_at: Instant::now(),
            now: None,
            prefetched: Prefetched::default(),
        }
    }

    /// Which call a head is of, if it may take the fast path and its caller is good.
    fn which(&mut self, head: &RequestHead) -> Result<usize, SlowPathReason> {
        if log::is_on() && self.find(head).is_some() && log::takes_sample() {
            return Err(SlowPathReason::LogLevel);
        }
        if self.access_log.chooses(&mut self.calls_seen) && self.find(head).is_some() {
            return Err(SlowPathReason::AccessLog);
        }
        let ready = self.state.ready().map_err(|_| SlowPathReason::Starting)?;
        let now = *self.now.get_or_insert_with(|| ready.now());
        if let (Some((serial, which)), Some(known)) = (self.admitted, &self.known)
            && serial == head.serial()
            && known.session.is_current(ready)
            && (self.good_at == Some(now) || known.session.unchanged(ready, None, now).is_some())
        {
            known.session.note_first_use(ready);
            self.good_at = Some(now);
            return Ok(which);
        }
        (self.admitted, self.good_at) = (None, None);
        // Of another call nothing is counted here.
        let which = self.find(head).ok_or(SlowPathReason::Head)?;
        // The answer does not wait, so the time is of no matter here, save that it must be one.
        let is_bad = |timeout: Option<&[u8]>| timeout.and_then(read_timeout).is_none();
        if head.method() != b"POST"
            || !head.content_type().is_some_and(is_grpc)
            || head.has_encoding()
            || head.timeout().is_some_and(is_bad)
        {
            return Err(SlowPathReason::Head);
        }
        let from = self.address_of(head);
        let known = match &mut self.known {
            // One connection may carry the calls of several callers.
            Some(known) if known.credential == head.credential_serial() && known.session.peer() == from => known,
            known => {
                let credential = credential_in(head).map_err(|NoneOfOurs| SlowPathReason::Caller)?;
                let peer = self.peer.clone().on_behalf_of(from);
                let mut session = CallerSession::find(ready, credential, &peer, self.terms.demand)
                    .map_err(|_| SlowPathReason::Caller)?;
                session.works(ready, now).map_err(|_| SlowPathReason::Caller)?;
                self.connection.mark_known();
                let session = Arc::new(session);
                known.insert(Known { credential: head.credential_serial(), session })
            }
        };
        if !known.session.is_current(ready) {
            Arc::make_mut(&mut known.session).refresh(ready).map_err(|_| SlowPathReason::Caller)?;
        }
        let caller = known.session.unchanged(ready, None, now).ok_or(SlowPathReason::Caller)?;
        if !self.calls[which].action.is_some_and(|action| caller.may_in_any_tenant(action)) {
            return Err(SlowPathReason::Caller);
        }
        (self.admitted, self.good_at) = (Some((head.serial(), which)), Some(now));
        Ok(which)
    }

    /// Where a call comes from.
    fn address_of(&self, head: &RequestHead) -> Option<IpAddr> {
        self.terms.address_of(&self.peer, || head.values(FORWARDED_FOR.as_bytes()))
    }

    /// Which of the calls a head is of.
    fn find(&self, head: &RequestHead) -> Option<usize> {
        self.calls
            .iter()
            .position(|call| call.path.as_bytes() == head.path())
            .filter(|_| self.terms.services.has(ServiceGroup::Verify))
    }

    /// Counts a call that takes the slow path, if it is one that has a fast one.
    #[cold]
    fn count_detour(&self, head: &RequestHead, why: SlowPathReason) {
        if let Some(which) = self.find(head) {
            self.calls[which].ways.slow(why);
        }
    }

    fn reply(&mut self, pass: &Pass, body: &[u8]) -> Result<Bytes, SlowPathReason> {
        let ready = self.state.ready().map_err(|_| SlowPathReason::Starting)?;
        let now = *self.now.get_or_insert_with(|| ready.now());
        // The body may have come long after the head. A caller who has changed meanwhile takes the slow path,
        // which refuses.
        let caller = pass.session.unchanged(ready, Some(pass.judged_at), now).ok_or(SlowPathReason::Caller)?;
        (self.calls[pass.which].reply)(ready, caller, &mut self.prefetched, body)
    }
}

impl FastPath for FastVerify {
    type Pass = Pass;

    fn begin_batch(&mut self, at: Instant) {
        // One reading of each clock for all that was read together.
        self.read_at = at;
        self.now = None;
    }

    fn prefetch<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        let Ok(ready) = self.state.ready() else { return };
        // Nothing is done for a peer of whom no caller is known yet.
        if self.known.is_none() || !ready.verifier.index().is_large() {
            return;
        }
        let mut secrets = bodies.filter_map(secret_of);
        // One alone is read as fast when its turn comes.
        if let (Some(first), Some(second)) = (secrets.next(), secrets.next()) {
            self.prefetched.read(&ready.verifier, [first, second].into_iter().chain(secrets));
        }
    }

    fn is_known(&mut self, head: &RequestHead) -> bool {
        let (Ok(ready), Ok(credential)) = (self.state.ready(), credential_in(head)) else { return false };
        let now = *self.now.get_or_insert_with(|| ready.now());
        let peer = self.peer.clone().on_behalf_of(self.address_of(head));
        let session = CallerSession::find(ready, credential, &peer, self.terms.demand).ok();
        let is_known = session.is_some_and(|mut session| session.works(ready, now).is_ok());
        if is_known {
            self.connection.mark_known();
        }
        is_known
    }

    fn admit(&mut self, head: &RequestHead) -> Option<Pass> {
        let which = match self.which(head) {
            Ok(which) => which,
            Err(why) => {
                self.count_detour(head, why);
                return None;
            }
        };
        let session = self.known.as_ref()?.session.clone();
        Some(Pass { which, session, judged_at: self.good_at?, began: self.read_at })
    }

    fn answer(&mut self, pass: &Pass, body: &[u8]) -> Option<Bytes> {
        let reply = self.reply(pass, body).map_err(|why| self.calls[pass.which].ways.slow(why)).ok()?;
        let call = &mut self.calls[pass.which];
        if pass.began == self.read_at {
            call.answered += 1;
        } else {
            call.ways.fast(1);
            call.times.count(Code::Ok.into(), pass.began.elapsed());
        }
        Some(reply)
    }

    fn on_bypass(&mut self, head: &RequestHead, why: Bypass) {
        let why = match why {
            Bypass::RepliesPending => SlowPathReason::PeerReadsSlowly,
            Bypass::RequestTooLong => SlowPathReason::LongRequest,
        };
        self.count_detour(head, why);
    }

    fn on_cancel(&mut self, pass: &Pass) {
        self.calls[pass.which].times.count(Code::Cancelled.into(), pass.began.elapsed());
    }

    fn caller(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.session.number())
    }

    fn end_batch(&mut self) {
        self.prefetched.clear();
        // They came together and their replies leave together.
        let mut took = None;
        for call in self.calls.iter_mut().filter(|call| call.answered > 0) {
            let answered = std::mem::take(&mut call.answered);
            call.ways.fast(answered);
            call.times.count_many(answered, Code::Ok.into(), *took.get_or_insert_with(|| self.read_at.elapsed()));
        }
    }
}

/// A head's `authorization` is no credential of ours.
struct NoneOfOurs;

/// The credential in a head. `None`: it has none.
fn credential_in(head: &RequestHead) -> Result<Option<&str>, NoneOfOurs> {
    if !head.has_authorization() {
        return Ok(None);
    }
    head.authorization().and_then(credential_of).map(Some).ok_or(NoneOfOurs)
}

fn is_grpc(content_type: &[u8]) -> bool {
    matches!(content_type, b"application/grpc" | b"application/grpc+proto")
}
