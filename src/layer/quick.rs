//! The short way for Verify and BatchVerify: what most calls are is answered without the router, without a
//! task and without copying more of the request than a secret that is read ahead, where its frames are read.
//!
//! Only a call that is answered with a verdict goes this way. Whatever is out of the ordinary (a caller to be
//! refused, a field that breaks a rule, a revision to wait for, an explanation, a long message) takes the
//! long way from its beginning, so that there is one place that refuses. A verdict on both ways is made by
//! the same code.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use keyward_core::access::{Action, Caller};
use keyward_core::clock::Now;
use tonic::Code;

use super::authn::credential_of;
use super::deadline::read_timeout;
use super::log;
use crate::grpc::ready::{Gate, Ready};
use crate::grpc::standing::Standing;
use crate::grpc::verify::{quick_batch_reply, quick_reply};
use crate::grpc::wire::secret_of;
use crate::http2::{AtOnce, Head, Unfit};
use crate::metrics::{Call, Calls, Detour, Ways};
use crate::net::{Mark, Peer};
use crate::verify::foreseen::Foreseen;

/// The calls that have a short way.
pub const PATHS: [&str; 2] = ["/keyward.v1.KeyVerify/Verify", "/keyward.v1.KeyVerify/BatchVerify"];

/// Makes the body of a reply of that of a request, if that can be done at once.
type ToReply = fn(&Ready, &Caller, &mut Foreseen, &[u8]) -> Result<Bytes, Detour>;

/// What answers each of them.
const REPLIES: [ToReply; 2] = [quick_reply, quick_batch_reply];

/// Answers Verify and BatchVerify on one connection.
pub struct QuickVerify {
    gate: Gate,
    peer: Option<IpAddr>,
    connection: Mark,
    calls: [Arc<Call>; 2],
    ways: [Ways; 2],
    known: Option<Known>,
    /// The last head that was admitted, and for which call.
    admitted: Option<(u64, usize)>,
    /// The time at which the caller was last found to be good.
    good_at: Option<Now>,
    /// When what is gone through now was read.
    read_at: Instant,
    /// The same by the clock, once somebody has asked for it.
    now: Option<Now>,
    /// How many calls have been answered of what was read, whose heads were read with it.
    answered: [u64; 2],
    /// Secrets of calls that come next.
    foreseen: Foreseen,
}

/// The caller that a connection's last call had.
struct Known {
    /// The number that heads with its credential have. The credential itself is in the head, and nowhere else.
    credential: u64,
    standing: Arc<Standing>,
}

/// What admits a call.
pub struct Pass {
    which: usize,
    /// The caller as they were judged at `judged_at`. When the body is whole they may have lost the role.
    standing: Arc<Standing>,
    judged_at: Now,
    /// When its head was read.
    began: Instant,
}

impl QuickVerify {
    /// The short way on a connection of this peer. The connection is marked when it has had a credential that works.
    #[must_use]
    pub fn new(gate: Gate, calls: &Calls, ways: [Ways; 2], peer: Peer, connection: Mark) -> Self {
        Self {
            gate,
            peer: peer.ip(),
            connection,
            calls: PATHS.map(|path| calls.of(path)),
            ways,
            known: None,
            admitted: None,
            good_at: None,
            read_at: Instant::now(),
            now: None,
            answered: [0; 2],
            foreseen: Foreseen::default(),
        }
    }

    /// Which call a head is of, if it may take the short way and its caller is good.
    fn which(&mut self, head: &Head) -> Result<usize, Detour> {
        if log::is_on() {
            return Err(Detour::LogLevel);
        }
        let ready = self.gate.ready().map_err(|_| Detour::Starting)?;
        let now = *self.now.get_or_insert_with(|| ready.now());
        if let (Some((serial, which)), Some(known)) = (self.admitted, &self.known)
            && serial == head.serial()
            && known.standing.is_current(ready)
            && (self.good_at == Some(now) || known.standing.unchanged(ready, None, now).is_some())
        {
            self.good_at = Some(now);
            return Ok(which);
        }
        (self.admitted, self.good_at) = (None, None);
        // Of another call nothing is counted here.
        let which = which_of(head).ok_or(Detour::Head)?;
        // The answer does not wait, so the time is of no matter here, save that it must be one.
        let is_bad = |timeout: Option<&[u8]>| timeout.and_then(read_timeout).is_none();
        if head.method() != b"POST"
            || !head.content_type().is_some_and(is_grpc)
            || head.has_encoding()
            || head.timeout().is_some_and(is_bad)
        {
            return Err(Detour::Head);
        }
        let known = match &mut self.known {
            Some(known) if known.is(head, self.peer) => known,
            known => {
                let credential = head.authorization().and_then(credential_of).ok_or(Detour::Caller)?;
                let mut standing = Standing::find(ready, credential, self.peer).map_err(|_| Detour::Caller)?;
                standing.works(ready, now).map_err(|_| Detour::Caller)?;
                self.connection.becomes_known();
                let standing = Arc::new(standing);
                known.insert(Known { credential: head.credential_serial(), standing })
            }
        };
        if !known.standing.is_current(ready) {
            Arc::make_mut(&mut known.standing).refresh(ready).map_err(|_| Detour::Caller)?;
        }
        let caller = known.standing.unchanged(ready, None, now).ok_or(Detour::Caller)?;
        if !caller.may_somewhere(Action::Verify) {
            return Err(Detour::Caller);
        }
        (self.admitted, self.good_at) = (Some((head.serial(), which)), Some(now));
        Ok(which)
    }

