//! The settings of the use cases.

use time::Duration;

/// The settings of the use cases.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The name of this installation, part of every idempotency key, and of the metadata of every object at Stripe.
    pub installation: String,
    /// Where Checkout redirects customers, unless the call or the integration sets its own URL.
    pub default_success_url: String,
    /// The public base URL of the webhook endpoint. `None`: integrations poll the events list instead.
    pub webhook_base_url: Option<String>,
    /// Whether new integrations relay Stripe's own events, unless the call says otherwise.
    pub relay_provider_events: bool,
    /// Retention of events.
    pub event_retention: Duration,
    /// Retention of deliveries, at least 35 days.
    pub delivery_retention: Duration,
    /// How long a customer has to authenticate (3-D Secure) before the payment fails.
    pub action_period: Duration,
    /// The intervals of the reconcilers.
    pub periods: Periods,
}

/// The intervals of the reconcilers, in clock time.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// Of the events list if it replaces webhooks, with a test key.
    pub poll_test: Duration,
    /// Of the events list if it replaces webhooks, with a live key: Stripe rations reads.
    pub poll_live: Duration,
    /// Of the events list in addition to webhooks, with a test key.
    pub list_test: Duration,
    /// Of the events list in addition to webhooks, with a live key.
    pub list_live: Duration,
    /// Of the sweep.
    pub sweep: Duration,
    /// Of the check of the webhook endpoint, with a test key.
    pub endpoint_test: Duration,
    /// Of the check of the webhook endpoint, with a live key: Stripe rations reads.
    pub endpoint_live: Duration,
    /// For how long an integration may collect after Stripe has confirmed that its database is the one in use. The check
    /// of the endpoint renews it.
    pub contact_max: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            poll_test: Duration::seconds(5),
            poll_live: Duration::minutes(5),
            list_test: Duration::MINUTE,
            list_live: Duration::minutes(10),
            sweep: Duration::MINUTE,
            endpoint_test: Duration::MINUTE,
            endpoint_live: Duration::minutes(8),
            contact_max: Duration::minutes(10),
        }
    }
}
