//! An integration: one connection of an organization to one Stripe account.

use secrecy::SecretString;
use time::OffsetDateTime;

use super::catch_up::Stage;
use super::{Error, IntegrationId, OrganizationId, Result};

/// The lifecycle state of an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum IntegrationState {
    /// Its key is being checked and its webhook endpoint registered.
    Connecting,
    /// In use.
    Active,
    /// Stripe rejects the key (401) or a permission (403). Work waits until the key is repaired.
    Paused,
    /// New work is refused; work in progress is finished.
    Disconnecting,
    /// Endpoint and secrets are deleted; history stays.
    Disconnected,
}

impl IntegrationState {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What reports the outcomes of an integration's payments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// Webhooks to its registered endpoint.
    Endpoint,
    /// Webhooks to an endpoint that is still to be registered.
    NewEndpoint,
    /// Stripe's events list.
    List,
}

/// One connection of an organization to one Stripe account. It does not contain the secrets, which `store` keeps
/// sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Integration {
    /// Our id.
    pub id: IntegrationId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The caller's identifier, unique in the organization.
    pub code: String,
    /// The display name.
    pub name: String,
    /// Its lifecycle state.
    pub state: IntegrationState,
    /// Why it is paused, as shown to people.
    pub pause_reason: Option<String>,
    /// Whether the key is a live key, which moves real money.
    pub livemode: bool,
    /// Set while it reads back from Stripe what its database has forgotten: what is read now. Nothing is created or
    /// moved at Stripe meanwhile.
    pub catch_up: Option<Stage>,
    /// Stripe's `acct_…`.
    pub provider_account_id: Option<String>,
    /// The last four characters of the key, which identify it to people.
    pub key_hint: String,
    /// Stripe's `we_…`; `None` if the events list is polled instead.
    pub provider_endpoint_id: Option<String>,
    /// Whether Stripe's events list is polled, because Stripe cannot reach a public address of ours.
    pub polls_events: bool,
    /// Where Checkout redirects customers, unless the call names another URL.
    pub success_redirect_url: Option<String>,
    /// Whether customers may be asked for 3-D Secure.
    pub supports_3ds: bool,
    /// Whether Stripe's own events are relayed in the event log.
    pub relay_provider_events: bool,
    /// Increases with every change.
    pub version: i64,
    /// When it was created.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

/// The remedy for a customer whose integration accepts no new work.
pub const MOVE_CUSTOMER: &str = "move the customer to another one: UpdateCustomer with its integration_id";
/// The remedy for a payment whose integration accepts no new work.
pub const MOVE_PAYMENT: &str = "cancel the payment, move the customer to another one (UpdateCustomer with its \
                                integration_id), and create the payment again";

impl Integration {
    /// What reports the outcomes of its payments.
    pub fn event_source(&self) -> EventSource {
        match &self.provider_endpoint_id {
            _ if self.polls_events => EventSource::List,
            Some(_) => EventSource::Endpoint,
            None => EventSource::NewEndpoint,
        }
    }

    /// Whether Stripe may have objects of ours that are not known here yet (P8). Once disconnected, nothing more is read.
    pub fn is_catching_up(&self) -> bool {
        self.catch_up.is_some() && self.state != IntegrationState::Disconnected
    }

    /// Whether new work is accepted, such as linking customers and creating payments. A paused integration accepts
    /// work, which then waits.
    pub fn accepts_work(&self) -> bool {
        matches!(self.state, IntegrationState::Connecting | IntegrationState::Active | IntegrationState::Paused)
    }

    /// Fails if no new work is accepted. The error names `subject` and the `remedy`.
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

/// A caller's request to connect a Stripe account.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as in Integration")]
pub struct NewIntegration {
    pub code: String,
    pub name: String,
    /// `sk_…` or `rk_…`.
    pub secret_key: SecretString,
    pub success_redirect_url: Option<String>,
    pub supports_3ds: bool,
    /// `None` means the default of the process: off, except in `dev`.
    pub relay_provider_events: Option<bool>,
}

/// A caller's change of an integration; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Integration")]
pub struct IntegrationUpdate {
    pub name: Option<String>,
    pub success_redirect_url: Option<Option<String>>,
    pub supports_3ds: Option<bool>,
    pub relay_provider_events: Option<bool>,
}

/// One result of checking an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was checked.
    pub subject: FindingSubject,
    /// The name of the permission, such as `rak_customer_write`; otherwise empty.
    pub name: String,
    /// The result of the check.
    pub state: FindingState,
    /// What is wrong and how to repair it; empty if nothing is wrong.
    pub message: String,
}

/// What is checked about an integration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingSubject {
    /// The API key.
    Key,
    /// One of the key's permissions.
    Scope,
    /// The webhook endpoint.
    Endpoint,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FindingState {
    /// In order.
    Ok,
    /// The key lacks the permission, or the endpoint does not exist.
    Missing,
    /// Cannot be checked without side effects.
    Unproved,
    /// The endpoint exists but differs from what is required.
    Wrong,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::fixtures;

    #[test]
    fn a_state_is_read_back_by_its_name() {
        for state in [IntegrationState::Connecting, IntegrationState::Active, IntegrationState::Disconnected] {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }

    #[test]
    fn only_an_integration_that_is_being_disconnected_or_was_takes_no_new_work() {
        for (state, expected) in [
            (IntegrationState::Connecting, None),
            (IntegrationState::Active, None),
            (IntegrationState::Paused, None),
            (IntegrationState::Disconnecting, Some("is being disconnected")),
            (IntegrationState::Disconnected, Some("was disconnected")),
        ] {
            let integration = Integration { state, ..fixtures::integration(false) };
            assert_eq!(integration.accepts_work(), expected.is_none(), "{state:?}");
            let checked = integration.check_accepts_work("customer/1".to_owned(), MOVE_CUSTOMER);
            match (checked, expected) {
                (Ok(()), None) => {}
                (Err(Error::FailedPrecondition { reason, subject, message }), Some(words)) => {
                    assert_eq!((reason, subject.as_str()), ("INTEGRATION_DISCONNECTED", "customer/1"));
                    assert!(message.contains(words) && message.contains(MOVE_CUSTOMER), "{message}");
                }
                (checked, _) => panic!("{state:?}: {checked:?}"),
            }
        }
    }

    #[test]
    fn outcomes_come_from_the_events_list_or_from_an_endpoint_that_may_still_be_missing() {
        let mut integration = fixtures::integration(false);
        assert_eq!(integration.event_source(), EventSource::NewEndpoint);
        integration.provider_endpoint_id = Some("we_1".to_owned());
        assert_eq!(integration.event_source(), EventSource::Endpoint);
        integration.polls_events = true;
        assert_eq!(integration.event_source(), EventSource::List, "an endpoint that Stripe cannot reach is not used");
    }
}
