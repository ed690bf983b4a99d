//! What a worker does with a job, and a call with a payment, step by step. The steps are those of `app::payments` and
//! `app::deliveries`; the decisions are the domain's own. Between any two steps the scheduler may let somebody else go on,
//! let an hour pass, or kill the worker.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use super::stripe::{Answer, Card, Post, index, intent_id};
use super::world::{Kind, Lease, Outcome, World};
use crate::domain::PaymentMethodId;
use crate::domain::payments::{
    Attempt, AttemptState, KEY_AGE_MAX, Link, News, PaymentState, PendingReason, Resume, Step, Way, resume,
};
use crate::domain::signals::{IntentSnapshot, IntentStatus};

pub type Shared = Rc<RefCell<World>>;

/// A step that did not come to its end: the lease is lost, or Stripe is not there.
pub enum Stop {
    LeaseLost,
    Unavailable,
}

pub(super) type Result<T> = std::result::Result<T, Stop>;

/// Lets others go on.
async fn pause() {
    let mut is_first = true;
    poll_fn(|_| if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }).await;
}

/// Somebody at work: a job's worker, whose transactions show its lease, or a call.
#[derive(Clone)]
pub struct Hand {
    pub world: Shared,
    pub lease: Option<Lease>,
}

impl Hand {
    /// One transaction: all of it or nothing, and nothing without the lease (P4, P8).
    pub(super) async fn tx<T>(&self, change: impl FnOnce(&mut World) -> T) -> Result<T> {
        pause().await;
        let mut world = self.world.borrow_mut();
        if self.lease.is_some_and(|lease| !world.holds(lease)) {
            world.note(|| "a lease is lost".to_owned());
            return Err(Stop::LeaseLost);
        }
        let done = change(&mut world);
        world.check();
        Ok(done)
    }

    pub(super) async fn end(&self, outcome: Outcome) -> Result<()> {
        let lease = self.lease;
        self.tx(move |world| lease.map(|lease| world.end(lease, &outcome))).await.map(|_| ())
    }

    /// Sends a call. On its way there and back it may get lost, be refused by a limiter, or meet a 500.
    pub(super) async fn post(&self, key: &str, call: Post) -> Answer {
        pause().await;
        let answer = {
            let mut world = self.world.borrow_mut();
            let dice = if world.faults { world.random.below(100) } else { 99 };
            let answer = match dice {
                0..6 => Answer::Unknown { replayed: false },
                6..16 => {
                    world.stripe.post(key, &call);
                    Answer::Unknown { replayed: false }
                }
                16..20 => Answer::NotDone,
                20..26 => world.stripe.broken(key, &call, dice == 20, dice == 21 || dice == 22),
                _ => world.stripe.post(key, &call),
            };
            world.note(|| format!("{key}: {call:?} brings {answer:?}"));
            world.check();
            answer
        };
        pause().await;
        answer
    }

    /// Reads something, which changes nothing and may fail.
    pub(super) async fn read<T>(&self, look: impl FnOnce(&World) -> T) -> Result<T> {
        pause().await;
        let found = {
            let mut world = self.world.borrow_mut();
            if world.faults && world.random.percent(8) { None } else { Some(look(&world)) }
        };
        pause().await;
        found.ok_or(Stop::Unavailable)
    }

    /// Does a job to its end, or gives it back.
    pub async fn work(self) {
        let Some(lease) = self.lease else { return };
        let done = match lease.kind {
            Kind::Submit => self.submit(lease).await,
            Kind::Reconcile => self.reconcile().await,
            Kind::Apply(number) => self.apply_delivery(number).await,
        };
        if let Err(Stop::Unavailable) = done {
            let _ = self.end(Outcome::Retry).await;
        }
    }

