//! The part of Stripe that takes money, in memory: intents, sessions, stored answers, charges, and the webhooks that tell
//! of them. It is the truth that everything is checked against.

use std::collections::HashMap;

use time::{Duration, OffsetDateTime};

use crate::domain::payments::Failure;
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};
use crate::domain::{Currency, Money};

/// How a method behaves when it is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Card {
    Good,
    Declined,
    /// Its bank wants to see the holder, who proves who they are, or doesn't.
    WantsHolder,
    /// A debit that the bank answers later, one way or the other.
    Debit {
        fails: bool,
    },
}

/// A call that changes something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Post {
    CreateIntent { amount: i64 },
    Confirm { intent: usize, card: Card, off_session: bool },
    Cancel { intent: usize },
    CreateSession { amount: i64 },
    Expire { session: usize },
}

/// What a caller gets.
#[derive(Clone, Debug)]
pub enum Answer {
    Intent(Box<IntentSnapshot>),
    Session(Box<SessionSnapshot>),
    /// Stripe's word that it was refused.
    Refused(Failure),
    /// Nothing was done.
    NotDone,
    /// It may have been done; `replayed`: a stored 500, which this key will always bring.
    Unknown {
        replayed: bool,
    },
}

/// A webhook: the object as it was when something happened to it, and the key of the call that did it.
#[derive(Clone, Debug)]
pub enum Told {
    Intent { snapshot: Box<IntentSnapshot>, key: Option<String> },
    Session { index: usize },
}

#[derive(Debug)]
pub struct Intent {
    pub status: IntentStatus,
    pub amount: i64,
    pub charge: Option<String>,
    pub error: Option<Failure>,
    pub card: Card,
    /// Whether a try on it was ever refused.
    pub has_refused: bool,
    /// Made for a session: it can't be canceled.
    pub session: Option<usize>,
    /// Made by a person.
    pub by_hand: bool,
}

#[derive(Debug)]
pub struct Session {
    pub status: SessionStatus,
    pub amount: i64,
    pub intent: Option<usize>,
    pub ends: OffsetDateTime,
}

#[derive(Debug)]
pub struct Stripe {
    pub intents: Vec<Intent>,
    pub sessions: Vec<Session>,
    stored: HashMap<String, (Post, OffsetDateTime, Option<Answer>)>,
    pub webhooks: Vec<Told>,
    /// Webhooks that were never sent, and that the events list still has.
    pub listed: Vec<Told>,
    /// Charges that took money: intent and amount.
    pub ledger: Vec<(usize, i64)>,
    /// Work that a 500 has left for later: key and call.
    pub late: Vec<(String, Post)>,
    charges: usize,
    now: OffsetDateTime,
}

pub fn intent_id(index: usize) -> String {
    format!("pi_{index}")
}

pub fn session_id(index: usize) -> String {
    format!("cs_{index}")
}

/// The index in an id of ours.
pub fn index(id: &str) -> usize {
    id.rsplit('_').next().and_then(|digits| digits.parse().ok()).expect("an id that this model has made")
}

impl Stripe {
    pub fn new(now: OffsetDateTime) -> Self {
        Self {
            intents: Vec::new(),
            sessions: Vec::new(),
            stored: HashMap::new(),
            webhooks: Vec::new(),
            listed: Vec::new(),
            ledger: Vec::new(),
            late: Vec::new(),
            charges: 0,
            now,
        }
    }

    /// Lets sessions end whose time is over.
    pub fn pass_to(&mut self, now: OffsetDateTime) {
        self.now = now;
        for session in 0..self.sessions.len() {
            if self.sessions[session].status == SessionStatus::Open && self.sessions[session].ends <= now {
                self.end_session(session);
            }
        }
    }

    /// Carries a call out, under the rules of idempotency keys: kept for 24 h, the same key brings the same answer.
    pub fn post(&mut self, key: &str, call: &Post) -> Answer {
        if let Some((known, at, answer)) = self.stored.get(key)
            && self.now - *at < Duration::DAY
        {
            assert_eq!(known, call, "P2: the key {key} came with another body");
            return match answer {
                Some(Answer::Unknown { .. }) => Answer::Unknown { replayed: true },
                Some(answer) => answer.clone(),
                // Still being worked on.
                None => Answer::Unknown { replayed: false },
            };
        }
        let answer = self.perform(call, Some(key));
        self.stored.insert(key.to_owned(), (call.clone(), self.now, Some(answer.clone())));
        answer
    }