    /// Counts a call that takes the long way, if it is one that has a short one.
    #[cold]
    fn count_detour(&self, head: &Head, why: Detour) {
        if let Some(which) = which_of(head) {
            self.ways[which].detour(why);
        }
    }

    fn reply(&mut self, pass: &Pass, body: &[u8]) -> Result<Bytes, Detour> {
        let ready = self.gate.ready().map_err(|_| Detour::Starting)?;
        let now = *self.now.get_or_insert_with(|| ready.now());
        // The body may have come long after the head. A caller who has changed meanwhile takes the long way,
        // which refuses.
        let caller = pass.standing.unchanged(ready, Some(pass.judged_at), now).ok_or(Detour::Caller)?;
        REPLIES[pass.which](ready, caller, &mut self.foreseen, body)
    }
}

/// Which call a head is of.
fn which_of(head: &Head) -> Option<usize> {
    PATHS.iter().position(|path| path.as_bytes() == head.path())
}

impl Known {
    /// Whether the credential and where it comes from are these: one connection may carry the calls of several callers.
    fn is(&self, head: &Head, peer: Option<IpAddr>) -> bool {
        self.standing.peer() == peer && self.credential == head.credential_serial()
    }
}

impl AtOnce for QuickVerify {
    type Pass = Pass;

    fn begin(&mut self, at: Instant) {
        // One reading of each clock for all that was read together.
        self.read_at = at;
        self.now = None;
    }

    fn foresee<'a>(&mut self, bodies: impl Iterator<Item = &'a [u8]>) {
        let Ok(ready) = self.gate.ready() else { return };
        // Nothing is done for a peer of whom no caller is known yet.
        if self.known.is_none() || !ready.verifier.index().is_large() {
            return;
        }
        let mut secrets = bodies.filter_map(secret_of);
        // One alone is read as fast when its turn comes.
        if let (Some(first), Some(second)) = (secrets.next(), secrets.next()) {
            self.foreseen.read(&ready.verifier, [first, second].into_iter().chain(secrets));
        }
    }

    fn is_known(&mut self, head: &Head) -> bool {
        let (Ok(ready), Some(value)) = (self.gate.ready(), head.authorization()) else { return false };
        let now = *self.now.get_or_insert_with(|| ready.now());
        let standing = credential_of(value).and_then(|credential| Standing::find(ready, credential, self.peer).ok());
        let is_known = standing.is_some_and(|mut standing| standing.works(ready, now).is_ok());
        if is_known {
            self.connection.becomes_known();
        }
        is_known
    }

    fn admit(&mut self, head: &Head) -> Option<Pass> {
        let which = match self.which(head) {
            Ok(which) => which,
            Err(why) => {
                self.count_detour(head, why);
                return None;
            }
        };
        let standing = self.known.as_ref()?.standing.clone();
        Some(Pass { which, standing, judged_at: self.good_at?, began: self.read_at })
    }

    fn answer(&mut self, pass: &Pass, body: &[u8]) -> Option<Bytes> {
        let reply = self.reply(pass, body).map_err(|why| self.ways[pass.which].detour(why)).ok()?;
        if pass.began == self.read_at {
            self.answered[pass.which] += 1;
        } else {
            self.ways[pass.which].at_once(1);
            self.calls[pass.which].count(Code::Ok.into(), pass.began.elapsed());
        }
        Some(reply)
    }

    fn lets_pass(&mut self, head: &Head, why: Unfit) {
        let why = match why {
            Unfit::NoRoom => Detour::PeerReadsSlowly,
            Unfit::Long => Detour::LongRequest,
        };
        self.count_detour(head, why);
    }

    fn give_up(&mut self, pass: &Pass) {
        self.calls[pass.which].count(Code::Cancelled.into(), pass.began.elapsed());
    }

    fn caller(&self) -> u64 {
        self.known.as_ref().map_or(0, |known| known.standing.number())
    }

    fn end(&mut self) {
        self.foreseen.clear();
        if self.answered == [0; 2] {
            return;
        }
        // They came together and their replies leave together.
        let took = self.read_at.elapsed();
        for ((call, ways), answered) in self.calls.iter().zip(&self.ways).zip(&mut self.answered) {
            match std::mem::take(answered) {
                0 => {}
                answered => {
                    ways.at_once(answered);
                    call.count_many(answered, Code::Ok.into(), took);
                }
            }
        }
    }
}

fn is_grpc(content_type: &[u8]) -> bool {
    matches!(content_type, b"application/grpc" | b"application/grpc+proto")
}
