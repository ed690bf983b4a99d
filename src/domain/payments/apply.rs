//! How news change a payment.

use time::OffsetDateTime;

use super::{Attempt, AttemptState, Errand, Failure, Link, Payment, PaymentState, PendingReason, Way};
use crate::domain::PaymentMethodId;
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};

/// News for a payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News<'a> {
    /// A rule of ours: nothing can be sent yet.
    Waits(PendingReason),
    /// A rule of ours, or Stripe's answer to the creation of the intent: this payment can't be collected as it is.
    /// Only before a confirm was sent.
    Refused(Failure),
    /// A confirm is about to leave us, as the attempt with this number.
    Sent(i32),
    /// A call's outcome is unknown.
    Unknown,
    /// Nothing has to be collected.
    NothingDue,
    /// The caller wants another try.
    Retried(Option<PaymentMethodId>),
    /// It can't be collected any more: canceled once nothing at Stripe can take money for it.
    Withdrawn,
    /// What the payment's own intent says now.
    Intent(&'a IntentSnapshot),
    /// What an intent says that was paid although its link had failed: a person has had it paid at Stripe, or the bank has
    /// answered once more. It settles what is not settled, and holds no slot; else the money came in beside (P12).
    PaidLate(&'a IntentSnapshot),
    /// Stripe refused the confirm outright, with its own word for why.
    ConfirmRefused(Failure),
    /// Somebody, or the clock, wants something that may need the open way closed. [`Payment::objection`] had none.
    Asked(Errand),
    /// What is on its way can't be closed at Stripe.
    CannotClose,
    /// An errand waits, and the integration is disconnected: Stripe is never asked again.
    OutOfReach,
    /// The link exists, and is about to leave us.
    LinkMade(&'a SessionSnapshot),
    /// Stripe did not make the link, and never will.
    LinkRefused(Failure),
    /// What the link's page, and the intent that Stripe made for it, say now.
    Link(&'a SessionSnapshot, Option<&'a IntentSnapshot>),
}

/// What decides beside the news.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// The time.
    pub now: OffsetDateTime,
    /// Whether the integration asks customers to prove who they are where their bank wants it.
    pub supports_3ds: bool,
}

/// What happened to a payment's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Before.
    pub from: PaymentState,
    /// After.
    pub to: PaymentState,
    /// Whether a wait began that the caller is to be told of, although the state is the same.
    pub waits_anew: bool,
    /// Whether it was to be canceled, and goes on: the caller is to be told.
    pub goes_on: bool,
    /// Whether it was paid at Stripe although somebody has recorded that it was paid elsewhere (P12).
    pub paid_twice: bool,
}

impl Change {
    /// Whether the billing system is to be told of a state.
    pub fn is_news(self) -> bool {
        self.from != self.to || self.waits_anew
    }

    /// Whether the payment was paid just now.
    pub fn has_settled(self) -> bool {
        self.from != self.to && self.to == PaymentState::Succeeded
    }
}

