//! How the two doors are served: both by tonic's server, which is hyper with limits that can be set, so that one set of
//! rules holds for gRPC and for HTTP.

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

/// Connections of the gRPC door; a subscriber may have one of its own (P11).
const GRPC_CONNECTIONS_MAX: usize = 10_000;
/// Connections of the HTTP door: Stripe's and the platform's (P11).
const HTTP_CONNECTIONS_MAX: usize = 1_000;
/// Calls and streams of one connection at once (P11).
const STREAMS_PER_CONNECTION_MAX: u32 = 2_000;
/// Calls of one connection that are worked on at once; others wait. Streams count only until they begin (P11).
const CALLS_PER_CONNECTION_MAX: usize = 256;
/// Headers of one call, in bytes (P11).
const HEADER_BYTES_MAX: u32 = 16 * 1024;
/// How long a call may take until its answer begins: several calls to Stripe. Streams may go on after that.
const CALL_WITHIN: Duration = Duration::from_mins(1);
/// How often a silent connection is asked whether it lives, and how long the answer may take.
const PING_EVERY: Duration = Duration::from_secs(30);
const PONG_WITHIN: Duration = Duration::from_secs(10);
/// After this time a connection takes no new calls, so that its client connects anew, perhaps to another replica. What
/// runs on it goes on to its end. (tonic's grace would not add to that: with it the client isn't told, only cut off.)
const CONNECTION_AGE_MAX: Duration = Duration::from_mins(30);
/// How long TLS may take to be set up.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// When a door closes.
#[derive(Clone)]
pub(super) struct Closing {
    /// Cancelled: nothing new is taken; what is in hand is finished.
    pub soon: CancellationToken,
    /// How long that may take. Then connections are cut: a client that holds on to one must not hold us.
    pub within: Duration,
}

/// The rules of both doors.
fn rules() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX)
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PONG_WITHIN))
        .max_connection_age(CONNECTION_AGE_MAX)
        .timeout(CALL_WITHIN)
}

/// The gRPC door, with or without TLS. An error means that the certificate or its key can't be used.
pub(super) fn grpc(tls: Option<&Tls>) -> Result<Server> {
    let Some(tls) = tls else { return Ok(rules()) };
    let identity = Identity::from_pem(&tls.certificate, tls.key.expose_secret());
    let config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_WITHIN);
    rules().tls_config(config).context("the gRPC API's certificate or its key can't be used")
}

/// Serves gRPC until the door is closed. Dropping it cuts all connections.
pub(super) async fn serve_grpc(server: Server, routes: Routes, listener: TcpListener, closing: Closing) -> Result<()> {
    let cut = CancellationToken::new();
    let (connections, accepting) = accept(listener, GRPC_CONNECTIONS_MAX, closing.soon.clone(), cut.clone());
    let soon = closing.soon.clone().cancelled_owned();
    let mut server = server;
    let serving = server.add_routes(routes).serve_with_incoming_shutdown(connections, soon);
    until_closed("gRPC", serving, accepting, closing, cut).await
}

/// Serves HTTP until the door is closed. Dropping it cuts all connections.
pub(super) async fn serve_http(routes: axum::Router, listener: TcpListener, closing: Closing) -> Result<()> {
    let cut = CancellationToken::new();
    let (connections, accepting) = accept(listener, HTTP_CONNECTIONS_MAX, closing.soon.clone(), cut.clone());
    let soon = closing.soon.clone().cancelled_owned();
    let serving = rules().accept_http1(true).serve_with_incoming_shutdown(routes, connections, soon);
    until_closed("HTTP", serving, accepting, closing, cut).await
}

/// tonic waits for ever for clients that hold on to their connections, so the deadline is ours. A door is closed
/// once `accepting` has ended, too.
async fn until_closed(
    door: &'static str,
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    accepting: JoinHandle<()>,
    closing: Closing,
    cut: CancellationToken,
) -> Result<()> {
    // Connections are tasks of their own, which dropping `serving` would not end.
    let cut = cut.drop_guard();
    let overdue = async {
        closing.soon.cancelled().await;
        let _ = tokio::time::timeout(closing.within, std::future::pending::<()>()).await;
    };
    let served = tokio::select! {
        served = serving => served.with_context(|| format!("the {door} door can't be served")),
        () = overdue => {
            tracing::warn!(door, within = ?closing.within, "clients hold on to their connections: cutting them");
            drop(cut);
            Ok(())
        }
    };
    accepting.await.with_context(|| format!("the {door} door could not be closed"))?;
    served
}
