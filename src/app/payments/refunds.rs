//! Refunds on request. A call accepts a refund as a row, whose id is in the metadata of Stripe's refund. A job sends
//! it, with a stored body under a key made of the caller's `request_id` (P2): one request never causes two refunds.
//!
//! Whatever the response, the refund is read before its state is stored, since a repeated key replays what was true
//! when it was first sent. If the key no longer reveals the outcome, the list of the charge's refunds does: the refund
//! of this row has the row's id in its metadata.

use super::{PaymentContext, ReadTarget};
use crate::app::reconcile::record_repair;
use crate::app::request_hash::hash_request;
use crate::app::stripe_requests::{stopped, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount, event_payloads, if_found};
use crate::domain::integrations::IntegrationState;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::refunds::{NewRefund, Refund};
use crate::domain::stripe_requests::{Next, Observed, StripeRequest};
use crate::domain::{Error, OrganizationId, Page, PaymentId, RefundId, Result};
use crate::store::request_ids::CallerRequest;
use crate::stripe::Operation;
use crate::{store, stripe};

impl App {
    /// Accepts a refund. Returns its present state: `pending` if it is new.
    pub async fn create_refund(&self, org: OrganizationId, new: NewRefund) -> Result<Refund> {
        let request = CallerRequest { id: new.request_id.clone(), body_hash: refund_hash(&new) };
        let mut work = self.begin(org).await?;
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        if let Some(known) = store::request_ids::resource_of(&mut work.tx, org, &request).await? {
            return store::refunds::get(&mut work.tx, org, known.into()).await;
        }
        let payment = store::payments::lock(&mut work.tx, org, new.payment_id).await?;
        // Read back from Stripe after the row, and with it the request id, was lost.
        if let Some(refund) = store::refunds::by_request(&mut work.tx, org, payment.id, &request.id).await?
            && store::request_ids::claim_recovered(&mut work.tx, org, refund.id.0).await?
        {
            store::request_ids::insert(&mut work.tx, org, &request, refund.id.0, work.now).await?;
            work.commit().await?;
            return Ok(refund);
        }
        let charges = store::charges_and_disputes::charges(&mut work.tx, &payment).await?;
        let charge = new.select_charge(&charges)?;
        let integration = store::integrations::lock_shared(&mut work.tx, org, charge.integration_id).await?;
        if integration.state == IntegrationState::Disconnected {
            let message = format!("the integration {} that took the money is disconnected", integration.code);
            return Err(Error::precondition(
                "INTEGRATION_DISCONNECTED",
                format!("integration/{}", integration.id),
                format!("{message}; refund it in the Stripe Dashboard"),
            ));
        }
        let refund = Refund::requested(self.clock().new_id().into(), org, &new, charge, work.now);
        store::refunds::insert(&mut work.tx, &refund).await?;
        store::request_ids::insert(&mut work.tx, org, &request, refund.id.0, work.now).await?;
        work.enqueue(JobKind::RefundPayment, refund.id.0);
        work.commit().await?;
        Ok(refund)
    }

    /// Reads a refund, requested here or made in the Stripe Dashboard.
    pub async fn get_refund(&self, org: OrganizationId, id: RefundId) -> Result<Refund> {
        store::refunds::get(&mut *self.read(org).await?, org, id).await
    }

    /// A page of a payment's refunds, newest first: those requested here, and those made in the Stripe Dashboard.
    pub async fn list_refunds(&self, org: OrganizationId, payment: PaymentId, page: Page) -> Result<Vec<Refund>> {
        let mut tx = self.read(org).await?;
        if store::payments::get(&mut tx, org, payment).await?.is_none() {
            return Err(Error::not_found("payment", payment));
        }
        store::refunds::list(&mut tx, org, payment, page).await
    }

