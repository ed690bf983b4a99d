//! The event contract: the JSON of an event has the names and values that the log stores, and all fields of Lago's
//! webhooks under Lago's names. The tests write protobuf's canonical JSON from the descriptor set and the encoded
//! bytes, so they depend on `json_name` only.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost::bytes::{Buf as _, Bytes};
use prost::encoding::{decode_key, decode_varint};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use uuid::Uuid;

use super::*;

/// The fields of Lago's webhooks, by the message that represents the object. For `customer` and `invoice`, only those
/// that Paybridge knows.
const LAGO: [(&str, &[&str]); 14] = [
    (
        "PaymentProviderCustomerCheckoutUrl",
        &["lago_customer_id", "external_customer_id", "payment_provider", "payment_provider_code", "checkout_url"],
    ),
    ("EventCustomer", &["lago_id", "external_id", "name", "email", "phone", "created_at", "billing_configuration"]),
    (
        "BillingConfiguration",
        &[
            "payment_provider",
            "payment_provider_code",
            "provider_customer_id",
            "provider_payment_methods",
            "payment_method_id",
            "sync_with_provider",
        ],
    ),
    (
        "PaymentProviderCustomerError",
        &["lago_customer_id", "external_customer_id", "payment_provider", "payment_provider_code", "provider_error"],
    ),
    ("ProviderError", &["message", "error_code"]),
    (
        "PaymentProviderError",
        &[
            "lago_payment_provider_id",
            "payment_provider_code",
            "payment_provider_name",
            "source",
            "action",
            "provider_error",
        ],
    ),
    ("ConnectionError", &["message", "code"]),
    (
        "PaymentProviderInvoicePaymentError",
        &[
            "lago_invoice_id",
            "lago_customer_id",
            "external_customer_id",
            "provider_customer_id",
            "payment_provider",
            "payment_provider_code",
            "provider_error",
            "error_details",
        ],
    ),
    // Without Lago's http_body, which can contain secrets.
    ("ErrorDetails", &["code", "message", "request_id", "http_status"]),
    (
        "EventInvoice",
        &[
            "lago_id",
            "number",
            "payment_status",
            "currency",
            "total_due_amount_cents",
            "total_paid_amount_cents",
            "customer",
        ],
    ),
    ("PaymentDisputeLost", &["invoice", "provider_error"]),
    (
        "EventPayment",
        &[
            "lago_id",
            "lago_customer_id",
            "external_customer_id",
            "invoice_ids",
            "invoice_numbers",
            "lago_payable_id",
            "payable_type",
            "amount_cents",
            "amount_currency",
            "status",
            "payment_status",
            "type",
            "payment_provider_code",
            "payment_provider_type",
            "external_payment_id",
            "provider_payment_id",
            "provider_customer_id",
            "next_action",
            "created_at",
            "payment_method",
        ],
    ),
    (
        "EventPaymentMethod",
        &[
            "lago_id",
            "is_default",
            "payment_provider_code",
            "payment_provider_name",
            "payment_provider_type",
            "provider_method_id",
            "created_at",
        ],
    ),
    ("Event", &["webhook_type", "object_type", "organization_id"]),
];

/// The messages of `paybridge.v1` by name.
fn messages() -> BTreeMap<String, DescriptorProto> {
    let set = FileDescriptorSet::decode(proto::DESCRIPTOR_SET).unwrap();
    let ours = set.file.into_iter().filter(|file| file.package() == "paybridge.v1");
    ours.flat_map(|file| file.message_type).map(|message| (message.name().to_owned(), message)).collect()
}

/// The name of a field's message type, if it belongs to `paybridge.v1`.
fn message_type(field: &FieldDescriptorProto) -> Option<&str> {
    field.type_name().strip_prefix(".paybridge.v1.")
}

/// The canonical JSON of an encoded message: absent fields are omitted, 64-bit numbers are strings.
fn to_json(messages: &BTreeMap<String, DescriptorProto>, name: &str, mut bytes: Bytes) -> Value {
    let mut object = Map::new();
    while bytes.has_remaining() {
        let (number, _) = decode_key(&mut bytes).unwrap();
        let has_number = |field: &&FieldDescriptorProto| field.number().unsigned_abs() == number;
        let field = messages[name].field.iter().find(has_number).unwrap();
        let number = decode_varint(&mut bytes).unwrap();
        let value = match field.r#type() {
            Type::Bool => json!(number != 0),
            Type::Int32 => json!(number),
            Type::Int64 => json!(number.to_string()),
            Type::String => {
                let text = bytes.split_to(usize::try_from(number).unwrap());
                json!(String::from_utf8(text.to_vec()).unwrap())
            }
            _ => {
                let inner = bytes.split_to(usize::try_from(number).unwrap());
                message_type(field).map_or(json!("a Timestamp"), |name| to_json(messages, name, inner))
            }
        };
        let name = field.json_name().to_owned();
        match (field.label(), object.get_mut(&name)) {
            (Label::Repeated, Some(Value::Array(items))) => items.push(value),
            (Label::Repeated, _) => _ = object.insert(name, json!([value])),
            _ => _ = object.insert(name, value),
        }
    }
    Value::Object(object)
}

