//! Maintains an integration's webhook endpoint. One that is disabled, or has the wrong events or URL, is updated. One
//! that was deleted, or has another API version, which cannot be changed, is replaced. A replacement is created with a
//! prepared request, so that after a crash the same key returns the same endpoint with its secret. Until the old
//! endpoint is deleted, both secrets are accepted. What cannot be repaired is reported once.

use time::Duration;

use super::{if_found, map_job_error};
use crate::app::reconcile::record_repair;
use crate::app::stripe_requests::{sent_again, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount, event_payloads};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::stripe_requests::{Next, Observed, Purpose, RequestTarget, StripeRequest};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::Operation;
use crate::stripe::webhook_endpoints::{self, WebhookEndpoint};
use crate::{store, stripe};

impl App {
    /// Runs the job that checks and repairs an integration's endpoint.
    pub(in crate::app) async fn maintain_endpoint(&self, lease: &Lease) -> Result<()> {
        let integration = self.get_integration(lease.organization_id, lease.object_id.into()).await?;
        if integration.state == IntegrationState::Disconnected {
            return self.begin_leased(lease).await?.end(Outcome::Done).await;
        }
        let is_in_use = matches!(integration.state, IntegrationState::Active | IntegrationState::Disconnecting);
        // Catching up checks the counter itself, and nothing is repaired before it is done.
        if is_in_use && !integration.is_catching_up() && !integration.polls_events {
            let account = self.stripe_account(integration.organization_id, integration.id).await?;
            self.maintain_present_endpoint(lease, &account, &integration).await?;
        }
        let work = self.begin_leased(lease).await?;
        let again = self.next_run(work.now, self.endpoint_period(&integration));
        work.end(again).await
    }

    /// The interval between checks, in clock time.
    pub(in crate::app) fn endpoint_period(&self, integration: &Integration) -> Duration {
        let periods = &self.0.settings.periods;
        if integration.livemode { periods.endpoint_live } else { periods.endpoint_test }
    }

    /// Reads the endpoint, raises the counter in it, and repairs it.
    async fn maintain_present_endpoint(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        integration: &Integration,
    ) -> Result<()> {
        let now = self.clock().now();
        let mut known = None;
        if let Some(id) = &integration.provider_endpoint_id {
            known = match if_found(self.0.stripe.webhook_endpoint(&account.key, id).await) {
                Ok(known) => known,
                Err(error) => {
                    self.report_endpoint_error(lease, account, &error).await?;
                    // Stripe has answered. A key that may not read endpoints collects without a counter.
                    return self.renew_contact(lease, integration.id, now).await.map(|_| ());
                }
            };
        }
        let is_confirmed = match &known {
            Some(endpoint) => self.raise_counter(lease, account, endpoint).await?,
            None => self.compare_other_endpoints(lease, account).await?,
        };
        // A process without the public address cannot know the right URL.
        let has_address = self.0.settings.webhook_base_url.is_some();
        if is_confirmed && integration.state == IntegrationState::Active && has_address {
            self.repair_endpoint(lease, account, known).await?;
            self.delete_old_endpoint(lease, account).await?;
        }
        Ok(())
    }

    async fn repair_endpoint(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        known: Option<WebhookEndpoint>,
    ) -> Result<()> {
        let url = self.endpoint_url(account.org, account.integration_id);
        match known {
            Some(endpoint) if endpoint.faults(&url).is_empty() => self.clear_endpoint_fault(lease, account).await,
            Some(endpoint) if endpoint.has_our_version() => self.update_endpoint(lease, account, &endpoint, &url).await,
            other => self.replace_endpoint(lease, account, other.is_some()).await,
        }
    }

    /// Updates an endpoint that can be repaired in place.
    async fn update_endpoint(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        endpoint: &WebhookEndpoint,
        url: &str,
    ) -> Result<()> {
        let faults = endpoint.faults(url).join("; ");
        let body = webhook_endpoints::update_body(url);
        match self.0.stripe.update_webhook_endpoint(&account.key, &endpoint.id, &body).await {
            Ok(_) => {
                tracing::warn!(integration.id = %account.integration_id, faults, "webhook endpoint repaired");
                self.clear_endpoint_fault(lease, account).await?;
                self.on_endpoint_repaired(lease).await
            }
            Err(error) => self.report_endpoint_error(lease, account, &error).await,
        }
    }

