//! Asking Stripe about a payment. The intent is the judge in every doubt: whatever it shows goes through the same
//! `apply` as everything else.

use super::Scene;
use crate::app::reconcile::mended;
use crate::app::{Access, App};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::{AttemptState, News};
use crate::domain::signals::IntentSnapshot;
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::store;

/// How often a read is repeated because the payment changed under it.
const READS_MAX: usize = 5;

impl App {
    /// Reads the payment's intent and takes in what it says. The read counts only if the payment did not change while it
    /// was under way: else what was read may be older than what is known, and it is read again (P6).
    pub(in crate::app) async fn refresh_payment(&self, lease: &Lease, id: PaymentId) -> Result<Option<IntentSnapshot>> {
        let org = lease.organization_id;
        for _ in 0..READS_MAX {
            let Some((version, access, intent_id)) = self.intent_of(org, id).await? else { return Ok(None) };
            let intent = match self.0.stripe.payment_intent(&access.key, &intent_id).await {
                Ok(intent) => intent,
                Err(error) => return Err(self.stripe_trouble(&access, "payment_intent.read", &error).await),
            };
            let mut work = self.begin_leased(lease).await?;
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

    /// The job of a payment that has been moving for long.
    pub(in crate::app) async fn reconcile_payment(&self, lease: &Lease) -> Result<()> {
        let id: PaymentId = lease.object_id.into();
        let mut tx = self.read(lease.organization_id).await?;
        let before = store::payments::get(&mut tx, lease.organization_id, id).await?.map(|payment| payment.state);
        tx.close().await?;
        let intent = self.refresh_payment(lease, id).await?;
        let mut work = self.begin_leased(lease).await?;
        let scene = Scene::load(&mut work, id).await?;
        // An attempt without a trace on the intent may never have been sent, or its key may be dead: that is for the job
        // that sends.
        let is_moving = scene.payment.is_moving();
        let is_open = scene.attempt.as_ref().is_some_and(|attempt| attempt.state == AttemptState::Open);
        if is_moving && is_open && intent.is_none_or(|intent| intent.waits()) {
            work.ask(JobKind::SubmitPayment, id.0);
        }
        work.end(Outcome::Done).await?;
        if before != Some(scene.payment.state) {
            mended("payment", 1);
        }
        Ok(())
    }
}