impl Payment {
    /// Takes in `news`: the one place where a payment's state changes. `attempt` is the newest attempt, if there is one;
    /// its outcome is settled along with the payment's.
    pub fn apply(&mut self, mut attempt: Option<&mut Attempt>, news: News<'_>, here: Circumstances) -> Change {
        let (from, reason_before) = (self.state, self.pending_reason);
        let mut goes_on = false;
        match news {
            _ if self.state.is_final() => {}
            News::Intent(intent) => self.apply_intent(attempt.as_deref_mut(), intent, here),
            // A payment that Stripe has settled meanwhile is known, whatever became of the call's answer.
            News::Unknown if self.is_moving() || self.state == PaymentState::Pending => {
                self.unknown_since.get_or_insert(here.now);
            }
            News::Waits(reason) if self.state == PaymentState::Pending => self.pending_reason = Some(reason),
            News::Refused(failure) if self.state == PaymentState::Pending => self.fail(failure),
            News::ConfirmRefused(failure) if self.is_moving() => {
                self.refused(attempt.as_deref_mut(), failure, None, here);
            }
            News::Sent(number) if matches!(self.state, PaymentState::Pending | PaymentState::Processing) => {
                self.attempt_number = number;
                self.enter(PaymentState::Processing);
            }
            News::NothingDue if self.state == PaymentState::Pending => {
                let unknown_since = self.unknown_since;
                self.enter(PaymentState::Succeeded);
                // What was left at Stripe unasked, when its integration went, is left there still.
                self.unknown_since = unknown_since;
            }
            News::Retried(method) if matches!(self.state, PaymentState::Failed | PaymentState::Pending) => {
                self.requested_method_id = method;
                self.enter(PaymentState::Pending);
            }
            News::Withdrawn => {
                self.errand.get_or_insert(Errand::Cancel);
            }
            News::Asked(errand) => {
                if errand == Errand::Cancel {
                    self.cancel_request_time.get_or_insert(here.now);
                }
                self.errand = Some(errand);
            }
            News::CannotClose => goes_on = self.give_errand_up(),
            News::OutOfReach => goes_on = self.end_errand_alone(attempt.as_deref_mut(), here),
            News::LinkMade(session) => self.link_made(attempt.as_deref_mut(), session),
            News::LinkRefused(failure) => {
                // One that was made meanwhile has left us, whatever a slower try was told.
                let is_out = |link: &Link| link.provider_session_id.is_some();
                if let Some(attempt) =
                    attempt.as_deref_mut().filter(|attempt| attempt.open_link().is_some_and(|link| !is_out(link)))
                {
                    attempt.settle(AttemptState::Failed(failure), None, here.now);
                }
            }
            News::Link(session, intent) => self.apply_link(attempt.as_deref_mut(), session, intent, here),
            News::PaidLate(intent) if !self.is_moving() && intent.received() == self.amount => {
                if let Some(attempt) = attempt.as_deref_mut() {
                    // A link that has not left us is not needed any more.
                    attempt.settle(AttemptState::Canceled, None, here.now);
                }
                // By this one it was paid: a repeat of the news says nothing more, and money on any other came in beside.
                self.provider_payment_intent_id = Some(intent.id.clone());
                self.paid(intent);
            }
            News::Unknown
            | News::Waits(_)
            | News::Refused(_)
            | News::ConfirmRefused(_)
            | News::Sent(_)
            | News::NothingDue
            | News::Retried(_)
            | News::PaidLate(_) => {}
        }
        let paid_twice = self.run_errand(attempt, from, here);
        let waits_anew = from == self.state
            && self.pending_reason != reason_before
            && self.pending_reason == Some(PendingReason::AmountTooSmall);
        Change { from, to: self.state, waits_anew, goes_on, paid_twice }
    }

    /// Whether something at Stripe may take money for it.
    pub fn is_moving(&self) -> bool {
        matches!(self.state, PaymentState::Processing | PaymentState::RequiresAction)
    }

    /// Whether it failed for want of a method: tried again on its own when one arrives.
    pub fn lacked_method(&self) -> bool {
        self.state == PaymentState::Failed
            && self.failure.as_ref().is_some_and(|failure| failure.code == Failure::NO_PAYMENT_METHOD)
    }

    /// Whether its job has to look at it after a change: an errand waits for the way to be closed, the customer is to be
    /// asked, or it can be collected now.
    pub fn needs_work(&self, before: &Self, change: Change) -> bool {
        let has_moved = change.from != change.to;
        (self.errand.is_some() && (self.errand != before.errand || has_moved))
            || (self.on_session && !before.on_session)
            || (self.state == PaymentState::Pending && (has_moved || self.amount != before.amount))
    }

