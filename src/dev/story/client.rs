//! The billing system of the story: a gRPC client with a token, that follows its events.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use tonic_types::StatusExt as _;

use super::Scenery;
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

/// How long the story waits for anything, real time.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// Tells the audience what happens; silent in tests.
#[derive(Clone, Copy, Debug)]
pub struct Narrator {
    /// Whether anything is printed.
    pub is_loud: bool,
}

impl Narrator {
    /// A line of the story.
    pub fn say(self, text: impl std::fmt::Display) {
        if self.is_loud {
            println!("   {text}");
        }
    }

    fn event(self, event: &Event) {
        if self.is_loud {
            println!("   ◂ {:>4}  {}  {}", event.position, event.webhook_type, gist(event));
        }
    }
}

/// What an event is about, in a few words.
fn gist(event: &Event) -> String {
    match &event.object {
        Some(Object::Payment(payment)) => format!(
            "{} {} {} ({})",
            payment.lago_payable_id,
            payment.amount_cents.unwrap_or_default(),
            payment.amount_currency,
            payment.status
        ),
        Some(Object::Invoice(invoice)) => format!("{} {}", invoice.lago_id, invoice.payment_status),
        Some(Object::PaymentProviderInvoicePaymentError(failure)) => {
            let code = failure.provider_error.as_ref().map(|error| error.error_code.clone()).unwrap_or_default();
            format!("{} {code} {}", failure.lago_invoice_id, failure.decline_code.as_deref().unwrap_or_default())
        }
        Some(Object::Customer(customer)) => customer.external_id.clone(),
        Some(Object::PaymentProviderCustomerCheckoutUrl(link)) => {
            format!("{} {}", link.external_customer_id, link.checkout_url)
        }
        Some(Object::PaymentProviderCustomerError(failure)) => {
            failure.provider_error.as_ref().map(|error| error.message.clone()).unwrap_or_default()
        }
        Some(Object::PaymentMethod(method)) => {
            format!("{} {}", method.external_customer_id, method.provider_method_id)
        }
        Some(Object::Refund(refund)) => {
            let amount = refund.amount_cents.unwrap_or_default();
            format!("{} {amount} {} ({})", refund.lago_invoice_id, refund.amount_currency, refund.status)
        }
        Some(Object::Dispute(dispute)) => format!("{} ({})", dispute.lago_invoice_id, dispute.status),
        Some(Object::PaymentDisputeLost(lost)) => {
            lost.invoice.as_ref().map(|invoice| invoice.lago_id.clone()).unwrap_or_default()
        }
        Some(Object::PaymentProvider(provider)) => provider.payment_provider_code.clone(),
        Some(Object::ProviderEvent(event)) => event.event_type.clone(),
        _ => String::new(),
    }
}

/// Puts the token on every call.
#[derive(Clone)]
pub struct Bearer(MetadataValue<Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

type Service = InterceptedService<Channel, Bearer>;

/// The four services, called with a token.
#[derive(Clone)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Api {
    pub integrations: IntegrationServiceClient<Service>,
    pub customers: CustomerServiceClient<Service>,
    pub payments: PaymentServiceClient<Service>,
    pub events: EventServiceClient<Service>,
}

impl Api {
    /// Connects to a server.
    pub async fn connect(url: &str, token: &str) -> Result<Self> {
        let channel = Channel::from_shared(url.to_owned())?.connect().await.context("the server can't be reached")?;
        Self::over(&channel, token)
    }

    /// Calls over a channel.
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

/// A billing system with an organization, a token, a Stripe account of its own, and an open event stream.
pub struct Player {
    /// Its calls.
    pub api: Api,
    /// Its token.
    pub token: String,
    /// Its organization.
    pub organization: String,
    /// Its Stripe account.
    pub account: String,
    /// The account's secret key.
    pub key: String,
    events: Arc<Mutex<Vec<Event>>>,
    grown: watch::Receiver<usize>,
    follower: JoinHandle<()>,
}

impl Drop for Player {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl Player {
    /// Enters the stage: a new organization at the first server, and a new Stripe account.
    pub async fn enter(scenery: &Scenery, name: &str) -> Result<Self> {
        let (organization, token) = scenery.stage.organization(name).await?;
        let suffix = organization.0.simple().to_string();
        let account = format!("acct_{}", &suffix[16..]);
        let key = scenery.stage.sandbox.add_account(&account, "DE", "eur");
        let api = Api::connect(&scenery.stage.servers[0].grpc, &token).await?;
        let events: Arc<Mutex<Vec<Event>>> = Arc::default();
        let (sender, grown) = watch::channel(0);
        let mut stream = {
            let request = StreamEventsRequest { start: Some(Start::FromStart(true)), webhook_types: Vec::new() };
            api.events.clone().stream_events(request).await?.into_inner()
        };
        let follower = tokio::spawn({
            let (events, narrator) = (Arc::clone(&events), scenery.narrator);
            async move {
                while let Ok(Some(answer)) = stream.message().await {
                    if let Some(Message::Event(event)) = answer.message {
                        narrator.event(&event);
                        let count = {
                            let mut events = events.lock().expect("no holder panics");
                            events.push(event);
                            events.len()
                        };
                        sender.send_replace(count);
                    }
                }
            }
        });
        Ok(Self { api, token, organization: organization.to_string(), account, key, events, grown, follower })
    }

