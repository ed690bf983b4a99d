//! The world of one schedule: a store whose transactions are atomic, jobs with leases and epochs, Stripe, a clock, and one
//! source of randomness. Whatever is checked all the time is checked here, at the end of every transaction.

use std::collections::HashMap;
use std::fmt::Debug;

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::book::Book;
use super::stripe::{Card, Stripe, Told, index};
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{Mandates, MethodDetails, MethodKind, PaymentMethod};
use crate::domain::payments::{
    Attempt, Change, Circumstances, Failure, News, Notice, Payment, PaymentState, Step, plan,
};
use crate::domain::signals::{IntentStatus, SessionStatus};
use crate::domain::{Currency, Money, PaymentMethodId};

/// Splitmix64: small, fast, and the same on every machine.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).expect("small")).expect("small")
    }

    pub fn percent(&mut self, chance: usize) -> bool {
        self.below(100) < chance
    }

    pub fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Submit,
    Reconcile,
    /// A stored webhook, by its number.
    Apply(usize),
}

#[derive(Clone, Debug)]
pub struct Job {
    pub kind: Kind,
    pub run_at: OffsetDateTime,
    pub asked: u32,
    pub failures: i32,
    pub epoch: u32,
    pub leased_until: Option<OffsetDateTime>,
}

/// A lease, as a worker holds it.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub kind: Kind,
    pub epoch: u32,
    pub asked: u32,
    pub failures: i32,
}

/// How a job ends for now.
pub enum Outcome {
    Done,
    Again(OffsetDateTime),
    Retry,
}

pub struct World {
    pub random: Random,
    pub now: OffsetDateTime,
    pub stripe: Stripe,
    pub payment: Payment,
    pub attempts: Vec<Attempt>,
    pub customer: Customer,
    pub integration: Integration,
    pub methods: Vec<PaymentMethod>,
    pub cards: HashMap<PaymentMethodId, Card>,
    /// Creations of intents that were frozen: number, amount and when.
    pub frozen: Vec<(i32, i64, OffsetDateTime)>,
    pub jobs: Vec<Job>,
    /// Webhooks that were stored.
    pub inbox: Vec<Told>,
    pub overpaid: Vec<String>,
    /// What callers learnt besides states.
    pub notices: Vec<Notice>,
    /// What they reckon with.
    pub book: Book,
    /// The customer's second method is attached at Stripe, and perhaps no webhook has said so yet.
    pub attached: bool,
    /// Whether answers get lost, keys break and webhooks vanish.
    pub faults: bool,
    /// The states told, in order.
    pub told: Vec<PaymentState>,
    /// What happened, for people; only where it is wanted.
    pub trace: Option<Vec<String>>,
}

pub const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

fn method(number: u128, kind: MethodKind) -> PaymentMethod {
    PaymentMethod {
        id: Uuid::from_u128(number).into(),
        organization_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        provider_payment_method_id: format!("pm_{number}"),
        kind: kind.as_str().to_owned(),
        details: MethodDetails::default(),
        mandates: Mandates { granted: ["mandate".to_owned()].into(), ..Mandates::default() },
        attach_time: Some(START),
        choose_time: None,
        unset_time: None,
        is_unset_read: false,
        detach_time: None,
        is_detach_read: false,
        create_time: START,
    }
}

