//! Webhooks: signatures, retries and faults.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use serde_json::Value;
use time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::super::{ACCOUNT, Options, Sandbox, WebhookAction, WebhookFault, delivery};
use super::{Caller, id, sandbox, sandbox_with};

/// A webhook that an endpoint received.
#[derive(Debug)]
pub(super) struct Post {
    pub signature: String,
    pub body: String,
}

impl Post {
    pub fn event(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// An endpoint that responds with the given statuses first, and with 200 from then on.
pub(super) struct Endpoint {
    pub url: String,
    pub posts: mpsc::UnboundedReceiver<Post>,
}

type Statuses = Arc<Mutex<VecDeque<u16>>>;

async fn receive(
    State((statuses, sender)): State<(Statuses, mpsc::UnboundedSender<Post>)>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let signature = headers["stripe-signature"].to_str().unwrap().to_owned();
    let _ = sender.send(Post { signature, body: String::from_utf8(body.to_vec()).unwrap() });
    let status = statuses.lock().pop_front().unwrap_or(200);
    StatusCode::from_u16(status).unwrap()
}

impl Endpoint {
    pub async fn start(statuses: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/webhooks", listener.local_addr().unwrap());
        let (sender, posts) = mpsc::unbounded_channel();
        let statuses: Statuses = Arc::new(Mutex::new(statuses.iter().copied().collect()));
        let router = axum::Router::new().fallback(receive).with_state((statuses, sender));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, posts }
    }

    pub async fn next(&mut self) -> Post {
        tokio::time::timeout(std::time::Duration::from_secs(20), self.posts.recv()).await.expect("a webhook").unwrap()
    }

    /// Waits for `count` webhooks and returns their types, sorted.
    pub async fn types(&mut self, count: usize) -> Vec<String> {
        let mut types = Vec::new();
        for _ in 0..count {
            types.push(self.next().await.event()["type"].as_str().unwrap().to_owned());
        }
        types.sort();
        types
    }
}

/// Registers the endpoint. Returns its id and its secret.
pub(super) async fn register(caller: &Caller, url: &str, events: &[&str]) -> (String, String) {
    let mut form = vec![("url", url), ("api_version", "2026-08-26.dahlia")];
    form.extend(events.iter().map(|event| ("enabled_events[]", *event)));
    let created = caller.post("/v1/webhook_endpoints", &form).await.ok();
    (id(&created), created["secret"].as_str().unwrap().to_owned())
}

/// Waits until every webhook has been acknowledged.
pub(super) async fn all_acknowledged(sandbox: &Sandbox) {
    while !sandbox.deliveries().is_empty() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_webhook_is_signed_and_names_its_request() {
    let sandbox = sandbox().await;
    let (caller, mut endpoint) = (Caller::new(&sandbox), Endpoint::start(&[]).await);
    let (endpoint_id, secret) = register(&caller, &endpoint.url, &["customer.created", "customer.updated"]).await;
    assert!(secret.starts_with("whsec_"));
    let read = caller.get(&format!("/v1/webhook_endpoints/{endpoint_id}"), &[]).await.ok();
    assert!(read.get("secret").is_none(), "the secret is returned only once: {read}");

    let created = caller.keyed("key-1", "/v1/customers", &[("name", "Jenny")]).await;
    let post = endpoint.next().await;
    signed_at(&post, &secret);
    let event = post.event();
    assert_eq!(event["type"], "customer.created");
    assert_eq!(event["api_version"], "2026-08-26.dahlia");
    assert_eq!(event["data"]["object"]["id"], created.body["id"]);
    assert_eq!(event["request"]["idempotency_key"], "key-1");
    assert_eq!(event["request"]["id"], created.header("request-id"));

    let customer = id(&created.body);
    caller.post(&format!("/v1/customers/{customer}"), &[("name", "Joan")]).await.ok();
    let event = endpoint.next().await.event();
    assert_eq!(event["data"]["previous_attributes"], serde_json::json!({ "name": "Jenny" }));

    let method = id(&sandbox.attach_in_dashboard(&customer, "pm_card_visa").unwrap());
    sandbox.set_default_in_dashboard(&customer, Some(&method)).unwrap();
    let event = endpoint.next().await.event();
    assert_eq!(event["request"], serde_json::json!({ "id": null, "idempotency_key": null }));
    let previous = serde_json::json!({ "invoice_settings": { "default_payment_method": null } });
    assert_eq!(event["data"]["previous_attributes"], previous);
    all_acknowledged(&sandbox).await;
    let listed = caller.get(&format!("/v1/events/{}", id(&event)), &[]).await.ok();
    assert_eq!(listed["pending_webhooks"], 0);
}

#[tokio::test]
async fn each_retry_is_signed_with_its_own_time() {
    let sandbox = sandbox().await;
    let (caller, mut endpoint) = (Caller::new(&sandbox), Endpoint::start(&[500, 302]).await);
    let (_, secret) = register(&caller, &endpoint.url, &["*"]).await;
    caller.customer().await;
    let first = endpoint.next().await;
    let mut last = signed_at(&first, &secret);
    for attempts in 1..=2 {
        while sandbox.deliveries().first().is_none_or(|delivery| delivery.attempts < attempts) {
            tokio::task::yield_now().await;
        }
        sandbox.advance(Duration::seconds(10));
        let again = endpoint.next().await;
        assert_eq!(again.body, first.body);
        let time = signed_at(&again, &secret);
        assert!(time >= last + 10, "signed at {time}, the previous attempt at {last}");
        last = time;
    }
    all_acknowledged(&sandbox).await;
}

/// Verifies a webhook's signature and returns its `t`.
fn signed_at(post: &Post, secret: &str) -> i64 {
    let time = post.signature.split_once(',').unwrap().0.strip_prefix("t=").unwrap().parse().unwrap();
    assert_eq!(post.signature, delivery::signature(secret, time, post.body.as_bytes()));
    time
}

#[tokio::test]
async fn endpoints_get_their_subscribed_events_until_disabled_or_deleted() {
    let sandbox = sandbox().await;
    let (caller, mut endpoint) = (Caller::new(&sandbox), Endpoint::start(&[]).await);
    let (one, _) = register(&caller, &endpoint.url, &["payment_method.attached"]).await;
    let customer = caller.customer().await;
    caller.attached(&customer, "pm_card_visa").await;
    assert_eq!(endpoint.next().await.event()["type"], "payment_method.attached");
    let path = format!("/v1/webhook_endpoints/{one}");
    assert_eq!(caller.post(&path, &[("disabled", "true")]).await.ok()["status"], "disabled");
    caller.attached(&customer, "pm_card_visa").await;
    assert!(sandbox.deliveries().is_empty());
    let form = [("disabled", "false"), ("enabled_events[]", "customer.deleted")];
    assert_eq!(caller.post(&path, &form).await.ok()["status"], "enabled");
    caller.call("DELETE", &format!("/v1/customers/{customer}"), &[]).await.ok();
    assert_eq!(endpoint.next().await.event()["type"], "customer.deleted");
    assert_eq!(caller.call("DELETE", &path, &[]).await.ok()["deleted"], true);
    caller.get(&path, &[]).await.error(404, "resource_missing");
    all_acknowledged(&sandbox).await;
}

#[tokio::test]
async fn an_account_has_at_most_sixteen_endpoints() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for _ in 0..16 {
        register(&caller, "http://127.0.0.1:9/webhooks", &["*"]).await;
    }
    let form = [("url", "http://127.0.0.1:9/webhooks"), ("enabled_events[]", "*")];
    caller.post("/v1/webhook_endpoints", &form).await.error(400, "");
}

#[tokio::test]
async fn webhooks_can_be_lost_doubled_and_delayed() {
    let sandbox = sandbox().await;
    let (caller, mut endpoint) = (Caller::new(&sandbox), Endpoint::start(&[]).await);
    register(&caller, &endpoint.url, &["*"]).await;
    let fault =
        |event: &str, action| WebhookFault { event: event.into(), times: Some(1), action, ..WebhookFault::default() };
    sandbox.add_webhook_fault(fault("customer.created", WebhookAction::Lose));
    sandbox.add_webhook_fault(fault("customer.updated", WebhookAction::Double));
    sandbox.add_webhook_fault(fault("customer.deleted", WebhookAction::Delay { milliseconds: 3_600_000 }));
    let path = format!("/v1/customers/{}", caller.customer().await);
    caller.post(&path, &[("name", "Joan")]).await.ok();
    let (one, two) = (endpoint.next().await, endpoint.next().await);
    assert_eq!((one.event()["type"].as_str(), &one.body), (Some("customer.updated"), &two.body));
    caller.call("DELETE", &path, &[]).await.ok();
    assert!(endpoint.posts.try_recv().is_err());
    sandbox.advance(Duration::HOUR);
    assert_eq!(endpoint.next().await.event()["type"], "customer.deleted");
    all_acknowledged(&sandbox).await;
    let listed = caller.get("/v1/events", &[]).await.ok();
    assert_eq!(listed["data"].as_array().unwrap().len(), 3, "the list contains the lost event");

    let lost = sandbox.events(ACCOUNT).first().map(id).unwrap();
    sandbox.resend(&lost).unwrap();
    assert_eq!(id(&endpoint.next().await.event()), lost);
}

#[tokio::test]
async fn webhooks_survive_a_restart() {
    let folder = std::env::temp_dir().join(format!("sandbox-{}", super::super::state::new_id("test")));
    std::fs::create_dir_all(&folder).unwrap();
    let options = Options { state_file: Some(folder.join("state.json")), limits: None, ..Options::default() };
    let first = sandbox_with(options.clone()).await;
    let (caller, mut endpoint) = (Caller::new(&first), Endpoint::start(&[500]).await);
    register(&caller, &endpoint.url, &["*"]).await;
    caller.customer().await;
    let failed = endpoint.next().await;
    while first.deliveries().first().is_none_or(|delivery| delivery.last_response.is_empty()) {
        tokio::task::yield_now().await;
    }
    first.stop().await;
    let second = sandbox_with(options).await;
    second.advance(Duration::seconds(10));
    assert_eq!(endpoint.next().await.body, failed.body);
    all_acknowledged(&second).await;
    second.stop().await;
    std::fs::remove_dir_all(folder).unwrap();
}

#[tokio::test]
async fn the_events_list_pages_filters_and_expires_after_30_days() {
    let sandbox = sandbox().await;
    let caller = Caller::new(&sandbox);
    for _ in 0..5 {
        caller.customer().await;
    }
    let all = sandbox.events(ACCOUNT);
    let page = caller.get("/v1/events", &[("limit", "2")]).await.ok();
    assert_eq!((&page["data"][0]["id"], &page["has_more"]), (&all[4]["id"], &true.into()));
    let oldest = id(&all[0]);
    let forward = caller.get("/v1/events", &[("ending_before", &oldest), ("limit", "3")]).await.ok();
    assert_eq!((&forward["data"][2]["id"], &forward["has_more"]), (&all[1]["id"], &true.into()));
    let back = caller.get("/v1/events", &[("starting_after", &id(&all[1]))]).await.ok();
    assert_eq!((back["data"].as_array().unwrap().len(), &back["has_more"]), (1, &false.into()));
    let typed = caller.get("/v1/events", &[("types[]", "customer.updated"), ("types[]", "charge.failed")]).await.ok();
    assert_eq!(typed["data"].as_array().unwrap().len(), 0);
    let future = caller.get("/v1/events", &[("created[gt]", "99999999999")]).await.ok();
    assert_eq!(future["data"].as_array().unwrap().len(), 0);
    caller.get("/v1/events", &[("starting_after", "evt_none")]).await.error(400, "resource_missing");
    sandbox.advance(Duration::days(31));
    assert_eq!(caller.get("/v1/events", &[]).await.ok()["data"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn a_payment_emits_its_events() {
    let sandbox = sandbox().await;
    let (caller, mut endpoint) = (Caller::new(&sandbox), Endpoint::start(&[]).await);
    register(&caller, &endpoint.url, &["*"]).await;
    let customer = caller.customer().await;
    let form = [
        ("amount", "4900"),
        ("currency", "eur"),
        ("payment_method_types[]", "card"),
        ("customer", &*customer),
        ("payment_method", "pm_card_visa"),
        ("confirm", "true"),
    ];
    caller.post("/v1/payment_intents", &form).await.ok();
    let event_types = endpoint.types(4).await;
    assert_eq!(
        event_types,
        ["charge.succeeded", "customer.created", "payment_intent.created", "payment_intent.succeeded"]
    );
}
