//! A billing system with one organization and one Stripe account. It creates payments, injects faults into Stripe, and
//! reads the sandbox's ledger and recorded requests.

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Effect, Fault, LedgerEntry, RecordedRequest, Sandbox};
use paybridge::dev::scenarios::{BillingClient, ScenarioContext};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::create_payment_request::Customer;
use paybridge::grpc::proto::{
    CancelPaymentRequest, CreateCustomerRequest, CreatePaymentRequest, CreatePaymentUrlRequest,
    DeleteIntegrationRequest, Event, GetIntegrationRequest, Integration, ListPaymentMethodsRequest, Money, Payment,
    PaymentMethod, PaymentMethodKind, PaymentState, RecordManualPaymentRequest, RetryPaymentRequest,
    UpdatePaymentRequest, cancel_payment_request, create_payment_url_request, list_payment_methods_request,
    record_manual_payment_request, retry_payment_request,
};
use prost_types::Timestamp;
use serde_json::Value;
use tonic::Status;

use crate::support::customers::checkout_request;
use crate::support::sql::superuser;
use crate::support::wait::{Pace, until_ok};
use crate::support::{context, http};

/// The path of every confirmation of an intent.
pub const CONFIRM: &str = "/v1/payment_intents/*/confirm";
/// The path of every creation of an intent.
pub const CREATE: &str = "/v1/payment_intents";

/// One organization with its Stripe account, in an environment of its own.
pub struct Harness {
    pub context: ScenarioContext,
    pub billing: BillingClient,
    pub integration: Integration,
    pace: Pace,
}

impl Harness {
    pub async fn new(name: &str, options: Options) -> Self {
        let context = context(options).await;
        let (billing, integration) = BillingClient::connected(&context, name).await.expect("Stripe is connected");
        Self::over(context, billing, integration)
    }

    /// A harness of an integration that is connected already.
    pub fn over(context: ScenarioContext, billing: BillingClient, integration: Integration) -> Self {
        Self { context, billing, integration, pace: Pace::default() }
    }

    /// A harness with the customer `hooli`, whose default is this method (see [`Self::customer`]).
    pub async fn with_customer(name: &str, method: &str) -> Self {
        let mut harness = Self::new(name, Options::default()).await;
        harness.customer("hooli", method).await;
        harness
    }

    /// A harness whose reconcilers run with these periods.
    pub async fn with_periods(name: &str, periods: Periods) -> Self {
        Self::new(name, Options { periods, ..Options::default() }).await
    }

    pub fn sandbox(&self) -> &Sandbox {
        &self.context.environment.sandbox
    }

    pub fn advance(&self, by: time::Duration) {
        self.context.environment.clock.advance(by);
    }

    /// Advances the clock unless the servers have had less than 100 ms to act on the last step: for polls, which come
    /// more often than that.
    pub fn advance_slowly(&self, by: time::Duration) {
        if self.pace.allows_step() {
            self.advance(by);
        }
    }

    /// A connection to the database as its superuser.
    pub async fn database(&self) -> tokio_postgres::Client {
        superuser(&self.context.environment.database_url).await
    }

    /// Creates a customer, at Stripe too, and returns its Stripe id.
    pub async fn customer_without_method(&mut self, external_id: &str) -> String {
        let request = CreateCustomerRequest {
            request_id: format!("customer-{external_id}"),
            external_id: external_id.to_owned(),
            name: "Hooli".to_owned(),
            email: "billing@hooli.test".to_owned(),
            sync_with_provider: true,
            provider_payment_methods: vec![PaymentMethodKind::Card.into(), PaymentMethodKind::SepaDebit.into()],
            ..CreateCustomerRequest::default()
        };
        self.billing.api.customers.create_customer(request).await.expect("the customer is accepted");
        let created = self
            .billing
            .wait_for_customer(external_id, "is created at Stripe", |customer| {
                !customer.provider_customer_id.is_empty()
            })
            .await;
        created.expect("the customer is created at Stripe").provider_customer_id
    }

    /// Creates a customer whose default is this method: a shared test id, a card number, or an IBAN with a mandate.
    /// Returns its Stripe id.
    pub async fn customer(&mut self, external_id: &str, method: &str) -> String {
        let provider_id = self.customer_without_method(external_id).await;
        self.add_method(external_id, &provider_id, method).await;
        provider_id
    }

