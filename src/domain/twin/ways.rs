//! What a worker does beside charging: it asks Stripe, takes in what Stripe tells, closes what is open, and makes links.

use time::Duration;

use super::stripe::{Answer, Post, Told, index, session_id};
use super::work::{Hand, Result, Stop};
use super::world::{Kind, Outcome};
use crate::domain::payments::{
    Attempt, AttemptState, Errand, Failure, KEY_AGE_MAX, News, Notice, PaymentState, Receipt, Step,
};
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionStatus};

impl Hand {
    /// Reads the payment's intent and takes it in, unless the payment has changed meanwhile.
    pub(super) async fn refresh(&self) -> Result<Option<IntentSnapshot>> {
        for _ in 0..5 {
            let (version, id) = {
                let world = self.world.borrow();
                (world.payment.version, world.payment.provider_payment_intent_id.clone())
            };
            let Some(id) = id else { return Ok(None) };
            let intent = self.read(|world| world.stripe.intent(index(&id))).await?;
            if self.tx(|world| world.news_as_of(version, News::Intent(&intent))).await? {
                return Ok(Some(intent));
            }
        }
        Err(Stop::Unavailable)
    }

    pub(super) async fn refresh_link(&self) -> Result<Option<SessionStatus>> {
        for _ in 0..5 {
            let (version, id) = {
                let world = self.world.borrow();
                let link = world.newest().and_then(Attempt::open_link);
                (world.payment.version, link.and_then(|link| link.provider_session_id.clone()))
            };
            let Some(id) = id else { return Ok(None) };
            let session = self.read(|world| world.stripe.session(index(&id))).await?;
            let intent = match &session.provider_payment_intent_id {
                Some(intent) => Some(self.read(|world| world.stripe.intent(index(intent))).await?),
                None => None,
            };
            if self.tx(|world| world.news_as_of(version, News::Link(&session, intent.as_ref()))).await? {
                return Ok(Some(session.status));
            }
        }
        Err(Stop::Unavailable)
    }

    /// `true`: it can't be closed now, and what waits for it waits on.
    pub async fn close_intent(&self, intent: Option<&str>) -> Result<bool> {
        let Some(intent) = intent else { return Ok(false) };
        let key = format!("cancel-{}", self.world.borrow_mut().random.next());
        if matches!(self.post(&key, Post::Cancel { intent: index(intent) }).await, Answer::NotDone) {
            return Err(Stop::Unavailable);
        }
        match self.refresh().await?.map(|intent| intent.status) {
            None | Some(IntentStatus::Canceled | IntentStatus::Succeeded) => Ok(false),
            Some(IntentStatus::Processing) => self.cannot_close().await,
            Some(_) => Err(Stop::Unavailable),
        }
    }

    /// `true`: whatever it was to be ended for waits for the outcome.
    pub(super) async fn close_link(&self, attempt: Option<Attempt>) -> Result<bool> {
        let link = attempt.as_ref().and_then(Attempt::open_link);
        let Some(session) = link.and_then(|link| link.provider_session_id.as_deref()) else { return Ok(false) };
        let key = format!("expire-{}", self.world.borrow_mut().random.next());
        if matches!(self.post(&key, Post::Expire { session: index(session) }).await, Answer::NotDone) {
            return Err(Stop::Unavailable);
        }
        match self.refresh_link().await? {
            None | Some(SessionStatus::Expired) => Ok(false),
            Some(SessionStatus::Complete) => self.cannot_close().await,
            Some(SessionStatus::Open) => Err(Stop::Unavailable),
        }
    }

    async fn cannot_close(&self) -> Result<bool> {
        self.tx(|world| {
            if world.payment.is_moving() {
                world.news(News::CannotClose);
            }
            world.payment.is_moving() && world.payment.errand.is_some()
        })
        .await
    }

    /// Makes the page of a link that holds the slot.
    pub async fn make_link(&self) -> Result<()> {
        let (attempt, now) = {
            let world = self.world.borrow();
            (world.newest().filter(|attempt| attempt.open_link().is_some()).cloned(), world.now)
        };
        let Some(attempt) = attempt else { return Ok(()) };
        let answer = if now - attempt.create_time > KEY_AGE_MAX {
            Answer::Unknown { replayed: true }
        } else {
            self.post(&attempt.idempotency_key, Post::CreateSession { amount: attempt.amount.minor_units }).await
        };
        match answer {
            Answer::Session(made) => {
                self.tx(|world| {
                    if world.payment.attempt_number == attempt.number && world.plan() == Step::MakeLink {
                        world.news(News::LinkMade(&made));
                        world.ask(Kind::Reconcile, made.expire_time + Duration::MINUTE);
                    }
                })
                .await
            }
            Answer::Refused(failure) => self.link_refused(&attempt, failure).await,
            Answer::Unknown { replayed: true } => {
                self.link_refused(&attempt, Failure::ours("payment_url_failed", "")).await
            }
            _ => Err(Stop::Unavailable),
        }
    }

