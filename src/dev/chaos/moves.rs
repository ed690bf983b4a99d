//! Moves: what people do about a payment that is there, one at a time or two at once, on any of the processes; and what
//! payers do with the links that they get.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::callers::{Organization, call};
use super::pause;
use super::plan::{InvoicePlan, Move, Payer};
use super::workload::{Workload, shown};
use crate::dev::rng::Rng;
use crate::grpc::proto::{
    CreatePaymentUrlRequest, GetPaymentRequest, Money, Payment, PaymentProviderInvoicePaymentError, PaymentState,
    RecordManualPaymentRequest, RefundPaymentRequest, RetryPaymentRequest, UpdatePaymentRequest, get_payment_request,
};

/// A card that pays, and one that is declined.
const GOOD_CARD: &str = "4242424242424242";
/// A card that pays once its holder has proved who they are; later it is charged without.
const PROVEN_CARD: &str = "4000003800000446";
const DECLINED_CARD: &str = "4000000000000002";
/// How often something is asked for again that had to wait for an earlier wish.
const BUSY_MAX: u32 = 5;

/// A payment, by what people know of it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub organization: usize,
    pub invoice: String,
    pub payment: String,
}

impl Known {
    /// The payment that a failure reports.
    pub fn of(organization: usize, failure: &PaymentProviderInvoicePaymentError) -> Self {
        Self { organization, invoice: failure.lago_invoice_id.clone(), payment: failure.lago_payment_id.clone() }
    }
}

impl Workload {
    /// Makes one or two moves, after a while.
    pub async fn make_moves(self: &Arc<Self>, invoice: &InvoicePlan, payment: &Payment, moves: (Move, Option<Move>)) {
        let mut rng = self.rng(&format!("moves-{}", invoice.id));
        if rng.chance(50) {
            // At whatever has become of it: paid, refused, or on its way.
            self.payment_when(invoice, |payment| payment.state() != PaymentState::Pending).await;
        }
        pause(Duration::from_millis(rng.below(2_000))).await;
        let second = async {
            if let Some(second) = moves.1 {
                self.make_move(invoice, payment, second, "second").await;
            }
        };
        tokio::join!(self.make_move(invoice, payment, moves.0, "first"), second);
    }

    async fn make_move(self: &Arc<Self>, invoice: &InvoicePlan, payment: &Payment, step: Move, name: &str) {
        let known =
            Known { organization: invoice.organization, invoice: invoice.id.clone(), payment: payment.id.clone() };
        match step {
            Move::Again => _ = self.create(invoice, &format!("{name}-again-{}", invoice.id)).await,
            Move::Retry => self.retry_once(&known, name).await,
            Move::Link(payer) => self.send_link(&known, name, payer).await,
            Move::Change(amount) => _ = self.change_amount(&known, amount, invoice.currency).await,
            Move::Cancel => self.cancel(invoice, payment).await,
            Move::Manual => self.record_manual(&known, name).await,
            Move::ByHand => {
                let has_intent = |payment: &Payment| !payment.provider_payment_intent_id.is_empty();
                if let Some(now) = self.payment_when(invoice, has_intent).await {
                    self.pay_intent(&now.provider_payment_intent_id);
                }
            }
        }
    }

    /// Tries again, whatever the bank has advised.
    async fn retry_once(&self, known: &Known, name: &str) {
        let request = RetryPaymentRequest {
            id: known.payment.clone(),
            request_id: format!("{name}-retry-{}", known.invoice),
            payment_method_id: String::new(),
            force: true,
        };
        let mut rng = self.rng(&request.request_id);
        self.retry(known.organization, request, &mut rng).await;
    }

    /// Requests a link, and gives it to a payer.
    pub async fn send_link(self: &Arc<Self>, known: &Known, name: &str, payer: Payer) {
        let mut rng = self.rng(&format!("payer of {name}-link-{}", known.invoice));
        let Some(session) = self.request_page(known, name, &mut rng).await else { return };
        let (workload, known) = (Arc::clone(self), known.clone());
        self.people.spawn(async move {
            pause(Duration::from_millis(rng.below(5_000))).await;
            workload.use_link(&known, &session, payer).await;
        });
    }

