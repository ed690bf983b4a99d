//! Objects for tests. Only what decisions depend on is filled in.

use time::OffsetDateTime;
use uuid::Uuid;

use super::customers::{Customer, CustomerRef, LinkState};
use super::integrations::{Integration, IntegrationState};
use super::payment_methods::{Mandates, MethodDetails, MethodKind, PaymentMethod};
use super::payments::{NewPayment, Payment};
use super::stripe_requests::{KeyScope, Purpose, StripeRequest};
use super::{Currency, Money, OrganizationId, PaymentMethodId};

pub const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

pub const KEY_SCOPE: KeyScope<'static> = KeyScope { installation: "test", organization: OrganizationId(Uuid::nil()) };

/// A request about the invoice, prepared at `now`.
pub fn request(purpose: Purpose, generation: i32, body: &str, now: OffsetDateTime) -> StripeRequest {
    purpose.of("inv_1").request(KEY_SCOPE, generation, body.to_owned(), now)
}

pub fn method(number: u128, kind: MethodKind) -> PaymentMethod {
    PaymentMethod {
        id: Uuid::from_u128(number).into(),
        organization_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        provider_payment_method_id: format!("pm_{number}"),
        kind: kind.as_str().to_owned(),
        details: MethodDetails::default(),
        mandates: Mandates { granted: ["mandate".to_owned()].into(), ..Mandates::default() },
        attach_time: Some(START),
        choose_time: None,
        unset_time: None,
        is_unset_read: false,
        detach_time: None,
        is_detach_read: false,
        create_time: START,
    }
}

/// A linked customer who may be charged by card and debit.
pub fn customer(default: Option<PaymentMethodId>) -> Customer {
    Customer {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        external_id: String::new(),
        name: String::new(),
        email: String::new(),
        phone: String::new(),
        address: None,
        integration_id: Some(Uuid::nil().into()),
        link_state: LinkState::Linked,
        link_error: None,
        provider_customer_id: Some("cus_1".to_owned()),
        provider_payment_methods: vec![MethodKind::Card, MethodKind::SepaDebit],
        sync_with_provider: true,
        default_payment_method_id: default,
        unpushed_fields: Vec::new(),
        version: 1,
        create_time: START,
        update_time: START,
    }
}

pub fn integration(supports_3ds: bool) -> Integration {
    Integration {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        code: String::new(),
        name: String::new(),
        state: IntegrationState::Active,
        catch_up: None,
        pause_reason: None,
        livemode: false,
        provider_account_id: None,
        key_hint: String::new(),
        provider_endpoint_id: None,
        polls_events: false,
        success_redirect_url: None,
        supports_3ds,
        relay_provider_events: false,
        version: 1,
        create_time: START,
        update_time: START,
    }
}

/// A payment in euros, just accepted.
pub fn payment(minor_units: i64) -> Payment {
    let new = NewPayment {
        invoice_id: String::new(),
        invoice_number: String::new(),
        customer: CustomerRef::Id(Uuid::nil().into()),
        amount: Money { minor_units, currency: Currency::EUR },
    };
    Payment::new(Uuid::nil().into(), &new, &customer(None), Uuid::nil().into(), START)
}
