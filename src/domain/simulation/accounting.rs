//! An independent check of P12 from a caller's point of view: what callers requested, what was reported to them, and
//! what Stripe received. It uses none of the domain's rules and is exact.

use super::stripe::Stripe;
use crate::domain::payments::{Notice, Payment, PaymentState, PendingOperation, Transition};

/// What is due for one invoice and what was reported of it, since it was last submitted. Minor units.
#[derive(Debug)]
pub struct Accounting {
    /// The total due: the amount that a caller wants collected, plus the parts reported by then.
    due: i64,
    /// The total due once the pending change is executed, or after a change was refused because the payer was faster.
    requested: Option<i64>,
    /// Partial payments that were reported.
    parts: i64,
    /// Surpluses that were reported.
    surplus: i64,
    /// The remaining amount as last reported.
    remaining: Option<i64>,
    /// Money received after the invoice was paid; all of it is reported as a surplus.
    late: i64,
    /// Money reported before the invoice was last submitted.
    carried_over: i64,
}

impl Accounting {
    pub fn new(due: i64, carried_over: i64) -> Self {
        Self { due, requested: None, parts: 0, surplus: 0, remaining: None, late: 0, carried_over }
    }

    /// The invoice is submitted again. Everything reported before came from other intents and was reported in full.
    pub fn reopen(&mut self, due: i64) {
        *self = Self::new(due, self.carried_over + self.parts + self.surplus);
    }

    /// A caller requests an operation.
    pub fn request(&mut self, payment: &Payment, operation: &PendingOperation) {
        match operation {
            PendingOperation::ChangeAmount { .. } if payment.pending_operation.as_ref() == Some(operation) => {}
            PendingOperation::ChangeAmount { minor_units, .. } => self.requested = Some(minor_units + self.parts),
            // Cancellation replaces a pending change.
            PendingOperation::Cancel => self.requested = None,
            _ => {}
        }
    }

    /// Applies what a transition reports to callers.
    pub fn apply(&mut self, before: &Payment, after: &Payment, transition: &Transition) {
        if before.amount != after.amount {
            self.due = self.requested.take().expect("a caller has requested another amount");
        }
        for notice in &transition.notices {
            match notice {
                Notice::Overpaid(receipt) => self.surplus += receipt.amount.minor_units,
                Notice::Underpaid { receipt, remaining } => {
                    self.parts += receipt.amount.minor_units;
                    self.remaining = Some(*remaining);
                    let due = self.requested.unwrap_or(self.due);
                    assert_eq!(*remaining, due - self.parts, "P12: the remainder of {due} is wrong: {self:?}");
                }
                Notice::AmountMismatch(receipt) => panic!("P12: {receipt:?} does not match any amount due: {self:?}"),
                Notice::CancellationRefused | Notice::AmountChangeRefused { .. } => {}
            }
        }
        // If a change was refused and nobody paid in the end, the old amount is due, as the payment shows.
        if transition.from != transition.to
            && after.pending_operation.is_none()
            && after.state() != PaymentState::Succeeded
        {
            let is_open = matches!(after.state(), PaymentState::Processing | PaymentState::RequiresAction);
            self.requested = self.requested.filter(|_| is_open);
        }
    }

    /// Money that arrives after the invoice was settled, and is reported.
    pub fn receive_late(&mut self, minor_units: i64) {
        self.late += minor_units;
        self.surplus += minor_units;
    }

    /// At quiescence, what was received minus what was due equals what was reported.
    pub fn check(&self, payment: &Payment, stripe: &Stripe) {
        let received = stripe.ledger.iter().map(|(_, amount)| amount).sum::<i64>() - self.carried_over;
        if payment.state() != PaymentState::Succeeded {
            assert_eq!(
                self.parts + self.surplus,
                received,
                "P12: {received} received, not all of it reported: {self:?}"
            );
            return;
        }
        // A payment made elsewhere covers whatever remained in addition to the parts.
        let is_manual = payment.manual().is_some();
        let due = if is_manual { self.parts } else { self.requested.unwrap_or(self.due) };
        let settled = received - self.late;
        let surplus = (settled - due).max(0) + self.late;
        assert_eq!(self.surplus, surplus, "P12: {received} received, {due} due: {self:?}");
        if settled < due {
            assert_eq!(self.remaining, Some(due - settled), "P12: {settled} of {due} received: {self:?}");
        }
    }
}
