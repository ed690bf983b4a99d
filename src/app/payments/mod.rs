//! Payments: what callers can request. A payment is accepted; a job collects it (`submit`, `intents`), closes what is
//! open before another payment path is opened (`close`), or reads its state from Stripe (`refresh`). Only a payment
//! link is created within its call (`links`). All of them change a payment through [`PaymentContext::apply`]. Refunds
//! (`refunds`), charges and disputes (`charges_and_disputes`) never change a payment's state.

mod charges_and_disputes;
mod close;
mod context;
mod intents;
mod links;
mod refresh;
mod refunds;
mod submit;

pub(super) use self::charges_and_disputes::ReadTarget;
pub(super) use self::context::PaymentContext;

use super::App;
use super::request_hash::hash_request;
use super::unit_of_work::UnitOfWork;
use crate::domain::customers::{Customer, CustomerRef};
use crate::domain::integrations::{Integration, MOVE_CUSTOMER, MOVE_PAYMENT};
use crate::domain::jobs::JobKind;
use crate::domain::payments::{
    Attempt, AttemptState, NewPayment, Payment, PaymentFilter, PaymentInput, PaymentRef, PaymentState, PendingOperation,
};
use crate::domain::{Error, OrganizationId, Page, PaymentId, PaymentMethodId, Result};
use crate::store;
use crate::store::request_ids::CallerRequest;

impl App {
    /// Accepts an invoice for collection. Returns the payment's present state: `PENDING` if it is new.
    pub async fn create_payment(&self, org: OrganizationId, request_id: String, new: NewPayment) -> Result<Payment> {
        if let Some(rejection) = new.amount.rejection() {
            return Err(Error::invalid("amount.minor_units", rejection));
        }
        let mut work = self.begin(org).await?;
        // The body is the same whether it names the customer by its id or by its external id.
        let external_customer_id = match &new.customer {
            CustomerRef::Id(id) => store::customers::get_including_deleted(&mut work.tx, org, *id).await?.external_id,
            CustomerRef::ExternalId(external_id) => external_id.clone(),
        };
        let request = CallerRequest { id: request_id, body_hash: payment_hash(&new, &external_customer_id) };
        if let Some(known) = store::request_ids::resource_of(&mut work.tx, org, &request).await? {
            return store::payments::get(&mut work.tx, org, known.into())
                .await?
                .ok_or_else(|| Error::not_found("payment", known));
        }
        let customer = find_customer(&mut work, &new.customer).await?;
        let integration = collecting_integration(&mut work, &customer).await?;
        check_currency(&customer, &new)?;
        let fresh = Payment::new(self.clock().new_id().into(), &new, &customer, integration.id, work.now);
        let is_new = store::payments::insert(&mut work.tx, &fresh).await?;
        let payment = if is_new { fresh } else { reuse_payment(&mut work, fresh).await? };
        store::request_ids::insert(&mut work.tx, org, &request, payment.id.0, work.now).await?;
        if payment.state() == PaymentState::Pending {
            work.enqueue(JobKind::SubmitPayment, payment.id.0);
        }
        work.commit().await?;
        Ok(payment)
    }

    /// A payment with all its attempts.
    pub async fn get_payment(&self, org: OrganizationId, which: PaymentRef) -> Result<(Payment, Vec<Attempt>)> {
        let mut tx = self.read(org).await?;
        let payment = match which {
            PaymentRef::Id(id) => {
                store::payments::get(&mut tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id))?
            }
            PaymentRef::InvoiceId(invoice) => store::payments::get_by_invoice(&mut tx, org, &invoice)
                .await?
                .ok_or_else(|| Error::not_found("payment", invoice))?,
        };
        let attempts = store::attempts::list(&mut tx, org, payment.id).await?;
        Ok((payment, attempts))
    }

    /// The id of a payment. It need not exist if the caller names it by this id.
    pub async fn payment_id(&self, org: OrganizationId, which: PaymentRef) -> Result<PaymentId> {
        match which {
            PaymentRef::Id(id) => Ok(id),
            PaymentRef::InvoiceId(_) => Ok(self.get_payment(org, which).await?.0.id),
        }
    }

    /// A page of payments, newest first.
    pub async fn list_payments(&self, org: OrganizationId, filter: PaymentFilter, page: Page) -> Result<Vec<Payment>> {
        let mut tx = self.read(org).await?;
        store::payments::list(&mut tx, org, &filter, page).await
    }

    /// Retries a failed payment, with another method if one is given.
    pub async fn retry_payment(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        method: Option<PaymentMethodId>,
        force: bool,
    ) -> Result<Payment> {
        let method_text = method.map(|id| id.to_string()).unwrap_or_default();
        let request = CallerRequest {
            id: request_id,
            body_hash: hash_request("RetryPayment", &[&id.to_string(), &method_text, if force { "force" } else { "" }]),
        };
        let mut work = self.begin(org).await?;
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        if store::request_ids::resource_of(&mut work.tx, org, &request).await?.is_some() {
            return store::payments::get(&mut work.tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id));
        }
        let mut context = PaymentContext::load(&mut work, id).await?;
        store::request_ids::insert(&mut work.tx, org, &request, id.0, work.now).await?;
        check_retry(&mut work, &context, method, force).await?;
        if context.open_link().is_some() {
            // The link is closed first.
            close::request_operation(&mut work, &mut context, PendingOperation::Retry { method }, &close::RETRY)
                .await?;
        } else {
            context.apply(&mut work, PaymentInput::RetryRequested(method)).await?;
            work.enqueue(JobKind::SubmitPayment, id.0);
        }
        work.commit().await?;
        Ok(context.payment)
    }
}

