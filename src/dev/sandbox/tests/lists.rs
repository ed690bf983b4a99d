//! Lists of a whole account, and what the client reads from them.

use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::super::{SECRET_KEY, Sandbox};
use super::{Caller, id, sandbox};
use crate::clock::Clock;
use crate::domain::Money;
use crate::domain::catch_up::Counter;
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::customers::Customer;
use crate::domain::fixtures::{self, START};
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::Payment;
use crate::domain::refunds::{Charge, NewRefund, Refund};
use crate::domain::signals::CustomerSnapshot;
use crate::domain::stripe_requests::{Purpose, StripeRequest};
use crate::stripe::{
    ApiKey, Client, Timeouts, checkout_sessions, customers, payment_intents, refunds, webhook_endpoints,
};

const SESSIONS: &str = "/v1/checkout/sessions";

fn ids(list: &Value) -> Vec<String> {
    list["data"].as_array().unwrap().iter().map(id).collect()
}

async fn paid(caller: &Caller, method: &str) -> Value {
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "card"),
        ("payment_method", method),
        ("confirm", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await.ok()
}

async fn open_session(caller: &Caller) -> Value {
    let form = [("mode", "setup"), ("success_url", "https://example.com"), ("currency", "eur")];
    caller.post(SESSIONS, &form).await.ok()
}

/// One object for each list, with the list's path.
async fn one_of_each(caller: &Caller) -> [(&'static str, Value); 5] {
    let customer = caller.post("/v1/customers", &[("name", "Jenny")]).await.ok();
    let intent = paid(caller, "pm_card_visa").await;
    let refund = caller.post("/v1/refunds", &[("payment_intent", &*id(&intent))]).await.ok();
    let disputed = id(&paid(caller, "pm_card_createDispute").await);
    let disputes = caller.get("/v1/disputes", &[("payment_intent", &*disputed)]).await.ok();
    [
        ("/v1/customers", customer),
        ("/v1/payment_intents", intent),
        ("/v1/refunds", refund),
        ("/v1/disputes", disputes["data"][0].clone()),
        (SESSIONS, open_session(caller).await),
    ]
}

#[tokio::test]
async fn lists_of_the_account_begin_at_a_time() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let old = one_of_each(&caller).await;
    sandbox.advance(Duration::MINUTE);
    let new = one_of_each(&caller).await;
    for ((path, old), (_, new)) in old.iter().zip(&new) {
        let since = async |object: &Value| {
            let since = object["created"].to_string();
            let found = ids(&caller.get(path, &[("created[gte]", &*since), ("limit", "100")]).await.ok());
            [new, old].map(|object| found.contains(&id(object)))
        };
        assert_eq!(since(old).await, [true, true], "{path}");
        assert_eq!(since(new).await, [true, false], "{path}");
    }
}

/// As at Stripe: <https://github.com/stripe/stripe-node/issues/2368>.
#[tokio::test]
async fn open_sessions_are_listed_and_one_that_has_ended_is_no_cursor() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(id(&open_session(&caller).await));
    }
    let first = caller.get(SESSIONS, &[("status", "open"), ("limit", "1")]).await.ok();
    assert_eq!((ids(&first), &first["has_more"]), (vec![sessions[2].clone()], &json!(true)));
    let page = [("status", "open"), ("limit", "1"), ("starting_after", &*sessions[2])];
    assert_eq!(ids(&caller.get(SESSIONS, &page).await.ok()), [sessions[1].clone()]);
    caller.post(&format!("{SESSIONS}/{}/expire", sessions[1]), &[]).await.ok();
    let after_ended = caller.get(SESSIONS, &[("status", "open"), ("starting_after", &*sessions[1])]).await;
    assert_eq!(after_ended.error(400, "resource_missing")["param"], "starting_after");
    let open = caller.get(SESSIONS, &[("status", "open")]).await.ok();
    assert_eq!(ids(&open), [sessions[2].clone(), sessions[0].clone()]);
    let expired = caller.get(SESSIONS, &[("status", "expired")]).await.ok();
    assert_eq!(ids(&expired), [sessions[1].clone()]);
}