    /// Carries the errand out as soon as nothing at Stripe can take money any more (P1). Where Stripe has taken it after
    /// all, the errand is over; whether that means that it was paid twice.
    fn run_errand(&mut self, attempt: Option<&mut Attempt>, from: PaymentState, here: Circumstances) -> bool {
        if self.state.is_final() {
            let over = self.errand.take();
            let Some(Errand::RecordManual(manual)) = over.filter(|_| from != self.state) else { return false };
            self.manual = Some(manual);
            return self.state == PaymentState::Succeeded;
        }
        if self.errand.is_some()
            && self.is_closed(attempt.as_deref())
            && let Some(errand) = self.errand.take()
        {
            if let Some(attempt) = attempt {
                // A link that had not left us: it never will.
                attempt.settle(AttemptState::Canceled, None, here.now);
            }
            // What is in the making at Stripe for this round, unconfirmed, is not waited for.
            self.intent_number += 1;
            self.carry_out(errand);
        }
        false
    }

    fn apply_intent(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, here: Circumstances) {
        if self.provider_payment_intent_id.as_deref() != Some(intent.id.as_str()) {
            return;
        }
        let charge = intent.latest_charge.clone();
        // A link may hold the slot while the intent is being closed for it: what the intent says is not about the link.
        let waits_for_link = attempt.as_ref().is_some_and(|attempt| attempt.open_link().is_some());
        // Where no try of ours is open, a person has it on its way at Stripe: our customer is not to be asked beside that.
        let is_ours = attempt.as_ref().is_some_and(|attempt| attempt.is_open() && attempt.confirms(&intent.id));
        match intent.status {
            IntentStatus::Succeeded => {
                if let Some(attempt) = attempt {
                    if attempt.confirms(&intent.id) {
                        attempt.settle(AttemptState::Succeeded, charge, here.now);
                    } else {
                        attempt.settle(AttemptState::Canceled, None, here.now);
                    }
                }
                self.paid(intent);
            }
            IntentStatus::Canceled => {
                if let Some(attempt) = attempt.filter(|attempt| attempt.confirms(&intent.id)) {
                    attempt.settle(AttemptState::Canceled, charge, here.now);
                }
                if waits_for_link || self.errand.as_ref().is_some_and(|errand| *errand != Errand::Cancel) {
                    // Only the way is closed. The next intent is another one, under another key.
                    self.provider_payment_intent_id = None;
                    self.intent_number += 1;
                } else {
                    self.enter(PaymentState::Canceled);
                }
            }
            IntentStatus::Processing | IntentStatus::RequiresCapture => {
                goes_on(attempt, intent, here);
                self.enter(PaymentState::Processing);
                self.on_session &= is_ours;
            }
            IntentStatus::RequiresAction => {
                goes_on(attempt, intent, here);
                let since = self.action_time.filter(|_| self.state == PaymentState::RequiresAction);
                self.enter(PaymentState::RequiresAction);
                self.on_session &= is_ours;
                self.action_time = since.or(Some(here.now));
                self.next_action_url.clone_from(&intent.next_action_url);
            }
            IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation => {
                self.apply_refusal(attempt, intent, here);
            }
        }
    }

    /// The intent waits for a method. That is a refusal only if the open attempt left its trace on it (P2); or, where no
    /// attempt of ours is open, the end of a try that a person has made at Stripe.
    fn apply_refusal(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, here: Circumstances) {
        if !self.is_moving() {
            return;
        }
        match attempt.filter(|attempt| attempt.confirms(&intent.id) && attempt.is_open()) {
            Some(attempt) if attempt.has_moved(intent) => {
                self.refused(Some(attempt), refusal_of(intent), intent.latest_charge.clone(), here);
            }
            None if !self.on_session && intent.last_payment_error.is_some() => self.fail(refusal_of(intent)),
            Some(_) | None => {}
        }
    }

