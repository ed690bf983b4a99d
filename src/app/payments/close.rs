//! Closes the open payment path, so that another one may be opened (P1): cancels the payment's intent or expires its
//! link's session. Only Stripe's response counts. The reason for closing is a pending operation on the payment, which
//! that response completes.

use std::time::Duration;

use super::PaymentContext;
use super::submit::JobFlow;
use crate::app::App;
use crate::app::request_hash::hash_request;
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::domain::jobs::JobKind;
use crate::domain::payments::{Manual, Payment, PaymentInput, PaymentState, PendingOperation, Rejection};
use crate::domain::signals::{IntentStatus, SessionStatus};
use crate::domain::{Error, Money, OrganizationId, PaymentId, Result};
use crate::store;
use crate::store::request_ids::CallerRequest;
use crate::stripe;
use crate::stripe::Operation;

/// How far a caller's clock or time zone may be off.
const CLOCKS_APART_MAX: Duration = Duration::from_hours(24);

impl App {
    /// Requests the cancellation of a payment. Returns its present state; an event reports `CANCELED`.
    pub async fn cancel_payment(&self, org: OrganizationId, id: PaymentId) -> Result<Payment> {
        self.cancel_as(Actor::Caller(org), id).await
    }

    /// Like [`cancel_payment`](Self::cancel_payment), as any actor.
    pub(in crate::app) async fn cancel_as(&self, actor: Actor<'_>, id: PaymentId) -> Result<Payment> {
        let mut work = self.begin_as(actor).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        match context.payment.state() {
            PaymentState::Canceled => return Ok(context.payment),
            PaymentState::Succeeded => {
                let message = "the payment is SUCCEEDED, which is final; refund it instead";
                return Err(Error::precondition("PAYMENT_NOT_CANCELABLE", format!("payment/{id}"), message));
            }
            _ => {}
        }
        request_operation(&mut work, &mut context, PendingOperation::Cancel, &CANCEL).await?;
        work.commit().await?;
        Ok(context.payment)
    }

    /// Changes the amount to be collected. If something at Stripe could take the old amount, it is closed first, and
    /// the response still shows the old amount.
    pub async fn update_payment(
        &self,
        org: OrganizationId,
        id: PaymentId,
        version: Option<i64>,
        amount: Option<Money>,
    ) -> Result<Payment> {
        let mut work = self.begin(org).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if version.is_some_and(|version| version != context.payment.version) {
            return Err(Error::EtagMismatch { kind: "payment", id: id.to_string() });
        }
        // While an amount change is pending, the present amount is a change, too, and the pending amount may be
        // requested again.
        let waits = matches!(context.payment.pending_operation, Some(PendingOperation::ChangeAmount { .. }));
        let Some(amount) = amount.filter(|amount| waits || *amount != context.payment.amount) else {
            return Ok(context.payment);
        };
        if let Some(rejection) = amount.rejection() {
            return Err(Error::invalid("payment.amount.minor_units", rejection));
        }
        if amount.currency != context.payment.amount.currency {
            let text = format!("must stay {}: an invoice keeps its currency", context.payment.amount.currency);
            return Err(Error::invalid("payment.amount.currency_code", text));
        }
        let operation = context.payment.amount_change(amount.minor_units);
        request_operation(&mut work, &mut context, operation, &UPDATE).await?;
        work.commit().await?;
        Ok(context.payment)
    }

    /// Records that the invoice was paid elsewhere, in full. It takes effect once nothing at Stripe can take money for
    /// it.
    pub async fn record_manual_payment(
        &self,
        org: OrganizationId,
        request_id: String,
        id: PaymentId,
        reference: String,
        paid_time: Option<time::OffsetDateTime>,
    ) -> Result<Payment> {
        let paid_text = paid_time.map(|time| time.unix_timestamp_nanos().to_string()).unwrap_or_default();
        let request = CallerRequest {
            id: request_id,
            body_hash: hash_request("RecordManualPayment", &[&id.to_string(), &reference, &paid_text]),
        };
        let mut work = self.begin(org).await?;
        if paid_time.is_some_and(|time| time > work.now + CLOCKS_APART_MAX) {
            return Err(Error::invalid("paid_time", "is in the future"));
        }
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        let is_known = store::request_ids::resource_of(&mut work.tx, org, &request).await?.is_some();
        let mut context = PaymentContext::load(&mut work, id).await?;
        if is_known {
            return Ok(context.payment);
        }
        store::request_ids::insert(&mut work.tx, org, &request, id.0, work.now).await?;
        let manual = Manual { reference, time: paid_time.unwrap_or(work.now) };
        request_operation(&mut work, &mut context, PendingOperation::RecordManual(manual), &RECORD).await?;
        work.commit().await?;
        Ok(context.payment)
    }

    /// Cancels the payment's intent. Whatever the response, the intent is read. `Break`: it cannot be closed now, and
    /// the pending operation waits for its outcome.
    pub(super) async fn close_intent(&self, actor: Actor<'_>, context: PaymentContext) -> Result<JobFlow> {
        let id = context.payment.id;
        let Some(intent_id) = &context.payment.provider_payment_intent_id else { return Ok(JobFlow::Continue(())) };
        let account = self.stripe_account(actor.org(), context.payment.integration_id).await?;
        let refusal = match self.0.stripe.cancel_payment_intent(&account.key, intent_id).await.err() {
            Some(error) if error.disposition() == stripe::Disposition::NotDone => {
                return Err(self.map_stripe_error(&account, Operation::PaymentIntentCancel, &error).await);
            }
            refusal => refusal,
        };
        let Some(intent) = self.refresh_payment(actor, id).await? else { return Ok(JobFlow::Continue(())) };
        match intent.status {
            IntentStatus::Canceled | IntentStatus::Succeeded => Ok(JobFlow::Continue(())),
            IntentStatus::Processing => self.cannot_close(actor, id).await,
            _ => Err(not_closed(id, "the PaymentIntent is not canceled", refusal.as_ref())),
        }
    }

