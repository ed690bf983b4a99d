//! An in-memory model of the part of Stripe that takes money: intents, sessions, idempotency keys, charges and
//! webhooks. It is the truth that everything is checked against.

use std::collections::HashMap;

use time::{Duration, OffsetDateTime};

use super::calls::{Authentication, Behavior, Payer, Request, Response, Webhook, Work};
use super::ids::{intent_id, session_id};
use crate::domain::payments::Failure;
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};
use crate::domain::{Currency, Money};

#[derive(Debug)]
pub struct Intent {
    pub status: IntentStatus,
    pub amount: i64,
    pub charge: Option<String>,
    pub error: Option<Failure>,
    pub behavior: Behavior,
    /// Whether an attempt on it was ever refused.
    pub has_failed: bool,
    /// The session it was created for; such an intent cannot be canceled.
    pub session: Option<usize>,
    /// Created by a person in the Stripe Dashboard.
    pub is_from_dashboard: bool,
}

impl Intent {
    fn new(amount: i64) -> Self {
        Self {
            status: IntentStatus::RequiresPaymentMethod,
            amount,
            charge: None,
            error: None,
            behavior: Behavior::Succeeds,
            has_failed: false,
            session: None,
            is_from_dashboard: false,
        }
    }
}

#[derive(Debug)]
pub struct Session {
    pub status: SessionStatus,
    pub amount: i64,
    pub intent: Option<usize>,
    pub expires_at: OffsetDateTime,
}

#[derive(Debug)]
pub struct Stripe {
    pub intents: Vec<Intent>,
    pub sessions: Vec<Session>,
    idempotency_keys: HashMap<String, (Request, OffsetDateTime, Option<Response>)>,
    /// The database may have forgotten what it sent under a key.
    pub may_repeat_keys: bool,
    pub webhooks: Vec<Webhook>,
    /// Webhooks that were never sent but are in the events list.
    pub listed: Vec<Webhook>,
    /// Charges that took money: intent and amount.
    pub ledger: Vec<(usize, i64)>,
    /// Work to complete later, after a 500: key and call.
    pub delayed: Vec<(String, Request)>,
    charges: usize,
    now: OffsetDateTime,
}

impl Stripe {
    pub fn new(now: OffsetDateTime) -> Self {
        Self {
            intents: Vec::new(),
            sessions: Vec::new(),
            idempotency_keys: HashMap::new(),
            may_repeat_keys: false,
            webhooks: Vec::new(),
            listed: Vec::new(),
            ledger: Vec::new(),
            delayed: Vec::new(),
            charges: 0,
            now,
        }
    }

    /// Advances the clock, and expires sessions.
    pub fn advance_to(&mut self, now: OffsetDateTime) {
        self.now = now;
        for session in 0..self.sessions.len() {
            if self.sessions[session].status == SessionStatus::Open && self.sessions[session].expires_at <= now {
                self.expire_session(session);
            }
        }
    }

    /// Executes a call under the rules of idempotency keys: a key is kept for 24 h and replays its response.
    pub fn send(&mut self, key: &str, call: &Request) -> Response {
        if let Some((known, at, response)) = self.idempotency_keys.get(key)
            && self.now - *at < Duration::DAY
        {
            if known != call {
                assert!(self.may_repeat_keys, "P2: the key {key} was sent with another body");
                return Response::Mismatch;
            }
            return match response {
                Some(Response::Unknown { .. }) => Response::Unknown { replayed: true },
                Some(executed @ (Response::Intent(_) | Response::Session(_))) => {
                    Response::Replayed(Box::new(executed.clone()))
                }
                Some(response) => response.clone(),
                // Still in progress.
                None => Response::Unknown { replayed: false },
            };
        }
        let response = self.perform(call, Some(key));
        self.idempotency_keys.insert(key.to_owned(), (call.clone(), self.now, Some(response.clone())));
        response
    }

    /// Responds with a 500 that is stored.
    pub fn fail_with_500(&mut self, key: &str, call: &Request, work: Work) -> Response {
        if self.idempotency_keys.contains_key(key) {
            return self.send(key, call);
        }
        match work {
            Work::Done => _ = self.perform(call, Some(key)),
            Work::Delayed => self.delayed.push((key.to_owned(), call.clone())),
            Work::Dropped => {}
        }
        self.idempotency_keys
            .insert(key.to_owned(), (call.clone(), self.now, Some(Response::Unknown { replayed: true })));
        Response::Unknown { replayed: false }
    }

