//! Deliveries: Stripe's webhooks, taken in (`inbox`), understood and applied (`apply`, `facts`), or read from the events
//! list: where Stripe has no address to post to, and for what webhooks missed (`poll`).

mod apply;
mod facts;
mod inbox;
mod poll;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

pub(super) use self::facts::About;
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

/// How old a secret in memory is at least when a signature that it did not make leads to another look.
const SECRET_AGE_MIN: Duration = Duration::SECOND;

/// An integration's webhook secrets, opened: two while its endpoint is being replaced.
#[derive(Clone)]
struct Secrets {
    org: OrganizationId,
    open: Vec<SecretString>,
    read_time: OffsetDateTime,
}

/// Webhook secrets opened a moment ago.
#[derive(Default)]
pub(super) struct SecretCache(Mutex<HashMap<IntegrationId, Secrets>>);

impl SecretCache {
    /// Secrets that are at most so old.
    fn get(&self, org: OrganizationId, id: IntegrationId, now: OffsetDateTime, age: Duration) -> Option<Secrets> {
        let cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cache.get(&id).filter(|secrets| secrets.org == org && now < secrets.read_time + age).cloned()
    }

    fn put(&self, id: IntegrationId, secrets: Secrets) {
        let mut cache = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= SECRETS_MAX {
            cache.clear();
        }
        cache.insert(id, secrets);
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
        let mut verified = Err("no secret was looked at".to_owned());
        // A signature that no secret in memory has made may be that of an endpoint which was made since.
        for age in [SECRET_PERIOD, SECRET_AGE_MIN] {
            let secrets = match self.webhook_secrets(org, integration, now, age).await {
                Ok(secrets) if secrets.is_empty() => return Err(Rejection::UnknownIntegration),
                Ok(secrets) => secrets,
                Err(error) => {
                    if !error.is_database_away() {
                        tracing::warn!(%error, "a webhook could not be checked");
                    }
                    return Err(Rejection::Unavailable);
                }
            };
            verified = stripe::signature::verify(&body, signature, &secrets, now).map_err(|error| error.to_string());
            if verified.is_ok() {
                break;
            }
        }
        verified.map_err(Rejection::BadSignature)?;
        let envelope = EventEnvelope::parse(&body).map_err(|error| Rejection::NotAnEvent(error.to_owned()))?;
        let body = String::from_utf8(body).map_err(|_| Rejection::NotAnEvent("the body is not UTF-8".to_owned()))?;
        let delivery = new_delivery(org, integration, envelope, body, false, now);
        self.0.inbox.put(delivery).await.map_err(|_| Rejection::Unavailable)
    }

    /// The secrets that an integration's webhooks may be signed with, none of them read longer than `age` ago.
    async fn webhook_secrets(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        now: OffsetDateTime,
        age: Duration,
    ) -> Result<Vec<SecretString>> {
        if let Some(secrets) = self.0.secrets.get(org, id, now, age) {
            return Ok(secrets.open);
        }
        let mut open = Vec::new();
        let mut tx = self.read(org).await?;
        for which in [Secret::Webhook, Secret::OldWebhook] {
            match store::integrations::secret(&mut tx, &self.0.sealer, org, id, which).await {
                Err(Error::NotFound { .. }) => {}
                other => open.extend(other?),
            }
        }
        if !open.is_empty() {
            self.0.secrets.put(id, Secrets { org, open: open.clone(), read_time: now });
        }
        Ok(open)
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
