//! A customer of the billing system, and its link to a Stripe customer.

use time::OffsetDateTime;

use super::payment_methods::MethodKind;
use super::{Currency, CustomerId, IntegrationId, OrganizationId, PaymentMethodId};

/// Whether the customer has a counterpart at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// It lives here only, and can't be charged.
    None,
    /// It is being created at Stripe, or the given id is being checked.
    Pending,
    /// `provider_customer_id` is a live Stripe customer.
    Linked,
    /// Stripe refused; see the error.
    Failed,
}

/// A postal address. All parts are optional and free text, but for the country: ISO 3166-1 alpha-2.
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

/// The billing system's customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Customer {
    /// Our id.
    pub id: CustomerId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The billing system's own id, unique in the organization.
    pub external_id: String,
    /// For people; pushed to Stripe.
    pub name: String,
    /// Pushed to Stripe.
    pub email: String,
    /// Pushed to Stripe.
    pub phone: String,
    /// Pushed to Stripe.
    pub address: Option<Address>,
    /// The integration that it is, or is to be, linked through.
    pub integration_id: Option<IntegrationId>,
    /// Whether it has a counterpart at Stripe.
    pub link_state: LinkState,
    /// Stripe's refusal, where the link failed.
    pub link_error: Option<String>,
    /// Stripe's `cus_…`. While the link is pending: the id that is being checked.
    pub provider_customer_id: Option<String>,
    /// The kinds of payment method that it may use; never empty.
    pub provider_payment_methods: Vec<MethodKind>,
    /// Whether it is to be created in Stripe.
    pub sync_with_provider: bool,
    /// The method that invoices are charged to.
    pub default_payment_method_id: Option<PaymentMethodId>,
    /// The fields that were changed here and not pushed to Stripe yet: `name`, `email`, `phone`, `address`.
    pub unpushed_fields: Vec<String>,
    /// Rises with every change.
    pub version: i64,
    /// When it was made.
    pub create_time: OffsetDateTime,
    /// When it was last changed.
    pub update_time: OffsetDateTime,
}

impl Customer {
    /// The allowed kinds that take `currency`, in the customer's order: what an intent's `payment_method_types` is.
    pub fn kinds_for(&self, currency: Currency) -> Vec<MethodKind> {
        self.provider_payment_methods.iter().copied().filter(|kind| kind.takes(currency)).collect()
    }

    /// The change that carries the unpushed fields over to Stripe.
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

    /// Whether its link is still being worked out as it was when `seen` was read.
    pub fn has_same_link(&self, seen: &Self) -> bool {
        self.link_state == LinkState::Pending
            && self.integration_id == seen.integration_id
            && self.provider_customer_id == seen.provider_customer_id
    }

    /// Stripe's id of a customer that is really linked.
    pub fn linked_provider_id(&self) -> Option<&str> {
        (self.link_state == LinkState::Linked).then_some(self.provider_customer_id.as_deref()).flatten()
    }
}

/// What a caller gives to make a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in Customer")]
pub struct NewCustomer {
    pub external_id: String,
    pub name: String,
    pub email: String,
    pub phone: String,
    pub address: Option<Address>,
    /// By id or by code; absent: the organization's only live integration, if a link is asked for.
    pub integration: Option<IntegrationRef>,
    pub provider_customer_id: Option<String>,
    /// Empty: `card`.
    pub provider_payment_methods: Vec<MethodKind>,
    pub sync_with_provider: bool,
}

/// How a caller names an integration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IntegrationRef {
    /// Our id.
    Id(IntegrationId),
    /// The caller's code.
    Code(String),
}

/// What a caller changes about a customer; `None` leaves a field as it is.
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

/// How a caller names a customer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CustomerRef {
    /// Our id.
    Id(CustomerId),
    /// The billing system's id.
    ExternalId(String),
}
