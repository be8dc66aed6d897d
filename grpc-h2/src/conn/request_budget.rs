//! What a connection counts in the request budget, and what it refuses when that is spent.

use std::collections::BTreeMap;

use super::stream::{PendingCall, Stream};
use super::{Conn, SlowCall};
use crate::body::Incomplete;
use crate::call::CallSpawner;
use crate::error::ConnError;
use crate::head::RequestHead;
use crate::{FastPath, Observer, PENDING_CALL_BYTES};

/// What a pending call counts, in bytes.
pub(super) fn pending_call_bytes(head: &RequestHead) -> usize {
    PENDING_CALL_BYTES + head.bytes()
}

impl<A: FastPath, C: CallSpawner, O: Observer> Conn<A, C, O> {
    /// Updates the budget, with this many bytes that were read and not parsed. As long as it is exceeded, the
    /// youngest call whose request is not whole is refused.
    ///
    /// # Errors
    /// When no call can be refused, and the peer is unauthenticated. GOAWAY is then in the output.
    pub(crate) fn update_budget(&mut self, rest_bytes: usize) -> Result<(), ConnError> {
        self.rest_bytes = rest_bytes;
        self.shrink();
        while !self.has_room_for(0) {
            if self.refuse_youngest()? {
                continue;
            }
            if self.account.is_known() {
                // At most one read: calls that have started, and whole requests, had room.
                self.account.set_over_limit(self.budget_bytes + self.rest_bytes);
                return Ok(());
            }
            self.account.count_refusal();
            let error = ConnError::enhance_your_calm("there is no room for more of callers without a credential");
            self.goaway(self.last_answered(), error.code, error.what);
            return Err(error);
        }
        Ok(())
    }

    /// Takes room for this many bytes more. Returns false, and takes nothing, if there is none.
    pub(super) fn has_room_for(&mut self, bytes: usize) -> bool {
        let mut held = self.budget_bytes + self.rest_bytes + bytes;
        if !self.account.is_known() {
            // Everything that a peer can make grow: nothing else bounds unauthenticated peers as a whole.
            let streams = self.resets.bytes();
            // Spare capacity of the output belongs to the thread.
            held += self.header_decoder.bytes() + streams + self.out.len() + self.reply_budget.held_bytes();
        }
        self.account.try_set(held)
    }

    /// Frees spare capacity of unauthenticated connections.
    fn shrink(&mut self) {
        if self.account.is_known() {
            return;
        }
        if self.pending_calls.capacity() > 2 * self.pending_calls.len() {
            self.pending_calls.shrink_to_fit();
        }
        if self.streams.is_empty() {
            // An empty map keeps an allocation.
            self.streams = BTreeMap::new();
        }
    }

    /// Refuses the youngest call whose request is not whole, if there is one.
    pub(super) fn refuse_youngest(&mut self) -> Result<bool, ConnError> {
        let has_part = |stream: &Stream| stream.is_open() && stream.budget_bytes > stream.call_kind.call_bytes();
        let stream = self.streams.iter().rev().find(|(_, stream)| has_part(stream)).map(|(id, _)| *id);
        let pending = self.pending_calls.back().map(|pending| pending.id);
        if pending > stream {
            let Some(pending) = self.take_pending(self.pending_calls.len() - 1) else { return Ok(false) };
            self.refuse(SlowCall::of(&pending), pending.body.len(), false, Incomplete::NoRoom)?;
            return Ok(true);
        }
        let Some(stream) = stream.and_then(|id| self.streams.get_mut(&id)) else { return Ok(false) };
        self.account.count_refusal();
        let call_bytes = stream.call_kind.call_bytes();
        self.budget_bytes -= stream.budget_bytes - call_bytes;
        stream.budget_bytes = call_bytes;
        // What it had not read is released when it ends.
        if let Some(request) = stream.request() {
            request.until = None;
            request.buffer.end(Err(Incomplete::NoRoom));
        }
        Ok(true)
    }

    /// Adds a call that waits for its body.
    pub(super) fn add_pending(&mut self, mut pending: PendingCall<A::Pass>) {
        pending.budget_bytes = pending_call_bytes(&pending.head);
        self.budget_bytes += pending.budget_bytes;
        self.pending_calls.push_back(pending);
    }

    /// Removes a call that waits for its body.
    pub(super) fn take_pending(&mut self, at: usize) -> Option<PendingCall<A::Pass>> {
        let pending = self.pending_calls.remove(at)?;
        self.budget_bytes -= pending.budget_bytes;
        self.buffered_bytes -= pending.body.len();
        Some(pending)
    }

    pub(super) fn add_stream(&mut self, id: u32, stream: Stream) {
        self.budget_bytes += stream.budget_bytes;
        self.streams.insert(id, stream);
    }

    pub(super) fn remove_stream(&mut self, id: u32) {
        if let Some(stream) = self.streams.remove(&id) {
            self.budget_bytes -= stream.budget_bytes;
        }
    }
}