    /// Adds a method, waits until it is the default, and returns its Stripe id.
    pub async fn add_method(&mut self, external_id: &str, provider_id: &str, method: &str) -> String {
        let before = self.billing.customer(external_id).await.expect("a customer").default_payment_method_id;
        if !before.is_empty() {
            // Stripe's times are whole seconds: of two methods of one second, either may be the default.
            self.context.environment.clock.advance(time::Duration::seconds(2));
        }
        if method.starts_with(|letter: char| letter.is_ascii_alphabetic()) && !method.starts_with("pm_card") {
            // Only a SetupIntent, as Checkout creates it, shows a mandate.
            self.store_through_checkout(external_id, method).await;
        } else {
            self.sandbox().attach_in_dashboard(provider_id, method).expect("the method is attached");
        }
        self.billing
            .wait_for_customer(external_id, "has the new default", |customer| {
                !customer.default_payment_method_id.is_empty() && customer.default_payment_method_id != before
            })
            .await
            .expect("the method is the default");
        let methods = self.methods(external_id).await;
        let default = methods.into_iter().find(|method| method.is_default).expect("a default");
        default.provider_payment_method_id
    }

    async fn store_through_checkout(&mut self, external_id: &str, method: &str) {
        let request = checkout_request(external_id);
        let response = self.billing.api.customers.create_checkout_url(request).await.expect("a link").into_inner();
        let session = response.checkout_url.rsplit('/').next().expect("a session").to_owned();
        self.sandbox().complete_session(&session, method, true).expect("the page is completed");
    }

    pub async fn methods(&mut self, external_id: &str) -> Vec<PaymentMethod> {
        let which = list_payment_methods_request::Customer::ExternalCustomerId(external_id.to_owned());
        let request = ListPaymentMethodsRequest { customer: Some(which), ..ListPaymentMethodsRequest::default() };
        let response = self.billing.api.customers.list_payment_methods(request).await.expect("methods");
        response.into_inner().payment_methods
    }

    /// Creates a payment of 49.00 EUR, under a request id of its own.
    pub async fn pay(&mut self, external_id: &str, invoice: &str) -> Payment {
        self.pay_as(&format!("pay-{invoice}"), external_id, invoice, 4900).await.expect("the payment is accepted")
    }

    pub async fn pay_as(&self, request: &str, external_id: &str, invoice: &str, cents: i64) -> Result<Payment, Status> {
        let request = CreatePaymentRequest {
            request_id: request.to_owned(),
            invoice_id: invoice.to_owned(),
            invoice_number: invoice.to_uppercase(),
            customer: Some(Customer::ExternalCustomerId(external_id.to_owned())),
            amount: Some(Money { minor_units: cents, currency_code: "EUR".to_owned() }),
        };
        let mut payments = self.billing.api.payments.clone();
        Ok(payments.create_payment(request).await?.into_inner().payment.expect("a payment"))
    }

    pub async fn retry(&self, request: &str, payment: &Payment, force: bool) -> Result<Payment, Status> {
        let request = RetryPaymentRequest {
            payment: Some(retry_payment_request::Payment::Id(payment.id.clone())),
            request_id: request.to_owned(),
            force,
            ..RetryPaymentRequest::default()
        };
        let mut payments = self.billing.api.payments.clone();
        Ok(payments.retry_payment(request).await?.into_inner().payment.expect("a payment"))
    }

    /// Creates a payment link, and returns the id of its session; empty if there is no link any more.
    pub async fn link(&self, request: &str, payment: &Payment) -> Result<(String, Payment), Status> {
        let request = CreatePaymentUrlRequest {
            payment: Some(create_payment_url_request::Payment::Id(payment.id.clone())),
            request_id: request.to_owned(),
            ..CreatePaymentUrlRequest::default()
        };
        let mut payments = self.billing.api.payments.clone();
        let response = payments.create_payment_url(request).await?.into_inner();
        let session = response.payment_url.rsplit('/').next().unwrap_or_default().to_owned();
        Ok((session, response.payment.expect("a payment")))
    }

