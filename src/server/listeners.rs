//! The gRPC and HTTP listeners. tonic's server (hyper with configurable limits) serves both, so one set of limits holds
//! for both.

use std::time::Duration;

use anyhow::{Context, Result};
use secrecy::ExposeSecret;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use super::connections::accept;
use crate::config::Tls;

/// Connections of the gRPC listener; a subscriber may have one of its own (P11).
const GRPC_CONNECTIONS_MAX: usize = 10_000;
/// Connections of the HTTP listener, from Stripe and the platform (P11).
const HTTP_CONNECTIONS_MAX: usize = 1_000;
/// Concurrent calls and streams of one connection (P11).
const STREAMS_PER_CONNECTION_MAX: u32 = 2_000;
/// Calls of one connection that are processed concurrently; others wait. A stream counts only until it begins (P11).
const CALLS_PER_CONNECTION_MAX: usize = 256;
/// The headers of one call, in bytes (P11).
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// The time until a response begins; a call may need several calls to Stripe. Streams may continue after that.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// The interval of keepalive pings on an idle connection, and the time limit for the reply.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// The age at which a connection takes no new calls, so that its client reconnects, perhaps to another replica. Calls
/// in progress continue. tonic's grace is not set: with it a client is disconnected without notice.
const CONNECTION_AGE_MAX: Duration = Duration::from_mins(30);
/// The time limit of the TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// When and how a listener shuts down.
#[derive(Clone)]
pub(super) struct Shutdown {
    /// Cancelled when the listener must accept nothing new and finish what is in progress.
    pub token: CancellationToken,
    /// How long that may take. Then connections are closed, because a client could keep one open for ever.
    pub grace: Duration,
}

/// The limits of both listeners.
fn base_server() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .max_connection_age(CONNECTION_AGE_MAX)
        .timeout(CALL_TIMEOUT)
}

/// A gRPC server with or without TLS. An error means that the certificate or its key is unusable.
pub(super) fn grpc_server(tls: Option<&Tls>) -> Result<Server> {
    let Some(tls) = tls else { return Ok(base_server()) };
    let identity = Identity::from_pem(&tls.certificate, tls.key.expose_secret());
    let config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_TIMEOUT);
    base_server().tls_config(config).context("the gRPC API's TLS certificate or private key is unusable")
}

/// Serves gRPC until shutdown. Dropping the future closes all connections.
pub(super) async fn serve_grpc(
    server: Server,
    routes: Routes,
    listener: TcpListener,
    shutdown: Shutdown,
) -> Result<()> {
    let abort = CancellationToken::new();
    let (connections, accepting) = accept(listener, GRPC_CONNECTIONS_MAX, shutdown.token.clone(), abort.clone());
    let token = shutdown.token.clone().cancelled_owned();
    let mut server = server;
    let serving = server.add_routes(routes).serve_with_incoming_shutdown(connections, token);
    serve_until_shutdown("gRPC", serving, accepting, shutdown, abort).await
}

/// Serves HTTP until shutdown. Dropping the future closes all connections.
pub(super) async fn serve_http(routes: axum::Router, listener: TcpListener, shutdown: Shutdown) -> Result<()> {
    let abort = CancellationToken::new();
    let (connections, accepting) = accept(listener, HTTP_CONNECTIONS_MAX, shutdown.token.clone(), abort.clone());
    let token = shutdown.token.clone().cancelled_owned();
    let serving = base_server().accept_http1(true).serve_with_incoming_shutdown(routes, connections, token);
    serve_until_shutdown("HTTP", serving, accepting, shutdown, abort).await
}

/// tonic waits without limit for clients that keep their connections open, so the deadline is enforced here. A listener
/// is closed once `accepting` has ended, too.
async fn serve_until_shutdown(
    protocol: &'static str,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    accepting: JoinHandle<()>,
    shutdown: Shutdown,
    abort: CancellationToken,
) -> Result<()> {
    // Each connection is a task; dropping `serving` would not end it.
    let abort = abort.drop_guard();
    let overdue = async {
        shutdown.token.cancelled().await;
        let _ = tokio::time::timeout(shutdown.grace, std::future::pending::<()>()).await;
    };
    let served = tokio::select! {
        served = serving => served.with_context(|| format!("the {protocol} listener failed")),
        () = overdue => {
            tracing::warn!(protocol, grace = ?shutdown.grace, "the grace period is over: closing open connections");
            drop(abort);
            Ok(())
        }
    };
    accepting.await.with_context(|| format!("the {protocol} listener could not be closed"))?;
    served
}
