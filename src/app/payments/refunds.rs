//! Refunds on request. A call accepts one: a row of its own, whose id Stripe's refund will bear as a mark. A job sends it,
//! with a frozen body under a key of its own (P2): one request never makes two refunds.
//!
//! Whatever the answer, the refund is read before its state is believed, for a repeated key answers with what was true
//! when it was first sent. A key that says nothing any more (a stored 500, or older than 20 h) is settled by the list of
//! the charge's refunds, where ours bears its mark; if it is not there after the reads that P2 names, another key follows:
//! for a part of a charge only once the first key is forgotten, since a second part would go through.

use time::Duration;

use super::{Fetch, Scene, hash_request};
use crate::app::reconcile::mended;
use crate::app::{Access, App, KEY_AGE_MAX, tell};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::DEAD_KEY_READS;
use crate::domain::refunds::{NewRefund, Refund};
use crate::domain::{Error, OrganizationId, Page, PaymentId, RefundId, Result};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::{store, stripe};

/// How long Stripe keeps a key at least.
const KEY_KEPT: Duration = Duration::DAY;

impl App {
    /// Accepts a refund. The answer is its present state: `pending` when it is new.
    pub async fn refund_payment(&self, org: OrganizationId, request_id: String, new: NewRefund) -> Result<Refund> {
        let hash = refund_hash(&new);
        let mut work = self.begin(org).await?;
        store::requests::claim(&mut work.tx, org, &request_id).await?;
        if let Some(known) = store::requests::known(&mut work.tx, org, &request_id, &hash).await? {
            return store::refunds::get(&mut work.tx, org, known.into()).await;
        }
        let payment = store::payments::lock(&mut work.tx, org, new.payment_id).await?;
        let charges = store::settlements::charges(&mut work.tx, &payment).await?;
        let charge = new.choose(&charges)?;
        let integration = store::integrations::share(&mut work.tx, org, charge.integration_id).await?;
        if integration.state == IntegrationState::Disconnected {
            let message = format!("the integration {} that took the money is disconnected", integration.code);
            return Err(Error::precondition(
                "INTEGRATION_DISCONNECTED",
                format!("integration/{}", integration.id),
                format!("{message}; refund it in Stripe's dashboard"),
            ));
        }
        let refund = Refund {
            id: self.clock().new_id().into(),
            organization_id: org,
            integration_id: charge.integration_id,
            payment_id: payment.id,
            provider_refund_id: None,
            provider_charge_id: Some(charge.provider_charge_id.clone()),
            amount: new.amount.map(|amount| amount.minor_units),
            currency: charge.amount.currency,
            status: "pending".to_owned(),
            failure_reason: None,
            unknown_since: None,
            dead_key_time: None,
            create_time: work.now,
            update_time: work.now,
        };
        store::refunds::insert(&mut work.tx, &refund).await?;
        store::requests::take(&mut work.tx, org, &request_id, &hash, refund.id.0, work.now).await?;
        work.ask(JobKind::RefundPayment, refund.id.0);
        work.commit().await?;
        Ok(refund)
    }

    /// A refund.
    pub async fn get_refund(&self, org: OrganizationId, id: RefundId) -> Result<Refund> {
        store::refunds::get(&mut *self.read(org).await?, org, id).await
    }

    /// A page of a payment's refunds, newest first: those asked for here, and those made by hand at Stripe.
    pub async fn list_refunds(&self, org: OrganizationId, payment: PaymentId, page: Page) -> Result<Vec<Refund>> {
        let mut tx = self.read(org).await?;
        if store::payments::get(&mut tx, org, payment).await?.is_none() {
            return Err(Error::not_found("payment", payment));
        }
        store::refunds::list(&mut tx, org, payment, page).await
    }

