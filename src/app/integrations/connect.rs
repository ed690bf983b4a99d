//! Connects Stripe accounts, and rotates keys. The integration is committed as `CONNECTING`, with the body and key of
//! the request for its endpoint, before the endpoint is registered. After a crash the same key replays the response
//! with the endpoint's secret, which Stripe returns only once.

use secrecy::{ExposeSecret, SecretString};
use time::Duration;

use super::key::{AccountMatch, CheckedKey, scope_finding};
use super::{resume, stripe_unavailable};
use crate::app::request_hash::hash_request;
use crate::app::stripe_requests::{sent_again, unplanned};
use crate::app::unit_of_work::UnitOfWork;
use crate::app::{App, StripeAccount, event_payloads};
use crate::domain::catch_up::{CatchUp, CatchUpReason};
use crate::domain::events::EventType;
use crate::domain::integrations::{EventSource, Finding, Integration, IntegrationState, NewIntegration};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::stripe_requests::{Next, Observed, Purpose, StripeRequest};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integration_health::ListProgress;
use crate::store::integrations::Secret;
use crate::store::request_ids::CallerRequest;
use crate::stripe::webhook_endpoints::WebhookEndpoint;
use crate::{store, stripe};

/// After how long a job checks that the connecting call completed.
const CONNECT_PERIOD: Duration = Duration::seconds(30);

impl App {
    /// Connects a Stripe account: checks the key and registers the webhook endpoint. Also returns the permissions of a
    /// restricted key, unless the request is a repeat.
    pub async fn create_integration(
        &self,
        org: OrganizationId,
        request_id: String,
        new: NewIntegration,
    ) -> Result<(Integration, Vec<Finding>)> {
        let request = CallerRequest { id: request_id, body_hash: integration_hash(&new) };
        let mut tx = self.read(org).await?;
        if let Some(known) = store::request_ids::resource_of(&mut tx, org, &request).await? {
            return Ok((store::integrations::get(&mut tx, org, known.into()).await?, Vec::new()));
        }
        tx.close().await?;
        let has_address = self.0.settings.webhook_base_url.is_some();
        let source = if has_address { EventSource::NewEndpoint } else { EventSource::List };
        let mut checked = self.check_key(&new.secret_key, source).await?;
        if has_address {
            self.find_lost_integration(org, &mut checked).await?;
        }
        // A concurrent repeat of this request may hold the account. So the request id is looked up before this result
        // counts.
        let compared = self.check_not_connected(org, &checked).await;
        let mut work = self.begin(org).await?;
        // A concurrent repeat of this request may have been faster.
        store::request_ids::lock(&mut work.tx, org, &request.id).await?;
        if let Some(known) = store::request_ids::resource_of(&mut work.tx, org, &request).await? {
            return Ok((store::integrations::get(&mut work.tx, org, known.into()).await?, Vec::new()));
        }
        let integration = self.insert_integration(&mut work, &new, &checked, &compared?).await?;
        store::request_ids::insert(&mut work.tx, org, &request, integration.id.0, work.now).await?;
        work.commit().await?;
        let findings = checked.findings.iter().map(scope_finding).collect();
        if integration.polls_events {
            return Ok((integration, findings));
        }
        self.register_endpoint(org, integration.id).await?;
        Ok((self.get_integration(org, integration.id).await?, findings))
    }