/// The canonical JSON expected for a stored payload: no nulls, amounts as strings.
fn canonical(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let known = fields.into_iter().filter(|(_, value)| !value.is_null());
            let text =
                |name: &str, value: Value| if name.ends_with("_cents") { value.to_string().into() } else { value };
            Value::Object(known.map(|(name, value)| (name.clone(), canonical(text(&name, value)))).collect())
        }
        other => other,
    }
}

/// The JSON of an event with this payload.
fn json_of(payload: Payload) -> Value {
    let event = Event {
        id: Uuid::from_u128(1),
        organization_id: Uuid::from_u128(2).into(),
        position: 7,
        create_time: OffsetDateTime::UNIX_EPOCH,
        webhook_type: "test.happened".into(),
        payload,
    };
    let event = super::event(event, Uuid::from_u128(4).into());
    to_json(&messages(), "Event", event.encode_to_vec().into())
}

/// One payload of each type, with all fields set.
fn samples() -> Vec<Value> {
    let id = Uuid::from_u128(3);
    let customer = json!({
        "lago_id": id, "external_id": "hooli_1234", "name": "Gavin", "email": "gavin@hooli.test", "phone": "123",
        "created_at": "2026-01-02T03:04:05Z",
        "billing_configuration": {
            "payment_provider": "stripe", "payment_provider_code": "stripe-eu", "provider_customer_id": "cus_1",
            "provider_payment_methods": ["card", "sepa_debit"], "sync_with_provider": false,
            "payment_method_id": "pm_1" } });
    let invoice = json!({
        "lago_id": "inv_1", "number": "HOO-1", "payment_status": "succeeded", "currency": "EUR",
        "total_due_amount_cents": 0, "total_paid_amount_cents": 4900, "customer": customer });
    let method = json!({
        "lago_id": id, "lago_customer_id": id, "external_customer_id": "hooli_1234", "is_default": false,
        "payment_provider_code": "stripe-eu", "payment_provider_name": "Stripe EU", "payment_provider_type": "stripe",
        "provider_method_id": "pm_1", "provider_method_type": "card", "created_at": "2026-01-02T03:04:05Z",
        "details": { "brand": "visa", "last4": "4242", "exp_month": 12, "exp_year": 2030, "country": "IE",
            "bank_code": "1" } });
    let of_payment = json!({
        "lago_payment_id": id, "lago_invoice_id": "inv_1", "lago_customer_id": id,
        "external_customer_id": "hooli_1234", "payment_provider_code": "stripe-eu", "provider_charge_id": "ch_1",
        "amount_cents": 4900, "amount_currency": "EUR", "status": "pending" });
    let with = |more: Value| {
        let (Value::Object(mut all), Value::Object(more)) = (of_payment.clone(), more) else { unreachable!() };
        all.extend(more);
        Value::Object(all)
    };
    let error = json!({ "message": "No such customer", "error_code": "resource_missing" });
    vec![
        json!({ "payment_provider_customer_checkout_url": {
            "lago_customer_id": id, "external_customer_id": "hooli_1234", "payment_provider": "stripe",
            "payment_provider_code": "stripe-eu", "checkout_url": "https://checkout.stripe.com/c/pay/cs_1" } }),
        json!({ "customer": customer }),
        json!({ "payment_provider_customer_error": {
            "lago_customer_id": id, "external_customer_id": "hooli_1234", "payment_provider": "stripe",
            "payment_provider_code": "stripe-eu", "provider_error": error } }),
        json!({ "payment_provider_error": {
            "lago_payment_provider_id": id, "payment_provider_code": "stripe-eu",
            "payment_provider_name": "Stripe EU", "source": "stripe", "action": "payment_provider.register_webhook",
            "provider_error": { "message": "Invalid API Key", "code": "api_key_expired" } } }),
        json!({ "payment_provider_invoice_payment_error": {
            "lago_invoice_id": "inv_1", "lago_customer_id": id, "external_customer_id": "hooli_1234",
            "provider_customer_id": "cus_1", "payment_provider": "stripe", "payment_provider_code": "stripe-eu",
            "provider_error": error, "decline_code": "insufficient_funds", "advice_code": "try_again_later",
            "lago_payment_id": id,
            "error_details": { "code": "card_declined", "message": "no", "request_id": "req_1", "http_status": 402 }
        } }),
        json!({ "invoice": invoice }),
        json!({ "payment_dispute_lost": { "invoice": invoice, "provider_error": "fraudulent",
            "amount_cents": 4900, "amount_currency": "EUR" } }),
        json!({ "payment": {
            "lago_id": id, "lago_customer_id": id, "external_customer_id": "hooli_1234", "invoice_ids": ["inv_1"],
            "invoice_numbers": ["HOO-1"], "lago_payable_id": "inv_1", "payable_type": "Invoice",
            "amount_cents": 4900, "amount_currency": "EUR", "status": "requires_action", "payment_status": "pending",
            "type": "provider", "reference": "bank 4711", "payment_provider_code": "stripe-eu",
            "payment_provider_type": "PaymentProviders::StripeProvider", "external_payment_id": "pi_1",
            "provider_payment_id": "pi_1", "provider_customer_id": "cus_1", "created_at": "2026-01-02T03:04:05Z",
            "next_action": { "type": "redirect_to_url", "redirect_to_url": { "url": "https://hooks.stripe.com/3" } },
            "payment_method": method, "pending_reason": "amount_too_small",
            "provider_charge_id": "ch_1", "requested_amount_cents": 3000, "remaining_amount_cents": 1100 } }),
        json!({ "payment_method": method }),
        json!({ "refund": with(json!({ "provider_refund_id": "re_1", "failure_reason": "lost_or_stolen_card",
            "amount_refunded_cents": 100, "lago_refund_id": id, "outcome_unknown_at": "2026-01-02T03:04:05Z" })) }),
        json!({ "dispute": with(json!({ "provider_dispute_id": "du_1", "reason": "fraudulent" })) }),
        json!({ "payment_provider": { "lago_payment_provider_id": id, "payment_provider": "stripe",
            "payment_provider_code": "stripe-eu", "payment_provider_name": "Stripe EU", "provider_account_id": "acct_1",
            "provider_webhook_endpoint_id": "we_1" } }),
        json!({ "provider_event": {
            "payment_provider_code": "stripe-eu", "payment_provider": "stripe", "provider_event_id": "evt_1",
            "event_type": "payment_intent.succeeded", "created_at": "2026-01-02T03:04:05Z", "json": "{}" } }),
    ]
}

