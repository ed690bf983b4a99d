//! Reads of a payment's state from Stripe. In every doubt the intent decides: what it shows goes through the same
//! `apply` as all other inputs.

use time::Duration;

use super::PaymentContext;
use super::links::LINK_END_PERIOD;
use crate::app::reconcile::record_repair;
use crate::app::unit_of_work::{Actor, UnitOfWork};
use crate::app::{App, StripeAccount};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::{Attempt, PaymentInput, PaymentState, PendingOperation};
use crate::domain::signals::{IntentSnapshot, SessionSnapshot};
use crate::domain::{Error, OrganizationId, PaymentId, Result};
use crate::store;
use crate::stripe::Operation;

/// How often a read is repeated if the payment changes meanwhile.
pub(super) const READS_MAX: usize = 5;

impl App {
    /// Reads the payment's intent and applies it. The read counts only if the payment did not change meanwhile:
    /// otherwise it may be older than our state, and is repeated (P6).
    pub(in crate::app) async fn refresh_payment(
        &self,
        actor: Actor<'_>,
        id: PaymentId,
    ) -> Result<Option<IntentSnapshot>> {
        let org = actor.org();
        for _ in 0..READS_MAX {
            let Some((version, account, intent_id)) = self.intent_of(org, id).await? else { return Ok(None) };
            let intent = self.read_intent(&account, &intent_id).await?;
            let Some((mut work, mut context)) = self.begin_as_of(actor, id, version).await? else { continue };
            context.apply(&mut work, PaymentInput::Intent(&intent)).await?;
            work.commit().await?;
            return Ok(Some(intent));
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while it is read")))
    }

    /// Begins a change of a payment. `None` if it no longer has the version that it had before a call to Stripe: the
    /// answer may be older than our state (P6).
    pub(in crate::app) async fn begin_as_of(
        &self,
        actor: Actor<'_>,
        id: PaymentId,
        version: i64,
    ) -> Result<Option<(UnitOfWork, PaymentContext)>> {
        let mut work = self.begin_as(actor).await?;
        let context = PaymentContext::load(&mut work, id).await?;
        if context.payment.version == version {
            return Ok(Some((work, context)));
        }
        work.rollback().await?;
        Ok(None)
    }

    async fn intent_of(&self, org: OrganizationId, id: PaymentId) -> Result<Option<(i64, StripeAccount, String)>> {
        let mut tx = self.read(org).await?;
        let payment = store::payments::get(&mut tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id))?;
        tx.close().await?;
        let Some(intent_id) = payment.provider_payment_intent_id else { return Ok(None) };
        Ok(Some((payment.version, self.stripe_account(org, payment.integration_id).await?, intent_id)))
    }

    /// Reads a PaymentIntent.
    pub(in crate::app) async fn read_intent(&self, account: &StripeAccount, id: &str) -> Result<IntentSnapshot> {
        let read = self.0.stripe.payment_intent(&account.key, id).await;
        self.checked(account, Operation::PaymentIntentRead, read).await
    }

    /// Reads the session of the payment's open link, and the intent that Stripe created for it, and applies them.
    /// Without an open link, or for another session, nothing changes.
    pub(in crate::app) async fn refresh_link(
        &self,
        actor: Actor<'_>,
        id: PaymentId,
    ) -> Result<Option<SessionSnapshot>> {
        let org = actor.org();
        for _ in 0..READS_MAX {
            let mut tx = self.read(org).await?;
            let payment =
                store::payments::get(&mut tx, org, id).await?.ok_or_else(|| Error::not_found("payment", id))?;
            let attempt = store::attempts::get(&mut tx, org, id, payment.attempt_number).await?;
            tx.close().await?;
            let link = attempt.as_ref().and_then(Attempt::open_link);
            let Some(session_id) = link.and_then(|link| link.provider_session_id.as_deref()) else { return Ok(None) };
            let account = self.stripe_account(org, payment.integration_id).await?;
            let session = self.read_session(&account, session_id).await?;
            let intent = match &session.provider_payment_intent_id {
                None => None,
                Some(intent) => Some(self.read_intent(&account, intent).await?),
            };
            let Some((mut work, mut context)) = self.begin_as_of(actor, id, payment.version).await? else { continue };
            context.apply(&mut work, PaymentInput::Link(&session, intent.as_ref())).await?;
            work.commit().await?;
            return Ok(Some(session));
        }
        Err(Error::internal(anyhow::anyhow!("the payment {id} keeps changing while its link is read")))
    }

    /// Runs the job of a payment that has been in flight for long, or whose customer's time to act is over.
    pub(in crate::app) async fn reconcile_payment(&self, lease: &Lease) -> Result<()> {
        let (actor, id) = (Actor::Job(lease), PaymentId::from(lease.object_id));
        let mut tx = self.read(actor.org()).await?;
        let before = store::payments::get(&mut tx, actor.org(), id).await?.map(|payment| payment.state());
        tx.close().await?;
        let mut intent = None;
        if self.refresh_link(actor, id).await?.is_none() {
            intent = self.refresh_payment(actor, id).await?;
        }
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, id).await?;
        if before != Some(context.payment.state()) {
            record_repair("payment", 1);
        }
        if !context.payment.is_in_flight() {
            return work.end(Outcome::Done).await;
        }
        let soon = work.now + Duration::MINUTE;
        // The sweep covers all payments; these also have a time of their own. A link that was used has none any more:
        // the bank is processing it, for days.
        let unused = context.open_link().filter(|_| context.payment.state() == PaymentState::RequiresAction);
        let mut next = unused.and_then(|link| link.expire_time).map(|end| (end + LINK_END_PERIOD).max(soon));
        if let Some(action_time) = context.payment.action_time() {
            let end = action_time + self.0.settings.action_period;
            let rejection = context.payment.rejection(context.attempt.as_ref(), &PendingOperation::ExpireAction);
            if end <= work.now && rejection.is_none() {
                context.apply(&mut work, PaymentInput::Requested(PendingOperation::ExpireAction)).await?;
            } else {
                next = Some(end.max(soon));
            }
        }
        // An attempt without a trace on the intent may never have been sent, or its key may be useless: the submit job
        // decides.
        let is_open = context.attempt.as_ref().is_some_and(|attempt| attempt.is_open() && attempt.link().is_none());
        if context.payment.pending_operation.is_some()
            || (is_open && intent.is_none_or(|intent| intent.awaits_confirmation()))
        {
            work.enqueue(JobKind::SubmitPayment, id.0);
        }
        work.end(next.map_or(Outcome::Done, Outcome::RunAgain)).await
    }
}