    /// Requests a link; the page that it leads to.
    pub async fn request_page(&self, known: &Known, name: &str, rng: &mut Rng) -> Option<String> {
        let request = CreatePaymentUrlRequest {
            id: known.payment.clone(),
            request_id: format!("{name}-link-{}", known.invoice),
            success_url: String::new(),
        };
        let intent_before = if rng.chance(40) { self.intent_of(known, rng).await } else { None };
        let answer = self.ask(known, &request.request_id, &request, |mut api, request| async move {
            api.payments.create_payment_url(request).await
        });
        let url = answer.await.map(|answer| answer.payment_url).filter(|url| !url.is_empty())?;
        let session = url.rsplit('/').next().unwrap_or_default().to_owned();
        self.book.outside(|outside| _ = outside.links.insert(session.clone()));
        // A clerk still has the page of the intent open on which the payment was refused, and presses the button there.
        // Stripe must have closed it before anybody had the link.
        if let Some(intent) = intent_before {
            self.pay_intent(&intent);
        }
        Some(session)
    }

    /// The intent of a payment, if it has one.
    async fn intent_of(&self, known: &Known, rng: &mut Rng) -> Option<String> {
        let which = get_payment_request::Payment::Id(known.payment.clone());
        let request = GetPaymentRequest { payment: Some(which) };
        let organization = &self.organizations[known.organization];
        let answer = call(organization, rng, &self.repeats, &request, |mut api, request| async move {
            api.payments.get_payment(request).await
        });
        let payment = answer.await.ok()?.payment?;
        Some(payment.provider_payment_intent_id).filter(|intent| !intent.is_empty())
    }

    /// A payer uses a link. That it is used or ended by now is what the page says. Whether the payer was through.
    pub async fn use_link(&self, known: &Known, session: &str, payer: Payer) -> bool {
        let pay = |method: &str| self.sandbox.complete_session(session, method, true);
        let payer = self.wallet_of(known.organization, &known.invoice).map_or(payer, |wallet| wallet.as_payer(payer));
        let used = match payer {
            Payer::Pays => pay(GOOD_CARD),
            Payer::IsDeclinedFirst => pay(DECLINED_CARD).or_else(|_| pay(GOOD_CARD)),
            Payer::Debits(iban) => pay(iban).or_else(|_| pay(GOOD_CARD)),
            Payer::Proves => self.pay_with_proof(session).await,
            Payer::Leaves => return false,
        };
        if let Err(error) = &used {
            tracing::info!(session, "a link could not be used: {error:#}");
        }
        used.is_ok()
    }

    /// Presses the page's button, and proves to the bank who pays after a while, in which anything may happen.
    async fn pay_with_proof(&self, session: &str) -> anyhow::Result<Value> {
        let mut rng = self.rng(&format!("proof on {session}"));
        let client = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build()?;
        let page = format!("{}/c/pay/{session}", self.sandbox.url());
        let form = format!("card={PROVEN_CARD}&name=Hooli&email=billing%40hooli.test");
        let request = client.post(page).header("Content-Type", "application/x-www-form-urlencoded").body(form);
        let answer = request.send().await?;
        let next = answer.headers().get("location").and_then(|next| next.to_str().ok()).unwrap_or_default();
        let (_, intent) = next.split_once("/3ds/").context("the page does not lead to the bank")?;
        pause(Duration::from_millis(rng.below(3_000))).await;
        self.sandbox.authenticate(intent, true)
    }

