//! The job that collects a payment. Charging has two steps: the PaymentIntent is made unconfirmed, so that no money can
//! move, and its id committed; then that id is confirmed. Each body is committed before it is first sent, and sent again
//! byte for byte (P2). Killed anywhere, the next worker reads what is committed and goes on from there (P8).

use time::{Duration, OffsetDateTime};

use super::Scene;
use super::refresh::RECONCILE_PERIOD;
use crate::app::work::Work;
use crate::app::{Access, App, KEY_AGE_MAX};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Attempt, AttemptState, Failure, News, PaymentState, PendingReason, Step, plan};
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::{Error, PaymentId, PaymentMethodId, Result};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

/// When the intent is read after a stored 500, counted from the first replay of it.
const DEAD_KEY_READS: [Duration; 3] = [Duration::minutes(1), Duration::minutes(5), Duration::minutes(30)];

/// An attempt that is older was perhaps sent before: the intent is read first.
const FIRST_SEND_PERIOD: Duration = Duration::minutes(1);

/// Steps within one run of the job; a payment needs two, or three where a step of ours decides first.
const STEPS_MAX: usize = 6;

impl App {
    /// The job of a payment that may have to be sent to Stripe.
    pub(in crate::app) async fn submit_payment(&self, lease: &Lease) -> Result<()> {
        let id: PaymentId = lease.object_id.into();
        for _ in 0..STEPS_MAX {
            let mut work = self.begin_leased(lease).await?;
            let mut scene = Scene::load(&mut work, id).await?;
            if scene.lacked_method() && scene.customer.default_payment_method_id.is_some() {
                // A method has arrived: the one try that Paybridge makes on its own.
                scene.news(&mut work, News::Retried(None)).await?;
                work.commit().await?;
                continue;
            }
            match plan(&scene.payment, &scene.integration, &scene.customer, &scene.methods) {
                Step::Rest => return work.end(Outcome::Done).await,
                Step::Decide(news) => {
                    scene.news(&mut work, *news).await?;
                    return work.end(Outcome::Done).await;
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

    /// Makes the intent. `Break`: the job has been ended.
    async fn create_intent(&self, lease: &Lease, mut work: Work, scene: Scene, kinds: Vec<MethodKind>) -> Result<Flow> {
        let (org, payment) = (work.org, &scene.payment);
        let provider_customer = scene.provider_customer()?.to_owned();
        let newest = store::requests::newest_frozen(&mut work.tx, org, Purpose::PaymentIntent, payment.id.0).await?;
        let frozen = if let Some(frozen) = newest.filter(|frozen| frozen.number >= payment.intent_number) {
            frozen
        } else {
            let body = stripe::payment_intents::create_body(payment, &provider_customer, &kinds);
            freeze_intent(&mut work, &scene, payment.intent_number, body).await?
        };
        let now = work.now;
        work.commit().await?;
        let access = self.access(org, payment.integration_id).await?;
        if now - frozen.create_time > KEY_AGE_MAX {
            return self.look_for_intent(lease, scene, &access, &frozen, &provider_customer).await;
        }
        let answer = self.0.stripe.create_payment_intent(&access.key, &frozen.idempotency_key, &frozen.body).await;
        match answer {
            Ok(intent) => self.adopt_intent(lease, &scene, &frozen, &intent).await,
            Err(stripe::Error::Unknown { replayed: true, .. }) => {
                self.look_for_intent(lease, scene, &access, &frozen, &provider_customer).await
            }
            Err(error) => self.creation_refused(lease, &scene, &access, &frozen, &error).await,
        }
    }

    /// The intent exists: its id is committed before anything else is done with it. An answer that comes after the payment
    /// was canceled and given in anew is of an earlier round, perhaps for another amount: its intent is left alone,
    /// unconfirmed, and takes no money.
    async fn adopt_intent(
        &self,
        lease: &Lease,
        scene: &Scene,
        frozen: &FrozenRequest,
        intent: &IntentSnapshot,
    ) -> Result<Flow> {
        let mut work = self.begin_leased(lease).await?;
        let mut now_scene = Scene::load(&mut work, scene.payment.id).await?;
        if !now_scene.awaits(frozen) {
            work.commit().await?;
            return Ok(Flow::Continue(()));
        }
        let is_ours = intent.amount == now_scene.payment.amount
            && intent.provider_customer_id.as_deref() == now_scene.customer.linked_provider_id();
        let payment = &mut now_scene.payment;
        if is_ours {
            payment.provider_payment_intent_id = Some(intent.id.clone());
        } else {
            payment.intent_number = frozen.number + 1;
        }
        payment.unknown_since = None;
        store::payments::save(&mut work.tx, payment, work.now).await?;
        work.commit().await?;
        Ok(Flow::Continue(()))
    }

    /// The creation's outcome will never be known from its key: the intent is looked for in the customer's list, and if
    /// it is not there, it is made anew under a new key. Of twins one is kept, the others are canceled.
    async fn look_for_intent(
        &self,
        lease: &Lease,
        scene: Scene,
        access: &Access,
        frozen: &FrozenRequest,
        provider_customer: &str,
    ) -> Result<Flow> {
        let since = frozen.create_time - Duration::minutes(5);
        let found = self.0.stripe.find_payment_intents(&access.key, provider_customer, since, scene.payment.id).await;
        let found = match found {
            Ok(found) => found,
            Err(error) => return Err(self.stripe_trouble(access, "payment_intent.list", &error).await),
        };
        let is_open =
            |intent: &&IntentSnapshot| intent.status != IntentStatus::Canceled && intent.amount == scene.payment.amount;
        let mut open = found.iter().filter(is_open);
        let Some(kept) = open.next() else {
            let mut work = self.begin_leased(lease).await?;
            let mut scene = Scene::load(&mut work, scene.payment.id).await?;
            if scene.awaits(frozen) {
                scene.payment.intent_number = frozen.number + 1;
                store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
            }
            work.commit().await?;
            return Ok(Flow::Continue(()));
        };
        for twin in open {
            let idempotency_key = format!("paybridge-cancel_twin-{}", twin.id);
            if let Err(error) = self.0.stripe.cancel_payment_intent(&access.key, &twin.id, &idempotency_key).await {
                tracing::warn!(intent.id = %twin.id, %error, "an unconfirmed twin of an intent could not be canceled");
            }
        }
        self.adopt_intent(lease, &scene, frozen, kept).await
    }

    /// The intent was not made, or may not have been.
    async fn creation_refused(
        &self,
        lease: &Lease,
        scene: &Scene,
        access: &Access,
        frozen: &FrozenRequest,
        error: &stripe::Error,
    ) -> Result<Flow> {
        let id = scene.payment.id;
        if error.is_key_trouble() {
            self.pause_integration(access, "payment_intent.create", error).await?;
            let mut work = self.begin_leased(lease).await?;
            let mut scene = Scene::load(&mut work, id).await?;
            if scene.integration.state != IntegrationState::Paused {
                // Another key has taken its place, or the integration is not in use yet: later.
                work.end(Outcome::Retry(error.to_string())).await?;
                return Ok(Flow::Break(()));
            }
            scene.news(&mut work, News::Waits(PendingReason::IntegrationPaused)).await?;
            work.end(Outcome::Done).await?;
            return Ok(Flow::Break(()));
        }
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        if !scene.awaits(frozen) {
            // The answer is of an earlier round of the payment.
            work.commit().await?;
            return Ok(Flow::Continue(()));
        }
        match error.verdict() {
            stripe::Verdict::Refused => {
                let news = if error.code() == Some("amount_too_small") {
                    News::Waits(PendingReason::AmountTooSmall)
                } else {
                    News::Refused(Failure::from(error.detail()))
                };
                // The next try has another body, or meets another minimum: so it needs another key.
                scene.payment.intent_number = frozen.number + 1;
                scene.news(&mut work, news).await?;
                work.end(Outcome::Done).await?;
            }
            stripe::Verdict::NotDone => work.end(self.outcome_of(error)).await?,
            stripe::Verdict::Unknown => {
                scene.news(&mut work, News::Unknown).await?;
                work.end(Outcome::Retry(error.to_string())).await?;
            }
        }
        Ok(Flow::Break(()))
    }

    /// Reads the intent before a further confirm, so that the attempt can note what stood on it. `None`: the payment has
    /// changed meanwhile, or the intent itself is news; look again.
    async fn intent_before_confirm(&self, lease: &Lease, scene: &Scene) -> Result<Option<IntentSnapshot>> {
        let id = scene.payment.id;
        let Some(intent) = self.refresh_payment(lease, id).await? else { return Ok(None) };
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
        if scene.payment.state != PaymentState::Pending
            || scene.payment.cancel_request_time.is_some()
            || scene.payment.attempt_number != planned.payment.attempt_number
            || scene.payment.provider_payment_intent_id != planned.payment.provider_payment_intent_id
            || scene.payment.amount != planned.payment.amount
        {
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
        let attempt = Attempt {
            payment_id: scene.payment.id,
            number,
            amount: scene.payment.amount,
            payment_method_id: method,
            provider_payment_intent_id: intent_id,
            idempotency_key: confirm_key(scene.payment.id, number),
            body: stripe::payment_intents::confirm_body(&provider_method, kinds),
            prior_charge: intent.and_then(|intent| intent.latest_charge.clone()),
            prior_error: intent.and_then(|intent| intent.last_payment_error.clone()),
            state: AttemptState::Open,
            provider_charge_id: None,
            dead_key_time: None,
            create_time: work.now,
            finish_time: None,
        };
        store::attempts::insert(&mut work.tx, work.org, &attempt).await?;
        scene.payment.attempt_number = number;
        scene.attempt = Some(attempt);
        scene.news(&mut work, News::Sent).await?;
        work.commit().await
    }

    /// Sends the open attempt, or settles what has become of it. The first time round nothing was sent yet, and the
    /// confirm goes at once; later the intent is read first. `Break`: the job has been ended.
    async fn resume(&self, lease: &Lease, scene: Scene) -> Result<Flow> {
        let is_first_send = lease.failures == 0 && scene.payment.unknown_since.is_none();
        let Some(attempt) = scene.attempt.clone().filter(|attempt| attempt.state == AttemptState::Open) else {
            self.refresh_payment(lease, scene.payment.id).await?;
            return self.rest(lease, scene.payment.id).await;
        };
        if scene.integration.state == IntegrationState::Paused {
            return self.rest(lease, scene.payment.id).await;
        }
        let now = self.clock().now();
        let is_old = now - attempt.create_time > KEY_AGE_MAX || attempt.dead_key_time.is_some();
        if !is_first_send || is_old || now - attempt.create_time > FIRST_SEND_PERIOD {
            let Some(intent) = self.refresh_payment(lease, scene.payment.id).await? else {
                return self.rest(lease, scene.payment.id).await;
            };
            if !waits_untouched(&intent, &attempt) {
                return self.rest(lease, scene.payment.id).await;
            }
            if is_old {
                return self.give_key_up(lease, &attempt, &intent, now).await;
            }
        }
        self.confirm(lease, &scene, &attempt).await
    }

    /// Sends the confirm: the frozen body, under the attempt's own key.
    async fn confirm(&self, lease: &Lease, scene: &Scene, attempt: &Attempt) -> Result<Flow> {
        let id = scene.payment.id;
        let access = self.access(lease.organization_id, scene.payment.integration_id).await?;
        let intent_id = &attempt.provider_payment_intent_id;
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
                    self.refresh_payment(lease, id).await?;
                }
                return self.rest(lease, id).await;
            }
            Err(error) => error,
        };
        if let stripe::Error::Invalid(_) = &error
            && let Some(intent) = self.refresh_payment(lease, id).await?
            && !waits_untouched(&intent, attempt)
        {
            // The intent has moved on without us: what it says counts, not what the refusal says.
            return self.rest(lease, id).await;
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
            return self.rest(lease, id).await;
        }
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        let is_ours = scene.attempt.as_ref().is_some_and(|now| now.number == attempt.number);
        match error.verdict() {
            _ if !is_ours => work.end(Outcome::Done).await?,
            stripe::Verdict::Refused => {
                scene.news(&mut work, News::ConfirmRefused(Failure::from(error.detail()))).await?;
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

    /// The attempt's key can't be sent again, and the intent shows no trace of it. After a stored 500 Stripe may still
    /// roll the work forward, so the intent is read a few times first; then the same body goes under a new key on the
    /// same intent, which can succeed only once (P2).
    async fn give_key_up(
        &self,
        lease: &Lease,
        attempt: &Attempt,
        intent: &IntentSnapshot,
        now: OffsetDateTime,
    ) -> Result<Flow> {
        let next_read = attempt
            .dead_key_time
            .and_then(|dead| DEAD_KEY_READS.iter().map(|wait| dead + *wait).find(|read| *read > now));
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, attempt.payment_id).await?;
        if let Some(next_read) = next_read {
            work.end(Outcome::Again(next_read)).await?;
            return Ok(Flow::Break(()));
        }
        let is_same = scene.attempt.as_ref().is_some_and(|newest| newest.number == attempt.number);
        if let Some(old) = scene.attempt.as_mut().filter(|newest| is_same && newest.state == AttemptState::Open) {
            old.state = AttemptState::Superseded;
            old.finish_time = Some(now);
            store::attempts::save_outcome(&mut work.tx, work.org, old).await?;
            let number = old.number + 1;
            let next = Attempt {
                number,
                idempotency_key: confirm_key(scene.payment.id, number),
                prior_charge: intent.latest_charge.clone(),
                prior_error: intent.last_payment_error.clone(),
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

    /// Ends the job; a payment that still moves is asked about later, should nobody tell.
    async fn rest(&self, lease: &Lease, id: PaymentId) -> Result<Flow> {
        let mut work = self.begin_leased(lease).await?;
        let scene = Scene::load(&mut work, id).await?;
        if scene.payment.is_moving() {
            let at = work.now + RECONCILE_PERIOD;
            work.ask_at(JobKind::ReconcilePayment, id.0, at);
        }
        work.end(Outcome::Done).await?;
        Ok(Flow::Break(()))
    }
}

fn confirm_key(payment: PaymentId, number: i32) -> String {
    format!("paybridge-confirm-{payment}-{number}")
}

/// Whether the intent still waits for a method, without a trace of `attempt`: that proves nothing (P2).
fn waits_untouched(intent: &IntentSnapshot, attempt: &Attempt) -> bool {
    intent.waits() && !attempt.has_moved(intent)
}

/// Whether the job goes on, or has been ended.
type Flow = std::ops::ControlFlow<()>;

async fn freeze_intent(work: &mut Work, scene: &Scene, number: i32, body: String) -> Result<FrozenRequest> {
    let (org, now) = (work.org, work.now);
    store::requests::freeze(&mut work.tx, org, Purpose::PaymentIntent, scene.payment.id.0, number, body, now).await
}

impl Scene {
    fn lacked_method(&self) -> bool {
        self.payment.state == PaymentState::Failed
            && self.payment.failure.as_ref().is_some_and(|failure| failure.code == Failure::NO_PAYMENT_METHOD)
    }

    /// Whether the payment still waits for the intent that this request makes.
    fn awaits(&self, frozen: &FrozenRequest) -> bool {
        self.payment.state == PaymentState::Pending
            && self.payment.provider_payment_intent_id.is_none()
            && self.payment.intent_number == frozen.number
    }

    fn provider_customer(&self) -> Result<&str> {
        self.customer
            .linked_provider_id()
            .ok_or_else(|| Error::internal(anyhow::anyhow!("an intent was planned for a customer without a link")))
    }
}