    /// The job of a refund that is to be made at Stripe, or that has been moving for long.
    pub(in crate::app) async fn finish_refund(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, RefundId::from(lease.object_id));
        let mut work = self.begin_leased(lease).await?;
        let refund = store::refunds::get(&mut work.tx, org, id).await?;
        if !refund.is_moving() {
            return work.end(Outcome::Done).await;
        }
        let newest = store::requests::newest_frozen(&mut work.tx, org, Purpose::Refund, id.0).await?;
        match store::integrations::get(&mut work.tx, org, refund.integration_id).await?.state {
            IntegrationState::Disconnected => {
                work.abandon().await?;
                return self.give_refund_up(lease, &refund, newest.is_some()).await;
            }
            IntegrationState::Paused => {
                return work.end(Outcome::Retry("the integration is paused until its key is mended".to_owned())).await;
            }
            IntegrationState::Connecting | IntegrationState::Active | IntegrationState::Disconnecting => {}
        }
        if let Some(provider_id) = &refund.provider_refund_id {
            work.abandon().await?;
            let access = self.access(org, refund.integration_id).await?;
            return self.settle_refund(lease, &refund, &access, provider_id).await;
        }
        let frozen = if let Some(frozen) = newest {
            frozen
        } else {
            // Frozen only now, so that the key's age counts from its first send; from here on it may have been sent.
            let payment = store::payments::get(&mut work.tx, org, refund.payment_id).await?;
            let payment = payment.ok_or_else(|| Error::not_found("payment", refund.payment_id))?;
            work.freeze(Purpose::Refund, id.0, 1, stripe::refunds::create_body(&refund, &payment.invoice_id)).await?
        };
        let now = work.now;
        work.commit().await?;
        let access = self.access(org, refund.integration_id).await?;
        if refund.dead_key_time.is_some() || now - frozen.create_time > KEY_AGE_MAX {
            return self.settle_dead_key(lease, refund, &access, frozen).await;
        }
        self.send_refund(lease, refund, &access, frozen).await
    }

    /// Sends the frozen body under its key.
    async fn send_refund(
        &self,
        lease: &Lease,
        mut refund: Refund,
        access: &Access,
        frozen: FrozenRequest,
    ) -> Result<()> {
        let answer = self.0.stripe.create_refund(&access.key, &frozen.idempotency_key, &frozen.body).await;
        let error = match answer {
            Ok(made) => return self.settle_refund(lease, &refund, access, &made.id).await,
            Err(error) => error,
        };
        match error.verdict() {
            stripe::Verdict::Refused => self.refund_refused(lease, &refund, access, &error).await,
            stripe::Verdict::NotDone => Err(self.stripe_trouble(access, "refund.create", &error).await),
            stripe::Verdict::Unknown => {
                if matches!(error, stripe::Error::Unknown { replayed: true, .. }) {
                    return self.settle_dead_key(lease, refund, access, frozen).await;
                }
                let mut work = self.begin_leased(lease).await?;
                refund.unknown_since.get_or_insert(work.now);
                store::refunds::note_doubt(&mut work.tx, &refund).await?;
                work.end(Outcome::Retry(error.to_string())).await
            }
        }
    }

    /// Stripe has made the refund: what it is now is read, and the job rests, or looks again should nobody tell.
    async fn settle_refund(&self, lease: &Lease, refund: &Refund, access: &Access, provider_id: &str) -> Result<()> {
        self.read_settlement(lease, refund.payment_id, access, &Fetch::Refund(provider_id)).await?;
        let mut work = self.begin_leased(lease).await?;
        let now_refund = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        if refund.provider_refund_id.is_some() && now_refund.status != refund.status {
            mended("refund", 1);
        }
        // One that still moves is asked about by the sweep, should nobody tell.
        work.end(Outcome::Done).await
    }

    /// Looks through the charge's refunds for the one with our mark; its Stripe id.
    async fn find_refund(&self, access: &Access, refund: &Refund) -> Result<Option<String>> {
        let charge = refund.provider_charge_id.as_deref().unwrap_or_default();
        match self.0.stripe.refunds_of(&access.key, charge).await {
            Ok(found) => Ok(found.into_iter().find(|found| found.refund_id == Some(refund.id.0)).map(|found| found.id)),
            // The charge is not there, so nothing of it went back.
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(self.stripe_trouble(access, "refund.list", &error).await),
        }
    }

    /// The newest key will never say what became of the request. The list settles it; where the mark is not in it, Stripe
    /// may still roll the work forward, so it is read a few times before the same body goes under a new key (P2).
    async fn settle_dead_key(
        &self,
        lease: &Lease,
        mut refund: Refund,
        access: &Access,
        frozen: FrozenRequest,
    ) -> Result<()> {
        let now = self.clock().now();
        if let Some(provider_id) = self.find_refund(access, &refund).await? {
            return self.settle_refund(lease, &refund, access, &provider_id).await;
        }
        let dead = *refund.dead_key_time.get_or_insert(now);
        refund.unknown_since.get_or_insert(now);
        // Of a part, a second one would go through beside the first: not before Stripe has forgotten the old key.
        let last_send = dead.min(frozen.create_time + KEY_AGE_MAX);
        let last_read = refund.amount.map(|_| last_send + KEY_KEPT);
        let reads = DEAD_KEY_READS.iter().map(|wait| dead + *wait).chain(last_read);
        let next_read = reads.filter(|read| *read > now).min();
        let mut work = self.begin_leased(lease).await?;
        let next = if let Some(next_read) = next_read {
            next_read
        } else {
            work.freeze(Purpose::Refund, refund.id.0, frozen.number + 1, frozen.body).await?;
            refund.dead_key_time = None;
            work.now
        };
        store::refunds::note_doubt(&mut work.tx, &refund).await?;
        work.end(Outcome::Again(next)).await
    }

    /// Stripe refused, which is its word. But the work of an earlier key may be what is in the way ("already refunded"),
    /// so the list is looked through first.
    async fn refund_refused(
        &self,
        lease: &Lease,
        refund: &Refund,
        access: &Access,
        error: &stripe::Error,
    ) -> Result<()> {
        if let Some(provider_id) = self.find_refund(access, refund).await? {
            return self.settle_refund(lease, refund, access, &provider_id).await;
        }
        let detail = error.detail();
        tracing::info!(refund.id = %refund.id, payment.id = %refund.payment_id, %error, "Stripe refused a refund");
        let reason = match (&detail.code, detail.param.as_deref()) {
            (Some(code), _) => code.clone(),
            (None, Some("amount")) => Refund::MORE_THAN_IS_LEFT.to_owned(),
            (None, _) => detail.error_type.clone().unwrap_or_else(|| "unknown".to_owned()),
        };
        self.fail_refund(lease, refund, reason).await
    }

    async fn fail_refund(&self, lease: &Lease, refund: &Refund, reason: String) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut scene = Scene::load(&mut work, refund.payment_id).await?;
        let mut refund = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        // Stripe may have told of it meanwhile: then that counts.
        if refund.provider_refund_id.is_none() {
            "failed".clone_into(&mut refund.status);
            refund.failure_reason = Some(reason);
            refund.unknown_since = None;
            refund.dead_key_time = None;
            let now = work.now;
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            store::payments::save(&mut work.tx, &mut scene.payment, now).await?;
            work.tell(tell::refund_updated(&scene.about(), &refund));
        }
        work.end(Outcome::Done).await
    }

    /// The integration is disconnected, by force or in the very moment: one that was never sent has failed, of any other
    /// nothing will be heard any more.
    async fn give_refund_up(&self, lease: &Lease, refund: &Refund, was_sent: bool) -> Result<()> {
        if !was_sent && refund.provider_refund_id.is_none() {
            return self.fail_refund(lease, refund, Refund::INTEGRATION_DISCONNECTED.to_owned()).await;
        }
        let mut work = self.begin_leased(lease).await?;
        let scene = Scene::load(&mut work, refund.payment_id).await?;
        let mut refund = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        if refund.is_moving() {
            let now = work.now;
            refund.unknown_since.get_or_insert(now);
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            work.tell(tell::refund_updated(&scene.about(), &refund));
        }
        work.end(Outcome::Done).await
    }
}

fn refund_hash(new: &NewRefund) -> [u8; 32] {
    let charge = new.provider_charge_id.clone().unwrap_or_default();
    let amount = new.amount.map(|amount| amount.to_string()).unwrap_or_default();
    hash_request("RefundPayment", &[&new.payment_id.to_string(), &charge, &amount])
}