    pub async fn change_amount(&self, payment: &Payment, cents: i64) -> Result<Payment, Status> {
        let amount = Some(Money { minor_units: cents, currency_code: "EUR".to_owned() });
        let payment = Some(Payment { id: payment.id.clone(), amount, ..Payment::default() });
        let mut payments = self.billing.api.payments.clone();
        let response = payments.update_payment(UpdatePaymentRequest { payment, update_mask: None }).await?;
        Ok(response.into_inner().payment.expect("a payment"))
    }

    pub async fn record_manual(&self, request: &str, payment: &Payment) -> Result<Payment, Status> {
        self.record_manual_at(request, payment, None).await
    }

    /// Records a manual payment that was made at `paid_time`.
    pub async fn record_manual_at(
        &self,
        request: &str,
        payment: &Payment,
        paid_time: Option<Timestamp>,
    ) -> Result<Payment, Status> {
        let request = RecordManualPaymentRequest {
            payment: Some(record_manual_payment_request::Payment::Id(payment.id.clone())),
            request_id: request.to_owned(),
            reference: "bank transfer 4711".to_owned(),
            paid_time,
        };
        let mut payments = self.billing.api.payments.clone();
        let response = payments.record_manual_payment(request).await?;
        Ok(response.into_inner().payment.expect("a payment"))
    }

    /// The metrics of the first server.
    pub async fn metrics(&self) -> String {
        let url = format!("{}/metrics", self.context.environment.servers[0].http);
        http().get(url).send().await.expect("a response").text().await.expect("text")
    }

    pub async fn cancel(&self, payment: &Payment) -> Result<Payment, Status> {
        let mut payments = self.billing.api.payments.clone();
        let which = cancel_payment_request::Payment::Id(payment.id.clone());
        let response = payments.cancel_payment(CancelPaymentRequest { payment: Some(which) }).await?;
        Ok(response.into_inner().payment.expect("a payment"))
    }

    /// All events of the log.
    pub async fn events(&self) -> Vec<Event> {
        self.billing.all_events().await.expect("the stream brings what the log holds")
    }

    /// The number of logged events of a type about an invoice.
    pub async fn event_count(&self, webhook_type: &str, invoice: &str) -> usize {
        self.billing.count_events(webhook_type, invoice).await.expect("the stream brings what the log holds")
    }

    /// The current state of the integration.
    pub async fn read_integration(&self) -> Integration {
        let get = GetIntegrationRequest { id: self.integration.id.clone() };
        let response = self.billing.api.integrations.clone().get_integration(get).await.expect("a response");
        response.into_inner().integration.expect("an integration")
    }

    /// Requests a disconnect, and does not wait for its end.
    pub async fn disconnect(&self, force: bool) {
        let request = DeleteIntegrationRequest { id: self.integration.id.clone(), force };
        self.billing.api.integrations.clone().delete_integration(request).await.expect("the disconnect is accepted");
    }

    pub async fn payment(&mut self, invoice: &str) -> Payment {
        self.billing.payment(invoice).await.expect("a payment")
    }

    /// Waits until the invoice's payment satisfies `wanted`.
    pub async fn payment_when(&mut self, invoice: &str, what: &str, wanted: impl Fn(&Payment) -> bool) -> Payment {
        until_ok(&format!("{invoice} {what}"), async || {
            let payment = self.payment(invoice).await;
            if wanted(&payment) { Ok(payment) } else { Err(format!("{payment:#?}")) }
        })
        .await
    }

    /// Waits until the invoice's payment is in a state.
    pub async fn payment_in(&mut self, invoice: &str, state: PaymentState) -> Payment {
        self.payment_when(invoice, &format!("is {state:?}"), |payment| payment.state() == state).await
    }