impl World {
    pub fn new(seed: u64, is_traced: bool) -> Self {
        let mut random = Random(seed);
        let cards =
            [Card::Good, Card::Declined, Card::WantsHolder, Card::Debit { fails: false }, Card::Debit { fails: true }];
        let methods = vec![method(1, MethodKind::Card), method(2, MethodKind::SepaDebit)];
        let cards = methods.iter().map(|method| (method.id, random.of(&cards))).collect();
        let customer = Customer {
            id: Uuid::nil().into(),
            organization_id: Uuid::nil().into(),
            external_id: String::new(),
            name: String::new(),
            email: String::new(),
            phone: String::new(),
            address: None,
            integration_id: Some(Uuid::nil().into()),
            link_state: LinkState::Linked,
            link_error: None,
            provider_customer_id: Some("cus_1".to_owned()),
            provider_payment_methods: vec![MethodKind::Card, MethodKind::SepaDebit],
            sync_with_provider: true,
            default_payment_method_id: random.percent(85).then_some(methods[0].id),
            unpushed_fields: Vec::new(),
            version: 1,
            create_time: START,
            update_time: START,
        };
        let integration = Integration {
            id: Uuid::nil().into(),
            organization_id: Uuid::nil().into(),
            code: String::new(),
            name: String::new(),
            state: IntegrationState::Active,
            pause_reason: None,
            livemode: false,
            provider_account_id: None,
            key_hint: String::new(),
            provider_endpoint_id: None,
            polls_events: false,
            success_redirect_url: None,
            supports_3ds: random.percent(50),
            relay_provider_events: false,
            version: 1,
            create_time: START,
            update_time: START,
        };
        let mut world = Self {
            random,
            now: START,
            stripe: Stripe::new(START),
            payment: new_payment(4900),
            attempts: Vec::new(),
            customer,
            integration,
            methods,
            cards,
            frozen: Vec::new(),
            jobs: Vec::new(),
            inbox: Vec::new(),
            overpaid: Vec::new(),
            notices: Vec::new(),
            book: Book::new(4900, 0),
            attached: false,
            faults: true,
            told: Vec::new(),
            trace: is_traced.then(Vec::new),
        };
        world.ask(Kind::Submit, START);
        world
    }

