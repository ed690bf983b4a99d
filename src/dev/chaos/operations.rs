//! Operations on an existing payment: one, or two at once, on any of the processes; and what payers do with payment
//! links.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::callers::{Organization, call};
use super::plan::{InvoicePlan, Operation, PayerAction};
use super::requests::{PaymentRef, RefundPlan, Request};
use super::workload::{Workload, format_status};
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::grpc::proto::{
    CreatePaymentUrlRequest, CreateRefundRequest, GetPaymentRequest, Money, Payment, PaymentState,
    RecordManualPaymentRequest, RetryPaymentRequest, UpdatePaymentRequest, create_payment_url_request,
    create_refund_request, get_payment_request, record_manual_payment_request, retry_payment_request,
};

/// Test cards: one succeeds, one is declined.
const GOOD_CARD: &str = "4242424242424242";
/// Succeeds after 3-D Secure. Later charges need no authentication.
const CARD_WITH_3DS: &str = "4000003800000446";
const DECLINED_CARD: &str = "4000000000000002";
/// How often a request is repeated while an earlier operation is pending.
const BUSY_ATTEMPTS_MAX: u32 = 5;

impl Workload {
    /// Performs one operation, or two concurrently, after a while.
    pub async fn perform_operations(
        self: &Arc<Self>,
        invoice: &InvoicePlan,
        operations: (Operation, Option<Operation>),
    ) {
        let mut rng = self.rng(&format!("moves-{}", invoice.id));
        if rng.chance(50) {
            // In any state that follows: paid, declined, or in progress.
            self.wait_for_payment(invoice, |payment| payment.state() != PaymentState::Pending).await;
        }
        pause(Duration::from_millis(rng.below(2_000))).await;
        let second = async {
            if let Some(second) = operations.1 {
                self.perform(invoice, second, "second").await;
            }
        };
        tokio::join!(self.perform(invoice, operations.0, "first"), second);
    }

    async fn perform(self: &Arc<Self>, invoice: &InvoicePlan, operation: Operation, name: &'static str) {
        let target = PaymentRef::planned(invoice);
        match operation {
            Operation::Resubmit => _ = self.create_payment(invoice, &format!("{name}-again-{}", invoice.id)).await,
            Operation::Retry => self.retry_once(&target, name).await,
            Operation::SendLink(payer) => self.send_link(&target, name, payer).await,
            Operation::ChangeAmount(amount) => _ = self.change_amount(&target, amount, invoice.currency).await,
            Operation::Cancel => self.cancel_payment(invoice).await,
            Operation::RecordManual => self.record_manual(&target, name).await,
            Operation::PayInDashboard => {
                let has_intent = |payment: &Payment| !payment.provider_payment_intent_id.is_empty();
                if let Some(now) = self.wait_for_payment(invoice, has_intent).await {
                    self.pay_intent(&now.provider_payment_intent_id);
                }
            }
        }
    }

    /// Retries whatever the bank advised.
    async fn retry_once(&self, target: &PaymentRef, name: &str) {
        let request = RetryPaymentRequest {
            payment: Some(retry_payment_request::Payment::InvoiceId(target.invoice.clone())),
            request_id: format!("{name}-retry-{}", target.invoice),
            payment_method_id: String::new(),
            force: true,
        };
        let mut rng = self.rng(&request.request_id);
        self.retry(target.organization, request, &mut rng).await;
    }

    /// Requests a payment link and gives it to a payer.
    pub async fn send_link(self: &Arc<Self>, target: &PaymentRef, name: &str, payer: PayerAction) {
        let mut rng = self.rng(&format!("payer of {name}-link-{}", target.invoice));
        let Some(session) = self.request_link(target, name, &mut rng).await else { return };
        let (workload, target) = (Arc::clone(self), target.clone());
        self.actors.spawn(async move {
            pause(Duration::from_millis(rng.below(5_000))).await;
            workload.pay_link(&target, &session, payer).await;
        });
    }

