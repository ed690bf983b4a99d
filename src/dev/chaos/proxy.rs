//! A small TCP proxy that can cut or stall connections.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use crate::clock::pause;
use crate::dev::rng::Rng;

/// Where connections are forwarded to.
#[derive(Clone)]
pub(super) enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// A random one of several addresses, and the others if it refuses connections, like a load balancer.
    Tcp(Vec<SocketAddr>),
}

/// A running proxy. Clones share it.
#[derive(Clone)]
pub(super) struct Proxy(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    target: Mutex<Target>,
    rng: Mutex<Rng>,
    /// Counts the cuts.
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
}

impl Proxy {
    /// Starts a proxy on a free port.
    pub async fn start(target: Target, rng: Rng) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let proxy = Self(Arc::new(Shared {
            address: listener.local_addr()?,
            target: Mutex::new(target),
            rng: Mutex::new(rng),
            cuts: watch::Sender::new(0),
            stalled: watch::Sender::new(false),
        }));
        let shared = Arc::clone(&proxy.0);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(Arc::clone(&shared), client));
            }
        });
        Ok(proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Changes the target of new connections.
    pub fn set_target(&self, target: Target) {
        *self.0.target.lock() = target;
    }

    /// Cuts all connections, whatever is in flight.
    pub fn cut(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Stalls all connections for a while. Nothing is lost.
    pub async fn stall(&self, period: Duration) {
        self.0.stalled.send_replace(true);
        pause(period).await;
        self.0.stalled.send_replace(false);
    }

    /// Ends a stall.
    pub fn release(&self) {
        self.0.stalled.send_replace(false);
    }
}

/// Forwards one connection until either side closes it or it is cut.
async fn forward(shared: Arc<Shared>, client: TcpStream) {
    let _ = client.set_nodelay(true);
    let target = shared.target.lock().clone();
    match target {
        Target::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path).await {
                relay(&shared, client, server).await;
            }
        }
        Target::Tcp(addresses) => {
            let count = addresses.len();
            let first = shared.rng.lock().below(count as u64);
            let first = usize::try_from(first).unwrap_or_default();
            for address in (0..count).map(|step| addresses[(first + step) % count]) {
                if let Ok(server) = TcpStream::connect(address).await {
                    let _ = server.set_nodelay(true);
                    relay(&shared, client, server).await;
                    return;
                }
            }
        }
    }
}

async fn relay(shared: &Shared, client: TcpStream, server: impl AsyncRead + AsyncWrite) {
    let mut cuts = shared.cuts.subscribe();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        _ = copy(from_client, to_server, shared.stalled.subscribe()) => {}
        _ = copy(from_server, to_client, shared.stalled.subscribe()) => {}
        _ = cuts.changed() => {}
    }
}

/// Copies one direction of a connection.
async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut stalled: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let count = from.read(&mut buffer).await?;
        if stalled.wait_for(|stalled| !stalled).await.is_err() || count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
        address
    }

    #[tokio::test]
    async fn bytes_pass_until_a_cut() {
        let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let proxy = Proxy::start(Target::Tcp(vec![dead, echo().await]), Rng::new(1)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let mut received = [0; 5];
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"hello");
        proxy.cut();
        assert!(matches!(client.read(&mut received).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn a_stall_delays_bytes() {
        let proxy = Proxy::start(Target::Tcp(vec![echo().await]), Rng::new(1)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let stalled = proxy.clone();
        let stall = tokio::spawn(async move { stalled.stall(Duration::from_millis(200)).await });
        proxy.0.stalled.subscribe().wait_for(|stalled| *stalled).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let mut received = [0; 1];
        client.read_exact(&mut received).await.unwrap();
        stall.await.unwrap();
        assert_eq!(&received, b"x");
    }
}
