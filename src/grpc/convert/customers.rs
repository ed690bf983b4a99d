//! Converts customers.

use super::payment_methods::kind;
use super::{Fields, etag, masked_fields, timestamp};
use crate::domain::Result;
use crate::domain::customers::{
    Address, Customer, CustomerRef, CustomerUpdate, IntegrationRef, LinkState, NewCustomer,
};
use crate::grpc::proto::{self, ProviderLinkState, create_customer_request};

/// The maximum length of most strings, in characters.
pub(in crate::grpc) const TEXT_LENGTH_MAX: usize = 255;
/// Stripe's limit.
const EMAIL_LENGTH_MAX: usize = 512;
/// Stripe's limit.
const PHONE_LENGTH_MAX: usize = 20;

/// Parses a CreateCustomerRequest: the `request_id` and the customer.
pub(in crate::grpc) fn new_customer(request: proto::CreateCustomerRequest) -> Result<(String, NewCustomer)> {
    use create_customer_request::Integration;
    let mut fields = Fields::default();
    let request_id = fields.request_id(request.request_id);
    let customer = NewCustomer {
        external_id: fields.required_text("external_id", request.external_id, TEXT_LENGTH_MAX),
        name: fields.text("name", request.name, TEXT_LENGTH_MAX),
        email: fields.email("email", &request.email),
        phone: fields.text("phone", request.phone, PHONE_LENGTH_MAX),
        address: request.address.map(|address| fields.address("address", address)),
        integration: request.integration.map(|integration| match integration {
            Integration::IntegrationId(id) => IntegrationRef::Id(fields.id("integration_id", &id)),
            Integration::IntegrationCode(code) => {
                IntegrationRef::Code(fields.required_text("integration_code", code, TEXT_LENGTH_MAX))
            }
        }),
        provider_customer_id: fields
            .optional_provider_customer_id("provider_customer_id", request.provider_customer_id),
        provider_payment_methods: fields.kinds("provider_payment_methods", &request.provider_payment_methods),
        sync_with_provider: request.sync_with_provider,
    };
    if customer.sync_with_provider && customer.provider_customer_id.is_some() {
        let text = "cannot be combined with provider_customer_id; a customer is either created at Stripe or linked";
        fields.add_violation("sync_with_provider", text);
    }
    fields.check()?;
    Ok((request_id, customer))
}

/// Parses a CreateCheckoutUrlRequest: the `request_id`, the customer and the `success_url`.
pub(in crate::grpc) fn checkout_url(
    request: proto::CreateCheckoutUrlRequest,
) -> Result<(String, CustomerRef, Option<String>)> {
    let mut fields = Fields::default();
    let request_id = fields.request_id(request.request_id);
    let customer = fields.customer(request.customer);
    let success_url = fields.optional_url("success_url", request.success_url);
    fields.check()?;
    Ok((request_id, customer, success_url))
}

/// Parses an UpdateCustomerRequest: the customer, the expected version and the fields to set.
pub(in crate::grpc) fn customer_update(
    request: &proto::UpdateCustomerRequest,
) -> Result<(CustomerRef, Option<i64>, CustomerUpdate)> {
    let mut fields = Fields::default();
    let customer = request.customer.clone().unwrap_or_default();
    let which = match (customer.id.as_str(), &customer.external_id) {
        ("", external_id) if !external_id.is_empty() => {
            CustomerRef::ExternalId(fields.text("customer.external_id", external_id.clone(), TEXT_LENGTH_MAX))
        }
        (id, _) => CustomerRef::Id(fields.id("customer.id", id)),
    };
    let version = fields.optional_etag("customer.etag", &customer.etag);
    let known = [
        ("name", !customer.name.is_empty()),
        ("email", !customer.email.is_empty()),
        ("phone", !customer.phone.is_empty()),
        ("address", customer.address.is_some()),
        ("integration_id", !customer.integration_id.is_empty()),
        ("provider_customer_id", !customer.provider_customer_id.is_empty()),
        ("provider_payment_methods", !customer.provider_payment_methods.is_empty()),
        ("sync_with_provider", customer.sync_with_provider),
    ];
    let mut update = CustomerUpdate::default();
    for path in masked_fields(&mut fields, request.update_mask.as_ref(), &known) {
        set(&mut fields, &mut update, path, &customer);
    }
    fields.check()?;
    Ok((which, version, update))
}

/// Checks that an update does not change an immutable field.
pub(in crate::grpc) fn check_immutable(request: &proto::UpdateCustomerRequest, present: &Customer) -> Result<()> {
    let external_id = request.customer.as_ref().map_or("", |customer| customer.external_id.as_str());
    let immutable = [("customer.external_id", external_id, present.external_id.as_str())];
    super::check_immutable(request.update_mask.as_ref(), &immutable)
}

