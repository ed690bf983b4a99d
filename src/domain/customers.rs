//! A customer of the billing system, and its link to a Stripe customer.

use time::OffsetDateTime;

use super::payment_methods::MethodKind;
use super::{Currency, CustomerId, IntegrationId, OrganizationId, PaymentMethodId};

/// The state of the link to a Stripe customer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum LinkState {
    /// There is no Stripe customer, so it cannot be charged.
    None,
    /// It is being created at Stripe, or the given id is being verified.
    Pending,
    /// `provider_customer_id` is an existing Stripe customer.
    Linked,
    /// Stripe refused; see [`Customer::link_error`].
    Failed,
}

impl LinkState {
    /// The name in the database.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A postal address. All parts are optional free text, except the country, which is ISO 3166-1 alpha-2.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Address {
    pub line1: String,
    pub line2: String,
    pub city: String,
    pub postal_code: String,
    pub state: String,
    pub country: String,
}

/// A customer of the billing system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    /// Our id.
    pub id: CustomerId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The billing system's id, unique in the organization.
    pub external_id: String,
    /// Written to Stripe.
    pub name: String,
    /// Written to Stripe.
    pub email: String,
    /// Written to Stripe.
    pub phone: String,
    /// Written to Stripe.
    pub address: Option<Address>,
    /// The integration that it is, or will be, linked through.
    pub integration_id: Option<IntegrationId>,
    /// The state of the link to a Stripe customer.
    pub link_state: LinkState,
    /// Stripe's error, if the link failed.
    pub link_error: Option<String>,
    /// Stripe's `cus_…`. While the link is pending, the id being verified.
    pub provider_customer_id: Option<String>,
    /// The kinds of payment method that may be used; never empty.
    pub provider_payment_methods: Vec<MethodKind>,
    /// Whether Paybridge creates the customer at Stripe.
    pub sync_with_provider: bool,
    /// The method that invoices are charged to.
    pub default_payment_method_id: Option<PaymentMethodId>,
    /// Fields changed here and not yet written to Stripe: `name`, `email`, `phone`, `address`.
    pub unpushed_fields: Vec<String>,
    /// Increases with every change.
    pub version: i64,
    /// When it was created.
    pub create_time: OffsetDateTime,
    /// When it last changed.
    pub update_time: OffsetDateTime,
}

impl Customer {
    /// The allowed kinds that can pay in `currency`, in the customer's order: the `payment_method_types` of an intent.
    pub fn kinds_for(&self, currency: Currency) -> Vec<MethodKind> {
        self.provider_payment_methods.iter().copied().filter(|kind| kind.takes(currency)).collect()
    }

    /// The update that writes the unpushed fields to Stripe.
    pub fn unpushed(&self) -> CustomerUpdate {
        let has = |field: &str| self.unpushed_fields.iter().any(|name| name == field);
        CustomerUpdate {
            name: has("name").then(|| self.name.clone()),
            email: has("email").then(|| self.email.clone()),
            phone: has("phone").then(|| self.phone.clone()),
            address: has("address").then(|| self.address.clone()),
            ..CustomerUpdate::default()
        }
    }

    /// Whether its link is still pending and unchanged since `seen` was read.
    pub fn has_same_link(&self, seen: &Self) -> bool {
        self.link_state == LinkState::Pending
            && self.integration_id == seen.integration_id
            && self.provider_customer_id == seen.provider_customer_id
    }

    /// Stripe's `cus_…`, if the link is established.
    pub fn linked_provider_id(&self) -> Option<&str> {
        (self.link_state == LinkState::Linked).then_some(self.provider_customer_id.as_deref()).flatten()
    }
}

/// A caller's request to create a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Customer")]
pub struct NewCustomer {
    pub external_id: String,
    pub name: String,
    pub email: String,
    pub phone: String,
    pub address: Option<Address>,
    /// By id or by code. `None` means the organization's only live integration, if a link is requested.
    pub integration: Option<IntegrationRef>,
    pub provider_customer_id: Option<String>,
    /// Empty means `card`.
    pub provider_payment_methods: Vec<MethodKind>,
    pub sync_with_provider: bool,
}

/// How a caller identifies an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntegrationRef {
    /// Our id.
    Id(IntegrationId),
    /// The caller's code for it.
    Code(String),
}

/// A caller's change of a customer; `None` leaves a field unchanged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Customer")]
pub struct CustomerUpdate {
    pub name: Option<String>,
    pub email: Option<String>,
    pub phone: Option<String>,
    pub address: Option<Option<Address>>,
    pub integration: Option<IntegrationRef>,
    pub provider_customer_id: Option<String>,
    pub provider_payment_methods: Option<Vec<MethodKind>>,
    pub sync_with_provider: Option<bool>,
}

/// How a caller identifies a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomerRef {
    /// Our id.
    Id(CustomerId),
    /// The billing system's id.
    ExternalId(String),
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::fixtures::customer;

    #[test]
    fn a_link_state_is_read_back_by_its_name() {
        for state in [LinkState::None, LinkState::Pending, LinkState::Linked, LinkState::Failed] {
            assert_eq!(state.as_str().parse(), Ok(state));
        }
    }

    #[test]
    fn only_the_fields_that_changed_here_are_written_to_stripe() {
        let mut customer = Customer {
            name: "Ada".to_owned(),
            email: "ada@example.com".to_owned(),
            phone: "+49 30 1".to_owned(),
            address: Some(Address { city: "Berlin".to_owned(), ..Address::default() }),
            ..customer(None)
        };
        assert_eq!(customer.unpushed(), CustomerUpdate::default());
        customer.unpushed_fields = vec!["email".to_owned(), "address".to_owned()];
        let expected = CustomerUpdate {
            email: Some(customer.email.clone()),
            address: Some(customer.address.clone()),
            ..CustomerUpdate::default()
        };
        assert_eq!(customer.unpushed(), expected);
        customer.unpushed_fields = vec!["name".to_owned(), "phone".to_owned()];
        let expected = CustomerUpdate {
            name: Some(customer.name.clone()),
            phone: Some(customer.phone.clone()),
            ..CustomerUpdate::default()
        };
        assert_eq!(customer.unpushed(), expected);
    }

    #[test]
    fn what_was_read_for_a_link_counts_only_while_the_link_is_pending_and_unchanged() {
        let pending = Customer { link_state: LinkState::Pending, ..customer(None) };
        assert!(pending.has_same_link(&pending));
        for changed in [
            Customer { link_state: LinkState::Linked, ..pending.clone() },
            Customer { link_state: LinkState::None, ..pending.clone() },
            Customer { integration_id: Some(Uuid::from_u128(2).into()), ..pending.clone() },
            Customer { provider_customer_id: Some("cus_other".to_owned()), ..pending.clone() },
        ] {
            assert!(!changed.has_same_link(&pending), "{changed:?}");
        }
    }

    #[test]
    fn an_id_that_is_still_being_verified_is_not_a_stripe_customer() {
        for (link_state, expected) in [
            (LinkState::Linked, Some("cus_1")),
            (LinkState::Pending, None),
            (LinkState::Failed, None),
            (LinkState::None, None),
        ] {
            let customer = Customer { link_state, ..customer(None) };
            assert_eq!(customer.linked_provider_id(), expected, "{link_state:?}");
        }
    }
}
