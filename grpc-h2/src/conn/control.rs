//! Frames of the connection: SETTINGS, PING, GOAWAY, PRIORITY.

use super::{Conn, Drain, PING_DRAIN};
use crate::call::CallSpawner;
use crate::error::{ConnError, ErrorCode};
use crate::frame::{self, BITS_31, FrameHead, PAYLOAD_BYTES_MAX, flag, setting};
use crate::{FastPath, Observer};

impl<A: FastPath, C: CallSpawner, O: Observer> Conn<A, C, O> {
    pub(super) fn settings(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if head.stream != 0 {
            return Err(ConnError::protocol("SETTINGS on a stream"));
        }
        if head.has(flag::ACK) {
            return if payload.is_empty() {
                self.overhead_frame()
            } else {
                Err(ConnError::size("SETTINGS that say and ack"))
            };
        }
        let (settings, []) = payload.as_chunks::<6>() else { return Err(ConnError::size("half a setting")) };
        let mut window = None;
        for [n1, n2, v1, v2, v3, v4] in settings {
            let (name, value) = (u16::from_be_bytes([*n1, *n2]), u32::from_be_bytes([*v1, *v2, *v3, *v4]));
            self.setting(name, value)?;
            if name == setting::INITIAL_WINDOW_SIZE {
                window = Some(value);
            }
        }
        // Once, however often it is set, since it visits every stream.
        window.map_or(Ok(()), |window| self.set_peer_initial_window(window.into()))?;
        self.overhead_frame()?;
        frame::put_settings_ack(&mut self.out);
        Ok(())
    }

    fn setting(&mut self, name: u16, value: u32) -> Result<(), ConnError> {
        match name {
            setting::HEADER_TABLE_SIZE => self.encoder.limit_table(value),
            setting::ENABLE_PUSH if value > 1 => return Err(ConnError::protocol("ENABLE_PUSH is neither 0 nor 1")),
            setting::INITIAL_WINDOW_SIZE if value > BITS_31 => {
                return Err(ConnError::new(ErrorCode::FlowControl, "INITIAL_WINDOW_SIZE is beyond 2^31-1"));
            }
            // We never send frames longer than the minimum.
            setting::MAX_FRAME_SIZE if !(PAYLOAD_BYTES_MAX..1 << 24).contains(&(value as usize)) => {
                return Err(ConnError::protocol("MAX_FRAME_SIZE is out of its bounds"));
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn ping_received(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if head.stream != 0 {
            return Err(ConnError::protocol("PING on a stream"));
        }
        if payload.len() != PING_DRAIN.len() {
            return Err(ConnError::size("PING that is not of 8 bytes"));
        }
        self.overhead_frame()?;
        if !head.has(flag::ACK) {
            frame::put_ping(&mut self.out, true, payload);
        } else if payload == PING_DRAIN && self.drain == Drain::Announced {
            self.finish_drain();
        }
        Ok(())
    }

    pub(super) fn goaway_received(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if head.stream != 0 {
            return Err(ConnError::protocol("GOAWAY on a stream"));
        }
        let Some(code) = payload.get(4..).and_then(<[u8]>::first_chunk) else {
            return Err(ConnError::size("GOAWAY without a code"));
        };
        self.observer.goaway_received(u32::from_be_bytes(*code));
        self.finish_drain();
        Ok(())
    }

    pub(super) fn priority(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), ConnError> {
        if head.stream == 0 {
            return Err(ConnError::protocol("PRIORITY of the connection"));
        }
        if payload.len() != 5 {
            let error = ConnError::size("PRIORITY that is not of 5 bytes");
            return if self.is_idle(head.stream) { Err(error) } else { self.reset_for(head.stream, error.code) };
        }
        self.overhead_frame()
    }
}
