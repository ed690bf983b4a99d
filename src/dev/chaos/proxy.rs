//! A small TCP proxy that stands between two who talk, and can cut what they say, or hold it up.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;

use super::{lock, pause};
use crate::dev::rng::Rng;

/// Where a connection leads.
#[derive(Clone)]
pub(super) enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// One of several addresses by chance, and the others if it takes no connections: a load balancer.
    Tcp(Vec<SocketAddr>),
}

/// A running proxy; clones are the same.
#[derive(Clone)]
pub(super) struct Proxy(Arc<Shared>);

struct Shared {
    address: SocketAddr,
    target: Mutex<Target>,
    rng: Mutex<Rng>,
    /// Rises with every cut.
    cuts: watch::Sender<u64>,
    stalled: watch::Sender<bool>,
}

impl Proxy {
    /// Listens on a port of its own.
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
                tokio::spawn(carry(Arc::clone(&shared), client));
            }
        });
        Ok(proxy)
    }

    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    /// Leads new connections elsewhere.
    pub fn lead_to(&self, target: Target) {
        *lock(&self.0.target) = target;
    }

    /// Cuts all connections, whatever is under way on them.
    pub fn cut(&self) {
        self.0.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Holds everything up for a while; nothing is lost.
    pub async fn stall(&self, period: Duration) {
        self.0.stalled.send_replace(true);
        pause(period).await;
        self.0.stalled.send_replace(false);
    }

    /// Whatever was held up goes on.
    pub fn release(&self) {
        self.0.stalled.send_replace(false);
    }
}

/// Carries one connection, until either side ends it or it is cut.
async fn carry(shared: Arc<Shared>, client: TcpStream) {
    let _ = client.set_nodelay(true);
    let target = lock(&shared.target).clone();
    match target {
        Target::Unix(path) => {
            if let Ok(server) = UnixStream::connect(path).await {
                join(&shared, client, server).await;
            }
        }
        Target::Tcp(addresses) => {
            let count = addresses.len();
            let first = lock(&shared.rng).below(count as u64);
            let first = usize::try_from(first).unwrap_or_default();
            for address in (0..count).map(|step| addresses[(first + step) % count]) {
                if let Ok(server) = TcpStream::connect(address).await {
                    let _ = server.set_nodelay(true);
                    join(&shared, client, server).await;
                    return;
                }
            }
        }
    }
}

async fn join(shared: &Shared, client: TcpStream, server: impl AsyncRead + AsyncWrite) {
    let mut cuts = shared.cuts.subscribe();
    let (from_client, to_client) = tokio::io::split(client);
    let (from_server, to_server) = tokio::io::split(server);
    tokio::select! {
        _ = pump(from_client, to_server, shared.stalled.subscribe()) => {}
        _ = pump(from_server, to_client, shared.stalled.subscribe()) => {}
        _ = cuts.changed() => {}
    }
}

/// Passes on what comes, in one direction.
async fn pump(
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
    async fn what_is_said_passes_until_it_is_cut() {
        let dead = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
        let proxy = Proxy::start(Target::Tcp(vec![dead, echo().await]), Rng::new(1)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let mut heard = [0; 5];
        client.write_all(b"hello").await.unwrap();
        client.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
        proxy.cut();
        assert!(matches!(client.read(&mut heard).await, Ok(0) | Err(_)));
    }

    #[tokio::test]
    async fn what_is_held_up_comes_later() {
        let proxy = Proxy::start(Target::Tcp(vec![echo().await]), Rng::new(1)).await.unwrap();
        let mut client = TcpStream::connect(proxy.address()).await.unwrap();
        let stalled = proxy.clone();
        let hold = tokio::spawn(async move { stalled.stall(Duration::from_millis(200)).await });
        proxy.0.stalled.subscribe().wait_for(|stalled| *stalled).await.unwrap();
        client.write_all(b"x").await.unwrap();
        let mut heard = [0; 1];
        client.read_exact(&mut heard).await.unwrap();
        hold.await.unwrap();
        assert_eq!(&heard, b"x");
    }
}