/// Resolves a new payment for an invoice that has one already. A canceled one is reopened in the same row. One for the
/// same amount and customer is returned as it is. Any other is an error.
async fn reuse_payment(work: &mut UnitOfWork, fresh: Payment) -> Result<Payment> {
    let Some(known) = store::payments::lock_by_invoice(&mut work.tx, work.org, &fresh.invoice_id).await? else {
        return Err(Error::internal(anyhow::anyhow!("a conflicting payment was not found")));
    };
    // A repeat of the request that had created it. It does not reopen a payment that was canceled after that request.
    let is_repeat = store::request_ids::claim_recovered(&mut work.tx, work.org, known.id.0).await?;
    if known.state() == PaymentState::Canceled && !is_repeat {
        let mut payment = fresh.reopening(&known);
        store::payments::save(&mut work.tx, &mut payment, work.now).await?;
        return Ok(payment);
    }
    if known.amount == fresh.amount && known.customer_id == fresh.customer_id {
        return Ok(known);
    }
    let advice = match known.state() {
        PaymentState::Succeeded => "it is paid: refund it, or collect what else is due with another invoice",
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
            known.state().as_str().to_uppercase()
        ),
    })
}

fn payment_hash(new: &NewPayment, external_customer_id: &str) -> [u8; 32] {
    let amount = new.amount.minor_units.to_string();
    let currency = new.amount.currency.as_str();
    let parts: [&str; 5] = [&new.invoice_id, &new.invoice_number, external_customer_id, &amount, currency];
    hash_request("CreatePayment", &parts)
}

async fn find_customer(work: &mut UnitOfWork, which: &CustomerRef) -> Result<Customer> {
    match which {
        CustomerRef::Id(id) => store::customers::get(&mut work.tx, work.org, *id).await,
        CustomerRef::ExternalId(external_id) => {
            store::customers::get_by_external_id(&mut work.tx, work.org, external_id)
                .await?
                .ok_or_else(|| Error::not_found("customer", external_id))
        }
    }
}

/// The integration that collects from a customer: its own or, if it has none, the organization's only one, so that the
/// payment can be accepted and then fail with a reason.
async fn collecting_integration(work: &mut UnitOfWork, customer: &Customer) -> Result<Integration> {
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
                    "the customer has no integration, and the organization has none or several; link the customer",
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
            "none of the customer's kinds of payment method ({}) supports {}; allow another kind first",
            kinds.join(", "),
            new.amount.currency
        ),
    ))
}

/// Checks whether a retry is allowed now. Card networks fine merchants who repeat what was refused permanently. What
/// counts is the newest attempt with the same method, whatever payment paths were opened after it.
async fn check_retry(
    work: &mut UnitOfWork,
    context: &PaymentContext,
    method: Option<PaymentMethodId>,
    force: bool,
) -> Result<()> {
    let payment = &context.payment;
    let subject = format!("payment/{}", payment.id);
    context.integration.check_accepts_work(subject.clone(), MOVE_PAYMENT)?;
    if let Some(rejection) = payment.rejection(context.attempt.as_ref(), &PendingOperation::Retry { method }) {
        return Err(close::refused(rejection, payment, &close::RETRY));
    }
    if let Some(wanted) = method
        && !context.methods.iter().any(|known| known.id == wanted && known.detach_time.is_none())
    {
        return Err(Error::not_found("payment method", wanted));
    }
    let wanted = method.or(context.customer.default_payment_method_id);
    let attempts = store::attempts::list(&mut work.tx, work.org, payment.id).await?;
    let newest = attempts.iter().rev().find(|attempt| attempt.method().is_some_and(|method| Some(method) == wanted));
    let is_hard = newest
        .is_some_and(|attempt| matches!(&attempt.state, AttemptState::Failed(failure) if failure.forbids_retry()));
    if is_hard && !force {
        let message = "the bank advised against retrying this payment method; use another one, or set force";
        return Err(Error::precondition("DO_NOT_TRY_AGAIN", subject, message));
    }
    Ok(())
}
