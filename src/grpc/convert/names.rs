//! How a request names a payment or a customer: by the id that Paybridge assigned, or by the billing system's. The oneof
//! is the same in every request, but the generated types differ.

use super::Fields;
use super::customers::TEXT_LENGTH_MAX;
use crate::domain::customers::CustomerRef;
use crate::domain::payments::PaymentRef;
use crate::grpc::proto;

/// The value of a oneof that names an object.
pub(in crate::grpc) enum Name {
    Id(String),
    ExternalId(String),
}

/// A oneof that names an object.
pub(in crate::grpc) trait Named {
    /// The name of the field with the id that Paybridge assigned.
    const ID: &'static str;
    /// The name of the field with the billing system's id.
    const EXTERNAL_ID: &'static str;

    fn name(self) -> Name;
}

macro_rules! named {
    ($($request:ident::$oneof:ident: $id:ident $id_field:literal, $external:ident $external_field:literal;)*) => {$(
        impl Named for proto::$request::$oneof {
            const ID: &'static str = $id_field;
            const EXTERNAL_ID: &'static str = $external_field;

            fn name(self) -> Name {
                match self {
                    Self::$id(id) => Name::Id(id),
                    Self::$external(id) => Name::ExternalId(id),
                }
            }
        }
    )*};
}

named! {
    get_customer_request::Customer: Id "id", ExternalId "external_id";
    delete_customer_request::Customer: Id "id", ExternalId "external_id";
    create_checkout_url_request::Customer: CustomerId "customer_id", ExternalCustomerId "external_customer_id";
    list_payment_methods_request::Customer: CustomerId "customer_id", ExternalCustomerId "external_customer_id";
    create_payment_request::Customer: CustomerId "customer_id", ExternalCustomerId "external_customer_id";
    list_payments_request::Customer: CustomerId "customer_id", ExternalCustomerId "external_customer_id";
    get_payment_request::Payment: Id "id", InvoiceId "invoice_id";
    retry_payment_request::Payment: Id "id", InvoiceId "invoice_id";
    cancel_payment_request::Payment: Id "id", InvoiceId "invoice_id";
    create_payment_url_request::Payment: Id "id", InvoiceId "invoice_id";
    record_manual_payment_request::Payment: Id "id", InvoiceId "invoice_id";
    create_refund_request::Payment: PaymentId "payment_id", InvoiceId "invoice_id";
    list_refunds_request::Payment: PaymentId "payment_id", InvoiceId "invoice_id";
}

impl Fields {
    /// The customer that the oneof `customer` names.
    pub(in crate::grpc) fn customer<N: Named>(&mut self, customer: Option<N>) -> CustomerRef {
        if customer.is_none() {
            self.add_violation("customer", format!("is required: set {} or {}", N::ID, N::EXTERNAL_ID));
        }
        self.optional_customer(customer).unwrap_or_else(|| CustomerRef::ExternalId(String::new()))
    }

    /// The customer that the oneof `customer` names, if it is set.
    pub(in crate::grpc) fn optional_customer<N: Named>(&mut self, customer: Option<N>) -> Option<CustomerRef> {
        Some(match customer?.name() {
            Name::Id(id) => CustomerRef::Id(self.id(N::ID, &id)),
            Name::ExternalId(id) => CustomerRef::ExternalId(self.required_text(N::EXTERNAL_ID, id, TEXT_LENGTH_MAX)),
        })
    }

    /// The payment that the oneof `payment` names.
    pub(in crate::grpc) fn payment<N: Named>(&mut self, payment: Option<N>) -> PaymentRef {
        match payment.map(N::name) {
            Some(Name::Id(id)) => PaymentRef::Id(self.id(N::ID, &id)),
            Some(Name::ExternalId(id)) => {
                PaymentRef::InvoiceId(self.required_text(N::EXTERNAL_ID, id, TEXT_LENGTH_MAX))
            }
            None => {
                self.add_violation("payment", format!("is required: set {} or {}", N::ID, N::EXTERNAL_ID));
                PaymentRef::InvoiceId(String::new())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::{Error, Result};
    use crate::grpc::proto::{create_checkout_url_request, get_customer_request, get_payment_request};

    fn violations<T>(parsed: Result<T>) -> Vec<(String, String)> {
        match parsed {
            Err(Error::Invalid(found)) => found.into_iter().map(|it| (it.field, it.description)).collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn a_customer_is_named_by_one_of_its_ids() {
        use get_customer_request::Customer;
        let parse = |customer| Fields::parse_one(|fields| fields.customer(customer));
        let id = Uuid::from_u128(1);
        assert_eq!(parse(Some(Customer::Id(id.to_string()))).unwrap(), CustomerRef::Id(id.into()));
        let external = parse(Some(Customer::ExternalId("hooli_1234".into()))).unwrap();
        assert_eq!(external, CustomerRef::ExternalId("hooli_1234".into()));
        assert_eq!(violations(parse(Some(Customer::Id("hooli_1234".into()))))[0].0, "id");
        assert_eq!(violations(parse(Some(Customer::ExternalId(String::new()))))[0].0, "external_id");
    }

    #[test]
    fn a_violation_has_the_names_of_the_requests_fields() {
        let none = None::<create_checkout_url_request::Customer>;
        let missing = violations(Fields::parse_one(|fields| fields.customer(none)));
        let text = "is required: set customer_id or external_customer_id";
        assert_eq!(missing, [("customer".to_owned(), text.to_owned())]);
        let none = None::<get_payment_request::Payment>;
        let missing = violations(Fields::parse_one(|fields| fields.payment(none)));
        assert_eq!(missing, [("payment".to_owned(), "is required: set id or invoice_id".to_owned())]);
    }
}
