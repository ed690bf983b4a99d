//! Disconnects integrations. New work is refused immediately. Payments in flight are completed while endpoint and key
//! are still in place to report them; only then are the endpoint and the secrets deleted.

use time::Duration;

use crate::app::event_payloads;
use crate::app::payments::PaymentContext;
use crate::app::unit_of_work::Actor;
use crate::app::{App, StripeAccount};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::events::EventType;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::PaymentState;
use crate::domain::signals::SessionStatus;
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::Operation;
use crate::{store, stripe};

/// How often payments in flight are checked.
const DRAIN_PERIOD: Duration = Duration::minutes(1);

impl App {
    /// Begins to disconnect. The call may be repeated, also with `force`.
    pub async fn delete_integration(&self, org: OrganizationId, id: IntegrationId, force: bool) -> Result<Integration> {
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Disconnected {
            return Ok(integration);
        }
        if force {
            store::integrations::set_forced(&mut work.tx, org, id).await?;
        }
        if integration.state != IntegrationState::Disconnecting {
            integration.state = IntegrationState::Disconnecting;
            integration.pause_reason = None;
            store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        }
        work.enqueue(JobKind::DisconnectIntegration, id.0);
        work.commit().await?;
        Ok(integration)
    }

    /// Runs the job that disconnects an integration.
    pub(in crate::app) async fn finish_disconnecting(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let integration = self.get_integration(org, id).await?;
        if integration.state != IntegrationState::Disconnecting {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let account = self.stripe_account(org, id).await?;
        let mut tx = self.read(org).await?;
        let is_forced = store::integrations::is_forced(&mut tx, org, id).await?;
        let sessions = store::checkout_sessions::list_open(&mut tx, org, id).await?;
        tx.close().await?;
        // Only a rejection of the key by Stripe means that nothing more can be learned about what is in flight.
        let is_key_rejected = matches!(self.0.stripe.account(&account.key).await, Err(stripe::Error::Unauthorized(_)));
        for session in sessions {
            self.close_session(lease, &account.key, session, is_key_rejected).await?;
        }
        let in_flight = self.stop_payments(lease, id).await?;
        if in_flight > 0 && !is_forced && !is_key_rejected {
            let work = self.begin_leased(lease).await?;
            let next = work.now + DRAIN_PERIOD;
            return work.end(Outcome::RunAgain(next)).await;
        }
        self.remove_endpoint(lease, integration, &account, is_key_rejected).await
    }

    /// Expires an open session at Stripe. If the key is rejected, it is only abandoned here; it expires by itself
    /// within a day.
    async fn close_session(
        &self,
        lease: &Lease,
        key: &stripe::ApiKey,
        session: CheckoutSession,
        is_key_rejected: bool,
    ) -> Result<()> {
        let mut status = SessionStatus::Expired;
        if let Some(provider_id) = session.provider_session_id.as_ref().filter(|_| !is_key_rejected) {
            match self.0.stripe.expire_checkout_session(key, provider_id).await {
                Ok(_) => {}
                Err(stripe::Error::Invalid(_)) => {
                    let read = self.0.stripe.checkout_session(key, provider_id).await;
                    status = read.map_err(|error| super::map_job_error(Operation::CheckoutSessionRead, &error))?.status;
                }
                Err(error) => return Err(super::map_job_error(Operation::CheckoutSessionExpire, &error)),
            }
        }
        let mut work = self.begin_leased(lease).await?;
        let mut session = store::checkout_sessions::lock(&mut work.tx, work.org, session.id).await?;
        if matches!(session.state, SessionState::Open | SessionState::Creating) {
            session.state =
                if status == SessionStatus::Complete { SessionState::Complete } else { SessionState::Expired };
            store::checkout_sessions::save(&mut work.tx, &session).await?;
        }
        work.commit().await
    }

    /// Cancels what can be canceled, and counts what is still in flight.
    async fn stop_payments(&self, lease: &Lease, id: IntegrationId) -> Result<usize> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let unsettled = store::payments::unsettled(&mut tx, org, id).await?;
        tx.close().await?;
        for (payment, state) in &unsettled {
            if *state != PaymentState::Processing {
                // Busy: what blocks the cancellation ends by itself, and the next run repeats it.
                match self.cancel_as(Actor::Job(lease), (*payment).into()).await {
                    Ok(_) | Err(Error::FailedPrecondition { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut tx = self.read(org).await?;
        let in_flight = store::payments::unsettled(&mut tx, org, id).await?.len()
            + store::refunds::unsettled(&mut tx, org, id).await?.len();
        tx.close().await?;
        Ok(in_flight)
    }

    /// The last step: deletes the endpoint at Stripe, then the secrets here. If the key no longer works, the endpoint
    /// is left behind and stays in the record.
    async fn remove_endpoint(
        &self,
        lease: &Lease,
        integration: Integration,
        account: &StripeAccount,
        is_key_rejected: bool,
    ) -> Result<()> {
        let mut is_removed = !is_key_rejected;
        let endpoints = if is_key_rejected { Vec::new() } else { self.endpoints_to_remove(account).await? };
        for endpoint in endpoints {
            match self.0.stripe.delete_webhook_endpoint(&account.key, &endpoint).await {
                Ok(()) => {}
                Err(error) if error.is_api_key_error() => is_removed = false,
                Err(error) => return Err(super::map_job_error(Operation::WebhookEndpointDelete, &error)),
            }
        }
        let org = lease.organization_id;
        let mut work = self.begin_leased(lease).await?;
        // Payments are locked before the integration. The outcome of what is in flight at a forced disconnect stays
        // unknown.
        for (payment, _) in store::payments::unsettled(&mut work.tx, org, integration.id).await? {
            let mut context = PaymentContext::load(&mut work, payment.into()).await?;
            context.payment.unknown_since.get_or_insert(work.now);
            store::payments::save(&mut work.tx, &mut context.payment, work.now).await?;
            work.record_event(event_payloads::payment(EventType::PaymentOutcomeUnknown, &context.view()));
        }
        // The same holds for refunds; each one's job reports it.
        for refund in store::refunds::unsettled(&mut work.tx, org, integration.id).await? {
            work.enqueue(JobKind::RefundPayment, refund.0);
        }
        let mut integration = store::integrations::lock(&mut work.tx, org, integration.id).await?;
        // Pending operations that wait for Stripe's response end without it; their job may just have been abandoned.
        // Listed under the lock that every request takes, so none can be added meanwhile (P8).
        for payment in store::payments::with_pending_operations(&mut work.tx, org, integration.id).await? {
            work.enqueue(JobKind::SubmitPayment, payment);
        }
        if is_removed {
            integration.provider_endpoint_id = None;
        }
        integration.state = IntegrationState::Disconnected;
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        store::integration_health::set_old_endpoint(&mut work.tx, org, integration.id, None).await?;
        for secret in [Secret::Key, Secret::Webhook, Secret::OldWebhook] {
            store::integrations::set_secret(&mut work.tx, &self.0.sealer, &integration, secret, None).await?;
        }
        work.record_event(event_payloads::provider(EventType::PaymentProviderDisconnected, &integration));
        work.end(Outcome::Done).await
    }
}
