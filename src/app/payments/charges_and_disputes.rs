//! Charges, refunds and disputes: facts about a payment that never change its state (P7). Refunds and disputes are read
//! from Stripe rather than taken from events, so that an old snapshot never overwrites a newer one (P6).

use super::PaymentContext;
use super::refresh::READS_MAX;
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::app::{App, StripeAccount, event_payloads};
use crate::domain::jobs::Lease;
use crate::domain::payments::{Notice, Payment, PaymentInput, ReceivedMoney};
use crate::domain::refunds::{Charge, Refund};
use crate::domain::signals::{DisputeSnapshot, IntentSnapshot, RefundSnapshot};
use crate::domain::{Error, IntegrationId, PaymentId, RefundId, Result};
use crate::stripe::Operation;
use crate::{store, stripe};

/// What to read about a payment's money.
pub(in crate::app) enum ReadTarget<'a> {
    /// All refunds of a charge, by Stripe's `ch_…` id.
    RefundsOf(&'a str),
    /// A refund, by Stripe's `re_…` id.
    Refund(&'a str),
    /// A dispute, by Stripe's id.
    Dispute(&'a str),
}

/// The snapshots that were read.
#[derive(Default)]
struct MoneySnapshots {
    refunds: Vec<RefundSnapshot>,
    dispute: Option<DisputeSnapshot>,
}

impl ReadTarget<'_> {
    fn operation(&self) -> Operation {
        match self {
            Self::RefundsOf(_) => Operation::RefundList,
            Self::Refund(_) => Operation::RefundRead,
            Self::Dispute(_) => Operation::DisputeRead,
        }
    }

    async fn read(&self, stripe: &stripe::Client, key: &stripe::ApiKey) -> Result<MoneySnapshots, stripe::Error> {
        Ok(match self {
            Self::RefundsOf(charge) => {
                MoneySnapshots { refunds: stripe.refunds_of(key, charge).await?, ..MoneySnapshots::default() }
            }
            Self::Refund(id) => {
                MoneySnapshots { refunds: vec![stripe.refund(key, id).await?], ..MoneySnapshots::default() }
            }
            Self::Dispute(id) => {
                MoneySnapshots { dispute: Some(stripe.dispute(key, id).await?), ..MoneySnapshots::default() }
            }
        })
    }
}

impl App {
    /// Reads refunds or a dispute of a payment, and stores what is new. The read counts only if the payment did not
    /// change meanwhile, since each of these facts increases its version: otherwise it is repeated (P6).
    pub(in crate::app) async fn read_refunds_or_dispute(
        &self,
        lease: &Lease,
        id: PaymentId,
        account: &StripeAccount,
        target: &ReadTarget<'_>,
    ) -> Result<()> {
        let org = lease.organization_id;
        for _ in 0..READS_MAX {
            let mut tx = self.read(org).await?;
            let payment = store::payments::get(&mut tx, org, id).await?;
            tx.close().await?;
            let version = payment.ok_or_else(|| Error::not_found("payment", id))?.version;
            let found = target.read(&self.0.stripe, &account.key).await;
            let found = self.checked(account, target.operation(), found).await?;
            let Some((mut work, context)) = self.begin_as_of(Actor::Job(lease), id, version).await? else { continue };
            self.write_refunds_or_dispute(&mut work, context, account.integration_id, found).await?;
            return work.commit().await;
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while its refunds are read")))
    }

    async fn write_refunds_or_dispute(
        &self,
        work: &mut UnitOfWork,
        mut context: PaymentContext,
        integration: IntegrationId,
        found: MoneySnapshots,
    ) -> Result<()> {
        let (org, now, id) = (work.org, work.now, context.payment.id);
        let mut changed = Vec::new();
        for snapshot in &found.refunds {
            changed.extend(self.write_refund(work, &context.payment, integration, snapshot).await?);
        }
        if !changed.is_empty() {
            context.update_refunded(work).await?;
        }
        for refund in changed {
            work.record_event(event_payloads::refund_updated(&context.view(), &refund));
        }
        if let Some(dispute) = found.dispute
            && let Some(before) =
                store::charges_and_disputes::upsert_dispute(&mut work.tx, org, id, &dispute, now).await?
        {
            store::payments::save(&mut work.tx, &mut context.payment, now).await?;
            work.record_events(event_payloads::dispute_updated(&context.view(), &dispute, &before));
        }
        Ok(())
    }

    /// Stores a refund's snapshot: in the row of the request that it answers, or in a row of its own. Returns `None` if
    /// nothing is new.
    async fn write_refund(
        &self,
        work: &mut UnitOfWork,
        payment: &Payment,
        integration: IntegrationId,
        snapshot: &RefundSnapshot,
    ) -> Result<Option<Refund>> {
        let (org, now) = (work.org, work.now);
        if let Some(mut refund) = store::refunds::find_reported(&mut work.tx, org, payment.id, snapshot).await? {
            let before = refund.clone();
            refund.apply(snapshot);
            if refund == before {
                return Ok(None);
            }
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            return Ok(Some(refund));
        }
        let requested = snapshot.refund_id.map(RefundId::from).filter(|_| snapshot.organization_id == Some(org.0));
        let mut refund = Refund::reported(self.clock().new_id().into(), payment, integration, snapshot, now);
        if let Some(id) = requested {
            if store::refunds::get(&mut work.tx, org, id).await.is_ok() {
                // Its request has another refund already: Stripe did execute the request of a key that counted as
                // useless.
                tracing::error!(
                    refund.id = %snapshot.id, payment.id = %payment.id, "Stripe made two refunds for one request"
                );
            } else {
                // Its row was lost.
                (refund.id, refund.request_id) = (id, snapshot.request_id.clone());
                store::request_ids::mark_recovered(&mut work.tx, org, id.0, now).await?;
            }
        }
        store::refunds::insert(&mut work.tx, &refund).await?;
        Ok(Some(refund))
    }
}

impl PaymentContext {
    /// Updates the amount refunded of the payment.
    async fn update_refunded(&mut self, work: &mut UnitOfWork) -> Result<()> {
        let payment = &mut self.payment;
        let total = store::refunds::total(&mut work.tx, work.org, payment.id, payment.amount.currency).await?;
        // Of a payment that is not settled only parts can be refunded: they are due again.
        payment.part_received = (payment.part_received - (total - payment.amount_refunded).max(0)).max(0);
        payment.amount_refunded = total;
        store::payments::save(&mut work.tx, payment, work.now).await
    }

    /// The payment is settled: stores the charge, so that it can be refunded.
    pub(super) async fn record_settlement(
        &mut self,
        work: &mut UnitOfWork,
        receipt: &ReceivedMoney,
        is_own: bool,
    ) -> Result<()> {
        let intent = &receipt.provider_payment_intent_id;
        // Its event may have arrived before the intent was known to be the payment's own, and have been counted as
        // another intent's.
        let counted = store::charges_and_disputes::overpaid_by(&mut work.tx, work.org, intent).await?;
        if is_own && counted != 0 {
            self.payment.amount_received -= counted;
            store::payments::save(&mut work.tx, &mut self.payment, work.now).await?;
        }
        let charge = NewCharge { integration_id: self.payment.integration_id, receipt, settles: true };
        record_charge(work, self.payment.id, charge).await
    }

    /// Another intent than the payment's own has taken money for its invoice: recorded once, and reported (P12). If it
    /// counts for the invoice, it may settle the payment; a settled payment stays as it is (P7).
    pub(in crate::app) async fn other_intent_paid(
        &mut self,
        work: &mut UnitOfWork,
        integration: IntegrationId,
        intent: &IntentSnapshot,
        counts: bool,
    ) -> Result<()> {
        let (org, now, id, receipt) = (work.org, work.now, self.payment.id, ReceivedMoney::of(intent));
        if !store::charges_and_disputes::insert_overpayment(&mut work.tx, org, id, &receipt, now).await? {
            return Ok(());
        }
        let charge = NewCharge { integration_id: integration, receipt: &receipt, settles: false };
        record_charge(work, id, charge).await?;
        if counts && !self.payment.state().is_final() {
            return self.apply(work, PaymentInput::OtherIntentPaid(intent)).await.map(|_| ());
        }
        if intent.amount.currency == self.payment.amount.currency {
            self.payment.amount_received += receipt.amount.minor_units;
        }
        store::payments::save(&mut work.tx, &mut self.payment, now).await?;
        work.record_event(event_payloads::notice_event(&self.view(), &Notice::Overpaid(receipt)));
        Ok(())
    }
}

/// A charge to store.
#[derive(Clone, Copy)]
struct NewCharge<'a> {
    integration_id: IntegrationId,
    receipt: &'a ReceivedMoney,
    /// Whether it settles the payment.
    settles: bool,
}

async fn record_charge(work: &mut UnitOfWork, payment: PaymentId, new: NewCharge<'_>) -> Result<()> {
    let NewCharge { integration_id, receipt, settles } = new;
    let Some(provider_charge_id) = receipt.provider_charge_id.clone() else { return Ok(()) };
    let charge = Charge { provider_charge_id, integration_id, amount: receipt.amount, settles };
    let (org, now) = (work.org, work.now);
    store::charges_and_disputes::insert_charge(&mut work.tx, org, payment, &charge, now).await
}