    /// Requests a payment link. Returns the id of its session.
    pub async fn request_link(&self, target: &PaymentRef, name: &str, rng: &mut Rng) -> Option<String> {
        let request = CreatePaymentUrlRequest {
            payment: Some(create_payment_url_request::Payment::InvoiceId(target.invoice.clone())),
            request_id: format!("{name}-link-{}", target.invoice),
            success_url: String::new(),
        };
        let intent_before = if rng.chance(40) { self.intent_of(target, rng).await } else { None };
        let pending = self.calls.restorations.begin(Request::CreateLink(target.clone(), name.to_owned()));
        let response = self.call_payment(target, &request.request_id, &request, |mut api, request| async move {
            api.payments.create_payment_url(request).await
        });
        let url = response.await?.payment_url;
        pending.acknowledge("");
        if url.is_empty() {
            return None;
        }
        let session = url.rsplit('/').next().unwrap_or_default().to_owned();
        self.history.external(|external| _ = external.links.insert(session.clone()));
        // A Dashboard user still has the declined intent open and pays it there. Stripe must have canceled it before
        // the link was returned.
        if let Some(intent) = intent_before {
            self.pay_intent(&intent);
        }
        Some(session)
    }

    /// The PaymentIntent of a payment, if it has one.
    async fn intent_of(&self, target: &PaymentRef, rng: &mut Rng) -> Option<String> {
        let which = get_payment_request::Payment::InvoiceId(target.invoice.clone());
        let request = GetPaymentRequest { payment: Some(which) };
        let organization = &self.organizations[target.organization];
        let response = call(organization, rng, &self.calls, &request, |mut api, request| async move {
            api.payments.get_payment(request).await
        });
        let payment = response.await.ok()?.payment?;
        Some(payment.provider_payment_intent_id).filter(|intent| !intent.is_empty())
    }

    /// Whether a Checkout session is expired in Stripe.
    pub fn is_expired(&self, session: &str) -> bool {
        self.sandbox.object(session).is_some_and(|session| session["status"] == "expired")
    }

    /// A payer uses a link, which may be used or expired. Returns whether the payment went through.
    pub async fn pay_link(&self, target: &PaymentRef, session: &str, payer: PayerAction) -> bool {
        let pay = |method: &str| self.sandbox.complete_session(session, method, true);
        let payer =
            self.profile_of(target.organization, &target.invoice).map_or(payer, |profile| profile.limit_action(payer));
        let used = match payer {
            PayerAction::Pay => pay(GOOD_CARD),
            PayerAction::PayAfterDecline => pay(DECLINED_CARD).or_else(|_| pay(GOOD_CARD)),
            PayerAction::PayByDebit(iban) => pay(iban).or_else(|_| pay(GOOD_CARD)),
            PayerAction::PayWith3ds => self.pay_with_3ds(session).await,
            PayerAction::Abandon => return false,
        };
        if let Err(error) = &used {
            tracing::info!(session, "a payment link could not be used: {error:#}");
        }
        used.is_ok()
    }

    /// Pays on the page and completes 3-D Secure after a while, in which anything may happen.
    async fn pay_with_3ds(&self, session: &str) -> anyhow::Result<Value> {
        let mut rng = self.rng(&format!("proof on {session}"));
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let page = format!("{}/c/pay/{session}", self.sandbox.url());
        let form = format!("card={CARD_WITH_3DS}&name=Hooli&email=billing%40hooli.test");
        let request = client.post(page).header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let response = request.send().await?;
        let next = response.headers().get("location").and_then(|next| next.to_str().ok()).unwrap_or_default();
        let (_, intent) = next.split_once("/3ds/").context("the page does not redirect to the bank")?;
        pause(Duration::from_millis(rng.below(3_000))).await;
        self.sandbox.authenticate(intent, true)
    }

    /// Requests a link, and changes the amount before, while, or after a payer pays there.
    pub async fn change_amount_while_open(self: &Arc<Self>, invoice: &InvoicePlan, payer: PayerAction, amount: i64) {
        let target = PaymentRef::planned(invoice);
        let mut rng = self.rng(&format!("reprice-{}", invoice.id));
        let Some(session) = self.request_link(&target, "repriced", &mut rng).await else { return };
        // Stripe takes a while to expire a session: with a longer wait, the payer sometimes finds it expired.
        let (payer_waits, caller_waits) = (rng.below(6_000), rng.below(2_000));
        let pays = async {
            pause(Duration::from_millis(payer_waits)).await;
            self.pay_link(&target, &session, payer).await
        };
        let changes = async {
            pause(Duration::from_millis(caller_waits)).await;
            self.change_amount(&target, amount, invoice.currency).await
        };
        let (_, is_changed) = tokio::join!(pays, changes);
        if is_changed {
            self.history.invoice(target.organization, &target.invoice, |record| record.had_open_session = true);
        }
        // What is open is paid by another link, which has the current amount.
        if rng.chance(70) {
            self.send_link(&target, "after-repriced", PayerAction::Pay).await;
        }
    }

