//! The people around: payers on their Checkout pages, clerks in Stripe's dashboard, and whoever reads the billing
//! system's events and does something about them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Code;

use super::callers::call;
use super::pause;
use super::plan::{InvoicePlan, Script, Wallet};
use super::workload::{Workload, shown};
use crate::dev::sandbox::HandPayment;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    Event, GetCustomerRequest, PaymentProviderCustomerCheckoutUrl, PaymentProviderInvoicePaymentError, PaymentState,
    RetryPaymentRequest, get_customer_request,
};

/// How often an invoice is tried again.
const RETRIES_MAX: u64 = 3;
/// Paybridge tries these again by itself.
const NO_METHOD: &str = "no_payment_method";

impl Workload {
    /// Acts on events, in the order in which each billing system reads them, until there are no more.
    pub async fn act_on(self: Arc<Self>, mut events: mpsc::UnboundedReceiver<(usize, Event)>) {
        while let Some((organization, event)) = events.recv().await {
            match event.object {
                Some(Object::PaymentProviderCustomerCheckoutUrl(link))
                    if event.webhook_type == "customer.checkout_url_generated" =>
                {
                    self.receive_link(organization, link);
                }
                Some(Object::PaymentProviderInvoicePaymentError(failure)) => self.hear_failure(organization, failure),
                Some(Object::Payment(payment)) if event.webhook_type == "payment.succeeded" => {
                    let customer = payment.provider_customer_id.unwrap_or_default();
                    self.change_mind(organization, &payment.external_customer_id, customer);
                }
                _ => {}
            }
        }
    }

    /// A payer gets a link to a Checkout page, and stores what is in the wallet.
    fn receive_link(self: &Arc<Self>, organization: usize, link: PaymentProviderCustomerCheckoutUrl) {
        let Some((plan, _)) = self.customer(organization, &link.external_customer_id) else { return };
        let Some(method) = plan.wallet.first_method() else { return };
        let is_late = plan.wallet == Wallet::Late;
        let mut rng = self.rng(&format!("payer {organization} {}", plan.external_id));
        let workload = Arc::clone(self);
        self.people.spawn(async move {
            if is_late {
                pause(Duration::from_millis(rng.between(4_000, 12_000))).await;
            }
            let session = link.checkout_url.rsplit('/').next().unwrap_or_default().to_owned();
            if let Err(error) = workload.sandbox.complete_session(&session, method, true) {
                tracing::warn!(customer = link.external_customer_id, "a Checkout page was not completed: {error:#}");
            }
        });
    }

    /// A payment has failed: a better card is added where the wallet holds one, and it is tried again.
    fn hear_failure(self: &Arc<Self>, organization: usize, failure: PaymentProviderInvoicePaymentError) {
        let code = failure.provider_error.as_ref().map(|error| error.error_code.as_str()).unwrap_or_default();
        let Some((plan, _)) = self.customer(organization, &failure.external_customer_id) else { return };
        let tries_again = plan.wallet.mends() || plan.wallet == Wallet::Fickle;
        if code == NO_METHOD || !tries_again {
            return;
        }
        let nth = self.count_retry(organization, &failure.lago_invoice_id);
        if nth <= RETRIES_MAX {
            let workload = Arc::clone(self);
            self.people.spawn(async move { workload.mend_and_retry(organization, &failure, nth).await });
        }
    }

    async fn mend_and_retry(&self, organization: usize, failure: &PaymentProviderInvoicePaymentError, nth: u64) {
        let Some((plan, file)) = self.customer(organization, &failure.external_customer_id) else { return };
        let mut rng = self.rng(&format!("retry {organization} {} {nth}", failure.lago_invoice_id));
        if plan.wallet.mends()
            && let Some(customer) = &failure.provider_customer_id
        {
            file.mended.get_or_init(|| async { self.add_card(customer, "pm_card_visa") }).await;
        }
        pause(Duration::from_millis(rng.between(300, 2_000))).await;
        let request = |name: &str| RetryPaymentRequest {
            id: failure.lago_payment_id.clone(),
            request_id: format!("{name}-{nth}-{}", failure.lago_invoice_id),
            payment_method_id: String::new(),
            force: true,
        };
        // Now and then two people do it at once.
        let second = rng.chance(25).then(|| request("retry-too"));
        let mut other = rng.clone();
        tokio::join!(self.retry(organization, request("retry"), &mut rng), async {
            if let Some(second) = second {
                other.next();
                self.retry(organization, second, &mut other).await;
            }
        });
    }

