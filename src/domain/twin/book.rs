//! P12, as an outsider reckons it: from what callers requested, what was reported to them, and what Stripe has taken. It
//! knows no rule of the domain's own, and is exact.

use super::stripe::Stripe;
use crate::domain::payments::{Change, Errand, Notice, Payment, PaymentState};

/// What one invoice was to bring, and what was reported of it, since it was last given in. Minor units.
#[derive(Debug)]
pub struct Book {
    /// What is due in all: what a caller wants to be collected, and the parts that had been reported by then.
    due: i64,
    /// What will be due once the change that waits is carried out; or is, where a change was refused because the payer
    /// was faster.
    requested: Option<i64>,
    /// Parts that were reported.
    parts: i64,
    /// Surpluses that were reported.
    surplus: i64,
    /// What remains, as it was last reported.
    remaining: Option<i64>,
    /// Money that was heard of after the invoice had been paid: all of it is too much, and reported as that.
    late: i64,
    /// Money that was reported before the invoice was given in.
    before: i64,
}

impl Book {
    pub fn new(due: i64, before: i64) -> Self {
        Self { due, requested: None, parts: 0, surplus: 0, remaining: None, late: 0, before }
    }

    /// The invoice is given in again. All that was reported until then came by hand, each time as a whole.
    pub fn reopen(&mut self, due: i64) {
        *self = Self::new(due, self.before + self.parts + self.surplus);
    }

    /// A caller requests something that waits.
    pub fn ask(&mut self, payment: &Payment, errand: &Errand) {
        match errand {
            Errand::ChangeAmount { .. } if payment.errand.as_ref() == Some(errand) => {}
            Errand::ChangeAmount { minor_units, .. } => self.requested = Some(minor_units + self.parts),
            // It replaces a change that waits.
            Errand::Cancel => self.requested = None,
            _ => {}
        }
    }

    /// What callers learn from a change.
    pub fn learn(&mut self, before: &Payment, after: &Payment, change: &Change) {
        if before.amount != after.amount {
            self.due = self.requested.take().expect("somebody has requested another amount");
        }
        for notice in &change.notices {
            match notice {
                Notice::Overpaid(receipt) => self.surplus += receipt.amount.minor_units,
                Notice::Underpaid { receipt, remaining } => {
                    self.parts += receipt.amount.minor_units;
                    self.remaining = Some(*remaining);
                    let due = self.requested.unwrap_or(self.due);
                    assert_eq!(*remaining, due - self.parts, "P12: what remains of {due} is wrong: {self:?}");
                }
                Notice::AmountMismatch(receipt) => panic!("P12: {receipt:?} is no amount that was due: {self:?}"),
                Notice::CancellationRefused | Notice::AmountChangeRefused { .. } => {}
            }
        }
        // A change that was refused, and then nobody has paid: the amount is the old one, as the payment shows.
        if change.from != change.to && after.errand.is_none() && after.state != PaymentState::Succeeded {
            let is_open = matches!(after.state, PaymentState::Processing | PaymentState::RequiresAction);
            self.requested = self.requested.filter(|_| is_open);
        }
    }

    /// Money is heard of after the invoice was settled, and reported.
    pub fn hear_late(&mut self, minor_units: i64) {
        self.late += minor_units;
        self.surplus += minor_units;
    }

    /// At rest: what came in, minus what was due, is what was reported.
    pub fn check(&self, payment: &Payment, stripe: &Stripe) {
        let taken = stripe.ledger.iter().map(|(_, amount)| amount).sum::<i64>() - self.before;
        if payment.state != PaymentState::Succeeded {
            assert_eq!(self.parts + self.surplus, taken, "P12: {taken} came in, and nobody knows all of it: {self:?}");
            return;
        }
        // What was paid elsewhere covers whatever remained besides the parts.
        let is_manual = payment.manual.is_some();
        let due = if is_manual { self.parts } else { self.requested.unwrap_or(self.due) };
        let settled = taken - self.late;
        let surplus = (settled - due).max(0) + self.late;
        assert_eq!(self.surplus, surplus, "P12: {taken} came in, {due} was due: {self:?}");
        if settled < due {
            assert_eq!(self.remaining, Some(due - settled), "P12: {settled} of {due} came in: {self:?}");
        }
    }
}