    /// Returns whether the change was acknowledged.
    pub async fn change_amount(&self, target: &PaymentRef, amount: i64, currency: &'static str) -> bool {
        self.history.invoice(target.organization, &target.invoice, |record| _ = record.amounts.insert(amount));
        let money = Some(Money { minor_units: amount, currency_code: currency.to_owned() });
        let payment = Payment { invoice_id: target.invoice.clone(), amount: money, ..Payment::default() };
        let request = UpdatePaymentRequest { payment: Some(payment), update_mask: None };
        let name = format!("change-{}", target.invoice);
        let pending = self.calls.restorations.begin(Request::ChangeAmount(target.clone(), amount, currency));
        let response = self.call_payment(target, &name, &request, |mut api, request| async move {
            api.payments.update_payment(request).await
        });
        let is_changed = response.await.is_some();
        if is_changed {
            pending.acknowledge("");
            self.history
                .invoice(target.organization, &target.invoice, |record| record.acknowledged_changes.push(amount));
        }
        is_changed
    }

    pub async fn record_manual(&self, target: &PaymentRef, name: &'static str) {
        let request = RecordManualPaymentRequest {
            payment: Some(record_manual_payment_request::Payment::InvoiceId(target.invoice.clone())),
            request_id: format!("{name}-manual-{}", target.invoice),
            reference: "bank transfer".to_owned(),
            paid_time: None,
        };
        self.history.invoice(target.organization, &target.invoice, |record| record.is_manual_requested = true);
        let pending = self.calls.restorations.begin(Request::RecordManual(target.clone(), name));
        let response = self.call_payment(target, &request.request_id, &request, |mut api, request| async move {
            api.payments.record_manual_payment(request).await
        });
        if response.await.is_some() {
            pending.acknowledge("");
            self.history.invoice(target.organization, &target.invoice, |record| record.is_manual_acknowledged = true);
        }
    }

    /// Refunds a charge.
    pub async fn refund(&self, plan: &RefundPlan) {
        let RefundPlan { target, name, charge, amount } = plan;
        let request = CreateRefundRequest {
            payment: Some(create_refund_request::Payment::InvoiceId(target.invoice.clone())),
            request_id: format!("{name}-{}", if charge.is_empty() { target.invoice.as_str() } else { charge }),
            provider_charge_id: charge.clone(),
            amount: amount.clone(),
        };
        let pending = self.calls.restorations.begin(Request::Refund(plan.clone()));
        let response = self.call_payment(target, &request.request_id, &request, |mut api, request| async move {
            api.payments.create_refund(request).await
        });
        if let Some(refund) = response.await.and_then(|response| response.refund) {
            pending.acknowledge(&refund.id);
            self.history.external(|external| _ = external.refunds.insert(refund.id));
        }
    }

    /// Repeats a call until there is a final response, and while an earlier operation is pending. `None`: the payment
    /// does not allow it now, which is a valid response. Other errors are recorded in the history.
    async fn call_payment<R: Clone, T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        target: &PaymentRef,
        name: &str,
        request: &R,
        send: impl Fn(crate::dev::scenarios::Api, R) -> F,
    ) -> Option<T> {
        let mut rng: Rng = self.rng(name);
        let organization: &Organization = &self.organizations[target.organization];
        for _ in 0..BUSY_ATTEMPTS_MAX {
            let status = match call(organization, &mut rng, &self.calls, request, &send).await {
                Ok(response) => return Some(response),
                Err(status) => status,
            };
            if status.get_details_error_info().is_some_and(|info| info.reason == "PAYMENT_BUSY") {
                pause(Duration::from_millis(500)).await;
                continue;
            }
            if status.code() != Code::FailedPrecondition {
                self.record_error(target.organization, &target.invoice, &format!("{name}: {}", format_status(&status)));
            }
            return None;
        }
        None
    }
}
