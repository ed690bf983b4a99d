//! A payment whose history was lost gets the intent that Stripe has for its invoice (P8).

use super::{Payment, PaymentState, State};
use crate::domain::signals::IntentSnapshot;

impl Payment {
    /// Whether an intent of ours that is not known here may have become the one that collects the payment. An
    /// unconfirmed one takes no money, so it neither reopens a canceled payment nor changes the amount.
    pub fn may_be_collected_by(&self, intent: &IntentSnapshot) -> bool {
        match self.state() {
            PaymentState::Succeeded => false,
            PaymentState::Canceled => has_been_confirmed(intent),
            _ => intent.amount == self.amount || has_been_confirmed(intent),
        }
    }

    /// The payment as it was when a link of ours that is not known here was created for this intent. The link is then
    /// applied. Stripe lets nobody cancel such an intent, so it is not the payment's own.
    #[must_use]
    pub fn before_link(self, intent: &IntentSnapshot) -> Self {
        let state = State::Pending { reason: None };
        Self { state, amount: intent.amount, awaits_method: false, provider_payment_intent_id: None, ..self }
    }

    /// The payment with an intent of ours as its own that was not known here. Whatever was tried has left its trace on the
    /// intent, which is then applied.
    #[must_use]
    pub fn recovered(self, intent: &IntentSnapshot) -> Self {
        let provider_payment_intent_id = Some(intent.id.clone());
        if !has_been_confirmed(intent) {
            return Self { provider_payment_intent_id, ..self };
        }
        let state = State::Processing { on_session: false };
        Self { state, amount: intent.amount, awaits_method: false, provider_payment_intent_id, ..self }
    }
}

fn has_been_confirmed(intent: &IntentSnapshot) -> bool {
    !intent.awaits_confirmation() || intent.last_payment_error.is_some()
}