#[tokio::test]
async fn the_metadata_of_a_webhook_endpoint_is_merged() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let form = [("url", "https://example.com"), ("enabled_events[]", "*"), ("metadata[a]", "1"), ("metadata[b]", "1")];
    let created = caller.post("/v1/webhook_endpoints", &form).await.ok();
    let path = format!("/v1/webhook_endpoints/{}", id(&created));
    let changed = caller.post(&path, &[("metadata[b]", "2")]).await.ok();
    assert_eq!(changed["metadata"], json!({ "a": "1", "b": "2" }));
    assert_eq!((&changed["url"], &changed["enabled_events"]), (&created["url"], &created["enabled_events"]));
    caller.post(&path, &[("metadata[b]", "")]).await.ok();
    let listed = caller.get("/v1/webhook_endpoints", &[]).await.ok();
    assert_eq!(listed["data"][0]["metadata"], json!({ "a": "1" }));
}

fn client(sandbox: &Sandbox) -> (Client, ApiKey) {
    let client = Client::new(&sandbox.url(), Clock::system(), Timeouts::default()).unwrap();
    (client, ApiKey::unlimited(SECRET_KEY.into()))
}

fn request(purpose: Purpose, body: &str) -> StripeRequest {
    fixtures::request(purpose, 1, body, START)
}

fn hooli() -> Customer {
    Customer {
        id: Uuid::from_u128(1).into(),
        organization_id: Uuid::from_u128(2).into(),
        external_id: "hooli_1234".to_owned(),
        name: "Hooli".to_owned(),
        ..fixtures::customer(None)
    }
}

fn hoolis_payment() -> Payment {
    Payment {
        id: Uuid::from_u128(5).into(),
        organization_id: hooli().organization_id,
        customer_id: hooli().id,
        external_customer_id: hooli().external_id,
        invoice_id: "inv_1".to_owned(),
        invoice_number: "HOO-001".to_owned(),
        ..fixtures::payment(4900)
    }
}

/// A refund of a part of what the payment's charge took.
fn refund_of(charge: &str) -> Refund {
    let payment = hoolis_payment();
    let amount = Money { minor_units: 1000, ..payment.amount };
    let new = NewRefund {
        request_id: "r1".to_owned(),
        payment_id: payment.id,
        provider_charge_id: None,
        amount: Some(amount),
    };
    let charge = Charge {
        provider_charge_id: charge.to_owned(),
        integration_id: payment.integration_id,
        amount: payment.amount,
        settles: true,
    };
    Refund::requested(Uuid::from_u128(7).into(), payment.organization_id, &new, &charge, START)
}

#[tokio::test]
async fn the_client_reads_back_the_customers_payments_and_refunds_that_it_created() {
    let sandbox = sandbox().await;
    let (client, key) = client(&sandbox);
    let organization = Some(hooli().organization_id.0);
    let test = Some("test".to_owned());
    let create = request(Purpose::Customer, &customers::create_body("test", &hooli()));
    let customer = client.create_customer(&key, &create).await.unwrap().object.id;
    let kinds = [MethodKind::Card];
    let body = payment_intents::create_body("test", &hoolis_payment(), &customer, &kinds);
    let intent = client.create_payment_intent(&key, &request(Purpose::PaymentIntent, &body)).await.unwrap().object;
    let method = id(&sandbox.attach_in_dashboard(&customer, "pm_card_visa").unwrap());
    let charge = sandbox.pay_intent_in_dashboard(&intent.id, &method).unwrap()["latest_charge"].clone();
    let body = refunds::create_body("test", &refund_of(charge.as_str().unwrap()), "inv_1");
    client.create_refund(&key, &request(Purpose::PartialRefund, &body)).await.unwrap();

    let since = OffsetDateTime::UNIX_EPOCH;
    let expected = CustomerSnapshot {
        id: customer,
        name: "Hooli".to_owned(),
        email: String::new(),
        phone: String::new(),
        address: None,
        organization_id: organization,
        installation: test.clone(),
        customer_id: Some(hooli().id.0),
        external_id: Some("hooli_1234".to_owned()),
        kinds: hooli().provider_payment_methods,
    };
    assert_eq!(client.customers_since(&key, since, None).await.unwrap().items, [expected]);
    let intents = client.payment_intents_since(&key, since, None).await.unwrap();
    let [paid] = intents.items.as_slice() else { panic!("one intent: {intents:?}") };
    assert_eq!((&paid.installation, paid.organization_id), (&test, organization));
    assert_eq!((paid.payment_id, paid.customer_id), (Some(hoolis_payment().id.0), Some(hooli().id.0)));
    assert_eq!((paid.invoice_id.as_deref(), paid.invoice_number.as_deref()), (Some("inv_1"), Some("HOO-001")));
    assert_eq!((paid.external_customer_id.as_deref(), paid.received().minor_units), (Some("hooli_1234"), 4900));
    let refunds = client.refunds_since(&key, since, None).await.unwrap();
    let [refund] = refunds.items.as_slice() else { panic!("one refund: {refunds:?}") };
    assert_eq!((&refund.installation, refund.organization_id), (&test, organization));
    assert_eq!((refund.refund_id, refund.request_id.as_deref()), (Some(Uuid::from_u128(7)), Some("r1")));
}

