//! Actors: payers on their Checkout pages, and users of the billing system who react to its events.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Code;

use super::callers::call;
use super::checker::methods::UNSET;
use super::plan::{CustomerProfile, PayerAction, any_payer_action};
use super::requests::{PaymentRef, RefundPlan, Request};
use super::workload::{Workload, format_status};
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    CreateCheckoutUrlRequest, Event, EventPayment, Money, PaymentProviderCustomerCheckoutUrl,
    PaymentProviderInvoicePaymentError, RetryPaymentRequest, create_checkout_url_request, retry_payment_request,
};

/// The maximum number of retries of an invoice.
const RETRIES_MAX: u64 = 3;
/// How often a payer opens a page to store a payment method, if restorations expire the earlier ones.
const PAGES_MAX: u32 = 4;
/// The percentage of correct payments that are refunded as goodwill.
const GOODWILL_PERCENT: u64 = 8;
/// Cards that succeed.
const GOOD_CARDS: [&str; 4] = ["4242424242424242", "4242424242424242", "4000000000007726", "4000000000005126"];
/// Paybridge retries payments with this failure on its own.
const NO_METHOD: &str = "no_payment_method";

impl Workload {
    /// Handles the events of all billing systems, each in log order, until the channel closes.
    pub async fn handle_events(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<(usize, Event)>) {
        while let Some((organization, event)) = events.recv().await {
            match event.object {
                Some(Object::PaymentProviderCustomerCheckoutUrl(link))
                    if event.webhook_type == "customer.checkout_url_generated" =>
                {
                    self.complete_checkout(organization, link);
                }
                Some(Object::PaymentProviderInvoicePaymentError(failure)) => self.handle_failure(organization, failure),
                Some(Object::PaymentMethod(method)) if event.webhook_type == UNSET => {
                    self.handle_unset_default(&(organization, method.external_customer_id));
                }
                Some(Object::Payment(payment)) => self.handle_payment_event(organization, &event.webhook_type, payment),
                _ => {}
            }
        }
    }

    fn handle_unset_default(&self, whose: &(usize, String)) {
        let now = self.now();
        self.history.external(|external| {
            if let Some(unset) = external.unset_defaults.get_mut(whose) {
                unset.reported_at.get_or_insert(now);
            }
        });
    }

