//! The gRPC API.
//!
//! `auth` reads a call's bearer token, and `app` maps it to an organization. `convert` parses the request and collects
//! all violations. `app` runs the use case. `convert` builds the response, or `status` maps the error to a gRPC status.
//! This module contains no SQL and does not call Stripe. `event_service` and `subscriber` implement the event stream.

mod auth;
mod convert;
mod customer_service;
mod event_filter;
mod event_service;
mod integration_service;
mod limits;
mod log_tail;
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
use tonic_reflection::pb as reflection_pb;
use tonic_reflection::server::{Builder as Reflection, Error as ReflectionError};
use tracing::Instrument as _;

use self::limits::REQUEST_BYTES_MAX;
use self::log_tail::LogTails;
pub use self::page_token::PageTokenKey;
use self::proto::customer_service_server::CustomerServiceServer;
use self::proto::event_service_server::EventServiceServer;
use self::proto::integration_service_server::IntegrationServiceServer;
use self::proto::payment_service_server::PaymentServiceServer;
use self::subscriber::StreamLimiter;
use crate::app::App;
use crate::domain::{Error, OrganizationId, Result};

/// Settings of the gRPC API.
#[derive(Clone)]
pub struct Options {
    /// The key that authenticates page tokens. Must be the same on all replicas.
    pub page_token_key: PageTokenKey,
    /// The interval of heartbeats on an idle event stream, in real time.
    pub heartbeat: Duration,
    /// The maximum number of event streams per organization on this replica (P11).
    pub streams_per_organization_max: usize,
}

/// Implements the four services, each in a file of its own.
struct Api {
    app: App,
    options: Options,
    log_tails: LogTails,
    stream_limiter: Arc<StreamLimiter>,
    /// Canceled when the process starts to shut down. Event streams then end, and clients resume on another replica.
    shutdown: CancellationToken,
}

/// Routes of the four services, health and reflection. The caller provides `health` and sets its status. `shutdown` is
/// canceled when the process starts to shut down.
///
/// # Errors
/// Fails if the built-in descriptor set cannot be decoded.
pub fn routes<H: Health>(
    app: App,
    options: Options,
    shutdown: CancellationToken,
    health: HealthServer<H>,
) -> Result<Routes, ReflectionError> {
    let log_tails = LogTails::new(app.clone());
    let api = Arc::new(Api { app, options, log_tails, stream_limiter: Arc::default(), shutdown });
    let integrations = IntegrationServiceServer::from_arc(Arc::clone(&api));
    let customers = CustomerServiceServer::from_arc(Arc::clone(&api));
    let payments = PaymentServiceServer::from_arc(Arc::clone(&api));
    let events = EventServiceServer::from_arc(api);
    let mut routes = RoutesBuilder::default();
    routes
        .add_service(integrations.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(customers.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(payments.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(events.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        // For grpcurl 1.8.
        .add_service(reflection().build_v1alpha()?);
    Ok(routes.clone().routes().into_axum_router().layer(map_response(status::add_details)).into())
}

/// Includes the descriptors of error details and health, so that grpcurl can print them. Each version of the reflection
/// service lists both versions; by default it would list only itself.
fn reflection() -> Reflection<'static> {
    Reflection::configure()
        .include_reflection_service(false)
        .register_encoded_file_descriptor_set(proto::DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(reflection_pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(reflection_pb::v1alpha::FILE_DESCRIPTOR_SET)
}

impl Api {
    /// The organization that a call's token belongs to, and the request.
    async fn authenticate<T>(&self, request: Request<T>) -> Result<(OrganizationId, T)> {
        let token = auth::bearer_token(request.metadata())?;
        let organization = self.app.authenticate(token).await?;
        Ok((organization, request.into_inner()))
    }

    /// Runs `operation` in a task of its own, even if the client disconnects. tonic drops the handler of a disconnected
    /// client, and with it any Stripe call in flight and any open transaction, so every use case that writes runs here.
    async fn run_to_completion<T, F>(&self, operation: impl FnOnce(App) -> F) -> Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        tokio::spawn(operation(self.app.clone()).in_current_span()).await.map_err(Error::internal)?
    }
}

#[cfg(test)]
mod tests;