    /// Expires the session of the payment's open link. Whatever the response, the session is read. `Break`: it was
    /// used, and the pending operation waits for the outcome.
    pub(super) async fn close_link(&self, actor: Actor<'_>, context: PaymentContext) -> Result<JobFlow> {
        let id = context.payment.id;
        let Some(session_id) = context.open_link().and_then(|link| link.provider_session_id.clone()) else {
            return Ok(JobFlow::Continue(()));
        };
        let account = self.stripe_account(actor.org(), context.payment.integration_id).await?;
        let refusal = match self.0.stripe.expire_checkout_session(&account.key, &session_id).await.err() {
            Some(error) if error.disposition() == stripe::Disposition::NotDone => {
                return Err(self.map_stripe_error(&account, Operation::CheckoutSessionExpire, &error).await);
            }
            refusal => refusal,
        };
        match self.refresh_link(actor, id).await?.map(|session| session.status) {
            None | Some(SessionStatus::Expired) => Ok(JobFlow::Continue(())),
            Some(SessionStatus::Complete) => self.cannot_close(actor, id).await,
            Some(SessionStatus::Open) => Err(not_closed(id, "the payment link is not closed", refusal.as_ref())),
        }
    }

    /// The bank is processing the payment: it continues, and a requested cancellation or amount change is reported as
    /// refused.
    async fn cannot_close(&self, actor: Actor<'_>, id: PaymentId) -> Result<JobFlow> {
        let mut work = self.begin_as(actor).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if context.payment.is_in_flight() {
            context.apply(&mut work, PaymentInput::CannotClose).await?;
        }
        let waits = context.payment.is_in_flight() && context.payment.pending_operation.is_some();
        work.commit().await?;
        Ok(if waits { JobFlow::Break(()) } else { JobFlow::Continue(()) })
    }
}

/// The error for an operation that the payment's state does not allow: its reason, and the states that do allow it.
pub(super) struct StateError(&'static str, &'static str);

const CANCEL: StateError =
    StateError("PAYMENT_NOT_CANCELABLE", "only a payment that is neither SUCCEEDED nor CANCELED can be canceled");
const UPDATE: StateError = StateError(
    "PAYMENT_NOT_UPDATABLE",
    "only a PENDING or FAILED payment, or one with an open link, can change its amount",
);
const RECORD: StateError =
    StateError("PAYMENT_SETTLED", "only a payment that is neither SUCCEEDED nor CANCELED can be recorded as paid");
pub(super) const RETRY: StateError = StateError(
    "PAYMENT_NOT_RETRYABLE",
    "only a FAILED payment, a PENDING one that waits, or one with an open link can be retried",
);
pub(super) const LINK: StateError =
    StateError("PAYMENT_URL_REFUSED", "only a PENDING or FAILED payment can have a link");

/// Accepts a pending operation, or returns why it is rejected.
pub(super) async fn request_operation(
    work: &mut UnitOfWork,
    context: &mut PaymentContext,
    operation: PendingOperation,
    state_error: &StateError,
) -> Result<()> {
    if let Some(rejection) = context.payment.rejection(context.attempt.as_ref(), &operation) {
        return Err(refused(rejection, &context.payment, state_error));
    }
    context.apply(work, PaymentInput::Requested(operation)).await?;
    if context.payment.pending_operation.is_some() {
        // Also if it was requested before and the payment has not changed: its job may be parked (P8).
        work.enqueue(JobKind::SubmitPayment, context.payment.id.0);
    }
    Ok(())
}

/// The error for an operation that the payment does not allow now.
pub(super) fn refused(rejection: Rejection, payment: &Payment, state_error: &StateError) -> Error {
    let subject = format!("payment/{}", payment.id);
    let state = payment.state().as_str().to_uppercase();
    match rejection {
        Rejection::State => {
            let StateError(reason, what) = state_error;
            Error::precondition(reason, subject, format!("the payment is {state}; {what}"))
        }
        Rejection::Busy => {
            let message =
                "an earlier change waits for Stripe, or for the bank if it is processing the payment; retry later";
            Error::precondition("PAYMENT_BUSY", subject, message)
        }
    }
}

/// The error if the payment path is still open. A lost response is retried; an unexpected refusal is the job's own
/// failure.
fn not_closed(id: PaymentId, message: &str, refusal: Option<&stripe::Error>) -> Error {
    match refusal.filter(|error| error.disposition() == stripe::Disposition::Refused) {
        Some(error) => {
            Error::precondition("PAYMENT_NOT_CLOSED", format!("payment/{id}"), format!("{message}: {error}"))
        }
        None => Error::Unavailable {
            reason: "STRIPE_UNAVAILABLE",
            message: format!("{message} yet"),
            retry_after: Duration::from_secs(5),
        },
    }
}
