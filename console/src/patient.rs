//! A socket whose other side has to take something of what it is sent, now and then.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{self, Sleep};

use crate::Metrics;

/// How long a connection waits for its other side to take anything at all. Who reads slowly is waited for; who does not
/// read holds a place that others want.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(10);

/// Fails a write with [`io::ErrorKind::TimedOut`] once it has waited for as long as that.
#[derive(Debug)]
pub(crate) struct Patient<S> {
    socket: S,
    stall_max: Duration,
    /// When the write that waits is given up; nothing while none waits.
    until: Option<Pin<Box<Sleep>>>,
    metrics: Arc<Metrics>,
}

impl<S> Patient<S> {
    pub(crate) fn new(socket: S, stall_max: Duration, metrics: Arc<Metrics>) -> Self {
        Self { socket, stall_max, until: None, metrics }
    }

    /// What a write came to, which waits no longer than it may.
    fn in_time<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.until = None;
            return written;
        }
        let until = self.until.get_or_insert_with(|| Box::pin(time::sleep(self.stall_max)));
        ready!(until.as_mut().poll(cx));
        Metrics::add(&self.metrics.stuck);
        let text = format!("the other side took nothing for {:?}", self.stall_max);
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.in_time(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, pieces);
        self.in_time(cx, written)
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
    use std::sync::atomic::Ordering::Relaxed;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// A writer with room for eight bytes on their way, and its reader.
    fn pair(metrics: &Arc<Metrics>) -> (Patient<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
        let (writer, reader) = tokio::io::duplex(8);
        (Patient::new(writer, STALL_MAX, Arc::clone(metrics)), reader)
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_nothing_for_too_long_is_given_up_and_counted() {
        let metrics = Arc::new(Metrics::default());
        let (mut writer, _reader) = pair(&metrics);
        let began = time::Instant::now();
        let error = writer.write_all(&[0; 9]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(error.to_string().contains("took nothing for 10s"), "{error}");
        assert!(began.elapsed() >= STALL_MAX && began.elapsed() < STALL_MAX * 2);
        assert_eq!(metrics.stuck.load(Relaxed), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_a_little_now_and_then_gets_all_of_it() {
        let metrics = Arc::new(Metrics::default());
        let (mut writer, mut reader) = pair(&metrics);
        let all: Vec<u8> = (0..80).collect();
        let read = async {
            let mut taken = Vec::new();
            while taken.len() < all.len() {
                time::sleep(STALL_MAX - Duration::from_millis(1)).await;
                let mut bytes = [0; 4];
                reader.read_exact(&mut bytes).await.unwrap();
                taken.extend_from_slice(&bytes);
            }
            taken
        };
        let (written, taken) = tokio::join!(writer.write_all(&all), read);
        written.unwrap();
        assert_eq!((taken, metrics.stuck.load(Relaxed)), (all.clone(), 0));
    }
}
