//! A delivery: one of Stripe's webhooks, stored once.

use time::OffsetDateTime;

use super::{IntegrationId, OrganizationId};

/// What has become of a delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeliveryState {
    /// Durable, not applied yet.
    Received,
    /// Applied.
    Applied,
    /// Kept, but of no concern to us; with the reason.
    Ignored(String),
    /// Given up after many tries; with the reason.
    Parked(String),
}

impl DeliveryState {
    /// The name in the database and in metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Applied => "applied",
            Self::Ignored(_) => "ignored",
            Self::Parked(_) => "parked",
        }
    }
}

/// One of Stripe's webhooks, or an event read from its list; unique by (organization, integration, event id, created).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that it came for.
    pub integration_id: IntegrationId,
    /// Stripe's `evt_…`.
    pub provider_event_id: String,
    /// Stripe's own `created`, the same in every repeat: the partition's day comes from it.
    pub created: OffsetDateTime,
    /// Stripe's type, such as `payment_intent.succeeded`.
    pub event_type: String,
    /// The JSON as it came.
    pub body: String,
    /// Whether it was read from the list. Then it is in the account's API version, not ours, and objects are fetched.
    pub polled: bool,
    /// What has become of it.
    pub state: DeliveryState,
    /// When it came.
    pub receive_time: OffsetDateTime,
}
