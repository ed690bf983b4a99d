//! Deliveries: Stripe's events, ingested as webhooks (`inbox`) and applied (`apply`, `customer_events`). They are also
//! read from the events list (`poll`): if Stripe has no address to post to, and to find what webhooks missed.

mod apply;
mod customer_events;
mod inbox;
mod poll;
mod secrets;
mod signal;

use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

pub(super) use self::inbox::Inbox;
pub use self::inbox::Ingested;
pub(super) use self::secrets::SecretCache;
use self::secrets::Secrets;
pub(super) use self::signal::{DeliveryOutcome, IntentSource, SignalOrigin};
use super::App;
use crate::domain::deliveries::{Delivery, DeliveryState};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::stripe::events::{EventEnvelope, ListedEvent};
use crate::{store, stripe};

/// How long an unsealed webhook secret is cached.
const SECRET_PERIOD: Duration = Duration::seconds(10);

/// Why a webhook was rejected. Nothing is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The integration does not exist, or accepts no webhooks.
    UnknownIntegration,
    /// The signature is missing, wrong or too old.
    BadSignature(String),
    /// The signature is valid, but the body is not an event.
    NotAnEvent(String),
    /// The database is unavailable. Stripe will retry.
    Unavailable,
}

/// The minimum age of a cached secret before a signature that it does not match causes another read.
const SECRET_AGE_MIN: Duration = Duration::SECOND;

impl App {
    /// Ingests a webhook: verifies the signature over the raw bytes and stores the event once. It may be acknowledged
    /// only after this returns (P6).
    pub async fn ingest_webhook(
        &self,
        org: OrganizationId,
        integration: IntegrationId,
        signature: &str,
        body: Vec<u8>,
    ) -> Result<Ingested, Rejection> {
        let now = self.clock().now();
        let mut verified = Err("no secret was read".to_owned());
        // A signature that matches no cached secret may belong to an endpoint created since.
        for age in [SECRET_PERIOD, SECRET_AGE_MIN] {
            let secrets = match self.webhook_secrets(org, integration, now, age).await {
                Ok(secrets) if secrets.is_empty() => return Err(Rejection::UnknownIntegration),
                Ok(secrets) => secrets,
                Err(error) => {
                    if !error.is_database_unavailable() {
                        tracing::warn!(%error, "webhook signature not verified: secrets could not be read");
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
        let delivery = new_delivery(org, integration, ListedEvent { envelope, body }, now);
        self.0.inbox.put(delivery).await.map_err(|_| Rejection::Unavailable)
    }

    /// The secrets that may have signed an integration's webhooks, read no longer than `age` ago.
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

fn new_delivery(org: OrganizationId, integration: IntegrationId, event: ListedEvent, now: OffsetDateTime) -> Delivery {
    let ListedEvent { envelope, body } = event;
    Delivery {
        organization_id: org,
        integration_id: integration,
        provider_event_id: envelope.id,
        created: envelope.created,
        event_type: envelope.event_type,
        body: stripe::redact::redact_client_secrets(body),
        polled: false,
        state: DeliveryState::Received,
        receive_time: now,
    }
}
