//! A Stripe-hosted page. In setup mode it stores a payment method and moves no money.

use time::OffsetDateTime;

use super::{CheckoutSessionId, CustomerId, IntegrationId, OrganizationId};

/// Where a session stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// It is being made at Stripe.
    Creating,
    /// Its link can be used.
    Open,
    /// It was used.
    Complete,
    /// It ended unused.
    Expired,
    /// Stripe refused to make it.
    Failed,
}

/// A Checkout session that we made, in setup mode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutSession {
    /// Our id.
    pub id: CheckoutSessionId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// Whose page it is.
    pub customer_id: CustomerId,
    /// Through which integration it was made.
    pub integration_id: IntegrationId,
    /// Where it stands.
    pub state: SessionState,
    /// Where Stripe sends the person afterwards.
    pub success_url: String,
    /// Stripe's `cs_…`.
    pub provider_session_id: Option<String>,
    /// The link.
    pub url: Option<String>,
    /// When the link ends, as Stripe says.
    pub expire_time: Option<OffsetDateTime>,
    /// Whether the link is told by an event as soon as it exists; else the caller has it from the call's answer.
    pub tell: bool,
    /// When it was made.
    pub create_time: OffsetDateTime,
}
