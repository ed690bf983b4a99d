//! Payments: what callers can ask for. A payment is accepted, and a job sends it (`submit`, `intents`), closes what is open
//! before another way to pay is opened (`close`), or asks Stripe about it (`refresh`); only a link is made within its call
//! (`links`). All of them change a payment through [`Scene::news`]. Money that goes back (`refunds`) and what else stands
//! beside a payment's state (`settlements`) never does.

mod close;
mod intents;
mod links;
mod refresh;
mod refunds;
mod scene;
mod settlements;
mod submit;

pub(super) use self::scene::Scene;
pub(super) use self::settlements::Fetch;

use sha2::{Digest, Sha256};

use super::App;
use super::work::Work;
use crate::domain::customers::{Customer, CustomerRef};
use crate::domain::integrations::{Integration, MOVE_CUSTOMER, MOVE_PAYMENT};
use crate::domain::jobs::JobKind;
use crate::domain::payments::{
    Attempt, AttemptState, Errand, NewPayment, News, Payment, PaymentFilter, PaymentRef, PaymentState,
};
use crate::domain::{Error, OrganizationId, Page, PaymentId, PaymentMethodId, Result};
use crate::store;

/// A hash over a request's parts, each with its length before it, so that no two requests share one.
pub(super) fn hash_request(method: &str, parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&[method], parts].concat() {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

impl App {
    /// Accepts an invoice to be collected. The answer is the payment's present state: `PENDING` when it is new.
    pub async fn create_payment(&self, org: OrganizationId, request_id: String, new: NewPayment) -> Result<Payment> {
        if let Some(objection) = new.amount.objection() {
            return Err(Error::invalid("amount.minor_units", objection));
        }
        let hash = payment_hash(&new);
        let mut work = self.begin(org).await?;
        if let Some(known) = store::requests::known(&mut work.tx, org, &request_id, &hash).await? {
            return store::payments::get(&mut work.tx, org, known.into())
                .await?
                .ok_or_else(|| Error::not_found("payment", known));
        }
        let customer = find_customer(&mut work, &new.customer).await?;
        let integration = collecting_integration(&mut work, &customer).await?;
        check_currency(&customer, &new)?;
        let fresh = new_payment(&work, self.clock().new_id().into(), &new, &customer, &integration);
        let is_new = store::payments::insert(&mut work.tx, &fresh).await?;
        let payment = if is_new { fresh } else { take_over(&mut work, fresh).await? };
        store::requests::take(&mut work.tx, org, &request_id, &hash, payment.id.0, work.now).await?;
        if payment.state == PaymentState::Pending {
            work.ask(JobKind::SubmitPayment, payment.id.0);
        }
        work.commit().await?;
        Ok(payment)
    }

    /// A payment with all its attempts.
    pub async fn get_payment(&self, org: OrganizationId, which: PaymentRef) -> Result<(Payment, Vec<Attempt>)> {
        let mut tx = self.read(org).await?;
        let found = match &which {
            PaymentRef::Id(id) => store::payments::get(&mut tx, org, *id).await?,
            PaymentRef::InvoiceId(invoice) => store::payments::get_by_invoice(&mut tx, org, invoice).await?,
        };
        let payment = found.ok_or_else(|| match which {
            PaymentRef::Id(id) => Error::not_found("payment", id),
            PaymentRef::InvoiceId(invoice) => Error::not_found("payment", format!("of invoice {invoice}")),
        })?;
        let attempts = store::attempts::list(&mut tx, org, payment.id).await?;
        Ok((payment, attempts))
    }

    /// A page of payments, newest first.
    pub async fn list_payments(&self, org: OrganizationId, filter: PaymentFilter, page: Page) -> Result<Vec<Payment>> {
        let mut tx = self.read(org).await?;
        store::payments::list(&mut tx, org, &filter, page).await
    }

    /// Tries a failed payment again, with another method if one is given.
    pub async fn retry_payment(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        method: Option<PaymentMethodId>,
        force: bool,
    ) -> Result<Payment> {
        let method_text = method.map(|id| id.to_string()).unwrap_or_default();
        let hash = hash_request("RetryPayment", &[&id.to_string(), &method_text, if force { "force" } else { "" }]);
        let mut work = self.begin(org).await?;
        store::requests::claim(&mut work.tx, org, &request_id).await?;
        if store::requests::known(&mut work.tx, org, &request_id, &hash).await?.is_some() {
            return store::payments::get(&mut work.tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id));
        }
        let mut scene = Scene::load(&mut work, id).await?;
        store::requests::take(&mut work.tx, org, &request_id, &hash, id.0, work.now).await?;
        check_retry(&mut work, &scene, method, force).await?;
        if scene.open_link().is_some() {
            // It is ended first.
            close::ask(&mut work, &mut scene, Errand::Retry { method }, &close::RETRY).await?;
        } else {
            scene.news(&mut work, News::Retried(method)).await?;
            work.ask(JobKind::SubmitPayment, id.0);
        }
        work.commit().await?;
        Ok(scene.payment)
    }
}