    /// Completes work that a 500 left undone.
    pub fn run_delayed(&mut self) {
        for (key, call) in std::mem::take(&mut self.delayed) {
            self.perform(&call, Some(&key));
        }
    }

    fn perform(&mut self, call: &Request, key: Option<&str>) -> Response {
        match *call {
            Request::CreateIntent { amount } if amount < 50 => {
                Response::Refused(Failure::ours("amount_too_small", "too small"))
            }
            Request::CreateIntent { amount } => {
                self.intents.push(Intent::new(amount));
                Response::Intent(Box::new(self.intent(self.intents.len() - 1)))
            }
            Request::Confirm { intent, behavior, payer } => self.confirm(intent, behavior, payer, key),
            Request::Cancel { intent } => {
                if !is_open(self.intents[intent].status) || self.intents[intent].session.is_some() {
                    return unexpected();
                }
                self.intents[intent].status = IntentStatus::Canceled;
                self.emit(intent, key);
                Response::Intent(Box::new(self.intent(intent)))
            }
            Request::CreateSession { amount } => {
                let expires_at = self.now + Duration::DAY;
                self.sessions.push(Session { status: SessionStatus::Open, amount, intent: None, expires_at });
                Response::Session(Box::new(self.session(self.sessions.len() - 1)))
            }
            Request::Expire { session } => {
                if self.sessions[session].status != SessionStatus::Open {
                    return unexpected();
                }
                self.expire_session(session);
                Response::Session(Box::new(self.session(session)))
            }
        }
    }

    /// The only place where money is taken.
    pub fn confirm(&mut self, intent: usize, behavior: Behavior, payer: Payer, key: Option<&str>) -> Response {
        if !is_open(self.intents[intent].status) {
            return unexpected();
        }
        self.intents[intent].behavior = behavior;
        match behavior {
            Behavior::RequiresAuthentication if payer == Payer::Present => {
                self.intents[intent].status = IntentStatus::RequiresAction;
            }
            Behavior::RequiresAuthentication => {
                self.decline(intent, "authentication_required");
                self.emit(intent, key);
                return Response::Refused(self.intents[intent].error.clone().expect("just declined"));
            }
            Behavior::Declined => {
                self.decline(intent, "card_declined");
                self.emit(intent, key);
                return Response::Refused(self.intents[intent].error.clone().expect("just declined"));
            }
            Behavior::Succeeds => self.charge_now(intent),
            Behavior::Debit { .. } => {
                self.charge(intent);
                self.intents[intent].error = None;
                self.intents[intent].status = IntentStatus::Processing;
            }
        }
        self.emit(intent, key);
        Response::Intent(Box::new(self.intent(intent)))
    }

    /// Events without a call: the bank reports the outcome of a debit, or a holder authenticates or fails to.
    pub fn settle(&mut self, intent: usize, authentication: Authentication) {
        match (self.intents[intent].status, self.intents[intent].behavior) {
            (IntentStatus::Processing, Behavior::Debit { fails: true }) => self.fail_pending(intent),
            (IntentStatus::Processing, _) => self.succeed(intent),
            (IntentStatus::RequiresAction, _) if authentication == Authentication::Completed => self.charge_now(intent),
            (IntentStatus::RequiresAction, _) => self.fail_pending(intent),
            _ => return,
        }
        self.emit(intent, None);
        if let Some(session) = self.intents[intent].session {
            if self.intents[intent].status == IntentStatus::Succeeded {
                self.sessions[session].status = SessionStatus::Complete;
            }
            self.webhooks.push(Webhook::Session { index: session });
        }
    }

    /// The payer submits an open page.
    pub fn pay(&mut self, session: usize, behavior: Behavior) {
        if self.sessions[session].status != SessionStatus::Open {
            return;
        }
        let intent = self.sessions[session].intent.unwrap_or_else(|| {
            let amount = self.sessions[session].amount;
            self.intents.push(Intent { behavior, session: Some(session), ..Intent::new(amount) });
            self.intents.len() - 1
        });
        self.sessions[session].intent = Some(intent);
        self.confirm(intent, behavior, Payer::Present, None);
        if matches!(self.intents[intent].status, IntentStatus::Succeeded | IntentStatus::Processing) {
            self.sessions[session].status = SessionStatus::Complete;
            self.webhooks.push(Webhook::Session { index: session });
        }
    }