    fn handle_payment_event(self: &Arc<Self>, organization: usize, webhook_type: &str, payment: EventPayment) {
        let target = PaymentRef { organization, invoice: payment.lago_payable_id };
        match webhook_type {
            "payment.requires_action" => {
                let page = payment.next_action.and_then(|action| action.redirect_to_url).unwrap_or_default().url;
                let id = page.rsplit('/').next().unwrap_or_default().to_owned();
                if page.contains("/3ds/") {
                    self.authenticate(&id);
                } else {
                    self.history.external(|external| _ = external.links.insert(id));
                }
            }
            "payment.overpaid" => {
                // A charge may have collected more than was due; only the surplus is refunded.
                let surplus = Money {
                    minor_units: payment.amount_cents.unwrap_or_default(),
                    currency_code: payment.amount_currency,
                };
                self.refund_surplus(&target, &payment.provider_charge_id.unwrap_or_default(), &surplus);
            }
            "payment.succeeded" => {
                let customer = payment.provider_customer_id.unwrap_or_default();
                self.change_default(organization, &payment.external_customer_id, customer);
                let mut rng = self.rng(&format!("goodwill {organization} {}", target.invoice));
                if rng.chance(GOODWILL_PERCENT) && payment.r#type == "provider" {
                    let part = Money { minor_units: 1, currency_code: payment.amount_currency };
                    let amount = rng.chance(50).then_some(part);
                    let workload = Arc::clone(self);
                    let plan = RefundPlan { target, name: "goodwill", charge: String::new(), amount };
                    self.actors.spawn(async move { workload.refund(&plan).await });
                }
            }
            _ => {}
        }
    }

    /// A customer has to authenticate: they succeed, fail, or leave it.
    fn authenticate(self: &Arc<Self>, intent: &str) {
        let mut rng = self.rng(&format!("proof {intent}"));
        let (workload, intent) = (Arc::clone(self), intent.to_owned());
        self.actors.spawn(async move {
            pause(Duration::from_millis(rng.below(5_000))).await;
            let succeeds = match rng.below(10) {
                0..5 => true,
                5..7 => false,
                _ => return,
            };
            if let Err(error) = workload.sandbox.authenticate(&intent, succeeds) {
                tracing::info!(intent, "the authentication is no longer pending: {error:#}");
            }
        });
    }

    /// Refunds a surplus, now and then by two users at once.
    fn refund_surplus(self: &Arc<Self>, target: &PaymentRef, charge: &str, surplus: &Money) {
        let twice = self.rng(&format!("back {}", target.invoice)).chance(30);
        let plan = |name| RefundPlan {
            target: target.clone(),
            name,
            charge: charge.to_owned(),
            amount: Some(surplus.clone()),
        };
        let (first, second, workload) = (plan("back"), plan("back-too"), Arc::clone(self));
        self.actors.spawn(async move {
            let second = async {
                if twice {
                    workload.refund(&second).await;
                }
            };
            tokio::join!(workload.refund(&first), second);
        });
    }

    /// A payer gets a Checkout link and stores the payment method of their profile.
    fn complete_checkout(self: &Arc<Self>, organization: usize, link: PaymentProviderCustomerCheckoutUrl) {
        let Some((plan, _)) = self.customer(organization, &link.external_customer_id) else { return };
        let Some(method) = plan.profile.first_method() else { return };
        let is_late = plan.profile == CustomerProfile::LateCard;
        let mut rng = self.rng(&format!("payer {organization} {}", plan.external_id));
        let method = if plan.profile == CustomerProfile::GoodCard { *rng.pick(&GOOD_CARDS) } else { method };
        let workload = Arc::clone(self);
        self.actors.spawn(async move {
            if is_late {
                pause(Duration::from_millis(rng.between(4_000, 12_000))).await;
            }
            let mut url = link.checkout_url;
            for number in 1..=PAGES_MAX {
                let session = url.rsplit('/').next().unwrap_or_default();
                let Err(error) = workload.sandbox.complete_session(session, method, true) else { return };
                tracing::warn!(customer = link.external_customer_id, "a page was not completed: {error:#}");
                // After a restoration, a page that the database does not know is expired.
                if !workload.is_expired(session) {
                    return;
                }
                let Some(next) = workload.request_page(organization, &link.external_customer_id, number).await else {
                    return;
                };
                url = next;
            }
        });
    }

    /// Requests another page to store a payment method, and returns its URL.
    async fn request_page(&self, organization: usize, external_id: &str, number: u32) -> Option<String> {
        let request = CreateCheckoutUrlRequest {
            request_id: format!("page-{number}-{external_id}"),
            customer: Some(create_checkout_url_request::Customer::ExternalCustomerId(external_id.to_owned())),
            ..CreateCheckoutUrlRequest::default()
        };
        let mut rng = self.rng(&request.request_id);
        let organization = &self.organizations[organization];
        let response = call(organization, &mut rng, &self.calls, &request, |mut api, request| async move {
            api.customers.create_checkout_url(request).await
        });
        Some(response.await.ok()?.checkout_url)
    }

    /// Reacts to a failed payment: adds a better card if the profile has one, and retries.
    fn handle_failure(self: &Arc<Self>, organization: usize, failure: PaymentProviderInvoicePaymentError) {
        let code = failure.provider_error.as_ref().map(|error| error.error_code.as_str()).unwrap_or_default();
        let Some((plan, _)) = self.customer(organization, &failure.external_customer_id) else { return };
        let is_link_failure = code.starts_with("payment_url_");
        let retries =
            is_link_failure || plan.profile.changes_card() || plan.profile == CustomerProfile::ChangingDefault;
        if let (NO_METHOD, CustomerProfile::BankAccountByLink(iban)) = (code, plan.profile) {
            let workload = Arc::clone(self);
            self.actors.spawn(async move { workload.pay_by_link(organization, &failure, iban).await });
            return;
        }
        if code == NO_METHOD || !retries {
            return;
        }
        let nth = self.count_retry(organization, &failure.lago_invoice_id);
        if nth <= RETRIES_MAX {
            let workload = Arc::clone(self);
            self.actors.spawn(async move { workload.change_card_and_retry(organization, &failure, nth).await });
        }
    }

    /// Pays an invoice by a payment link with a bank account, which is stored for the customer. One of its invoices is
    /// enough.
    async fn pay_by_link(&self, organization: usize, failure: &PaymentProviderInvoicePaymentError, iban: &'static str) {
        let Some((_, state)) = self.customer(organization, &failure.external_customer_id) else { return };
        let target = PaymentRef::of(organization, failure);
        let mut rng = self.rng(&format!("first page {organization} {}", target.invoice));
        let paid = state.paid_by_link.get_or_try_init(|| async {
            for name in ["first", "first-again", "first-once-more"] {
                let session = self.request_link(&target, name, &mut rng).await.ok_or(())?;
                pause(Duration::from_millis(rng.below(2_000))).await;
                if self.pay_link(&target, &session, PayerAction::PayByDebit(iban)).await {
                    return Ok(());
                }
                // After a restoration, a link that the database does not know is expired.
                if !self.is_expired(&session) {
                    break;
                }
            }
            Err(())
        });
        if paid.await.is_err() {
            tracing::info!(
                invoice = target.invoice,
                "an invoice was not paid by its link; another invoice of the customer may be"
            );
        }
    }

    async fn change_card_and_retry(
        self: &Arc<Self>,
        organization: usize,
        failure: &PaymentProviderInvoicePaymentError,
        nth: u64,
    ) {
        let Some((plan, state)) = self.customer(organization, &failure.external_customer_id) else { return };
        let mut rng = self.rng(&format!("retry {organization} {} {nth}", failure.lago_invoice_id));
        if plan.profile.changes_card()
            && let Some(customer) = &failure.provider_customer_id
        {
            state.method_changed.get_or_init(|| async { self.add_card(customer, "pm_card_visa") }).await;
        }
        pause(Duration::from_millis(rng.between(300, 2_000))).await;
        if rng.chance(35) {
            // A payer gets a link instead, though somebody else may retry all the same.
            let target = PaymentRef::of(organization, failure);
            self.send_link(&target, &format!("after-{nth}"), any_payer_action(&mut rng)).await;
            if rng.chance(70) {
                return;
            }
        }
        let request = |name: &str| RetryPaymentRequest {
            payment: Some(retry_payment_request::Payment::InvoiceId(failure.lago_invoice_id.clone())),
            request_id: format!("{name}-{nth}-{}", failure.lago_invoice_id),
            payment_method_id: String::new(),
            force: true,
        };
        // Now and then two users retry at once.
        let second = rng.chance(25).then(|| request("retry-too"));
        let mut other = rng.clone();
        tokio::join!(self.retry(organization, request("retry"), &mut rng), async {
            if let Some(second) = second {
                other.next();
                self.retry(organization, second, &mut other).await;
            }
        });
    }

    pub async fn retry(&self, organization: usize, request: RetryPaymentRequest, rng: &mut Rng) {
        let pending = self.calls.restorations.begin(Request::Retry(organization, request.clone()));
        let response =
            call(&self.organizations[organization], rng, &self.calls, &request, |mut api, request| async move {
                api.payments.retry_payment(request).await
            });
        match response.await {
            Ok(_) => pending.acknowledge(""),
            // That it is paid or in progress is a valid response, too.
            Err(status) if status.code() == Code::FailedPrecondition => {}
            Err(status) => tracing::warn!(request.request_id, "a retry was refused: {}", format_status(&status)),
        }
    }
}
