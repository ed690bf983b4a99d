//! What stands beside a payment's state and never changes it (P7): charges that took money, refunds, disputes. Refunds
//! and disputes are read from Stripe rather than believed, so that an old snapshot never overwrites a newer one (P6).

use super::Scene;
use super::refresh::READS_MAX;
use crate::app::work::Work;
use crate::app::{Access, App, tell};
use crate::domain::jobs::Lease;
use crate::domain::payments::{News, Notice, Receipt};
use crate::domain::refunds::{Charge, Refund};
use crate::domain::signals::{DisputeSnapshot, IntentSnapshot, RefundSnapshot};
use crate::domain::{Error, IntegrationId, PaymentId, RefundId, Result};
use crate::{store, stripe};

/// What is to be read about a payment's money.
pub(in crate::app) enum Fetch<'a> {
    /// All refunds of a charge, by Stripe's `ch_…`.
    RefundsOf(&'a str),
    /// A refund, by Stripe's `re_…`.
    Refund(&'a str),
    /// A dispute, by Stripe's id.
    Dispute(&'a str),
}

/// What was read.
#[derive(Default)]
struct Found {
    refunds: Vec<RefundSnapshot>,
    dispute: Option<DisputeSnapshot>,
}

impl Fetch<'_> {
    /// The call, as operators and `payment_provider.error` name it.
    fn action(&self) -> &'static str {
        match self {
            Self::RefundsOf(_) => "refund.list",
            Self::Refund(_) => "refund.read",
            Self::Dispute(_) => "dispute.read",
        }
    }

    async fn read(&self, stripe: &stripe::Client, key: &stripe::ApiKey) -> Result<Found, stripe::Error> {
        Ok(match self {
            Self::RefundsOf(charge) => Found { refunds: stripe.refunds_of(key, charge).await?, ..Found::default() },
            Self::Refund(id) => Found { refunds: vec![stripe.refund(key, id).await?], ..Found::default() },
            Self::Dispute(id) => Found { dispute: Some(stripe.dispute(key, id).await?), ..Found::default() },
        })
    }
}

impl App {
    /// Reads refunds or a dispute of a payment, and takes in what is new. What was read counts only if the payment did not
    /// change meanwhile, for every one of these facts raises its version: else it is read again (P6).
    pub(in crate::app) async fn read_settlement(
        &self,
        lease: &Lease,
        id: PaymentId,
        access: &Access,
        fetch: &Fetch<'_>,
    ) -> Result<()> {
        let org = lease.organization_id;
        for _ in 0..READS_MAX {
            let mut tx = self.read(org).await?;
            let version = store::payments::get(&mut tx, org, id).await?.map(|payment| payment.version);
            tx.close().await?;
            let found = match fetch.read(&self.0.stripe, &access.key).await {
                Ok(found) => found,
                Err(error) => return Err(self.stripe_trouble(access, fetch.action(), &error).await),
            };
            let mut work = self.begin_leased(lease).await?;
            let scene = Scene::load(&mut work, id).await?;
            if Some(scene.payment.version) != version {
                work.abandon().await?;
                continue;
            }
            self.write_settlement(&mut work, scene, access.integration, found).await?;
            return work.commit().await;
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while its refunds are read")))
    }

    async fn write_settlement(
        &self,
        work: &mut Work,
        mut scene: Scene,
        integration: IntegrationId,
        found: Found,
    ) -> Result<()> {
        let (org, now, id) = (work.org, work.now, scene.payment.id);
        let mut changed = Vec::new();
        for told in &found.refunds {
            changed.extend(self.write_refund(work, id, integration, told).await?);
        }
        if !changed.is_empty() {
            scene.update_refunded(work).await?;
        }
        for refund in changed {
            work.tell(tell::refund_updated(&scene.about(), &refund));
        }
        if let Some(dispute) = found.dispute
            && let Some(before) = store::settlements::upsert_dispute(&mut work.tx, org, id, &dispute, now).await?
        {
            store::payments::save(&mut work.tx, &mut scene.payment, now).await?;
            work.tell_all(tell::dispute_updated(&scene.about(), &dispute, &before));
        }
        Ok(())
    }

    /// Writes what Stripe tells of a refund: into the row of the request that it answers, or into one of its own. `None`
    /// if nothing about it is new.
    async fn write_refund(
        &self,
        work: &mut Work,
        payment: PaymentId,
        integration: IntegrationId,
        told: &RefundSnapshot,
    ) -> Result<Option<Refund>> {
        let (org, now) = (work.org, work.now);
        if let Some(mut refund) = store::refunds::find_told(&mut work.tx, org, payment, told).await? {
            let before = refund.clone();
            tell_of(&mut refund, told);
            if refund == before {
                return Ok(None);
            }
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            return Ok(Some(refund));
        }
        let request = told.refund_id.map(RefundId::from);
        if let Some(request) = request
            && store::refunds::get(&mut work.tx, org, request).await.is_ok()
        {
            // Its request has another refund already: Stripe did the work of a key that was given up for dead, after all.
            tracing::error!(refund.id = %told.id, payment.id = %payment, "Stripe made a second refund for one request");
        }
        let refund = new_refund(work, self.clock().new_id().into(), payment, integration, told);
        store::refunds::insert(&mut work.tx, &refund).await?;
        Ok(Some(refund))
    }
}

/// A refund made at Stripe by somebody else.
fn new_refund(
    work: &Work,
    id: RefundId,
    payment: PaymentId,
    integration: IntegrationId,
    told: &RefundSnapshot,
) -> Refund {
    let mut refund = Refund {
        id,
        organization_id: work.org,
        integration_id: integration,
        payment_id: payment,
        provider_refund_id: None,
        provider_charge_id: None,
        amount: None,
        currency: told.amount.currency,
        status: String::new(),
        failure_reason: None,
        unknown_since: None,
        dead_key_time: None,
        create_time: work.now,
        update_time: work.now,
    };
    tell_of(&mut refund, told);
    refund
}

/// Takes over what Stripe tells.
fn tell_of(refund: &mut Refund, told: &RefundSnapshot) {
    refund.provider_refund_id = Some(told.id.clone());
    refund.provider_charge_id = told.provider_charge_id.clone().or_else(|| refund.provider_charge_id.take());
    refund.amount = Some(told.amount.minor_units);
    refund.currency = told.amount.currency;
    refund.status.clone_from(&told.status);
    refund.failure_reason.clone_from(&told.failure_reason);
    refund.unknown_since = None;
    refund.dead_key_time = None;
}

impl Scene {
    /// Counts anew what went back of the payment's money.
    async fn update_refunded(&mut self, work: &mut Work) -> Result<()> {
        let payment = &mut self.payment;
        let total = store::refunds::total(&mut work.tx, work.org, payment.id, payment.amount.currency).await?;
        // Of a payment that is not settled only parts can go back: so much remains to be paid again.
        payment.part_received = (payment.part_received - (total - payment.amount_refunded).max(0)).max(0);
        payment.amount_refunded = total;
        store::payments::save(&mut work.tx, payment, work.now).await
    }

