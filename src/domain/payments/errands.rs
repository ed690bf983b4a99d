//! Errands: what a caller, or the clock, wants of a payment that may have to wait until nothing at Stripe can take money
//! for it any more (P1). An errand is kept on the payment until Stripe has answered that the open way is closed; then it
//! is carried out in the same transaction. A payment has one errand at a time.

use time::OffsetDateTime;

use super::{Attempt, AttemptState, Change, Circumstances, Failure, Notice, Payment, PaymentState, Receipt};
use crate::domain::signals::IntentSnapshot;
use crate::domain::{Money, PaymentMethodId};

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
        /// What charges made by hand had brought of the amount before when this was requested, minor units. The new amount
        /// is what remains besides. Rows of earlier releases lack it: 0.
        #[serde(default)]
        part_known: i64,
    },
    /// Charge a stored method, although a link is open.
    Retry {
        /// The method asked for; absent: the customer's default.
        method: Option<PaymentMethodId>,
    },
    /// Take it as paid elsewhere.
    RecordManual(Manual),
    /// Take it as paid by a charge that somebody has made by hand at Stripe. What it brought is counted already.
    Settle {
        /// Stripe's `pi_…`.
        provider_payment_intent_id: String,
        /// Stripe's `ch_…`.
        provider_charge_id: Option<String>,
        /// What it brought, minor units, in the payment's currency.
        minor_units: i64,
    },
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
        matches!(self, Self::RecordManual(_) | Self::Settle { .. })
    }
}

impl Payment {
    /// The errand of a caller who wants another amount, minor units, in the same currency. The same amount again is the
    /// change that waits already.
    pub fn amount_change(&self, minor_units: i64) -> Errand {
        match &self.errand {
            Some(known @ Errand::ChangeAmount { minor_units: waiting, .. }) if *waiting == minor_units => known.clone(),
            _ => Errand::ChangeAmount { minor_units, part_known: self.part_received },
        }
    }

    /// Why `errand` can't be taken on now.
    pub fn objection(&self, attempt: Option<&Attempt>, errand: &Errand) -> Option<Objection> {
        // A link that was used is at the bank, and no link any more.
        let has_link =
            self.state != PaymentState::Processing && attempt.is_some_and(|attempt| attempt.open_link().is_some());
        let can_change = matches!(self.state, PaymentState::Pending | PaymentState::Failed) || has_link;
        let allowed = match errand {
            Errand::Cancel | Errand::RecordManual(_) | Errand::Settle { .. } => !self.state.is_final(),
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
            // To give it up is always allowed, unless somebody has paid already.
            Some(known) if known.outlasts() => Some(Objection::Busy),
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
    pub(super) fn carry_out(&mut self, errand: Errand, change: &mut Change) {
        match errand {
            Errand::Cancel => self.enter(PaymentState::Canceled),
            Errand::ChangeAmount { minor_units, part_known } => {
                self.amount.minor_units = minor_units;
                // What came after the request counts towards the new amount. A known part may have gone back meanwhile.
                self.part_received = (self.part_received - part_known).max(0);
                if minor_units == 0 || self.state == PaymentState::Pending {
                    self.enter(PaymentState::Pending);
                } else if self.is_moving() {
                    let text =
                        "the payment link was ended because the amount has changed; retry, or request a new link";
                    self.end_link(Failure::ours(Failure::PAYMENT_URL_CLOSED, text));
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
            Errand::Settle { provider_payment_intent_id, provider_charge_id, minor_units } => {
                self.provider_payment_intent_id = Some(provider_payment_intent_id.clone());
                self.provider_charge_id.clone_from(&provider_charge_id);
                let amount = Money { minor_units, ..self.amount };
                change.settled_by = Some(Receipt { provider_payment_intent_id, provider_charge_id, amount });
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
    pub(super) fn end_errand_alone(&mut self, attempt: Option<&mut Attempt>, here: Circumstances, change: &mut Change) {
        // A payment that is to ask its customer, and has not, was refused: nothing of it is on its way.
        let is_asking = self.on_session && !attempt.as_ref().is_some_and(|attempt| attempt.is_open());
        let is_on_its_way = self.is_moving() && !is_asking;
        if is_on_its_way && !self.errand.as_ref().is_some_and(Errand::outlasts) {
            return self.give_errand_up(change);
        }
        let Some(errand) = self.errand.take() else { return };
        if !is_on_its_way {
            if let Some(attempt) = attempt {
                attempt.settle(AttemptState::Canceled, None, here.now);
            }
            self.intent_number += 1;
            self.provider_payment_intent_id = None;
        }
        self.carry_out(errand, change);
        self.unknown_since = Some(here.now);
    }

    /// What is on its way can't be closed: unless the errand waits for the outcome, it is refused.
    pub(super) fn give_errand_up(&mut self, change: &mut Change) {
        if self.errand.as_ref().is_some_and(Errand::outlasts) {
            return;
        }
        self.cancel_request_time = None;
        if let Some(errand) = self.errand.take() {
            self.refuse(&errand, change);
        }
    }

    /// The errand is not carried out: whoever requested it learns so. A retry, or the end of an action, has lost nothing.
    pub(super) fn refuse(&mut self, errand: &Errand, change: &mut Change) {
        match *errand {
            Errand::Cancel => change.notices.push(Notice::CancellationRefused),
            Errand::ChangeAmount { minor_units, part_known } => {
                self.refused_amount = Some(minor_units + part_known);
                change.notices.push(Notice::AmountChangeRefused { minor_units });
            }
            Errand::Retry { .. } | Errand::RecordManual(_) | Errand::Settle { .. } | Errand::EndAction => {}
        }
    }

    /// Somebody else's intent has taken money for the invoice, in its currency. What pays it in full settles it as soon as
    /// our own way to collect is closed (P1); less is counted, and reported; what pays it a second time is too much (P12).
    pub(super) fn paid_beside(&mut self, intent: &IntentSnapshot, change: &mut Change) {
        let receipt = Receipt::of(intent);
        let came = receipt.amount.minor_units;
        self.amount_received += came;
        if self.errand.as_ref().is_some_and(Errand::outlasts) {
            change.notices.push(Notice::Overpaid(receipt));
            return;
        }
        let remaining = self.due() - self.part_received - came;
        if remaining > 0 {
            self.part_received += came;
            change.notices.push(Notice::Underpaid { receipt, remaining });
            return;
        }
        if let Some(errand) = self.errand.take() {
            self.cancel_request_time = None;
            self.refuse(&errand, change);
        }
        self.errand = Some(Errand::Settle {
            provider_payment_intent_id: receipt.provider_payment_intent_id,
            provider_charge_id: receipt.provider_charge_id,
            minor_units: came,
        });
    }
}
