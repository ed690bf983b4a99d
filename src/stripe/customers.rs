//! Customers at Stripe.

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::{Error, UnknownCause};
use super::form::Form;
use super::metadata;
use super::object::{Metadata, Page, null_as_default, reference};
use super::rate_limit::ApiKey;
use crate::domain::customers::{Address, Customer, CustomerUpdate};
use crate::domain::signals::DefaultChange;
use crate::domain::stripe_requests::{IdempotencyKey, StripeRequest};

/// The most pages of 100 that are read to find a customer (P11). With more, the search has no result.
const PAGES_MAX: usize = 50;

/// A customer at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProviderCustomer {
    /// `cus_…`.
    pub id: String,
    /// Whether it was deleted at Stripe. Reading a deleted customer succeeds.
    pub deleted: bool,
    /// The method that Stripe charges by default: `invoice_settings.default_payment_method`, else the legacy
    /// `default_source`.
    pub default_method: Option<String>,
}

#[derive(Debug, Deserialize)]
pub(super) struct WireCustomer {
    pub id: String,
    #[serde(default)]
    deleted: bool,
    #[serde(default, deserialize_with = "null_as_default")]
    invoice_settings: InvoiceSettings,
    #[serde(default, deserialize_with = "reference")]
    default_source: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
struct InvoiceSettings {
    #[serde(default, deserialize_with = "reference")]
    default_payment_method: Option<String>,
}

/// The old value of a field that an update changed: absent if unchanged, null if there was none.
#[derive(Deserialize)]
struct Replaced(#[serde(deserialize_with = "reference")] Option<String>);

impl WireCustomer {
    /// The method that Stripe charges by default.
    fn default_method(&self) -> Option<&String> {
        self.invoice_settings.default_payment_method.as_ref().or(self.default_source.as_ref())
    }

    /// The change of the default, given an update's `previous_attributes`; `None` if the effective default is the same.
    pub fn default_change(&self, previous: &Value) -> Result<Option<DefaultChange>, serde_json::Error> {
        let replaced = |pointer: &str| previous.pointer(pointer).map(Replaced::deserialize).transpose();
        let method = replaced("/invoice_settings/default_payment_method")?;
        let source = replaced("/default_source")?;
        let method = method.map_or_else(|| self.invoice_settings.default_payment_method.clone(), |it| it.0);
        let from = method.or_else(|| source.map_or_else(|| self.default_source.clone(), |it| it.0));
        let to = self.default_method().cloned();
        Ok((from != to).then_some(DefaultChange { from, to }))
    }
}

impl From<WireCustomer> for ProviderCustomer {
    fn from(wire: WireCustomer) -> Self {
        let default_method = wire.default_method().cloned();
        Self { id: wire.id, deleted: wire.deleted, default_method }
    }
}

/// The body that creates `customer` at Stripe. Empty fields are not sent.
pub fn create_body(customer: &Customer) -> String {
    let filled = |text: &'static str, value: &str| (!value.is_empty()).then(|| (text, value.to_owned()));
    let fields = [
        filled("name", &customer.name),
        filled("email", first_email(&customer.email)),
        filled("phone", &customer.phone),
    ];
    let mut form = fields.into_iter().flatten().fold(Form::new(), |form, (name, value)| form.push(name, value));
    for (part, value) in customer.address.iter().flat_map(address_parts) {
        if !value.is_empty() {
            form = form.push(&format!("address[{part}]"), value);
        }
    }
    form.push_map(
        "metadata",
        &[
            (metadata::CUSTOMER_ID, customer.id.to_string()),
            (metadata::EXTERNAL_CUSTOMER_ID, customer.external_id.clone()),
            (metadata::ORGANIZATION_ID, customer.organization_id.to_string()),
        ],
    )
    .into_body()
}

/// The body that applies an update at Stripe. It contains only what `update` names, so that a linked customer keeps its
/// other data at Stripe; an empty text clears a field. Empty if the update does not concern Stripe.
pub fn update_body(update: &CustomerUpdate) -> String {
    let form = Form::new()
        .push_some("name", update.name.as_deref())
        .push_some("email", update.email.as_deref().map(first_email))
        .push_some("phone", update.phone.as_deref());
    match &update.address {
        None => form,
        Some(None) => form.push("address", ""),
        Some(Some(address)) => address_parts(address)
            .into_iter()
            .fold(form, |form, (part, value)| form.push(&format!("address[{part}]"), value)),
    }
    .into_body()
}

/// The body that sets or clears Stripe's own default.
pub fn default_method_body(provider_payment_method_id: Option<&str>) -> String {
    let method = provider_payment_method_id.unwrap_or_default();
    Form::new().push("invoice_settings[default_payment_method]", method).into_body()
}

/// Billing systems may store several addresses in one field; Stripe accepts one.
fn first_email(email: &str) -> &str {
    email.split(',').next().unwrap_or_default().trim()
}

fn address_parts(address: &Address) -> [(&'static str, &str); 6] {
    [
        ("line1", &address.line1),
        ("line2", &address.line2),
        ("city", &address.city),
        ("postal_code", &address.postal_code),
        ("state", &address.state),
        ("country", &address.country),
    ]
}

impl Client {
    /// Creates a customer; the request's body is a stored [`create_body`].
    pub async fn create_customer(
        &self,
        key: &ApiKey,
        request: &StripeRequest,
    ) -> Result<Executed<ProviderCustomer>, Error> {
        self.execute::<WireCustomer, _>(key, "/v1/customers", None, request).await
    }

    /// Reads a customer. A deleted one is a result, not an error.
    pub async fn customer(&self, key: &ApiKey, id: &str) -> Result<ProviderCustomer, Error> {
        let call = Call::get("/v1/customers/{id}", Some(id), "");
        Ok(self.send::<WireCustomer>(key, call).await?.into())
    }

    /// The customer at Stripe whose metadata names `customer`, created at `since` or later, from the list.
    /// [`Error::Unknown`] if the list is too long to be read completely: then nothing is proved.
    pub async fn find_customer(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        customer: &Customer,
    ) -> Result<Option<ProviderCustomer>, Error> {
        let organization = customer.organization_id.to_string();
        let is_ours = |found: &WireCustomer| {
            found.metadata.get(metadata::EXTERNAL_CUSTOMER_ID) == Some(&customer.external_id)
                && found.metadata.get(metadata::ORGANIZATION_ID) == Some(&organization)
        };
        let mut after = None::<String>;
        for _ in 0..PAGES_MAX {
            let query = Form::new()
                .push("created[gte]", since.unix_timestamp())
                .push("limit", 100)
                .push_some("starting_after", after.as_deref())
                .into_body();
            let page: Page<WireCustomer> = self.send(key, Call::get("/v1/customers", None, &query)).await?;
            after = page.data.last().map(|found| found.id.clone());
            if let Some(found) = page.data.into_iter().find(is_ours) {
                return Ok(Some(found.into()));
            }
            if !page.has_more || after.is_none() {
                return Ok(None);
            }
        }
        Err(Error::unknown(UnknownCause::TooLong, "the account has more new customers than are read"))
    }

    /// Updates a customer; `body` is an [`update_body`] or a [`default_method_body`].
    pub async fn update_customer(
        &self,
        key: &ApiKey,
        id: &str,
        idempotency_key: &IdempotencyKey,
        body: &str,
    ) -> Result<ProviderCustomer, Error> {
        let call = Call::post("/v1/customers/{id}", Some(id), idempotency_key, body);
        Ok(self.send::<WireCustomer>(key, call).await?.into())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::fixtures;

    fn hooli() -> Customer {
        Customer {
            id: Uuid::from_u128(1).into(),
            organization_id: Uuid::from_u128(2).into(),
            external_id: "hooli_1234".to_owned(),
            name: "Hooli & Sons".to_owned(),
            email: " a@hooli.test, b@hooli.test".to_owned(),
            address: Some(Address { city: "Bern".to_owned(), country: "CH".to_owned(), ..Address::default() }),
            ..fixtures::customer(None)
        }
    }

    #[test]
    fn p2_the_same_customer_gives_the_same_bytes_and_nothing_empty() {
        let body = create_body(&hooli());
        let expected = "name=Hooli%20%26%20Sons&email=a%40hooli.test&address[city]=Bern&address[country]=CH\
            &metadata[customer_id]=00000000-0000-0000-0000-000000000001\
            &metadata[external_customer_id]=hooli_1234\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002";
        assert_eq!(body, expected);
        assert_eq!(create_body(&hooli()), body);
    }

    #[test]
    fn an_update_sends_only_its_fields_and_clears_empty_ones() {
        assert_eq!(update_body(&CustomerUpdate::default()), "");
        let update = CustomerUpdate {
            name: Some("New".to_owned()),
            phone: Some(String::new()),
            address: Some(None),
            ..CustomerUpdate::default()
        };
        assert_eq!(update_body(&update), "name=New&phone=&address=");
        assert_eq!(default_method_body(Some("pm_1")), "invoice_settings[default_payment_method]=pm_1");
        assert_eq!(default_method_body(None), "invoice_settings[default_payment_method]=");
    }

    #[test]
    fn a_deleted_customer_and_an_expanded_default_are_parsed() {
        let read = |json: &str| ProviderCustomer::from(serde_json::from_str::<WireCustomer>(json).unwrap());
        assert!(read(r#"{"id":"cus_1","object":"customer","deleted":true}"#).deleted);
        let expanded =
            read(r#"{"id":"cus_1","invoice_settings":{"default_payment_method":{"id":"pm_1","type":"card"}}}"#);
        assert_eq!(expanded.default_method.as_deref(), Some("pm_1"));
        assert_eq!(read(r#"{"id":"cus_1","invoice_settings":null,"default_source":null}"#).default_method, None);
        let old = read(r#"{"id":"cus_1","invoice_settings":{},"default_source":{"id":"card_1","object":"card"}}"#);
        assert_eq!(old.default_method.as_deref(), Some("card_1"));
        let both =
            read(r#"{"id":"cus_1","invoice_settings":{"default_payment_method":"pm_1"},"default_source":"card_1"}"#);
        assert_eq!(both.default_method.as_deref(), Some("pm_1"), "Stripe's precedence");
    }
}
