//! An attempt: one try to collect. Whatever may take money for a payment holds its one slot as an open attempt (P1):
//! a confirm of its intent, or a link to a page on which the payer pays.

use time::OffsetDateTime;

use super::Failure;
use crate::domain::signals::IntentSnapshot;
use crate::domain::{Money, PaymentId, PaymentMethodId};

/// What has become of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptState {
    /// May have been sent; Stripe has not said.
    Open,
    /// Paid.
    Succeeded,
    /// Refused.
    Failed(Failure),
    /// Its intent was canceled, or its link ended unused.
    Canceled,
    /// Its key can't be used any more, and nothing moved: the next attempt confirms the same intent under a new key,
    /// which can still succeed only once (P2).
    Superseded,
}

/// How an attempt may take money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The payment's intent is confirmed with a stored method.
    Confirm {
        /// The method that is charged.
        method: PaymentMethodId,
    },
    /// The payer pays on a page of Stripe's.
    Link(Link),
}

/// A payment-mode Checkout session. Until its id is committed its link has not left us, and nobody can pay there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Stripe's `cs_…`; absent while it is being made.
    pub provider_session_id: Option<String>,
    /// Where the payer pays.
    pub url: Option<String>,
    /// When it ends, as Stripe says.
    pub expire_time: Option<OffsetDateTime>,
}

/// One try to collect. All but the outcome is immutable, and was committed before the first send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The payment.
    pub payment_id: PaymentId,
    /// 1, 2, 3, …
    pub number: i32,
    /// What is to be paid.
    pub amount: Money,
    /// How it may take money.
    pub way: Way,
    /// The intent that is confirmed; for a link, the one that Stripe has made for the page, once that is known.
    pub provider_payment_intent_id: Option<String>,
    /// The attempt's own key.
    pub idempotency_key: String,
    /// The frozen body: resent byte for byte (P2).
    pub body: String,
    /// The intent's `latest_charge` just before the confirm.
    pub prior_charge: Option<String>,
    /// The intent's `last_payment_error` just before the confirm.
    pub prior_error: Option<Failure>,
    /// What has become of it.
    pub state: AttemptState,
    /// Stripe's `ch_…` that it led to.
    pub provider_charge_id: Option<String>,
    /// When Stripe first replayed a stored 500: the key will never say anything else.
    pub dead_key_time: Option<OffsetDateTime>,
    /// When it was frozen.
    pub create_time: OffsetDateTime,
    /// When its outcome was known.
    pub finish_time: Option<OffsetDateTime>,
}

impl Attempt {
    /// The method that a confirm charges.
    pub fn method(&self) -> Option<PaymentMethodId> {
        match self.way {
            Way::Confirm { method } => Some(method),
            Way::Link(_) => None,
        }
    }

    /// The link, if it is one.
    pub fn link(&self) -> Option<&Link> {
        match &self.way {
            Way::Confirm { .. } => None,
            Way::Link(link) => Some(link),
        }
    }

    /// Whether it holds the slot: it may have been sent, and Stripe has not said.
    pub fn is_open(&self) -> bool {
        self.state == AttemptState::Open
    }

    /// The link of an attempt that still holds the slot.
    pub fn open_link(&self) -> Option<&Link> {
        self.link().filter(|_| self.is_open())
    }

    /// Whether this is a confirm of the intent with this id.
    pub fn confirms(&self, intent: &str) -> bool {
        matches!(self.way, Way::Confirm { .. }) && self.provider_payment_intent_id.as_deref() == Some(intent)
    }

    /// Whether the intent shows a trace of this attempt: a charge or an error that was not there before the confirm.
    pub fn has_moved(&self, intent: &IntentSnapshot) -> bool {
        if intent.latest_charge != self.prior_charge {
            return true;
        }
        match (&intent.last_payment_error, &self.prior_error) {
            (Some(now), Some(before)) => !now.is_same_as(before),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Settles an attempt that is open; one that was settled before keeps its outcome.
    pub(super) fn settle(&mut self, outcome: AttemptState, charge: Option<String>, now: OffsetDateTime) {
        if self.is_open() {
            self.state = outcome;
            self.finish_time = Some(now);
            self.note_charge(charge);
        }
    }

    /// Notes the charge that this attempt led to: one that was not there before.
    pub(super) fn note_charge(&mut self, charge: Option<String>) {
        if charge.is_some() && charge != self.prior_charge {
            self.provider_charge_id = charge;
        }
    }
}
