//! Accepts connections: a limited number at once (P11), all of which can be aborted.
//!
//! This is an accept loop of our own because the servers' loops have no limit, and one of them spins while the process
//! is out of file descriptors.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// The pause after a failed accept, usually for lack of file descriptors.
const RETRY_DELAY: Duration = Duration::from_millis(200);

/// An accepted connection. It holds one of its listener's permits.
pub(super) struct Connection {
    stream: TcpStream,
    abort: Pin<Box<WaitForCancellationFutureOwned>>,
    _permit: OwnedSemaphorePermit,
}

/// Accepts from `listener` until `shutdown` is cancelled or the stream is dropped; then the task ends, which closes the
/// listener. While there are `max` connections, new ones wait in the system's queue. Cancelling `abort` ends the open
/// connections and the calls on them.
pub(super) fn accept(
    listener: TcpListener,
    max: usize,
    shutdown: CancellationToken,
    abort: CancellationToken,
) -> (ReceiverStream<io::Result<Connection>>, JoinHandle<()>) {
    let (send, accepted) = mpsc::channel(1);
    let accepting = tokio::spawn(async move {
        tokio::select! {
            () = send.closed() => {}
            // tonic keeps the stream until its last connection is closed. Without this, new clients would wait for
            // nothing.
            () = shutdown.cancelled() => {}
            () = accept_all(&listener, max, &abort, &send) => {}
        }
    });
    (ReceiverStream::new(accepted), accepting)
}

async fn accept_all(
    listener: &TcpListener,
    max: usize,
    abort: &CancellationToken,
    send: &mpsc::Sender<io::Result<Connection>>,
) {
    let permits = Arc::new(Semaphore::new(max));
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Responses are small; Nagle's algorithm would delay them.
                let _ = stream.set_nodelay(true);
                let abort = Box::pin(abort.child_token().cancelled_owned());
                if send.send(Ok(Connection { stream, abort, _permit: permit })).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept a connection");
                // Nothing signals a free descriptor. A timeout over a future that never completes is a sleep.
                let _ = tokio::time::timeout(RETRY_DELAY, std::future::pending::<()>()).await;
            }
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // A server is always waiting to read, so an abort is noticed here.
        if self.abort.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_stream::StreamExt;

    use super::*;

    async fn listener() -> (TcpListener, std::net::SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[tokio::test]
    async fn p11_a_listener_accepts_a_limited_number_of_connections() {
        let (listener, address) = listener().await;
        let (mut accepted, _) = accept(listener, 1, CancellationToken::new(), CancellationToken::new());
        let _one = TcpStream::connect(address).await.unwrap();
        let first = accepted.next().await.unwrap().unwrap();
        let mut two = TcpStream::connect(address).await.unwrap();
        two.write_all(b"hello").await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(50), accepted.next()).await;
        assert!(waits.is_err(), "there is no permit for a second connection");
        drop(first);
        let mut second = accepted.next().await.unwrap().unwrap();
        let mut text = [0; 5];
        second.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello", "it is accepted once there is a permit");
    }

    #[tokio::test]
    async fn an_abort_ends_open_connections_and_dropping_the_stream_closes_the_listener() {
        let (listener, address) = listener().await;
        let abort = CancellationToken::new();
        let (mut accepted, accepting) = accept(listener, 9, CancellationToken::new(), abort.clone());
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let reading = tokio::spawn(async move { connection.read_u8().await });
        abort.cancel();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(accepted);
        accepting.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_listener_that_shuts_down_refuses_new_connections_and_serves_open_ones() {
        let (listener, address) = listener().await;
        let shutdown = CancellationToken::new();
        let (mut accepted, accepting) = accept(listener, 9, shutdown.clone(), CancellationToken::new());
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        shutdown.cancel();
        accepting.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        client.write_all(b"!").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'!');
        assert!(accepted.next().await.is_none());
    }
}