    /// Enters, and connects its Stripe account under the code `stripe`.
    pub async fn connected(scenery: &Scenery, name: &str) -> Result<(Self, Integration)> {
        let mut player = Self::enter(scenery, name).await?;
        let integration = player.connect_stripe().await?;
        Ok((player, integration))
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
        let answer = self.api.integrations.create_integration(request).await?.into_inner();
        answer.integration.context("the answer holds no integration")
    }

    /// All events that the stream has brought so far; the log may hold more.
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no holder panics").clone()
    }

    /// All events of the log: waits until the stream has brought those that it holds now.
    pub async fn all_events(&self) -> Result<Vec<Event>> {
        let newest = ListEventsRequest { after_position: 0, page_size: 1, webhook_types: Vec::new() };
        let last = self.api.events.clone().list_events(newest).await?.into_inner().last_position;
        let mut grown = self.grown.clone();
        let caught_up =
            grown.wait_for(|_| self.events().last().is_some_and(|event| event.position >= last) || last == 0);
        let in_time = tokio::time::timeout(PATIENCE, caught_up).await;
        in_time
            .with_context(|| format!("the stream did not reach position {last}"))?
            .context("the stream has ended")?;
        Ok(self.events())
    }

    /// Waits for an event that `wanted` takes, looking at all so far; `what` says what was waited for.
    pub async fn event<T>(&mut self, what: &str, mut wanted: impl FnMut(&Event) -> Option<T>) -> Result<T> {
        let waiting = async {
            let mut seen = 0;
            loop {
                let events = self.events();
                if let Some(found) = events[seen..].iter().find_map(&mut wanted) {
                    return Ok(found);
                }
                seen = events.len();
                self.grown.changed().await.context("the event stream has ended")?;
            }
        };
        if let Ok(found) = tokio::time::timeout(PATIENCE, waiting).await {
            return found;
        }
        let told: Vec<_> = self.events().iter().map(|event| event.webhook_type.clone()).collect();
        bail!("waited in vain for {what}; told were: {}", told.join(", "))
    }

    /// Waits for an event of a type about an invoice.
    pub async fn told(&mut self, webhook_type: &str, invoice: &str) -> Result<Event> {
        let what = format!("{webhook_type} of {invoice}");
        self.event(&what, |event| {
            (event.webhook_type == webhook_type && is_about(event, invoice)).then(|| event.clone())
        })
        .await
    }

    /// How many events of a type about an invoice the log holds.
    pub async fn count(&self, webhook_type: &str, invoice: &str) -> Result<usize> {
        let events = self.all_events().await?;
        Ok(events.iter().filter(|event| event.webhook_type == webhook_type && is_about(event, invoice)).count())
    }

    /// The payment of an invoice, as it is now.
    pub async fn payment(&mut self, invoice: &str) -> Result<Payment> {
        let payment = Some(get_payment_request::Payment::InvoiceId(invoice.to_owned()));
        let answer = self.api.payments.get_payment(GetPaymentRequest { payment }).await?.into_inner();
        answer.payment.context("the answer holds no payment")
    }

    /// A customer, as it is now.
    pub async fn customer(&mut self, external_id: &str) -> Result<Customer> {
        let customer = Some(get_customer_request::Customer::ExternalId(external_id.to_owned()));
        let answer = self.api.customers.get_customer(GetCustomerRequest { customer }).await?.into_inner();
        answer.customer.context("the answer holds no customer")
    }

    /// Asks until a customer is as wanted: for what no event tells.
    pub async fn customer_when(
        &mut self,
        external_id: &str,
        what: &str,
        wanted: impl Fn(&Customer) -> bool,
    ) -> Result<Customer> {
        let began = std::time::Instant::now();
        while began.elapsed() < PATIENCE {
            let customer = self.customer(external_id).await?;
            if wanted(&customer) {
                return Ok(customer);
            }
            let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
        }
        bail!("waited in vain until the customer {external_id} {what}")
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

/// Asks until `wanted` holds of what the sandbox shows.
pub(super) async fn until(what: &str, mut wanted: impl FnMut() -> bool) -> Result<()> {
    let began = std::time::Instant::now();
    while began.elapsed() < PATIENCE {
        if wanted() {
            return Ok(());
        }
        let _ = tokio::time::timeout(Duration::from_millis(20), std::future::pending::<()>()).await;
    }
    bail!("waited in vain until {what}")
}

/// Checks that a call was refused with this code and this reason.
pub(super) fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code, reason: &str) -> Result<Status> {
    let status = match answer {
        Ok(answer) => bail!("expected {code:?} {reason}, got {answer:?}"),
        Err(status) => status,
    };
    let told = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
    if status.code() != code || told != reason {
        bail!("expected {code:?} {reason}, got {:?} {told}: {}", status.code(), status.message());
    }
    Ok(status)
}

/// Checks one outcome.
macro_rules! hold {
    ($condition:expr, $($what:tt)+) => {
        if !$condition {
            anyhow::bail!("{}: does not hold: {}", format!($($what)+), stringify!($condition));
        }
    };
}
pub(super) use hold;
