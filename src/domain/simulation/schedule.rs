//! The seeded scheduler of one simulated run.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use rand::RngExt as _;
use rand::seq::IndexedRandom as _;
use time::Duration;

use super::calls::{Authentication, Behavior, Payer, Webhook};
use super::ids::index;
use super::worker::{Actor, Shared};
use super::world::{JobKind, Lease, World};
use crate::domain::fixtures::{self, payment};
use crate::domain::payments::{
    Attempt, Manual, Notice, Payment, PaymentInput, PaymentState, PendingOperation, Step, link_rejection,
};
use crate::domain::stripe_requests::Purpose;

/// Steps with faults in each schedule.
const FAULTY_STEPS: usize = 70;
/// Steps without faults within which the world must become quiescent.
const STEPS_TO_QUIESCENCE_MAX: usize = 3_000;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// How webhooks are delivered.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Delivery {
    Reliable,
    /// Some are duplicated, and some are lost.
    Unreliable,
}

/// One run of the simulation.
pub struct Schedule {
    pub world: Shared,
    /// Workers, each with its lease, and callers.
    tasks: Vec<(Option<Lease>, Task)>,
    /// The number of requests that callers still make.
    caller_requests: usize,
    /// The database is backed up and restored now and then.
    loses_data: bool,
}

impl Schedule {
    pub fn new(seed: u64) -> Self {
        let mut world = World::new(seed);
        let caller_requests = world.rng.random_range(0..5);
        let loses_data = seed % 4 == 3;
        Self { world: Rc::new(RefCell::new(world)), tasks: Vec::new(), caller_requests, loses_data }
    }

    /// Keeps a readable log of the run.
    pub fn traced(self) -> Self {
        self.world.borrow_mut().trace = Some(Vec::new());
        self
    }

    pub fn run(mut self) {
        for _ in 0..FAULTY_STEPS {
            self.step();
        }
        self.world.borrow_mut().has_faults = false;
        self.world.borrow_mut().log(|| "faults end".to_owned());
        for _ in 0..STEPS_TO_QUIESCENCE_MAX {
            if self.tasks.is_empty() && !self.settle_one() {
                self.world.borrow().check_quiescence();
                return;
            }
            if !self.tasks.is_empty() {
                self.poll_task(0);
            }
        }
        let world = self.world.borrow();
        panic!("P8: not quiescent: {:?}; {:?}", world.jobs, world.payment);
    }

    /// Picks and runs the next event.
    fn step(&mut self) {
        if self.loses_data {
            self.lose_data();
        }
        let roll = self.world.borrow_mut().rng.random_range(0..100);
        match roll {
            0..50 if !self.tasks.is_empty() => {
                let at = self.world.borrow_mut().rng.random_range(0..self.tasks.len());
                self.poll_task(at);
            }
            50..53 if !self.tasks.is_empty() => {
                let at = self.world.borrow_mut().rng.random_range(0..self.tasks.len());
                let (lease, _) = self.tasks.swap_remove(at);
                self.world.borrow_mut().log(|| format!("crash: {lease:?}"));
            }
            53..60 if self.caller_requests > 0 => {
                self.caller_requests -= 1;
                self.request_as_caller();
            }
            60..68 => self.act_at_stripe(),
            68..78 => _ = self.deliver(Delivery::Unreliable),
            78..84 => self.advance_clock_randomly(),
            _ => _ = self.start_worker(),
        }
    }

    fn lose_data(&mut self) {
        let mut world = self.world.borrow_mut();
        match world.rng.random_range(0..100) {
            0..4 => world.back_up(),
            4..7 if world.restore() => {
                drop(world);
                // Every process has lost its connections.
                self.tasks.clear();
            }
            _ => {}
        }
    }

    fn poll_task(&mut self, at: usize) {
        let mut context = Context::from_waker(Waker::noop());
        if self.tasks[at].1.as_mut().poll(&mut context).is_ready() {
            drop(self.tasks.swap_remove(at));
        }
    }

    fn start_worker(&mut self) -> bool {
        if self.tasks.len() >= 3 {
            return false;
        }
        let mut world = self.world.borrow_mut();
        let jobs = world.jobs.len();
        if jobs == 0 {
            return false;
        }
        let from = world.rng.random_range(0..jobs);
        let Some(lease) = (0..jobs).find_map(|step| world.lease((from + step) % jobs)) else { return false };
        world.log(|| format!("leased: {lease:?}"));
        drop(world);
        let actor = Actor { world: self.world.clone(), lease: Some(lease) };
        self.tasks.push((Some(lease), Box::pin(actor.run())));
        true
    }