    /// Gets a page for a payment, and changes the amount while a payer pays there: before, afterwards, or meanwhile.
    pub async fn reprice(self: &Arc<Self>, invoice: &InvoicePlan, payment: &Payment, payer: Payer, amount: i64) {
        let known =
            Known { organization: invoice.organization, invoice: invoice.id.clone(), payment: payment.id.clone() };
        let mut rng = self.rng(&format!("reprice-{}", invoice.id));
        let Some(session) = self.request_page(&known, "repriced", &mut rng).await else { return };
        // Stripe takes a while to close the page: who waits longer than the caller finds it closed now and then.
        let (payer_waits, caller_waits) = (rng.below(6_000), rng.below(2_000));
        let pays = async {
            pause(Duration::from_millis(payer_waits)).await;
            self.use_link(&known, &session, payer).await
        };
        let changes = async {
            pause(Duration::from_millis(caller_waits)).await;
            self.change_amount(&known, amount, invoice.currency).await
        };
        let (_, is_changed) = tokio::join!(pays, changes);
        if is_changed {
            self.book.invoice(known.organization, &known.invoice, |told| told.had_page = true);
        }
        // What is open is paid on another page, which shows the amount as it is by then.
        if rng.chance(70) {
            self.send_link(&known, "after-repriced", Payer::Pays).await;
        }
    }

    /// Whether the change was acknowledged.
    async fn change_amount(&self, known: &Known, amount: i64, currency: &str) -> bool {
        self.book.invoice(known.organization, &known.invoice, |told| _ = told.amounts.insert(amount));
        let money = Some(Money { minor_units: amount, currency_code: currency.to_owned() });
        let payment = Payment { id: known.payment.clone(), amount: money, ..Payment::default() };
        let request = UpdatePaymentRequest { payment: Some(payment), update_mask: None };
        let name = format!("change-{}", known.invoice);
        let answer = self
            .ask(known, &name, &request, |mut api, request| async move { api.payments.update_payment(request).await });
        let is_changed = answer.await.is_some();
        if is_changed {
            self.book.invoice(known.organization, &known.invoice, |told| told.changes.push(amount));
        }
        is_changed
    }

    async fn record_manual(&self, known: &Known, name: &str) {
        let request = RecordManualPaymentRequest {
            id: known.payment.clone(),
            request_id: format!("{name}-manual-{}", known.invoice),
            reference: "bank transfer".to_owned(),
            paid_time: None,
        };
        self.book.invoice(known.organization, &known.invoice, |told| told.manual_asked = true);
        let answer = self.ask(known, &request.request_id, &request, |mut api, request| async move {
            api.payments.record_manual_payment(request).await
        });
        if answer.await.is_some() {
            self.book.invoice(known.organization, &known.invoice, |told| told.manual = true);
        }
    }

    /// Gives money back: of one charge, or, without one, of the charge that settled the payment.
    pub async fn refund(&self, known: &Known, name: &str, charge: &str, amount: Option<Money>) {
        let request = RefundPaymentRequest {
            payment_id: known.payment.clone(),
            request_id: format!("{name}-{}", if charge.is_empty() { known.invoice.as_str() } else { charge }),
            provider_charge_id: charge.to_owned(),
            amount,
        };
        let answer = self.ask(known, &request.request_id, &request, |mut api, request| async move {
            api.payments.refund_payment(request).await
        });
        if let Some(refund) = answer.await.and_then(|answer| answer.refund) {
            self.book.outside(|outside| _ = outside.refunds.insert(refund.id));
        }
    }

    /// Asks until there is an answer; again where an earlier wish is in the way. `None`: the payment does not allow it now,
    /// which is a good answer; any other refusal goes into the book.
    async fn ask<R: Clone, T, F: Future<Output = Result<tonic::Response<T>, Status>>>(
        &self,
        known: &Known,
        name: &str,
        request: &R,
        send: impl Fn(crate::dev::story::Api, R) -> F,
    ) -> Option<T> {
        let mut rng: Rng = self.rng(name);
        let organization: &Organization = &self.organizations[known.organization];
        for _ in 0..BUSY_MAX {
            let status = match call(organization, &mut rng, &self.repeats, request, &send).await {
                Ok(answer) => return Some(answer),
                Err(status) => status,
            };
            if status.get_details_error_info().is_some_and(|info| info.reason == "PAYMENT_BUSY") {
                pause(Duration::from_millis(500)).await;
                continue;
            }
            if status.code() != Code::FailedPrecondition {
                self.refused(known.organization, &known.invoice, &format!("{name}: {}", shown(&status)));
            }
            return None;
        }
        None
    }
}