#[tokio::test]
async fn the_client_reads_back_the_open_sessions_and_the_counter_that_it_wrote() {
    let sandbox = sandbox().await;
    let (client, key) = client(&sandbox);
    let customer = sandbox.create_customer_in_dashboard(super::super::ACCOUNT, "Hooli").unwrap();
    let session = CheckoutSession {
        id: Uuid::from_u128(3).into(),
        organization_id: hooli().organization_id,
        customer_id: hooli().id,
        integration_id: Uuid::from_u128(4).into(),
        state: SessionState::Creating,
        success_url: "https://shop.test/".to_owned(),
        provider_session_id: None,
        url: None,
        expire_time: None,
        reports_url: true,
        create_time: START,
    };
    let kinds = [MethodKind::Card];
    let setup = checkout_sessions::setup_body("test", &session, &id(&customer), &kinds);
    let setup = client.create_checkout_session(&key, &request(Purpose::CheckoutSession, &setup)).await.unwrap().object;
    let link = checkout_sessions::payment_body("test", &hoolis_payment(), &id(&customer), &kinds, "https://shop.test/");
    let link = client.create_checkout_session(&key, &request(Purpose::PaymentLink, &link)).await.unwrap().object;
    let open = client.open_checkout_sessions(&key, None).await.unwrap();
    assert_eq!(open.items.iter().map(|session| &session.id).collect::<Vec<_>>(), [&link.id, &setup.id]);
    for session in &open.items {
        assert_eq!(session.organization_id, Some(hooli().organization_id.0));
        assert_eq!(session.installation.as_deref(), Some("test"));
    }
    client.expire_checkout_session(&key, &link.id).await.unwrap();
    let rest = client.open_checkout_sessions(&key, Some(&link.id)).await.unwrap();
    assert_eq!((rest.items.len(), rest.next), (1, None), "the list is read anew after a session that has ended");

    let (organization, integration) = (hooli().organization_id, Uuid::from_u128(4).into());
    let body = webhook_endpoints::create_body("test", "https://pay.test/hook", organization, integration);
    let create = request(Purpose::WebhookEndpoint, &body);
    let endpoint = client.create_webhook_endpoint(&key, &create).await.unwrap().object;
    assert_eq!(endpoint.counter(), None);
    let counter = Counter { number: 1, writer: Uuid::from_u128(9), time: START };
    let body = webhook_endpoints::counter_body(&counter);
    client.update_webhook_endpoint(&key, &endpoint.id, &body).await.unwrap();
    let read = client.webhook_endpoint(&key, &endpoint.id).await.unwrap();
    assert_eq!((read.counter(), read.integration_id()), (Some(counter), Some(integration)));
    assert_eq!(read.faults("https://pay.test/hook"), Vec::<String>::new());
}
