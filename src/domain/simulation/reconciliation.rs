//! What a worker does other than charging: reads Stripe, applies webhooks, closes payment paths and creates links.

use rand::Rng as _;
use time::Duration;

use super::calls::{Request, Response, Webhook};
use super::ids::{index, session_id};
use super::worker::{Actor, Result, StepError};
use super::world::{JobKind, Outcome, World};
use crate::domain::payments::{
    Attempt, AttemptState, Failure, Notice, PaymentInput, PaymentState, PendingOperation, ReceivedMoney, Step,
};
use crate::domain::signals::{IntentSnapshot, IntentStatus, SessionSnapshot, SessionStatus};
use crate::domain::stripe_requests::{KeyState, Next, Observed};

impl Actor {
    /// Reads the payment's intent and applies it, unless the payment has changed meanwhile.
    pub(super) async fn refresh(&self) -> Result<Option<IntentSnapshot>> {
        for _ in 0..5 {
            let (version, id) = {
                let world = self.world.borrow();
                (world.payment.version, world.payment.provider_payment_intent_id.clone())
            };
            let Some(id) = id else { return Ok(None) };
            let intent = self.read(|world| world.stripe.intent(index(&id))).await?;
            if self.tx(|world| world.apply_as_of(version, PaymentInput::Intent(&intent))).await? {
                return Ok(Some(intent));
            }
        }
        Err(StepError::Unavailable)
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
            if self.tx(|world| world.apply_as_of(version, PaymentInput::Link(&session, intent.as_ref()))).await? {
                return Ok(Some(session.status));
            }
        }
        Err(StepError::Unavailable)
    }

    /// `true`: it cannot be closed now, and the pending operation stays pending.
    pub async fn close_intent(&self, intent: Option<&str>) -> Result<bool> {
        let Some(intent) = intent else { return Ok(false) };
        let key = format!("cancel-{}", self.world.borrow_mut().rng.next_u64());
        if matches!(self.send(&key, Request::Cancel { intent: index(intent) }).await, Response::NotDone) {
            return Err(StepError::Unavailable);
        }
        match self.refresh().await?.map(|intent| intent.status) {
            None | Some(IntentStatus::Canceled | IntentStatus::Succeeded) => Ok(false),
            Some(IntentStatus::Processing) => self.cannot_close().await,
            Some(_) => Err(StepError::Unavailable),
        }
    }

    /// `true`: the link was used, and the pending operation waits for the outcome.
    pub(super) async fn close_link(&self, attempt: Option<Attempt>) -> Result<bool> {
        let link = attempt.as_ref().and_then(Attempt::open_link);
        let Some(session) = link.and_then(|link| link.provider_session_id.as_deref()) else { return Ok(false) };
        let key = format!("expire-{}", self.world.borrow_mut().rng.next_u64());
        if matches!(self.send(&key, Request::Expire { session: index(session) }).await, Response::NotDone) {
            return Err(StepError::Unavailable);
        }
        match self.refresh_link().await? {
            None | Some(SessionStatus::Expired) => Ok(false),
            Some(SessionStatus::Complete) => self.cannot_close().await,
            Some(SessionStatus::Open) => Err(StepError::Unavailable),
        }
    }

    async fn cannot_close(&self) -> Result<bool> {
        self.tx(|world| {
            if world.payment.is_in_flight() {
                world.apply(PaymentInput::CannotClose);
            }
            world.payment.is_in_flight() && world.payment.pending_operation.is_some()
        })
        .await
    }

    /// Creates the Checkout session of the link that holds the slot.
    pub async fn create_link(&self) -> Result<()> {
        let (attempt, now) = {
            let world = self.world.borrow();
            (world.newest().filter(|attempt| attempt.open_link().is_some()).cloned(), world.now)
        };
        let Some(attempt) = attempt else { return Ok(()) };
        let (mut request, mut observed) = (attempt.request.clone(), Observed::Unread);
        loop {
            match request.next(observed, now) {
                Next::Send => {}
                Next::Abandon => {
                    return self.link_refused(&attempt, Failure::ours(Failure::PAYMENT_URL_FAILED, "")).await;
                }
                Next::Read => {
                    if self.close_unknown_pages().await? {
                        return self.stop().await;
                    }
                    observed = Observed::Absent;
                    continue;
                }
                other => panic!("not for a payment link: {other:?}"),
            }
            let call = Request::CreateSession { amount: attempt.amount.minor_units };
            match self.send(request.key.as_str(), call).await {
                Response::Session(made) => return self.link_created(&attempt, &made).await,
                Response::Replayed(response) => {
                    let Response::Session(stale) = *response else { panic!("not of a session: {response:?}") };
                    let made = self.read(|world| world.stripe.session(index(&stale.id))).await?;
                    if made.status != SessionStatus::Expired {
                        return self.link_created(&attempt, &made).await;
                    }
                    observed = Observed::Spent;
                }
                Response::Refused(failure) => return self.link_refused(&attempt, failure).await,
                Response::Unknown { replayed: true } => request.key_state = KeyState::ReplaysError(now),
                Response::Mismatch => request.key_state = KeyState::Taken(now),
                _ => return Err(StepError::Unavailable),
            }
        }
    }

    /// Closes pages that are not known. `true`: one of them was paid.
    async fn close_unknown_pages(&self) -> Result<bool> {
        let unknown = self.read(World::unknown_sessions).await?;
        for session in unknown {
            let key = format!("expire-{}", self.world.borrow_mut().rng.next_u64());
            match self.read(|world| world.stripe.sessions[session].status).await? {
                SessionStatus::Complete => return Ok(true),
                SessionStatus::Expired => {}
                SessionStatus::Open => match self.send(&key, Request::Expire { session }).await {
                    Response::Session(_) => {}
                    _ => return Err(StepError::Unavailable),
                },
            }
        }
        Ok(false)
    }

    async fn link_created(&self, attempt: &Attempt, made: &SessionSnapshot) -> Result<()> {
        self.tx(|world| {
            if world.payment.attempt_number == attempt.number && world.plan() == Step::CreateLink {
                world.apply(PaymentInput::LinkCreated(made));
                world.enqueue(JobKind::Reconcile, made.expire_time + Duration::MINUTE);
            }
        })
        .await
    }

    async fn link_refused(&self, attempt: &Attempt, failure: Failure) -> Result<()> {
        self.tx(|world| {
            if world.payment.attempt_number == attempt.number {
                world.apply(PaymentInput::LinkRefused(failure));
                if world.payment.state() == PaymentState::Pending {
                    world.enqueue(JobKind::Submit, world.now);
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
                if !world.payment.is_in_flight() {
                    return None;
                }
                let mut next = world.now + Duration::hours(1);
                if let Some(action_time) = world.payment.action_time() {
                    let deadline = action_time + Duration::DAY;
                    if deadline <= world.now
                        && world.payment.rejection(world.newest(), &PendingOperation::ExpireAction).is_none()
                    {
                        world.apply(PaymentInput::Requested(PendingOperation::ExpireAction));
                    } else {
                        next = next.min(deadline.max(world.now + Duration::MINUTE));
                    }
                }
                let is_open = world.newest().is_some_and(|attempt| attempt.is_open() && attempt.link().is_none());
                if world.payment.pending_operation.is_some()
                    || (is_open && intent.is_none_or(|intent| intent.awaits_confirmation()))
                {
                    world.enqueue(JobKind::Submit, world.now);
                }
                Some(next)
            })
            .await?;
        self.finish(next.map_or(Outcome::Done, Outcome::RunAgain)).await
    }

    pub(super) async fn apply_delivery(&self, number: usize) -> Result<()> {
        let webhook = self.world.borrow().inbox[number].clone();
        match webhook {
            Webhook::Session { index: session } => {
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
            Webhook::Intent { snapshot, key } => self.apply_intent_webhook(&snapshot, key.as_deref()).await?,
        }
        self.finish(Outcome::Done).await
    }

    async fn apply_intent_webhook(&self, webhook: &IntentSnapshot, key: Option<&str>) -> Result<()> {
        let (own, attempts) = {
            let world = self.world.borrow();
            (world.payment.provider_payment_intent_id.clone(), world.attempts.clone())
        };
        let is_link = |attempt: &Attempt| {
            attempt.link().is_some() && attempt.provider_payment_intent_id.as_deref() == Some(webhook.id.as_str())
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
        let is_already_applied = key.is_some_and(|key| {
            attempts.iter().any(|attempt| attempt.request.key.as_str() == key && !attempt.is_open())
        });
        if own.as_deref() != Some(webhook.id.as_str()) {
            let is_from_dashboard = self.world.borrow().stripe.intents[index(&webhook.id)].is_from_dashboard;
            let is_young =
                !is_from_dashboard && own.is_none() && self.world.borrow().payment.state() == PaymentState::Pending;
            if webhook.status == IntentStatus::Succeeded && !is_young {
                self.tx(|world| {
                    let is_settled = world.attempts.iter().any(|attempt| {
                        attempt.state == AttemptState::Succeeded
                            && attempt.provider_payment_intent_id.as_deref() == Some(webhook.id.as_str())
                    });
                    if !is_settled && !world.other_paid.contains(&webhook.id) {
                        world.other_paid.push(webhook.id.clone());
                        if world.payment.state().is_final() {
                            world.payment.amount_received += webhook.amount_received;
                            world.notices.push(Notice::Overpaid(ReceivedMoney::of(webhook)));
                            world.accounting.receive_late(webhook.amount_received);
                        } else {
                            world.apply(PaymentInput::OtherIntentPaid(webhook));
                        }
                    }
                })
                .await?;
            }
            return Ok(());
        }
        if is_already_applied && webhook.status == IntentStatus::RequiresPaymentMethod {
            return Ok(());
        }
        if matches!(webhook.status, IntentStatus::Succeeded | IntentStatus::Canceled) {
            return self.tx(|world| _ = world.apply(PaymentInput::Intent(webhook))).await;
        }
        self.refresh().await.map(|_| ())
    }
}
