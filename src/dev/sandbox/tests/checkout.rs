//! Checkout Sessions and their hosted pages.

use time::Duration;

use super::{Caller, Response, event_types, id, sandbox};

const SETUP: [(&str, &str); 2] =
    [("mode", "setup"), ("success_url", "https://example.com/done?session={CHECKOUT_SESSION_ID}")];

async fn open(caller: &Caller, more: &[(&str, &str)]) -> serde_json::Value {
    let mut form = SETUP.to_vec();
    form.extend(more);
    caller.post("/v1/checkout/sessions", &form).await.ok()
}

/// Requests a hosted page as a browser does.
async fn page(caller: &Caller, url: &str, form: Option<&str>) -> Response {
    let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    let request = match form {
        None => http.get(url),
        Some(form) => http.post(url).header("content-type", "application/x-www-form-urlencoded").body(form.to_owned()),
    };
    caller.send(request).await.unwrap()
}

#[tokio::test]
async fn a_completed_setup_session_stores_the_method_without_a_charge_or_a_default() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let data = [
        ("customer", &*customer),
        ("payment_method_types[]", "card"),
        ("payment_method_types[]", "sepa_debit"),
        ("setup_intent_data[metadata][a]", "b"),
    ];
    let session = open(&caller, &data).await;
    assert_eq!((&session["status"], &session["payment_status"]), (&"open".into(), &"no_payment_required".into()));
    assert_eq!(session["url"], format!("{}/c/pay/{}", sandbox.url(), id(&session)));
    let now = session["created"].as_i64().unwrap();
    assert_eq!(session["expires_at"].as_i64().unwrap(), now + 24 * 60 * 60);

    let done = sandbox.complete_session(&id(&session), "DE89370400440532013000", true).unwrap();
    assert_eq!((&done["status"], &done["url"]), (&"complete".into(), &serde_json::Value::Null));
    let path = format!("/v1/checkout/sessions/{}", id(&session));
    let form = [("expand[]", "setup_intent"), ("expand[]", "setup_intent.payment_method")];
    let read = caller.get(&path, &form).await.ok();
    let intent = &read["setup_intent"];
    assert_eq!((&intent["status"], &intent["metadata"]["a"]), (&"succeeded".into(), &"b".into()));
    assert!(intent["mandate"].as_str().unwrap().starts_with("mandate_"));
    assert_eq!(intent["payment_method"]["customer"], customer.as_str());
    let customer = sandbox.object(&customer).unwrap();
    assert_eq!(customer["invoice_settings"]["default_payment_method"], serde_json::Value::Null);
    assert!(sandbox.ledger().is_empty());
    let event_types = event_types(&sandbox);
    let last =
        ["setup_intent.created", "payment_method.attached", "setup_intent.succeeded", "checkout.session.completed"];
    assert_eq!(event_types[event_types.len() - 4..], last);
    caller.post(&format!("{path}/expire"), &[]).await.error(400, "");
}

#[tokio::test]
async fn a_session_expires_after_24_hours_or_on_request() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let (one, two) = (open(&caller, &[("currency", "eur")]).await, open(&caller, &[("currency", "eur")]).await);
    let expired = caller.post(&format!("/v1/checkout/sessions/{}/expire", id(&one)), &[]).await.ok();
    assert_eq!(expired["status"], "expired");
    sandbox.abandon_session(&id(&two)).unwrap();
    sandbox.advance(Duration::hours(25));
    let read = caller.get(&format!("/v1/checkout/sessions/{}", id(&two)), &[]).await.ok();
    assert_eq!(read["status"], "expired");
    let expired_events = event_types(&sandbox).iter().filter(|kind| *kind == "checkout.session.expired").count();
    assert_eq!(expired_events, 2);
    sandbox.complete_session(&id(&two), "4242424242424242", true).unwrap_err();
    let listed = caller.get("/v1/checkout/sessions", &[("status", "open")]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_payer_saves_a_card_on_the_hosted_page() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = id(&caller.post("/v1/customers", &[("name", "<b>Jenny</b>")]).await.ok());
    let session = open(&caller, &[("customer", &customer), ("payment_method_types[]", "card")]).await;
    let url = session["url"].as_str().unwrap();
    let page_response = page(&caller, url, None).await;
    let html = page_response.body.as_str().unwrap();
    assert_eq!(page_response.status, 200);
    assert!(html.contains("SANDBOX") && html.contains("&lt;b&gt;Jenny"), "{html}");
    assert!(!html.contains("IBAN"), "only allowed types are offered");
    assert!(!html.contains("https://") && !html.contains("{{"), "no external resource and no open placeholder: {html}");

    let declined = page(&caller, url, Some("card=4000+0000+0000+0002&name=Jenny")).await;
    assert!(declined.body.as_str().unwrap().contains("Your card was declined."));
    assert!(declined.body.as_str().unwrap().contains("4000 0000 0000 0002"), "the input is kept");
    let past = page(&caller, url, Some("card=4242+4242+4242+4242&expiry=01+%2F+20&cvc=123&name=Jenny")).await;
    assert!(past.body.as_str().unwrap().contains("expiration date is in the past"));
    let done = page(&caller, url, Some("card=4242+4242+4242+4242&expiry=12+%2F+34&cvc=123&name=Jenny")).await;
    assert_eq!(
        (done.status, done.header("location")),
        (303, &*format!("https://example.com/done?session={}", id(&session)))
    );
    let again = page(&caller, url, None).await;
    assert!(again.body.as_str().unwrap().contains("All done"));
    assert_eq!(page(&caller, &format!("{}/c/pay/cs_none", sandbox.url()), None).await.status, 404);
}

