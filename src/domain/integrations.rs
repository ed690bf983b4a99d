//! An integration: one connection of an organization to one Stripe account.

use secrecy::SecretString;
use time::OffsetDateTime;

use super::{Error, IntegrationId, OrganizationId, Result};

/// Where an integration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntegrationState {
    /// Its key is checked and its webhook endpoint is being registered.
    Connecting,
    /// In use.
    Active,
    /// Stripe refuses the key (401) or a permission (403): work waits until the key is mended.
    Paused,
    /// New work is refused; what moves is brought to its end.
    Disconnecting,
    /// Endpoint and secrets are gone; history stays.
    Disconnected,
}

/// One connection of an organization to one Stripe account. Secrets are not part of it: `store` keeps them sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integration {
    /// Our id.
    pub id: IntegrationId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The caller's own name for it, unique in the organization.
    pub code: String,
    /// For people.
    pub name: String,
    /// Where it stands.
    pub state: IntegrationState,
    /// Why it is paused, for people.
    pub pause_reason: Option<String>,
    /// Whether the key moves real money.
    pub livemode: bool,
    /// Stripe's `acct_…`.
    pub provider_account_id: Option<String>,
    /// The last four characters of the key, to tell keys apart.
    pub key_hint: String,
    /// Stripe's `we_…`; absent where the events list is polled instead.
    pub provider_endpoint_id: Option<String>,
    /// Whether Stripe's events list is polled because there is no public address to post to.
    pub polls_events: bool,
    /// Where Checkout sends people afterwards, unless the call says otherwise.
    pub success_redirect_url: Option<String>,
    /// Whether a customer can be asked for 3-D Secure.
    pub supports_3ds: bool,
    /// Whether Stripe's own events are relayed into our log.
    pub relay_provider_events: bool,
    /// Rises with every change.
    pub version: i64,
    /// When it was made.
    pub create_time: OffsetDateTime,
    /// When it was last changed.
    pub update_time: OffsetDateTime,
}

/// What to do about a customer whose integration takes no new work.
pub const MOVE_CUSTOMER: &str = "move the customer to another one: UpdateCustomer with its integration_id";
/// What to do about a payment whose integration takes no new work.
pub const MOVE_PAYMENT: &str = "cancel the payment, move the customer to another one (UpdateCustomer with its \
                                integration_id), and create the payment again";

impl Integration {
    /// Whether new work is accepted: customers linked, payments made. A paused one accepts; its work waits.
    pub fn accepts_work(&self) -> bool {
        matches!(self.state, IntegrationState::Connecting | IntegrationState::Active | IntegrationState::Paused)
    }

    /// Refuses new work about `subject` where none is accepted, and says what to do instead.
    pub fn check_accepts_work(&self, subject: String, remedy: &str) -> Result<()> {
        if self.accepts_work() {
            return Ok(());
        }
        let since = if self.state == IntegrationState::Disconnected { "was" } else { "is being" };
        let message =
            format!("the integration {} ({}) {since} disconnected and takes no new work; {remedy}", self.code, self.id);
        Err(Error::precondition("INTEGRATION_DISCONNECTED", subject, message))
    }
}

/// What a caller gives to connect a Stripe account.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in Integration")]
pub struct NewIntegration {
    pub code: String,
    pub name: String,
    /// `sk_…` or `rk_…`.
    pub secret_key: SecretString,
    pub success_redirect_url: Option<String>,
    pub supports_3ds: bool,
    /// Absent: as the process is set up (off, but for `dev`).
    pub relay_provider_events: Option<bool>,
}

/// What a caller changes about an integration; `None` leaves a field as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Integration")]
pub struct IntegrationUpdate {
    pub name: Option<String>,
    pub success_redirect_url: Option<Option<String>>,
    pub supports_3ds: Option<bool>,
    pub relay_provider_events: Option<bool>,
}

/// One thing that was looked at when an integration was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub subject: FindingSubject,
    /// Which one: a permission such as `rak_customer_write`; else empty.
    pub name: String,
    /// How it is.
    pub state: FindingState,
    /// For people: what is wrong and what to do; empty where all is well.
    pub message: String,
}

/// What is looked at when an integration is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingSubject {
    /// The API key.
    Key,
    /// One of its permissions.
    Scope,
    /// The webhook endpoint.
    Endpoint,
}

/// How something was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingState {
    /// As it should be.
    Ok,
    /// A permission that the key lacks, or an endpoint that isn't there.
    Missing,
    /// It could not be found out without doing harm.
    Unproved,
    /// There, but not as it should be.
    Wrong,
}