    async fn submit(&self, lease: Lease) -> Result<()> {
        let mut has_read_methods = false;
        for _ in 0..10 {
            let (step, payment, attempt) = self
                .tx(|world| {
                    if world.is_due() {
                        world.news(News::MethodArrived);
                    }
                    let step = world.plan();
                    if let Step::Decide(news) = &step
                        && (!step.lacks_method() || has_read_methods)
                    {
                        world.news((**news).clone());
                    }
                    (step, world.payment.clone(), world.newest().cloned())
                })
                .await?;
            match step {
                step if step.lacks_method() && !has_read_methods => {
                    let is_attached = self.read(|world| world.attached).await?;
                    self.tx(|world| {
                        if is_attached {
                            world.hear_of_method();
                        }
                    })
                    .await?;
                    has_read_methods = true;
                }
                Step::Rest => return self.end(Outcome::Done).await,
                Step::Decide(_) if payment.errand.is_none() => return self.end(Outcome::Done).await,
                Step::Decide(_) => {}
                Step::CreateIntent { .. } => {
                    if self.create_intent().await? {
                        return Ok(());
                    }
                }
                Step::Confirm { method, .. } => {
                    let mut seen = None;
                    if attempt.is_some() {
                        seen = self.refresh().await?.filter(IntentSnapshot::waits);
                        if seen.is_none() {
                            continue;
                        }
                    }
                    self.freeze_attempt(&payment, seen, method).await?;
                }
                Step::Resume => {
                    if self.resume(lease, attempt, payment.unknown_since.is_some()).await? {
                        return Ok(());
                    }
                }
                Step::CloseLink => {
                    if self.close_link(attempt).await? {
                        return self.rest().await;
                    }
                }
                Step::CloseIntent => {
                    if self.close_intent(payment.provider_payment_intent_id.as_deref()).await? {
                        return self.rest().await;
                    }
                }
                Step::MakeLink => self.make_link().await?,
            }
        }
        panic!("P8: the job goes round and does not come to rest: {:?}", self.world.borrow().payment);
    }

    /// `true`: the job has been ended.
    async fn create_intent(&self) -> Result<bool> {
        let (number, amount, frozen_at) = self
            .tx(|world| {
                let newest = world.frozen.last().copied().filter(|(number, ..)| *number >= world.payment.intent_number);
                newest.unwrap_or_else(|| {
                    let fresh = (world.payment.intent_number, world.payment.amount.minor_units, world.now);
                    world.frozen.push(fresh);
                    fresh
                })
            })
            .await?;
        let is_old = self.world.borrow().now - frozen_at > KEY_AGE_MAX;
        let answer = if is_old {
            Answer::Unknown { replayed: true }
        } else {
            self.post(&format!("intent-{number}"), Post::CreateIntent { amount }).await
        };
        match answer {
            Answer::Intent(intent) => self.adopt(number, &intent).await.map(|()| false),
            Answer::Unknown { replayed: true } => self.look_for_intent(number, amount).await.map(|()| false),
            answer => {
                let outcome = self
                    .tx(|world| {
                        if awaits(world, number) {
                            match answer {
                                Answer::Refused(failure) => {
                                    world.payment.intent_number = number + 1;
                                    let is_small = failure.code == "amount_too_small";
                                    world.news(if is_small {
                                        News::Waits(PendingReason::AmountTooSmall)
                                    } else {
                                        News::Refused(failure)
                                    });
                                    return Outcome::Done;
                                }
                                Answer::Unknown { .. } => _ = world.news(News::Unknown),
                                _ => {}
                            }
                        }
                        Outcome::Retry
                    })
                    .await?;
                self.end(outcome).await.map(|()| true)
            }
        }
    }

