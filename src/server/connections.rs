//! Connections come in: at most so many at once (P11), and all of them end when they are cut.
//!
//! An accept loop of our own, because those of the servers know no limit, and one spins while the process has no file
//! descriptor left.

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

/// How long nothing is accepted after that has failed, usually for want of file descriptors.
const PAUSE: Duration = Duration::from_millis(200);

/// An accepted connection. It holds its place among the connections of its door.
pub(super) struct Connection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: OwnedSemaphorePermit,
}

/// Accepts from `listener` until `soon` is cancelled or the stream is dropped; then the task ends, which closes the
/// listener. While there are `max` connections, new ones wait in the system's queue. Cancelling `cut` ends those that are
/// open, with whatever they carry.
pub(super) fn accept(
    listener: TcpListener,
    max: usize,
    soon: CancellationToken,
    cut: CancellationToken,
) -> (ReceiverStream<io::Result<Connection>>, JoinHandle<()>) {
    let (send, accepted) = mpsc::channel(1);
    let accepting = tokio::spawn(async move {
        tokio::select! {
            () = send.closed() => {}
            // tonic keeps the stream until its last connection is closed; whoever came meanwhile would wait in vain.
            () = soon.cancelled() => {}
            () = accept_all(&listener, max, &cut, &send) => {}
        }
    });
    (ReceiverStream::new(accepted), accepting)
}

async fn accept_all(
    listener: &TcpListener,
    max: usize,
    cut: &CancellationToken,
    send: &mpsc::Sender<io::Result<Connection>>,
) {
    let places = Arc::new(Semaphore::new(max));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are small, and must not wait for more of them.
                let _ = stream.set_nodelay(true);
                let cut = Box::pin(cut.child_token().cancelled_owned());
                if send.send(Ok(Connection { stream, cut, _place: place })).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Nothing tells when there are descriptors again; a timeout over what never ends is a pause.
                let _ = tokio::time::timeout(PAUSE, std::future::pending::<()>()).await;
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
        // A server always waits for what its client says, so this is where a cut is noticed.
        if self.cut.as_mut().poll(context).is_ready() {
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
    async fn p11_a_door_holds_so_many_connections_and_no_more() {
        let (listener, address) = listener().await;
        let (mut accepted, _) = accept(listener, 1, CancellationToken::new(), CancellationToken::new());
        let _one = TcpStream::connect(address).await.unwrap();
        let first = accepted.next().await.unwrap().unwrap();
        let mut two = TcpStream::connect(address).await.unwrap();
        two.write_all(b"hello").await.unwrap();
        let waits = tokio::time::timeout(Duration::from_millis(50), accepted.next()).await;
        assert!(waits.is_err(), "there is no place for a second one");
        drop(first);
        let mut second = accepted.next().await.unwrap().unwrap();
        let mut text = [0; 5];
        second.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"hello", "it was let in once there was a place");
    }

    #[tokio::test]
    async fn a_cut_ends_open_connections_and_dropping_the_stream_closes_the_listener() {
        let (listener, address) = listener().await;
        let cut = CancellationToken::new();
        let (mut accepted, accepting) = accept(listener, 9, CancellationToken::new(), cut.clone());
        let _client = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        let reading = tokio::spawn(async move { connection.read_u8().await });
        cut.cancel();
        assert_eq!(reading.await.unwrap().unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
        drop(accepted);
        accepting.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_door_that_closes_refuses_newcomers_while_others_are_still_served() {
        let (listener, address) = listener().await;
        let soon = CancellationToken::new();
        let (mut accepted, accepting) = accept(listener, 9, soon.clone(), CancellationToken::new());
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut connection = accepted.next().await.unwrap().unwrap();
        soon.cancel();
        accepting.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        client.write_all(b"!").await.unwrap();
        assert_eq!(connection.read_u8().await.unwrap(), b'!');
        assert!(accepted.next().await.is_none());
    }
}
