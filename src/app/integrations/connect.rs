//! Connecting a Stripe account, and giving it another key. The integration is committed as `CONNECTING`, with the
//! endpoint's frozen body and key, before the endpoint is registered: after a crash the same key replays the endpoint
//! together with its secret, which Stripe tells only once.

use secrecy::{ExposeSecret, SecretString};
use time::Duration;

use super::key::{CheckedKey, Sameness, scope_finding};
use super::{resume, stripe_unavailable};
use crate::app::payments::hash_request;
use crate::app::work::Work;
use crate::app::{Access, App, KEY_AGE_MAX, tell};
use crate::domain::integrations::{Finding, Integration, IntegrationState, NewIntegration};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::store::requests::{FrozenRequest, Purpose};
use crate::store::upkeep::ListProgress;
use crate::{store, stripe};

/// After how long a job looks whether the call that connects came to its end.
const CONNECT_PERIOD: Duration = Duration::seconds(30);

impl App {
    /// Connects a Stripe account: the key is checked at once, and webhooks are registered. Of a restricted key, what it may
    /// do comes along, unless the same request was answered before.
    pub async fn create_integration(
        &self,
        org: OrganizationId,
        request_id: Option<String>,
        new: NewIntegration,
    ) -> Result<(Integration, Vec<Finding>)> {
        let hash = integration_hash(&new);
        if let Some(request_id) = &request_id {
            let mut tx = self.read(org).await?;
            if let Some(known) = store::requests::known(&mut tx, org, request_id, &hash).await? {
                return Ok((store::integrations::get(&mut tx, org, known.into()).await?, Vec::new()));
            }
            tx.close().await?;
        }
        let polls_events = self.0.settings.webhook_base_url.is_none();
        let checked = self.check_key(&new.secret_key, |scope| scope.is_needed(polls_events, false)).await?;
        // It may be this very request that holds the account since a moment ago: its id is looked at first.
        let compared = self.refuse_connected(org, &checked).await;
        let mut work = self.begin(org).await?;
        if let Some(request_id) = &request_id {
            // The same request may have come twice, and the other one may have been quicker.
            store::requests::claim(&mut work.tx, org, request_id).await?;
            if let Some(known) = store::requests::known(&mut work.tx, org, request_id, &hash).await? {
                return Ok((store::integrations::get(&mut work.tx, org, known.into()).await?, Vec::new()));
            }
        }
        let integration = self.insert_integration(&mut work, &new, &checked, &compared?).await?;
        if let Some(request_id) = &request_id {
            store::requests::take(&mut work.tx, org, request_id, &hash, integration.id.0, work.now).await?;
        }
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
        work: &mut Work,
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
        self.refuse_connected_since(&mut work.tx, &integration, compared).await?;
        store::integrations::insert(&mut work.tx, &integration).await?;
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Key, Some(&checked.key)).await?;
        if polls_events {
            // Reading begins a little before now: what happened while we connected is not lost.
            let from = work.now - Duration::minutes(5);
            let progress = ListProgress { poll_time: Some(from), ..ListProgress::default() };
            store::upkeep::set_list_progress(&mut work.tx, work.org, id, &progress).await?;
            self.start_reconcilers(work, &integration);
            work.tell(tell::provider("payment_provider.connected", &integration));
        } else {
            self.freeze_endpoint(work, id, 1).await?;
            work.ask_at(JobKind::ConnectIntegration, id.0, work.now + CONNECT_PERIOD);
        }
        Ok(integration)
    }

    async fn freeze_endpoint(&self, work: &mut Work, id: IntegrationId, number: i32) -> Result<FrozenRequest> {
        let body = stripe::webhook_endpoints::create_body(&self.endpoint_url(work.org, id), work.org, id);
        work.freeze(Purpose::WebhookEndpoint, id.0, number, body).await
    }

    /// Where Stripe posts an integration's webhooks. It names the tenant, so that row level security holds from the
    /// first query on (P10); nothing in it ever changes.
    pub(super) fn endpoint_url(&self, org: OrganizationId, id: IntegrationId) -> String {
        let base = self.0.settings.webhook_base_url.as_deref().unwrap_or_default();
        format!("{}/webhooks/stripe/{org}/{id}", base.trim_end_matches('/'))
    }

    /// Registers the endpoint, or learns what became of an earlier try, and makes the integration `ACTIVE`.
    async fn register_endpoint(&self, org: OrganizationId, id: IntegrationId) -> Result<()> {
        let access = self.access(org, id).await?;
        let frozen = self.endpoint_request(org, id, &access.key).await?;
        let answer = self.0.stripe.create_webhook_endpoint(&access.key, &frozen.idempotency_key, &frozen.body).await;
        match answer {
            Ok(endpoint) => {
                self.activate(&access, endpoint).await?;
                // Whatever was given in while it was connecting is looked at.
                let mut work = self.begin(org).await?;
                let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
                resume(&mut work, &mut integration).await?;
                work.commit().await
            }
            Err(error) if error.verdict() == stripe::Verdict::Refused || error.is_key_trouble() => {
                self.give_up_connecting(org, id).await?;
                let message = format!("the webhook endpoint could not be registered: {error}");
                Err(Error::precondition("ENDPOINT_REFUSED", format!("integration/{id}"), message))
            }
            Err(error) => Err(stripe_unavailable(&error)),
        }
    }

    /// The frozen request to send. Once its key is too old, endpoints that an earlier try left behind are deleted, and
    /// one is made anew: their secret is lost.
    async fn endpoint_request(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        key: &stripe::ApiKey,
    ) -> Result<FrozenRequest> {
        let mut tx = self.read(org).await?;
        let newest = store::requests::newest_frozen(&mut tx, org, Purpose::WebhookEndpoint, id.0).await?;
        tx.close().await?;
        let number = match newest {
            Some(frozen) if self.clock().now() - frozen.create_time <= KEY_AGE_MAX => return Ok(frozen),
            Some(frozen) => frozen.number + 1,
            None => 1,
        };
        let endpoints = self.0.stripe.webhook_endpoints(key).await.map_err(|error| stripe_unavailable(&error))?;
        for endpoint in endpoints.iter().filter(|endpoint| endpoint.integration_id() == Some(id)) {
            let deleted = self.0.stripe.delete_webhook_endpoint(key, &endpoint.id).await;
            deleted.map_err(|error| stripe_unavailable(&error))?;
        }
        let mut work = self.begin(org).await?;
        let frozen = self.freeze_endpoint(&mut work, id, number).await?;
        work.commit().await?;
        Ok(frozen)
    }

    async fn activate(&self, access: &Access, endpoint: stripe::webhook_endpoints::WebhookEndpoint) -> Result<()> {
        let (org, id) = (access.org, access.integration);
        let Some(secret) = &endpoint.secret else {
            return Err(Error::internal(anyhow::anyhow!("Stripe made an endpoint and did not tell its secret")));
        };
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        match integration.state {
            IntegrationState::Connecting => {
                integration.state = IntegrationState::Active;
                self.start_reconcilers(&mut work, &integration);
                work.tell(tell::provider("payment_provider.connected", &integration));
            }
            // It is to go again already: the disconnect removes the endpoint, if it knows of it.
            IntegrationState::Disconnecting => {}
            IntegrationState::Active | IntegrationState::Paused => return Ok(()),
            IntegrationState::Disconnected => {
                work.abandon().await?;
                let deleted = self.0.stripe.delete_webhook_endpoint(&access.key, &endpoint.id).await;
                return deleted.map_err(|error| stripe_unavailable(&error));
            }
        }
        integration.provider_endpoint_id = Some(endpoint.id.clone());
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Webhook, Some(secret)).await?;
        work.commit().await
    }

    /// Nothing was made at Stripe, and nothing will be: the row stays as history, without secrets.
    async fn give_up_connecting(&self, org: OrganizationId, id: IntegrationId) -> Result<()> {
        let mut work = self.begin(org).await?;
        let mut integration = store::integrations::lock(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Connecting {
            integration.state = IntegrationState::Disconnected;
            store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
            store::integrations::set_secret(&mut work.tx, &self.0.sealer, &integration, Secret::Key, None).await?;
        }
        work.commit().await
    }

    /// The job of an integration whose connecting was cut short.
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

    /// Gives an integration another key of the same account, and resumes what waited for it. Of a restricted key, what it
    /// may do comes along.
    pub async fn rotate_integration_key(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        key: SecretString,
    ) -> Result<(Integration, Vec<Finding>)> {
        let known = self.get_integration(org, id).await?;
        let subject = format!("integration/{id}");
        if known.state == IntegrationState::Disconnected {
            let message = "the integration is disconnected; connect the Stripe account anew";
            return Err(Error::precondition("INTEGRATION_DISCONNECTED", subject, message));
        }
        let has_endpoint = known.provider_endpoint_id.is_some();
        let checked = self.check_key(&key, |scope| scope.is_needed(known.polls_events, has_endpoint)).await?;
        match self.same_account(&known, &checked).await? {
            Sameness::Same => {}
            Sameness::Other => {
                let message =
                    "the key belongs to another Stripe account or mode; connect that one as an integration of its own";
                return Err(Error::precondition("KEY_OF_OTHER_ACCOUNT", subject, message));
            }
            Sameness::Unproved(why) => {
                let message = format!(
                    "it is not proved that the key is of this integration's Stripe account: {why}. Take a key that may \
                     read it, or one of another account: connect that as an integration of its own"
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
            store::integrations::refuse_held(&mut work.tx, &integration).await?;
        }
        integration.key_hint = hint(&checked.key);
        let sealer = &self.0.sealer;
        store::integrations::set_secret(&mut work.tx, sealer, &integration, Secret::Key, Some(&checked.key)).await?;
        store::integrations::save(&mut work.tx, &mut integration, work.now).await?;
        store::upkeep::forget_forbidden(&mut work.tx, org, id).await?;
        resume(&mut work, &mut integration).await?;
        work.commit().await?;
        tracing::info!(integration.id = %id, key.hint = integration.key_hint, "the integration has another key");
        Ok((integration, checked.findings.iter().map(scope_finding).collect()))
    }
}

/// The last four characters.
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
