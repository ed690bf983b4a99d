//! Asking Stripe about a payment. The intent is the judge in every doubt: whatever it shows goes through the same
//! `apply` as everything else.

use time::Duration;

use super::Scene;
use super::links::LINK_END_PERIOD;
use crate::app::reconcile::mended;
use crate::app::work::Hand;
use crate::app::{Access, App};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::{Attempt, Errand, News, PaymentState};
use crate::domain::signals::{IntentSnapshot, SessionSnapshot};
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::store;

/// How often a read is repeated because the payment changed under it.
pub(super) const READS_MAX: usize = 5;

impl App {
    /// Reads the payment's intent and takes in what it says. The read counts only if the payment did not change while it
    /// was under way: else what was read may be older than what is known, and it is read again (P6).
    pub(in crate::app) async fn refresh_payment(
        &self,
        hand: Hand<'_>,
        id: PaymentId,
    ) -> Result<Option<IntentSnapshot>> {
        let org = hand.org();
        for _ in 0..READS_MAX {
            let Some((version, access, intent_id)) = self.intent_of(org, id).await? else { return Ok(None) };
            let intent = match self.0.stripe.payment_intent(&access.key, &intent_id).await {
                Ok(intent) => intent,
                Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.read", &error).await),
            };
            let mut work = self.begin_by(hand).await?;
            let mut scene = Scene::load(&mut work, id).await?;
            if scene.payment.version != version {
                work.abandon().await?;
                continue;
            }
            scene.news(&mut work, News::Intent(&intent)).await?;
            work.commit().await?;
            return Ok(Some(intent));
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while it is read")))
    }

    async fn intent_of(&self, org: OrganizationId, id: PaymentId) -> Result<Option<(i64, Access, String)>> {
        let mut tx = self.read(org).await?;
        let payment = store::payments::get(&mut tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id))?;
        tx.close().await?;
        let Some(intent_id) = payment.provider_payment_intent_id else { return Ok(None) };
        Ok(Some((payment.version, self.access(org, payment.integration_id).await?, intent_id)))
    }

    /// Reads the page of the payment's open link, and the intent that Stripe made for it, and takes in what they say. A
    /// session that is not the open link's, or no open link, changes nothing.
    pub(in crate::app) async fn refresh_link(&self, hand: Hand<'_>, id: PaymentId) -> Result<Option<SessionSnapshot>> {
        let org = hand.org();
        for _ in 0..READS_MAX {
            let mut tx = self.read(org).await?;
            let payment =
                store::payments::get(&mut tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id))?;
            let attempt = store::attempts::get(&mut tx, org, id, payment.attempt_number).await?;
            tx.close().await?;
            let link = attempt.as_ref().and_then(Attempt::open_link);
            let Some(session_id) = link.and_then(|link| link.provider_session_id.as_deref()) else { return Ok(None) };
            let access = self.access(org, payment.integration_id).await?;
            let session = match self.0.stripe.checkout_session(&access.key, session_id).await {
                Ok(session) => session,
                Err(error) => return Err(self.stripe_trouble(&access, "checkout_session.read", &error).await),
            };
            let intent = match &session.provider_payment_intent_id {
                None => None,
                Some(intent) => match self.0.stripe.payment_intent(&access.key, intent).await {
                    Ok(intent) => Some(intent),
                    Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.read", &error).await),
                },
            };
            let mut work = self.begin_by(hand).await?;
            let mut scene = Scene::load(&mut work, id).await?;
            if scene.payment.version != payment.version {
                work.abandon().await?;
                continue;
            }
            scene.news(&mut work, News::Link(&session, intent.as_ref())).await?;
            work.commit().await?;
            return Ok(Some(session));
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while its link is read")))
    }

    /// The job of a payment that has been moving for long, or whose customer's time is over.
    pub(in crate::app) async fn reconcile_payment(&self, lease: &Lease) -> Result<()> {
        let (hand, id) = (Hand::Job(lease), PaymentId::from(lease.object_id));
        let mut tx = self.read(hand.org()).await?;
        let before = store::payments::get(&mut tx, hand.org(), id).await?.map(|payment| payment.state);
        tx.close().await?;
        let mut intent = None;
        if self.refresh_link(hand, id).await?.is_none() {
            intent = self.refresh_payment(hand, id).await?;
        }
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, id).await?;
        if before != Some(scene.payment.state) {
            mended("payment", 1);
        }
        if !scene.payment.is_moving() {
            return work.end(Outcome::Done).await;
        }
        let soon = work.now + Duration::MINUTE;
        // The sweep comes by in any case; these have a time of their own. A link that was used has none any more: the bank
        // has it, for days.
        let unused = scene.open_link().filter(|_| scene.payment.state == PaymentState::RequiresAction);
        let mut next = unused.and_then(|link| link.expire_time).map(|end| (end + LINK_END_PERIOD).max(soon));
        if let Some(asked) = scene.payment.action_time {
            let end = asked + self.0.settings.action_period;
            let objection = scene.payment.objection(scene.attempt.as_ref(), &Errand::EndAction);
            if end <= work.now && objection.is_none() {
                scene.news(&mut work, News::Asked(Errand::EndAction)).await?;
            } else {
                next = Some(end.max(soon));
            }
        }
        // An attempt without a trace on the intent may never have been sent, or its key may be dead: that is for the job
        // that sends.
        let is_open = scene.attempt.as_ref().is_some_and(|attempt| attempt.is_open() && attempt.link().is_none());
        if scene.payment.errand.is_some() || (is_open && intent.is_none_or(|intent| intent.waits())) {
            work.ask(JobKind::SubmitPayment, id.0);
        }
        work.end(next.map_or(Outcome::Done, Outcome::Again)).await
    }
}
