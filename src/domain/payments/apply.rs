//! How news change a payment.

use time::OffsetDateTime;

use super::{Attempt, AttemptState, Failure, Payment, PaymentState, PendingReason};
use crate::domain::PaymentMethodId;
use crate::domain::signals::{IntentSnapshot, IntentStatus};

/// News for a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// A rule of ours: nothing can be sent yet.
    Waits(PendingReason),
    /// A rule of ours, or Stripe's answer to the creation of the intent: this payment can't be collected as it is.
    /// Only before a confirm was sent.
    Refused(Failure),
    /// A confirm is about to leave us.
    Sent,
    /// A call's outcome is unknown.
    Unknown,
    /// Nothing has to be collected.
    NothingDue,
    /// The caller wants another try.
    Retried(Option<PaymentMethodId>),
    /// Closed before anything that could take money existed at Stripe.
    Withdrawn,
    /// What the payment's own intent says now.
    Intent(&'a IntentSnapshot),
    /// Stripe refused the confirm outright, with its own word for why.
    ConfirmRefused(Failure),
}

/// What happened to a payment's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: PaymentState,
    /// After.
    pub to: PaymentState,
    /// Whether a wait began that the caller is to be told of, although the state is the same.
    pub waits_anew: bool,
}

impl Change {
    /// Whether the billing system is to be told.
    pub fn is_news(self) -> bool {
        self.from != self.to || self.waits_anew
    }
}

impl Payment {
    /// Takes in `news`: the one place where a payment's state changes. `attempt` is the newest attempt, if there is one;
    /// its outcome is settled along with the payment's.
    pub fn apply(&mut self, attempt: Option<&mut Attempt>, news: News<'_>, now: OffsetDateTime) -> Change {
        let (from, reason_before) = (self.state, self.pending_reason);
        match news {
            News::Intent(intent) => self.apply_intent(attempt, intent, now),
            _ if self.state.is_final() => {}
            // A payment that Stripe has settled meanwhile is known, whatever became of the call's answer.
            News::Unknown if self.is_moving() || self.state == PaymentState::Pending => {
                self.unknown_since.get_or_insert(now);
            }
            News::Waits(reason) if self.state == PaymentState::Pending => self.pending_reason = Some(reason),
            News::Refused(failure) if self.state == PaymentState::Pending => self.fail(failure),
            News::ConfirmRefused(failure) if self.is_moving() => {
                settle(attempt, AttemptState::Failed(failure.clone()), failure.provider_charge_id.clone(), now);
                self.fail(failure);
            }
            News::Sent if self.state == PaymentState::Pending => self.enter(PaymentState::Processing),
            News::NothingDue if self.state == PaymentState::Pending => self.enter(PaymentState::Succeeded),
            News::Retried(method) if matches!(self.state, PaymentState::Failed | PaymentState::Pending) => {
                self.requested_method_id = method;
                self.enter(PaymentState::Pending);
            }
            News::Withdrawn if !self.is_moving() => self.enter(PaymentState::Canceled),
            News::Unknown
            | News::Waits(_)
            | News::Refused(_)
            | News::ConfirmRefused(_)
            | News::Sent
            | News::NothingDue
            | News::Retried(_)
            | News::Withdrawn => {}
        }
        let waits_anew = from == self.state
            && self.pending_reason != reason_before
            && self.pending_reason == Some(PendingReason::AmountTooSmall);
        Change { from, to: self.state, waits_anew }
    }

    /// Whether something at Stripe may take money for it.
    pub fn is_moving(&self) -> bool {
        matches!(self.state, PaymentState::Processing | PaymentState::RequiresAction)
    }

    fn apply_intent(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, now: OffsetDateTime) {
        if self.state.is_final() || self.provider_payment_intent_id.as_deref() != Some(intent.id.as_str()) {
            return;
        }
        let charge = intent.latest_charge.clone();
        match intent.status {
            IntentStatus::Succeeded => {
                // Beside what came in otherwise before (P12).
                self.amount_received += intent.amount_received;
                settle(attempt, AttemptState::Succeeded, charge, now);
                self.enter(PaymentState::Succeeded);
            }
            IntentStatus::Canceled => {
                settle(attempt, AttemptState::Canceled, charge, now);
                self.enter(PaymentState::Canceled);
            }
            IntentStatus::Processing | IntentStatus::RequiresCapture => {
                note_charge(attempt, charge);
                self.enter(PaymentState::Processing);
            }
            IntentStatus::RequiresAction => {
                note_charge(attempt, charge);
                self.enter(PaymentState::RequiresAction);
                self.next_action_url.clone_from(&intent.next_action_url);
            }
            IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation => {
                self.apply_refusal(attempt, intent, now);
            }
        }
    }

    /// The intent waits for a method. That is a refusal only if the open attempt left its trace on it (P2).
    fn apply_refusal(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, now: OffsetDateTime) {
        let Some(attempt) = attempt else { return };
        if !self.is_moving() || attempt.state != AttemptState::Open || !attempt.has_moved(intent) {
            return;
        }
        let failure = intent.last_payment_error.clone().unwrap_or_else(|| {
            Failure::ours("payment_intent_payment_attempt_failed", "Stripe reports the try as failed, without a reason")
        });
        settle(Some(attempt), AttemptState::Failed(failure.clone()), intent.latest_charge.clone(), now);
        self.fail(failure);
    }

    fn fail(&mut self, failure: Failure) {
        self.enter(PaymentState::Failed);
        self.failure = Some(failure);
    }

    /// Enters a state and drops what belongs to others.
    fn enter(&mut self, state: PaymentState) {
        self.state = state;
        self.pending_reason = None;
        self.failure = None;
        self.next_action_url = None;
        self.unknown_since = None;
    }
}

fn settle(attempt: Option<&mut Attempt>, outcome: AttemptState, charge: Option<String>, now: OffsetDateTime) {
    let Some(attempt) = attempt else { return };
    if attempt.state == AttemptState::Open {
        attempt.state = outcome;
        attempt.finish_time = Some(now);
        note_charge(Some(attempt), charge);
    }
}

fn note_charge(attempt: Option<&mut Attempt>, charge: Option<String>) {
    if let Some(attempt) = attempt
        && charge.is_some()
        && charge != attempt.prior_charge
    {
        attempt.provider_charge_id = charge;
    }
}

impl Attempt {
    /// Whether the intent shows a trace of this attempt: a charge or an error that was not there before the confirm.
    pub fn has_moved(&self, intent: &IntentSnapshot) -> bool {
        if intent.latest_charge != self.prior_charge {
            return true;
        }
        match (&intent.last_payment_error, &self.prior_error) {
            (Some(now), Some(before)) => !now.is_same_as(before),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}