    /// A 500 that is stored; the work was done, will be done later, or never.
    pub fn broken(&mut self, key: &str, call: &Post, is_done: bool, later: bool) -> Answer {
        if self.stored.contains_key(key) {
            return self.post(key, call);
        }
        if is_done {
            self.perform(call, Some(key));
        }
        if later {
            self.late.push((key.to_owned(), call.clone()));
        }
        self.stored.insert(key.to_owned(), (call.clone(), self.now, Some(Answer::Unknown { replayed: true })));
        Answer::Unknown { replayed: false }
    }

    /// Does what a 500 has left undone.
    pub fn do_late(&mut self) {
        for (key, call) in std::mem::take(&mut self.late) {
            self.perform(&call, Some(&key));
        }
    }

    fn perform(&mut self, call: &Post, key: Option<&str>) -> Answer {
        match *call {
            Post::CreateIntent { amount } if amount < 50 => {
                Answer::Refused(Failure::ours("amount_too_small", "too small"))
            }
            Post::CreateIntent { amount } => {
                self.intents.push(Intent {
                    status: IntentStatus::RequiresPaymentMethod,
                    amount,
                    charge: None,
                    error: None,
                    card: Card::Good,
                    has_refused: false,
                    session: None,
                    by_hand: false,
                });
                Answer::Intent(Box::new(self.intent(self.intents.len() - 1)))
            }
            Post::Confirm { intent, card, off_session } => self.confirm(intent, card, off_session, key),
            Post::Cancel { intent } => {
                if !is_open(self.intents[intent].status) || self.intents[intent].session.is_some() {
                    return unexpected();
                }
                self.intents[intent].status = IntentStatus::Canceled;
                self.tell(intent, key);
                Answer::Intent(Box::new(self.intent(intent)))
            }
            Post::CreateSession { amount } => {
                let ends = self.now + Duration::DAY;
                self.sessions.push(Session { status: SessionStatus::Open, amount, intent: None, ends });
                Answer::Session(Box::new(self.session(self.sessions.len() - 1)))
            }
            Post::Expire { session } => {
                if self.sessions[session].status != SessionStatus::Open {
                    return unexpected();
                }
                self.end_session(session);
                Answer::Session(Box::new(self.session(session)))
            }
        }
    }

    /// The only place where money is taken.
    pub fn confirm(&mut self, intent: usize, card: Card, off_session: bool, key: Option<&str>) -> Answer {
        if !is_open(self.intents[intent].status) {
            return unexpected();
        }
        self.intents[intent].card = card;
        match card {
            Card::WantsHolder if !off_session => self.intents[intent].status = IntentStatus::RequiresAction,
            Card::WantsHolder => {
                self.refuse(intent, "authentication_required");
                self.tell(intent, key);
                return Answer::Refused(self.intents[intent].error.clone().expect("just refused"));
            }
            Card::Declined => {
                self.refuse(intent, "card_declined");
                self.tell(intent, key);
                return Answer::Refused(self.intents[intent].error.clone().expect("just refused"));
            }
            Card::Good => self.take(intent),
            Card::Debit { .. } => {
                self.charge(intent);
                self.intents[intent].error = None;
                self.intents[intent].status = IntentStatus::Processing;
            }
        }
        self.tell(intent, key);
        Answer::Intent(Box::new(self.intent(intent)))
    }

    /// What happens at Stripe without a call: the bank answers a debit, a holder answers the bank.
    pub fn settle(&mut self, intent: usize, proves: bool) {
        match (self.intents[intent].status, self.intents[intent].card) {
            (IntentStatus::Processing, Card::Debit { fails: true }) => self.refuse_late(intent),
            (IntentStatus::Processing, _) => self.succeed(intent),
            (IntentStatus::RequiresAction, _) if proves => self.take(intent),
            (IntentStatus::RequiresAction, _) => self.refuse_late(intent),
            _ => return,
        }
        self.tell(intent, None);
        if let Some(session) = self.intents[intent].session {
            if self.intents[intent].status == IntentStatus::Succeeded {
                self.sessions[session].status = SessionStatus::Complete;
            }
            self.webhooks.push(Told::Session { index: session });
        }
    }