    /// A caller makes a request.
    fn request_as_caller(&mut self) {
        let mut world = self.world.borrow_mut();
        let time = world.now;
        let remaining = world.notices.iter().rev().find_map(|notice| match notice {
            Notice::Underpaid { remaining, .. } => Some(*remaining),
            _ => None,
        });
        let operations = [
            PendingOperation::Cancel,
            world.payment.amount_change(3000),
            world.payment.amount_change(10),
            // The remainder as it was reported.
            world.payment.amount_change(remaining.unwrap_or(6000)),
            PendingOperation::RecordManual(Manual { reference: String::new(), time }),
        ];
        let which = world.rng.random_range(0..operations.len() + 4);
        if let Some(operation) = operations.get(which) {
            // The current amount is no change.
            let is_same = matches!(operation, PendingOperation::ChangeAmount { minor_units, .. }
                if world.payment.pending_operation.is_none() && *minor_units == world.payment.amount.minor_units);
            if !is_same && world.payment.rejection(world.newest(), operation).is_none() {
                world.log(|| format!("requested: {operation:?}"));
                world.apply(PaymentInput::Requested(operation.clone()));
            }
        } else if which == operations.len() {
            retry(&mut world);
        } else if which == operations.len() + 1 {
            attach_method(&mut world);
        } else if which == operations.len() + 2 && world.payment.state() == PaymentState::Canceled {
            reopen(&mut world);
        } else if link_rejection(&world.payment, world.newest()).is_none() {
            prepare_link(&mut world);
            drop(world);
            let actor = Actor { world: self.world.clone(), lease: None };
            self.tasks.push((None, Box::pin(create_link(actor))));
            return;
        }
        world.check();
    }

    /// An event at Stripe that Paybridge did not cause.
    fn act_at_stripe(&mut self) {
        let mut world = self.world.borrow_mut();
        let world = &mut *world;
        let behaviors =
            [Behavior::Succeeds, Behavior::Declined, Behavior::Debit { fails: false }, Behavior::Debit { fails: true }];
        let behavior = *behaviors.choose(&mut world.rng).expect("not empty");
        let is_first = world.rng.random_ratio(60, 100);
        match world.rng.random_range(0..9) {
            0..3 => {
                let link = world.newest().and_then(Attempt::open_link);
                let session = link.and_then(|link| link.provider_session_id.as_deref()).map(index);
                if let Some(session) = session {
                    world.log(|| format!("the payer pays session {session}: {behavior:?}"));
                    world.stripe.pay(session, behavior);
                }
            }
            3..6 => {
                let authentication = if is_first { Authentication::Completed } else { Authentication::Failed };
                for intent in 0..world.stripe.intents.len() {
                    world.stripe.settle(intent, authentication);
                }
            }
            6 => {
                let own = world.payment.provider_payment_intent_id.as_deref().map(index);
                if let Some(intent) = own.filter(|_| is_first) {
                    world.log(|| format!("intent {intent} is confirmed in the dashboard: {behavior:?}"));
                    world.stripe.confirm(intent, behavior, Payer::Absent, None);
                }
            }
            7 => {
                // A few times: a part, the remainder, or more.
                if world.stripe.intents.iter().filter(|intent| intent.is_from_dashboard).count() < 3 && is_first {
                    let amounts = [world.payment.amount.minor_units.max(50), 2000, 6000];
                    let amount = *amounts.choose(&mut world.rng).expect("not empty");
                    world.log(|| format!("a charge of {amount} is created in the dashboard"));
                    world.stripe.pay_in_dashboard(amount);
                }
            }
            _ => world.stripe.run_delayed(),
        }
        world.check();
    }

    /// Delivers a webhook in any order.
    fn deliver(&mut self, delivery: Delivery) -> bool {
        let mut world = self.world.borrow_mut();
        if world.stripe.webhooks.is_empty() {
            return false;
        }
        let waiting = world.stripe.webhooks.len();
        let at = world.rng.random_range(0..waiting);
        let webhook: Webhook = world.stripe.webhooks.swap_remove(at);
        if delivery == Delivery::Unreliable && world.rng.random_ratio(15, 100) {
            world.stripe.listed.push(webhook);
            return true;
        }
        if delivery == Delivery::Unreliable && world.rng.random_ratio(15, 100) {
            world.stripe.webhooks.push(webhook.clone());
        }
        world.log(|| format!("webhook: {webhook:?}"));
        world.inbox.push(webhook);
        let number = world.inbox.len() - 1;
        let now = world.now;
        world.enqueue(JobKind::Apply(number), now);
        true
    }

