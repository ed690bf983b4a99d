//! The world of one schedule: a store with atomic transactions, jobs with leases and epochs, Stripe, a clock, and one
//! source of randomness. Invariants are checked here, at the end of every transaction.

use std::collections::HashMap;
use std::fmt::Debug;

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::IndexedRandom as _;
use rand::{RngExt as _, SeedableRng as _};
use time::{Duration, OffsetDateTime};

use super::accounting::Accounting;
use super::calls::{Behavior, Webhook};
use super::ids::index;
use super::loss::Backup;
use super::stripe::Stripe;
use crate::domain::PaymentMethodId;
use crate::domain::customers::Customer;
use crate::domain::fixtures::{START, customer, integration, method, payment};
use crate::domain::integrations::Integration;
use crate::domain::payment_methods::{MethodKind, PaymentMethod};
use crate::domain::payments::{
    ApplyContext, Attempt, Failure, Notice, Payment, PaymentInput, PaymentState, PlanContext, Step, Transition,
};
use crate::domain::signals::{IntentStatus, SessionStatus};
use crate::domain::stripe_requests::StripeRequest;

/// As in `domain::jobs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobKind {
    Submit,
    Reconcile,
    /// Applies a stored webhook, by its number.
    Apply(usize),
}

#[derive(Clone, Debug)]
pub struct Job {
    pub kind: JobKind,
    pub run_at: OffsetDateTime,
    pub generation: u32,
    pub failures: i32,
    pub epoch: u32,
    pub leased_until: Option<OffsetDateTime>,
}

/// A lease as held by a worker.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    pub kind: JobKind,
    pub epoch: u32,
    pub generation: u32,
    pub failures: i32,
}

/// How a run of a job ended.
pub enum Outcome {
    Done,
    RunAgain(OffsetDateTime),
    Retry,
}