/// The invoice has a payment already. A canceled one is opened again, in the same row; one for the same amount from the
/// same customer is the answer as it is; any other is in the way.
async fn take_over(work: &mut Work, fresh: Payment) -> Result<Payment> {
    let Some(known) = store::payments::lock_by_invoice(&mut work.tx, work.org, &fresh.invoice_id).await? else {
        return Err(Error::internal(anyhow::anyhow!("a payment was in the way, and is not there")));
    };
    if known.state == PaymentState::Canceled {
        // Numbers go on, so that no idempotency key is ever used for another body (P2).
        let mut payment = Payment {
            id: known.id,
            intent_number: known.intent_number + 1,
            attempt_number: known.attempt_number,
            amount_received: known.amount_received,
            amount_refunded: known.amount_refunded,
            version: known.version,
            create_time: known.create_time,
            ..fresh
        };
        store::payments::save(&mut work.tx, &mut payment, work.now).await?;
        return Ok(payment);
    }
    if known.amount == fresh.amount && known.customer_id == fresh.customer_id {
        return Ok(known);
    }
    let advice = match known.state {
        PaymentState::Succeeded => "it is paid: refund it, or give what else is due an invoice of its own",
        PaymentState::Failed => "retry it, change its amount, or cancel it first",
        _ => "wait for its outcome, change its amount, or cancel it first",
    };
    Err(Error::AlreadyExists {
        kind: "payment",
        id: known.id.to_string(),
        message: format!(
            "the invoice {} has the payment {} of {} in the state {}; {advice}",
            known.invoice_id,
            known.id,
            known.amount,
            known.state.as_str().to_uppercase()
        ),
    })
}

fn payment_hash(new: &NewPayment) -> [u8; 32] {
    let customer = match &new.customer {
        CustomerRef::Id(id) => format!("id {id}"),
        CustomerRef::ExternalId(id) => format!("external {id}"),
    };
    let amount = new.amount.minor_units.to_string();
    let parts = [&new.invoice_id, &new.invoice_number, &customer, &amount, new.amount.currency.as_str()];
    hash_request("CreatePayment", &parts.map(|part| part as &str))
}

async fn find_customer(work: &mut Work, which: &CustomerRef) -> Result<Customer> {
    match which {
        CustomerRef::Id(id) => store::customers::get(&mut work.tx, work.org, *id).await,
        CustomerRef::ExternalId(external_id) => {
            store::customers::get_by_external_id(&mut work.tx, work.org, external_id)
                .await?
                .ok_or_else(|| Error::not_found("customer", external_id))
        }
    }
}

