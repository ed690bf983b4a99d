//! The application layer: use cases. Each file is named for its noun and holds what callers can request (methods of
//! [`App`]) and what its jobs do.
//!
//! Every change is a `UnitOfWork`: one transaction that writes rows, then follow-up jobs, then events, and notifies
//! workers and streams after the commit (P4, P5). No transaction is open during a call to Stripe (P3): a job reads and
//! prepares its request in one transaction, calls Stripe, and writes the outcome in the next.

mod customers;
mod deliveries;
mod event_payloads;
mod events;
mod integrations;
mod jobs;
mod notifications;
mod organizations;
mod payments;
mod rate_limits;
mod reconcile;
mod retention;
mod timers;
mod unit_of_work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::deliveries::{Ingested, Rejection};
use self::integrations::stripe_unavailable;
pub use self::jobs::LEASE_PERIOD;
use self::notifications::Notifier;
use self::organizations::TokenCache;
pub use self::rate_limits::SLOTS_EVERY;
pub use self::reconcile::Periods;
pub use self::timers::Timer;
use crate::clock::Clock;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payments::KEY_AGE_MAX;
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::store::{self, Notification, Pool, Scope, Sealer};
use crate::stripe;

/// What the use cases work on.
pub struct Adapters {
    /// Connections to Postgres.
    pub pool: Pool,
    /// Seals and opens secrets.
    pub sealer: Sealer,
    /// The client of Stripe's API.
    pub stripe: stripe::Client,
    /// The clock of all times.
    pub clock: Clock,
}

/// The settings of the use cases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Checkout redirects customers, unless the call or the integration sets its own URL.
    pub default_success_url: String,
    /// The public base URL of the webhook endpoint. `None`: integrations poll the events list instead.
    pub webhook_base_url: Option<String>,
    /// Whether new integrations relay Stripe's own events, unless the call says otherwise.
    pub relay_provider_events: bool,
    /// Retention of events.
    pub event_retention: time::Duration,
    /// Retention of deliveries, at least 35 days.
    pub delivery_retention: time::Duration,
    /// How long a customer has to authenticate (3-D Secure) before the payment fails.
    pub action_period: time::Duration,
    /// The intervals of the reconcilers.
    pub periods: Periods,
}

/// The use cases. Clones share all state.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    pool: Pool,
    sealer: Sealer,
    stripe: stripe::Client,
    clock: Clock,
    settings: Settings,
    notifier: Notifier,
    tokens: TokenCache,
    secrets: deliveries::SecretCache,
    inbox: deliveries::Inbox,
}

/// An integration's Stripe account, with the API key for calls to it. It names the integration, so that an error about
/// this key is not applied to a key that replaced it.
struct StripeAccount {
    org: OrganizationId,
    integration_id: IntegrationId,
    key: stripe::ApiKey,
}

impl App {
    /// Creates the use cases. Notifications for other replicas are sent to `notifications`. Must be called within a
    /// Tokio runtime: it starts the task that stores webhooks.
    pub fn new(adapters: Adapters, settings: Settings, notifications: mpsc::Sender<Notification>) -> Self {
        let Adapters { pool, sealer, stripe, clock } = adapters;
        let notifier = Notifier::new(notifications);
        let inbox = deliveries::Inbox::start(pool.clone(), clock.clone(), notifier.clone());
        let tokens = TokenCache::default();
        let secrets = deliveries::SecretCache::default();
        Self(Arc::new(Inner { pool, sealer, stripe, clock, settings, notifier, tokens, secrets, inbox }))
    }

    /// The clock of all times in this module.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Handles a notification from another replica.
    pub fn on_notification(&self, notification: Notification) {
        self.0.notifier.notify_local(notification);
    }

    /// Checks that the database answers, which readiness requires. The error is for the log.
    pub async fn check_database(&self) -> Result<(), String> {
        self.0.pool.ping().await
    }

    /// Begins a read-only transaction.
    async fn read(&self, org: OrganizationId) -> Result<store::Transaction> {
        self.0.pool.begin(Scope::Tenant(org)).await
    }

    /// The Stripe account of an integration that is not paused. A paused one is not called: Stripe rejected its key.
    async fn stripe_account(&self, org: OrganizationId, id: IntegrationId) -> Result<StripeAccount> {
        let (integration, account) = self.stripe_account_even_paused(org, id).await?;
        if integration.state == IntegrationState::Paused {
            return Err(Error::Unavailable {
                reason: "STRIPE_UNAVAILABLE",
                message: "the integration is paused, see its pause_reason; repair or rotate its API key".to_owned(),
                retry_after: Duration::from_mins(1),
            });
        }
        Ok(account)
    }

    /// An integration and its Stripe account, paused or not. Calls made with its key are rate-limited per Stripe
    /// account.
    async fn stripe_account_even_paused(
        &self,
        org: OrganizationId,
        id: IntegrationId,
    ) -> Result<(Integration, StripeAccount)> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        let key = store::integrations::secret(&mut tx, &self.0.sealer, org, id, Secret::Key).await?;
        tx.close().await?;
        let key = key.ok_or_else(|| {
            Error::precondition(
                "INTEGRATION_DISCONNECTED",
                format!("integration/{id}"),
                "the integration is disconnected; connect the Stripe account again",
            )
        })?;
        // If the account's id is unknown, the integration's id identifies its rate limits.
        let account_id = integration.provider_account_id.clone().unwrap_or_else(|| id.to_string());
        let key = self.0.stripe.rate_limiters().key(key, &account_id, integration.livemode, org);
        Ok((integration, StripeAccount { org, integration_id: id, key }))
    }
}
