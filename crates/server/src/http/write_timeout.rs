//! A socket whose peer has to read: what is written to it has to go on its way within a time, or the connection ends.
//!
//! Without it a client that asks and never reads holds its connection, and what was to be written to it, for good.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Bytes that have to be taken for a peer that lets writes wait to count as reading: one that takes a few now and then
/// is no better than one that takes none.
const PROGRESS_BYTES: usize = 16 << 10;

/// The socket, and since when it has been full.
pub(super) struct WriteTimeout {
    stream: TcpStream,
    timeout: Duration,
    /// While the peer has not taken what was to be written.
    stalled: Option<Stall>,
}

struct Stall {
    end: Pin<Box<Sleep>>,
    /// Bytes taken since `end` was set.
    taken: usize,
}

impl WriteTimeout {
    /// `timeout`: for each [`PROGRESS_BYTES`], or for what is less.
    pub fn new(stream: TcpStream, timeout: Duration) -> WriteTimeout {
        WriteTimeout { stream, timeout, stalled: None }
    }

    /// Notes what a write of `wanted` bytes came to.
    fn note(
        &mut self,
        context: &mut Context,
        wanted: usize,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match &written {
            Poll::Ready(Ok(count)) if *count >= wanted => self.stalled = None,
            Poll::Ready(Ok(count)) => {
                if let Some(stall) = &mut self.stalled {
                    stall.taken += count;
                    if stall.taken >= PROGRESS_BYTES {
                        stall.taken = 0;
                        stall.end.as_mut().reset(Instant::now() + self.timeout);
                    }
                }
            }
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let end = || Box::pin(tokio::time::sleep(self.timeout));
                let stall = self.stalled.get_or_insert_with(|| Stall { end: end(), taken: 0 });
                ready!(stall.end.as_mut().poll(context));
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read")));
            }
        }
        written
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(context, bytes.len(), written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context,
        slices: &[io::IoSlice],
    ) -> Poll<io::Result<usize>> {
        let wanted = slices.iter().map(|slice| slice.len()).sum();
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.note(context, wanted, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}
