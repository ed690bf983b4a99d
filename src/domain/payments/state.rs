//! The states of a payment. A state carries the data that ends with it; what outlives a change of state is a field of
//! `Payment`.

use time::OffsetDateTime;

use super::failure::Failure;
use super::operation::Manual;

/// The state of a payment, with its data. [`PaymentState`] is its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Accepted; nothing can take money yet.
    Pending {
        /// Why it waits, if its job had to end without sending anything.
        reason: Option<PendingReason>,
    },
    /// Sent; Stripe or the bank has not reported an outcome.
    Processing {
        /// Whether the bank requires authentication (3-D Secure), so that the customer confirms on session. Without an
        /// open attempt, that confirmation is the next step.
        on_session: bool,
    },
    /// The customer has to act.
    RequiresAction {
        /// Where the customer acts, as reported by Stripe.
        url: Option<String>,
        /// What the customer has to do.
        action: RequiredAction,
    },
    /// Paid. Final.
    Succeeded {
        /// Stripe's `ch_…` of the charge that paid it. `None` if nothing was due or it was paid elsewhere.
        provider_charge_id: Option<String>,
        /// The payment recorded as made elsewhere. With a charge as well, the invoice was paid twice (P12).
        manual: Option<Manual>,
    },
    /// Refused, for this reason. May be retried, or become `SUCCEEDED` if Stripe says so.
    Failed(Failure),
    /// Closed at Stripe, or before anything reached it. Final, unless the invoice is submitted again.
    Canceled,
}

/// What a customer has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequiredAction {
    /// Authenticate for the confirmed intent (3-D Secure).
    Authenticate {
        /// Since when the customer has been asked. The time to act is limited.
        since: OffsetDateTime,
        /// As in [`State::Processing`].
        on_session: bool,
    },
    /// Pay on the page of the open link.
    PayByLink {
        /// The failure that stands if the link ends without a payment: the lack of a payment method, which a link does
        /// not cure.
        failure: Option<Failure>,
    },
}

/// The name of a payment's [`State`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
#[expect(missing_docs, reason = "as in State")]
pub enum PaymentState {
    Pending,
    Processing,
    RequiresAction,
    Succeeded,
    Failed,
    Canceled,
}

impl PaymentState {
    /// Lago's `payment_status` of the invoice.
    pub fn payment_status(self) -> &'static str {
        match self {
            Self::Pending | Self::Processing | Self::RequiresAction => "pending",
            Self::Succeeded => "succeeded",
            Self::Failed | Self::Canceled => "failed",
        }
    }

    /// The name in lower case, as in the database and in events.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Whether it cannot change any more (P7).
    pub fn is_final(self) -> bool {
        matches!(self, Self::Succeeded | Self::Canceled)
    }
}

/// Why a payment waits in `PENDING`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum PendingReason {
    /// Its customer is being created or linked at Stripe.
    WaitingForCustomer,
    /// Stripe does not accept so small an amount. The payment holds no slot; RetryPayment retries it.
    AmountTooSmall,
    /// The integration's key or one of its permissions must be repaired first.
    IntegrationPaused,
}

impl PendingReason {
    /// The name in lower case, as in the database and in events.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