/// Copies one field into the update.
fn set(fields: &mut Fields, update: &mut CustomerUpdate, path: &str, from: &proto::Customer) {
    match path {
        "name" => update.name = Some(fields.text("customer.name", from.name.clone(), TEXT_LENGTH_MAX)),
        "email" => update.email = Some(fields.email("customer.email", &from.email)),
        "phone" => update.phone = Some(fields.text("customer.phone", from.phone.clone(), PHONE_LENGTH_MAX)),
        "address" => {
            update.address = Some(from.address.clone().map(|address| fields.address("customer.address", address)));
        }
        // These two can be changed but not emptied: an update does not unlink a customer.
        "integration_id" => {
            let id = fields.optional_id("customer.integration_id", &from.integration_id);
            update.integration = id.map(IntegrationRef::Id);
        }
        "provider_customer_id" => {
            let (field, id) = ("customer.provider_customer_id", from.provider_customer_id.clone());
            update.provider_customer_id = fields.optional_provider_customer_id(field, id);
        }
        "provider_payment_methods" => {
            let kinds = fields.kinds("customer.provider_payment_methods", &from.provider_payment_methods);
            // An empty list stands for the default.
            update.provider_payment_methods = Some(kinds);
        }
        _ => update.sync_with_provider = Some(from.sync_with_provider),
    }
}

impl Fields {
    /// One address, or several separated by commas, as billing systems store them. Stripe receives the first.
    fn email(&mut self, field: &str, email: &str) -> String {
        let is_plausible = |address: &str| {
            let parts = address.split_once('@');
            parts.is_some_and(|(local, domain)| !local.is_empty() && !domain.is_empty())
                && !address.contains(char::is_whitespace)
        };
        let mut addresses = email.split(',').map(str::trim);
        let is_first_good = email.trim().is_empty() || addresses.next().is_some_and(is_plausible);
        if !is_first_good || !addresses.all(|address| address.is_empty() || is_plausible(address)) {
            self.add_violation(
                field,
                "must be one email address, or several separated by commas; Stripe receives the first",
            );
        }
        self.text(field, email.trim().to_owned(), EMAIL_LENGTH_MAX)
    }

    fn address(&mut self, field: &str, address: proto::Address) -> Address {
        let mut part = |name: &str, text| self.text(&format!("{field}.{name}"), text, TEXT_LENGTH_MAX);
        let address = Address {
            line1: part("line1", address.line1),
            line2: part("line2", address.line2),
            city: part("city", address.city),
            postal_code: part("postal_code", address.postal_code),
            state: part("state", address.state),
            country: part("country", address.country),
        };
        let country = &address.country;
        let is_code = country.len() == 2 && country.chars().all(|it| it.is_ascii_uppercase());
        if !country.is_empty() && !is_code {
            self.add_violation(&format!("{field}.country"), "must be an ISO 3166-1 code of two upper case letters");
        }
        address
    }

    fn optional_provider_customer_id(&mut self, field: &str, id: String) -> Option<String> {
        if id.is_empty() {
            return None;
        }
        let rest = id.strip_prefix("cus_").unwrap_or_default();
        if rest.is_empty()
            || id.len() > TEXT_LENGTH_MAX
            || !rest.chars().all(|it| it.is_ascii_alphanumeric() || it == '_')
        {
            self.add_violation(field, "must be the id of a Stripe customer, such as cus_NffrFeUfNV2Hib");
        }
        Some(id)
    }
}

pub(in crate::grpc) fn customer(customer: Customer) -> proto::Customer {
    proto::Customer {
        id: customer.id.to_string(),
        external_id: customer.external_id,
        name: customer.name,
        email: customer.email,
        phone: customer.phone,
        address: customer.address.map(address),
        integration_id: customer.integration_id.map(|id| id.to_string()).unwrap_or_default(),
        provider_link_state: link_state(customer.link_state).into(),
        provider_link_error: customer.link_error.unwrap_or_default(),
        provider_customer_id: customer.provider_customer_id.unwrap_or_default(),
        provider_payment_methods: customer
            .provider_payment_methods
            .into_iter()
            .map(|allowed| kind(allowed).into())
            .collect(),
        sync_with_provider: customer.sync_with_provider,
        default_payment_method_id: customer.default_payment_method_id.map(|id| id.to_string()).unwrap_or_default(),
        etag: etag(customer.version),
        create_time: Some(timestamp(customer.create_time)),
        update_time: Some(timestamp(customer.update_time)),
    }
}

fn address(address: Address) -> proto::Address {
    proto::Address {
        line1: address.line1,
        line2: address.line2,
        city: address.city,
        postal_code: address.postal_code,
        state: address.state,
        country: address.country,
    }
}

fn link_state(state: LinkState) -> ProviderLinkState {
    match state {
        LinkState::None => ProviderLinkState::None,
        LinkState::Pending => ProviderLinkState::Pending,
        LinkState::Linked => ProviderLinkState::Linked,
        LinkState::Failed => ProviderLinkState::Failed,
    }
}

#[cfg(test)]
mod tests {
    use prost_types::FieldMask;

