//! Door 1: the gRPC API. Internal services call it through stubs, people through grpcurl.
//!
//! A call comes in with a bearer token, which `auth` reads and `app` turns into an organization; `convert` parses the
//! request, collecting every violation; `app` does the work; `convert` writes the answer, or `status` turns the error
//! into a status. Nothing here knows SQL or Stripe. The event stream is the one call that lasts: see `event_service`.

mod auth;
mod convert;
mod customer_service;
mod event_service;
mod feed;
mod integration_service;
mod page_token;
mod payment_service;
pub mod proto;
mod status;
mod subscriber;

use std::sync::Arc;
use std::time::Duration;

use axum::middleware::map_response;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::service::{Routes, RoutesBuilder};
use tonic_health::pb::health_server::{Health, HealthServer};
use tonic_reflection::server::{Builder as Reflection, Error as ReflectionError};
use tracing::Instrument as _;

use self::feed::Feeds;
pub use self::page_token::PageTokenKey;
use self::proto::customer_service_server::CustomerServiceServer;
use self::proto::event_service_server::EventServiceServer;
use self::proto::integration_service_server::IntegrationServiceServer;
use self::proto::payment_service_server::PaymentServiceServer;
use self::subscriber::Seats;
use crate::app::App;
use crate::domain::{Error, OrganizationId, Result};

/// The largest request, in bytes. The largest honest one is a customer with every text at its limit (P11).
const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// What a page of a list, or of the log, may add up to, in bytes: half of the 4 MiB that clients take by default (P11).
const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Settings of the gRPC door.
#[derive(Clone)]
pub struct Options {
    /// What page tokens are authenticated with; the same on all replicas.
    pub page_token_key: PageTokenKey,
    /// How long an event stream may be silent before it gives a sign of life, in real time.
    pub heartbeat: Duration,
    /// How many event streams one organization may hold open on this replica (P11).
    pub streams_per_organization_max: usize,
}

/// All four services: each is implemented for it in a file of its own.
struct Door {
    app: App,
    options: Options,
    feeds: Feeds,
    seats: Arc<Seats>,
    /// Cancelled when this process begins to stop: streams end, so that clients resume elsewhere.
    stopping: CancellationToken,
}

/// The four services, health, and reflection. `health` comes from the caller, who knows when to say NOT_SERVING;
/// `stopping` is cancelled when the process begins to stop.
///
/// # Errors
/// Only if the descriptor set that was built in is broken.
pub fn routes<H: Health>(
    app: App,
    options: Options,
    stopping: CancellationToken,
    health: HealthServer<H>,
) -> Result<Routes, ReflectionError> {
    let feeds = Feeds::new(app.clone());
    let door = Arc::new(Door { app, options, feeds, seats: Arc::default(), stopping });
    let integrations = IntegrationServiceServer::from_arc(Arc::clone(&door));
    let customers = CustomerServiceServer::from_arc(Arc::clone(&door));
    let payments = PaymentServiceServer::from_arc(Arc::clone(&door));
    let events = EventServiceServer::from_arc(door);
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(integrations.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(customers.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(payments.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(events.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // What grpcurl 1.8 asks for.
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.clone().routes().into_axum_router().layer(map_response(status::explain)).into())
}

/// Knows the details of errors, and health, too: so grpcurl can print them.
fn reflection() -> Reflection<'static> {
    Reflection::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

impl Door {
    /// Lets a call in: whose it is, and what it asks for.
    async fn admit<T>(&self, request: Request<T>) -> Result<(OrganizationId, T)> {
        let token = auth::bearer_token(request.metadata())?;
        let organization = self.app.authenticate(token).await?;
        Ok((organization, request.into_inner()))
    }

    /// Does work that must not stop half way. tonic drops a handler as soon as its client hangs up, and with it any call
    /// to Stripe that is in flight and any transaction that is open; so whatever writes runs in a task of its own.
    async fn finish<T, F>(&self, work: impl FnOnce(App) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        tokio::spawn(work(self.app.clone()).in_current_span()).await.map_err(Error::internal)?
    }
}

#[cfg(test)]
mod tests;
