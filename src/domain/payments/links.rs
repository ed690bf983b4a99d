//! How a payment link changes a payment.

use time::OffsetDateTime;

use super::apply::{ApplyContext, refusal_of};
use super::{Attempt, AttemptKind, AttemptState, Failure, Link, Payment, RequiredAction, State};
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
        let failure = self.failure().filter(|failure| failure.lacks_method()).cloned();
        let action = RequiredAction::PayByLink { failure };
        self.enter(State::RequiresAction { url: session.url.clone(), action });
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
                self.enter(State::Processing { on_session: false });
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
        let failure = match &self.state {
            State::RequiresAction { action: RequiredAction::PayByLink { failure: Some(standing) }, .. } => {
                standing.clone()
            }
            _ => failure,
        };
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