    async fn retry(&self, organization: usize, request: RetryPaymentRequest, rng: &mut crate::dev::rng::Rng) {
        let answer =
            call(&self.organizations[organization], rng, &self.repeats, &request, |mut api, request| async move {
                api.payments.retry_payment(request).await
            });
        // That it is paid, or under way, is a good answer, too.
        if let Err(status) = answer.await
            && status.code() != Code::FailedPrecondition
        {
            tracing::warn!(request.id, "a retry was refused: {}", shown(&status));
        }
    }

    /// Somebody adds a card in Stripe's dashboard.
    fn add_card(&self, customer: &str, card: &str) {
        if let Err(error) = self.sandbox.attach_by_hand(customer, card) {
            tracing::warn!(customer, "a card was not added: {error:#}");
        }
    }

    /// A fickle customer has paid: other cards are added at Stripe, one is chosen, and detached again.
    fn change_mind(self: &Arc<Self>, organization: usize, external_id: &str, customer: String) {
        let Some((plan, file)) = self.customer(organization, external_id) else { return };
        if plan.wallet != Wallet::Fickle || file.mended.initialized() || file.mended.set(()).is_err() {
            return;
        }
        let workload = Arc::clone(self);
        self.people.spawn(async move {
            let change = async {
                let chosen = workload.sandbox.attach_by_hand(&customer, "pm_card_mastercard")?;
                let chosen = chosen["id"].as_str().unwrap_or_default();
                workload.sandbox.attach_by_hand(&customer, "pm_card_amex")?;
                workload.sandbox.set_default_by_hand(&customer, Some(chosen))?;
                pause(Duration::from_secs(3)).await;
                workload.sandbox.detach_by_hand(chosen)?;
                anyhow::Ok(())
            };
            if let Err(error) = change.await {
                tracing::warn!(customer, "a customer could not change its mind: {error:#}");
            }
        });
    }

    /// A clerk pays an invoice in Stripe's dashboard: our own intent, or with one of his own that bears the same marks.
    pub async fn pay_by_hand(&self, invoice: &InvoicePlan) {
        // A clerk finds it there once it is there.
        let has_intent = |payment: &crate::grpc::proto::Payment| {
            !payment.provider_payment_intent_id.is_empty() && payment.state() != PaymentState::Pending
        };
        let Some(payment) = self.payment_when(invoice, has_intent).await else { return };
        if invoice.script == Script::PaidByHand {
            // Where it has been paid meanwhile, the dashboard says so.
            let paid = self.sandbox.pay_intent_by_hand(&payment.provider_payment_intent_id, "pm_card_visa");
            self.paid_by_hand.fetch_add(usize::from(paid.is_ok()), Ordering::Relaxed);
            return;
        }
        let organization = &self.organizations[invoice.organization];
        let customer = get_customer_request::Customer::Id(payment.customer_id.clone());
        let mut rng = self.rng(&format!("beside-{}", invoice.id));
        let request = GetCustomerRequest { customer: Some(customer) };
        let answer = call(organization, &mut rng, &self.repeats, &request, |mut api, request| async move {
            api.customers.get_customer(request).await
        });
        let Some(customer) = answer.await.ok().and_then(|answer| answer.customer) else { return };
        let marks = [
            ("invoice_id", invoice.id.clone()),
            ("organization_id", organization.id.to_string()),
            ("payment_id", payment.id.clone()),
        ];
        let metadata: BTreeMap<String, String> = marks.map(|(name, value)| (name.to_owned(), value)).into();
        let paid = self.sandbox.pay_by_hand(&HandPayment {
            customer: customer.provider_customer_id,
            payment_method: "pm_card_visa".to_owned(),
            amount: invoice.amount,
            currency: invoice.currency.to_lowercase(),
            metadata,
        });
        match paid {
            Ok(intent) => self.book.paid_beside(intent["id"].as_str().unwrap_or_default()),
            Err(error) => tracing::warn!(invoice = invoice.id, "a payment by hand was refused: {error:#}"),
        }
    }
}
