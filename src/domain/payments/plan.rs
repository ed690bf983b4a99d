//! What to do next with a payment.

use time::{Duration, OffsetDateTime};

use super::{Attempt, Failure, News, Objection, Payment, PaymentState, PendingReason};
use crate::domain::PaymentMethodId;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{MethodKind, PaymentMethod};
use crate::domain::signals::IntentSnapshot;

/// An idempotency key older than this is never sent again: Stripe keeps them for 24 h, and prunes them after that (P2).
pub const KEY_AGE_MAX: Duration = Duration::hours(20);

/// When what a key was to do is looked for after a stored 500, counted from the first replay of it: Stripe may still roll
/// the work forward.
pub const DEAD_KEY_READS: [Duration; 3] = [Duration::minutes(1), Duration::minutes(5), Duration::minutes(30)];

/// An attempt that is older was perhaps sent before: the intent is read first.
const FIRST_SEND_PERIOD: Duration = Duration::minutes(1);

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
    /// End the link's page at Stripe, so that nobody can pay there any more.
    CloseLink,
    /// Cancel the intent at Stripe, so that it can take no money any more.
    CloseIntent,
    /// Make the page of the link that holds the slot.
    MakeLink,
}

impl Step {
    /// Whether the payment is about to fail for lack of a payment method.
    pub fn lacks_method(&self) -> bool {
        let Self::Decide(news) = self else { return false };
        matches!(&**news, News::Refused(failure) | News::ConfirmRefused(failure) if failure.lacks_method())
    }
}

/// Decides what to do next with `payment`: the rules of DESIGN section 5, in their order. `attempt` is the newest one,
/// `methods` are all of the customer's.
pub fn plan(
    payment: &Payment,
    attempt: Option<&Attempt>,
    integration: &Integration,
    customer: &Customer,
    methods: &[PaymentMethod],
) -> Step {
    if payment.state.is_final() {
        return Step::Rest;
    }
    let link = attempt.and_then(Attempt::open_link);
    if payment.errand.is_some() {
        // One way at a time; the errand is carried out with the news that the last one is closed (P1).
        return match link {
            Some(link) if link.provider_session_id.is_some() => Step::CloseLink,
            _ => Step::CloseIntent,
        };
    }
    if let Some(link) = link {
        // The link opens only after Stripe has answered that the intent is closed (P1), and none opens at an integration
        // that is being disconnected: nobody would hear of what is paid there.
        return match (&payment.provider_payment_intent_id, &link.provider_session_id) {
            (_, None) if !integration.accepts_work() => Step::Decide(Box::new(News::Withdrawn)),
            (Some(_), _) => Step::CloseIntent,
            (None, None) => Step::MakeLink,
            (None, Some(_)) => Step::Rest,
        };
    }
    let is_open = attempt.is_some_and(Attempt::is_open);
    match payment.state {
        PaymentState::Pending => {}
        PaymentState::Processing if payment.on_session && !is_open => {}
        PaymentState::Processing => return Step::Resume,
        PaymentState::RequiresAction | PaymentState::Succeeded | PaymentState::Failed | PaymentState::Canceled => {
            return Step::Rest;
        }
    }
    collect(payment, attempt, integration, customer, methods)
}

/// Whether a link may be made now; it takes the slot.
pub fn link_objection(payment: &Payment, attempt: Option<&Attempt>) -> Option<Objection> {
    let is_open = attempt.is_some_and(Attempt::is_open);
    match payment.state {
        PaymentState::Pending | PaymentState::Failed if is_open || payment.errand.is_some() => Some(Objection::Busy),
        PaymentState::Pending | PaymentState::Failed => None,
        _ => Some(Objection::State),
    }
}

fn collect(
    payment: &Payment,
    attempt: Option<&Attempt>,
    integration: &Integration,
    customer: &Customer,
    methods: &[PaymentMethod],
) -> Step {
    let decide = |news| Step::Decide(Box::new(news));
    if payment.amount.minor_units == 0 {
        return decide(News::NothingDue);
    }
    if !integration.accepts_work() {
        return decide(News::Withdrawn);
    }
    match customer.link_state {
        LinkState::Pending => return decide(News::Waits(PendingReason::WaitingForCustomer)),
        LinkState::None | LinkState::Failed => {
            let text = "the customer has no Stripe customer; link or create one, then retry the payment";
            return decide(refused(payment, Failure::ours("no_provider_customer", text)));
        }
        LinkState::Linked => {}
    }
    if customer.integration_id != Some(payment.integration_id) {
        let text = "the customer is linked through another integration than the one that this payment began with";
        return decide(refused(payment, Failure::ours("no_provider_customer", text)));
    }
    if integration.state == IntegrationState::Paused {
        return decide(News::Waits(PendingReason::IntegrationPaused));
    }
    let kinds = customer.kinds_for(payment.amount.currency);
    // The customer is asked to prove who they are for the method that was just refused, not for another one.
    let again = attempt.filter(|_| payment.on_session).and_then(Attempt::method);
    let wanted = again.or(payment.requested_method_id).or(customer.default_payment_method_id);
    match chargeable(payment, wanted, methods, &kinds) {
        Err(failure) => decide(refused(payment, *failure)),
        Ok(method) if payment.provider_payment_intent_id.is_some() => Step::Confirm { method, kinds },
        Ok(_) => Step::CreateIntent { kinds },
    }
}

/// A refusal by a rule of ours. On the way to the customer the bank's own refusal was Stripe's word (P2).
fn refused(payment: &Payment, failure: Failure) -> News<'static> {
    if payment.state == PaymentState::Processing { News::ConfirmRefused(failure) } else { News::Refused(failure) }
}

/// The method to charge, or why there is none. A default that does not fit is never replaced by another: the customer
/// did not choose that one.
fn chargeable(
    payment: &Payment,
    wanted: Option<PaymentMethodId>,
    methods: &[PaymentMethod],
    kinds: &[MethodKind],
) -> Result<PaymentMethodId, Box<Failure>> {
    let Some(method) = wanted.and_then(|id| methods.iter().find(|method| method.id == id)) else {
        return Err(Box::new(Failure::no_payment_method()));
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

/// What to do next with an open attempt that may have been sent (P2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Read the intent first: it is the judge.
    Read,
    /// Send the frozen body, under its own key.
    Send,
    /// The intent has told; nothing more is to be sent.
    Told,
    /// The key will say nothing more, but Stripe may still do the work: read the intent again at this time.
    Wait(OffsetDateTime),
    /// The key can't be used any more, and nothing moved: the same body goes on the same intent under a new key, which can
    /// still succeed only once.
    NewKey,
}

/// Decides what to do with an open attempt. `intent` is what was read of its intent in this round, if it was;
/// `is_first_send`: nothing is known to have been sent, and no try of this job has failed.
pub fn resume(attempt: &Attempt, intent: Option<&IntentSnapshot>, is_first_send: bool, now: OffsetDateTime) -> Resume {
    let age = now - attempt.create_time;
    let is_old = age > KEY_AGE_MAX || attempt.dead_key_time.is_some();
    let Some(intent) = intent else {
        let is_fresh = is_first_send && !is_old && age <= FIRST_SEND_PERIOD;
        return if is_fresh { Resume::Send } else { Resume::Read };
    };
    if !intent.waits() || attempt.has_moved(intent) {
        return Resume::Told;
    }
    if !is_old {
        return Resume::Send;
    }
    let reads = attempt.dead_key_time.into_iter().flat_map(|dead| DEAD_KEY_READS.map(|wait| dead + wait));
    reads.into_iter().find(|read| *read > now).map_or(Resume::NewKey, Resume::Wait)
}
