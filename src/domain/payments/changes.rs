//! What a change of a payment means for the caller.

use std::cmp::Ordering;

use super::{Errand, Payment, PaymentState};
use crate::domain::Money;
use crate::domain::signals::IntentSnapshot;

/// Money that one intent brought in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: String,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// How much of it is meant, in the intent's own currency.
    pub amount: Money,
}

impl Receipt {
    /// All that an intent has received.
    pub fn of(intent: &IntentSnapshot) -> Self {
        Self {
            provider_payment_intent_id: intent.id.clone(),
            provider_charge_id: intent.latest_charge.clone(),
            amount: intent.received(),
        }
    }

    /// The same money, as far as this much of it is meant.
    fn with(&self, minor_units: i64) -> Self {
        Self { amount: Money { minor_units, ..self.amount }, ..self.clone() }
    }
}

/// What the caller learns besides the payment's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It was to be canceled, and goes on or is paid.
    CancellationRefused,
    /// Its amount was to be changed, and the payer was faster.
    AmountChangeRefused {
        /// The amount that was requested, minor units.
        minor_units: i64,
    },
    /// More money came in than was due (P12): this much too much.
    Overpaid(Receipt),
    /// Less money came in than is due.
    Underpaid {
        /// What came in.
        receipt: Receipt,
        /// What remains to be paid, minor units.
        remaining: i64,
    },
    /// It was settled with less than was asked for, or in another currency.
    AmountMismatch(Receipt),
}

/// What happened to a payment's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: PaymentState,
    /// After.
    pub to: PaymentState,
    /// Whether a wait began that the caller is to be told of, although the state is the same.
    pub waits_anew: bool,
    /// Whether it is `FAILED` although no payment has failed: a caller has ended its link, or the link ended unused and
    /// what failed before stands as it was reported.
    pub is_no_failure: bool,
    /// What else the caller learns, in order.
    pub notices: Vec<Notice>,
    /// The money that has settled it, where an intent brought it.
    pub settled_by: Option<Receipt>,
}

impl Change {
    /// Whether the billing system is to be told of a state.
    pub fn is_news(&self) -> bool {
        self.from != self.to || self.waits_anew
    }

    /// Nothing has happened yet.
    pub(super) fn begin(state: PaymentState) -> Self {
        Self { from: state, to: state, waits_anew: false, is_no_failure: false, notices: Vec::new(), settled_by: None }
    }
}

impl Payment {
    /// What is due, minor units, the parts that charges made by hand have brought included: the amount that a caller has
    /// requested, even where the change waits or was refused, because the caller reckons with that; else the present one.
    pub(super) fn due(&self) -> i64 {
        match self.errand {
            Some(Errand::ChangeAmount { minor_units, part_known }) => minor_units + part_known,
            _ => self.refused_amount.unwrap_or(self.amount.minor_units),
        }
    }

    /// What the money that settled it is too much or too little (P12), together with what charges made by hand had brought.
    pub(super) fn difference(&self, receipt: &Receipt) -> Option<Notice> {
        let due = self.due();
        let came = receipt.amount.minor_units + self.part_received;
        if receipt.amount.currency != self.amount.currency {
            return Some(Notice::AmountMismatch(receipt.clone()));
        }
        match came.cmp(&due) {
            Ordering::Equal => None,
            Ordering::Greater => Some(Notice::Overpaid(receipt.with(came - due))),
            Ordering::Less if self.refused_amount.is_some() => {
                Some(Notice::Underpaid { receipt: receipt.clone(), remaining: due - came })
            }
            Ordering::Less => Some(Notice::AmountMismatch(receipt.clone())),
        }
    }
}
