//! The job that moves a payment: it collects, and it closes what is open before another way is opened (`close`, `links`).
//! Charging has two steps: the PaymentIntent is made unconfirmed, so that no money can
//! move, and its id committed; then that id is confirmed. Each body is committed before it is first sent, and sent again
//! byte for byte (P2). Killed anywhere, the next worker reads what is committed and goes on from there (P8).

use time::OffsetDateTime;

use super::Scene;
use crate::app::work::Hand;
use crate::app::{Access, App};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Attempt, AttemptState, Failure, News, Resume, Step, Way, resume};
use crate::domain::signals::IntentSnapshot;
use crate::domain::{Error, PaymentId, PaymentMethodId, Result};
use crate::{store, stripe};

/// Steps within one run of the job; a payment needs two, or three where a step of ours decides first, and more where an
/// open way is closed before.
const STEPS_MAX: usize = 10;

impl App {
    /// The job of a payment that may have to be sent to Stripe.
    pub(in crate::app) async fn submit_payment(&self, lease: &Lease) -> Result<()> {
        let id: PaymentId = lease.object_id.into();
        let mut has_read_methods = false;
        for _ in 0..STEPS_MAX {
            let mut work = self.begin_leased(lease).await?;
            let mut scene = Scene::load(&mut work, id).await?;
            if let Some(news) = foregone(&scene) {
                scene.news(&mut work, news).await?;
                work.commit().await?;
                continue;
            }
            match scene.plan() {
                Step::Rest => return work.end(Outcome::Done).await,
                // One that was stored a moment ago may be there, and its webhook still on its way. Read once: a customer
                // who has none costs no more.
                step if step.lacks_method() && !has_read_methods => {
                    work.abandon().await?;
                    self.read_payment_methods(lease, scene.customer.id).await?;
                    has_read_methods = true;
                }
                Step::Decide(news) => {
                    scene.news(&mut work, *news).await?;
                    if scene.payment.errand.is_none() {
                        return work.end(Outcome::Done).await;
                    }
                    work.commit().await?;
                }
                Step::CloseLink => {
                    work.abandon().await?;
                    if self.close_link(Hand::Job(lease), scene).await?.is_break() {
                        return self.rest(lease).await.map(|_| ());
                    }
                }
                Step::CloseIntent => {
                    work.abandon().await?;
                    if self.close_intent(Hand::Job(lease), scene).await?.is_break() {
                        return self.rest(lease).await.map(|_| ());
                    }
                }
                Step::MakeLink => {
                    work.abandon().await?;
                    match self.make_link(Hand::Job(lease), scene).await {
                        Ok(()) | Err(Error::FailedPrecondition { .. }) => {}
                        Err(error) => return Err(error),
                    }
                }
                Step::CreateIntent { kinds } => {
                    if self.create_intent(lease, work, scene, kinds).await?.is_break() {
                        return Ok(());
                    }
                }
                Step::Confirm { method, kinds } => {
                    work.abandon().await?;
                    let mut intent = None;
                    // Before the first confirm nothing can stand on the intent yet.
                    if scene.attempt.is_some() {
                        intent = self.intent_before_confirm(lease, &scene).await?;
                        if intent.is_none() {
                            continue;
                        }
                    }
                    self.freeze_attempt(lease, &scene, intent.as_ref(), method, &kinds).await?;
                }
                Step::Resume => {
                    work.abandon().await?;
                    if self.resume(lease, scene).await?.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} does not come to rest")))
    }

    /// Reads the intent before a further confirm, so that the attempt can note what stood on it. `None`: the payment has
    /// changed meanwhile, or the intent itself is news; look again.
    async fn intent_before_confirm(&self, lease: &Lease, scene: &Scene) -> Result<Option<IntentSnapshot>> {
        let id = scene.payment.id;
        let Some(intent) = self.refresh_payment(Hand::Job(lease), id).await? else { return Ok(None) };
        Ok(intent.waits().then_some(intent))
    }

    /// Freezes the attempt and marks the payment as sent, in one transaction; the confirm itself follows in the next
    /// step. The partial unique index on open attempts is the slot (P1).
    async fn freeze_attempt(
        &self,
        lease: &Lease,
        planned: &Scene,
        intent: Option<&IntentSnapshot>,
        method: PaymentMethodId,
        kinds: &[MethodKind],
    ) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, planned.payment.id).await?;
        // Only what was planned is done: a look at the intent in between may have raised the version, and nothing else.
        let is_same = scene.payment.attempt_number == planned.payment.attempt_number
            && scene.payment.provider_payment_intent_id == planned.payment.provider_payment_intent_id
            && scene.payment.amount == planned.payment.amount;
        if !is_same || !matches!(scene.plan(), Step::Confirm { .. }) {
            return work.commit().await;
        }
        let Some(intent_id) = scene.payment.provider_payment_intent_id.clone() else {
            return Err(Error::internal(anyhow::anyhow!("a confirm was planned without an intent")));
        };
        let provider_method = scene
            .methods
            .iter()
            .find(|known| known.id == method)
            .map(|known| known.provider_payment_method_id.clone())
            .ok_or_else(|| Error::not_found("payment method", method))?;
        let number = scene.payment.attempt_number + 1;
        let body = if scene.payment.on_session {
            let return_url = self.success_url(None, &scene.integration);
            stripe::payment_intents::confirm_on_session_body(&provider_method, kinds, &return_url)
        } else {
            stripe::payment_intents::confirm_body(&provider_method, kinds)
        };
        let attempt = Attempt {
            payment_id: scene.payment.id,
            number,
            amount: scene.payment.amount,
            way: Way::Confirm { method },
            provider_payment_intent_id: Some(intent_id),
            idempotency_key: confirm_key(scene.payment.id, number),
            body,
            prior_charge: intent.and_then(|intent| intent.latest_charge.clone()),
            prior_error: intent.and_then(|intent| intent.last_payment_error.clone()),
            state: AttemptState::Open,
            provider_charge_id: None,
            dead_key_time: None,
            create_time: work.now,
            finish_time: None,
        };
        store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
        scene.attempt = Some(attempt);
        scene.news(&mut work, News::Sent(number)).await?;
        work.commit().await
    }

