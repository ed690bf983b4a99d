//! The states of a payment. A state carries the data that ends with it; what outlives a change of state is a field of
//! [`Payment`].

use time::OffsetDateTime;

use super::{Failure, Manual, Payment};

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

impl Payment {
    /// The name of its state.
    pub fn state(&self) -> PaymentState {
        match self.state {
            State::Pending { .. } => PaymentState::Pending,
            State::Processing { .. } => PaymentState::Processing,
            State::RequiresAction { .. } => PaymentState::RequiresAction,
            State::Succeeded { .. } => PaymentState::Succeeded,
            State::Failed(_) => PaymentState::Failed,
            State::Canceled => PaymentState::Canceled,
        }
    }

    /// Whether something at Stripe may take money for it.
    pub fn is_in_flight(&self) -> bool {
        matches!(self.state, State::Processing { .. } | State::RequiresAction { .. })
    }

    /// Why it waits, while `PENDING`.
    pub fn pending_reason(&self) -> Option<PendingReason> {
        if let State::Pending { reason } = self.state { reason } else { None }
    }

    /// Whether the customer confirms on session, because the bank requires authentication (3-D Secure).
    pub fn is_on_session(&self) -> bool {
        match self.state {
            State::Processing { on_session }
            | State::RequiresAction { action: RequiredAction::Authenticate { on_session, .. }, .. } => on_session,
            _ => false,
        }
    }

    /// Where the customer completes the required action.
    pub fn next_action_url(&self) -> Option<&str> {
        if let State::RequiresAction { url, .. } = &self.state { url.as_deref() } else { None }
    }

    /// Since when the customer has been asked to authenticate.
    pub fn action_time(&self) -> Option<OffsetDateTime> {
        match self.state {
            State::RequiresAction { action: RequiredAction::Authenticate { since, .. }, .. } => Some(since),
            _ => None,
        }
    }

    /// Why it was refused, while `FAILED`.
    pub fn failure(&self) -> Option<&Failure> {
        if let State::Failed(failure) = &self.state { Some(failure) } else { None }
    }

    /// Stripe's `ch_…` of the charge that paid it.
    pub fn provider_charge_id(&self) -> Option<&str> {
        match &self.state {
            State::Succeeded { provider_charge_id, .. } => provider_charge_id.as_deref(),
            _ => None,
        }
    }

    /// The payment recorded as made elsewhere, once it takes effect.
    pub fn manual(&self) -> Option<&Manual> {
        if let State::Succeeded { manual, .. } = &self.state { manual.as_ref() } else { None }
    }
}