    async fn link_refused(&self, attempt: &Attempt, failure: Failure) -> Result<()> {
        self.tx(|world| {
            if world.payment.attempt_number == attempt.number {
                world.news(News::LinkRefused(failure));
                if world.payment.state == PaymentState::Pending {
                    world.ask(Kind::Submit, world.now);
                }
            }
        })
        .await
    }

    pub(super) async fn reconcile(&self) -> Result<()> {
        let mut intent = None;
        if self.refresh_link().await?.is_none() {
            intent = self.refresh().await?;
        }
        let next = self
            .tx(|world| {
                if !world.payment.is_moving() {
                    return None;
                }
                let mut next = world.now + Duration::hours(1);
                if let Some(asked) = world.payment.action_time {
                    let end = asked + Duration::DAY;
                    if end <= world.now && world.payment.objection(world.newest(), &Errand::EndAction).is_none() {
                        world.news(News::Asked(Errand::EndAction));
                    } else {
                        next = next.min(end.max(world.now + Duration::MINUTE));
                    }
                }
                let is_open = world.newest().is_some_and(|attempt| attempt.is_open() && attempt.link().is_none());
                if world.payment.errand.is_some() || (is_open && intent.is_none_or(|intent| intent.waits())) {
                    world.ask(Kind::Submit, world.now);
                }
                Some(next)
            })
            .await?;
        self.end(next.map_or(Outcome::Done, Outcome::Again)).await
    }

    pub(super) async fn apply_delivery(&self, number: usize) -> Result<()> {
        let told = self.world.borrow().inbox[number].clone();
        match told {
            Told::Session { index: session } => {
                let is_ours = self
                    .world
                    .borrow()
                    .newest()
                    .and_then(Attempt::open_link)
                    .is_some_and(|link| link.provider_session_id.as_deref() == Some(session_id(session).as_str()));
                if is_ours {
                    self.refresh_link().await?;
                }
            }
            Told::Intent { snapshot, key } => self.intent_told(&snapshot, key.as_deref()).await?,
        }
        self.end(Outcome::Done).await
    }

    async fn intent_told(&self, told: &IntentSnapshot, key: Option<&str>) -> Result<()> {
        let (own, attempts) = {
            let world = self.world.borrow();
            (world.payment.provider_payment_intent_id.clone(), world.attempts.clone())
        };
        let is_link = |attempt: &Attempt| {
            attempt.link().is_some() && attempt.provider_payment_intent_id.as_deref() == Some(told.id.as_str())
        };
        let open_link = attempts.last().filter(|attempt| attempt.open_link().is_some());
        if open_link.is_some_and(|link| link.provider_payment_intent_id.is_none() || is_link(link)) {
            self.refresh_link().await?;
            if self.world.borrow().attempts.iter().any(is_link) {
                return Ok(());
            }
        } else if attempts.iter().any(|attempt| is_link(attempt) && attempt.state != AttemptState::Canceled) {
            return Ok(());
        }
        let told_before =
            key.is_some_and(|key| attempts.iter().any(|attempt| attempt.idempotency_key == key && !attempt.is_open()));
        if own.as_deref() != Some(told.id.as_str()) {
            let is_by_hand = self.world.borrow().stripe.intents[index(&told.id)].by_hand;
            let is_young = !is_by_hand && own.is_none() && self.world.borrow().payment.state == PaymentState::Pending;
            if told.status == IntentStatus::Succeeded && !is_young {
                self.tx(|world| {
                    let is_settled = world.attempts.iter().any(|attempt| {
                        attempt.state == AttemptState::Succeeded
                            && attempt.provider_payment_intent_id.as_deref() == Some(told.id.as_str())
                    });
                    if !is_settled && !world.overpaid.contains(&told.id) {
                        world.overpaid.push(told.id.clone());
                        if world.payment.state.is_final() {
                            world.payment.amount_received += told.amount_received;
                            world.notices.push(Notice::Overpaid(Receipt::of(told)));
                            world.book.hear_late(told.amount_received);
                        } else {
                            world.news(News::PaidBeside(told));
                        }
                    }
                })
                .await?;
            }
            return Ok(());
        }
        if told_before && told.status == IntentStatus::RequiresPaymentMethod {
            return Ok(());
        }
        if matches!(told.status, IntentStatus::Succeeded | IntentStatus::Canceled) {
            return self.tx(|world| _ = world.news(News::Intent(told))).await;
        }
        self.refresh().await.map(|_| ())
    }
}
