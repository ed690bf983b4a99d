//! A billing system at its till: a stage with one organization, one Stripe account, and helpers that give invoices in,
//! make Stripe misbehave, and read the truth: the sandbox's ledger and the requests that it recorded.

use std::future::Future;
use std::time::{Duration as RealDuration, Instant};

use paybridge::dev::sandbox::{Action, Effect, Fault, LedgerEntry, Recorded, Sandbox};
use paybridge::dev::stage::Options;
use paybridge::dev::story::{Player, Scenery};
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::{
    CancelPaymentRequest, CreateCustomerRequest, CreatePaymentRequest, CreatePaymentUrlRequest,
    DeleteIntegrationRequest, Event, GetIntegrationRequest, Integration, ListPaymentMethodsRequest, Money, Payment,
    PaymentMethod, PaymentMethodKind, PaymentState, RecordManualPaymentRequest, RetryPaymentRequest,
    UpdatePaymentRequest,
};
use prost_types::Timestamp;
use serde_json::Value;
use tokio_postgres::NoTls;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::support::{http, scenery};

/// How long a test waits for anything, real time.
const PATIENCE: RealDuration = RealDuration::from_secs(45);

/// The path of every confirm.
pub const CONFIRM: &str = "/v1/payment_intents/*/confirm";
/// The path of every creation of an intent.
pub const CREATE: &str = "/v1/payment_intents";

/// Asks again and again until there is an answer.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(found) = ask().await {
            return found;
        }
        let _ = tokio::time::timeout(RealDuration::from_millis(25), std::future::pending::<()>()).await;
    }
    panic!("waited in vain until {what}");
}

/// Why a call was refused.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

/// One organization with its Stripe account, on a stage of its own.
pub struct Cashier {
    pub scenery: Scenery,
    pub player: Player,
    pub integration: Integration,
}

impl Cashier {
    pub async fn new(name: &str, options: Options) -> Self {
        let scenery = scenery(options).await;
        let (player, integration) = Player::connected(&scenery, name).await.expect("Stripe is connected");
        Self { scenery, player, integration }
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.scenery.stage.sandbox
    }

    pub fn advance(&self, by: time::Duration) {
        self.scenery.stage.clock.advance(by);
    }

    /// The database, as its superuser, whom no row level security holds.
    pub async fn database(&self) -> tokio_postgres::Client {
        let mut config: tokio_postgres::Config = self.scenery.stage.database_url.parse().expect("an address");
        let (client, connection) = config.user("postgres").connect(NoTls).await.expect("the database answers");
        tokio::spawn(connection);
        client
    }

    /// A customer that is made at Stripe; with its Stripe id.
    pub async fn bare_customer(&mut self, external_id: &str) -> String {
        let request = CreateCustomerRequest {
            request_id: format!("customer-{external_id}"),
            external_id: external_id.to_owned(),
            name: "Hooli".to_owned(),
            email: "billing@hooli.test".to_owned(),
            sync_with_provider: true,
            provider_payment_methods: vec![PaymentMethodKind::Card.into(), PaymentMethodKind::SepaDebit.into()],
            ..CreateCustomerRequest::default()
        };
        self.player.api.customers.create_customer(request).await.expect("the customer is taken");
        let made = self
            .player
            .customer_when(external_id, "is made at Stripe", |customer| !customer.provider_customer_id.is_empty())
            .await;
        made.expect("the customer is made at Stripe").provider_customer_id
    }

    /// A customer whose default is this method: a shared test id, a card number or an IBAN (which comes with a
    /// mandate). Returns its Stripe id.
    pub async fn customer(&mut self, external_id: &str, method: &str) -> String {
        let provider_id = self.bare_customer(external_id).await;
        self.add_method(external_id, &provider_id, method).await;
        provider_id
    }