    /// Replaces an endpoint that was deleted, or, if `has_old`, one that cannot be updated.
    async fn replace_endpoint(&self, lease: &Lease, account: &StripeAccount, has_old: bool) -> Result<()> {
        let (org, id, now) = (account.org, account.integration_id, self.clock().now());
        let target = target_of(id);
        let mut tx = self.read(org).await?;
        let stored = store::stripe_requests::get(&mut tx, org, &target).await?;
        tx.close().await?;
        let next_generation = stored.next_generation;
        let mut request = match stored.into_open() {
            Some(request) => request,
            None => self.next_replacement(lease, account, next_generation).await?,
        };
        loop {
            match request.next(Observed::Unread, now) {
                Next::Send => match self.0.stripe.create_webhook_endpoint(&account.key, &request).await {
                    Ok(created) => {
                        return self.adopt_endpoint(lease, account, &request, created.object, has_old).await;
                    }
                    Err(error) => match error.key_state(now) {
                        Some(key_state) => request.key_state = key_state,
                        None => return self.on_replacement_error(lease, account, &request, &error).await,
                    },
                },
                Next::NewKey => {
                    self.next_replacement(lease, account, request.generation + 1).await?;
                    return Err(sent_again());
                }
                _ => return Err(unplanned(&target)),
            }
        }
    }

    async fn on_replacement_error(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        request: &StripeRequest,
        error: &stripe::Error,
    ) -> Result<()> {
        if error.disposition() == stripe::Disposition::Refused {
            // The same key would replay the refusal for a day: the next run uses another.
            let mut work = self.begin_leased(lease).await?;
            finish_replacement(&mut work, account.integration_id, request).await?;
            work.commit().await?;
        }
        self.report_endpoint_error(lease, account, error).await
    }

    /// Prepares a request under another key. Before that, endpoints left behind by an earlier one are deleted: their
    /// secret is lost.
    async fn next_replacement(&self, lease: &Lease, account: &StripeAccount, generation: i32) -> Result<StripeRequest> {
        let (org, id) = (account.org, account.integration_id);
        let present = self.endpoints_at_stripe(account).await;
        let present = present.map_err(|error| map_job_error(Operation::WebhookEndpointList, &error))?;
        // Read the recorded endpoints after the list, under the lease: another worker may have taken over the job during
        // the call and recorded one (P8). What is listed and still not recorded is an orphan.
        let mut work = self.begin_leased(lease).await?;
        let kept = known_endpoints(&mut work.tx, org, id).await?;
        work.commit().await?;
        for orphan in present.iter().filter(|orphan| !kept.contains(orphan)) {
            let deleted = self.0.stripe.delete_webhook_endpoint(&account.key, orphan).await;
            deleted.map_err(|error| map_job_error(Operation::WebhookEndpointDelete, &error))?;
        }
        let mut work = self.begin_leased(lease).await?;
        let body = webhook_endpoints::create_body(work.installation(), &self.endpoint_url(org, id), org, id);
        let request = work.prepare(&target_of(id), generation, body).await?;
        work.commit().await?;
        Ok(request)
    }

    /// The new endpoint replaces the old one, whose secret is accepted until it is deleted.
    async fn adopt_endpoint(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        request: &StripeRequest,
        created: WebhookEndpoint,
        has_old: bool,
    ) -> Result<()> {
        let (org, id, sealer) = (account.org, account.integration_id, &self.0.sealer);
        let Some(secret) = &created.secret else {
            return Err(Error::internal(anyhow::anyhow!("Stripe created an endpoint and did not return its secret")));
        };
        let mut work = self.begin_leased(lease).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if !matches!(integration.state, IntegrationState::Active | IntegrationState::Paused) {
            // The integration is being disconnected, or was. Its job may have listed the endpoints before this one
            // existed. Only while the lease is held: another worker may have put this very endpoint in place (P8).
            work.commit().await?;
            let deleted = self.0.stripe.delete_webhook_endpoint(&account.key, &created.id).await;
            return deleted.map_err(|error| map_job_error(Operation::WebhookEndpointDelete, &error));
        }
        let old = integration.provider_endpoint_id.replace(created.id.clone()).filter(|_| has_old);
        let old_secret = match old {
            Some(_) => store::integrations::secret(&mut work.tx, sealer, org, id, Secret::Webhook).await?,
            None => None,
        };
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        let secrets = [(Secret::OldWebhook, old_secret.as_ref()), (Secret::Webhook, Some(secret))];
        for (which, secret) in secrets {
            store::integrations::set_secret(&mut work.tx, sealer, &integration, which, secret).await?;
        }
        store::integration_health::set_old_endpoint(&mut work.tx, org, id, old.as_deref()).await?;
        store::integration_health::set_endpoint_fault(&mut work.tx, org, id, None).await?;
        finish_replacement(&mut work, id, request).await?;
        work.commit().await?;
        tracing::warn!(integration.id = %id, endpoint.id = created.id, "webhook endpoint replaced");
        self.on_endpoint_repaired(lease).await
    }

