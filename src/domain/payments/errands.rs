//! Errands: what a caller, or the clock, wants of a payment that may have to wait until nothing at Stripe can take money
//! for it any more (P1). An errand is kept on the payment until Stripe has answered that the open way is closed; then it
//! is carried out in the same transaction. A payment has one errand at a time.

use time::OffsetDateTime;

use super::{Attempt, AttemptState, Circumstances, Failure, Payment, PaymentState};
use crate::domain::PaymentMethodId;

/// What is to be done once the open way is closed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Errand {
    /// Give the payment up.
    Cancel,
    /// Collect another amount, in the same currency.
    ChangeAmount {
        /// Minor units.
        minor_units: i64,
    },
    /// Charge a stored method, although a link is open.
    Retry {
        /// The method asked for; absent: the customer's default.
        method: Option<PaymentMethodId>,
    },
    /// Take it as paid elsewhere.
    RecordManual(Manual),
    /// The customer did not finish in time what they were asked to do.
    EndAction,
}

/// A payment that was made elsewhere, and covers the whole amount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manual {
    /// The caller's own reference, such as a bank statement's line.
    pub reference: String,
    /// When it was made, as the caller says.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

/// Why an errand can't be taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// The state does not allow it.
    State,
    /// Another errand is on its way.
    Busy,
}

impl Errand {
    /// Whether it waits for the outcome where Stripe can't close what is on its way.
    fn outlasts(&self) -> bool {
        matches!(self, Self::RecordManual(_))
    }
}

impl Payment {
    /// Why `errand` can't be taken on now.
    pub fn objection(&self, attempt: Option<&Attempt>, errand: &Errand) -> Option<Objection> {
        // A link that was used is at the bank, and no link any more.
        let has_link =
            self.state != PaymentState::Processing && attempt.is_some_and(|attempt| attempt.open_link().is_some());
        let can_change = matches!(self.state, PaymentState::Pending | PaymentState::Failed) || has_link;
        let allowed = match errand {
            Errand::Cancel | Errand::RecordManual(_) => !self.state.is_final(),
            Errand::ChangeAmount { .. } => can_change,
            Errand::Retry { .. } => {
                has_link
                    || self.state == PaymentState::Failed
                    || (self.state == PaymentState::Pending && self.pending_reason.is_some())
            }
            Errand::EndAction => self.state == PaymentState::RequiresAction && !has_link,
        };
        if !allowed {
            return Some(Objection::State);
        }
        match &self.errand {
            None => None,
            Some(known) if known == errand => None,
            // To give it up is always allowed, unless somebody has paid elsewhere already.
            Some(Errand::RecordManual(_)) => Some(Objection::Busy),
            Some(_) if *errand == Errand::Cancel => None,
            Some(_) => Some(Objection::Busy),
        }
    }

    /// Whether nothing at Stripe can take money for it any more. Its own intent counts also where nothing is on its way: a
    /// person could confirm it at Stripe. A link that is still being made has not left us.
    pub fn is_closed(&self, attempt: Option<&Attempt>) -> bool {
        let holds = attempt
            .filter(|attempt| attempt.is_open())
            .is_some_and(|attempt| attempt.link().is_none_or(|link| link.provider_session_id.is_some()));
        !holds && self.provider_payment_intent_id.is_none()
    }

    /// Carries the errand out: nothing at Stripe can take money any more.
    pub(super) fn carry_out(&mut self, errand: Errand) {
        match errand {
            Errand::Cancel => self.enter(PaymentState::Canceled),
            Errand::ChangeAmount { minor_units } => {
                self.amount.minor_units = minor_units;
                if minor_units == 0 || self.state == PaymentState::Pending {
                    self.enter(PaymentState::Pending);
                } else if self.is_moving() {
                    let text =
                        "the payment link was ended because the amount has changed; retry, or ask for a new link";
                    self.fail(Failure::ours("payment_url_closed", text));
                }
            }
            Errand::Retry { method } => {
                self.requested_method_id = method;
                self.enter(PaymentState::Pending);
            }
            Errand::RecordManual(manual) => {
                self.manual = Some(manual);
                self.enter(PaymentState::Succeeded);
            }
            Errand::EndAction => {
                let text =
                    "the customer did not finish in time what their bank asked for; retry, or send a payment link";
                self.fail(Failure::ours("action_expired", text));
            }
        }
    }

    /// Ends the errand without Stripe, which can't be asked any more (P8). What moves may still be paid there, so only a
    /// payment made elsewhere, which is a fact, is noted; whoever wanted it canceled is told that it goes on. Of what does
    /// not move an unconfirmed intent may be left, which nobody here confirms. Either is visible: the outcome is unknown.
    pub(super) fn end_errand_alone(&mut self, attempt: Option<&mut Attempt>, here: Circumstances) -> bool {
        // A payment that is to ask its customer, and has not, was refused: nothing of it is on its way.
        let is_asking = self.on_session && !attempt.as_ref().is_some_and(|attempt| attempt.is_open());
        let is_on_its_way = self.is_moving() && !is_asking;
        if is_on_its_way && !self.errand.as_ref().is_some_and(Errand::outlasts) {
            return self.give_errand_up();
        }
        let Some(errand) = self.errand.take() else { return false };
        if !is_on_its_way {
            if let Some(attempt) = attempt {
                attempt.settle(AttemptState::Canceled, None, here.now);
            }
            self.intent_number += 1;
            self.provider_payment_intent_id = None;
        }
        self.carry_out(errand);
        self.unknown_since = Some(here.now);
        false
    }

    /// What is on its way can't be closed. Whether somebody is to be told that it can't be canceled.
    pub(super) fn give_errand_up(&mut self) -> bool {
        if self.errand.as_ref().is_some_and(Errand::outlasts) {
            return false;
        }
        self.cancel_request_time = None;
        self.errand.take() == Some(Errand::Cancel)
    }
}