    async fn adopt(&self, number: i32, intent: &IntentSnapshot) -> Result<()> {
        self.tx(|world| {
            if !awaits(world, number) {
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

    async fn look_for_intent(&self, number: i32, amount: i64) -> Result<()> {
        let found = self
            .read(|world| {
                let known = |id: &str| {
                    world.attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id))
                };
                let all = world.stripe.intents.iter().enumerate();
                let open = all.filter(|(at, intent)| {
                    !intent.by_hand
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
                    if awaits(world, number) {
                        world.payment.intent_number = number + 1;
                        world.payment.version += 1;
                    }
                })
                .await
            }
        }
    }

    async fn freeze_attempt(
        &self,
        planned: &crate::domain::payments::Payment,
        seen: Option<IntentSnapshot>,
        method: PaymentMethodId,
    ) -> Result<()> {
        self.tx(|world| {
            let is_same = world.payment.attempt_number == planned.attempt_number
                && world.payment.provider_payment_intent_id == planned.provider_payment_intent_id
                && world.payment.amount == planned.amount;
            if !is_same || !matches!(world.plan(), Step::Confirm { .. }) {
                return;
            }
            let number = world.payment.attempt_number + 1;
            let body = if world.payment.on_session { "on" } else { "off" };
            let attempt = new_attempt(world, number, Way::Confirm { method });
            world.attempts.push(Attempt {
                provider_payment_intent_id: world.payment.provider_payment_intent_id.clone(),
                body: body.to_owned(),
                prior_charge: seen.as_ref().and_then(|seen| seen.latest_charge.clone()),
                prior_error: seen.and_then(|seen| seen.last_payment_error),
                ..attempt
            });
            world.news(News::Sent(number));
        })
        .await
    }

    /// `true`: the job has been ended.
    async fn resume(&self, lease: Lease, attempt: Option<Attempt>, is_unknown: bool) -> Result<bool> {
        let Some(attempt) = attempt.filter(Attempt::is_open) else {
            self.refresh().await?;
            return self.rest().await.map(|()| true);
        };
        let is_first_send = lease.failures == 0 && !is_unknown;
        let now = self.world.borrow().now;
        let mut seen = None;
        if resume(&attempt, None, is_first_send, now) == Resume::Read {
            seen = self.refresh().await?;
        }
        match resume(&attempt, seen.as_ref(), is_first_send, now) {
            Resume::Send => self.confirm(&attempt).await,
            Resume::Read | Resume::Told => self.rest().await.map(|()| true),
            Resume::Wait(until) => self.end(Outcome::Again(until)).await.map(|()| true),
            Resume::NewKey => self
                .tx(|world| {
                    let now = world.now;
                    let Some(old) =
                        world.attempts.last_mut().filter(|newest| newest.number == attempt.number && newest.is_open())
                    else {
                        return;
                    };
                    old.state = AttemptState::Superseded;
                    let number = old.number + 1;
                    let next = Attempt {
                        number,
                        idempotency_key: format!("confirm-{number}"),
                        prior_charge: seen.as_ref().and_then(|seen| seen.latest_charge.clone()),
                        prior_error: seen.and_then(|seen| seen.last_payment_error),
                        dead_key_time: None,
                        create_time: now,
                        ..attempt.clone()
                    };
                    world.attempts.push(next);
                    world.payment.attempt_number = number;
                    world.payment.version += 1;
                })
                .await
                .map(|()| false),
        }
    }

    async fn confirm(&self, attempt: &Attempt) -> Result<bool> {
        let version = self.world.borrow().payment.version;
        let method = attempt.method().unwrap_or(PaymentMethodId(uuid::Uuid::nil()));
        let card = self.world.borrow().cards.get(&method).copied().unwrap_or(Card::Good);
        let intent = index(attempt.provider_payment_intent_id.as_deref().unwrap_or("pi_0"));
        let call = Post::Confirm { intent, card, off_session: attempt.body == "off" };
        match self.post(&attempt.idempotency_key, call).await {
            Answer::Intent(intent) => {
                if !self.tx(|world| world.news_as_of(version, News::Intent(&intent))).await? {
                    self.refresh().await?;
                }
                self.rest().await?;
                Ok(true)
            }
            Answer::Refused(failure) => {
                if failure.code == "payment_intent_unexpected_state"
                    && let Some(intent) = self.refresh().await?
                    && (!intent.waits() || attempt.has_moved(&intent))
                {
                    self.rest().await?;
                    return Ok(true);
                }
                self.tx(|world| {
                    if world.newest().is_some_and(|newest| newest.number == attempt.number && newest.is_open()) {
                        world.news(News::ConfirmRefused(failure));
                    }
                })
                .await?;
                self.end(Outcome::Done).await?;
                Ok(true)
            }
            answer => {
                self.tx(|world| {
                    let now = world.now;
                    let Some(newest) = world.attempts.last_mut().filter(|newest| newest.number == attempt.number)
                    else {
                        return;
                    };
                    if let Answer::Unknown { replayed } = answer {
                        if replayed {
                            newest.dead_key_time.get_or_insert(now);
                        }
                        world.news(News::Unknown);
                    }
                })
                .await?;
                self.end(Outcome::Retry).await?;
                Ok(true)
            }
        }
    }

    async fn rest(&self) -> Result<()> {
        self.end(Outcome::Done).await
    }
}

fn awaits(world: &World, number: i32) -> bool {
    world.payment.state == PaymentState::Pending
        && world.payment.provider_payment_intent_id.is_none()
        && world.payment.intent_number == number
}

/// An attempt that is frozen now; a link unless `way` says otherwise.
pub fn new_attempt(world: &World, number: i32, way: Way) -> Attempt {
    let name = if matches!(way, Way::Link(Link { .. })) { "link" } else { "confirm" };
    Attempt {
        payment_id: world.payment.id,
        number,
        amount: world.payment.amount,
        way,
        provider_payment_intent_id: None,
        idempotency_key: format!("{name}-{number}"),
        body: String::new(),
        prior_charge: None,
        prior_error: None,
        state: AttemptState::Open,
        provider_charge_id: None,
        dead_key_time: None,
        create_time: world.now,
        finish_time: None,
    }
}