    /// Deletes the replaced endpoint and its secret.
    async fn delete_old_endpoint(&self, lease: &Lease, account: &StripeAccount) -> Result<()> {
        let (org, id) = (account.org, account.integration_id);
        let mut tx = self.read(org).await?;
        let old = store::integration_health::old_endpoint(&mut tx, org, id).await?;
        tx.close().await?;
        let Some(old) = old else { return Ok(()) };
        if let Err(error) = self.0.stripe.delete_webhook_endpoint(&account.key, &old).await {
            return self.report_endpoint_error(lease, account, &error).await;
        }
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::OldWebhook, None).await?;
        store::integration_health::set_old_endpoint(&mut work.tx, org, id, None).await?;
        work.commit().await
    }

    /// Webhooks arrive again. The events missed meanwhile are in the events list.
    async fn on_endpoint_repaired(&self, lease: &Lease) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        work.enqueue(JobKind::PollEvents, lease.object_id);
        work.commit().await?;
        record_repair("endpoint", 1);
        Ok(())
    }

    async fn clear_endpoint_fault(&self, lease: &Lease, account: &StripeAccount) -> Result<()> {
        let mut work = self.begin_leased(lease).await?;
        if store::integration_health::endpoint_fault(&mut work.tx, account.org, account.integration_id).await?.is_none()
        {
            return work.rollback().await;
        }
        store::integration_health::set_endpoint_fault(&mut work.tx, account.org, account.integration_id, None).await?;
        work.commit().await
    }

    /// A call about the endpoint failed. A key without the permission for endpoints may still collect payments, so it
    /// pauses nothing. That and a refusal are reported once, since only an operator can repair them. Everything else is
    /// retried.
    pub(in crate::app) async fn report_endpoint_error(
        &self,
        lease: &Lease,
        account: &StripeAccount,
        error: &stripe::Error,
    ) -> Result<()> {
        let is_reported = matches!(error.disposition(), stripe::Disposition::Refused)
            || matches!(error, stripe::Error::Forbidden { .. });
        if !is_reported {
            return Err(self.map_stripe_error(account, Operation::WebhookEndpointUpdate, error).await);
        }
        let (org, id) = (account.org, account.integration_id);
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::lock(&mut work.tx, org, id).await?;
        let known = store::integration_health::endpoint_fault(&mut work.tx, org, id).await?;
        let text = format!("the webhook endpoint could not be repaired: {error}");
        store::integration_health::set_endpoint_fault(&mut work.tx, org, id, Some(&text)).await?;
        if known.is_none() {
            let code = error.code().unwrap_or("endpoint_not_repaired");
            work.record_event(event_payloads::provider_error(
                &integration,
                Operation::WebhookEndpointUpdate,
                &text,
                code,
            ));
        }
        tracing::warn!(integration.id = %id, %error, "webhook endpoint not repaired");
        work.commit().await
    }

    /// All endpoints at Stripe with the integration's metadata, known or not.
    async fn endpoints_at_stripe(&self, account: &StripeAccount) -> Result<Vec<String>, stripe::Error> {
        let all = self.0.stripe.webhook_endpoints(&account.key).await?;
        let ours = all.into_iter().filter(|endpoint| endpoint.integration_id() == Some(account.integration_id));
        Ok(ours.map(|endpoint| endpoint.id).collect())
    }

    /// All endpoints to delete with an integration: the known ones and, if a replacement was begun whose outcome is
    /// unknown, all at Stripe with its metadata.
    pub(super) async fn endpoints_to_remove(&self, account: &StripeAccount) -> Result<Vec<String>> {
        let (org, id) = (account.org, account.integration_id);
        let mut tx = self.read(org).await?;
        let mut endpoints = known_endpoints(&mut tx, org, id).await?;
        let replacement = store::stripe_requests::get(&mut tx, org, &target_of(id)).await?;
        tx.close().await?;
        if replacement.into_open().is_some() {
            match self.endpoints_at_stripe(account).await {
                Ok(all) => all.into_iter().for_each(|endpoint| {
                    if !endpoints.contains(&endpoint) {
                        endpoints.push(endpoint);
                    }
                }),
                // With a rejected key they are left behind.
                Err(error) if error.is_api_key_error() => {}
                Err(error) => return Err(map_job_error(Operation::WebhookEndpointList, &error)),
            }
        }
        Ok(endpoints)
    }
}

/// The integration's known endpoints: the present one, and a replaced one.
async fn known_endpoints(tx: &mut store::Transaction, org: OrganizationId, id: IntegrationId) -> Result<Vec<String>> {
    let present = store::integrations::get(tx, org, id).await?.provider_endpoint_id;
    let old = store::integration_health::old_endpoint(tx, org, id).await?;
    Ok(present.into_iter().chain(old).collect())
}

/// The requests that replace an integration's endpoint. Their body has a URL with the integration's id.
fn target_of(id: IntegrationId) -> RequestTarget {
    Purpose::ReplacementEndpoint.of(id)
}

async fn finish_replacement(work: &mut UnitOfWork, id: IntegrationId, request: &StripeRequest) -> Result<()> {
    let (org, now) = (work.org, work.now);
    store::stripe_requests::finish(&mut work.tx, org, &target_of(id), request.generation, now).await
}
