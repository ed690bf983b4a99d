//! Decides what to do next with a payment.

use time::OffsetDateTime;

use super::{Attempt, Failure, Payment, PaymentInput, PaymentState, PendingReason, Rejection, State};
use crate::domain::PaymentMethodId;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{MethodKind, PaymentMethod};

/// The next step of a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing to do; an external event has to arrive first.
    Idle,
    /// Apply this input, which a rule of Paybridge's has decided.
    Apply(Box<PaymentInput<'static>>),
    /// Create the intent without confirming it. No money can move yet.
    CreateIntent {
        /// Its `payment_method_types`.
        kinds: Vec<MethodKind>,
    },
    /// Prepare an attempt on the intent, and confirm it.
    PrepareAttempt {
        /// The method to charge.
        method: PaymentMethodId,
        /// The recomputed `payment_method_types` to send with the confirmation.
        kinds: Vec<MethodKind>,
    },
    /// Send the open attempt again, byte for byte, or settle it.
    Resume,
    /// Expire the link's Checkout session at Stripe, so that nobody can pay there any more.
    CloseLink,
    /// Cancel the intent at Stripe, so that it can no longer take money.
    CloseIntent,
    /// Create the Checkout session of the link that holds the slot.
    CreateLink,
}

impl Step {
    /// Whether the payment is about to fail for lack of a payment method.
    pub fn lacks_method(&self) -> bool {
        let Self::Apply(input) = self else { return false };
        let (PaymentInput::Refused(failure) | PaymentInput::ConfirmRefused(failure)) = &**input else { return false };
        failure.lacks_method()
    }
}

impl Payment {
    /// Whether it failed for lack of a method. Paybridge retries it when one arrives.
    pub fn lacked_method(&self) -> bool {
        self.failure().is_some_and(Failure::lacks_method)
    }

    /// Whether to retry automatically with this default, once: the payment had failed for lack of a method. What was
    /// refused since, for example on a link, is not repeated; then only another method counts, and only one attached
    /// later. Times alone do not decide, because Stripe's are whole seconds of Stripe's clock.
    pub fn is_due_for(&self, default: Option<&PaymentMethod>, attempt: Option<&Attempt>) -> bool {
        let Some(default) =
            default.filter(|_| self.state() == PaymentState::Failed && self.pending_operation.is_none())
        else {
            return false;
        };
        if attempt.is_some_and(Attempt::is_open) {
            return false;
        }
        let is_attempted = attempt.and_then(Attempt::method) == Some(default.id);
        let refused = attempt.and_then(|attempt| attempt.finish_time).map(OffsetDateTime::unix_timestamp);
        let attached = default.attach_time.map(OffsetDateTime::unix_timestamp);
        let is_new = !is_attempted && refused.is_none_or(|refused| attached >= Some(refused));
        self.lacked_method() || (self.awaits_method && is_new)
    }
}

/// What the decisions about a payment depend on.
#[derive(Clone, Copy, Debug)]
pub struct PlanContext<'a> {
    /// The payment.
    pub payment: &'a Payment,
    /// Its newest attempt.
    pub attempt: Option<&'a Attempt>,
    /// The customer who pays.
    pub customer: &'a Customer,
    /// The integration that collects.
    pub integration: &'a Integration,
    /// All of the customer's methods, including detached ones.
    pub methods: &'a [PaymentMethod],
}