    /// Notes what happens, if somebody wants to know.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} s  {}", (self.now - START).whole_seconds(), what()));
        }
    }

    pub fn newest(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// Takes in what was read, unless the payment has changed since it had this version. Whether it was taken in.
    pub fn news_as_of(&mut self, version: i64, news: News<'_>) -> bool {
        let is_same = self.payment.version == version;
        if is_same {
            self.news(news);
        }
        is_same
    }

    /// A webhook, or a read, says that the second method is attached: it becomes the default.
    pub fn hear_of_method(&mut self) {
        let id = self.methods[1].id;
        if self.customer.default_payment_method_id == Some(id) {
            return;
        }
        self.note(|| "another method becomes the default".to_owned());
        self.customer.default_payment_method_id = Some(id);
        if self.payment.state == PaymentState::Failed && (self.payment.lacked_method() || self.payment.awaits_method) {
            let now = self.now;
            self.ask(Kind::Submit, now);
        }
    }

    /// As `app`'s `Scene::is_due`.
    pub fn is_due(&self) -> bool {
        let default = self.customer.default_payment_method_id;
        let default = self.methods.iter().find(|method| Some(method.id) == default);
        self.payment.is_due_for(default, self.newest())
    }

    pub fn plan(&self) -> Step {
        plan(&self.payment, self.newest(), &self.integration, &self.customer, &self.methods)
    }

    /// Takes in news, as `app`'s `Scene::news` does.
    pub fn news(&mut self, news: News<'_>) -> Change {
        let here = Circumstances { now: self.now, supports_3ds: self.integration.supports_3ds };
        if self.trace.is_some() {
            self.note_debug("news", &news);
        }
        let before = self.payment.clone();
        if let News::Asked(errand) = &news {
            self.book.ask(&before, errand);
        }
        let was_open = self.newest().is_some_and(Attempt::is_open);
        let change = self.payment.apply(self.attempts.last_mut(), news, here);
        if self.payment != before {
            self.payment.version += 1;
        }
        if self.payment.needs_work(&before, &change) {
            self.ask(Kind::Submit, self.now);
        }
        if change.from != change.to && self.payment.is_moving() {
            self.ask(Kind::Reconcile, self.now + Duration::hours(1));
        }
        self.notices.extend(change.notices.iter().cloned());
        self.book.learn(&before, &self.payment, &change);
        if change.from != change.to {
            self.told.push(change.to);
            self.check_change(&before, &change, was_open);
        }
        change
    }

    fn note_debug(&mut self, what: &str, value: &impl Debug) {
        let text = format!("{what}: {value:?}");
        self.note(|| text);
    }

    /// P2 and P7, whenever a state changes.
    fn check_change(&self, before: &Payment, change: &Change, was_open: bool) {
        assert!(!before.state.is_final(), "P7: {:?} became {:?}", before.state, change.to);
        if change.to == PaymentState::Failed && was_open {
            let attempt = self.newest().expect("it was open");
            let told = match (&attempt.provider_payment_intent_id, attempt.link()) {
                (Some(intent), None) => {
                    let intent = &self.stripe.intents[index(intent)];
                    intent.has_refused || intent.status == IntentStatus::Canceled
                }
                (_, Some(link)) => link.provider_session_id.as_ref().is_none_or(|session| {
                    let session = &self.stripe.sessions[index(session)];
                    session.status != SessionStatus::Open
                }),
                (None, None) => false,
            };
            assert!(told, "P2: FAILED without Stripe's word: {:?}", self.payment.failure);
        }
        if self.payment.failure.as_ref().is_some_and(Failure::wants_customer)
            && self.integration.supports_3ds
            && before.errand.is_none()
        {
            let asked = self.newest().is_some_and(|attempt| attempt.body == "on");
            assert!(asked, "FAILED because the bank wants to see the customer, who was not asked");
        }
    }

    pub fn ask(&mut self, kind: Kind, run_at: OffsetDateTime) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.kind == kind) {
            job.asked += 1;
            job.run_at = job.run_at.min(run_at);
        } else {
            self.jobs.push(Job { kind, run_at, asked: 1, failures: 0, epoch: 0, leased_until: None });
        }
    }

    /// Leases a job that is due and that nobody holds.
    pub fn lease(&mut self, at: usize) -> Option<Lease> {
        let now = self.now;
        let job = self.jobs.get_mut(at)?;
        if job.run_at > now || job.leased_until.is_some_and(|until| until > now) {
            return None;
        }
        job.epoch += 1;
        job.leased_until = Some(now + Duration::seconds(10));
        Some(Lease { kind: job.kind, epoch: job.epoch, asked: job.asked, failures: job.failures })
    }

    /// Whether the lease is still this worker's (P8): every transaction of a job shows it.
    pub fn holds(&self, lease: Lease) -> bool {
        self.jobs.iter().any(|job| job.kind == lease.kind && job.epoch == lease.epoch)
    }

    pub fn end(&mut self, lease: Lease, outcome: &Outcome) {
        let now = self.now;
        let Some(at) = self.jobs.iter().position(|job| job.kind == lease.kind && job.epoch == lease.epoch) else {
            return;
        };
        let again = self.jobs[at].asked > lease.asked;
        let job = &mut self.jobs[at];
        match outcome {
            Outcome::Done if !again => {
                self.jobs.remove(at);
                return;
            }
            Outcome::Done => job.run_at = now,
            Outcome::Again(run_at) => {
                job.run_at = if again { job.run_at.min(*run_at) } else { *run_at };
                job.failures = 0;
            }
            Outcome::Retry => {
                job.failures += 1;
                job.run_at =
                    now + Duration::seconds([1, 5, 60, 1800][usize::try_from(job.failures).unwrap_or(9).min(3)]);
            }
        }
        job.leased_until = None;
    }

    /// P1, at any moment: at most one object at Stripe can take money. A link that has left us is open only where the
    /// intents that we have used before are closed; and money was taken once.
    pub fn check(&self) {
        let mut ways = Vec::new();
        for attempt in &self.attempts {
            let link = attempt.link().and_then(|link| link.provider_session_id.as_deref()).map(index);
            if let Some(session) = link.filter(|session| self.stripe.sessions[*session].status == SessionStatus::Open) {
                ways.push(format!("session {session}"));
                let confirmed = self.attempts.iter().filter(|attempt| attempt.link().is_none());
                let used = confirmed.filter_map(|attempt| attempt.provider_payment_intent_id.as_ref());
                for intent in used.chain(&self.payment.provider_payment_intent_id) {
                    let status = self.stripe.intents[index(intent)].status;
                    assert_eq!(
                        status,
                        IntentStatus::Canceled,
                        "P1: {intent} can be confirmed beside session {session}"
                    );
                }
            }
        }
        for (at, intent) in self.stripe.intents.iter().enumerate() {
            let moves = matches!(intent.status, IntentStatus::Processing | IntentStatus::RequiresAction);
            let through_page =
                intent.session.is_some_and(|session| self.stripe.sessions[session].status == SessionStatus::Open);
            // What people take by hand is theirs.
            if !intent.by_hand && ((moves && !through_page) || intent.status == IntentStatus::Succeeded) {
                ways.push(format!("intent {at}"));
            }
        }
        assert!(ways.len() <= 1, "P1: {ways:?} can take money at once, or have");
        assert!(self.stripe.taken_by_us().count() <= 1, "P1: charged {:?}", self.stripe.ledger);
        let is_by_hand = |id: &String| self.stripe.intents[index(id)].by_hand;
        if self.payment.state == PaymentState::Succeeded
            && self.payment.provider_payment_intent_id.as_ref().is_some_and(is_by_hand)
        {
            assert!(ways.is_empty(), "P1: paid by hand, and {ways:?} can take money");
        }
        let open = self.attempts.iter().filter(|attempt| attempt.is_open()).count();
        assert!(open <= 1, "P1: {open} open attempts");
    }

    /// Once everything has come to rest: what is recorded is what Stripe has.
    pub fn check_rest(&self) {
        let taken: i64 = self.stripe.ledger.iter().map(|(_, amount)| amount).sum();
        let state = self.payment.state;
        assert_eq!(self.payment.amount_received, taken, "what was taken is what is recorded ({state:?})");
        if self.stripe.taken_by_us().next().is_some() {
            assert_eq!(state, PaymentState::Succeeded, "Stripe has the money");
        }
        if state == PaymentState::Succeeded {
            let is_explained = taken > 0 || self.payment.manual.is_some() || self.payment.amount.minor_units == 0;
            assert!(is_explained, "paid, by nothing");
        }
        assert!(self.payment.errand.is_none(), "an errand is left: {:?}", self.payment.errand);
        assert!(!self.payment.is_moving(), "{state:?} at rest");
        let paid = self.told.iter().filter(|state| **state == PaymentState::Succeeded).count();
        assert!(paid <= 1, "told as paid {paid} times");
        assert!(self.jobs.is_empty(), "jobs are left: {:?}", self.jobs);
        let has_default = self.customer.default_payment_method_id.is_some();
        assert!(!(self.payment.lacked_method() && has_default), "the retry for a method that has arrived is missing");
        self.book.check(&self.payment, &self.stripe);
    }
}

pub fn new_payment(minor_units: i64) -> Payment {
    Payment {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        invoice_id: String::new(),
        invoice_number: String::new(),
        amount: Money { minor_units, currency: Currency::EUR },
        state: PaymentState::Pending,
        pending_reason: None,
        failure: None,
        awaits_method: false,
        provider_payment_intent_id: None,
        intent_number: 1,
        attempt_number: 0,
        requested_method_id: None,
        on_session: false,
        next_action_url: None,
        action_time: None,
        provider_charge_id: None,
        amount_received: 0,
        part_received: 0,
        amount_refunded: 0,
        cancel_request_time: None,
        errand: None,
        refused_amount: None,
        manual: None,
        unknown_since: None,
        version: 1,
        create_time: START,
        update_time: START,
    }
}
