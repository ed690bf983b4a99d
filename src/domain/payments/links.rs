//! How a payment link changes a payment.

use time::OffsetDateTime;

use super::apply::{ApplyContext, refusal_of};
use super::{Attempt, AttemptKind, AttemptState, Failure, Link, Payment, PaymentState};
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};

impl Payment {
    pub(super) fn link_created(&mut self, attempt: Option<&mut Attempt>, session: &SessionSnapshot) {
        let is_new =
            |attempt: &&mut Attempt| attempt.open_link().is_some_and(|link| link.provider_session_id.is_none());
        let Some(attempt) = attempt.filter(is_new) else { return };
        attempt.kind = AttemptKind::Link(Link {
            provider_session_id: Some(session.id.clone()),
            url: session.url.clone(),
            expire_time: Some(session.expire_time),
        });
        // A link does not cure the lack of a stored method: that failure stands if nobody pays on the page.
        let missing_method = self.failure.take().filter(Failure::lacks_method);
        self.enter(PaymentState::RequiresAction);
        self.failure = missing_method;
        self.next_action_url.clone_from(&session.url);
    }

    /// Applies the state of a link. While its page is open, a declined card does not fail the payment: the payer may
    /// try another.
    pub(super) fn apply_link(
        &mut self,
        attempt: Option<&mut Attempt>,
        session: &SessionSnapshot,
        intent: Option<&IntentSnapshot>,
        context: ApplyContext,
    ) {
        let Some(attempt) = attempt.filter(|attempt| {
            attempt.open_link().is_some_and(|link| link.provider_session_id.as_deref() == Some(session.id.as_str()))
        }) else {
            return;
        };
        if let Some(intent) = intent {
            attempt.provider_payment_intent_id = Some(intent.id.clone());
        }
        let charge = intent.and_then(|intent| intent.latest_charge.clone());
        match (session.status, intent.map(|intent| (intent.status, intent))) {
            (_, Some((IntentStatus::Succeeded, intent))) => {
                attempt.finish(AttemptState::Succeeded, charge, context.now);
                self.paid(intent);
            }
            (SessionStatus::Complete, Some((IntentStatus::Processing | IntentStatus::RequiresCapture, _))) => {
                attempt.note_charge(charge);
                self.enter(PaymentState::Processing);
            }
            (SessionStatus::Complete, Some((IntentStatus::RequiresPaymentMethod, intent))) => {
                let failure = refusal_of(intent);
                attempt.finish(AttemptState::Failed(failure.clone()), charge, context.now);
                self.fail(failure);
            }
            (SessionStatus::Expired, _) | (SessionStatus::Complete, Some((IntentStatus::Canceled, _))) => {
                attempt.finish(AttemptState::Canceled, None, context.now);
                if self.pending_operation.is_none() {
                    let text = "the payment link expired unused; retry, or request a new link";
                    self.end_link(Failure::ours("payment_url_expired", text));
                }
            }
            (SessionStatus::Open | SessionStatus::Complete, _) => {}
        }
    }

    /// A link has ended without a payment: restores the failure from before the link, if any; otherwise fails with
    /// `failure`.
    pub(super) fn end_link(&mut self, failure: Failure) {
        let failure = self.failure.take().unwrap_or(failure);
        self.fail(failure);
    }
}

impl Attempt {
    /// Ends a link whose session Stripe has not created. If the session was created meanwhile, its URL was returned to a
    /// caller, whatever a slower request was answered.
    pub(super) fn refuse_link(&mut self, failure: Failure, now: OffsetDateTime) {
        if self.open_link().is_some_and(|link| link.provider_session_id.is_none()) {
            self.finish(AttemptState::Failed(failure), None, now);
        }
    }
}
