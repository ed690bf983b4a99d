//! A payment: the collection of one invoice. There is one row for each invoice, whatever the number of attempts.
//!
//! [`Payment::apply`] is the only function that changes a payment's state, whatever the source of the input: the
//! response to our own request, a webhook, an entry of the events list, or a read by the reconciler. [`plan`] decides
//! what to do next.
//!
//! Invariants: `SUCCEEDED` and `CANCELED` are final (P7). Once anything has been sent, only Stripe can make a payment
//! `FAILED` (P2): an intent that shows neither a new charge nor a new error proves nothing.

mod apply;
mod attempts;
mod failure;
mod links;
mod operation;
mod pending_operations;
mod plan;
mod recovery;
mod state;
#[cfg(test)]
mod tests;
mod transitions;

use time::OffsetDateTime;

pub use self::apply::{ApplyContext, PaymentInput};
pub use self::attempts::{Attempt, AttemptKind, AttemptState, Link};
pub use self::failure::Failure;
pub use self::operation::{Manual, PendingOperation};
pub use self::pending_operations::Rejection;
pub use self::plan::{PlanContext, Step, link_rejection};
pub use self::state::{PaymentState, PendingReason, RequiredAction, State};
pub use self::transitions::{Notice, ReceivedMoney, Transition};
use super::customers::{Customer, CustomerRef};
use super::{CustomerId, IntegrationId, Money, OrganizationId, PaymentId, PaymentMethodId};

/// The collection of one invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payment {
    /// Our id.
    pub id: PaymentId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that collects it.
    pub integration_id: IntegrationId,
    /// The customer who pays.
    pub customer_id: CustomerId,
    /// The billing system's id of that customer, which cannot change.
    pub external_customer_id: String,
    /// The billing system's id of the invoice, unique in the organization.
    pub invoice_id: String,
    /// The invoice number shown to people; may be empty.
    pub invoice_number: String,
    /// The amount to collect.
    pub amount: Money,
    /// Its current state.
    pub state: State,
    /// Whether it failed for lack of a payment method and the one automatic retry is still to come.
    pub awaits_method: bool,
    /// Stripe's `pi_…`: the one intent that all attempts confirm (P1). Cleared once Stripe has confirmed that it is
    /// closed and another payment path is to be opened.
    pub provider_payment_intent_id: Option<String>,
    /// Counts the intents created for it: the generation of the request that creates the next one.
    pub intent_number: i32,
    /// The number of the newest attempt; 0 before the first.
    pub attempt_number: i32,
    /// The method requested by RetryPayment; `None` means the customer's default.
    pub requested_method_id: Option<PaymentMethodId>,
    /// The total received through Stripe, minor units.
    pub amount_received: i64,
    /// The part of the current amount that charges made in the Stripe Dashboard have paid without paying it in full.
    /// Once paid, it includes what was needed of such a charge that arrived at the same time. Minor units.
    pub part_received: i64,
    /// The total refunded, minor units.
    pub amount_refunded: i64,
    /// When cancellation was requested. Stays when the payment is canceled, or is paid all the same.
    pub cancel_request_time: Option<OffsetDateTime>,
    /// The operation to execute once nothing at Stripe can take money for it any more.
    pub pending_operation: Option<PendingOperation>,
    /// The amount due, minor units, after a change of the amount was refused because the payer had already begun to pay
    /// the current one: the requested amount plus the parts known at the time of the request. Receipts are compared
    /// with it.
    pub refused_amount: Option<i64>,
    /// Since when the outcome of a Stripe request has been unknown (P2). After a disconnect, any state may have one.
    pub unknown_since: Option<OffsetDateTime>,
    /// Increases with every change.
    pub version: i64,
    /// When the invoice was first submitted.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

impl Payment {
    /// The name of its state.
    pub fn state(&self) -> PaymentState {
        match self.state {
            State::Pending { .. } => PaymentState::Pending,
            State::Processing { .. } => PaymentState::Processing,
            State::RequiresAction { .. } => PaymentState::RequiresAction,
            State::Succeeded { .. } => PaymentState::Succeeded,
            State::Failed(_) => PaymentState::Failed,
            State::Canceled => PaymentState::Canceled,
        }
    }

