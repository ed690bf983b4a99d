//! How news change a payment.

use time::OffsetDateTime;

use super::{
    Attempt, AttemptState, Change, Errand, Failure, Link, Notice, Payment, PaymentState, PendingReason, Receipt, Way,
};
use crate::domain::payment_methods::PaymentMethod;
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};
use crate::domain::{Money, PaymentMethodId};

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
    /// A payment method has arrived for a payment that lacked one ([`Payment::is_due_for`]).
    MethodArrived,
    /// It can't be collected any more: canceled once nothing at Stripe can take money for it.
    Withdrawn,
    /// What the payment's own intent says now.
    Intent(&'a IntentSnapshot),
    /// What an intent says that somebody else had paid for the invoice: one that a person made at Stripe, one of an earlier
    /// round, one whose link had failed. In the payment's currency, and not counted before.
    PaidBeside(&'a IntentSnapshot),
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

impl Payment {
    /// Takes in `news`: the one place where a payment's state changes. `attempt` is the newest attempt, if there is one;
    /// its outcome is settled along with the payment's.
    pub fn apply(&mut self, mut attempt: Option<&mut Attempt>, news: News<'_>, here: Circumstances) -> Change {
        let (from, reason_before) = (self.state, self.pending_reason);
        let mut change = Change::begin(from);
        let paying = match &news {
            News::Intent(intent) | News::Link(_, Some(intent)) => Some(*intent),
            _ => None,
        };
        self.take_in(attempt.as_deref_mut(), news, here, &mut change);
        if self.state == PaymentState::Succeeded
            && from != PaymentState::Succeeded
            && let Some(intent) = paying
        {
            change.settled_by = Some(Receipt::of(intent));
        }
        self.run_errand(attempt, here, &mut change);
        change.to = self.state;
        change.waits_anew = from == self.state
            && self.pending_reason != reason_before
            && self.pending_reason == Some(PendingReason::AmountTooSmall);
        change.is_no_failure = from != self.state && self.has_failed_before(from);
        // Beside what was paid elsewhere all of it is too much.
        if let Some(receipt) = change.settled_by.as_ref().filter(|_| self.manual.is_none()) {
            change.notices.extend(self.difference(receipt));
        }
        change
    }

    fn take_in(&mut self, mut attempt: Option<&mut Attempt>, news: News<'_>, here: Circumstances, change: &mut Change) {
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
            News::MethodArrived if self.state == PaymentState::Failed => {
                self.awaits_method = false;
                self.requested_method_id = None;
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
            News::CannotClose => self.give_errand_up(change),
            News::OutOfReach => self.end_errand_alone(attempt.as_deref_mut(), here, change),
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
            News::Link(session, intent) => self.apply_link(attempt, session, intent, here),
            News::PaidBeside(intent) => self.paid_beside(intent, change),
            News::Unknown
            | News::Waits(_)
            | News::Refused(_)
            | News::ConfirmRefused(_)
            | News::Sent(_)
            | News::NothingDue
            | News::Retried(_)
            | News::MethodArrived => {}
        }
    }

    /// Whether it is `FAILED` by a caller's doing, or again for what was reported before its link.
    fn has_failed_before(&self, from: PaymentState) -> bool {
        let failure = self.failure.as_ref().filter(|_| self.state == PaymentState::Failed);
        failure.is_some_and(|failure| {
            failure.code == Failure::PAYMENT_URL_CLOSED
                || (failure.lacks_method() && from == PaymentState::RequiresAction)
        })
    }

    /// Whether something at Stripe may take money for it.
    pub fn is_moving(&self) -> bool {
        matches!(self.state, PaymentState::Processing | PaymentState::RequiresAction)
    }

    /// Whether it failed for lack of a method: retried automatically when one arrives.
    pub fn lacked_method(&self) -> bool {
        self.state == PaymentState::Failed && self.failure.as_ref().is_some_and(Failure::lacks_method)
    }

    /// Whether it is to be retried automatically with this default, once: it had failed for lack of a method. What was
    /// refused since, on a link say, is not repeated, so that then only another method counts, and only one that was
    /// attached later. The times alone do not decide: Stripe's are whole seconds, of Stripe's clock.
    pub fn is_due_for(&self, default: Option<&PaymentMethod>, attempt: Option<&Attempt>) -> bool {
        let Some(default) = default.filter(|_| self.state == PaymentState::Failed && self.errand.is_none()) else {
            return false;
        };
        if attempt.is_some_and(Attempt::is_open) {
            return false;
        }
        let is_tried = attempt.and_then(Attempt::method) == Some(default.id);
        let refused = attempt.and_then(|attempt| attempt.finish_time).map(OffsetDateTime::unix_timestamp);
        let attached = default.attach_time.map(OffsetDateTime::unix_timestamp);
        let is_new = !is_tried && refused.is_none_or(|refused| attached >= Some(refused));
        self.lacked_method() || (self.awaits_method && is_new)
    }

    /// Whether its job has to look at it after a change: an errand waits for the way to be closed, the customer is to be
    /// asked, or it can be collected now.
    pub fn needs_work(&self, before: &Self, change: &Change) -> bool {
        let has_moved = change.from != change.to;
        (self.errand.is_some() && (self.errand != before.errand || has_moved))
            || (self.on_session && !before.on_session)
            || (self.state == PaymentState::Pending && (has_moved || self.amount != before.amount))
            // A method may have arrived while the link was open.
            || (change.is_no_failure && self.awaits_method)
    }

    /// Carries the errand out as soon as nothing at Stripe can take money any more (P1). Where Stripe has taken it after
    /// all, the errand is over: refused, or, if it was recorded as paid elsewhere, paid twice (P12).
    fn run_errand(&mut self, attempt: Option<&mut Attempt>, here: Circumstances, change: &mut Change) {
        if self.state.is_final() {
            let over = self.errand.take().filter(|_| change.from != self.state);
            match over {
                Some(Errand::RecordManual(manual)) => {
                    self.manual = Some(manual);
                    change.notices.extend(change.settled_by.clone().map(Notice::Overpaid));
                }
                Some(Errand::Settle { provider_payment_intent_id, provider_charge_id, minor_units }) => {
                    // Where our own way has brought less than is due, some of it was needed.
                    let settled = change.settled_by.as_ref().map(|receipt| receipt.amount.minor_units);
                    let missing = settled.map_or(0, |came| (self.due() - self.part_received - came).max(0));
                    self.part_received += missing;
                    let amount = Money { minor_units: minor_units - missing, ..self.amount };
                    let receipt = Receipt { provider_payment_intent_id, provider_charge_id, amount };
                    change.notices.push(Notice::Overpaid(receipt));
                }
                Some(errand) if change.settled_by.is_some() => self.refuse(&errand, change),
                _ => {}
            }
            return;
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
            self.carry_out(errand, change);
        }
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
        // A link is a detour: that the customer has no method of its own stands, should nobody pay there.
        let lack = self.failure.take().filter(Failure::lacks_method);
        self.enter(PaymentState::RequiresAction);
        self.failure = lack;
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
                    let text = "the payment link ended unused; retry, or request a new link";
                    self.end_link(Failure::ours("payment_url_expired", text));
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
        self.awaits_method |= failure.lacks_method();
        self.failure = Some(failure);
    }

    /// A link has ended without a payment: what failed before it, if that stands, else `failure`.
    pub(super) fn end_link(&mut self, failure: Failure) {
        let failure = self.failure.take().unwrap_or(failure);
        self.fail(failure);
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
        self.awaits_method &= !state.is_final();
        // What was paid by hand, and waits for our own way to be closed, has paid the amount that was refused.
        let is_paid = state == PaymentState::Succeeded || matches!(self.errand, Some(Errand::Settle { .. }));
        if !self.is_moving() && !is_paid {
            self.refused_amount = None;
        }
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