    use super::*;
    use crate::domain::Error;
    use crate::domain::payment_methods::MethodKind;
    use crate::grpc::proto::PaymentMethodKind;

    fn violations<T>(parsed: Result<T>) -> Vec<String> {
        match parsed {
            Err(Error::Invalid(violations)) => violations.into_iter().map(|violation| violation.field).collect(),
            _ => Vec::new(),
        }
    }

    fn hooli() -> proto::CreateCustomerRequest {
        proto::CreateCustomerRequest {
            request_id: "customer-1".into(),
            external_id: "hooli_1234".into(),
            email: "billing@hooli.test".into(),
            sync_with_provider: true,
            provider_payment_methods: vec![PaymentMethodKind::SepaDebit.into(), PaymentMethodKind::Card.into()],
            ..Default::default()
        }
    }

    #[test]
    fn a_customer_is_parsed() {
        let (request_id, new) = new_customer(hooli()).unwrap();
        assert_eq!(request_id, "customer-1");
        assert_eq!(new.external_id, "hooli_1234");
        assert_eq!(new.provider_payment_methods, [MethodKind::SepaDebit, MethodKind::Card]);
        assert!(new.sync_with_provider && new.integration.is_none());
    }

    #[test]
    fn all_violations_of_a_customer_are_reported() {
        let request = proto::CreateCustomerRequest {
            request_id: "a b".into(),
            external_id: String::new(),
            name: "x".repeat(256),
            email: "nobody".into(),
            phone: "1".repeat(21),
            address: Some(proto::Address { country: "Germany".into(), ..Default::default() }),
            integration: Some(create_customer_request::Integration::IntegrationId("eu".into())),
            provider_customer_id: "pm_1".into(),
            provider_payment_methods: vec![0, 1, 1, 99],
            sync_with_provider: true,
        };
        assert_eq!(
            violations(new_customer(request)),
            [
                "request_id",
                "external_id",
                "name",
                "email",
                "phone",
                "address.country",
                "integration_id",
                "provider_customer_id",
                "provider_payment_methods[0]",
                "provider_payment_methods[2]",
                "provider_payment_methods[3]",
                "sync_with_provider",
            ]
        );
    }

    #[test]
    fn a_customer_is_either_created_at_stripe_or_linked() {
        let both = proto::CreateCustomerRequest { provider_customer_id: "cus_1".into(), ..hooli() };
        assert_eq!(violations(new_customer(both)), ["sync_with_provider"]);
    }

    fn update(customer: proto::Customer, paths: Option<&[&str]>) -> Result<CustomerUpdate> {
        let customer = Some(proto::Customer { id: uuid::Uuid::from_u128(1).to_string(), ..customer });
        let update_mask = paths.map(|paths| FieldMask { paths: paths.iter().map(ToString::to_string).collect() });
        customer_update(&proto::UpdateCustomerRequest { customer, update_mask }).map(|(_, _, update)| update)
    }

    #[test]
    fn an_update_sets_populated_fields_or_those_of_the_mask() {
        let named = || proto::Customer { name: "Hooli".into(), ..Default::default() };
        let only_name = CustomerUpdate { name: Some("Hooli".into()), ..Default::default() };
        assert_eq!(update(named(), None).unwrap(), only_name);
        assert_eq!(update(named(), Some(&["name"])).unwrap(), only_name);
        let emptied = update(named(), Some(&["email", "address", "sync_with_provider"])).unwrap();
        let expected = CustomerUpdate {
            email: Some(String::new()),
            address: Some(None),
            sync_with_provider: Some(false),
            ..Default::default()
        };
        assert_eq!(emptied, expected);
    }

    #[test]
    fn all_violations_of_an_update_are_reported() {
        let bad = proto::Customer { etag: "x".into(), email: "nobody".into(), ..Default::default() };
        assert_eq!(violations(update(bad, None)), ["customer.etag", "customer.email"]);
        assert_eq!(violations(update(proto::Customer::default(), Some(&["external_id"]))), ["update_mask"]);
        assert_eq!(violations(customer_update(&proto::UpdateCustomerRequest::default())), ["customer.id"]);
    }

    #[test]
    fn an_update_names_the_customer_by_id_or_else_by_external_id() {
        let which = |id: &str, external_id: &str| {
            let customer = proto::Customer { id: id.into(), external_id: external_id.into(), ..Default::default() };
            let request = proto::UpdateCustomerRequest { customer: Some(customer), update_mask: None };
            customer_update(&request).map(|(which, ..)| which)
        };
        let id = uuid::Uuid::from_u128(1);
        assert_eq!(which(&id.to_string(), "hooli_1234").unwrap(), CustomerRef::Id(id.into()));
        assert_eq!(which("", "hooli_1234").unwrap(), CustomerRef::ExternalId("hooli_1234".into()));
        assert_eq!(violations(which("", "")), ["customer.id"]);
    }
}
