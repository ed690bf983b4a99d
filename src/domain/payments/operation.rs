//! Operations that wait until the open payment path is closed. `pending_operations` accepts and executes them.

use time::OffsetDateTime;

use crate::domain::PaymentMethodId;

/// An operation to execute once the open payment path is closed.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum PendingOperation {
    /// Cancel the payment.
    Cancel,
    /// Collect another amount, in the same currency.
    ChangeAmount {
        /// Minor units.
        minor_units: i64,
        /// What charges made in the Stripe Dashboard had paid of the previous amount when the change was requested,
        /// minor units. The new amount is what remains in addition to that.
        part_known: i64,
    },
    /// Charge a stored method although a link is open.
    Retry {
        /// The requested method; `None` means the customer's default.
        method: Option<PaymentMethodId>,
    },
    /// Record a payment made elsewhere.
    RecordManual(Manual),
    /// Settle the payment by a charge made in the Stripe Dashboard. Its amount is already counted as received.
    Settle {
        /// Stripe's `pi_…`.
        provider_payment_intent_id: String,
        /// Stripe's `ch_…`.
        provider_charge_id: Option<String>,
        /// The charged amount, minor units, in the payment's currency.
        minor_units: i64,
    },
    /// Fail the payment because the customer did not complete the required action in time.
    ExpireAction,
}

/// A payment made elsewhere that covers the whole amount.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Manual {
    /// The caller's reference, such as a line of a bank statement.
    pub reference: String,
    /// When it was made, according to the caller.
    #[serde(with = "time::serde::rfc3339")]
    pub time: OffsetDateTime,
}

impl PendingOperation {
    /// Whether it stays pending until the outcome is known if Stripe cannot close the attempt in progress.
    pub(super) fn awaits_outcome(&self) -> bool {
        matches!(self, Self::RecordManual(_) | Self::Settle { .. })
    }
}
