//! Deliveries: Stripe's webhooks, taken in (`inbox`), understood and applied (`apply`, `facts`), or read from the events
//! list where Stripe has no address to post to (`poll`).

mod apply;
mod facts;
mod inbox;
mod poll;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

pub(super) use self::inbox::Inbox;
use super::App;
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::events::EventEnvelope;
use crate::{store, stripe};

/// How long an opened webhook secret is kept in memory.
const SECRET_PERIOD: Duration = Duration::seconds(10);
/// How many are kept (P11).
const SECRETS_MAX: usize = 10_000;

/// A webhook that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was not known before.
    New,
    /// It is a repeat.
    Known,
}

/// A webhook that was not taken; nothing is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No such integration, or one that takes no webhooks.
    UnknownIntegration,
    /// The signature is missing, wrong, or too old.
    BadSignature(String),
    /// It is signed, and no event.
    NotAnEvent(String),
    /// The database is not there: Stripe will try again.
    Unavailable,
}

/// Webhook secrets opened a moment ago.
#[derive(Default)]
pub(super) struct SecretCache(Mutex<HashMap<IntegrationId, (OrganizationId, SecretString, OffsetDateTime)>>);

impl SecretCache {
    fn get(&self, org: OrganizationId, id: IntegrationId, now: OffsetDateTime) -> Option<SecretString> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (owner, secret, until) = cache.get(&id)?;
        (*owner == org && now < *until).then(|| secret.clone())
    }

    fn put(&self, org: OrganizationId, id: IntegrationId, secret: SecretString, now: OffsetDateTime) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= SECRETS_MAX {
            cache.clear();
        }
        cache.insert(id, (org, secret, now + SECRET_PERIOD));
    }
}

impl App {
    /// Takes in a webhook: verified over the raw bytes, stored once, and only then answered (P6).
    pub async fn take_in(
        &self,
        org: OrganizationId,
        integration: IntegrationId,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<Taken, Rejection> {
        let now = self.clock().now();
        let secret = match self.webhook_secret(org, integration, now).await {
            Ok(Some(secret)) => secret,
            Ok(None) => return Err(Rejection::UnknownIntegration),
            Err(error) => {
                tracing::warn!(%error, "a webhook could not be checked");
                return Err(Rejection::Unavailable);
            }
        };
        stripe::signature::verify(&body, signature, &[secret], now)
            .map_err(|error| Rejection::BadSignature(error.to_string()))?;
        let envelope = EventEnvelope::parse(&body).map_err(|error| Rejection::NotAnEvent(error.to_owned()))?;
        let body = String::from_utf8(body).map_err(|_| Rejection::NotAnEvent("the body is not UTF-8".to_owned()))?;
        let delivery = new_delivery(org, integration, envelope, body, false, now);
        self.0.inbox.put(delivery).await.map_err(|_| Rejection::Unavailable)
    }

    async fn webhook_secret(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        now: OffsetDateTime,
    ) -> Result<Option<SecretString>> {
        if let Some(secret) = self.0.secrets.get(org, id, now) {
            return Ok(Some(secret));
        }
        let mut tx = self.read(org).await?;
        let secret = match store::integrations::secret(&mut tx, &self.0.sealer, org, id, Secret::Webhook).await {
            Err(Error::NotFound { .. }) => None,
            other => other?,
        };
        if let Some(secret) = &secret {
            self.0.secrets.put(org, id, secret.clone(), now);
        }
        Ok(secret)
    }
}

fn new_delivery(
    org: OrganizationId,
    integration: IntegrationId,
    envelope: EventEnvelope,
    body: String,
    polled: bool,
    now: OffsetDateTime,
) -> Delivery {
    Delivery {
        organization_id: org,
        integration_id: integration,
        provider_event_id: envelope.id,
        created: envelope.created,
        event_type: envelope.event_type,
        body: stripe::redact::without_client_secrets(body),
        polled,
        state: DeliveryState::Received,
        receive_time: now,
    }
}