    /// The payment is settled: the charge is noted, so that it can be refunded.
    pub(super) async fn note_settlement(&mut self, work: &mut Work, receipt: &Receipt, is_own: bool) -> Result<()> {
        let intent = &receipt.provider_payment_intent_id;
        // Its news may have come before it was known to be the payment's own, and have counted as somebody else's.
        let counted = store::settlements::overpaid_by(&mut work.tx, work.org, intent).await?;
        if is_own && counted != 0 {
            self.payment.amount_received -= counted;
            store::payments::save(&mut work.tx, &mut self.payment, work.now).await?;
        }
        note_charge(work, self.payment.id, self.payment.integration_id, receipt, true).await
    }

    /// Another intent than the payment's own has taken money for its invoice: noted once, and reported (P12). If it counts
    /// for the invoice, it may settle the payment; one that is settled stays as it is (P7).
    pub(in crate::app) async fn paid_beside(
        &mut self,
        work: &mut Work,
        integration: IntegrationId,
        intent: &IntentSnapshot,
        counts: bool,
    ) -> Result<()> {
        let (org, now, amount, id) = (work.org, work.now, intent.amount_received, self.payment.id);
        if !store::settlements::insert_overpayment(&mut work.tx, org, id, &intent.id, amount, now).await? {
            return Ok(());
        }
        let receipt = Receipt::of(intent);
        note_charge(work, id, integration, &receipt, false).await?;
        if counts && !self.payment.state.is_final() {
            return self.news(work, News::PaidBeside(intent)).await.map(|_| ());
        }
        if intent.amount.currency == self.payment.amount.currency {
            self.payment.amount_received += amount;
        }
        store::payments::save(&mut work.tx, &mut self.payment, now).await?;
        work.tell(tell::noticed(&self.about(), &Notice::Overpaid(receipt)));
        Ok(())
    }
}

async fn note_charge(
    work: &mut Work,
    payment: PaymentId,
    integration_id: IntegrationId,
    receipt: &Receipt,
    settles: bool,
) -> Result<()> {
    let Some(provider_charge_id) = receipt.provider_charge_id.clone() else { return Ok(()) };
    let charge = Charge { provider_charge_id, integration_id, amount: receipt.amount, settles };
    let (org, now) = (work.org, work.now);
    store::settlements::insert_charge(&mut work.tx, org, payment, &charge, now).await
}