    /// The payer presses the button of an open page.
    pub fn pay(&mut self, session: usize, card: Card) {
        if self.sessions[session].status != SessionStatus::Open {
            return;
        }
        let intent = self.sessions[session].intent.unwrap_or_else(|| {
            let amount = self.sessions[session].amount;
            self.intents.push(Intent {
                status: IntentStatus::RequiresPaymentMethod,
                amount,
                charge: None,
                error: None,
                card,
                has_refused: false,
                session: Some(session),
                by_hand: false,
            });
            self.intents.len() - 1
        });
        self.sessions[session].intent = Some(intent);
        self.confirm(intent, card, false, None);
        if matches!(self.intents[intent].status, IntentStatus::Succeeded | IntentStatus::Processing) {
            self.sessions[session].status = SessionStatus::Complete;
            self.webhooks.push(Told::Session { index: session });
        }
    }

    /// A person takes money for the invoice with an intent of their own.
    pub fn pay_by_hand(&mut self, amount: i64) {
        self.intents.push(Intent {
            status: IntentStatus::RequiresPaymentMethod,
            amount,
            charge: None,
            error: None,
            card: Card::Good,
            has_refused: false,
            session: None,
            by_hand: true,
        });
        self.confirm(self.intents.len() - 1, Card::Good, true, None);
    }

    /// What was taken by our own doing: intents and amounts.
    pub fn taken_by_us(&self) -> impl Iterator<Item = &(usize, i64)> {
        self.ledger.iter().filter(|(intent, _)| !self.intents[*intent].by_hand)
    }

    fn end_session(&mut self, session: usize) {
        self.sessions[session].status = SessionStatus::Expired;
        if let Some(intent) = self.sessions[session].intent.filter(|intent| is_open(self.intents[*intent].status)) {
            self.intents[intent].status = IntentStatus::Canceled;
            self.tell(intent, None);
        }
        self.webhooks.push(Told::Session { index: session });
    }

    fn charge(&mut self, intent: usize) {
        self.charges += 1;
        self.intents[intent].charge = Some(format!("ch_{}", self.charges));
    }

    fn take(&mut self, intent: usize) {
        self.charge(intent);
        self.succeed(intent);
    }

    fn succeed(&mut self, intent: usize) {
        self.intents[intent].status = IntentStatus::Succeeded;
        self.intents[intent].error = None;
        self.ledger.push((intent, self.intents[intent].amount));
    }

    fn refuse(&mut self, intent: usize, code: &str) {
        self.charge(intent);
        self.refuse_with(intent, code, true);
    }

    /// Without a charge of its own: a holder who did not prove who they are; else the debit that was charged before.
    fn refuse_late(&mut self, intent: usize) {
        let has_charge = self.intents[intent].status == IntentStatus::Processing;
        self.refuse_with(intent, "payment_intent_payment_attempt_failed", has_charge);
    }

    fn refuse_with(&mut self, intent: usize, code: &str, has_charge: bool) {
        let charge = self.intents[intent].charge.clone().filter(|_| has_charge);
        let failure = Failure { provider_charge_id: charge, ..Failure::ours(code, "refused") };
        self.intents[intent].error = Some(failure);
        self.intents[intent].has_refused = true;
        self.intents[intent].status = IntentStatus::RequiresPaymentMethod;
    }

    fn tell(&mut self, intent: usize, key: Option<&str>) {
        let told = Told::Intent { snapshot: Box::new(self.intent(intent)), key: key.map(str::to_owned) };
        self.webhooks.push(told);
    }

    /// What a read of an intent shows.
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
            invoice_id: None,
        }
    }

    /// What a read of a session shows.
    pub fn session(&self, index: usize) -> SessionSnapshot {
        let session = &self.sessions[index];
        SessionSnapshot {
            id: session_id(index),
            url: None,
            status: session.status,
            expire_time: session.ends,
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

fn unexpected() -> Answer {
    Answer::Refused(Failure::ours("payment_intent_unexpected_state", "not in this state"))
}