#[test]
fn the_json_of_an_event_is_what_the_log_stores() {
    for stored in samples() {
        let payload: Payload = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(serde_json::to_value(&payload).unwrap(), stored, "the sample has every field");
        let object_type = payload.object_type().as_str();
        let shown = json_of(payload);
        assert_eq!(shown["object_type"], object_type);
        assert_eq!(shown[object_type], canonical(stored)[object_type]);
    }
}

#[test]
fn null_is_absent_but_false_and_zero_are_present() {
    let mut samples = samples();
    let payment = samples.iter_mut().find_map(|sample| sample.get_mut("payment")).unwrap();
    payment["payment_method"] = Value::Null;
    payment["amount_cents"] = json!(0);
    let shown = json_of(serde_json::from_value(json!({ "payment": payment })).unwrap());
    assert_eq!(shown["payment"].get("payment_method"), None);
    assert_eq!(shown["payment"]["amount_cents"], "0");
    let method = samples.iter().find_map(|sample| sample.get("payment_method")).unwrap();
    let shown = json_of(serde_json::from_value(json!({ "payment_method": method })).unwrap());
    assert_eq!(shown["payment_method"]["is_default"], false);
}

/// Lago's payload, plus `payment_provider_code`.
#[test]
fn a_checkout_url_has_lagos_payload() {
    let shown = json_of(Payload::PaymentProviderCustomerCheckoutUrl(CheckoutUrlObject {
        lago_customer_id: Uuid::from_u128(3),
        external_customer_id: "hooli_1234".into(),
        payment_provider: "stripe".into(),
        payment_provider_code: "stripe-eu".into(),
        checkout_url: "https://checkout.stripe.com/c/pay/cs_1".into(),
    }));
    assert_eq!(
        shown,
        json!({
            "id": Uuid::from_u128(1),
            "position": "7",
            "log_id": Uuid::from_u128(4),
            "organization_id": Uuid::from_u128(2),
            "create_time": "a Timestamp",
            "webhook_type": "test.happened",
            "object_type": "payment_provider_customer_checkout_url",
            "payment_provider_customer_checkout_url": {
                "lago_customer_id": Uuid::from_u128(3),
                "external_customer_id": "hooli_1234",
                "payment_provider": "stripe",
                "payment_provider_code": "stripe-eu",
                "checkout_url": "https://checkout.stripe.com/c/pay/cs_1"
            }
        })
    );
}

#[test]
fn every_field_of_an_event_has_its_own_name_in_json() {
    let messages = messages();
    let (mut queue, mut seen) = (vec!["Event".to_owned()], BTreeSet::new());
    while let Some(name) = queue.pop() {
        for field in &messages[&name].field {
            assert_eq!(field.json_name(), field.name(), "{name}");
            queue.extend(message_type(field).map(str::to_owned).filter(|name| seen.insert(name.clone())));
        }
    }
    assert!(seen.len() > 13, "the payload types were visited");
}

#[test]
fn all_fields_of_lago_are_present() {
    let messages = messages();
    for (name, fields) in LAGO {
        let ours: BTreeSet<_> = messages[name].field.iter().map(FieldDescriptorProto::name).collect();
        let missing: Vec<_> = fields.iter().filter(|field| !ours.contains(*field)).collect();
        assert!(missing.is_empty(), "{name} lacks {missing:?}");
    }
}
