//! The kitchen: use cases. A file a noun, as everywhere; each holds what callers can ask for (methods of [`App`]) and
//! what its jobs do.
//!
//! Whatever changes anything is a [`work::Work`]: one transaction that writes rows, then the jobs that follow, then
//! events, and wakes whoever waits after the commit (P4, P5). No transaction is open while Stripe is called (P3): a job
//! reads and freezes in one, calls, and writes the outcome in the next.

mod customers;
mod deliveries;
mod events;
mod integrations;
mod jobs;
mod organizations;
mod pace;
mod payments;
mod reconcile;
mod retention;
mod tell;
mod timers;
mod wake;
mod work;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

pub use self::deliveries::{Rejection, Taken};
pub use self::events::EventLog;
use self::integrations::stripe_unavailable;
pub use self::jobs::LEASE_PERIOD;
use self::organizations::TokenCache;
pub use self::pace::SLOTS_EVERY;
pub use self::reconcile::Periods;
pub use self::timers::Timer;
use self::wake::Wake;
use crate::clock::Clock;
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payments::KEY_AGE_MAX;
use crate::domain::{Error, IntegrationId, OrganizationId, Result};
use crate::store::integrations::Secret;
use crate::store::{self, Hint, Pool, Scope, Sealer};
use crate::stripe;

/// What the use cases need to know of how the process is set up.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where Checkout sends people afterwards, unless the call or the integration says otherwise.
    pub default_success_url: String,
    /// The public address under which Stripe reaches the webhook door; absent: integrations poll.
    pub webhook_base_url: Option<String>,
    /// Whether new integrations relay Stripe's own events, unless the call says otherwise.
    pub relay_provider_events: bool,
    /// How long events are kept.
    pub event_retention: time::Duration,
    /// How long deliveries are kept; 35 days or more.
    pub delivery_retention: time::Duration,
    /// How long a customer has to prove who they are (3-D Secure), before the payment is taken back.
    pub action_period: time::Duration,
    /// How far apart reconcilers look.
    pub periods: Periods,
}

/// The use cases; clones share everything.
#[derive(Clone)]
pub struct App(Arc<Inner>);

struct Inner {
    pool: Pool,
    sealer: Sealer,
    stripe: stripe::Client,
    clock: Clock,
    settings: Settings,
    wake: Wake,
    tokens: TokenCache,
    secrets: deliveries::SecretCache,
    inbox: deliveries::Inbox,
}

/// A key in use: whose it is goes with it, so that an answer about it can be told apart from one about its successor.
struct Access {
    org: OrganizationId,
    integration: IntegrationId,
    key: stripe::ApiKey,
}

impl App {
    /// The use cases over these parts. Hints for other replicas are put into `hints`. Must be called within a tokio
    /// runtime: the inbox of webhooks is a task.
    pub fn new(
        pool: Pool,
        sealer: Sealer,
        stripe: stripe::Client,
        clock: Clock,
        settings: Settings,
        hints: mpsc::Sender<Hint>,
    ) -> Self {
        let wake = Wake::new(hints);
        let inbox = deliveries::Inbox::start(pool.clone(), clock.clone(), wake.clone());
        let tokens = TokenCache::default();
        let secrets = deliveries::SecretCache::default();
        Self(Arc::new(Inner { pool, sealer, stripe, clock, settings, wake, tokens, secrets, inbox }))
    }

    /// The clock that everything here is reckoned in.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Takes in a hint from another replica.
    pub fn hear(&self, hint: Hint) {
        self.0.wake.hear(hint);
    }

    /// Whether the database answers: what readiness means. Else why it does not, for the log.
    pub async fn check_database(&self) -> Result<(), String> {
        self.0.pool.ping().await
    }

    /// A transaction that only reads.
    async fn read(&self, org: OrganizationId) -> Result<store::Transaction> {
        self.0.pool.begin(Scope::Tenant(org)).await
    }

    /// An integration's API key, opened, unless the integration is paused: Stripe has refused the key, and is not asked
    /// again before it is mended.
    async fn access(&self, org: OrganizationId, integration: IntegrationId) -> Result<Access> {
        let (known, access) = self.any_access(org, integration).await?;
        if known.state == IntegrationState::Paused {
            return Err(Error::Unavailable {
                reason: "STRIPE_UNAVAILABLE",
                message: "the integration is paused until its key is mended".to_owned(),
                retry_after: Duration::from_mins(1),
            });
        }
        Ok(access)
    }

    /// An integration and its API key, opened. Calls with it keep within its account's limits.
    async fn any_access(&self, org: OrganizationId, id: IntegrationId) -> Result<(Integration, Access)> {
        let mut tx = self.read(org).await?;
        let integration = store::integrations::get(&mut tx, org, id).await?;
        let key = store::integrations::secret(&mut tx, &self.0.sealer, org, id, Secret::Key).await?;
        tx.close().await?;
        let key = key.ok_or_else(|| {
            Error::precondition(
                "INTEGRATION_DISCONNECTED",
                format!("integration/{id}"),
                "the integration is disconnected; connect the Stripe account anew",
            )
        })?;
        // Where Stripe names no account, the integration stands for it.
        let account = integration.provider_account_id.clone().unwrap_or_else(|| id.to_string());
        let key = self.0.stripe.key(key, &account, integration.livemode, org);
        Ok((integration, Access { org, integration: id, key }))
    }
}