impl PlanContext<'_> {
    /// Whether the customer's default has arrived for a payment that lacked one.
    pub fn is_due(&self) -> bool {
        let default = self.customer.default_payment_method_id;
        let default = self.methods.iter().find(|method| Some(method.id) == default);
        self.payment.is_due_for(default, self.attempt)
    }

    /// Decides the next step.
    pub fn plan(&self) -> Step {
        let Self { payment, attempt, integration, .. } = *self;
        if payment.state().is_final() {
            return Step::Idle;
        }
        let link = attempt.and_then(Attempt::open_link);
        if let Some(operation) = &payment.pending_operation {
            if payment.is_closed(attempt) {
                // It was requested while the integration caught up, and is executed now.
                return Step::Apply(Box::new(PaymentInput::Requested(operation.clone())));
            }
            // One payment path at a time: the operation is executed once the open one is known to be closed (P1).
            return match link {
                Some(link) if link.provider_session_id.is_some() => Step::CloseLink,
                _ => Step::CloseIntent,
            };
        }
        if let Some(link) = link {
            // A link opens only after Stripe has confirmed that the intent is closed (P1). None opens at an integration
            // that is being disconnected, because a payment made there would not be reported to Paybridge.
            return match (&payment.provider_payment_intent_id, &link.provider_session_id) {
                (_, None) if !integration.accepts_work() => Step::Apply(Box::new(PaymentInput::Withdrawn)),
                (Some(_), _) => Step::CloseIntent,
                (None, None) => Step::CreateLink,
                (None, Some(_)) => Step::Idle,
            };
        }
        let is_open = attempt.is_some_and(Attempt::is_open);
        match payment.state {
            State::Pending { .. } => {}
            State::Processing { on_session } if on_session && !is_open => {}
            State::Processing { .. } => return Step::Resume,
            State::RequiresAction { .. } | State::Succeeded { .. } | State::Failed(_) | State::Canceled => {
                return Step::Idle;
            }
        }
        self.collect()
    }

    fn collect(&self) -> Step {
        let Self { payment, attempt, customer, integration, .. } = *self;
        let decide = |input| Step::Apply(Box::new(input));
        if payment.amount.minor_units == 0 {
            return decide(PaymentInput::ZeroAmount);
        }
        if !integration.accepts_work() {
            return decide(PaymentInput::Withdrawn);
        }
        match customer.link_state {
            LinkState::Pending => return decide(PaymentInput::Wait(PendingReason::WaitingForCustomer)),
            LinkState::None | LinkState::Failed => {
                let text = "the customer has no Stripe customer; link or create one, then retry the payment";
                return decide(refused(payment, Failure::ours("no_provider_customer", text)));
            }
            LinkState::Linked => {}
        }
        if customer.integration_id != Some(payment.integration_id) {
            let text = "the customer is linked through another integration than the one that collects this payment";
            return decide(refused(payment, Failure::ours("no_provider_customer", text)));
        }
        if integration.state == IntegrationState::Paused {
            return decide(PaymentInput::Wait(PendingReason::IntegrationPaused));
        }
        let kinds = customer.kinds_for(payment.amount.currency);
        // The customer authenticates for the method that was just refused, not for another one.
        let again = attempt.filter(|_| payment.is_on_session()).and_then(Attempt::method);
        let wanted = again.or(payment.requested_method_id).or(customer.default_payment_method_id);
        match self.chargeable(wanted, &kinds) {
            Err(failure) => decide(refused(payment, *failure)),
            Ok(method) if payment.provider_payment_intent_id.is_some() => Step::PrepareAttempt { method, kinds },
            Ok(_) => Step::CreateIntent { kinds },
        }
    }

    /// The method to charge, or why there is none. An unsuitable default is never replaced by another method, which the
    /// customer has not chosen.
    fn chargeable(
        &self,
        wanted: Option<PaymentMethodId>,
        kinds: &[MethodKind],
    ) -> Result<PaymentMethodId, Box<Failure>> {
        let Some(method) = wanted.and_then(|id| self.methods.iter().find(|method| method.id == id)) else {
            return Err(Box::new(Failure::no_payment_method()));
        };
        if !method.is_eligible(kinds) {
            let text = format!(
                "the payment method is detached, not allowed, or cannot pay in {}",
                self.payment.amount.currency
            );
            return Err(Box::new(Failure::ours("payment_method_not_usable", text)));
        }
        if method.is_legacy_sepa() {
            let text = format!(
                "{} is a SEPA source, which Stripe no longer debits; have Stripe migrate the account's SEPA sources to \
                 PaymentMethods, or let the customer store a new method through a Checkout link",
                method.provider_payment_method_id
            );
            return Err(Box::new(Failure::ours("payment_method_not_usable", text)));
        }
        if method.mandate_has_ended() {
            let text =
                "the mandate of the payment method has ended; let the customer store it again through a Checkout link";
            return Err(Box::new(Failure::ours(Failure::MANDATE_MISSING, text)));
        }
        Ok(method.id)
    }
}

/// Why no link can be created now; `None` if it can. A link takes the payment's slot.
pub fn link_rejection(payment: &Payment, attempt: Option<&Attempt>) -> Option<Rejection> {
    let is_open = attempt.is_some_and(Attempt::is_open);
    match payment.state() {
        PaymentState::Pending | PaymentState::Failed if is_open || payment.pending_operation.is_some() => {
            Some(Rejection::Busy)
        }
        PaymentState::Pending | PaymentState::Failed => None,
        _ => Some(Rejection::State),
    }
}

/// A refusal by a rule of Paybridge's. Between a refusal for lack of authentication and the next confirmation, Stripe's
/// refusal already stands (P2).
fn refused(payment: &Payment, failure: Failure) -> PaymentInput<'static> {
    if payment.state() == PaymentState::Processing {
        PaymentInput::ConfirmRefused(failure)
    } else {
        PaymentInput::Refused(failure)
    }
}
