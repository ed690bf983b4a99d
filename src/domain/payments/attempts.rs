//! Attempts to collect a payment. Whatever may take money for a payment holds its single slot as an open attempt (P1):
//! a confirmation of its intent, or a link to a page where the payer pays.

use time::OffsetDateTime;

use super::{Failure, Payment};
use crate::domain::signals::IntentSnapshot;
use crate::domain::stripe_requests::{Observed, StripeRequest};
use crate::domain::{Money, PaymentId, PaymentMethodId};

/// The state of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptState {
    /// It may have been sent; Stripe has not reported an outcome.
    Open,
    /// It was paid.
    Succeeded,
    /// It was refused, for this reason.
    Failed(Failure),
    /// Its intent was canceled, or its link expired or was closed unused.
    Canceled,
    /// Its key can no longer be used, and nothing has happened. The next attempt confirms the same intent under a new
    /// key, which can still succeed only once (P2).
    Superseded,
}

/// How an attempt collects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttemptKind {
    /// Confirms the payment's intent with a stored method.
    Confirm {
        /// The method to charge.
        method: PaymentMethodId,
    },
    /// The payer pays on a page hosted by Stripe.
    Link(Link),
}

/// A payment-mode Checkout session. Its URL is handed out only after its id is committed, so nobody can pay there
/// before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Stripe's `cs_…`; `None` while it is being created.
    pub provider_session_id: Option<String>,
    /// The URL of the page.
    pub url: Option<String>,
    /// When it expires, as reported by Stripe.
    pub expire_time: Option<OffsetDateTime>,
}

/// One attempt to collect. Everything except the outcome is immutable and was committed before the first send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// The payment that it collects.
    pub payment_id: PaymentId,
    /// Its number within the payment: 1, 2, 3, … It is the generation of its request, too.
    pub number: i32,
    /// The amount to collect.
    pub amount: Money,
    /// How it collects.
    pub kind: AttemptKind,
    /// The intent that is confirmed. For a link, the intent that Stripe created for the page, once known.
    pub provider_payment_intent_id: Option<String>,
    /// The confirmation, or the creation of the link. Its key is used by this attempt only.
    pub request: StripeRequest,
    /// The intent's `latest_charge` just before the confirmation.
    pub prior_charge: Option<String>,
    /// The intent's `last_payment_error` just before the confirmation.
    pub prior_error: Option<Failure>,
    /// Its current state.
    pub state: AttemptState,
    /// Stripe's `ch_…` of the charge that it led to.
    pub provider_charge_id: Option<String>,
    /// When its outcome became known.
    pub finish_time: Option<OffsetDateTime>,
}

impl Attempt {
    /// A confirmation of the payment's intent with a method. `seen` is what was read of the intent just before, if it
    /// was confirmed before. `None` if the payment has no intent.
    pub fn new_confirmation(
        payment: &Payment,
        method: PaymentMethodId,
        request: StripeRequest,
        seen: Option<&IntentSnapshot>,
    ) -> Option<Self> {
        let intent = payment.provider_payment_intent_id.clone()?;
        let attempt = Self::new(payment, AttemptKind::Confirm { method }, request);
        Some(Self { provider_payment_intent_id: Some(intent), ..attempt.after(seen) })
    }

    /// A payment link. It takes the slot before it is sent.
    pub fn new_link(payment: &Payment, request: StripeRequest) -> Self {
        Self::new(payment, AttemptKind::Link(Link::default()), request)
    }

    /// The same confirmation under another key, for a key that cannot be sent again. It confirms the same intent, which
    /// can succeed only once (P2).
    #[must_use]
    pub fn under_new_key(&self, request: StripeRequest, seen: Option<&IntentSnapshot>) -> Self {
        Self { number: request.generation, request, ..self.clone() }.after(seen)
    }

    fn new(payment: &Payment, kind: AttemptKind, request: StripeRequest) -> Self {
        Self {
            payment_id: payment.id,
            number: request.generation,
            amount: payment.amount,
            kind,
            provider_payment_intent_id: None,
            request,
            prior_charge: None,
            prior_error: None,
            state: AttemptState::Open,
            provider_charge_id: None,
            finish_time: None,
        }
    }

    /// Records what the intent showed just before the attempt.
    fn after(self, seen: Option<&IntentSnapshot>) -> Self {
        Self {
            prior_charge: seen.and_then(|intent| intent.latest_charge.clone()),
            prior_error: seen.and_then(|intent| intent.last_payment_error.clone()),
            ..self
        }
    }

    /// The method to charge; `None` for a link.
    pub fn method(&self) -> Option<PaymentMethodId> {
        match self.kind {
            AttemptKind::Confirm { method } => Some(method),
            AttemptKind::Link(_) => None,
        }
    }

    /// The link, if it is one.
    pub fn link(&self) -> Option<&Link> {
        match &self.kind {
            AttemptKind::Confirm { .. } => None,
            AttemptKind::Link(link) => Some(link),
        }
    }

    /// Whether it holds the slot: it may have been sent, and Stripe has not reported an outcome.
    pub fn is_open(&self) -> bool {
        self.state == AttemptState::Open
    }

    /// The link, if the attempt is one and still holds the slot.
    pub fn open_link(&self) -> Option<&Link> {
        self.link().filter(|_| self.is_open())
    }

    /// Whether this attempt confirms the intent with this id.
    pub fn confirms(&self, intent: &str) -> bool {
        matches!(self.kind, AttemptKind::Confirm { .. }) && self.provider_payment_intent_id.as_deref() == Some(intent)
    }

    /// What the intent shows of this confirmation. An unchanged intent proves nothing: Stripe may still execute it.
    pub fn observed(&self, intent: &IntentSnapshot) -> Observed {
        if !intent.awaits_confirmation() || self.left_trace_on(intent) { Observed::Present } else { Observed::Absent }
    }

    /// Whether the intent shows a trace of this attempt: a charge or an error that was not there before the
    /// confirmation.
    pub fn left_trace_on(&self, intent: &IntentSnapshot) -> bool {
        if intent.latest_charge != self.prior_charge {
            return true;
        }
        match (&intent.last_payment_error, &self.prior_error) {
            (Some(now), Some(before)) => !now.is_same_as(before),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    /// Settles an open attempt; a settled one keeps its outcome.
    pub fn finish(&mut self, outcome: AttemptState, charge: Option<String>, now: OffsetDateTime) {
        if self.is_open() {
            self.state = outcome;
            self.finish_time = Some(now);
            self.note_charge(charge);
        }
    }

    /// Records the charge that this attempt led to, unless it was there before.
    pub(super) fn note_charge(&mut self, charge: Option<String>) {
        if charge.is_some() && charge != self.prior_charge {
            self.provider_charge_id = charge;
        }
    }
}