    /// Sends the open attempt, or settles what has become of it. The first time round nothing was sent yet, and the
    /// confirm goes at once; later the intent is read first. `Break`: the job has been ended.
    async fn resume(&self, lease: &Lease, scene: Scene) -> Result<Flow> {
        let is_first_send = lease.failures == 0 && scene.payment.unknown_since.is_none();
        let Some(attempt) = scene.attempt.clone().filter(Attempt::is_open) else {
            self.refresh_payment(Hand::Job(lease), scene.payment.id).await?;
            return self.rest(lease).await;
        };
        if scene.integration.state == IntegrationState::Paused {
            return self.rest(lease).await;
        }
        let now = self.clock().now();
        let mut intent = None;
        if resume(&attempt, None, is_first_send, now) == Resume::Read {
            intent = self.refresh_payment(Hand::Job(lease), scene.payment.id).await?;
        }
        match resume(&attempt, intent.as_ref(), is_first_send, now) {
            Resume::Send => self.confirm(lease, &scene, &attempt).await,
            Resume::Read | Resume::Told => self.rest(lease).await,
            Resume::Wait(until) => {
                self.begin_leased(lease).await?.end(Outcome::Again(until)).await?;
                Ok(Flow::Break(()))
            }
            Resume::NewKey => self.give_key_up(lease, &attempt, intent.as_ref(), now).await,
        }
    }

    /// Sends the confirm: the frozen body, under the attempt's own key.
    async fn confirm(&self, lease: &Lease, scene: &Scene, attempt: &Attempt) -> Result<Flow> {
        let id = scene.payment.id;
        let access = self.access(lease.organization_id, scene.payment.integration_id).await?;
        let intent_id = attempt.provider_payment_intent_id.as_deref().unwrap_or_default();
        let answer =
            self.0.stripe.confirm_payment_intent(&access.key, intent_id, &attempt.idempotency_key, &attempt.body).await;
        let error = match answer {
            Ok(intent) => {
                let mut work = self.begin_leased(lease).await?;
                let mut now_scene = Scene::load(&mut work, id).await?;
                if now_scene.payment.version == scene.payment.version {
                    now_scene.news(&mut work, News::Intent(&intent)).await?;
                    work.commit().await?;
                } else {
                    // Something newer may have come in while the call was under way; the intent is the judge.
                    work.abandon().await?;
                    self.refresh_payment(Hand::Job(lease), id).await?;
                }
                return self.rest(lease).await;
            }
            Err(error) => error,
        };
        if let stripe::Error::Invalid(_) = &error
            && let Some(intent) = self.refresh_payment(Hand::Job(lease), id).await?
            && (!intent.waits() || attempt.has_moved(&intent))
        {
            // The intent has moved on without us: what it says counts, not what the refusal says.
            return self.rest(lease).await;
        }
        if error.is_key_trouble() {
            self.pause_integration(&access, "payment_intent.confirm", &error).await?;
            let mut work = self.begin_leased(lease).await?;
            let scene = Scene::load(&mut work, id).await?;
            if scene.integration.state != IntegrationState::Paused {
                work.end(Outcome::Retry(error.to_string())).await?;
                return Ok(Flow::Break(()));
            }
            work.abandon().await?;
            return self.rest(lease).await;
        }
        let is_detached = matches!(error, stripe::Error::Invalid(_))
            && self.take_detachment_in(lease, scene, &access, attempt).await?;
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        // A webhook, or a read, may have told of it first. It is told once: the same refusal again would count as one of the
        // customer, who is only about to be asked.
        let is_ours = scene.attempt.as_ref().is_some_and(|now| now.number == attempt.number && now.is_open());
        match error.verdict() {
            _ if !is_ours => work.end(Outcome::Done).await?,
            stripe::Verdict::Refused => {
                let failure = if is_detached { detached(&scene) } else { Failure::from(error.detail()) };
                scene.news(&mut work, News::ConfirmRefused(failure)).await?;
                work.end(Outcome::Done).await?;
            }
            stripe::Verdict::NotDone => work.end(self.outcome_of(&error)).await?,
            stripe::Verdict::Unknown => {
                if matches!(error, stripe::Error::Unknown { replayed: true, .. })
                    && let Some(attempt) = &mut scene.attempt
                {
                    attempt.dead_key_time.get_or_insert(work.now);
                    store::attempts::save_outcome(&mut work.tx, work.org, attempt).await?;
                }
                scene.news(&mut work, News::Unknown).await?;
                work.end(Outcome::Retry(error.to_string())).await?;
            }
        }
        Ok(Flow::Break(()))
    }