    /// Attaches one more method, and waits until it is the default; with its Stripe id.
    pub async fn add_method(&mut self, external_id: &str, provider_id: &str, method: &str) -> String {
        let before = self.player.customer(external_id).await.expect("a customer").default_payment_method_id;
        if !before.is_empty() {
            // Of two methods of one second either may be the default: Stripe's times are whole seconds.
            self.scenery.stage.clock.advance(time::Duration::seconds(2));
        }
        if method.starts_with(|letter: char| letter.is_ascii_alphabetic()) && !method.starts_with("pm_card") {
            // A mandate is told only by a SetupIntent, as after Checkout: so the page is used.
            self.store_through_checkout(external_id, method).await;
        } else {
            self.sandbox().attach_by_hand(provider_id, method).expect("the method is attached");
        }
        self.player
            .customer_when(external_id, "has the new default", |customer| {
                !customer.default_payment_method_id.is_empty() && customer.default_payment_method_id != before
            })
            .await
            .expect("the method is the default");
        let methods = self.methods(external_id).await;
        let default = methods.into_iter().find(|method| method.is_default).expect("a default");
        default.provider_payment_method_id
    }

    async fn store_through_checkout(&mut self, external_id: &str, method: &str) {
        let customer_id = self.player.customer(external_id).await.expect("a customer").id;
        let ask = paybridge::grpc::proto::CreateCheckoutUrlRequest { customer_id, ..Default::default() };
        let answer = self.player.api.customers.create_checkout_url(ask).await.expect("a link").into_inner();
        let session = answer.checkout_url.rsplit('/').next().expect("a session").to_owned();
        self.sandbox().complete_session(&session, method, true).expect("the page is completed");
    }

    pub async fn methods(&mut self, external_id: &str) -> Vec<PaymentMethod> {
        let customer_id = self.player.customer(external_id).await.expect("a customer").id;
        let request = ListPaymentMethodsRequest { customer_id, ..ListPaymentMethodsRequest::default() };
        let answer = self.player.api.customers.list_payment_methods(request).await.expect("methods");
        answer.into_inner().payment_methods
    }

    /// Gives an invoice of 49.00 EUR in, under a request id of its own.
    pub async fn pay(&mut self, external_id: &str, invoice: &str) -> Payment {
        self.pay_as(&format!("pay-{invoice}"), external_id, invoice, 4900).await.expect("the payment is taken")
    }

    pub async fn pay_as(&self, request: &str, external_id: &str, invoice: &str, cents: i64) -> Result<Payment, Status> {
        let request = CreatePaymentRequest {
            request_id: request.to_owned(),
            invoice_id: invoice.to_owned(),
            invoice_number: invoice.to_uppercase(),
            customer: Some(Customer::ExternalCustomerId(external_id.to_owned())),
            amount: Some(Money { minor_units: cents, currency_code: "EUR".to_owned() }),
        };
        let mut payments = self.player.api.payments.clone();
        Ok(payments.create_payment(request).await?.into_inner().payment.expect("a payment"))
    }

    pub async fn retry(&self, request: &str, payment: &Payment, force: bool) -> Result<Payment, Status> {
        let request = RetryPaymentRequest {
            id: payment.id.clone(),
            request_id: request.to_owned(),
            force,
            ..RetryPaymentRequest::default()
        };
        let mut payments = self.player.api.payments.clone();
        Ok(payments.retry_payment(request).await?.into_inner().payment.expect("a payment"))
    }

    /// Asks for a link to pay the invoice on a page; with the session's id.
    pub async fn link(&self, request: &str, payment: &Payment) -> Result<(String, Payment), Status> {
        let request = CreatePaymentUrlRequest {
            id: payment.id.clone(),
            request_id: request.to_owned(),
            ..CreatePaymentUrlRequest::default()
        };
        let mut payments = self.player.api.payments.clone();
        let answer = payments.create_payment_url(request).await?.into_inner();
        let session = answer.payment_url.rsplit('/').next().unwrap_or_default().to_owned();
        Ok((session, answer.payment.expect("a payment")))
    }