    /// A person takes money for the invoice in the Stripe Dashboard, with another intent.
    pub fn pay_in_dashboard(&mut self, amount: i64) {
        self.intents.push(Intent { is_from_dashboard: true, ..Intent::new(amount) });
        self.confirm(self.intents.len() - 1, Behavior::Succeeds, Payer::Absent, None);
    }

    /// Charges caused by Paybridge: intents and amounts.
    pub fn our_charges(&self) -> impl Iterator<Item = &(usize, i64)> {
        self.ledger.iter().filter(|(intent, _)| !self.intents[*intent].is_from_dashboard)
    }

    fn expire_session(&mut self, session: usize) {
        self.sessions[session].status = SessionStatus::Expired;
        if let Some(intent) = self.sessions[session].intent.filter(|intent| is_open(self.intents[*intent].status)) {
            self.intents[intent].status = IntentStatus::Canceled;
            self.emit(intent, None);
        }
        self.webhooks.push(Webhook::Session { index: session });
    }

    fn charge(&mut self, intent: usize) {
        self.charges += 1;
        self.intents[intent].charge = Some(format!("ch_{}", self.charges));
    }

    fn charge_now(&mut self, intent: usize) {
        self.charge(intent);
        self.succeed(intent);
    }

    fn succeed(&mut self, intent: usize) {
        self.intents[intent].status = IntentStatus::Succeeded;
        self.intents[intent].error = None;
        self.ledger.push((intent, self.intents[intent].amount));
    }

    fn decline(&mut self, intent: usize, code: &str) {
        self.charge(intent);
        self.fail_with(intent, code, self.intents[intent].charge.clone());
    }

    /// A failed debit keeps its charge; a failed authentication has none.
    fn fail_pending(&mut self, intent: usize) {
        let is_debit = self.intents[intent].status == IntentStatus::Processing;
        let charge = self.intents[intent].charge.clone().filter(|_| is_debit);
        self.fail_with(intent, "payment_intent_payment_attempt_failed", charge);
    }

    fn fail_with(&mut self, intent: usize, code: &str, charge: Option<String>) {
        let failure = Failure { provider_charge_id: charge, ..Failure::ours(code, "refused") };
        self.intents[intent].error = Some(failure);
        self.intents[intent].has_failed = true;
        self.intents[intent].status = IntentStatus::RequiresPaymentMethod;
    }

    fn emit(&mut self, intent: usize, key: Option<&str>) {
        let webhook = Webhook::Intent { snapshot: Box::new(self.intent(intent)), key: key.map(str::to_owned) };
        self.webhooks.push(webhook);
    }

    /// A read of an intent.
    pub fn intent(&self, index: usize) -> IntentSnapshot {
        let intent = &self.intents[index];
        let amount = Money { minor_units: intent.amount, currency: Currency::EUR };
        let has_money = intent.status == IntentStatus::Succeeded;
        IntentSnapshot {
            id: intent_id(index),
            status: intent.status,
            amount,
            amount_received: if has_money { intent.amount } else { 0 },
            provider_customer_id: None,
            latest_charge: intent.charge.clone(),
            last_payment_error: intent.error.clone(),
            next_action_url: None,
            payment_id: None,
            organization_id: None,
            installation: None,
            customer_id: None,
            external_customer_id: None,
            is_of_link: intent.session.is_some(),
            invoice_id: None,
            invoice_number: None,
        }
    }

    /// A read of a session.
    pub fn session(&self, index: usize) -> SessionSnapshot {
        let session = &self.sessions[index];
        SessionSnapshot {
            id: session_id(index),
            url: None,
            status: session.status,
            expire_time: session.expires_at,
            provider_setup_intent_id: None,
            provider_payment_intent_id: session.intent.map(intent_id),
            provider_customer_id: None,
        }
    }
}

fn is_open(status: IntentStatus) -> bool {
    matches!(
        status,
        IntentStatus::RequiresPaymentMethod | IntentStatus::RequiresConfirmation | IntentStatus::RequiresAction
    )
}

fn unexpected() -> Response {
    Response::Refused(Failure::ours("payment_intent_unexpected_state", "not in this state"))
}
