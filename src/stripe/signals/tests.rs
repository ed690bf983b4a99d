use serde_json::json;

use super::*;
use crate::domain::signals::{IntentStatus, MandateSnapshot, SessionStatus};

fn event(event_type: &str, object: &Value, previous: &Value) -> Vec<u8> {
    let event = json!({
        "id": "evt_1", "object": "event", "type": event_type, "created": 1_700_000_000, "livemode": false,
        "api_version": super::super::API_VERSION, "request": {"id": "req_1", "idempotency_key": "key-1"},
        "data": {"object": object, "previous_attributes": previous},
    });
    event.to_string().into_bytes()
}

fn signal(event_type: &str, object: &Value) -> Signal {
    observe(&event(event_type, object, &Value::Null)).unwrap().signal
}

fn intent_json() -> Value {
    json!({
        "id": "pi_1", "object": "payment_intent", "status": "requires_payment_method", "amount": 4900,
        "amount_received": 0, "currency": "eur", "customer": "cus_1", "latest_charge": "ch_1", "created": 1_700_000_000,
        "client_secret": "pi_1_secret_abc",
        "last_payment_error": {
            "type": "card_error", "code": "card_declined", "decline_code": "insufficient_funds",
            "advice_code": "try_again_later", "charge": "ch_1", "message": "Your card has insufficient funds.",
            "payment_method": {"id": "pm_1", "type": "card"},
        },
        "metadata": {"invoice_id": "inv_1", "payment_id": "0192f0c1-2345-7abc-8def-0123456789ab",
            "organization_id": "not an id"},
    })
}

#[test]
fn an_intent_is_parsed_with_its_failure_and_our_metadata() {
    let observation = observe(&event("payment_intent.payment_failed", &intent_json(), &Value::Null)).unwrap();
    assert_eq!(observation.event_time.unix_timestamp(), 1_700_000_000);
    assert_eq!(observation.request_key.as_deref(), Some("key-1"));
    let Signal::Intent(intent) = observation.signal else { panic!("an intent") };
    assert_eq!(intent.status, IntentStatus::RequiresPaymentMethod);
    assert_eq!((intent.amount.minor_units, intent.amount.currency.as_str()), (4900, "EUR"));
    let failure = intent.last_payment_error.unwrap();
    assert_eq!(failure.code, "card_declined");
    assert_eq!(failure.decline_code.as_deref(), Some("insufficient_funds"));
    assert_eq!(failure.provider_charge_id.as_deref(), Some("ch_1"));
    assert_eq!(intent.invoice_id.as_deref(), Some("inv_1"));
    assert!(intent.payment_id.is_some());
    assert_eq!(intent.organization_id, None, "a value that is not a UUID is not ours");
}

#[test]
fn p2_a_webhook_and_a_response_give_the_same_snapshot_of_a_failure() {
    let Signal::Intent(delivered) = signal("payment_intent.payment_failed", &intent_json()) else {
        panic!("an intent")
    };
    let read: crate::domain::signals::IntentSnapshot =
        serde_json::from_value::<WireIntent>(intent_json()).unwrap().into();
    assert_eq!(*delivered, read);
}

#[test]
fn every_handled_type_is_parsed_and_listed_once() {
    let names: Vec<_> = handled_types().collect();
    assert!(names.is_sorted_by(|left, right| left < right));
    let object = json!({
        "id": "x_1", "status": "succeeded", "amount": 100, "currency": "eur", "created": 1, "type": "card",
        "expires_at": 2, "payment_method": "pm_1", "payment_intent": "pi_1", "charge": "ch_1",
        "payment_method_details": { "sepa_debit": { "mandate": "mandate_1" } },
    });
    for name in names {
        let mut object = object.clone();
        if name.starts_with("checkout.session.") {
            object["status"] = json!("complete");
        }
        let signal = signal(name, &object);
        assert!(!matches!(signal, Signal::Ignored { .. }), "{name}: {signal:?}");
    }
}

#[test]
fn an_irrelevant_event_is_ignored_with_the_reason() {
    for name in ["invoice.paid", "payment_intent.created", "something.new"] {
        let Signal::Ignored { reason } = signal(name, &json!({"anything": true})) else { panic!("{name}") };
        assert!(reason.contains(name));
    }
    let failed = signal("setup_intent.setup_failed", &json!({"id": "seti_1", "status": "requires_payment_method"}));
    assert!(matches!(failed, Signal::Ignored { .. }));
}