    /// Stripe has refused the try. A bank that only wants to see the customer is asked again on session, where the
    /// integration supports it: the same intent, and nothing has failed yet.
    fn refused(
        &mut self,
        attempt: Option<&mut Attempt>,
        failure: Failure,
        charge: Option<String>,
        here: Circumstances,
    ) {
        if let Some(attempt) = attempt {
            let charge = charge.or_else(|| failure.provider_charge_id.clone());
            attempt.settle(AttemptState::Failed(failure.clone()), charge, here.now);
        }
        if failure.wants_customer() && here.supports_3ds && !self.on_session && self.errand.is_none() {
            self.unknown_since = None;
            self.on_session = true;
            return;
        }
        self.fail(failure);
    }

    fn link_made(&mut self, attempt: Option<&mut Attempt>, session: &SessionSnapshot) {
        let is_new =
            |attempt: &&mut Attempt| attempt.open_link().is_some_and(|link| link.provider_session_id.is_none());
        let Some(attempt) = attempt.filter(is_new) else { return };
        attempt.way = Way::Link(Link {
            provider_session_id: Some(session.id.clone()),
            url: session.url.clone(),
            expire_time: Some(session.expire_time),
        });
        self.enter(PaymentState::RequiresAction);
        self.next_action_url.clone_from(&session.url);
    }

    /// What became of a link. While its page is open a declined card is the payer's own business: they may try another.
    fn apply_link(
        &mut self,
        attempt: Option<&mut Attempt>,
        session: &SessionSnapshot,
        intent: Option<&IntentSnapshot>,
        here: Circumstances,
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
                attempt.settle(AttemptState::Succeeded, charge, here.now);
                self.paid(intent);
            }
            (SessionStatus::Complete, Some((IntentStatus::Processing | IntentStatus::RequiresCapture, _))) => {
                attempt.note_charge(charge);
                self.enter(PaymentState::Processing);
            }
            (SessionStatus::Complete, Some((IntentStatus::RequiresPaymentMethod, intent))) => {
                let failure = refusal_of(intent);
                attempt.settle(AttemptState::Failed(failure.clone()), charge, here.now);
                self.fail(failure);
            }
            (SessionStatus::Expired, _) | (SessionStatus::Complete, Some((IntentStatus::Canceled, _))) => {
                attempt.settle(AttemptState::Canceled, None, here.now);
                if self.errand.is_none() {
                    let text = "the payment link ended unused; retry, or ask for a new link";
                    self.fail(Failure::ours("payment_url_expired", text));
                }
            }
            (SessionStatus::Open | SessionStatus::Complete, _) => {}
        }
    }

    fn paid(&mut self, intent: &IntentSnapshot) {
        // Beside what came in otherwise before (P12).
        self.amount_received += intent.amount_received;
        self.provider_charge_id.clone_from(&intent.latest_charge);
        self.enter(PaymentState::Succeeded);
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.enter(PaymentState::Failed);
        self.failure = Some(failure);
    }

    /// Enters a state and drops what belongs to others.
    pub(super) fn enter(&mut self, state: PaymentState) {
        self.state = state;
        self.pending_reason = None;
        self.failure = None;
        self.next_action_url = None;
        self.action_time = None;
        self.unknown_since = None;
        self.on_session &= state == PaymentState::Processing || state == PaymentState::RequiresAction;
    }
}

/// The intent is on its way. A link that waited for it to be closed can't open.
fn goes_on(attempt: Option<&mut Attempt>, intent: &IntentSnapshot, here: Circumstances) {
    let Some(attempt) = attempt else { return };
    if attempt.confirms(&intent.id) {
        attempt.note_charge(intent.latest_charge.clone());
    } else {
        attempt.settle(AttemptState::Canceled, None, here.now);
    }
}

fn refusal_of(intent: &IntentSnapshot) -> Failure {
    intent.last_payment_error.clone().unwrap_or_else(|| {
        Failure::ours("payment_intent_payment_attempt_failed", "Stripe reports the try as failed, without a reason")
    })
}
