//! What to do next with a payment.

use super::{Failure, News, Payment, PaymentState, PendingReason};
use crate::domain::PaymentMethodId;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{MethodKind, PaymentMethod};

/// What to do next with a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing; somebody or something else moves it.
    Rest,
    /// A rule of ours decides.
    Decide(Box<News<'static>>),
    /// Make the intent, unconfirmed: no money can move yet.
    CreateIntent {
        /// Its `payment_method_types`.
        kinds: Vec<MethodKind>,
    },
    /// Freeze an attempt on the intent, and confirm it.
    Confirm {
        /// The method to charge.
        method: PaymentMethodId,
        /// The list sent with the confirm, recomputed.
        kinds: Vec<MethodKind>,
    },
    /// Send the open attempt again, byte for byte; or settle what it has come to.
    Resume,
}

/// Decides what to do next with `payment`: the rules of DESIGN section 5, in their order. `methods` are all of the
/// customer's.
pub fn plan(payment: &Payment, integration: &Integration, customer: &Customer, methods: &[PaymentMethod]) -> Step {
    match payment.state {
        PaymentState::Pending => {}
        PaymentState::Processing => return Step::Resume,
        PaymentState::RequiresAction | PaymentState::Succeeded | PaymentState::Failed | PaymentState::Canceled => {
            return Step::Rest;
        }
    }
    let decide = |news| Step::Decide(Box::new(news));
    if payment.cancel_request_time.is_some() {
        return Step::Rest;
    }
    if !integration.accepts_work() {
        return decide(News::Withdrawn);
    }
    if payment.amount.minor_units == 0 {
        return decide(News::NothingDue);
    }
    match customer.link_state {
        LinkState::Pending => return decide(News::Waits(PendingReason::WaitingForCustomer)),
        LinkState::None | LinkState::Failed => {
            let text = "the customer has no Stripe customer; link or create one, then retry the payment";
            return decide(News::Refused(Failure::ours("no_provider_customer", text)));
        }
        LinkState::Linked => {}
    }
    if customer.integration_id != Some(payment.integration_id) {
        let text = "the customer is linked through another integration than the one that this payment began with";
        return decide(News::Refused(Failure::ours("no_provider_customer", text)));
    }
    if integration.state == IntegrationState::Paused {
        return decide(News::Waits(PendingReason::IntegrationPaused));
    }
    let kinds = customer.kinds_for(payment.amount.currency);
    match chargeable(payment, customer, methods, &kinds) {
        Err(failure) => decide(News::Refused(*failure)),
        Ok(method) if payment.provider_payment_intent_id.is_some() => Step::Confirm { method, kinds },
        Ok(_) => Step::CreateIntent { kinds },
    }
}

/// The method to charge, or why there is none. A default that does not fit is never replaced by another: the customer
/// did not choose that one.
fn chargeable(
    payment: &Payment,
    customer: &Customer,
    methods: &[PaymentMethod],
    kinds: &[MethodKind],
) -> Result<PaymentMethodId, Box<Failure>> {
    let wanted = payment.requested_method_id.or(customer.default_payment_method_id);
    let Some(method) = wanted.and_then(|id| methods.iter().find(|method| method.id == id)) else {
        let text = "the customer has no payment method; it is tried again by itself when one arrives";
        return Err(Box::new(Failure::ours(Failure::NO_PAYMENT_METHOD, text)));
    };
    let fits = MethodKind::parse(&method.kind).is_some_and(|kind| kinds.contains(&kind));
    if !fits || method.detach_time.is_some() {
        let text =
            format!("the payment method is detached, or not allowed, or can't pay in {}", payment.amount.currency);
        return Err(Box::new(Failure::ours("payment_method_not_usable", text)));
    }
    if method.kind == MethodKind::SepaDebit.as_str() && !method.has_mandate() {
        let text = "the SEPA payment method has no mandate; let the customer store it anew through a Checkout link";
        return Err(Box::new(Failure::ours("mandate_missing", text)));
    }
    Ok(method.id)
}