    fn advance_clock_randomly(&mut self) {
        let mut world = self.world.borrow_mut();
        let steps = [3, 20, 70, 400, 3_700, 75_000, 90_000];
        let seconds = *steps.choose(&mut world.rng).expect("not empty");
        self.advance_clock(&mut world, Duration::seconds(seconds));
    }

    #[expect(clippy::unused_self, reason = "reads as an action of the schedule")]
    fn advance_clock(&self, world: &mut World, period: Duration) {
        world.now += period;
        let now = world.now;
        world.stripe.advance_to(now);
        world.check();
    }

    /// Advances towards quiescence, in a fixed order: jobs and webhooks, then the bank and the payer, then time up to
    /// the next job. `false`: nothing is left to do.
    fn settle_one(&mut self) -> bool {
        if self.start_worker() || self.deliver(Delivery::Reliable) {
            return true;
        }
        let mut world = self.world.borrow_mut();
        world.stripe.run_delayed();
        for intent in 0..world.stripe.intents.len() {
            world.stripe.settle(intent, Authentication::Failed);
        }
        if !world.stripe.webhooks.is_empty() {
            return true;
        }
        let next = world.jobs.iter().map(|job| job.leased_until.unwrap_or(job.run_at).max(job.run_at)).min();
        let Some(next) = next else {
            // Reads have found what was in progress. Webhooks that were never sent are found in the events list.
            if world.is_attached {
                world.observe_method();
                if !world.jobs.is_empty() {
                    return true;
                }
            }
            let listed = std::mem::take(&mut world.stripe.listed);
            world.stripe.webhooks.extend(listed);
            return !world.stripe.webhooks.is_empty();
        };
        let period = (next - world.now).max(Duration::SECOND);
        self.advance_clock(&mut world, period);
        true
    }
}

fn retry(world: &mut World) {
    let method = world.rng.random_ratio(50, 100).then_some(world.methods[1].id);
    let operation = PendingOperation::Retry { method };
    if world.payment.rejection(world.newest(), &operation).is_some() {
        return;
    }
    world.log(|| format!("requested: {operation:?}"));
    if world.newest().is_some_and(|attempt| attempt.open_link().is_some()) {
        world.apply(PaymentInput::Requested(operation));
    } else {
        world.apply(PaymentInput::RetryRequested(method));
    }
}

/// A method is attached at Stripe. The webhook arrives now or later.
fn attach_method(world: &mut World) {
    if !world.is_attached {
        world.is_attached = true;
        world.methods[1].attach_time = Some(world.now);
    }
    if world.rng.random_ratio(50, 100) {
        world.observe_method();
    }
}

/// The invoice is submitted again after its payment was canceled.
fn reopen(world: &mut World) {
    world.log(|| "the invoice is submitted again".to_owned());
    let known = &world.payment;
    world.payment = Payment {
        intent_number: known.intent_number + 1,
        attempt_number: known.attempt_number,
        version: known.version + 1,
        amount_received: known.amount_received,
        ..payment(4900)
    };
    world.accounting.reopen(4900);
    let now = world.now;
    world.enqueue(JobKind::Submit, now);
}

/// The link takes the slot before anything is sent for it.
fn prepare_link(world: &mut World) {
    world.log(|| "a link is requested".to_owned());
    let number = world.payment.next_attempt_number();
    let request = fixtures::request(Purpose::PaymentLink, number, "", world.now);
    let attempt = Attempt::new_link(&world.payment, request);
    world.payment.attempt_number = attempt.number;
    world.attempts.push(attempt);
    if world.payment.provider_payment_intent_id.is_none() {
        world.payment.intent_number += 1;
    }
    world.payment.version += 1;
    let at = world.now + Duration::seconds(30);
    world.enqueue(JobKind::Submit, at);
}

/// The caller's request for a link: the intent is closed first.
async fn create_link(actor: Actor) {
    for _ in 0..4 {
        let (step, intent) = {
            let world = actor.world.borrow();
            (world.plan(), world.payment.provider_payment_intent_id.clone())
        };
        let done = match step {
            Step::CloseIntent => actor.close_intent(intent.as_deref()).await.map(|_| ()),
            Step::CreateLink => actor.create_link().await,
            _ => return,
        };
        if done.is_err() {
            return;
        }
    }
}
