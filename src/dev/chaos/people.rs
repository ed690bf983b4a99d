//! The people around: payers on their Checkout pages, clerks in Stripe's dashboard, and whoever reads the billing
//! system's events and does something about them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Code;

use super::callers::call;
use super::moves::Known;
use super::pause;
use super::plan::{InvoicePlan, Script, Wallet, payer};
use super::workload::{Workload, shown};
use crate::dev::rng::Rng;
use crate::dev::sandbox::HandPayment;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    Event, EventPayment, GetCustomerRequest, Money, PaymentProviderCustomerCheckoutUrl,
    PaymentProviderInvoicePaymentError, PaymentState, RetryPaymentRequest, get_customer_request,
};

/// How often an invoice is tried again.
const RETRIES_MAX: u64 = 3;
/// How many of a hundred payers get money back of what they have paid rightly.
const GOODWILL_PERCENT: u64 = 8;
/// Cards that clerks pay with: one, and two whose refunds take their time, or fail after they had succeeded.
const HAND_CARDS: [&str; 3] = ["pm_card_visa", "pm_card_pendingRefund", "pm_card_refundFail"];
/// Good cards of customers, alike.
const GOOD_CARDS: [&str; 4] = ["4242424242424242", "4242424242424242", "4000000000007726", "4000000000005126"];
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
                Some(Object::Payment(payment)) => self.hear_payment(organization, &event.webhook_type, payment),
                _ => {}
            }
        }
    }

    fn hear_payment(self: &Arc<Self>, organization: usize, webhook_type: &str, payment: EventPayment) {
        let known = Known { organization, invoice: payment.lago_payable_id, payment: payment.lago_id };
        match webhook_type {
            "payment.requires_action" => {
                let page = payment.next_action.and_then(|action| action.redirect_to_url).unwrap_or_default().url;
                let id = page.rsplit('/').next().unwrap_or_default().to_owned();
                if page.contains("/3ds/") {
                    self.prove(&id);
                } else {
                    self.book.outside(|outside| _ = outside.links.insert(id));
                }
            }
            "payment.overpaid" => self.give_back(known, payment.provider_charge_id.unwrap_or_default()),
            "payment.succeeded" => {
                let customer = payment.provider_customer_id.unwrap_or_default();
                self.change_mind(organization, &payment.external_customer_id, customer);
                let mut rng = self.rng(&format!("goodwill {organization} {}", known.invoice));
                if rng.chance(GOODWILL_PERCENT) && payment.r#type == "provider" {
                    let part = Money { minor_units: 1, currency_code: payment.amount_currency };
                    let amount = rng.chance(50).then_some(part);
                    let workload = Arc::clone(self);
                    self.people.spawn(async move { workload.refund(&known, "goodwill", "", amount).await });
                }
            }
            _ => {}
        }
    }

    /// A customer is asked to prove who they are: they do, fail to, or leave it.
    fn prove(self: &Arc<Self>, intent: &str) {
        let mut rng = self.rng(&format!("proof {intent}"));
        let (workload, intent) = (Arc::clone(self), intent.to_owned());
        self.people.spawn(async move {
            pause(Duration::from_millis(rng.below(5_000))).await;
            let succeeds = match rng.below(10) {
                0..5 => true,
                5..7 => false,
                _ => return,
            };
            if let Err(error) = workload.sandbox.authenticate(&intent, succeeds) {
                tracing::info!(intent, "nobody asks for a proof any more: {error:#}");
            }
        });
    }

    /// What came in twice is given back, now and then by two people at once.
    fn give_back(self: &Arc<Self>, known: Known, charge: String) {
        let twice = self.rng(&format!("back {}", known.invoice)).chance(30);
        let workload = Arc::clone(self);
        self.people.spawn(async move {
            let second = async {
                if twice {
                    workload.refund(&known, "back-too", &charge, None).await;
                }
            };
            tokio::join!(workload.refund(&known, "back", &charge, None), second);
        });
    }

    /// A payer gets a link to a Checkout page, and stores what is in the wallet.
    fn receive_link(self: &Arc<Self>, organization: usize, link: PaymentProviderCustomerCheckoutUrl) {
        let Some((plan, _)) = self.customer(organization, &link.external_customer_id) else { return };
        let Some(method) = plan.wallet.first_method() else { return };
        let is_late = plan.wallet == Wallet::Late;
        let mut rng = self.rng(&format!("payer {organization} {}", plan.external_id));
        let method = if plan.wallet == Wallet::Good { *rng.pick(&GOOD_CARDS) } else { method };
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
        let was_link = code.starts_with("payment_url_");
        let tries_again = was_link || plan.wallet.mends() || plan.wallet == Wallet::Fickle;
        if code == NO_METHOD || !tries_again {
            return;
        }
        let nth = self.count_retry(organization, &failure.lago_invoice_id);
        if nth <= RETRIES_MAX {
            let workload = Arc::clone(self);
            self.people.spawn(async move { workload.mend_and_retry(organization, &failure, nth).await });
        }
    }

    async fn mend_and_retry(
        self: &Arc<Self>,
        organization: usize,
        failure: &PaymentProviderInvoicePaymentError,
        nth: u64,
    ) {
        let Some((plan, file)) = self.customer(organization, &failure.external_customer_id) else { return };
        let mut rng = self.rng(&format!("retry {organization} {} {nth}", failure.lago_invoice_id));
        if plan.wallet.mends()
            && let Some(customer) = &failure.provider_customer_id
        {
            file.mended.get_or_init(|| async { self.add_card(customer, "pm_card_visa") }).await;
        }
        pause(Duration::from_millis(rng.between(300, 2_000))).await;
        if rng.chance(35) {
            // A payer gets a link instead, though perhaps somebody else retries all the same.
            let known = Known {
                organization,
                invoice: failure.lago_invoice_id.clone(),
                payment: failure.lago_payment_id.clone(),
            };
            self.send_link(&known, &format!("after-{nth}"), payer(&mut rng)).await;
            if rng.chance(70) {
                return;
            }
        }
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

    pub async fn retry(&self, organization: usize, request: RetryPaymentRequest, rng: &mut Rng) {
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

    /// Somebody pays one of our own intents. Where it has been paid or canceled meanwhile, the dashboard says so.
    pub fn pay_intent(&self, intent: &str) {
        let paid = self.sandbox.pay_intent_by_hand(intent, "pm_card_visa");
        self.paid_by_hand.fetch_add(usize::from(paid.is_ok()), Ordering::Relaxed);
    }

    /// A clerk pays an invoice in Stripe's dashboard: our own intent, or with one of his own that bears the same marks.
    pub async fn pay_by_hand(&self, invoice: &InvoicePlan) {
        // A clerk finds it there once it is there.
        let has_intent = |payment: &crate::grpc::proto::Payment| {
            !payment.provider_payment_intent_id.is_empty() && payment.state() != PaymentState::Pending
        };
        let Some(payment) = self.payment_when(invoice, has_intent).await else { return };
        if invoice.script == Script::PaidByHand {
            self.pay_intent(&payment.provider_payment_intent_id);
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
            payment_method: (*rng.pick(&HAND_CARDS)).to_owned(),
            amount: invoice.amount,
            currency: invoice.currency.to_lowercase(),
            metadata,
        });
        match paid {
            Ok(intent) => {
                let id = intent["id"].as_str().unwrap_or_default().to_owned();
                self.book.outside(|outside| _ = outside.beside.insert(id));
            }
            Err(error) => tracing::warn!(invoice = invoice.id, "a payment by hand was refused: {error:#}"),
        }
    }
}
