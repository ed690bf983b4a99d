//! The effects of an input on a payment, as they are reported to the caller.

use std::cmp::Ordering;

use super::{Payment, PaymentState, PendingOperation};
use crate::domain::Money;
use crate::domain::signals::IntentSnapshot;

/// Money received through one intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceivedMoney {
    /// Stripe's `pi_…`.
    pub provider_payment_intent_id: String,
    /// Stripe's `ch_…`.
    pub provider_charge_id: Option<String>,
    /// The part of the receipt that is meant, in the intent's currency.
    pub amount: Money,
}

impl ReceivedMoney {
    /// The whole amount that an intent has received.
    pub fn of(intent: &IntentSnapshot) -> Self {
        Self {
            provider_payment_intent_id: intent.id.clone(),
            provider_charge_id: intent.latest_charge.clone(),
            amount: intent.received(),
        }
    }

    /// The same receipt, with this part of the amount.
    fn with(&self, minor_units: i64) -> Self {
        Self { amount: Money { minor_units, ..self.amount }, ..self.clone() }
    }
}

/// What is reported in addition to the payment's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Cancellation was requested, but the payment continues or is paid.
    CancellationRefused,
    /// A change of the amount was requested, but the payer had already begun to pay.
    AmountChangeRefused {
        /// The requested amount, minor units.
        minor_units: i64,
    },
    /// More was received than was due (P12). The receipt's amount is the surplus.
    Overpaid(ReceivedMoney),
    /// Less was received than is due.
    Underpaid {
        /// The partial payment.
        receipt: ReceivedMoney,
        /// What remains to be paid, minor units.
        remaining: i64,
    },
    /// It was settled with less than was requested, or in another currency.
    AmountMismatch(ReceivedMoney),
}

/// The effect of one input on a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// The state before.
    pub from: PaymentState,
    /// The state after.
    pub to: PaymentState,
    /// Whether a new reason to wait is to be reported although the state is unchanged.
    pub has_new_pending_reason: bool,
    /// Whether it is `FAILED` although no attempt failed: a caller ended its link, or the link expired unused and the
    /// failure reported earlier stands.
    pub skips_failure_event: bool,
    /// What else is reported, in order.
    pub notices: Vec<Notice>,
    /// The receipt that settled it, if an intent did.
    pub settled_by: Option<ReceivedMoney>,
}

impl Transition {
    /// Whether the state is to be reported to the billing system.
    pub fn is_reportable(&self) -> bool {
        self.from != self.to || self.has_new_pending_reason
    }

    /// A transition without effects.
    pub(super) fn begin(state: PaymentState) -> Self {
        Self {
            from: state,
            to: state,
            has_new_pending_reason: false,
            skips_failure_event: false,
            notices: Vec::new(),
            settled_by: None,
        }
    }
}

impl Payment {
    /// The amount due, minor units, including parts paid by charges made in the Stripe Dashboard. It is the amount that
    /// a caller has requested, even if the change is pending or was refused, because the caller relies on it; otherwise
    /// the current amount.
    pub(super) fn amount_due(&self) -> i64 {
        match self.pending_operation {
            Some(PendingOperation::ChangeAmount { minor_units, part_known }) => minor_units + part_known,
            _ => self.refused_amount.unwrap_or(self.amount.minor_units),
        }
    }

    /// The difference between the amount due and what was received, if any (P12): the receipt that settled the payment,
    /// plus parts paid in the Stripe Dashboard.
    pub(super) fn difference(&self, receipt: &ReceivedMoney) -> Option<Notice> {
        let due = self.amount_due();
        let received = receipt.amount.minor_units + self.part_received;
        if receipt.amount.currency != self.amount.currency {
            return Some(Notice::AmountMismatch(receipt.clone()));
        }
        match received.cmp(&due) {
            Ordering::Equal => None,
            Ordering::Greater => Some(Notice::Overpaid(receipt.with(received - due))),
            Ordering::Less if self.refused_amount.is_some() => {
                Some(Notice::Underpaid { receipt: receipt.clone(), remaining: due - received })
            }
            Ordering::Less => Some(Notice::AmountMismatch(receipt.clone())),
        }
    }
}
