//! Lossy storage: the database is restored to an earlier state, and catches up with Stripe before anything new is sent
//! (P8). The steps of catching up mirror `app::catch_up`.

use super::calls::{Request, Webhook};
use super::ids::{index, intent_id};
use super::world::{Job, JobKind, World};
use crate::domain::customers::Customer;
use crate::domain::fixtures;
use crate::domain::payments::{Attempt, AttemptState, Payment, PaymentInput};
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionStatus};
use crate::domain::stripe_requests::{Purpose, StripeRequest};

/// By how much a restore raises the epochs of all jobs: no lease of the lost history is held any more.
const EPOCHS: u32 = 1_000;

/// A backup of the store.
#[derive(Clone)]
pub struct Backup {
    payment: Payment,
    attempts: Vec<Attempt>,
    creations: Vec<StripeRequest>,
    jobs: Vec<Job>,
    other_paid: Vec<String>,
    customer: Customer,
}

impl World {
    pub fn back_up(&mut self) {
        self.log(|| "backup".to_owned());
        self.backup = Some(Backup {
            payment: self.payment.clone(),
            attempts: self.attempts.clone(),
            creations: self.creations.clone(),
            // Deliveries are not in the backup; they are read again from the events list.
            jobs: self.jobs.iter().filter(|job| !matches!(job.kind, JobKind::Apply(_))).cloned().collect(),
            other_paid: self.other_paid.clone(),
            customer: self.customer.clone(),
        });
    }

    /// Restores the backup, if there is one, and catches up. Returns whether there is one.
    pub fn restore(&mut self) -> bool {
        let Some(backup) = self.backup.clone() else { return false };
        self.log(|| "restored".to_owned());
        self.restores += 1;
        self.stripe.may_repeat_keys = true;
        self.payment = backup.payment;
        self.attempts = backup.attempts;
        self.creations = backup.creations;
        self.jobs = backup.jobs;
        for job in &mut self.jobs {
            job.epoch += EPOCHS * self.restores;
            job.leased_until = None;
        }
        self.other_paid = backup.other_paid;
        self.customer = backup.customer;
        self.catch_up();
        self.check();
        true
    }

    fn catch_up(&mut self) {
        for session in self.unknown_sessions() {
            if self.stripe.sessions[session].status == SessionStatus::Open {
                self.stripe.send(&format!("expire-unknown-{session}"), &Request::Expire { session });
            }
        }
        for at in (0..self.stripe.intents.len()).rev() {
            if !self.stripe.intents[at].is_from_dashboard {
                let intent = self.stripe.intent(at);
                if !self.adopt_listed(&intent) {
                    self.refresh_known(&intent);
                }
            }
        }
        // The events list is read again.
        for at in 0..self.stripe.intents.len() {
            let snapshot = Box::new(self.stripe.intent(at));
            self.stripe.webhooks.push(Webhook::Intent { snapshot, key: None });
        }
        for session in 0..self.stripe.sessions.len() {
            self.stripe.webhooks.push(Webhook::Session { index: session });
        }
        let now = self.now;
        self.enqueue(JobKind::Submit, now);
        if self.payment.is_in_flight() {
            self.enqueue(JobKind::Reconcile, now);
        }
    }

    /// The sessions of no known link.
    pub fn unknown_sessions(&self) -> Vec<usize> {
        let links = self.attempts.iter().filter_map(Attempt::link);
        let known: Vec<usize> = links.filter_map(|link| link.provider_session_id.as_deref()).map(index).collect();
        (0..self.stripe.sessions.len()).filter(|session| !known.contains(session)).collect()
    }

    fn is_known(&self, id: &str) -> bool {
        self.payment.provider_payment_intent_id.as_deref() == Some(id)
            || self.attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id))
            || self.other_paid.iter().any(|known| known == id)
    }

    fn adopt_listed(&mut self, intent: &IntentSnapshot) -> bool {
        let may_adopt = |world: &Self| {
            intent.status != IntentStatus::Canceled
                && !world.is_known(&intent.id)
                && world.payment.may_be_collected_by(intent)
        };
        if !may_adopt(self) {
            return false;
        }
        self.refresh_open_link();
        let own = self.payment.provider_payment_intent_id.as_deref().map(index);
        let own_is_open = own.is_some_and(|own| self.stripe.intents[own].status != IntentStatus::Canceled);
        // A link without a session here is the one that the intent was created for, or is never created.
        let link = self.newest().and_then(Attempt::open_link);
        let has_link = link.is_some_and(|link| link.provider_session_id.is_some());
        if !may_adopt(self) || own_is_open || has_link {
            return false;
        }
        let now = self.now;
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.finish(AttemptState::Canceled, None, now);
        }
        if let Some(session) = self.stripe.intents[index(&intent.id)].session {
            self.payment = self.payment.clone().before_link(intent);
            let number = self.payment.next_attempt_number();
            let request = fixtures::request(Purpose::PaymentLink, number, "", now);
            self.attempts.push(Attempt::new_link(&self.payment, request));
            self.payment.attempt_number = number;
            let session = self.stripe.session(session);
            self.apply(PaymentInput::LinkCreated(&session));
            self.apply(PaymentInput::Link(&session, Some(intent)));
        } else {
            self.payment = self.payment.clone().recovered(intent);
            self.apply(PaymentInput::Intent(intent));
        }
        self.payment.version += 1;
        true
    }

    fn refresh_known(&mut self, intent: &IntentSnapshot) {
        if self.payment.provider_payment_intent_id.as_ref() == Some(&intent.id) {
            self.apply(PaymentInput::Intent(intent));
        } else {
            self.refresh_open_link();
        }
    }

    fn refresh_open_link(&mut self) {
        let link = self.newest().and_then(Attempt::open_link);
        let Some(session) = link.and_then(|link| link.provider_session_id.as_deref()).map(index) else { return };
        let session = self.stripe.session(session);
        let intent = session.provider_payment_intent_id.as_deref().map(|id| self.stripe.intent(index(id)));
        self.apply(PaymentInput::Link(&session, intent.as_ref()));
    }

    /// Whether there are intents of ours, and none takes money: each is canceled, known, or unconfirmed.
    pub fn has_only_harmless_intents(&self) -> bool {
        let mut ours =
            self.stripe.intents.iter().enumerate().filter(|(_, intent)| !intent.is_from_dashboard).peekable();
        ours.peek().is_some()
            && ours.all(|(at, intent)| {
                let awaits = self.stripe.intent(at).awaits_confirmation();
                intent.status == IntentStatus::Canceled || awaits || self.is_known(&intent_id(at))
            })
    }
}
