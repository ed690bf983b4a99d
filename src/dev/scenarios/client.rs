//! The billing system of the scenarios: a gRPC client with a token that follows its events.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::context::ScenarioContext;
use crate::grpc::proto::customer_service_client::CustomerServiceClient;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::event_service_client::EventServiceClient;
use crate::grpc::proto::integration_service_client::IntegrationServiceClient;
use crate::grpc::proto::payment_service_client::PaymentServiceClient;
use crate::grpc::proto::stream_events_request::Start;
use crate::grpc::proto::stream_events_response::Message;
use crate::grpc::proto::{
    CreateIntegrationRequest, Customer, Event, GetCustomerRequest, GetPaymentRequest, Integration, ListEventsRequest,
    Payment, StreamEventsRequest, get_customer_request, get_payment_request,
};

/// How long a step waits for anything. Real time.
pub(super) const TIMEOUT: Duration = Duration::from_secs(30);

/// Adds the token to every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

/// Clients of the four services that send a token.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Api {
    pub integrations: IntegrationServiceClient<Service>,
    pub customers: CustomerServiceClient<Service>,
    pub payments: PaymentServiceClient<Service>,
    pub events: EventServiceClient<Service>,
}

impl Api {
    /// Connects to a server. Fails if it cannot be reached.
    pub async fn connect(url: &str, token: &str) -> Result<Self> {
        let channel = Channel::from_shared(url.to_owned())?.connect().await.context("the server cannot be reached")?;
        Self::over(&channel, token)
    }

    /// Uses an existing channel.
    pub fn over(channel: &Channel, token: &str) -> Result<Self> {
        let bearer = Bearer(format!("Bearer {token}").parse()?);
        let service = || InterceptedService::new(channel.clone(), bearer.clone());
        Ok(Self {
            integrations: IntegrationServiceClient::new(service()),
            customers: CustomerServiceClient::new(service()),
            payments: PaymentServiceClient::new(service()),
            events: EventServiceClient::new(service()),
        })
    }
}

/// A billing system: an organization with a token, a Stripe account of its own and an open event stream.
pub struct BillingClient {
    /// Calls with the organization's token.
    pub api: Api,
    /// The organization's API token, in plain text.
    pub token: String,
    /// The organization's id.
    pub organization: String,
    /// The id of its Stripe account.
    pub account: String,
    /// The account's secret key.
    pub key: String,
    events: Arc<Mutex<Vec<Event>>>,
    event_count: watch::Receiver<usize>,
    follower: JoinHandle<()>,
}

impl Drop for BillingClient {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl BillingClient {
    /// Creates an organization at the first server and a Stripe account, and opens an event stream.
    pub async fn create(context: &ScenarioContext, name: &str) -> Result<Self> {
        let (organization, token) = context.environment.organization(name).await?;
        let suffix = organization.0.simple().to_string();
        let account = format!("acct_{}", &suffix[16..]);
        let key = context.environment.sandbox.add_account(&account, "DE", "eur");
        let api = Api::connect(&context.environment.servers[0].grpc, &token).await?;
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (sender, event_count) = watch::channel(0);
        let mut stream = {
            let request = StreamEventsRequest { start: Some(Start::FromStart(())), ..StreamEventsRequest::default() };
            api.events.clone().stream_events(request).await?.into_inner()
        };
        let follower = tokio::spawn({
            let (events, reporter) = (Arc::clone(&events), context.reporter);
            async move {
                while let Ok(Some(response)) = stream.message().await {
                    if let Some(Message::Event(event)) = response.message {
                        reporter.event(&event);
                        let count = {
                            let mut events = events.lock();
                            events.push(event);
                            events.len()
                        };
                        sender.send_replace(count);
                    }
                }
            }
        });
        Ok(Self { api, token, organization: organization.to_string(), account, key, events, event_count, follower })
    }

    /// Does what [`Self::create`] does, then connects the Stripe account under the code `stripe`.
    pub async fn connected(context: &ScenarioContext, name: &str) -> Result<(Self, Integration)> {
        let mut billing = Self::create(context, name).await?;
        let integration = billing.connect_stripe().await?;
        Ok((billing, integration))
    }

    /// Connects its Stripe account under the code `stripe`.
    pub async fn connect_stripe(&mut self) -> Result<Integration> {
        let request = CreateIntegrationRequest {
            request_id: "connect".to_owned(),
            code: "stripe".to_owned(),
            name: "Stripe".to_owned(),
            secret_key: self.key.clone(),
            ..CreateIntegrationRequest::default()
        };
        let response = self.api.integrations.create_integration(request).await?.into_inner();
        response.integration.context("the response has no integration")
    }

    /// All events received so far. The log may hold more.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().clone()
    }

