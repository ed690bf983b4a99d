//! The gRPC API over TCP with the database unavailable: what applies before a use case runs.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Server};
use tonic::{Code, Request, Status};
use tonic_reflection::pb::{v1, v1alpha};
use tonic_types::StatusExt as _;

use super::proto::payment_service_client::PaymentServiceClient;
use super::proto::{CreatePaymentRequest, GetPaymentRequest};
use super::*;
use crate::app::{Adapters, Periods, Settings};
use crate::clock::Clock;
use crate::store::{Pool, SealKey, Sealer};
use crate::stripe;

/// A well-formed token.
const TOKEN: &str = "Bearer pbt_00000000000000000000000000000001_0000000000000000000000000000000000000000000";

/// An app whose database and Stripe are unavailable.
pub(super) fn app_without_database() -> App {
    let closed_port = "127.0.0.1:1";
    let clock = Clock::system();
    let key = SealKey { id: "test".into(), key: [7; 32] };
    let settings = Settings {
        installation: "test".to_owned(),
        default_success_url: "https://billing.test/done".into(),
        webhook_base_url: None,
        relay_provider_events: false,
        event_retention: Duration::days(90),
        delivery_retention: Duration::days(35),
        action_period: Duration::DAY,
        periods: Periods::default(),
    };
    let timeouts = stripe::Timeouts::default();
    let adapters = Adapters {
        pool: Pool::new(&format!("postgres://{closed_port}/paybridge"), 1).unwrap(),
        sealer: Sealer::new(&[key]).unwrap(),
        stripe: stripe::Client::new(&format!("http://{closed_port}"), clock.clone(), timeouts).unwrap(),
        clock,
    };
    App::new(adapters, settings, mpsc::channel(1).0)
}

/// A running server. Stops when dropped.
struct TestServer {
    address: SocketAddr,
    _stop: DropGuard,
}

impl TestServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let options = Options {
            page_token_key: PageTokenKey([7; 32]),
            heartbeat: std::time::Duration::from_secs(1),
            streams_per_organization_max: 2,
        };
        let (_, health) = tonic_health::server::health_reporter();
        let routes = routes(app_without_database(), options, stop.clone(), health).unwrap();
        let server = Server::builder().add_routes(routes);
        let stopped = stop.clone().cancelled_owned();
        tokio::spawn(server.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped));
        Self { address, _stop: stop.drop_guard() }
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn payments(&self) -> PaymentServiceClient<Channel> {
        PaymentServiceClient::new(self.channel().await)
    }
}

fn with_token<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", MetadataValue::from_static(TOKEN));
    request
}

fn reason(status: &Status) -> (Code, String) {
    (status.code(), status.get_details_error_info().map(|info| info.reason).unwrap_or_default())
}

#[tokio::test]
async fn p10_a_call_without_a_token_is_rejected() {
    let api = TestServer::start().await;
    let refused = api.payments().await.get_payment(GetPaymentRequest::default()).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::Unauthenticated, "UNAUTHENTICATED".into()));
}

#[tokio::test]
async fn while_the_database_is_unavailable_calls_fail_with_a_retry_delay() {
    let api = TestServer::start().await;
    let unavailable = api.payments().await.get_payment(with_token(GetPaymentRequest::default())).await.unwrap_err();
    assert_eq!(reason(&unavailable), (Code::Unavailable, "DATABASE_UNAVAILABLE".into()));
    assert!(unavailable.get_details_retry_info().unwrap().retry_delay.is_some());
}

#[tokio::test]
async fn p11_a_request_that_is_too_large_is_rejected_unread() {
    let api = TestServer::start().await;
    let large = CreatePaymentRequest { invoice_id: "x".repeat(REQUEST_BYTES_MAX), ..Default::default() };
    let refused = api.payments().await.create_payment(with_token(large)).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::ResourceExhausted, "MESSAGE_TOO_LARGE".into()));
}

#[tokio::test]
async fn a_body_that_can_not_be_decoded_is_an_invalid_argument() {
    let api = TestServer::start().await;
    let mut grpc = tonic::client::Grpc::new(api.channel().await);
    grpc.ready().await.unwrap();
    // Another message, whose first field is a number instead of a string.
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/paybridge.v1.PaymentService/GetPayment");
    let wrong = with_token(proto::ListCustomersRequest { page_size: 7, ..Default::default() });
    let codec = tonic_prost::ProstCodec::<_, proto::GetPaymentResponse>::default();
    let refused = grpc.unary(wrong, path, codec).await.unwrap_err();
    assert_eq!(reason(&refused), (Code::InvalidArgument, "INVALID_FIELDS".into()));
}

/// The services that the server lists through reflection v1.
async fn listed_by_v1(channel: Channel) -> BTreeSet<String> {
    use v1::server_reflection_request::MessageRequest;
    use v1::server_reflection_response::MessageResponse;

    let message_request = Some(MessageRequest::ListServices(String::new()));
    let list = v1::ServerReflectionRequest { message_request, ..Default::default() };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(list)).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().message_response {
        Some(MessageResponse::ListServicesResponse(list)) => list.service.into_iter().map(|it| it.name).collect(),
        other => panic!("{other:?}"),
    }
}

/// The response of reflection v1alpha.
async fn asked_of_v1alpha(
    channel: Channel,
    request: v1alpha::server_reflection_request::MessageRequest,
) -> v1alpha::server_reflection_response::MessageResponse {
    let request = v1alpha::ServerReflectionRequest { message_request: Some(request), ..Default::default() };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(channel);
    let mut answers = client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    answers.message().await.unwrap().unwrap().message_response.unwrap()
}

#[tokio::test]
async fn both_versions_of_reflection_list_every_service_and_find_error_details() {
    use v1alpha::server_reflection_request::MessageRequest;
    use v1alpha::server_reflection_response::MessageResponse;

    let api = TestServer::start().await;
    let channel = api.channel().await;
    let names = listed_by_v1(channel.clone()).await;
    for service in [
        "paybridge.v1.IntegrationService",
        "paybridge.v1.CustomerService",
        "paybridge.v1.PaymentService",
        "paybridge.v1.EventService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ] {
        assert!(names.contains(service), "{service} is not in {names:?}");
    }
    let listed = asked_of_v1alpha(channel.clone(), MessageRequest::ListServices(String::new())).await;
    let MessageResponse::ListServicesResponse(listed) = listed else { panic!("{listed:?}") };
    assert_eq!(listed.service.into_iter().map(|it| it.name).collect::<BTreeSet<_>>(), names);

    // grpcurl 1.8 needs this to print error details.
    let symbol = MessageRequest::FileContainingSymbol("google.rpc.ErrorInfo".into());
    let found = asked_of_v1alpha(channel, symbol).await;
    assert!(matches!(found, MessageResponse::FileDescriptorResponse(_)), "{found:?}");
}