    async fn insert_integration(
        &self,
        work: &mut UnitOfWork,
        new: &NewIntegration,
        checked: &CheckedKey,
        compared: &[IntegrationId],
    ) -> Result<Integration> {
        let polls_events = self.0.settings.webhook_base_url.is_none();
        let id: IntegrationId = self.clock().new_id().into();
        let integration = Integration {
            id,
            organization_id: work.org,
            code: new.code.clone(),
            name: new.name.clone(),
            state: if polls_events { IntegrationState::Active } else { IntegrationState::Connecting },
            pause_reason: None,
            catch_up: None,
            livemode: checked.class.livemode,
            provider_account_id: checked.account.clone(),
            key_hint: hint(&checked.key),
            provider_endpoint_id: None,
            polls_events,
            success_redirect_url: new.success_redirect_url.clone(),
            supports_3ds: new.supports_3ds,
            relay_provider_events: new.relay_provider_events.unwrap_or(self.0.settings.relay_provider_events),
            version: 1,
            create_time: work.now,
            update_time: work.now,
        };
        self.check_not_connected_since(&mut work.tx, &integration, compared).await?;
        store::integrations::insert(&mut work.tx, &integration).await?;
        store::contacts::insert(&mut work.tx, work.org, id, checked.lost_since.unwrap_or(work.now)).await?;
        if checked.lost_since.is_some() {
            let mut contact = store::contacts::lock(&mut work.tx, work.org, id).await?;
            contact.catch_up = Some(CatchUp::new(CatchUpReason::DatabaseChanged));
            store::contacts::save(&mut work.tx, work.org, id, &contact).await?;
            work.enqueue(JobKind::CatchUp, id.0);
        }
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Key, Some(&checked.key)).await?;
        if polls_events {
            // Polling starts a little in the past, so that events during the connecting call are not lost.
            let from = work.now - Duration::minutes(5);
            let progress = ListProgress { poll_time: Some(from), ..ListProgress::default() };
            store::integration_health::set_list_progress(&mut work.tx, work.org, id, &progress).await?;
            self.start_reconcilers(work, &integration);
            work.record_event(event_payloads::provider(EventType::PaymentProviderConnected, &integration));
        } else {
            self.prepare_endpoint(work, id, 1).await?;
            work.enqueue_at(JobKind::ConnectIntegration, id.0, work.now + CONNECT_PERIOD);
        }
        Ok(integration)
    }

    async fn prepare_endpoint(
        &self,
        work: &mut UnitOfWork,
        id: IntegrationId,
        generation: i32,
    ) -> Result<StripeRequest> {
        let url = self.endpoint_url(work.org, id);
        let body = stripe::webhook_endpoints::create_body(work.installation(), &url, work.org, id);
        work.prepare(&Purpose::WebhookEndpoint.of(id), generation, body).await
    }

    /// The URL to which Stripe posts an integration's webhooks. It names the organization, so that row-level security
    /// applies from the first query (P10). It never changes.
    pub(super) fn endpoint_url(&self, org: OrganizationId, id: IntegrationId) -> String {
        let base = self.0.settings.webhook_base_url.as_deref().unwrap_or_default();
        format!("{}/webhooks/stripe/{org}/{id}", base.trim_end_matches('/'))
    }

    /// Registers the endpoint, or learns the outcome of an earlier attempt, and makes the integration `ACTIVE`.
    async fn register_endpoint(&self, org: OrganizationId, id: IntegrationId) -> Result<()> {
        // Also while it catches up: the endpoint itself takes no money.
        let account = self.stripe_account_to_catch_up(org, id).await?;
        let target = Purpose::WebhookEndpoint.of(id);
        let mut tx = self.read(org).await?;
        let stored = store::stripe_requests::get(&mut tx, org, &target).await?;
        tx.close().await?;
        let next_generation = stored.next_generation;
        let mut request = match stored.into_open() {
            Some(request) => request,
            None => self.next_endpoint(&account, next_generation).await?,
        };
        let now = self.clock().now();
        loop {
            match request.next(Observed::Unread, now) {
                Next::Send => match self.0.stripe.create_webhook_endpoint(&account.key, &request).await {
                    Ok(created) => return self.on_endpoint_registered(&account, created.object).await,
                    Err(error) if error.disposition() == stripe::Disposition::Refused || error.is_api_key_error() => {
                        self.abandon_connecting(org, id).await?;
                        let message = format!("the webhook endpoint could not be registered: {error}");
                        return Err(Error::precondition("ENDPOINT_REFUSED", format!("integration/{id}"), message));
                    }
                    Err(error) => match error.key_state(now) {
                        Some(key_state) => request.key_state = key_state,
                        None => return Err(stripe_unavailable(&error)),
                    },
                },
                Next::NewKey => {
                    self.next_endpoint(&account, request.generation + 1).await?;
                    return Err(sent_again());
                }
                _ => return Err(unplanned(&target)),
            }
        }
    }

    async fn on_endpoint_registered(&self, account: &StripeAccount, endpoint: WebhookEndpoint) -> Result<()> {
        self.activate(account, endpoint).await?;
        // Enqueues what was accepted while it was connecting.
        let mut work = self.begin(account.org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, account.org, account.integration_id).await?;
        resume(&mut work, &mut integration).await?;
        work.commit().await
    }

    /// Prepares a request for the endpoint under another key. Endpoints left behind by an earlier one are deleted: their
    /// secret is lost.
    async fn next_endpoint(&self, account: &StripeAccount, generation: i32) -> Result<StripeRequest> {
        let id = account.integration_id;
        let endpoints = self.0.stripe.webhook_endpoints(&account.key).await;
        let endpoints = endpoints.map_err(|error| stripe_unavailable(&error))?;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.integration_id() == Some(id)) {
            let deleted = self.0.stripe.delete_webhook_endpoint(&account.key, &endpoint.id).await;
            deleted.map_err(|error| stripe_unavailable(&error))?;
        }
        let mut work = self.begin(account.org).await?;
        let request = self.prepare_endpoint(&mut work, id, generation).await?;
        work.commit().await?;
        Ok(request)
    }

    async fn activate(&self, account: &StripeAccount, endpoint: WebhookEndpoint) -> Result<()> {
        let (org, id) = (account.org, account.integration_id);
        let Some(secret) = &endpoint.secret else {
            return Err(Error::internal(anyhow::anyhow!("Stripe created an endpoint and did not return its secret")));
        };
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        match integration.state {
            IntegrationState::Connecting => {
                integration.state = IntegrationState::Active;
                self.start_reconcilers(&mut work, &integration);
                work.record_event(event_payloads::provider(EventType::PaymentProviderConnected, &integration));
            }
            // It is being disconnected already, which removes the endpoint if it is known.
            IntegrationState::Disconnecting => {}
            IntegrationState::Active | IntegrationState::Paused => return Ok(()),
            IntegrationState::Disconnected => {
                work.rollback().await?;
                let deleted = self.0.stripe.delete_webhook_endpoint(&account.key, &endpoint.id).await;
                return deleted.map_err(|error| stripe_unavailable(&error));
            }
        }
        integration.provider_endpoint_id = Some(endpoint.id.clone());
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Webhook, Some(secret)).await?;
        work.commit().await
    }

    /// Nothing was created at Stripe, and nothing will be. The row is kept as history, without secrets.
    async fn abandon_connecting(&self, org: OrganizationId, id: IntegrationId) -> Result<()> {
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Connecting {
            integration.state = IntegrationState::Disconnected;
            store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
            store::integrations::set_secret(&mut work.tx, &self.0.sealer, &integration, Secret::Key, None).await?;
        }
        work.commit().await
    }

    /// Runs the job that completes an interrupted connecting call.
    pub(in crate::app) async fn finish_connecting(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        if self.get_integration(org, id).await?.state == IntegrationState::Connecting {
            match self.register_endpoint(org, id).await {
                Ok(()) | Err(Error::FailedPrecondition { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    /// Replaces the key with another one of the same account, and resumes what waited for it. Also returns the
    /// permissions of a restricted key.
    pub async fn rotate_integration_key(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        key: SecretString,
    ) -> Result<(Integration, Vec<Finding>)> {
        let known = self.get_integration(org, id).await?;
        let subject = format!("integration/{id}");
        if known.state == IntegrationState::Disconnected {
            let message = "the integration is disconnected; connect the Stripe account again";
            return Err(Error::precondition("INTEGRATION_DISCONNECTED", subject, message));
        }
        let checked = self.check_key(&key, known.event_source()).await?;
        match self.match_account(&known, &checked).await? {
            AccountMatch::Same => {}
            AccountMatch::Other => {
                let message =
                    "the key belongs to another Stripe account or mode; connect that account as a new integration";
                return Err(Error::precondition("KEY_OF_OTHER_ACCOUNT", subject, message));
            }
            AccountMatch::Unproved(why) => {
                let message = format!(
                    "it is not proved that the key belongs to this integration's Stripe account: {why}. Use a key that \
                     may read it, or connect the key's account as a new integration"
                );
                return Err(Error::precondition("ACCOUNT_NOT_PROVED", subject, message));
            }
        }
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Disconnected {
            return Err(Error::EtagMismatch { kind: "integration", id: id.to_string() });
        }
        if integration.provider_account_id.is_none() {
            integration.provider_account_id = checked.account;
            store::integrations::check_unique(&mut work.tx, &integration).await?;
        }
        integration.key_hint = hint(&checked.key);
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Key, Some(&checked.key)).await?;
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        store::integration_health::clear_key_faults(&mut work.tx, org, id).await?;
        resume(&mut work, &mut integration).await?;
        work.commit().await?;
        tracing::info!(integration.id = %id, key.hint = integration.key_hint, "API key rotated");
        Ok((integration, checked.findings.iter().map(scope_finding).collect()))
    }
}

/// The last four characters of a key.
fn hint(key: &SecretString) -> String {
    let key = key.expose_secret();
    key.char_indices().rev().nth(3).map(|(start, _)| key[start..].to_owned()).unwrap_or_default()
}

fn integration_hash(new: &NewIntegration) -> [u8; 32] {
    let relay = format!("{:?}", new.relay_provider_events);
    hash_request(
        "CreateIntegration",
        &[
            &new.code,
            &new.name,
            new.secret_key.expose_secret(),
            new.success_redirect_url.as_deref().unwrap_or_default(),
            if new.supports_3ds { "3ds" } else { "" },
            &relay,
        ],
    )
}
