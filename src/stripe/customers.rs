//! Customers at Stripe.

use serde::Deserialize;
use serde_json::Value;
use time::OffsetDateTime;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::{Error, UnknownCause};
use super::form::Form;
use super::list::{ListPage, created_since};
use super::metadata;
use super::object::{Metadata, metadata_id, metadata_text, null_as_default, reference};
use super::rate_limit::ApiKey;
use crate::domain::customers::{Address, Customer, CustomerUpdate};
use crate::domain::payment_methods::MethodKind;
use crate::domain::signals::{CustomerSnapshot, DefaultChange};
use crate::domain::stripe_requests::{IdempotencyKey, StripeRequest};

const LIST: &str = "/v1/customers";

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
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    email: String,
    #[serde(default, deserialize_with = "null_as_default")]
    phone: String,
    address: Option<WireAddress>,
    #[serde(default, deserialize_with = "null_as_default")]
    invoice_settings: InvoiceSettings,
    #[serde(default, deserialize_with = "reference")]
    default_source: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    metadata: Metadata,
}

#[derive(Debug, Deserialize)]
struct WireAddress {
    line1: Option<String>,
    line2: Option<String>,
    city: Option<String>,
    postal_code: Option<String>,
    state: Option<String>,
    country: Option<String>,
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

impl From<WireAddress> for Address {
    fn from(wire: WireAddress) -> Self {
        Self {
            line1: wire.line1.unwrap_or_default(),
            line2: wire.line2.unwrap_or_default(),
            city: wire.city.unwrap_or_default(),
            postal_code: wire.postal_code.unwrap_or_default(),
            state: wire.state.unwrap_or_default(),
            country: wire.country.unwrap_or_default(),
        }
    }
}

impl From<WireCustomer> for CustomerSnapshot {
    fn from(wire: WireCustomer) -> Self {
        let kinds = wire.metadata.get(metadata::PAYMENT_METHOD_KINDS).map_or("", String::as_str);
        Self {
            organization_id: metadata_id(&wire.metadata, metadata::ORGANIZATION_ID),
            installation: metadata_text(&wire.metadata, metadata::INSTALLATION),
            customer_id: metadata_id(&wire.metadata, metadata::CUSTOMER_ID),
            external_id: metadata_text(&wire.metadata, metadata::EXTERNAL_CUSTOMER_ID),
            kinds: kinds.split(',').filter_map(|kind| kind.parse().ok()).collect(),
            id: wire.id,
            name: wire.name,
            email: wire.email,
            phone: wire.phone,
            address: wire.address.map(Address::from),
        }
    }
}

/// The body that creates `customer` at Stripe. Empty fields are not sent. The metadata has what a customer that the
/// database has forgotten is made anew from.
pub fn create_body(installation: &str, customer: &Customer) -> String {
    let kinds: Vec<&str> = customer.provider_payment_methods.iter().copied().map(MethodKind::as_str).collect();
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
            (metadata::INSTALLATION, installation.to_owned()),
            (metadata::PAYMENT_METHOD_KINDS, kinds.join(",")),
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
        self.execute::<WireCustomer, _>(key, LIST, None, request).await
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
            let page =
                self.page::<WireCustomer, WireCustomer>(key, LIST, created_since(since), after.as_deref()).await?;
            if let Some(found) = page.items.into_iter().find(is_ours) {
                return Ok(Some(found.into()));
            }
            after = page.next;
            if after.is_none() {
                return Ok(None);
            }
        }
        Err(Error::unknown(UnknownCause::TooLong, "the account has more new customers than are read"))
    }

    /// A page of all customers of the account that were created at `since` or later and not deleted, newest first, from
    /// the one after `after` on. It is the first page again if `after` is not in the list.
    pub async fn customers_since(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        after: Option<&str>,
    ) -> Result<ListPage<CustomerSnapshot>, Error> {
        self.account_page::<WireCustomer, _>(key, LIST, created_since(since), after).await
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

    use super::super::scripted::{ScriptedServer, key, response};
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
        let body = create_body("test", &hooli());
        let expected = "name=Hooli%20%26%20Sons&email=a%40hooli.test&address[city]=Bern&address[country]=CH\
            &metadata[customer_id]=00000000-0000-0000-0000-000000000001\
            &metadata[external_customer_id]=hooli_1234\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002\
            &metadata[installation]=test&metadata[payment_method_kinds]=card%2Csepa_debit";
        assert_eq!(body, expected);
        assert_eq!(create_body("test", &hooli()), body);
    }

    #[tokio::test]
    async fn customers_of_the_account_are_read_with_all_our_metadata() {
        let ours = r#"{"id":"cus_2","name":"Hooli","email":"a@hooli.test","phone":null,
            "address":{"city":"Bern","country":"CH","line1":null},"metadata":{"installation":"test",
            "external_customer_id":"hooli_1234","payment_method_kinds":"sepa_debit,giropay,card",
            "customer_id":"00000000-0000-0000-0000-000000000001",
            "organization_id":"00000000-0000-0000-0000-000000000002"}}"#;
        let foreign = r#"{"id":"cus_1","name":null,"address":null,"metadata":{}}"#;
        let page = format!(r#"{{"object":"list","has_more":false,"data":[{ours},{foreign}]}}"#);
        let server = ScriptedServer::new(move |_| response(200, &page)).await;
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let page = server.client().customers_since(&key(), since, None).await.unwrap();
        assert_eq!(server.requests()[0].target, "/v1/customers?created[gte]=1700000000&limit=100");
        let expected = CustomerSnapshot {
            id: "cus_2".to_owned(),
            name: "Hooli".to_owned(),
            email: "a@hooli.test".to_owned(),
            phone: String::new(),
            address: Some(Address { city: "Bern".to_owned(), country: "CH".to_owned(), ..Address::default() }),
            organization_id: Some(Uuid::from_u128(2)),
            installation: Some("test".to_owned()),
            customer_id: Some(Uuid::from_u128(1)),
            external_id: Some("hooli_1234".to_owned()),
            kinds: vec![MethodKind::SepaDebit, MethodKind::Card],
        };
        assert_eq!((page.items.len(), &page.items[0], page.next), (2, &expected, None));
        assert_eq!((page.items[1].organization_id, page.items[1].kinds.len()), (None, 0));
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