/// The integration that collects from this customer: its own, or, where it has none, the organization's only one, so
/// that the payment can be accepted and can fail with a reason.
async fn collecting_integration(work: &mut Work, customer: &Customer) -> Result<Integration> {
    let integration = if let Some(id) = customer.integration_id {
        store::integrations::get(&mut work.tx, work.org, id).await?
    } else {
        let mut live = store::integrations::live(&mut work.tx, work.org).await?;
        match (live.pop(), live.is_empty()) {
            (Some(only), true) => only,
            _ => {
                return Err(Error::precondition(
                    "CUSTOMER_HAS_NO_INTEGRATION",
                    format!("customer/{}", customer.id),
                    "the customer belongs to no integration, and there is not exactly one to take; link the customer",
                ));
            }
        }
    };
    integration.check_accepts_work(format!("integration/{}", integration.id), MOVE_CUSTOMER)?;
    Ok(integration)
}

fn check_currency(customer: &Customer, new: &NewPayment) -> Result<()> {
    let is_due = new.amount.minor_units > 0;
    if !is_due || !customer.kinds_for(new.amount.currency).is_empty() {
        return Ok(());
    }
    let kinds: Vec<_> = customer.provider_payment_methods.iter().map(|kind| kind.as_str()).collect();
    Err(Error::precondition(
        "CURRENCY_NOT_SUPPORTED",
        format!("customer/{}", customer.id),
        format!(
            "none of the customer's kinds of payment method ({}) takes {}; allow another kind first",
            kinds.join(", "),
            new.amount.currency
        ),
    ))
}

fn new_payment(
    work: &Work,
    id: PaymentId,
    new: &NewPayment,
    customer: &Customer,
    integration: &Integration,
) -> Payment {
    Payment {
        id,
        organization_id: work.org,
        integration_id: integration.id,
        customer_id: customer.id,
        invoice_id: new.invoice_id.clone(),
        invoice_number: new.invoice_number.clone(),
        amount: new.amount,
        state: PaymentState::Pending,
        pending_reason: None,
        failure: None,
        awaits_method: false,
        provider_payment_intent_id: None,
        intent_number: 1,
        attempt_number: 0,
        requested_method_id: None,
        on_session: false,
        next_action_url: None,
        action_time: None,
        provider_charge_id: None,
        amount_received: 0,
        part_received: 0,
        amount_refunded: 0,
        cancel_request_time: None,
        errand: None,
        refused_amount: None,
        manual: None,
        unknown_since: None,
        version: 1,
        create_time: work.now,
        update_time: work.now,
    }
}

/// Whether a retry is allowed now. Stripe's networks fine merchants who repeat what was refused for good: what counts is
/// the newest try of the same method, whatever ways to pay were opened after it.
async fn check_retry(work: &mut Work, scene: &Scene, method: Option<PaymentMethodId>, force: bool) -> Result<()> {
    let payment = &scene.payment;
    let subject = format!("payment/{}", payment.id);
    scene.integration.check_accepts_work(subject.clone(), MOVE_PAYMENT)?;
    if let Some(objection) = payment.objection(scene.attempt.as_ref(), &Errand::Retry { method }) {
        return Err(close::refused(objection, payment, &close::RETRY));
    }
    if let Some(wanted) = method
        && !scene.methods.iter().any(|known| known.id == wanted && known.detach_time.is_none())
    {
        return Err(Error::not_found("payment method", wanted));
    }
    let wanted = method.or(scene.customer.default_payment_method_id);
    let attempts = store::attempts::list(&mut work.tx, work.org, payment.id).await?;
    let newest = attempts.iter().rev().find(|attempt| attempt.method().is_some_and(|method| Some(method) == wanted));
    let is_hard = newest
        .is_some_and(|attempt| matches!(&attempt.state, AttemptState::Failed(failure) if failure.forbids_retry()));
    if is_hard && !force {
        let message = "the bank advised not to try this payment method again; use another one, or set force";
        return Err(Error::precondition("DO_NOT_TRY_AGAIN", subject, message));
    }
    Ok(())
}