    /// Runs the job of a refund that is to be created at Stripe, or has been in flight for long.
    pub(in crate::app) async fn finish_refund(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, RefundId::from(lease.object_id));
        let mut work = self.begin_leased(lease).await?;
        let refund = store::refunds::get(&mut work.tx, org, id).await?;
        if !refund.is_in_flight() {
            return work.end(Outcome::Done).await;
        }
        let target = refund.target();
        let requests = store::stripe_requests::get(&mut work.tx, org, &target).await?;
        let next_generation = requests.next_generation;
        // Callers may use a request id again after 30 days: other requests are those of other refunds.
        let newest = requests.into_open_for(id.0);
        match store::integrations::get(&mut work.tx, org, refund.integration_id).await?.state {
            IntegrationState::Disconnected => {
                work.rollback().await?;
                return self.abandon_refund(lease, &refund, newest.is_some()).await;
            }
            IntegrationState::Paused => {
                return work
                    .end(Outcome::Retry("the integration is paused until its API key is repaired".to_owned()))
                    .await;
            }
            IntegrationState::Connecting | IntegrationState::Active | IntegrationState::Disconnecting => {}
        }
        if let Some(provider_id) = &refund.provider_refund_id {
            work.rollback().await?;
            let account = self.stripe_account(org, refund.integration_id).await?;
            return self.record_refund(lease, &refund, &account, provider_id).await;
        }
        let request = if let Some(request) = newest {
            request
        } else {
            // Stored only now, so that the key's age counts from its first send. From here on it may have been sent.
            let payment = store::payments::get(&mut work.tx, org, refund.payment_id).await?;
            let payment = payment.ok_or_else(|| Error::not_found("payment", refund.payment_id))?;
            let body = stripe::refunds::create_body(work.installation(), &refund, &payment.invoice_id);
            work.prepare(&target, next_generation, body).await?
        };
        work.commit().await?;
        let account = self.stripe_account(org, refund.integration_id).await?;
        self.execute_refund(lease, refund, &account, request).await
    }

    /// Sends the stored request, or determines what became of it.
    async fn execute_refund(
        &self,
        lease: &Lease,
        refund: Refund,
        account: &StripeAccount,
        mut request: StripeRequest,
    ) -> Result<()> {
        let (target, now) = (refund.target(), self.clock().now());
        let mut observed = Observed::Unread;
        loop {
            match request.next(observed, now) {
                Next::Send => {
                    let error = match self.0.stripe.create_refund(&account.key, &request).await {
                        Ok(created) => return self.record_refund(lease, &refund, account, &created.object.id).await,
                        Err(error) => error,
                    };
                    if !self.note_key_state(lease, &target, &mut request, &error).await? {
                        return self.on_refund_error(lease, refund, account, &error).await;
                    }
                }
                Next::Read => match self.find_refund(account, &refund).await? {
                    Some(provider_id) => return self.record_refund(lease, &refund, account, &provider_id).await,
                    None => observed = Observed::Absent,
                },
                Next::Wait(until) => {
                    let work = self.begin_refund_doubt(lease, refund).await?;
                    return work.end(Outcome::RunAgain(until)).await;
                }
                Next::NewKey => {
                    let mut work = self.begin_refund_doubt(lease, refund).await?;
                    let next = store::stripe_requests::get(&mut work.tx, work.org, &target).await?.next_generation;
                    work.prepare(&target, next, request.body).await?;
                    let now = work.now;
                    return work.end(Outcome::RunAgain(now)).await;
                }
                Next::Stop(reason) => return Err(stopped(&target, reason)),
                Next::Done | Next::Abandon => return Err(unplanned(&target)),
            }
        }
    }

    /// Begins a change that records that the refund's outcome is unknown.
    async fn begin_refund_doubt(&self, lease: &Lease, mut refund: Refund) -> Result<UnitOfWork> {
        let mut work = self.begin_leased(lease).await?;
        refund.unknown_since.get_or_insert(work.now);
        store::refunds::save_unknown(&mut work.tx, &refund).await?;
        Ok(work)
    }

    /// The call for the refund failed.
    async fn on_refund_error(
        &self,
        lease: &Lease,
        refund: Refund,
        account: &StripeAccount,
        error: &stripe::Error,
    ) -> Result<()> {
        match error.disposition() {
            stripe::Disposition::Refused => self.refund_refused(lease, &refund, account, error).await,
            stripe::Disposition::NotDone => Err(self.map_stripe_error(account, Operation::RefundCreate, error).await),
            stripe::Disposition::Unknown => {
                let work = self.begin_refund_doubt(lease, refund).await?;
                work.end(Outcome::Retry(error.to_string())).await
            }
        }
    }

    /// Stripe has created the refund: reads its present state, and ends the job.
    async fn record_refund(
        &self,
        lease: &Lease,
        refund: &Refund,
        account: &StripeAccount,
        provider_id: &str,
    ) -> Result<()> {
        self.read_refunds_or_dispute(lease, refund.payment_id, account, &ReadTarget::Refund(provider_id)).await?;
        let mut work = self.begin_leased(lease).await?;
        let current = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        if refund.provider_refund_id.is_some() && current.status != refund.status {
            record_repair("refund", 1);
        }
        // A refund still in flight is read by the sweep if no event reports it.
        work.end(Outcome::Done).await
    }

    /// Looks up this refund in the list of the charge's refunds, by its metadata. Returns its Stripe id.
    async fn find_refund(&self, account: &StripeAccount, refund: &Refund) -> Result<Option<String>> {
        let charge = refund.provider_charge_id.as_deref().unwrap_or_default();
        // If the charge does not exist, nothing of it was refunded.
        let found = if_found(self.0.stripe.refunds_of(&account.key, charge).await);
        let found = self.checked(account, Operation::RefundList, found).await?.unwrap_or_default();
        for found in found.into_iter().filter(|found| refund.is_reported_by(found)) {
            let Some(other) = found.refund_id.filter(|id| *id != refund.id.0) else { return Ok(Some(found.id)) };
            // Callers may use a request id again after 30 days: it may be the refund of that other row.
            let mut tx = self.read(account.org).await?;
            let is_known = store::refunds::get(&mut tx, account.org, other.into()).await.is_ok();
            tx.close().await?;
            if !is_known {
                return Ok(Some(found.id));
            }
        }
        Ok(None)
    }

    /// Stripe refused, which is definite. But the effect of an earlier key may be the cause ("already refunded"), so
    /// the list is read first.
    async fn refund_refused(
        &self,
        lease: &Lease,
        refund: &Refund,
        account: &StripeAccount,
        error: &stripe::Error,
    ) -> Result<()> {
        if let Some(provider_id) = self.find_refund(account, refund).await? {
            return self.record_refund(lease, refund, account, &provider_id).await;
        }
        let detail = error.detail();
        tracing::info!(refund.id = %refund.id, payment.id = %refund.payment_id, %error, "refund refused by Stripe");
        let reason = match (&detail.code, detail.param.as_deref()) {
            (Some(code), _) => code.clone(),
            (None, Some("amount")) => Refund::MORE_THAN_IS_LEFT.to_owned(),
            (None, _) => detail.error_type.clone().unwrap_or_else(|| "unknown".to_owned()),
        };
        self.fail_refund(lease, refund, reason).await
    }

    async fn fail_refund(&self, lease: &Lease, refund: &Refund, reason: String) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        let mut context = PaymentContext::load(&mut work, refund.payment_id).await?;
        let mut refund = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        // If Stripe has reported the refund meanwhile, its state counts.
        if refund.provider_refund_id.is_none() {
            "failed".clone_into(&mut refund.status);
            refund.failure_reason = Some(reason);
            refund.unknown_since = None;
            let now = work.now;
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            store::payments::save(&mut work.tx, &mut context.payment, now).await?;
            work.record_event(event_payloads::refund_updated(&context.view(), &refund));
        }
        work.end(Outcome::Done).await
    }

    /// The integration was disconnected, by force or concurrently. A refund that was never sent has failed; the outcome
    /// of any other stays unknown.
    async fn abandon_refund(&self, lease: &Lease, refund: &Refund, was_sent: bool) -> Result<()> {
        if !was_sent && refund.provider_refund_id.is_none() {
            return self.fail_refund(lease, refund, Refund::INTEGRATION_DISCONNECTED.to_owned()).await;
        }
        let mut work = self.begin_leased(lease).await?;
        let context = PaymentContext::load(&mut work, refund.payment_id).await?;
        let mut refund = store::refunds::get(&mut work.tx, work.org, refund.id).await?;
        if refund.is_in_flight() {
            let now = work.now;
            refund.unknown_since.get_or_insert(now);
            store::refunds::save(&mut work.tx, &mut refund, now).await?;
            work.record_event(event_payloads::refund_updated(&context.view(), &refund));
        }
        work.end(Outcome::Done).await
    }
}

fn refund_hash(new: &NewRefund) -> [u8; 32] {
    let charge = new.provider_charge_id.clone().unwrap_or_default();
    let amount = new.amount.map(|amount| amount.to_string()).unwrap_or_default();
    hash_request("CreateRefund", &[&new.payment_id.to_string(), &charge, &amount])
}