    /// All events of the log: waits until the stream has delivered what the log holds now.
    pub async fn all_events(&self) -> Result<Vec<Event>> {
        let newest = ListEventsRequest { page_size: 1, ..ListEventsRequest::default() };
        let last = self.api.events.clone().list_events(newest).await?.into_inner().last_position;
        let mut event_count = self.event_count.clone();
        let caught_up =
            event_count.wait_for(|_| self.events().last().is_some_and(|event| event.position >= last) || last == 0);
        let in_time = tokio::time::timeout(TIMEOUT, caught_up).await;
        in_time.with_context(|| format!("the stream did not reach position {last}"))?.context("the stream ended")?;
        Ok(self.events())
    }

    /// Waits for an event for which `wanted` returns a value, among past and future ones. `what` describes it in the
    /// error.
    pub async fn wait_for<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let waiting = async {
            let mut checked = 0;
            loop {
                let events = self.events();
                if let Some(found) = events[checked..].iter().find_map(&mut wanted) {
                    return Ok(found);
                }
                checked = events.len();
                self.event_count.changed().await.context("the event stream ended")?;
            }
        };
        if let Ok(found) = tokio::time::timeout(TIMEOUT, waiting).await {
            return found;
        }
        let received: Vec<_> = self.events().iter().map(|event| event.webhook_type.clone()).collect();
        bail!("{what} was not reported within {TIMEOUT:?}; received: {}", received.join(", "))
    }

    /// Waits for an event of a type about an invoice.
    pub async fn wait_for_event(&mut self, webhook_type: &str, invoice: &str) -> Result<Event> {
        let what = format!("{webhook_type} of {invoice}");
        self.wait_for(&what, |event| {
            (event.webhook_type == webhook_type && is_about(event, invoice)).then(|| event.clone())
        })
        .await
    }

    /// Counts the events of a type about an invoice in the whole log.
    pub async fn count_events(&self, webhook_type: &str, invoice: &str) -> Result<usize> {
        let events = self.all_events().await?;
        Ok(events.iter().filter(|event| event.webhook_type == webhook_type && is_about(event, invoice)).count())
    }

    /// Reads the payment of an invoice.
    pub async fn payment(&mut self, invoice: &str) -> Result<Payment> {
        let payment = Some(get_payment_request::Payment::InvoiceId(invoice.to_owned()));
        let response = self.api.payments.get_payment(GetPaymentRequest { payment }).await?.into_inner();
        response.payment.context("the response has no payment")
    }

    /// Reads a customer.
    pub async fn customer(&mut self, external_id: &str) -> Result<Customer> {
        let customer = Some(get_customer_request::Customer::ExternalId(external_id.to_owned()));
        let response = self.api.customers.get_customer(GetCustomerRequest { customer }).await?.into_inner();
        response.customer.context("the response has no customer")
    }

    /// Polls a customer until `wanted` returns `true`, for changes that no event reports.
    pub async fn wait_for_customer(
        &mut self,
        external_id: &str,
        what: &str,
        wanted: impl Fn(&Customer) -> bool,
    ) -> Result<Customer> {
        let began = std::time::Instant::now();
        while began.elapsed() < TIMEOUT {
            let customer = self.customer(external_id).await?;
            if wanted(&customer) {
                return Ok(customer);
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        }
        bail!("the customer {external_id} was not as expected within {TIMEOUT:?}: {what}")
    }
}

fn is_about(event: &Event, invoice: &str) -> bool {
    match &event.object {
        Some(Object::Payment(payment)) => payment.lago_payable_id == invoice,
        Some(Object::Invoice(object)) => object.lago_id == invoice,
        Some(Object::PaymentProviderInvoicePaymentError(failure)) => failure.lago_invoice_id == invoice,
        Some(Object::Refund(refund)) => refund.lago_invoice_id == invoice,
        Some(Object::Dispute(dispute)) => dispute.lago_invoice_id == invoice,
        Some(Object::PaymentDisputeLost(lost)) => lost.invoice.as_ref().is_some_and(|it| it.lago_id == invoice),
        _ => false,
    }
}

/// Polls until `wanted` returns `true`.
pub(super) async fn wait_until(what: &str, mut wanted: impl FnMut() -> bool) -> Result<()> {
    let began = std::time::Instant::now();
    while began.elapsed() < TIMEOUT {
        if wanted() {
            return Ok(());
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
    }
    bail!("not true within {TIMEOUT:?}: {what}")
}

/// Checks that a call failed with this code and this reason.
pub(super) fn expect_error<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, reason: &str) -> Result<Status> {
    let status = match result {
        Ok(response) => bail!("expected {code:?} {reason}, got {response:?}"),
        Err(status) => status,
    };
    let actual = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    if status.code() != code || actual != reason {
        bail!("expected {code:?} {reason}, got {:?} {actual}: {}", status.code(), status.message());
    }
    Ok(status)
}

/// Fails the step unless a condition holds.
macro_rules! check {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            anyhow::bail!("{}: not true: {}", format!($($what)+), stringify!($condition));
        }
    };
}
pub(super) use check;