#[test]
fn account_and_mode_of_an_event_are_parsed() {
    let mut connected: Value =
        serde_json::from_slice(&event("payment_intent.succeeded", &intent_json(), &Value::Null)).unwrap();
    connected["account"] = json!("acct_2");
    connected["livemode"] = json!(true);
    let observation = observe(connected.to_string().as_bytes()).unwrap();
    assert_eq!((observation.account.as_deref(), observation.livemode), (Some("acct_2"), true));
}

#[test]
fn an_invalid_handled_event_is_an_error_and_never_ignored() {
    let mut broken = intent_json();
    broken["status"] = json!("whsec_abc");
    let error = observe(&event("payment_intent.succeeded", &broken, &Value::Null)).unwrap_err();
    assert!(error.to_string().contains("payment_intent.succeeded"));
    assert!(!error.to_string().contains("whsec_"));
    assert!(observe(br#"{"id":"evt_1","type":"payment_intent.succeeded","created":1}"#).is_err());
    assert!(observe(b"not json").is_err());
}

#[test]
fn a_default_changes_only_if_the_effective_default_differs() {
    let customer = |method: Value, source: Value| json!({"id": "cus_1", "invoice_settings": {"default_payment_method": method}, "default_source": source});
    let changed = |previous: Value, object: &Value| match observe(&event("customer.updated", object, &previous))
        .unwrap()
        .signal
    {
        Signal::CustomerUpdated { default_change, .. } => default_change.map(|change| (change.from, change.to)),
        other => panic!("{other:?}"),
    };
    let was_method = |method: Value| json!({"invoice_settings": {"default_payment_method": method}});
    let was_source = |source: Value| json!({"default_source": source});
    let change = |from: &str, to: &str| {
        let id = |id: &str| Some(id.to_owned()).filter(|id| !id.is_empty());
        Some((id(from), id(to)))
    };
    let pm_2 = customer(json!("pm_2"), Value::Null);
    assert_eq!(changed(was_method(json!("pm_1")), &pm_2), change("pm_1", "pm_2"));
    assert_eq!(changed(was_method(Value::Null), &pm_2), change("", "pm_2"));
    assert_eq!(changed(json!({"email": "old@hooli.test"}), &pm_2), None);
    assert_eq!(changed(json!({"invoice_settings": {"footer": null}}), &pm_2), None);
    assert_eq!(changed(was_method(json!("pm_1")), &customer(Value::Null, Value::Null)), change("pm_1", ""));

    let card = customer(Value::Null, json!("card_1"));
    assert_eq!(changed(was_source(Value::Null), &card), change("", "card_1"));
    assert_eq!(changed(was_source(json!({"id": "card_0", "object": "card"})), &card), change("card_0", "card_1"));
    assert_eq!(
        changed(was_method(json!("pm_1")), &card),
        change("pm_1", "card_1"),
        "the legacy default is effective again"
    );
    let both = customer(json!("pm_2"), json!("card_1"));
    assert_eq!(changed(was_source(Value::Null), &both), None, "a default payment method takes precedence");
    assert_eq!(changed(was_method(Value::Null), &both), change("card_1", "pm_2"));
}

#[test]
fn an_old_api_version_hides_the_idempotency_key() {
    let mut old: Value =
        serde_json::from_slice(&event("payment_intent.succeeded", &intent_json(), &Value::Null)).unwrap();
    assert!(!observe(old.to_string().as_bytes()).unwrap().hides_request_key);
    old["request"] = json!("req_1");
    let observation = observe(old.to_string().as_bytes()).unwrap();
    assert_eq!((observation.request_key, observation.hides_request_key), (None, true));
}

#[test]
fn sessions_setups_methods_and_mandates_are_parsed() {
    let session = json!({"id": "cs_1", "status": "expired", "expires_at": 5, "url": null, "setup_intent": null});
    let Signal::Session(session) = signal("checkout.session.expired", &session) else { panic!("a session") };
    assert_eq!((session.status, session.url), (SessionStatus::Expired, None));

    let setup = json!({"id": "seti_1", "status": "succeeded", "customer": "cus_1", "mandate": {"id": "mandate_1"},
        "payment_method": "pm_1"});
    let Signal::SetupSucceeded(setup) = signal("setup_intent.succeeded", &setup) else { panic!("a setup") };
    assert_eq!(setup.provider_mandate_id.as_deref(), Some("mandate_1"));

    let detached = json!({"id": "pm_1", "type": "card", "created": 1, "customer": null});
    let expected = Signal::MethodDetached { provider_payment_method_id: "pm_1".to_owned() };
    assert_eq!(signal("payment_method.detached", &detached), expected);

    for (status, active) in [("active", true), ("pending", true), ("inactive", false)] {
        let mandate = json!({"id": "mandate_1", "status": status, "payment_method": "pm_1"});
        let parsed = signal("mandate.updated", &mandate);
        assert!(matches!(parsed, Signal::Mandate(found) if found.is_active == active), "{status}");
    }
    let details = json!({"type": "sepa_debit", "sepa_debit": {"mandate": "mandate_1"}});
    let debit = json!({"id": "py_1", "payment_method": "pm_1", "payment_method_details": details});
    let named =
        MandateSnapshot { id: "mandate_1".to_owned(), provider_payment_method_id: "pm_1".to_owned(), is_active: true };
    assert_eq!(signal("charge.pending", &debit), Signal::Mandate(named));
    let other = json!({"id": "py_1", "payment_method": "pm_1", "payment_method_details": {"type": "us_bank_account"}});
    assert!(matches!(signal("charge.pending", &other), Signal::Ignored { .. }));
}

/// Asserts that an event has the same signal in an old API version and in ours.
fn same_signal(event_type: &str, old: &Value, new: &Value) {
    let mut event: Value = serde_json::from_slice(&event(event_type, old, &Value::Null)).unwrap();
    event["api_version"] = json!("2018-11-08");
    let read = observe(event.to_string().as_bytes()).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(read.signal, signal(event_type, new));
}

#[test]
fn an_intent_before_2022_11_15_lists_charges_instead_of_the_latest() {
    let mut old = intent_json();
    old.as_object_mut().unwrap().remove("latest_charge");
    old["charges"] = json!({"object": "list", "has_more": false, "url": "/v1/charges?payment_intent=pi_1", "data": [
        {"id": "ch_1", "object": "charge", "created": 1_700_000_010, "paid": false},
        {"id": "ch_0", "object": "charge", "created": 1_700_000_000, "paid": false},
    ]});
    same_signal("payment_intent.payment_failed", &old, &intent_json());
    let mut untried = intent_json();
    untried["latest_charge"] = Value::Null;
    old["charges"]["data"] = json!([]);
    same_signal("payment_intent.canceled", &old, &untried);
}

#[test]
fn an_intent_before_2019_02_11_uses_sources() {
    let mut new = intent_json();
    let mut old = new.clone();
    old["status"] = json!("requires_source");
    old["last_payment_error"]["source"] = old["last_payment_error"]["payment_method"].take();
    same_signal("payment_intent.payment_failed", &old, &new);
    let link = "https://hooks.stripe.com/redirect/authenticate/src_1";
    new["status"] = json!("requires_action");
    new["next_action"] = json!({"type": "redirect_to_url", "redirect_to_url": {"url": link}});
    old["status"] = json!("requires_source_action");
    old["next_source_action"] = json!({"type": "authorize_with_url", "authorize_with_url": {"url": link}});
    same_signal("payment_intent.requires_action", &old, &new);
}

#[test]
fn refunds_inside_a_charge_in_old_versions_are_ignored() {
    let new = json!({"id": "ch_1", "payment_intent": "pi_1", "amount_refunded": 100});
    let mut old = new.clone();
    old["refunds"] = json!({"object": "list", "data": [{"id": "re_1", "amount": 100}]});
    old["source"] = json!({"id": "card_1", "object": "card"});
    same_signal("charge.refunded", &old, &new);
}

#[test]
fn an_event_type_under_its_old_name_is_parsed() {
    let refund = json!({"id": "re_1", "amount": 100, "currency": "eur", "status": "failed", "charge": "ch_1"});
    assert_eq!(signal("charge.refund.updated", &refund), signal("refund.updated", &refund));
    let method = json!({"id": "pm_1", "type": "card", "created": 1, "customer": "cus_1"});
    let renamed = signal("payment_method.card_automatically_updated", &method);
    assert_eq!(renamed, signal("payment_method.automatically_updated", &method));
}
