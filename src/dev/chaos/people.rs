//! The people around: payers on their Checkout pages, and whoever reads the billing system's events and does something
//! about them.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tonic::Code;

use super::callers::call;
use super::checker::methods::UNSET;
use super::moves::Known;
use super::pause;
use super::plan::{Payer, Wallet, payer};
use super::workload::{Workload, shown};
use crate::dev::rng::Rng;
use crate::grpc::proto::event::Object;
use crate::grpc::proto::{
    Event, EventPayment, Money, PaymentProviderCustomerCheckoutUrl, PaymentProviderInvoicePaymentError,
    RetryPaymentRequest,
};

/// How often an invoice is tried again.
const RETRIES_MAX: u64 = 3;
/// How many of a hundred payers get money back of what they have paid rightly.
const GOODWILL_PERCENT: u64 = 8;
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
                Some(Object::PaymentMethod(method)) if event.webhook_type == UNSET => {
                    self.hear_unset(&(organization, method.external_customer_id));
                }
                Some(Object::Payment(payment)) => self.hear_payment(organization, &event.webhook_type, payment),
                _ => {}
            }
        }
    }

    fn hear_unset(&self, whose: &(usize, String)) {
        let now = self.now();
        self.book.outside(|outside| {
            if let Some(unset) = outside.unset.get_mut(whose) {
                unset.heard.get_or_insert(now);
            }
        });
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
            "payment.overpaid" => {
                // A charge may have brought in more than was due, and not all of it goes back.
                let surplus = Money {
                    minor_units: payment.amount_cents.unwrap_or_default(),
                    currency_code: payment.amount_currency,
                };
                self.give_back(known, payment.provider_charge_id.unwrap_or_default(), surplus);
            }
            "payment.succeeded" => {
                let customer = payment.provider_customer_id.unwrap_or_default();
                self.change_default(organization, &payment.external_customer_id, customer);
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
    fn give_back(self: &Arc<Self>, known: Known, charge: String, surplus: Money) {
        let twice = self.rng(&format!("back {}", known.invoice)).chance(30);
        let workload = Arc::clone(self);
        self.people.spawn(async move {
            let second = async {
                if twice {
                    workload.refund(&known, "back-too", &charge, Some(surplus.clone())).await;
                }
            };
            tokio::join!(workload.refund(&known, "back", &charge, Some(surplus.clone())), second);
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
        if let (NO_METHOD, Wallet::DebitsByLink(iban)) = (code, plan.wallet) {
            let workload = Arc::clone(self);
            self.people.spawn(async move { workload.pay_on_page(organization, &failure, iban).await });
            return;
        }
        if code == NO_METHOD || !tries_again {
            return;
        }
        let nth = self.count_retry(organization, &failure.lago_invoice_id);
        if nth <= RETRIES_MAX {
            let workload = Arc::clone(self);
            self.people.spawn(async move { workload.mend_and_retry(organization, &failure, nth).await });
        }
    }

    /// Pays an invoice on a page with a bank account, which is stored for the customer; one of its invoices is enough.
    async fn pay_on_page(&self, organization: usize, failure: &PaymentProviderInvoicePaymentError, iban: &'static str) {
        let Some((_, file)) = self.customer(organization, &failure.external_customer_id) else { return };
        let known = Known::of(organization, failure);
        let mut rng = self.rng(&format!("first page {organization} {}", known.invoice));
        let paid = file.paid_on_page.get_or_try_init(|| async {
            let session = self.request_page(&known, "first", &mut rng).await.ok_or(())?;
            pause(Duration::from_millis(rng.below(2_000))).await;
            if self.use_link(&known, &session, Payer::Debits(iban)).await { Ok(()) } else { Err(()) }
        });
        if paid.await.is_err() {
            tracing::info!(known.invoice, "it was not paid on a page; another invoice of the customer may be");
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
            let known = Known::of(organization, failure);
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
}
