//! Setup-mode Checkout sessions: pages hosted by Stripe that store a payment method and move no money.

use time::OffsetDateTime;

use super::{CheckoutSessionId, CustomerId, IntegrationId, OrganizationId};

/// The state of a Checkout session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum SessionState {
    /// Being created at Stripe.
    Creating,
    /// Its URL can be used.
    Open,
    /// The customer completed it.
    Complete,
    /// It expired unused.
    Expired,
    /// Stripe refused to create it.
    Failed,
}

impl SessionState {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A setup-mode Checkout session created by Paybridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckoutSession {
    /// Our id.
    pub id: CheckoutSessionId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The customer who stores a method on the page.
    pub customer_id: CustomerId,
    /// The integration that it was created through.
    pub integration_id: IntegrationId,
    /// Its current state.
    pub state: SessionState,
    /// Where Stripe redirects the customer afterwards.
    pub success_url: String,
    /// Stripe's `cs_…`.
    pub provider_session_id: Option<String>,
    /// The URL of the page.
    pub url: Option<String>,
    /// When the URL expires, as reported by Stripe.
    pub expire_time: Option<OffsetDateTime>,
    /// Whether an event reports the URL once it exists; otherwise the caller gets it from the response to its call.
    pub reports_url: bool,
    /// When it was requested.
    pub create_time: OffsetDateTime,
}
