//! Pending operations: what a caller or a timer requests of a payment that may have to wait until nothing at Stripe can
//! take money for it any more (P1). The operation is stored on the payment until Stripe has confirmed that the open
//! payment path is closed, and is executed in the transaction that records this. A payment has at most one.

use super::{
    ApplyContext, Attempt, AttemptState, Failure, Notice, Payment, PaymentState, PendingOperation, ReceivedMoney,
    State, Transition,
};
use crate::domain::Money;
use crate::domain::signals::IntentSnapshot;

/// Why an operation is not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The payment's state does not allow it.
    State,
    /// Another operation is pending, or an attempt is in progress.
    Busy,
}

impl Payment {
    /// The operation that changes the amount to `minor_units`, in the same currency. If the same change is already
    /// pending, returns that one.
    pub fn amount_change(&self, minor_units: i64) -> PendingOperation {
        match &self.pending_operation {
            Some(known @ PendingOperation::ChangeAmount { minor_units: waiting, .. }) if *waiting == minor_units => {
                known.clone()
            }
            _ => PendingOperation::ChangeAmount { minor_units, part_known: self.part_received },
        }
    }

    /// Why `operation` cannot be accepted now; `None` if it can.
    pub fn rejection(&self, attempt: Option<&Attempt>, operation: &PendingOperation) -> Option<Rejection> {
        // A used link is being processed by the bank, so it is no longer a link that can be closed.
        let has_link =
            self.state() != PaymentState::Processing && attempt.is_some_and(|attempt| attempt.open_link().is_some());
        let can_change = matches!(self.state, State::Pending { .. } | State::Failed(_)) || has_link;
        let allowed = match operation {
            PendingOperation::Cancel | PendingOperation::RecordManual(_) | PendingOperation::Settle { .. } => {
                !self.state().is_final()
            }
            PendingOperation::ChangeAmount { .. } => can_change,
            PendingOperation::Retry { .. } => {
                has_link || matches!(self.state, State::Failed(_) | State::Pending { reason: Some(_) })
            }
            PendingOperation::ExpireAction => self.state() == PaymentState::RequiresAction && !has_link,
        };
        if !allowed {
            return Some(Rejection::State);
        }
        match &self.pending_operation {
            None => None,
            Some(known) if known == operation => None,
            // Cancellation replaces any other operation, unless somebody has already paid.
            Some(known) if known.awaits_outcome() => Some(Rejection::Busy),
            Some(_) if *operation == PendingOperation::Cancel => None,
            Some(_) => Some(Rejection::Busy),
        }
    }

    /// Whether nothing at Stripe can take money for it any more. Its own intent counts even if no attempt is in
    /// progress, because a person can confirm it in the Stripe Dashboard. A link that is still being created has not
    /// been handed out.
    pub fn is_closed(&self, attempt: Option<&Attempt>) -> bool {
        let holds_slot = attempt
            .filter(|attempt| attempt.is_open())
            .is_some_and(|attempt| attempt.link().is_none_or(|link| link.provider_session_id.is_some()));
        !holds_slot && self.provider_payment_intent_id.is_none()
    }

    /// Executes an operation; nothing at Stripe can take money any more.
    pub(super) fn execute(&mut self, operation: PendingOperation, transition: &mut Transition) {
        match operation {
            PendingOperation::Cancel => self.enter(State::Canceled),
            PendingOperation::ChangeAmount { minor_units, part_known } => {
                self.amount.minor_units = minor_units;
                // Parts paid since the request count towards the new amount. A known part may have been refunded
                // meanwhile.
                self.part_received = (self.part_received - part_known).max(0);
                if minor_units == 0 || self.state() == PaymentState::Pending {
                    self.enter(State::Pending { reason: None });
                } else if self.is_in_flight() {
                    let text =
                        "the open payment was ended because the amount has changed; retry, or request a new link";
                    self.end_link(Failure::ours(Failure::PAYMENT_URL_CLOSED, text));
                }
            }
            PendingOperation::Retry { method } => {
                self.requested_method_id = method;
                self.enter(State::Pending { reason: None });
            }
            PendingOperation::RecordManual(manual) => {
                self.enter(State::Succeeded { provider_charge_id: None, manual: Some(manual) });
            }
            PendingOperation::Settle { provider_payment_intent_id, provider_charge_id, minor_units } => {
                self.provider_payment_intent_id = Some(provider_payment_intent_id.clone());
                self.enter(State::Succeeded { provider_charge_id: provider_charge_id.clone(), manual: None });
                let amount = Money { minor_units, ..self.amount };
                transition.settled_by = Some(ReceivedMoney { provider_payment_intent_id, provider_charge_id, amount });
            }
            PendingOperation::ExpireAction => {
                let text = "the customer did not complete the authentication in time; retry, or send a payment link";
                self.fail(Failure::ours("action_expired", text));
            }
        }
    }

