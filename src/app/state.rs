//! What the use cases share: the adapters and settings, caches, and the queue of webhooks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::deliveries::{Inbox, SecretCache};
use super::notifications::Notifier;
use super::settings::Settings;
use super::token_cache::TokenCache;
use crate::clock::Clock;
use crate::domain::catch_up::CatchUpReason;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::store::{self, Notification, Pool, Scope, Sealer};
use crate::stripe;

/// For how long an integration may collect after its last contact with Stripe, at least, in real time, however fast the
/// clock runs.
const CONTACT_REAL_MIN: Duration = Duration::from_secs(5);

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

/// The use cases. Clones share all state.
#[derive(Clone)]
pub struct App(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub pool: Pool,
    pub sealer: Sealer,
    pub stripe: stripe::Client,
    pub clock: Clock,
    pub settings: Settings,
    pub notifier: Notifier,
    pub tokens: TokenCache,
    pub secrets: SecretCache,
    pub inbox: Inbox,
}

/// An integration's Stripe account, with the API key for calls to it. It names the integration, so that an error about
/// this key is not applied to a key that replaced it.
pub(super) struct StripeAccount {
    pub org: OrganizationId,
    pub integration_id: IntegrationId,
    pub key: stripe::ApiKey,
}

impl App {
    /// Creates the use cases. Notifications for other replicas are sent to `notifications`. Must be called within a
    /// Tokio runtime: it starts the task that stores webhooks.
    pub fn new(adapters: Adapters, settings: Settings, notifications: mpsc::Sender<Notification>) -> Self {
        let Adapters { pool, sealer, stripe, clock } = adapters;
        let notifier = Notifier::new(notifications);
        let inbox = Inbox::start(pool.clone(), clock.clone(), notifier.clone());
        let tokens = TokenCache::default();
        let secrets = SecretCache::default();
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
    pub(super) async fn read(&self, org: OrganizationId) -> Result<store::Transaction> {
        self.0.pool.begin(Scope::Tenant(org)).await
    }

    /// The Stripe account of an integration that is not paused. A paused one is not called: Stripe rejected its key.
    pub(super) async fn stripe_account(&self, org: OrganizationId, id: IntegrationId) -> Result<StripeAccount> {
        let (integration, account) = self.stripe_account_even_paused(org, id).await?;
        check_not_paused(&integration)?;
        Ok(account)
    }

    /// The Stripe account of an integration that catches up, for the job that does so.
    pub(super) async fn stripe_account_to_catch_up(
        &self,
        org: OrganizationId,
        id: IntegrationId,
    ) -> Result<StripeAccount> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        check_not_paused(&integration)?;
        let account = self.open_account(tx, &integration).await?;
        Ok(account)
    }

    /// An integration and its Stripe account, paused or not. Calls made with its key are rate-limited per Stripe
    /// account. While the integration catches up, the key is read-only.
    pub(super) async fn stripe_account_even_paused(
        &self,
        org: OrganizationId,
        id: IntegrationId,
    ) -> Result<(Integration, StripeAccount)> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        let contact = store::contacts::get(&mut tx, org, id).await?;
        let mut account = self.open_account(tx, &integration).await?;
        let is_in_use = matches!(integration.state, IntegrationState::Active | IntegrationState::Disconnecting);
        if contact.catch_up.is_some() {
            account.key = account.key.read_only();
        } else if is_in_use && contact.is_stale(self.clock().now(), self.contact_max()) {
            self.begin_catch_up(org, id, CatchUpReason::Silence).await?;
            account.key = account.key.read_only();
        }
        Ok((integration, account))
    }

    /// For how long an integration may collect after its last contact with Stripe.
    pub(super) fn contact_max(&self) -> time::Duration {
        self.0.settings.periods.contact_max.max(self.clock().shown(CONTACT_REAL_MIN))
    }

    /// Reads and opens an integration's key.
    async fn open_account(&self, mut tx: store::Transaction, integration: &Integration) -> Result<StripeAccount> {
        let (org, id) = (integration.organization_id, integration.id);
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
        Ok(StripeAccount { org, integration_id: id, key })
    }
}

/// A paused integration is not called: Stripe rejected its key.
fn check_not_paused(integration: &Integration) -> Result<()> {
    if integration.state != IntegrationState::Paused {
        return Ok(());
    }
    Err(Error::Unavailable {
        reason: "STRIPE_UNAVAILABLE",
        message: "the integration is paused, see its pause_reason; repair or rotate its API key".to_owned(),
        retry_after: Duration::from_mins(1),
    })
}