pub struct World {
    /// A named generator: a seed gives the same numbers on every platform.
    pub rng: Xoshiro256PlusPlus,
    pub now: OffsetDateTime,
    pub stripe: Stripe,
    pub payment: Payment,
    pub attempts: Vec<Attempt>,
    pub customer: Customer,
    pub integration: Integration,
    pub methods: Vec<PaymentMethod>,
    pub behaviors: HashMap<PaymentMethodId, Behavior>,
    /// Prepared creations of intents. The body is the amount.
    pub creations: Vec<StripeRequest>,
    pub jobs: Vec<Job>,
    /// Stored webhooks.
    pub inbox: Vec<Webhook>,
    pub other_paid: Vec<String>,
    /// What was reported to callers in addition to states.
    pub notices: Vec<Notice>,
    /// What callers expect to have been reported.
    pub accounting: Accounting,
    /// The customer's second method is attached at Stripe, possibly before a webhook says so.
    pub is_attached: bool,
    /// A backup of the database.
    pub backup: Option<Backup>,
    /// How often the database was restored. What was reported before cannot be compared with what is reported after.
    pub restores: u32,
    /// A request to Stripe has stopped, after a restore: its key was used for another body, and an operator decides.
    pub has_stopped: bool,
    /// Whether responses are lost, calls fail and webhooks go missing.
    pub has_faults: bool,
    /// The states reported, in order.
    pub reported_states: Vec<PaymentState>,
    /// A readable log of the run; only when a failed seed is run again.
    pub trace: Option<Vec<String>>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let behaviors = [
            Behavior::Succeeds,
            Behavior::Declined,
            Behavior::RequiresAuthentication,
            Behavior::Debit { fails: false },
            Behavior::Debit { fails: true },
        ];
        let methods = vec![method(1, MethodKind::Card), method(2, MethodKind::SepaDebit)];
        let behaviors =
            methods.iter().map(|method| (method.id, *behaviors.choose(&mut rng).expect("not empty"))).collect();
        let customer = customer(rng.random_ratio(85, 100).then_some(methods[0].id));
        let integration = integration(rng.random_ratio(50, 100));
        let mut world = Self {
            rng,
            now: START,
            stripe: Stripe::new(START),
            payment: payment(4900),
            attempts: Vec::new(),
            customer,
            integration,
            methods,
            behaviors,
            creations: Vec::new(),
            jobs: Vec::new(),
            inbox: Vec::new(),
            other_paid: Vec::new(),
            notices: Vec::new(),
            accounting: Accounting::new(4900, 0),
            is_attached: false,
            backup: None,
            restores: 0,
            has_stopped: false,
            has_faults: true,
            reported_states: Vec::new(),
            trace: None,
        };
        world.enqueue(JobKind::Submit, START);
        world
    }

    /// Appends to the trace, if there is one.
    pub fn log(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} s  {}", (self.now - START).whole_seconds(), what()));
        }
    }

    pub fn newest(&self) -> Option<&Attempt> {
        self.attempts.last()
    }

    /// Whether the payment still waits for the intent with this number.
    pub fn awaits_intent(&self, number: i32) -> bool {
        self.payment.state() == PaymentState::Pending
            && self.payment.provider_payment_intent_id.is_none()
            && self.payment.intent_number == number
    }

    /// Applies what was read if the payment still has this version; returns whether it did.
    pub fn apply_as_of(&mut self, version: i64, input: PaymentInput<'_>) -> bool {
        let is_same = self.payment.version == version;
        if is_same {
            self.apply(input);
        }
        is_same
    }

    /// A webhook or a read shows that the second method is attached: it becomes the default.
    pub fn observe_method(&mut self) {
        let id = self.methods[1].id;
        if self.customer.default_payment_method_id == Some(id) {
            return;
        }
        self.log(|| "another method becomes the default".to_owned());
        self.customer.default_payment_method_id = Some(id);
        if self.payment.state() == PaymentState::Failed && (self.payment.lacked_method() || self.payment.awaits_method)
        {
            let now = self.now;
            self.enqueue(JobKind::Submit, now);
        }
    }

    /// As `PaymentContext::is_due` in `app`.
    pub fn context(&self) -> PlanContext<'_> {
        PlanContext {
            payment: &self.payment,
            attempt: self.newest(),
            customer: &self.customer,
            integration: &self.integration,
            methods: &self.methods,
        }
    }

    pub fn plan(&self) -> Step {
        self.context().plan()
    }

    /// Applies an input, as `PaymentContext::apply` in `app` does.
    pub fn apply(&mut self, input: PaymentInput<'_>) -> Transition {
        let is_catching_up = self.integration.is_catching_up();
        let context = ApplyContext { now: self.now, supports_3ds: self.integration.supports_3ds, is_catching_up };
        if self.trace.is_some() {
            self.log_debug("input", &input);
        }
        let before = self.payment.clone();
        if let PaymentInput::Requested(operation) = &input
            && self.restores == 0
        {
            self.accounting.request(&before, operation);
        }
        let was_open = self.newest().is_some_and(Attempt::is_open);
        let transition = self.payment.apply(self.attempts.last_mut(), input, context);
        if self.payment != before {
            self.payment.version += 1;
        }
        if self.payment.needs_work(&before, &transition) {
            self.enqueue(JobKind::Submit, self.now);
        }
        if transition.from != transition.to && self.payment.is_in_flight() {
            self.enqueue(JobKind::Reconcile, self.now + Duration::hours(1));
        }
        self.notices.extend(transition.notices.iter().cloned());
        if self.restores == 0 {
            self.accounting.apply(&before, &self.payment, &transition);
        }
        if transition.from != transition.to {
            self.reported_states.push(transition.to);
            self.check_transition(&before, &transition, was_open);
        }
        transition
    }

    fn log_debug(&mut self, what: &str, value: &impl Debug) {
        let text = format!("{what}: {value:?}");
        self.log(|| text);
    }

    /// Checks P2 and P7 when the state changes.
    fn check_transition(&self, before: &Payment, transition: &Transition, was_open: bool) {
        assert!(!before.state().is_final(), "P7: {:?} became {:?}", before.state, transition.to);
        if transition.to == PaymentState::Failed && was_open {
            let attempt = self.newest().expect("it was open");
            let is_stripes_word = match (&attempt.provider_payment_intent_id, attempt.link()) {
                (Some(intent), None) => {
                    let intent = &self.stripe.intents[index(intent)];
                    intent.has_failed || intent.status == IntentStatus::Canceled
                }
                (_, Some(link)) => link.provider_session_id.as_ref().is_none_or(|session| {
                    let session = &self.stripe.sessions[index(session)];
                    session.status != SessionStatus::Open
                }),
                (None, None) => false,
            };
            assert!(is_stripes_word, "P2: FAILED although Stripe did not refuse: {:?}", self.payment.failure());
        }
        if self.payment.failure().is_some_and(Failure::requires_authentication)
            && self.integration.supports_3ds
            && before.pending_operation.is_none()
            // A restored database does not know for whom the intent was confirmed last.
            && self.restores == 0
        {
            let was_on_session = self.newest().is_some_and(|attempt| attempt.request.body == "on");
            assert!(
                was_on_session,
                "FAILED because the bank requires authentication, which the customer was not asked for"
            );
        }
    }

    pub fn enqueue(&mut self, kind: JobKind, run_at: OffsetDateTime) {
        if let Some(job) = self.jobs.iter_mut().find(|job| job.kind == kind) {
            job.generation += 1;
            job.run_at = job.run_at.min(run_at);
        } else {
            self.jobs.push(Job { kind, run_at, generation: 1, failures: 0, epoch: 0, leased_until: None });
        }
    }

    /// Leases a job that is due and not leased.
    pub fn lease(&mut self, at: usize) -> Option<Lease> {
        let now = self.now;
        let job = self.jobs.get_mut(at)?;
        if job.leased_until.is_some_and(|until| until > now) || job.run_at > now {
            return None;
        }
        job.epoch += 1;
        job.leased_until = Some(now + Duration::seconds(10));
        Some(Lease { kind: job.kind, epoch: job.epoch, generation: job.generation, failures: job.failures })
    }

    /// Whether the lease is still held (P8). Verified in every transaction of a job.
    pub fn holds_lease(&self, lease: Lease) -> bool {
        self.jobs.iter().any(|job| job.kind == lease.kind && job.epoch == lease.epoch)
    }

    pub fn finish(&mut self, lease: Lease, outcome: &Outcome) {
        let now = self.now;
        let Some(at) = self.jobs.iter().position(|job| job.kind == lease.kind && job.epoch == lease.epoch) else {
            return;
        };
        let again = self.jobs[at].generation > lease.generation;
        let job = &mut self.jobs[at];
        match outcome {
            Outcome::Done if !again => {
                self.jobs.remove(at);
                return;
            }
            Outcome::Done => job.run_at = now,
            Outcome::RunAgain(run_at) => {
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

    /// P1, at any moment: at most one object at Stripe can take money, and money was taken at most once. A link is open
    /// only if all intents used before are closed.
    pub fn check(&self) {
        let mut payable = Vec::new();
        for attempt in &self.attempts {
            let link = attempt.link().and_then(|link| link.provider_session_id.as_deref()).map(index);
            if let Some(session) = link.filter(|session| self.stripe.sessions[*session].status == SessionStatus::Open) {
                payable.push(("session", session));
                let confirmed = self.attempts.iter().filter(|attempt| attempt.link().is_none());
                let used = confirmed.filter_map(|attempt| attempt.provider_payment_intent_id.as_ref());
                for intent in used.chain(&self.payment.provider_payment_intent_id) {
                    let status = self.stripe.intents[index(intent)].status;
                    assert_eq!(
                        status,
                        IntentStatus::Canceled,
                        "P1: {intent} can be confirmed while session {session} is open"
                    );
                }
            }
        }
        for (at, intent) in self.stripe.intents.iter().enumerate() {
            let is_in_flight = matches!(intent.status, IntentStatus::Processing | IntentStatus::RequiresAction);
            let is_on_open_page =
                intent.session.is_some_and(|session| self.stripe.sessions[session].status == SessionStatus::Open);
            // Charges created in the dashboard are not ours.
            if !intent.is_from_dashboard
                && ((is_in_flight && !is_on_open_page) || intent.status == IntentStatus::Succeeded)
            {
                payable.push(("intent", at));
            }
        }
        assert!(payable.len() <= 1, "P1: {payable:?} can take money or have taken it");
        assert!(self.stripe.our_charges().count() <= 1, "P1: charged {:?}", self.stripe.ledger);
        let is_from_dashboard = |id: &String| self.stripe.intents[index(id)].is_from_dashboard;
        if self.payment.state() == PaymentState::Succeeded
            && self.payment.provider_payment_intent_id.as_ref().is_some_and(is_from_dashboard)
        {
            assert!(payable.is_empty(), "P1: paid in the dashboard, but {payable:?} can take money");
        }
        let open = self.attempts.iter().filter(|attempt| attempt.is_open()).count();
        assert!(open <= 1, "P1: {open} open attempts");
    }

    /// At quiescence, what is recorded equals what Stripe has.
    pub fn check_quiescence(&self) {
        if self.has_stopped {
            // Nothing else is sent, and `check` has found no second charge.
            return;
        }
        let taken: i64 = self.stripe.ledger.iter().map(|(_, amount)| amount).sum();
        let state = self.payment.state();
        assert_eq!(self.payment.amount_received, taken, "recorded amount differs from Stripe's ({state:?})");
        if self.stripe.our_charges().next().is_some() {
            assert_eq!(state, PaymentState::Succeeded, "Stripe has the money");
        }
        if state == PaymentState::Succeeded {
            let is_explained = taken > 0 || self.payment.manual().is_some() || self.payment.amount.minor_units == 0;
            assert!(is_explained, "SUCCEEDED without a payment");
        }
        assert!(
            self.payment.pending_operation.is_none(),
            "a pending operation is left: {:?}",
            self.payment.pending_operation
        );
        assert!(!self.payment.is_in_flight(), "{state:?} at quiescence");
        let paid = self.reported_states.iter().filter(|state| **state == PaymentState::Succeeded).count();
        assert!(paid <= 1 || self.restores > 0, "reported as paid {paid} times");
        assert!(self.jobs.is_empty(), "jobs are left: {:?}", self.jobs);
        let has_default = self.customer.default_payment_method_id.is_some();
        assert!(!(self.payment.lacked_method() && has_default), "the retry for a method that has arrived is missing");
        if self.restores == 0 {
            self.accounting.check(&self.payment, &self.stripe);
        }
    }
}
