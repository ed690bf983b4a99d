//! Winding an integration down. New work is refused at once; what moves is brought to its end, with endpoint and key in
//! place to hear of it; only then do endpoint and secrets go.

use time::Duration;

use crate::app::payments::Scene;
use crate::app::tell;
use crate::app::work::Hand;
use crate::app::{Access, App};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::payments::PaymentState;
use crate::domain::signals::SessionStatus;
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::{store, stripe};

/// How often what still moves is looked at.
const DRAIN_PERIOD: Duration = Duration::minutes(1);

impl App {
    /// Begins to disconnect; asking again, also with `force`, is fine.
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
        work.ask(JobKind::DisconnectIntegration, id.0);
        work.commit().await?;
        Ok(integration)
    }

    /// The job of an integration that is being wound down.
    pub(in crate::app) async fn finish_disconnecting(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let integration = self.get_integration(org, id).await?;
        if integration.state != IntegrationState::Disconnecting {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let access = self.access(org, id).await?;
        let mut tx = self.read(org).await?;
        let is_forced = store::integrations::is_forced(&mut tx, org, id).await?;
        let sessions = store::checkout_sessions::open(&mut tx, org, id).await?;
        tx.close().await?;
        // Only Stripe's word that it does not accept the key means that nothing more will be heard of what moves.
        let is_key_dead = matches!(self.0.stripe.account(&access.key).await, Err(stripe::Error::Unauthorized(_)));
        for session in sessions {
            self.close_session(lease, &access.key, session, is_key_dead).await?;
        }
        let moving = self.stop_payments(lease, id).await?;
        if moving > 0 && !is_forced && !is_key_dead {
            let work = self.begin_leased(lease).await?;
            let next = work.now + DRAIN_PERIOD;
            return work.end(Outcome::Again(next)).await;
        }
        self.remove_endpoint(lease, integration, &access).await
    }

    /// Expires an open session at Stripe. With a dead key it is only given up here; it ends by itself within a day.
    async fn close_session(
        &self,
        lease: &Lease,
        key: &stripe::ApiKey,
        session: CheckoutSession,
        is_key_dead: bool,
    ) -> Result<()> {
        let mut status = SessionStatus::Expired;
        if let Some(provider_id) = session.provider_session_id.as_ref().filter(|_| !is_key_dead) {
            // With the number of the try, so that none is answered with a stored 500 for a day.
            let idempotency_key = format!("paybridge-expire-{}-{}", session.id, lease.failures);
            match self.0.stripe.expire_checkout_session(key, provider_id, &idempotency_key).await {
                Ok(_) => {}
                Err(stripe::Error::Invalid(_)) => {
                    let read = self.0.stripe.checkout_session(key, provider_id).await;
                    status = read.map_err(|error| super::job_trouble("checkout_session.read", &error))?.status;
                }
                Err(error) => return Err(super::job_trouble("checkout_session.expire", &error)),
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

    /// Cancels what can be canceled, and counts what still moves.
    async fn stop_payments(&self, lease: &Lease, id: IntegrationId) -> Result<usize> {
        let org = lease.organization_id;
        let mut tx = self.read(org).await?;
        let unsettled = store::payments::unsettled(&mut tx, org, id).await?;
        tx.close().await?;
        for (payment, state) in &unsettled {
            if *state != PaymentState::Processing {
                // Busy: what stands in the way ends by itself, and it is looked at again.
                match self.cancel_by(Hand::Job(lease), (*payment).into()).await {
                    Ok(_) | Err(Error::FailedPrecondition { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        let mut tx = self.read(org).await?;
        let moving = store::payments::unsettled(&mut tx, org, id).await?.len()
            + store::refunds::moving(&mut tx, org, id).await?.len();
        tx.close().await?;
        Ok(moving)
    }

    /// The last step: the endpoint goes at Stripe, then the secrets here. Where the key works no more, the endpoint is
    /// left behind, and named.
    async fn remove_endpoint(&self, lease: &Lease, integration: Integration, access: &Access) -> Result<()> {
        let mut is_gone = true;
        for endpoint in self.endpoints_to_remove(access).await? {
            match self.0.stripe.delete_webhook_endpoint(&access.key, &endpoint).await {
                Ok(()) => {}
                Err(error) if error.is_key_trouble() => is_gone = false,
                Err(error) => return Err(super::job_trouble("webhook_endpoint.delete", &error)),
            }
        }
        let org = lease.organization_id;
        let mut work = self.begin_leased(lease).await?;
        // Payments are locked before the integration. What still moves after a forced disconnect stays unknown for ever.
        for (payment, _) in store::payments::unsettled(&mut work.tx, org, integration.id).await? {
            let mut scene = Scene::load(&mut work, payment.into()).await?;
            scene.payment.unknown_since.get_or_insert(work.now);
            store::payments::save(&mut work.tx, &mut scene.payment, work.now).await?;
            work.tell(tell::payment("payment.outcome_unknown", &scene.about()));
        }
        // The same holds for refunds: each one's job says so.
        for refund in store::refunds::moving(&mut work.tx, org, integration.id).await? {
            work.ask(JobKind::RefundPayment, refund.0);
        }
        let mut integration = store::integrations::lock(&mut work.tx, org, integration.id).await?;
        // What was asked for and waits for Stripe's answer ends without it; its job may just have given up. Listed under the
        // lock, which every request takes: none comes in between (P8).
        for payment in store::payments::with_errands(&mut work.tx, org, integration.id).await? {
            work.ask(JobKind::SubmitPayment, payment);
        }
        if is_gone {
            integration.provider_endpoint_id = None;
        }
        integration.state = IntegrationState::Disconnected;
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        store::upkeep::set_old_endpoint(&mut work.tx, org, integration.id, None).await?;
        for secret in [Secret::Key, Secret::Webhook, Secret::OldWebhook] {
            store::integrations::set_secret(&mut work.tx, &self.0.sealer, &integration, secret, None).await?;
        }
        work.tell(tell::provider("payment_provider.disconnected", &integration));
        work.end(Outcome::Done).await
    }
}
