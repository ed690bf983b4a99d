//! How a worker runs a job, and how a call handles a payment, step by step. The steps mirror `app::payments` and
//! `app::deliveries`; the decisions are the domain's own. Between any two steps the scheduler may run another task,
//! advance the clock, or crash the worker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use rand::RngExt as _;

use super::calls::{Behavior, Payer, Request, Response, Work};
use super::ids::index;
use super::world::{JobKind, Lease, Outcome, World};
use crate::domain::PaymentMethodId;
use crate::domain::fixtures::KEY_SCOPE;
use crate::domain::payments::{Attempt, AttemptState, PaymentInput, Step};
use crate::domain::signals::IntentSnapshot;
use crate::domain::stripe_requests::{KeyState, Next, Observed, Purpose};

pub type Shared = Rc<RefCell<World>>;

/// Why a step was not completed.
pub enum StepError {
    LeaseLost,
    Unavailable,
}

pub(super) type Result<T> = std::result::Result<T, StepError>;

/// Yields to the scheduler.
async fn pause() {
    let mut is_first = true;
    poll_fn(|_| if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// A worker that runs a job under a lease, or a caller without one.
#[derive(Clone)]
pub struct Actor {
    pub world: Shared,
    pub lease: Option<Lease>,
}

impl Actor {
    /// One transaction: atomic, and only while the lease is held (P4, P8).
    pub(super) async fn tx<T>(&self, change: impl FnOnce(&mut World) -> T) -> Result<T> {
        pause().await;
        let mut world = self.world.borrow_mut();
        if self.lease.is_some_and(|lease| !world.holds_lease(lease)) {
            world.log(|| "lease lost".to_owned());
            return Err(StepError::LeaseLost);
        }
        let done = change(&mut world);
        world.check();
        Ok(done)
    }

    pub(super) async fn finish(&self, outcome: Outcome) -> Result<()> {
        let lease = self.lease;
        self.tx(move |world| lease.map(|lease| world.finish(lease, &outcome))).await.map(|_| ())
    }

    /// Sends a call. Request or response may be lost, the call may be rate-limited, or answered with a 500.
    pub(super) async fn send(&self, key: &str, call: Request) -> Response {
        pause().await;
        let response = {
            let mut world = self.world.borrow_mut();
            let roll = if world.has_faults { world.rng.random_range(0..100) } else { 99 };
            let response = match roll {
                0..6 => Response::Unknown { replayed: false },
                6..16 => {
                    world.stripe.send(key, &call);
                    Response::Unknown { replayed: false }
                }
                16..20 => Response::NotDone,
                20 => world.stripe.fail_with_500(key, &call, Work::Done),
                21..23 => world.stripe.fail_with_500(key, &call, Work::Delayed),
                23..26 => world.stripe.fail_with_500(key, &call, Work::Dropped),
                _ => world.stripe.send(key, &call),
            };
            world.log(|| format!("{key}: {call:?} returns {response:?}"));
            world.check();
            response
        };
        pause().await;
        response
    }

    /// Reads from Stripe. Changes nothing, and may fail.
    pub(super) async fn read<T>(&self, query: impl FnOnce(&World) -> T) -> Result<T> {
        pause().await;
        let found = {
            let mut world = self.world.borrow_mut();
            if world.has_faults && world.rng.random_ratio(8, 100) { None } else { Some(query(&world)) }
        };
        pause().await;
        found.ok_or(StepError::Unavailable)
    }

    /// Runs the job, or releases it for a retry.
    pub async fn run(self) {
        let Some(lease) = self.lease else { return };
        let done = match lease.kind {
            JobKind::Submit => self.submit(lease).await,
            JobKind::Reconcile => self.reconcile().await,
            JobKind::Apply(number) => self.apply_delivery(number).await,
        };
        if let Err(StepError::Unavailable) = done {
            let _ = self.finish(Outcome::Retry).await;
        }
    }

    async fn submit(&self, lease: Lease) -> Result<()> {
        let mut has_read_methods = false;
        let mut is_new_intent = false;
        for _ in 0..10 {
            let (step, payment, attempt) = self
                .tx(|world| {
                    if world.context().is_due() {
                        world.apply(PaymentInput::MethodAttached);
                    }
                    let step = world.plan();
                    if let Step::Apply(input) = &step
                        && (!step.lacks_method() || has_read_methods)
                    {
                        world.apply((**input).clone());
                    }
                    (step, world.payment.clone(), world.newest().cloned())
                })
                .await?;
            match step {
                step if step.lacks_method() && !has_read_methods => {
                    let is_attached = self.read(|world| world.is_attached).await?;
                    self.tx(|world| {
                        if is_attached {
                            world.observe_method();
                        }
                    })
                    .await?;
                    has_read_methods = true;
                }
                Step::Idle => return self.finish(Outcome::Done).await,
                Step::Apply(_) if payment.pending_operation.is_none() => return self.finish(Outcome::Done).await,
                Step::Apply(_) => {}
                Step::CreateIntent { .. } => {
                    let Some(is_new) = self.create_intent().await? else { return Ok(()) };
                    is_new_intent = is_new;
                }
                Step::PrepareAttempt { method, .. } => {
                    let mut seen = None;
                    if attempt.is_some() || !is_new_intent {
                        seen = self.refresh().await?.filter(IntentSnapshot::awaits_confirmation);
                        if seen.is_none() {
                            continue;
                        }
                    }
                    self.prepare_attempt(&payment, seen, method).await?;
                }
                Step::Resume => {
                    if self.resume(lease, attempt, payment.unknown_since.is_some()).await? {
                        return Ok(());
                    }
                }
                Step::CloseLink => {
                    if self.close_link(attempt).await? {
                        return self.finish_done().await;
                    }
                }
                Step::CloseIntent => {
                    if self.close_intent(payment.provider_payment_intent_id.as_deref()).await? {
                        return self.finish_done().await;
                    }
                }
                Step::CreateLink => self.create_link().await?,
            }
        }
        panic!("P8: the job loops without finishing: {:?}", self.world.borrow().payment);
    }

    async fn prepare_attempt(
        &self,
        planned: &crate::domain::payments::Payment,
        seen: Option<IntentSnapshot>,
        method: PaymentMethodId,
    ) -> Result<()> {
        self.tx(|world| {
            let is_same = world.payment.attempt_number == planned.attempt_number
                && world.payment.provider_payment_intent_id == planned.provider_payment_intent_id
                && world.payment.amount == planned.amount;
            if !is_same || !matches!(world.plan(), Step::PrepareAttempt { .. }) {
                return;
            }
            let body = if world.payment.is_on_session() { "on" } else { "off" };
            let (number, intent) =
                (world.payment.next_attempt_number(), world.payment.provider_payment_intent_id.clone());
            let target = Purpose::Confirmation.of(intent.expect("an intent"));
            let request = target.request(KEY_SCOPE, number, body.to_owned(), world.now);
            let attempt = Attempt::new_confirmation(&world.payment, method, request, seen.as_ref()).expect("an intent");
            let number = attempt.number;
            world.attempts.push(attempt);
            world.apply(PaymentInput::AttemptPrepared(number));
        })
        .await
    }

    /// `true`: the job is finished.
    async fn resume(&self, lease: Lease, attempt: Option<Attempt>, is_unknown: bool) -> Result<bool> {
        let Some(attempt) = attempt.filter(Attempt::is_open) else {
            self.refresh().await?;
            return self.finish_done().await.map(|()| true);
        };
        let is_first_send = lease.failures == 0 && !is_unknown;
        let now = self.world.borrow().now;
        let mut observed = if is_first_send { Observed::Unsent } else { Observed::Unread };
        let mut seen = None;
        if attempt.request.next(observed, now) == Next::Read {
            seen = self.refresh().await?;
            let Some(intent) = &seen else { return self.finish_done().await.map(|()| true) };
            observed = attempt.observed(intent);
        }
        match attempt.request.next(observed, now) {
            Next::Send => self.confirm(&attempt).await,
            Next::Done => self.finish_done().await.map(|()| true),
            Next::Wait(until) => self.finish(Outcome::RunAgain(until)).await.map(|()| true),
            Next::NewKey => self
                .tx(|world| {
                    let now = world.now;
                    let Some(old) =
                        world.attempts.last_mut().filter(|newest| newest.number == attempt.number && newest.is_open())
                    else {
                        return;
                    };
                    old.state = AttemptState::Superseded;
                    let target =
                        Purpose::Confirmation.of(attempt.provider_payment_intent_id.as_deref().expect("an intent"));
                    let request = attempt.request.under_new_key(&target, KEY_SCOPE, now);
                    let next = attempt.under_new_key(request, seen.as_ref());
                    world.payment.attempt_number = next.number;
                    world.attempts.push(next);
                    world.payment.version += 1;
                })
                .await
                .map(|()| false),
            other => panic!("not for a confirmation: {other:?}"),
        }
    }

    async fn confirm(&self, attempt: &Attempt) -> Result<bool> {
        let version = self.world.borrow().payment.version;
        let method = attempt.method().unwrap_or(PaymentMethodId(uuid::Uuid::nil()));
        let behavior = self.world.borrow().behaviors.get(&method).copied().unwrap_or(Behavior::Succeeds);
        let intent = index(attempt.provider_payment_intent_id.as_deref().unwrap_or("pi_0"));
        let payer = if attempt.request.body == "off" { Payer::Absent } else { Payer::Present };
        let call = Request::Confirm { intent, behavior, payer };
        match self.send(attempt.request.key.as_str(), call).await {
            // It may be older than what is known.
            Response::Replayed(response) if matches!(*response, Response::Intent(_)) => {
                self.refresh().await?;
                self.finish_done().await?;
                Ok(true)
            }
            Response::Intent(intent) => {
                if !self.tx(|world| world.apply_as_of(version, PaymentInput::Intent(&intent))).await? {
                    self.refresh().await?;
                }
                self.finish_done().await?;
                Ok(true)
            }
            Response::Refused(failure) => {
                if failure.code == "payment_intent_unexpected_state"
                    && let Some(intent) = self.refresh().await?
                    && (!intent.awaits_confirmation() || attempt.left_trace_on(&intent))
                {
                    self.finish_done().await?;
                    return Ok(true);
                }
                self.tx(|world| {
                    if world.newest().is_some_and(|newest| newest.number == attempt.number && newest.is_open()) {
                        world.apply(PaymentInput::ConfirmRefused(failure));
                    }
                })
                .await?;
                self.finish(Outcome::Done).await?;
                Ok(true)
            }
            response => {
                self.tx(|world| {
                    let now = world.now;
                    let Some(newest) = world.attempts.last_mut().filter(|newest| newest.number == attempt.number)
                    else {
                        return;
                    };
                    let key_state = match response {
                        Response::Unknown { replayed: true } => KeyState::ReplaysError(now),
                        Response::Mismatch => KeyState::Taken(now),
                        Response::Unknown { replayed: false } => newest.request.key_state,
                        _ => return,
                    };
                    if newest.request.key_state == KeyState::Usable {
                        newest.request.key_state = key_state;
                    }
                    world.apply(PaymentInput::Unknown);
                })
                .await?;
                self.finish(Outcome::Retry).await?;
                Ok(true)
            }
        }
    }

    /// Neither a repetition nor another key is safe: an operator decides.
    pub(super) async fn stop(&self) -> Result<()> {
        self.tx(|world| {
            assert!(world.restores > 0, "only a database that has forgotten uses a key for another body");
            world.has_stopped = true;
        })
        .await?;
        self.finish(Outcome::Done).await
    }

    async fn finish_done(&self) -> Result<()> {
        self.finish(Outcome::Done).await
    }
}
