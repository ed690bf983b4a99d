//! Looking after an integration's webhook endpoint. One that was disabled, or posts the wrong events or elsewhere, is put
//! right; one that is gone, or whose version is not ours, which can't be changed, is replaced. A replacement is made from
//! a frozen request, so that after a crash the same key brings the same endpoint with its secret; while the old one is
//! still to be deleted, both secrets count. What can't be mended is told, once.

use super::job_trouble;
use crate::app::reconcile::mended;
use crate::app::work::Work;
use crate::app::{Access, App, KEY_AGE_MAX, tell};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::store::requests::{FrozenRequest, Purpose};
use crate::stripe::webhook_endpoints::{self, WebhookEndpoint};
use crate::{store, stripe};

impl App {
    /// The job of an integration whose endpoint is to be looked at.
    pub(in crate::app) async fn look_after_endpoint(&self, lease: &Lease) -> Result<()> {
        let integration = self.get_integration(lease.organization_id, lease.object_id.into()).await?;
        if integration.state == IntegrationState::Disconnected {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        // A process that is not told the public address can't know what is right.
        let has_address = self.0.settings.webhook_base_url.is_some();
        if integration.state == IntegrationState::Active && !integration.polls_events && has_address {
            let access = self.access(integration.organization_id, integration.id).await?;
            self.mend_endpoint(lease, &access, &integration).await?;
            self.delete_old_endpoint(lease, &access).await?;
        }
        let work = self.begin_leased(lease).await?;
        let again = self.look_again(work.now, self.0.settings.periods.endpoint);
        work.end(again).await
    }

    async fn mend_endpoint(&self, lease: &Lease, access: &Access, integration: &Integration) -> Result<()> {
        let mut known = None;
        if let Some(id) = &integration.provider_endpoint_id {
            known = match self.0.stripe.webhook_endpoint(&access.key, id).await {
                Ok(endpoint) => Some(endpoint),
                Err(error) if error.is_missing() => None,
                Err(error) => return self.endpoint_trouble(lease, access, &error).await,
            };
        }
        let url = self.endpoint_url(access.org, access.integration);
        match known {
            Some(endpoint) if endpoint.faults(&url).is_empty() => self.endpoint_is_well(lease, access).await,
            Some(endpoint) if endpoint.has_our_version() => self.update_endpoint(lease, access, &endpoint, &url).await,
            other => self.replace_endpoint(lease, access, other.is_some()).await,
        }
    }

    /// Puts an endpoint right that can be changed.
    async fn update_endpoint(
        &self,
        lease: &Lease,
        access: &Access,
        endpoint: &WebhookEndpoint,
        url: &str,
    ) -> Result<()> {
        let faults = endpoint.faults(url).join("; ");
        // To update twice harms nobody, so every look may have a key of its own.
        let idempotency_key = format!("paybridge-mend-{}-{}", endpoint.id, lease.epoch);
        let body = webhook_endpoints::update_body(url);
        match self.0.stripe.update_webhook_endpoint(&access.key, &endpoint.id, &idempotency_key, &body).await {
            Ok(_) => {
                tracing::warn!(integration.id = %access.integration, faults, "a webhook endpoint was mended");
                self.endpoint_is_well(lease, access).await?;
                self.endpoint_mended(lease).await
            }
            Err(error) => self.endpoint_trouble(lease, access, &error).await,
        }
    }

    /// Makes a new endpoint in the place of one that is gone, or that `is_there` and can't be put right.
    async fn replace_endpoint(&self, lease: &Lease, access: &Access, is_there: bool) -> Result<()> {
        let frozen = self.replacement_request(lease, access).await?;
        match self.0.stripe.create_webhook_endpoint(&access.key, &frozen.idempotency_key, &frozen.body).await {
            Ok(made) => self.take_endpoint(lease, access, &frozen, made, is_there).await,
            Err(error) => {
                let is_final = matches!(error.verdict(), stripe::Verdict::Refused)
                    || matches!(error, stripe::Error::Unknown { replayed: true, .. });
                if is_final {
                    // The same key would bring the same answer for a day: the next look has another.
                    let mut work = self.begin_leased(lease).await?;
                    finish_replacement(&mut work, access.integration, &frozen).await?;
                    work.commit().await?;
                }
                self.endpoint_trouble(lease, access, &error).await
            }
        }
    }

    /// The frozen request to send. Before a new one is made, endpoints that an earlier one may have left behind go: their
    /// secret is lost.
    async fn replacement_request(&self, lease: &Lease, access: &Access) -> Result<FrozenRequest> {
        let (org, id) = (access.org, access.integration);
        let newest = self.newest_replacement(org, id).await?;
        let number = match newest {
            Some(frozen) if !frozen.is_finished && self.clock().now() - frozen.create_time <= KEY_AGE_MAX => {
                return Ok(frozen);
            }
            Some(frozen) => frozen.number + 1,
            None => 1,
        };
        let present = self.endpoints_at_stripe(access).await;
        let present = present.map_err(|error| job_trouble("webhook_endpoint.list", &error))?;
        // Only now, and only while the lease is ours: whoever took the job over while we slept may have made the endpoint
        // that the integration lives by (P8). One that is listed by now and not known will never be.
        let mut work = self.begin_leased(lease).await?;
        let kept = known_endpoints(&mut work.tx, org, id).await?;
        work.commit().await?;
        for stray in present.iter().filter(|stray| !kept.contains(stray)) {
            let deleted = self.0.stripe.delete_webhook_endpoint(&access.key, stray).await;
            deleted.map_err(|error| job_trouble("webhook_endpoint.delete", &error))?;
        }
        let mut work = self.begin_leased(lease).await?;
        let body = webhook_endpoints::create_body(&self.endpoint_url(org, id), org, id);
        let frozen = work.freeze(Purpose::ReplacementEndpoint, id.0, number, body).await?;
        work.commit().await?;
        Ok(frozen)
    }

    /// The new endpoint takes the old one's place; the old one's secret counts until it is deleted.
    async fn take_endpoint(
        &self,
        lease: &Lease,
        access: &Access,
        frozen: &FrozenRequest,
        made: WebhookEndpoint,
        is_old_there: bool,
    ) -> Result<()> {
        let (org, id, sealer) = (access.org, access.integration, &self.0.sealer);
        let Some(secret) = &made.secret else {
            return Err(Error::internal(anyhow::anyhow!("Stripe made an endpoint and did not tell its secret")));
        };
        let mut work = self.begin_leased(lease).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if !matches!(integration.state, IntegrationState::Active | IntegrationState::Paused) {
            // It is to go, or has gone: whoever winds it down may have looked for endpoints before this one was there. Only
            // while the lease is ours: whoever took the job over may have put this very one in place (P8).
            work.commit().await?;
            let deleted = self.0.stripe.delete_webhook_endpoint(&access.key, &made.id).await;
            return deleted.map_err(|error| job_trouble("webhook_endpoint.delete", &error));
        }
        let old = integration.provider_endpoint_id.replace(made.id.clone()).filter(|_| is_old_there);
        let old_secret = match old {
            Some(_) => store::integrations::secret(&mut work.tx, sealer, org, id, Secret::Webhook).await?,
            None => None,
        };
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        let secrets = [(Secret::OldWebhook, old_secret.as_ref()), (Secret::Webhook, Some(secret))];
        for (which, secret) in secrets {
            store::integrations::set_secret(&mut work.tx, sealer, &integration, which, secret).await?;
        }
        store::upkeep::set_old_endpoint(&mut work.tx, org, id, old.as_deref()).await?;
        store::upkeep::set_endpoint_fault(&mut work.tx, org, id, None).await?;
        finish_replacement(&mut work, id, frozen).await?;
        work.commit().await?;
        tracing::warn!(integration.id = %id, endpoint.id = made.id, "a webhook endpoint was replaced");
        self.endpoint_mended(lease).await
    }

    /// Deletes the endpoint that was replaced, and forgets its secret.
    async fn delete_old_endpoint(&self, lease: &Lease, access: &Access) -> Result<()> {
        let (org, id) = (access.org, access.integration);
        let mut tx = self.read(org).await?;
        let old = store::upkeep::old_endpoint(&mut tx, org, id).await?;
        tx.close().await?;
        let Some(old) = old else { return Ok(()) };
        if let Err(error) = self.0.stripe.delete_webhook_endpoint(&access.key, &old).await {
            return self.endpoint_trouble(lease, access, &error).await;
        }
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::OldWebhook, None).await?;
        store::upkeep::set_old_endpoint(&mut work.tx, org, id, None).await?;
        work.commit().await
    }

