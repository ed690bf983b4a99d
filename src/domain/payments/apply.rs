//! How an input changes a payment.

use time::OffsetDateTime;

use super::{
    Attempt, AttemptState, Failure, Notice, Payment, PaymentState, PendingOperation, PendingReason, ReceivedMoney,
    RequiredAction, State, Transition,
};
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot};
use crate::domain::{Money, PaymentMethodId};

/// An input to a payment's state machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PaymentInput<'a> {
    /// Decided by Paybridge, not by Stripe: nothing can be sent yet.
    Wait(PendingReason),
    /// Decided by Paybridge, or by Stripe's response to the creation of the intent: the payment cannot be collected as it
    /// is. Only before a confirmation was sent.
    Refused(Failure),
    /// The attempt with this number is stored, and its confirmation is about to be sent.
    AttemptPrepared(i32),
    /// The outcome of a Stripe request is unknown.
    Unknown,
    /// There is nothing to collect.
    ZeroAmount,
    /// The caller requests another attempt, optionally with this method.
    RetryRequested(Option<PaymentMethodId>),
    /// A payment method has arrived for a payment that lacked one ([`Payment::is_due_for`]).
    MethodAttached,
    /// It can no longer be collected. It is canceled once nothing at Stripe can take money for it.
    Withdrawn,
    /// A snapshot of the payment's own intent.
    Intent(&'a IntentSnapshot),
    /// A snapshot of another intent that has been paid for the invoice: one created in the Stripe Dashboard, one that
    /// this payment used earlier, or one of a link that had failed. It is in the payment's currency and was not counted
    /// before.
    OtherIntentPaid(&'a IntentSnapshot),
    /// Stripe refused the confirm outright, with this error.
    ConfirmRefused(Failure),
    /// A caller or a timer requests an operation that may need the open payment path closed first.
    /// [`Payment::rejection`] has accepted it.
    Requested(PendingOperation),
    /// The attempt in progress cannot be closed at Stripe.
    CannotClose,
    /// An operation is pending and the integration is disconnected, so Stripe is never called again.
    IntegrationDisconnected,
    /// The Checkout session exists, and its URL is about to be handed out.
    LinkCreated(&'a SessionSnapshot),
    /// Stripe did not create the Checkout session, and never will.
    LinkRefused(Failure),
    /// Snapshots of the link's Checkout session and of the intent that Stripe created for it.
    Link(&'a SessionSnapshot, Option<&'a IntentSnapshot>),
}

/// What a transition depends on besides the input.
#[derive(Clone, Copy, Debug)]
pub struct ApplyContext {
    /// The current time of Paybridge's clock.
    pub now: OffsetDateTime,
    /// Whether the integration asks customers to authenticate (3-D Secure) if their bank requires it.
    pub supports_3ds: bool,
    /// Whether what Stripe knows of the payment may not be known here yet, because the database was restored (P8).
    pub is_catching_up: bool,
}

impl Payment {
    /// Applies `input`. This is the only place where a payment's state changes. `attempt` is the newest attempt, if
    /// any; its outcome is settled together with the payment's.
    pub fn apply(
        &mut self,
        mut attempt: Option<&mut Attempt>,
        input: PaymentInput<'_>,
        context: ApplyContext,
    ) -> Transition {
        let (from, reason_before) = (self.state(), self.pending_reason());
        let mut transition = Transition::begin(from);
        let paying_intent = match &input {
            PaymentInput::Intent(intent) | PaymentInput::Link(_, Some(intent)) => Some(*intent),
            _ => None,
        };
        self.apply_input(attempt.as_deref_mut(), input, context, &mut transition);
        if self.state() == PaymentState::Succeeded
            && from != PaymentState::Succeeded
            && let Some(intent) = paying_intent
        {
            transition.settled_by = Some(ReceivedMoney::of(intent));
        }
        self.run_pending_operation(attempt, context, &mut transition);
        transition.to = self.state();
        transition.has_new_pending_reason = from == transition.to
            && self.pending_reason() != reason_before
            && self.pending_reason() == Some(PendingReason::AmountTooSmall);
        transition.skips_failure_event = from != transition.to && self.has_no_new_failure(from);
        // For a payment recorded as made elsewhere, the whole receipt has been reported as an overpayment already.
        if let Some(receipt) = transition.settled_by.as_ref().filter(|_| self.manual().is_none()) {
            transition.notices.extend(self.difference(receipt));
        }
        transition
    }

    fn apply_input(
        &mut self,
        mut attempt: Option<&mut Attempt>,
        input: PaymentInput<'_>,
        context: ApplyContext,
        transition: &mut Transition,
    ) {
        match input {
            _ if self.state().is_final() => {}
            PaymentInput::Intent(intent) => self.apply_intent(attempt.as_deref_mut(), intent, context),
            // If Stripe has settled the payment meanwhile, its outcome is known, whatever happened to the response.
            PaymentInput::Unknown if self.is_in_flight() || self.state() == PaymentState::Pending => {
                self.unknown_since.get_or_insert(context.now);
            }
            PaymentInput::Wait(reason) if self.state() == PaymentState::Pending => {
                self.state = State::Pending { reason: Some(reason) };
            }
            PaymentInput::Refused(failure) if self.state() == PaymentState::Pending => self.fail(failure),
            PaymentInput::ConfirmRefused(failure) if self.is_in_flight() => {
                self.refused(attempt.as_deref_mut(), failure, None, context);
            }
            PaymentInput::AttemptPrepared(number)
                if matches!(self.state, State::Pending { .. } | State::Processing { .. }) =>
            {
                self.attempt_number = number;
                self.enter(State::Processing { on_session: self.is_on_session() });
            }
            PaymentInput::ZeroAmount if self.state() == PaymentState::Pending => {
                let unknown_since = self.unknown_since;
                self.enter(State::Succeeded { provider_charge_id: None, manual: None });
                // What may be left at Stripe since the integration was disconnected is still unknown.
                self.unknown_since = unknown_since;
            }
            PaymentInput::RetryRequested(method) if matches!(self.state, State::Failed(_) | State::Pending { .. }) => {
                self.requested_method_id = method;
                self.enter(State::Pending { reason: None });
            }
            PaymentInput::MethodAttached if self.state() == PaymentState::Failed => {
                self.awaits_method = false;
                self.requested_method_id = None;
                self.enter(State::Pending { reason: None });
            }
            PaymentInput::Withdrawn => {
                self.pending_operation.get_or_insert(PendingOperation::Cancel);
            }
            PaymentInput::Requested(operation) => {
                if operation == PendingOperation::Cancel {
                    self.cancel_request_time.get_or_insert(context.now);
                }
                self.pending_operation = Some(operation);
            }
            PaymentInput::CannotClose => self.abandon_operation(transition),
            PaymentInput::IntegrationDisconnected => {
                self.end_operation_without_stripe(attempt.as_deref_mut(), context, transition);
            }
            PaymentInput::LinkCreated(session) => self.link_created(attempt.as_deref_mut(), session),
            PaymentInput::LinkRefused(failure) => {
                if let Some(attempt) = attempt.as_deref_mut() {
                    attempt.refuse_link(failure, context.now);
                }
            }
            PaymentInput::Link(session, intent) => self.apply_link(attempt, session, intent, context),
            PaymentInput::OtherIntentPaid(intent) => self.other_intent_paid(intent, transition),
            PaymentInput::Unknown
            | PaymentInput::Wait(_)
            | PaymentInput::Refused(_)
            | PaymentInput::ConfirmRefused(_)
            | PaymentInput::AttemptPrepared(_)
            | PaymentInput::ZeroAmount
            | PaymentInput::RetryRequested(_)
            | PaymentInput::MethodAttached => {}
        }
    }

    /// Whether this `FAILED` needs no event: a caller ended the link, or the failure was reported before the link.
    fn has_no_new_failure(&self, from: PaymentState) -> bool {
        self.failure().is_some_and(|failure| {
            failure.code == Failure::PAYMENT_URL_CLOSED
                || (failure.lacks_method() && from == PaymentState::RequiresAction)
        })
    }

    /// Whether its job has work to do after a transition: an operation is pending, the customer is to be asked to
    /// authenticate, or it can be collected now.
    pub fn needs_work(&self, before: &Self, transition: &Transition) -> bool {
        let has_moved = transition.from != transition.to;
        (self.pending_operation.is_some() && (self.pending_operation != before.pending_operation || has_moved))
            || (self.is_on_session() && !before.is_on_session())
            || (self.state() == PaymentState::Pending && (has_moved || self.amount != before.amount))
            // A method may have arrived while the link was open.
            || (transition.skips_failure_event && self.awaits_method)
    }

    /// Executes the pending operation once nothing at Stripe can take money any more (P1). If Stripe has taken the
    /// money after all, the operation ends: it is refused or, if it recorded a payment made elsewhere, the invoice is
    /// paid twice (P12).
    fn run_pending_operation(
        &mut self,
        attempt: Option<&mut Attempt>,
        context: ApplyContext,
        transition: &mut Transition,
    ) {
        if self.state().is_final() {
            let operation = self.pending_operation.take().filter(|_| transition.from != self.state());
            match operation {
                Some(PendingOperation::RecordManual(recorded)) => {
                    if let State::Succeeded { manual, .. } = &mut self.state {
                        *manual = Some(recorded);
                    }
                    transition.notices.extend(transition.settled_by.clone().map(Notice::Overpaid));
                }
                Some(PendingOperation::Settle { provider_payment_intent_id, provider_charge_id, minor_units }) => {
                    // If our own payment path brought less than is due, part of the other payment was needed.
                    let settled = transition.settled_by.as_ref().map(|receipt| receipt.amount.minor_units);
                    let missing =
                        settled.map_or(0, |received| (self.amount_due() - self.part_received - received).max(0));
                    self.part_received += missing;
                    let amount = Money { minor_units: minor_units - missing, ..self.amount };
                    let receipt = ReceivedMoney { provider_payment_intent_id, provider_charge_id, amount };
                    transition.notices.push(Notice::Overpaid(receipt));
                }
                Some(operation) if transition.settled_by.is_some() => self.reject(&operation, transition),
                _ => {}
            }
            return;
        }
        // While the integration catches up, an intent that can take money may exist that is not known.
        if !context.is_catching_up
            && self.pending_operation.is_some()
            && self.is_closed(attempt.as_deref())
            && let Some(operation) = self.pending_operation.take()
        {
            if let Some(attempt) = attempt {
                // An open link here has no session yet: it is canceled.
                attempt.finish(AttemptState::Canceled, None, context.now);
            }
            // A late response to the old creation request must not be adopted, so the number changes.
            self.intent_number += 1;
            self.execute(operation, transition);
        }
    }

    fn apply_intent(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, context: ApplyContext) {
        if self.provider_payment_intent_id.as_deref() != Some(intent.id.as_str()) {
            return;
        }
        let charge = intent.latest_charge.clone();
        // A link may hold the slot while the intent is being closed for it. Then the snapshot does not concern the
        // link.
        let waits_for_link = attempt.as_ref().is_some_and(|attempt| attempt.open_link().is_some());
        // If no attempt of ours is open, a person confirmed the intent in the Stripe Dashboard. Our customer must not
        // be asked to authenticate as well.
        let is_ours = attempt.as_ref().is_some_and(|attempt| attempt.is_open() && attempt.confirms(&intent.id));
        match intent.status {
            IntentStatus::Succeeded => {
                if let Some(attempt) = attempt {
                    if attempt.confirms(&intent.id) {
                        attempt.finish(AttemptState::Succeeded, charge, context.now);
                    } else {
                        attempt.finish(AttemptState::Canceled, None, context.now);
                    }
                }
                self.paid(intent);
            }
            IntentStatus::Canceled => {
                if let Some(attempt) = attempt.filter(|attempt| attempt.confirms(&intent.id)) {
                    attempt.finish(AttemptState::Canceled, charge, context.now);
                }
                if waits_for_link
                    || self.pending_operation.as_ref().is_some_and(|operation| *operation != PendingOperation::Cancel)
                {
                    // Only this payment path is closed. The next intent is a new one, created under another key.
                    self.provider_payment_intent_id = None;
                    self.intent_number += 1;
                } else {
                    self.enter(State::Canceled);
                }
            }
            IntentStatus::Processing | IntentStatus::RequiresCapture => {
                mark_in_progress(attempt, intent, context);
                self.enter(State::Processing { on_session: self.is_on_session() && is_ours });
            }
            IntentStatus::RequiresAction => {
                mark_in_progress(attempt, intent, context);
                let action = RequiredAction::Authenticate {
                    since: self.action_time().unwrap_or(context.now),
                    on_session: self.is_on_session() && is_ours,
                };
                self.enter(State::RequiresAction { url: intent.next_action_url.clone(), action });
            }
            IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation => {
                self.apply_refusal(attempt, intent, context);
            }
        }
    }

    /// The intent waits for a payment method. That is a refusal only if the open attempt has left a trace on it (P2),
    /// or if no attempt of ours is open: then an attempt made in the Stripe Dashboard has ended.
    fn apply_refusal(&mut self, attempt: Option<&mut Attempt>, intent: &IntentSnapshot, context: ApplyContext) {
        if !self.is_in_flight() {
            return;
        }
        match attempt.filter(|attempt| attempt.confirms(&intent.id) && attempt.is_open()) {
            Some(attempt) if attempt.left_trace_on(intent) => {
                self.refused(Some(attempt), refusal_of(intent), intent.latest_charge.clone(), context);
            }
            None if !self.is_on_session() && intent.last_payment_error.is_some() => self.fail(refusal_of(intent)),
            Some(_) | None => {}
        }
    }

    /// Stripe has refused the attempt. If the bank only requires authentication and the integration supports it, the
    /// same intent is confirmed again on session, and the payment has not failed yet.
    fn refused(
        &mut self,
        attempt: Option<&mut Attempt>,
        failure: Failure,
        charge: Option<String>,
        context: ApplyContext,
    ) {
        if let Some(attempt) = attempt {
            let charge = charge.or_else(|| failure.provider_charge_id.clone());
            attempt.finish(AttemptState::Failed(failure.clone()), charge, context.now);
        }
        let may_ask = failure.requires_authentication()
            && context.supports_3ds
            && self.pending_operation.is_none()
            && !self.is_on_session();
        match self.state {
            State::Processing { .. } | State::RequiresAction { action: RequiredAction::Authenticate { .. }, .. }
                if may_ask =>
            {
                self.enter(State::Processing { on_session: true });
            }
            _ => self.fail(failure),
        }
    }

    pub(super) fn paid(&mut self, intent: &IntentSnapshot) {
        // In addition to what other intents brought before (P12).
        self.amount_received += intent.amount_received;
        self.enter(State::Succeeded { provider_charge_id: intent.latest_charge.clone(), manual: None });
    }

    pub(super) fn fail(&mut self, failure: Failure) {
        self.awaits_method |= failure.lacks_method();
        self.enter(State::Failed(failure));
    }

    /// Enters a state, and resets the fields that do not outlive it.
    pub(super) fn enter(&mut self, state: State) {
        self.state = state;
        self.unknown_since = None;
        self.awaits_method &= !self.state().is_final();
        // A charge made in the Stripe Dashboard that waits for our payment path to close must still be compared with the
        // refused amount.
        let is_paid = matches!(self.state, State::Succeeded { .. })
            || matches!(self.pending_operation, Some(PendingOperation::Settle { .. }));
        if !self.is_in_flight() && !is_paid {
            self.refused_amount = None;
        }
    }
}

/// Records the charge of an intent in progress. A link that waited for this intent to close is canceled.
fn mark_in_progress(attempt: Option<&mut Attempt>, intent: &IntentSnapshot, context: ApplyContext) {
    let Some(attempt) = attempt else { return };
    if attempt.confirms(&intent.id) {
        attempt.note_charge(intent.latest_charge.clone());
    } else {
        attempt.finish(AttemptState::Canceled, None, context.now);
    }
}

pub(super) fn refusal_of(intent: &IntentSnapshot) -> Failure {
    intent.last_payment_error.clone().unwrap_or_else(|| {
        Failure::ours(
            "payment_intent_payment_attempt_failed",
            "Stripe reports that the attempt failed, without a reason",
        )
    })
}