    /// Whether something at Stripe may take money for it.
    pub fn is_in_flight(&self) -> bool {
        matches!(self.state, State::Processing { .. } | State::RequiresAction { .. })
    }

    /// Why it waits, while `PENDING`.
    pub fn pending_reason(&self) -> Option<PendingReason> {
        if let State::Pending { reason } = self.state { reason } else { None }
    }

    /// Whether the customer confirms on session, because the bank requires authentication (3-D Secure).
    pub fn is_on_session(&self) -> bool {
        match self.state {
            State::Processing { on_session }
            | State::RequiresAction { action: RequiredAction::Authenticate { on_session, .. }, .. } => on_session,
            _ => false,
        }
    }

    /// Where the customer completes the required action.
    pub fn next_action_url(&self) -> Option<&str> {
        if let State::RequiresAction { url, .. } = &self.state { url.as_deref() } else { None }
    }

    /// Since when the customer has been asked to authenticate.
    pub fn action_time(&self) -> Option<OffsetDateTime> {
        match self.state {
            State::RequiresAction { action: RequiredAction::Authenticate { since, .. }, .. } => Some(since),
            _ => None,
        }
    }

    /// Why it was refused, while `FAILED`.
    pub fn failure(&self) -> Option<&Failure> {
        if let State::Failed(failure) = &self.state { Some(failure) } else { None }
    }

    /// Stripe's `ch_…` of the charge that paid it.
    pub fn provider_charge_id(&self) -> Option<&str> {
        match &self.state {
            State::Succeeded { provider_charge_id, .. } => provider_charge_id.as_deref(),
            _ => None,
        }
    }

    /// The payment recorded as made elsewhere, once it takes effect.
    pub fn manual(&self) -> Option<&Manual> {
        if let State::Succeeded { manual, .. } = &self.state { manual.as_ref() } else { None }
    }

    /// The collection of an invoice, accepted now.
    pub fn new(
        id: PaymentId,
        new: &NewPayment,
        customer: &Customer,
        integration_id: IntegrationId,
        now: OffsetDateTime,
    ) -> Self {
        Self {
            id,
            organization_id: customer.organization_id,
            integration_id,
            customer_id: customer.id,
            external_customer_id: customer.external_id.clone(),
            invoice_id: new.invoice_id.clone(),
            invoice_number: new.invoice_number.clone(),
            amount: new.amount,
            state: State::Pending { reason: None },
            awaits_method: false,
            provider_payment_intent_id: None,
            intent_number: 1,
            attempt_number: 0,
            requested_method_id: None,
            amount_received: 0,
            part_received: 0,
            amount_refunded: 0,
            cancel_request_time: None,
            pending_operation: None,
            refused_amount: None,
            unknown_since: None,
            version: 1,
            create_time: now,
            update_time: now,
        }
    }

    /// Reopens the canceled payment `canceled` of the same invoice. Its numbers continue, so that no idempotency key is
    /// ever used for another body (P2).
    #[must_use]
    pub fn reopening(self, canceled: &Self) -> Self {
        Self {
            id: canceled.id,
            intent_number: canceled.intent_number + 1,
            attempt_number: canceled.attempt_number,
            amount_received: canceled.amount_received,
            amount_refunded: canceled.amount_refunded,
            version: canceled.version,
            create_time: canceled.create_time,
            ..self
        }
    }

    /// The number of the next attempt.
    pub fn next_attempt_number(&self) -> i32 {
        self.attempt_number + 1
    }
}

/// A caller's request to collect an invoice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Payment")]
pub struct NewPayment {
    pub invoice_id: String,
    pub invoice_number: String,
    pub customer: CustomerRef,
    pub amount: Money,
}

/// How a caller identifies a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentRef {
    /// Our id.
    Id(PaymentId),
    /// The billing system's id of the invoice.
    InvoiceId(String),
}

/// Selects payments for a list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaymentFilter {
    /// Only payments of this customer.
    pub customer_id: Option<CustomerId>,
    /// Only payments in one of these states; empty means any state.
    pub states: Vec<PaymentState>,
    /// Only payments created at this time or later.
    pub created_from: Option<OffsetDateTime>,
    /// Only payments created before this time.
    pub created_before: Option<OffsetDateTime>,
}