    /// Webhooks flow again: what was missed stands in the events list.
    async fn endpoint_mended(&self, lease: &Lease) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        work.ask(JobKind::PollEvents, lease.object_id);
        work.commit().await?;
        mended("endpoint", 1);
        Ok(())
    }

    async fn endpoint_is_well(&self, lease: &Lease, access: &Access) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        if store::upkeep::endpoint_fault(&mut work.tx, access.org, access.integration).await?.is_none() {
            return work.abandon().await;
        }
        store::upkeep::set_endpoint_fault(&mut work.tx, access.org, access.integration, None).await?;
        work.commit().await
    }

    /// A call about the endpoint failed. A key that may not touch endpoints may still collect payments, so it pauses
    /// nothing; that and a refusal are told once, for only a person can mend them. Everything else is tried again.
    async fn endpoint_trouble(&self, lease: &Lease, access: &Access, error: &stripe::Error) -> Result<()> {
        let is_told =
            matches!(error.verdict(), stripe::Verdict::Refused) || matches!(error, stripe::Error::Forbidden { .. });
        if !is_told {
            return Err(self.stripe_trouble(access, "webhook_endpoint.update", error).await);
        }
        let (org, id) = (access.org, access.integration);
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let known = store::upkeep::endpoint_fault(&mut work.tx, org, id).await?;
        let text = format!("the webhook endpoint could not be mended: {error}");
        store::upkeep::set_endpoint_fault(&mut work.tx, org, id, Some(&text)).await?;
        if known.is_none() {
            let code = error.code().unwrap_or("endpoint_not_mended");
            work.tell(tell::provider_error(&integration, "webhook_endpoint.update", &text, code));
        }
        tracing::warn!(integration.id = %id, %error, "a webhook endpoint could not be mended");
        work.commit().await
    }

    async fn newest_replacement(&self, org: OrganizationId, id: IntegrationId) -> Result<Option<FrozenRequest>> {
        let mut tx = self.read(org).await?;
        let newest = store::requests::newest_frozen(&mut tx, org, Purpose::ReplacementEndpoint, id.0).await?;
        tx.close().await?;
        Ok(newest)
    }

    /// The endpoints that bear the integration's mark, whether we know of them or not.
    async fn endpoints_at_stripe(&self, access: &Access) -> Result<Vec<String>, stripe::Error> {
        let all = self.0.stripe.webhook_endpoints(&access.key).await?;
        let ours = all.into_iter().filter(|endpoint| endpoint.integration_id() == Some(access.integration));
        Ok(ours.map(|endpoint| endpoint.id).collect())
    }

    /// All endpoints that have to go with an integration: those known, and, where a replacement was begun and its end is
    /// not known, those at Stripe that bear its mark.
    pub(super) async fn endpoints_to_remove(&self, access: &Access) -> Result<Vec<String>> {
        let (org, id) = (access.org, access.integration);
        let mut tx = self.read(org).await?;
        let mut endpoints = known_endpoints(&mut tx, org, id).await?;
        tx.close().await?;
        let newest = self.newest_replacement(org, id).await?;
        if newest.is_some_and(|frozen| !frozen.is_finished) {
            match self.endpoints_at_stripe(access).await {
                Ok(all) => all.into_iter().for_each(|endpoint| {
                    if !endpoints.contains(&endpoint) {
                        endpoints.push(endpoint);
                    }
                }),
                // With a dead key they are left behind.
                Err(error) if error.is_key_trouble() => {}
                Err(error) => return Err(job_trouble("webhook_endpoint.list", &error)),
            }
        }
        Ok(endpoints)
    }
}

/// The endpoints that the integration knows of: the present one, and one that was replaced.
async fn known_endpoints(tx: &mut store::Transaction, org: OrganizationId, id: IntegrationId) -> Result<Vec<String>> {
    let present = store::integrations::get(tx, org, id).await?.provider_endpoint_id;
    let old = store::upkeep::old_endpoint(tx, org, id).await?;
    Ok(present.into_iter().chain(old).collect())
}

async fn finish_replacement(work: &mut Work, id: IntegrationId, frozen: &FrozenRequest) -> Result<()> {
    let (org, now) = (work.org, work.now);
    store::requests::finish(&mut work.tx, org, Purpose::ReplacementEndpoint, id.0, frozen.number, now).await
}