    /// Whether the method that a confirm was to charge is detached at Stripe, which may be why it was refused; then that
    /// is known here, too, before the payment fails.
    async fn take_detachment_in(
        &self,
        lease: &Lease,
        scene: &Scene,
        access: &Access,
        attempt: &Attempt,
    ) -> Result<bool> {
        let Some(charged) = scene.methods.iter().find(|method| Some(method.id) == attempt.method()) else {
            return Ok(false);
        };
        match self.0.stripe.payment_method(&access.key, &charged.provider_payment_method_id).await {
            Ok(read) if read.provider_customer_id.is_some() => return Ok(false),
            Ok(_) => {}
            Err(error) if error.is_missing() => {}
            Err(error) => return Err(self.stripe_trouble(access, "payment_method.read", &error).await),
        }
        let mut work = self.begin_leased(lease).await?;
        let mut customer = match store::customers::lock(&mut work.tx, work.org, charged.customer_id).await {
            Ok(customer) => customer,
            // A payment outlives its customer, whose methods are kept up no more.
            Err(Error::NotFound { .. }) => {
                work.abandon().await?;
                return Ok(true);
            }
            Err(error) => return Err(error),
        };
        let integration = store::integrations::get(&mut work.tx, work.org, charged.integration_id).await?;
        let mut method = store::payment_methods::get(&mut work.tx, work.org, charged.id).await?;
        let now = work.now;
        method.is_detach_read |= method.detach_time.is_none();
        self.detach(&mut work, &mut customer, &integration, &mut method, now).await?;
        work.commit().await?;
        Ok(true)
    }

    /// The attempt's key can't be sent again, and the intent shows no trace of it: the same body goes under a new key on
    /// the same intent, which can succeed only once (P2).
    async fn give_key_up(
        &self,
        lease: &Lease,
        attempt: &Attempt,
        intent: Option<&IntentSnapshot>,
        now: OffsetDateTime,
    ) -> Result<Flow> {
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, attempt.payment_id).await?;
        let is_same = scene.attempt.as_ref().is_some_and(|newest| newest.number == attempt.number);
        if let Some(old) = scene.attempt.as_mut().filter(|newest| is_same && newest.is_open()) {
            old.state = AttemptState::Superseded;
            old.finish_time = Some(now);
            store::attempts::save_outcome(&mut work.tx, work.org, old).await?;
            let number = old.number + 1;
            let next = Attempt {
                number,
                idempotency_key: confirm_key(scene.payment.id, number),
                prior_charge: intent.and_then(|intent| intent.latest_charge.clone()),
                prior_error: intent.and_then(|intent| intent.last_payment_error.clone()),
                dead_key_time: None,
                create_time: now,
                ..attempt.clone()
            };
            store::attempts::insert(&mut work.tx, work.org, &next).await?;
            scene.payment.attempt_number = number;
            store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
        }
        work.commit().await?;
        Ok(Flow::Continue(()))
    }

    /// Ends the job; a payment that still moves is asked about by the sweep, should nobody tell.
    async fn rest(&self, lease: &Lease) -> Result<Flow> {
        self.begin_leased(lease).await?.end(Outcome::Done).await?;
        Ok(Flow::Break(()))
    }
}

/// What is decided before anything is planned.
fn foregone(scene: &Scene) -> Option<News<'static>> {
    if scene.payment.errand.is_some() && scene.integration.state == IntegrationState::Disconnected {
        return Some(News::OutOfReach);
    }
    // The one retry that Paybridge makes of itself.
    scene.is_due().then_some(News::MethodArrived)
}

/// The failure of a payment whose method was detached at Stripe before its confirm.
fn detached(scene: &Scene) -> Failure {
    if scene.customer.default_payment_method_id.is_none() {
        return Failure::no_payment_method();
    }
    let text = "the payment method was detached at Stripe; retry to charge the customer's present default";
    Failure::ours("payment_method_not_usable", text)
}

fn confirm_key(payment: PaymentId, number: i32) -> String {
    format!("paybridge-confirm-{payment}-{number}")
}

/// Whether the job goes on, or has been ended.
pub(super) type Flow = std::ops::ControlFlow<()>;