    pub async fn change_amount(&self, payment: &Payment, cents: i64) -> Result<Payment, Status> {
        let amount = Some(Money { minor_units: cents, currency_code: "EUR".to_owned() });
        let payment = Some(Payment { id: payment.id.clone(), amount, ..Payment::default() });
        let mut payments = self.player.api.payments.clone();
        let answer = payments.update_payment(UpdatePaymentRequest { payment, update_mask: None }).await?;
        Ok(answer.into_inner().payment.expect("a payment"))
    }

    pub async fn record_manual(&self, request: &str, payment: &Payment) -> Result<Payment, Status> {
        self.record_manual_of(request, payment, None).await
    }

    /// What was paid elsewhere at that time.
    pub async fn record_manual_of(
        &self,
        request: &str,
        payment: &Payment,
        paid_time: Option<Timestamp>,
    ) -> Result<Payment, Status> {
        let request = RecordManualPaymentRequest {
            id: payment.id.clone(),
            request_id: request.to_owned(),
            reference: "bank transfer 4711".to_owned(),
            paid_time,
        };
        let mut payments = self.player.api.payments.clone();
        let answer = payments.record_manual_payment(request).await?;
        Ok(answer.into_inner().payment.expect("a payment"))
    }

    /// What Prometheus reads at the first server.
    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.scenery.stage.servers[0].http);
        http().get(url).send().await.expect("an answer").text().await.expect("a text")
    }

    pub async fn cancel(&self, payment: &Payment) -> Result<Payment, Status> {
        let mut payments = self.player.api.payments.clone();
        let answer = payments.cancel_payment(CancelPaymentRequest { id: payment.id.clone() }).await?;
        Ok(answer.into_inner().payment.expect("a payment"))
    }

    /// All events of the log.
    pub async fn events(&self) -> Vec<Event> {
        self.player.all_events().await.expect("the stream brings what the log holds")
    }

    /// How many events of a type about an invoice the log holds.
    pub async fn count(&self, webhook_type: &str, invoice: &str) -> usize {
        self.player.count(webhook_type, invoice).await.expect("the stream brings what the log holds")
    }

    /// The integration as it is now.
    pub async fn integration_now(&self) -> Integration {
        let get = GetIntegrationRequest { id: self.integration.id.clone() };
        let answer = self.player.api.integrations.clone().get_integration(get).await.expect("an answer");
        answer.into_inner().integration.expect("an integration")
    }

    /// Asks for the integration to be disconnected; that takes its time.
    pub async fn disconnect(&self, force: bool) {
        let request = DeleteIntegrationRequest { id: self.integration.id.clone(), force };
        self.player.api.integrations.clone().delete_integration(request).await.expect("it begins to go");
    }

    pub async fn payment(&mut self, invoice: &str) -> Payment {
        self.player.payment(invoice).await.expect("a payment")
    }

    /// Waits until the invoice's payment is as wanted.
    pub async fn payment_when(&mut self, invoice: &str, what: &str, wanted: impl Fn(&Payment) -> bool) -> Payment {
        let began = Instant::now();
        loop {
            let payment = self.payment(invoice).await;
            if wanted(&payment) {
                return payment;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain until {invoice} {what}; it is {payment:#?}");
            let _ = tokio::time::timeout(RealDuration::from_millis(25), std::future::pending::<()>()).await;
        }
    }

    /// Waits until the invoice's payment is in a state.
    pub async fn payment_in(&mut self, invoice: &str, state: PaymentState) -> Payment {
        self.payment_when(invoice, &format!("is {state:?}"), |payment| payment.state() == state).await
    }

    /// Waits until no job of a kind is left that could still change anything. Where all that are left come within a
    /// minute, that minute is skipped.
    pub async fn at_rest(&self, kinds: &[&str]) {
        let database = self.database().await;
        let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let query = "SELECT count(*), bool_or(due OR lease_until IS NOT NULL), \
                extract(epoch FROM min(run_at) - $2::text::timestamptz)::float8 \
            FROM jobs WHERE kind = ANY ($1)";
        until("no job is left", || async {
            let now = self.scenery.stage.clock.now().to_string();
            let left = database.query_one(query, &[&kinds, &now]).await.expect("the jobs that are left");
            if left.get::<_, i64>(0) == 0 {
                return Some(());
            }
            let (is_at_work, wait) = (left.get::<_, bool>(1), left.get::<_, f64>(2));
            if !is_at_work && (0.0..=60.0).contains(&wait) {
                self.advance(time::Duration::seconds_f64(wait));
            }
            None
        })
        .await;
    }

    /// Waits until every webhook was acknowledged and applied.
    pub async fn all_delivered(&self) {
        let began = Instant::now();
        loop {
            let waiting = self.sandbox().deliveries();
            if waiting.is_empty() {
                break;
            }
            assert!(began.elapsed() < PATIENCE, "waited in vain until these are acknowledged: {waiting:#?}");
            let _ = tokio::time::timeout(RealDuration::from_millis(25), std::future::pending::<()>()).await;
        }
        self.at_rest(&["apply_delivery", "push_default_method"]).await;
    }

    /// The charges for an invoice: the truth about money.
    pub fn charges(&self, invoice: &str) -> Vec<LedgerEntry> {
        let mut ledger = self.sandbox().ledger();
        ledger.retain(|entry| entry.metadata.get("invoice_id").is_some_and(|id| id == invoice));
        ledger
    }

    /// How many charges for an invoice took money, or may yet.
    pub fn live_charges(&self, invoice: &str) -> usize {
        self.charges(invoice).iter().filter(|entry| entry.status != "failed").count()
    }

    /// The POSTs to a path that ends so.
    pub fn posts(&self, path_end: &str) -> Vec<Recorded> {
        let mut requests = self.sandbox().requests();
        requests.retain(|request| request.method == "POST" && request.path.ends_with(path_end));
        requests
    }

    /// The intents of an invoice at Stripe, oldest first, as they are now.
    pub fn intents(&self, invoice: &str) -> Vec<Value> {
        let created = self.sandbox().events(&self.player.account);
        let ids = created.iter().filter(|event| event["type"] == "payment_intent.created");
        let ids = ids.map(|event| event["data"]["object"]["id"].as_str().expect("an id").to_owned());
        let all = ids.filter_map(|id| self.sandbox().object(&id));
        all.filter(|intent| intent["metadata"]["invoice_id"] == invoice).collect()
    }

    /// Makes the next `times` requests to a path go wrong.
    pub fn fault(&self, path: &str, times: u32, action: Action) {
        self.sandbox().add_fault(Fault { times: Some(times), ..Fault::once("POST", path, action) });
    }

    pub fn cut(&self, path: &str, times: u32, work: Effect) {
        self.fault(path, times, Action::Cut { work });
    }

    pub async fn end(self) {
        drop(self.player);
        self.scenery.stage.strike().await;
    }
}

/// What a person does in Stripe's dashboard, through its API.
pub async fn at_stripe(cashier: &Cashier, path: &str, body: &str) -> Value {
    at_stripe_under(cashier, None, path, body).await
}

/// The same under an idempotency key.
pub async fn at_stripe_under(cashier: &Cashier, idempotency_key: Option<&str>, path: &str, body: &str) -> Value {
    let mut request = http()
        .post(format!("{}{path}", cashier.sandbox().url()))
        .bearer_auth(&cashier.player.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.to_owned());
    if let Some(key) = idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let answer = request.send().await.expect("the sandbox answers");
    assert!(answer.status().is_success(), "{path}: {}", answer.status());
    serde_json::from_str(&answer.text().await.expect("a body")).expect("JSON")
}