    /// Ends the pending operation without Stripe, which can no longer be called (P8). An attempt in progress may still
    /// be paid, so only a payment made elsewhere, which is a fact, is recorded; a requested cancellation is reported as
    /// refused. If nothing is in progress, an unconfirmed intent may be left at Stripe, which nobody here confirms.
    /// Both cases are visible: the outcome is unknown.
    pub(super) fn end_operation_without_stripe(
        &mut self,
        attempt: Option<&mut Attempt>,
        context: ApplyContext,
        transition: &mut Transition,
    ) {
        // A payment that still has to ask its customer to authenticate was refused: nothing of it is in flight.
        let awaits_on_session_confirm =
            self.is_on_session() && !attempt.as_ref().is_some_and(|attempt| attempt.is_open());
        let is_in_flight = self.is_in_flight() && !awaits_on_session_confirm;
        if is_in_flight && !self.pending_operation.as_ref().is_some_and(PendingOperation::awaits_outcome) {
            return self.abandon_operation(transition);
        }
        let Some(operation) = self.pending_operation.take() else { return };
        if !is_in_flight {
            if let Some(attempt) = attempt {
                attempt.finish(AttemptState::Canceled, None, context.now);
            }
            self.intent_number += 1;
            self.provider_payment_intent_id = None;
        }
        self.execute(operation, transition);
        self.unknown_since = Some(context.now);
    }

    /// The attempt in progress cannot be closed. The operation is rejected unless it waits for the outcome.
    pub(super) fn abandon_operation(&mut self, transition: &mut Transition) {
        if self.pending_operation.as_ref().is_some_and(PendingOperation::awaits_outcome) {
            return;
        }
        self.cancel_request_time = None;
        if let Some(operation) = self.pending_operation.take() {
            self.reject(&operation, transition);
        }
    }

    /// Reports that the operation is not executed. A retry or an expired action loses nothing, so it is not reported.
    pub(super) fn reject(&mut self, operation: &PendingOperation, transition: &mut Transition) {
        match *operation {
            PendingOperation::Cancel => transition.notices.push(Notice::CancellationRefused),
            PendingOperation::ChangeAmount { minor_units, part_known } => {
                self.refused_amount = Some(minor_units + part_known);
                transition.notices.push(Notice::AmountChangeRefused { minor_units });
            }
            PendingOperation::Retry { .. }
            | PendingOperation::RecordManual(_)
            | PendingOperation::Settle { .. }
            | PendingOperation::ExpireAction => {}
        }
    }

    /// Another intent has taken money for the invoice, in its currency. If it pays the invoice in full, it settles the
    /// payment once our own payment path is closed (P1). If it pays a part, the part is counted and reported. If the
    /// invoice is paid already, it is an overpayment (P12).
    pub(super) fn other_intent_paid(&mut self, intent: &IntentSnapshot, transition: &mut Transition) {
        let receipt = ReceivedMoney::of(intent);
        let received = receipt.amount.minor_units;
        self.amount_received += received;
        if self.pending_operation.as_ref().is_some_and(PendingOperation::awaits_outcome) {
            transition.notices.push(Notice::Overpaid(receipt));
            return;
        }
        let remaining = self.amount_due() - self.part_received - received;
        if remaining > 0 {
            self.part_received += received;
            transition.notices.push(Notice::Underpaid { receipt, remaining });
            return;
        }
        if let Some(operation) = self.pending_operation.take() {
            self.cancel_request_time = None;
            self.reject(&operation, transition);
        }
        self.pending_operation = Some(PendingOperation::Settle {
            provider_payment_intent_id: receipt.provider_payment_intent_id,
            provider_charge_id: receipt.provider_charge_id,
            minor_units: received,
        });
    }
}
