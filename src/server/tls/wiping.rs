//! A socket beneath rustls that leaves no plaintext in the buffer of the connection.
//!
//! rustls decrypts a record where it was received, and leaves the plaintext there when it has been read. The
//! next read is given that memory to be filled. So a read for which nothing has come fills it with zeros:
//! none is left when a connection waits. What the read is not given is a part of a record, still encrypted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The socket. The first read that has to wait after others overwrites what it was given.
#[derive(Debug)]
pub(in crate::server) struct Wiping<S> {
    socket: S,
    /// Whether anything was read since it was last done: a connection may be polled a million times a second.
    is_dirty: bool,
}

impl<S> Wiping<S> {
    pub(super) fn new(socket: S) -> Self {
        Self { socket, is_dirty: false }
    }

    pub(in crate::server) fn get_ref(&self) -> &S {
        &self.socket
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Wiping<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.socket).poll_read(cx, buf);
        if read.is_ready() {
            self.is_dirty = true;
        } else if std::mem::take(&mut self.is_dirty) {
            // No compiler leaves it out: the memory is rustls' and is used again.
            buf.initialize_unfilled().fill(0);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Wiping<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use tokio::io::duplex;

    use super::*;

    #[test]
    fn a_read_that_waits_overwrites_what_was_read_before() {
        let (ours, mut theirs) = duplex(64);
        let (mut socket, mut cx) = (Wiping::new(ours), Context::from_waker(Waker::noop()));
        assert!(Pin::new(&mut theirs).poll_write(&mut cx, b"secret").is_ready());
        let mut memory = *b"older secret";
        let mut read = |memory: &mut [u8]| Pin::new(&mut socket).poll_read(&mut cx, &mut ReadBuf::new(memory));
        assert!(read(&mut memory).is_ready());
        assert_eq!(&memory, b"secretsecret");
        // Three bytes are still needed.
        assert!(read(&mut memory[3..]).is_pending());
        assert_eq!(&memory, b"sec\0\0\0\0\0\0\0\0\0");
    }
}