#[tokio::test]
async fn a_payer_authenticates_on_the_hosted_page() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let session = open(&caller, &[("customer", &customer), ("payment_method_types[]", "card")]).await;
    let url = session["url"].as_str().unwrap();
    let requested = page(&caller, url, Some("card=4000002500003155&name=Jenny")).await;
    let bank = requested.header("location").to_owned();
    assert!(bank.contains("/3ds/seti_"), "{bank}");
    assert!(page(&caller, &bank, None).await.body.as_str().unwrap().contains("Visa ending in 3155"));
    let failed = page(&caller, &bank, Some("answer=fail")).await;
    assert_eq!(failed.header("location"), url);
    assert!(page(&caller, url, None).await.body.as_str().unwrap().contains("authentication failed"));
    let requested = page(&caller, url, Some("card=4000002500003155&name=Jenny")).await;
    let done = page(&caller, requested.header("location"), Some("answer=complete")).await;
    assert!(done.header("location").starts_with("https://example.com/done"));
    assert_eq!(sandbox.object(&id(&session)).unwrap()["status"], "complete");
}

fn payment<'a>(customer: &'a str, kind: &'a str) -> Vec<(&'a str, &'a str)> {
    vec![
        ("mode", "payment"),
        ("success_url", "https://example.com/done"),
        ("customer", customer),
        ("payment_method_types[]", kind),
        ("line_items[0][price_data][currency]", "eur"),
        ("line_items[0][price_data][unit_amount]", "2450"),
        ("line_items[0][price_data][product_data][name]", "Invoice 7"),
        ("line_items[0][quantity]", "2"),
        ("payment_intent_data[metadata][invoice]", "7"),
    ]
}

#[tokio::test]
async fn a_payment_session_creates_one_intent_at_confirmation_and_charges_once() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    let session = caller.post("/v1/checkout/sessions", &payment(&customer, "card")).await.ok();
    assert_eq!((&session["amount_total"], &session["payment_intent"]), (&4900.into(), &serde_json::Value::Null));
    sandbox.complete_session(&id(&session), "4000000000009995", true).unwrap_err();
    let rejected = sandbox.object(&id(&session)).unwrap();
    assert_eq!(rejected["status"], "open");
    let intent = rejected["payment_intent"].as_str().unwrap();
    let cancel = format!("/v1/payment_intents/{intent}/cancel");
    caller.post(&cancel, &[]).await.error(400, "payment_intent_unexpected_state");
    let paid = sandbox.complete_session(&id(&session), "4242424242424242", true).unwrap();
    assert_eq!((&paid["payment_status"], &paid["payment_intent"]), (&"paid".into(), &intent.into()));
    let taken: Vec<_> = sandbox.ledger().into_iter().filter(|entry| entry.status == "succeeded").collect();
    assert_eq!((taken.len(), taken[0].amount, taken[0].metadata["invoice"].as_str()), (1, 4900, "7"));
    sandbox.complete_session(&id(&session), "4242424242424242", true).unwrap_err();
}

#[tokio::test]
async fn a_payment_session_by_debit_is_unpaid_until_the_bank_responds() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let customer = caller.customer().await;
    for (iban, status, event) in [
        ("DE89370400440532013000", "paid", "checkout.session.async_payment_succeeded"),
        ("DE62370400440532013001", "unpaid", "checkout.session.async_payment_failed"),
    ] {
        let session = caller.post("/v1/checkout/sessions", &payment(&customer, "sepa_debit")).await.ok();
        let done = sandbox.complete_session(&id(&session), iban, true).unwrap();
        assert_eq!((&done["status"], &done["payment_status"]), (&"complete".into(), &"unpaid".into()));
        assert_eq!(sandbox.settle(done["payment_intent"].as_str()), 1);
        assert_eq!(sandbox.object(&id(&session)).unwrap()["payment_status"], status);
        assert!(event_types(&sandbox).contains(&event.to_owned()), "{iban}");
    }
}

#[tokio::test]
async fn the_hosted_page_shows_custom_text() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    let default = open(&caller, &[("currency", "eur")]).await;
    let fields = ["after_submit", "shipping_address", "submit", "terms_of_service_acceptance"];
    assert!(fields.iter().all(|field| default["custom_text"][field].is_null()), "{}", default["custom_text"]);
    assert_eq!(default["custom_text"].as_object().map(serde_json::Map::len), Some(fields.len()));

    let text = [
        ("currency", "eur"),
        ("custom_text[submit][message]", "You agree to <b>monthly</b> invoices."),
        ("custom_text[after_submit][message]", "Questions? Call us."),
    ];
    let session = open(&caller, &text).await;
    assert_eq!(session["custom_text"]["submit"]["message"], "You agree to <b>monthly</b> invoices.");
    assert_eq!(session["custom_text"]["after_submit"]["message"], "Questions? Call us.");
    let page_response = page(&caller, session["url"].as_str().unwrap(), None).await;
    let html = page_response.body.as_str().unwrap();
    assert!(html.contains("You agree to &lt;b&gt;monthly&lt;/b&gt; invoices."), "{html}");
    assert!(html.contains("Questions? Call us."), "{html}");

    let long = "x".repeat(1201);
    let mut form = SETUP.to_vec();
    form.extend([("currency", "eur"), ("custom_text[submit][message]", &*long)]);
    let rejected = caller.post("/v1/checkout/sessions", &form).await;
    assert_eq!(rejected.error(400, "")["param"], "custom_text[submit][message]");
    form.pop();
    form.push(("custom_text[submit]", ""));
    assert!(caller.post("/v1/checkout/sessions", &form).await.ok()["custom_text"]["submit"].is_null());
}
