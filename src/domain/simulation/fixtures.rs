//! The objects that a schedule starts with. Only what schedules depend on is filled in.

use time::OffsetDateTime;
use uuid::Uuid;

use super::world::World;
use crate::domain::customers::{Customer, LinkState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::payment_methods::{Mandates, MethodDetails, MethodKind, PaymentMethod};
use crate::domain::payments::{Attempt, AttemptKind, AttemptState, Link, Payment, PaymentState};
use crate::domain::{Currency, Money, PaymentMethodId};

pub const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

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

pub fn new_payment(minor_units: i64) -> Payment {
    Payment {
        id: Uuid::nil().into(),
        organization_id: Uuid::nil().into(),
        integration_id: Uuid::nil().into(),
        customer_id: Uuid::nil().into(),
        invoice_id: String::new(),
        invoice_number: String::new(),
        amount: Money { minor_units, currency: Currency::EUR },
        state: PaymentState::Pending,
        pending_reason: None,
        failure: None,
        awaits_method: false,
        provider_payment_intent_id: None,
        intent_number: 1,
        attempt_number: 0,
        requested_method_id: None,
        on_session: false,
        next_action_url: None,
        action_time: None,
        provider_charge_id: None,
        amount_received: 0,
        part_received: 0,
        amount_refunded: 0,
        cancel_request_time: None,
        pending_operation: None,
        refused_amount: None,
        manual: None,
        unknown_since: None,
        version: 1,
        create_time: START,
        update_time: START,
    }
}

/// An attempt that is prepared now.
pub fn new_attempt(world: &World, number: i32, kind: AttemptKind) -> Attempt {
    let name = if matches!(kind, AttemptKind::Link(Link { .. })) { "link" } else { "confirm" };
    Attempt {
        payment_id: world.payment.id,
        number,
        amount: world.payment.amount,
        kind,
        provider_payment_intent_id: None,
        idempotency_key: format!("{name}-{number}"),
        body: String::new(),
        prior_charge: None,
        prior_error: None,
        state: AttemptState::Open,
        provider_charge_id: None,
        dead_key_time: None,
        create_time: world.now,
        finish_time: None,
    }
}

pub fn intent_id(index: usize) -> String {
    format!("pi_{index}")
}

pub fn session_id(index: usize) -> String {
    format!("cs_{index}")
}

/// The index in an id of this model.
pub fn index(id: &str) -> usize {
    id.rsplit('_').next().and_then(|digits| digits.parse().ok()).expect("an id of this model")
}
