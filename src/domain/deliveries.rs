//! A delivery: one Stripe webhook event, stored once.

use time::OffsetDateTime;

use super::{IntegrationId, OrganizationId};

/// The processing state of a delivery.
#[derive(Clone, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum DeliveryState {
    /// Stored, not applied yet.
    Received,
    /// Applied to the objects that it is about.
    Applied,
    /// Kept but not applicable, with the reason.
    Ignored(String),
    /// Abandoned after too many failed attempts, with the reason.
    Parked(String),
}

impl DeliveryState {
    /// The name in the database and in metrics.
    pub fn as_str(&self) -> &'static str {
        self.into()
    }
}

/// A Stripe webhook event, or an event read from the events list. Unique by (organization, integration, event id,
/// created).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The integration that received it.
    pub integration_id: IntegrationId,
    /// Stripe's `evt_…`.
    pub provider_event_id: String,
    /// Stripe's own `created`, identical in every repeat. It determines the daily partition.
    pub created: OffsetDateTime,
    /// Stripe's type, such as `payment_intent.succeeded`.
    pub event_type: String,
    /// The JSON exactly as received.
    pub body: String,
    /// Whether it was read from the events list. Such events are rendered in the account's API version instead of ours,
    /// so their objects are fetched.
    pub polled: bool,
    /// Where it is in processing.
    pub state: DeliveryState,
    /// When it was received or read.
    pub receive_time: OffsetDateTime,
}