    /// Waits until no job of these kinds is left. If none is due, and the next one is within a minute, the clock is
    /// advanced to it.
    pub async fn drain_jobs(&self, kinds: &[&str]) {
        let database = self.database().await;
        let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let query = "SELECT count(*), bool_or(due OR lease_until IS NOT NULL), \
                extract(epoch FROM min(run_at) - $2::text::timestamptz)::float8, string_agg(to_json(jobs)::text, '\n') \
            FROM jobs WHERE kind = ANY ($1)";
        until_ok("no job is left", async || {
            let now = self.context.environment.clock.now().to_string();
            let left = database.query_one(query, &[&kinds, &now]).await.expect("the remaining jobs");
            if left.get::<_, i64>(0) == 0 {
                return Ok(());
            }
            let (is_active, wait) = (left.get::<_, bool>(1), left.get::<_, f64>(2));
            if !is_active && (0.0..=60.0).contains(&wait) {
                self.advance(time::Duration::seconds_f64(wait));
            }
            Err(format!("it is {now}, and these are left: {}", left.get::<_, String>(3)))
        })
        .await;
    }

    /// Waits until every webhook was acknowledged and applied, and no payment has work left.
    pub async fn quiesce(&self) {
        self.all_delivered().await;
        self.drain_jobs(&["submit_payment"]).await;
    }

    /// Waits until every webhook was acknowledged and applied.
    pub async fn all_delivered(&self) {
        until_ok("all webhooks are acknowledged", async || {
            let pending = self.sandbox().deliveries();
            if pending.is_empty() { Ok(()) } else { Err(format!("{pending:#?}")) }
        })
        .await;
        self.drain_jobs(&["apply_delivery", "push_default_method"]).await;
    }

    /// The charges for an invoice in Stripe's ledger.
    pub fn charges(&self, invoice: &str) -> Vec<LedgerEntry> {
        let mut ledger = self.sandbox().ledger();
        ledger.retain(|entry| entry.metadata.get("invoice_id").is_some_and(|id| id == invoice));
        ledger
    }

    /// The number of charges for an invoice that have not failed.
    pub fn live_charges(&self, invoice: &str) -> usize {
        self.charges(invoice).iter().filter(|entry| entry.status != "failed").count()
    }

    /// The recorded POSTs to paths with this end.
    pub fn posts(&self, path_end: &str) -> Vec<RecordedRequest> {
        let mut requests = self.sandbox().requests();
        requests.retain(|request| request.method == "POST" && request.path.ends_with(path_end));
        requests
    }

    /// The current intents of an invoice at Stripe, oldest first.
    pub fn intents(&self, invoice: &str) -> Vec<Value> {
        let created = self.sandbox().events(&self.billing.account);
        let ids = created.iter().filter(|event| event["type"] == "payment_intent.created");
        let ids = ids.map(|event| event["data"]["object"]["id"].as_str().expect("an id").to_owned());
        let all = ids.filter_map(|id| self.sandbox().object(&id));
        all.filter(|intent| intent["metadata"]["invoice_id"] == invoice).collect()
    }

    /// Applies a fault to the next `times` POSTs to a path.
    pub fn fault(&self, path: &str, times: u32, action: Action) {
        self.sandbox().add_fault(Fault { times: Some(times), ..Fault::once("POST", path, action) });
    }

    /// Cuts the connection of the next `times` POSTs to a path: the response is lost.
    pub fn cut(&self, path: &str, times: u32, work: Effect) {
        self.fault(path, times, Action::Cut { work });
    }

    pub async fn shutdown(self) {
        drop(self.billing);
        self.context.environment.shutdown().await;
    }
}

/// Posts to Stripe's API as the merchant, with the account's key.
pub async fn post_to_stripe(harness: &Harness, path: &str, body: &str) -> Value {
    post_to_stripe_with_key(harness, None, path, body).await
}

/// Like [`post_to_stripe`], with an idempotency key.
pub async fn post_to_stripe_with_key(
    harness: &Harness,
    idempotency_key: Option<&str>,
    path: &str,
    body: &str,
) -> Value {
    let mut request = http()
        .post(format!("{}{path}", harness.sandbox().url()))
        .bearer_auth(&harness.billing.key)
        .header("content-type", "application/x-www-form-urlencoded")
        .body(body.to_owned());
    if let Some(key) = idempotency_key {
        request = request.header("idempotency-key", key);
    }
    let response = request.send().await.expect("a response");
    assert!(response.status().is_success(), "{path}: {}", response.status());
    serde_json::from_str(&response.text().await.expect("a body")).expect("JSON")
}
