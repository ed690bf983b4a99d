//! How a worker runs a job, and how a call handles a payment, step by step. The steps mirror `app::payments` and
//! `app::deliveries`; the decisions are the domain's own. Between any two steps the scheduler may run another task,
//! advance the clock, or crash the worker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use rand::RngExt as _;

use super::ids::{index, intent_id};

use super::stripe::{Behavior, Request, Response};
use super::world::{JobKind, Lease, Outcome, World};
use crate::domain::PaymentMethodId;
use crate::domain::payments::{Attempt, AttemptState, KEY_AGE_MAX, PaymentInput, PendingReason, Resume, Step, resume};
use crate::domain::signals::{IntentSnapshot, IntentStatus};

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
                20..26 => world.stripe.fail_with_500(key, &call, roll == 20, roll == 21 || roll == 22),
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
        for _ in 0..10 {
            let (step, payment, attempt) = self
                .tx(|world| {
                    if world.is_due() {
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
                    if self.create_intent().await? {
                        return Ok(());
                    }
                }
                Step::PrepareAttempt { method, .. } => {
                    let mut seen = None;
                    if attempt.is_some() {
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

    /// `true`: the job is finished.
    async fn create_intent(&self) -> Result<bool> {
        let (number, amount, created_at) = self
            .tx(|world| {
                let newest =
                    world.creations.last().copied().filter(|(number, ..)| *number >= world.payment.intent_number);
                newest.unwrap_or_else(|| {
                    let fresh = (world.payment.intent_number, world.payment.amount.minor_units, world.now);
                    world.creations.push(fresh);
                    fresh
                })
            })
            .await?;
        let is_old = self.world.borrow().now - created_at > KEY_AGE_MAX;
        let response = if is_old {
            Response::Unknown { replayed: true }
        } else {
            self.send(&format!("intent-{number}"), Request::CreateIntent { amount }).await
        };
        match response {
            Response::Intent(intent) => self.adopt(number, &intent).await.map(|()| false),
            Response::Unknown { replayed: true } => self.find_intent(number, amount).await.map(|()| false),
            response => {
                let outcome = self
                    .tx(|world| {
                        if world.awaits_intent(number) {
                            match response {
                                Response::Refused(failure) => {
                                    world.payment.intent_number = number + 1;
                                    let is_small = failure.code == "amount_too_small";
                                    world.apply(if is_small {
                                        PaymentInput::Wait(PendingReason::AmountTooSmall)
                                    } else {
                                        PaymentInput::Refused(failure)
                                    });
                                    return Outcome::Done;
                                }
                                Response::Unknown { .. } => _ = world.apply(PaymentInput::Unknown),
                                _ => {}
                            }
                        }
                        Outcome::Retry
                    })
                    .await?;
                self.finish(outcome).await.map(|()| true)
            }
        }
    }

    async fn adopt(&self, number: i32, intent: &IntentSnapshot) -> Result<()> {
        self.tx(|world| {
            if !world.awaits_intent(number) {
                return;
            }
            if intent.amount == world.payment.amount {
                world.payment.provider_payment_intent_id = Some(intent.id.clone());
            } else {
                world.payment.intent_number = number + 1;
            }
            world.payment.unknown_since = None;
            world.payment.version += 1;
        })
        .await
    }

    async fn find_intent(&self, number: i32, amount: i64) -> Result<()> {
        let found = self
            .read(|world| {
                let known = |id: &str| {
                    world.attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id))
                };
                let all = world.stripe.intents.iter().enumerate();
                let open = all.filter(|(at, intent)| {
                    !intent.is_from_dashboard
                        && intent.status != IntentStatus::Canceled
                        && intent.amount == amount
                        && !known(&intent_id(*at))
                });
                open.map(|(at, _)| world.stripe.intent(at)).next_back()
            })
            .await?;
        match found {
            Some(intent) => self.adopt(number, &intent).await,
            None => {
                self.tx(|world| {
                    if world.awaits_intent(number) {
                        world.payment.intent_number = number + 1;
                        world.payment.version += 1;
                    }
                })
                .await
            }
        }
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
            let body = if world.payment.on_session { "on" } else { "off" };
            let attempt = Attempt::new_confirmation(&world.payment, method, body.to_owned(), seen.as_ref(), world.now)
                .expect("an intent");
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
        let mut seen = None;
        if resume(&attempt, None, is_first_send, now) == Resume::Read {
            seen = self.refresh().await?;
        }
        match resume(&attempt, seen.as_ref(), is_first_send, now) {
            Resume::Send => self.confirm(&attempt).await,
            Resume::Read | Resume::OutcomeKnown => self.finish_done().await.map(|()| true),
            Resume::Wait(until) => self.finish(Outcome::RunAgain(until)).await.map(|()| true),
            Resume::NewKey => self
                .tx(|world| {
                    let now = world.now;
                    let Some(old) =
                        world.attempts.last_mut().filter(|newest| newest.number == attempt.number && newest.is_open())
                    else {
                        return;
                    };
                    old.state = AttemptState::Superseded;
                    let next = attempt.under_new_key(seen.as_ref(), now);
                    world.payment.attempt_number = next.number;
                    world.attempts.push(next);
                    world.payment.version += 1;
                })
                .await
                .map(|()| false),
        }
    }

    async fn confirm(&self, attempt: &Attempt) -> Result<bool> {
        let version = self.world.borrow().payment.version;
        let method = attempt.method().unwrap_or(PaymentMethodId(uuid::Uuid::nil()));
        let behavior = self.world.borrow().behaviors.get(&method).copied().unwrap_or(Behavior::Succeeds);
        let intent = index(attempt.provider_payment_intent_id.as_deref().unwrap_or("pi_0"));
        let call = Request::Confirm { intent, behavior, off_session: attempt.body == "off" };
        match self.send(&attempt.idempotency_key, call).await {
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
                    if let Response::Unknown { replayed } = response {
                        if replayed {
                            newest.dead_key_time.get_or_insert(now);
                        }
                        world.apply(PaymentInput::Unknown);
                    }
                })
                .await?;
                self.finish(Outcome::Retry).await?;
                Ok(true)
            }
        }
    }

    async fn finish_done(&self) -> Result<()> {
        self.finish(Outcome::Done).await
    }
}
