//! The JSON of an event is Lago's payload: every field of Lago's example, with the same name and value.

use std::collections::HashMap;

use paybridge::dev::scenarios::BillingClient;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::DESCRIPTOR_SET;
use paybridge::grpc::proto::event::Object;
use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

use crate::support::context;
use crate::support::customers::{customer_with_method, synced_customer};
use crate::support::payments::{invoice, pay};

/// All messages by full name.
fn messages() -> HashMap<String, DescriptorProto> {
    let set = FileDescriptorSet::decode(DESCRIPTOR_SET).expect("the built-in descriptors");
    let mut all = HashMap::new();
    for file in set.file {
        for message in file.message_type {
            all.insert(format!(".{}.{}", file.package.as_deref().unwrap_or_default(), message.name()), message);
        }
    }
    all
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first().expect("a whole message");
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

/// The proto3 JSON of a message, as generated clients print it: names from the descriptor, 64-bit numbers as strings.
fn to_json(all: &HashMap<String, DescriptorProto>, name: &str, mut bytes: &[u8]) -> Value {
    let mut fields = Map::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let number = i32::try_from(key >> 3).expect("a field's number");
        let field = all[name].field.iter().find(|field| field.number() == number).expect("a field that is declared");
        let value = if key & 7 == 2 {
            let length = usize::try_from(varint(&mut bytes)).expect("a length");
            let (part, rest) = bytes.split_at(length);
            bytes = rest;
            match field.r#type() {
                Type::Message => to_json(all, field.type_name(), part),
                _ => String::from_utf8(part.to_vec()).expect("a text").into(),
            }
        } else {
            let raw = varint(&mut bytes);
            match field.r#type() {
                Type::Bool => (raw != 0).into(),
                Type::Int64 => raw.cast_signed().to_string().into(),
                _ => raw.into(),
            }
        };
        let name = field.json_name().to_owned();
        if field.label() == Label::Repeated {
            let list = fields.entry(name).or_insert_with(|| json!([]));
            list.as_array_mut().expect("a list").push(value);
        } else {
            fields.insert(name, value);
        }
    }
    Value::Object(fields)
}

/// Asserts that `shown` has every field of `expected`, with the same value.
fn assert_contains(shown: &Value, expected: &Value, path: &str) {
    match expected {
        Value::Object(fields) => {
            for (name, value) in fields {
                let found = shown.get(name).unwrap_or_else(|| panic!("{path}.{name} is missing in {shown:#}"));
                assert_contains(found, value, &format!("{path}.{name}"));
            }
        }
        value => assert_eq!(shown, value, "{path}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_json_of_an_event_is_lagos_payload() {
    let context = context(Options::default()).await;
    let (mut billing, _) = BillingClient::connected(&context, "payload").await.unwrap();
    let response =
        billing.api.customers.create_customer(synced_customer("hooli_1234", &[])).await.unwrap().into_inner();
    let customer = response.customer.unwrap();
    let (event, url) = billing
        .wait_for("the checkout link", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link)) => Some((event.clone(), link.checkout_url.clone())),
            _ => None,
        })
        .await
        .unwrap();
    let session =
        context.environment.sandbox.object(url.rsplit('/').next().unwrap()).expect("the session exists at Stripe");
    let all = messages();
    let shown = to_json(&all, ".paybridge.v1.Event", &event.encode_to_vec());
    let expected = json!({
        "webhook_type": "customer.checkout_url_generated",
        "object_type": "payment_provider_customer_checkout_url",
        "payment_provider_customer_checkout_url": {
            "lago_customer_id": customer.id, "external_customer_id": "hooli_1234", "payment_provider": "stripe",
            "checkout_url": session["url"],
        },
    });
    assert_contains(&shown, &expected, "event");
    let envelope =
        json!({ "position": event.position.to_string(), "organization_id": billing.organization, "id": event.id });
    assert_contains(&shown, &envelope, "event");
    assert!(shown["create_time"].is_object());
    let object = shown["payment_provider_customer_checkout_url"].as_object().unwrap();
    let added: Vec<_> =
        object.keys().filter(|name| expected["payment_provider_customer_checkout_url"].get(name).is_none()).collect();
    assert_eq!(added, ["payment_provider_code"], "only this field is added");

    customer_with_method(&context, &mut billing, "ready", "4000000000000341").await;
    pay(&mut billing, invoice("ready", "declined", 4900, "EUR")).await.unwrap();
    billing.wait_for_event("invoice.payment_failure", "declined").await.unwrap();
    for event in billing.events() {
        let shown = to_json(&all, ".paybridge.v1.Event", &event.encode_to_vec());
        assert!(shown[&event.object_type].is_object(), "the payload is in the field named by object_type: {shown:#}");
        assert_eq!(shown.as_object().unwrap().len(), 8, "envelope, log, two types and the payload: {shown:#}");
    }
    context.environment.shutdown().await;
}
