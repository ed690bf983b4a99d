//! Making a payment's intent, unconfirmed: no money can move yet. Its id is committed before anything else is done with
//! it. A creation whose outcome stays unknown is looked for in the customer's list (P2).

use time::Duration;

use super::Scene;
use super::submit::Flow;
use crate::app::work::Work;
use crate::app::{Access, App, KEY_AGE_MAX};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{Lease, Outcome};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::{Failure, News, PaymentState, PendingReason};
use crate::domain::signals::{IntentSnapshot, IntentStatus};
use crate::domain::{Error, Result};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

impl App {
    /// Makes the intent. `Break`: the job has been ended.
    pub(super) async fn create_intent(
        &self,
        lease: &Lease,
        mut work: Work,
        scene: Scene,
        kinds: Vec<MethodKind>,
    ) -> Result<Flow> {
        let (org, payment) = (work.org, &scene.payment);
        let provider_customer = scene.provider_customer()?.to_owned();
        let newest = store::requests::newest_frozen(&mut work.tx, org, Purpose::PaymentIntent, payment.id.0).await?;
        let frozen = if let Some(frozen) = newest.filter(|frozen| frozen.number >= payment.intent_number) {
            frozen
        } else {
            let body = stripe::payment_intents::create_body(payment, &provider_customer, &kinds);
            work.freeze(Purpose::PaymentIntent, payment.id.0, payment.intent_number, body).await?
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
        // Those of earlier attempts, and of links, are known and closed.
        let mut tx = self.read(lease.organization_id).await?;
        let attempts = store::attempts::list(&mut tx, lease.organization_id, scene.payment.id).await?;
        tx.close().await?;
        let is_known =
            |id: &str| attempts.iter().any(|attempt| attempt.provider_payment_intent_id.as_deref() == Some(id));
        let is_open = |intent: &&IntentSnapshot| {
            intent.status != IntentStatus::Canceled && intent.amount == scene.payment.amount && !is_known(&intent.id)
        };
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
}

impl Scene {
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
