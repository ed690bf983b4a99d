//! Backups, restorations and copies of a harness's database, and the catching up that follows.

use std::collections::{BTreeMap, BTreeSet};

use paybridge::app::Periods;
use paybridge::dev::backups::Administrator;
use paybridge::dev::test_environment::{Options, TestEnvironment};
use paybridge::grpc::proto::{
    Event, GetIntegrationRequest, IntegrationState, ListEventsRequest, RotateIntegrationKeyRequest,
};
use serde_json::Value;
use time::Duration;

use crate::support::harness::Harness;
use crate::support::postgres;
use crate::support::reconciliation::until_no_check_runs;
use crate::support::sql::superuser;
use crate::support::wait::{until, until_ok};

/// The periods of a server in production, as far as they concern a restored database.
pub fn options() -> Options {
    let options = Options::default();
    let periods = Periods {
        contact_max: Duration::minutes(10),
        endpoint_test: Duration::MINUTE,
        endpoint_live: Duration::minutes(8),
        ..options.periods
    };
    Options { periods, ..options }
}

async fn administrator() -> Administrator {
    Administrator::connect(postgres()).await.expect("the maintenance database")
}

fn database_name(harness: &Harness) -> String {
    name_of(&harness.context.environment.database_url)
}

fn name_of(url: &str) -> String {
    let config: tokio_postgres::Config = url.parse().expect("a connection string");
    config.get_dbname().expect("a database").to_owned()
}

/// Takes a snapshot of the database. Its sessions are cut, so the event stream of the billing system may end.
pub async fn snapshot(harness: &Harness) {
    administrator().await.snapshot(&database_name(harness)).await.expect("a snapshot");
    until_serving(harness).await;
}

/// Takes a snapshot of an environment's database.
pub async fn snapshot_environment(environment: &TestEnvironment) {
    administrator().await.snapshot(&name_of(&environment.database_url)).await.expect("a snapshot");
}

/// Replaces an environment's database with its snapshot.
pub async fn restore_environment(environment: &TestEnvironment) {
    administrator().await.restore(&name_of(&environment.database_url)).await.expect("the database is restored");
}

/// Replaces the database with its snapshot while the server runs, and waits until the server serves again. What it
/// shows first is that the integration catches up.
pub async fn restore(harness: &Harness) {
    harness.sandbox().clear_requests();
    administrator().await.restore(&database_name(harness)).await.expect("the database is restored");
    assert_eq!(until_serving(harness).await, IntegrationState::CatchingUp, "from the first response on");
}

/// Makes a copy of the database, and returns its connection string.
pub async fn copy(harness: &Harness) -> String {
    let name = database_name(harness);
    let copy = format!("{name}_copy");
    administrator().await.copy(&name, &copy).await.expect("a copy");
    until_serving(harness).await;
    postgres().connection_string_as("paybridge", &copy)
}

/// Closes the harness's database: its server can do nothing any more.
pub async fn close_database(harness: &Harness) {
    administrator().await.close(&database_name(harness)).await.expect("the database is closed");
}

/// Waits until the server responds to a call, and returns the integration's state in the first response.
pub async fn until_serving(harness: &Harness) -> IntegrationState {
    until_ok("the server serves", async || {
        let get = GetIntegrationRequest { id: harness.integration.id.clone() };
        let response = harness.billing.api.integrations.clone().get_integration(get).await;
        let integration = response.map_err(|status| status.to_string())?.into_inner().integration;
        Ok(integration.expect("an integration").state())
    })
    .await
}

/// Advances the clock until the integration is in use.
pub async fn until_active(harness: &Harness) {
    until_ok("the integration is in use", async || {
        let state = until_serving(harness).await;
        if state == IntegrationState::Active {
            return Ok(());
        }
        harness.advance_slowly(Duration::MINUTE);
        Err(format!("it is {state:?}: {:?}", contact(harness).await))
    })
    .await;
}

/// Advances the clock until the integration is in use, and checks that nothing is created or moved at Stripe before.
/// Nothing may have been in progress when the database was restored.
pub async fn until_caught_up(harness: &Harness) {
    until_ok("the integration has caught up", async || {
        let changes = changes_at_stripe(harness);
        // Read afterwards: the changes were made in this state or before it.
        let state = until_serving(harness).await;
        if state == IntegrationState::Active {
            return Ok(());
        }
        assert_eq!(changes, [""; 0], "while it is {state:?}");
        harness.advance_slowly(Duration::MINUTE);
        Err(format!("it is {state:?}: {:?}", contact(harness).await))
    })
    .await;
}

/// Advances the clock by more than a minute, and waits until the counter at Stripe was raised since.
pub async fn pass(harness: &Harness, period: Duration) {
    let number = async || contact(harness).await["number"].clone();
    // One that ends later would be scheduled by the time after the step.
    until_no_check_runs(harness).await;
    let before = number().await;
    harness.advance(period);
    until("the counter is raised", async || (number().await != before).then_some(())).await;
}

/// What was created or moved at Stripe since the recorded requests were cleared, besides expired sessions.
pub fn changes_at_stripe(harness: &Harness) -> Vec<String> {
    let mut changes: Vec<String> = Vec::new();
    for request in harness.sandbox().requests() {
        let is_expiry = request.path.starts_with("/v1/checkout/sessions/") && request.path.ends_with("/expire");
        let is_counter = request.path.starts_with("/v1/webhook_endpoints/")
            && request.form.iter().all(|(name, _)| name.starts_with("metadata["));
        if request.method != "GET" && !is_expiry && !is_counter {
            changes.push(format!("{} {}", request.method, request.path));
        }
    }
    changes
}

/// The integration's row of `stripe_contacts`, as JSON.
pub async fn contact(harness: &Harness) -> Value {
    contact_in(&harness.context.environment.database_url).await
}

/// The only row of `stripe_contacts` in a database, as JSON.
pub async fn contact_in(database_url: &str) -> Value {
    let database = superuser(database_url).await;
    let row = database.query_one("SELECT to_jsonb(c)::text FROM stripe_contacts AS c", &[]).await.expect("a contact");
    serde_json::from_str(row.get(0)).expect("JSON")
}

/// Gives the integration another key.
pub async fn rotate(harness: &Harness, secret_key: &str) {
    let request = RotateIntegrationKeyRequest { id: harness.integration.id.clone(), secret_key: secret_key.to_owned() };
    let mut integrations = harness.billing.api.integrations.clone();
    integrations.rotate_integration_key(request).await.expect("the key is accepted");
}

/// The id of the log and its events.
pub async fn log(harness: &Harness) -> (String, Vec<Event>) {
    let mut request = ListEventsRequest { page_size: 1_000, ..ListEventsRequest::default() };
    let mut events = Vec::new();
    loop {
        let mut api = harness.billing.api.events.clone();
        let page = api.list_events(request.clone()).await.expect("a page").into_inner();
        events.extend(page.events);
        if page.next_page_token.is_empty() {
            return (page.log_id, events);
        }
        request.page_token = page.next_page_token;
    }
}

/// How many events of a type the log has.
pub fn count(events: &[Event], webhook_type: &str) -> usize {
    events.iter().filter(|event| event.webhook_type == webhook_type).count()
}

/// Waits until nothing is left to do.
pub async fn settle(harness: &Harness) {
    harness.all_delivered().await;
    harness.drain_jobs(&["sync_customer", "create_checkout_session", "submit_payment", "refund_payment"]).await;
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment", "refund_payment", "import_payment_methods"]).await;
}

/// Compares the database with Stripe: one charge for an invoice, one refund for a request, no open session that nobody
/// knows, one Stripe customer for each, and every payment and refund as it is at Stripe.
pub async fn assert_matches_stripe(harness: &Harness) {
    let database = harness.database().await;
    let mut wrong = Vec::new();
    let mut charges: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for charge in harness.sandbox().ledger().into_iter().filter(|charge| charge.status != "failed") {
        let invoice = charge.metadata.get("invoice_id").cloned().unwrap_or_default();
        let state = if charge.status == "pending" { "processing".to_owned() } else { charge.status };
        charges.entry(invoice).or_default().push(state);
    }
    let rows = database.query("SELECT invoice_id, state FROM payments", &[]).await.expect("the payments");
    let known: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (invoice, at_stripe) in &charges {
        let here: Vec<String> = known.get(invoice).into_iter().cloned().collect();
        if *at_stripe != here {
            wrong.push(format!("the charges of {invoice} are {at_stripe:?} at Stripe, and its payment is {here:?}"));
        }
    }
    for (invoice, state) in known.iter().filter(|(invoice, _)| !charges.contains_key(*invoice)) {
        if matches!(state.as_str(), "succeeded" | "processing") {
            wrong.push(format!("{invoice} is {state}, and has no charge at Stripe"));
        }
    }
    let query = "SELECT provider_payment_intent_id FROM overpayments";
    for row in database.query(query, &[]).await.expect("the overpayments") {
        wrong.push(format!("{} is taken for the intent of somebody else", row.get::<_, String>(0)));
    }
    wrong.extend(wrong_refunds(harness, &database).await);
    wrong.extend(wrong_sessions_and_customers(harness, &database).await);
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Refunds that were made twice, or that are not as at Stripe.
async fn wrong_refunds(harness: &Harness, database: &tokio_postgres::Client) -> Vec<String> {
    let mut wrong = Vec::new();
    let query = "SELECT coalesce(provider_refund_id, ''), status, coalesce(amount, 0) FROM refunds";
    let rows = database.query(query, &[]).await.expect("the refunds");
    let known: BTreeMap<String, (String, i64)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    let mut by_request = BTreeSet::new();
    for refund in harness.sandbox().objects("refund") {
        let (id, request) = (text(&refund, "/id"), text(&refund, "/metadata/request_id"));
        if !request.is_empty() && !by_request.insert(request.clone()) {
            wrong.push(format!("the refund {request} was made twice"));
        }
        let expected = (text(&refund, "/status"), refund["amount"].as_i64().unwrap_or_default());
        if known.get(&id) != Some(&expected) {
            wrong.push(format!("{id} ({request}) is {expected:?} at Stripe, and {:?} here", known.get(&id)));
        }
    }
    wrong
}

/// Open sessions that the database does not know, customers that Stripe has twice, and other defaults than Stripe's.
async fn wrong_sessions_and_customers(harness: &Harness, database: &tokio_postgres::Client) -> Vec<String> {
    let mut wrong = Vec::new();
    let query = "SELECT provider_session_id FROM checkout_sessions WHERE state IN ('creating', 'open') UNION ALL \
         SELECT provider_session_id FROM payment_attempts WHERE state = 'open'";
    let rows = database.query(query, &[]).await.expect("the sessions");
    let known: BTreeSet<String> = rows.iter().filter_map(|row| row.get(0)).collect();
    for session in harness.sandbox().objects("checkout.session") {
        let id = text(&session, "/id");
        if text(&session, "/status") == "open" && !known.contains(&id) {
            wrong.push(format!("{id} is open, and nobody knows it"));
        }
    }
    let query = "SELECT coalesce(provider_customer_id, ''), coalesce(provider_payment_method_id, '') \
         FROM customers AS c LEFT JOIN payment_methods AS m \
         ON m.organization_id = c.organization_id AND m.id = c.default_payment_method_id";
    let rows = database.query(query, &[]).await.expect("the customers");
    let known: BTreeMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for customer in harness.sandbox().objects("customer") {
        let (id, default) = (text(&customer, "/id"), text(&customer, "/invoice_settings/default_payment_method"));
        if known.get(&id) != Some(&default) {
            wrong.push(format!("the default of {id} is {default:?} at Stripe, and {:?} here", known.get(&id)));
        }
    }
    wrong
}

/// A text in an object of Stripe's; empty if there is none.
fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}
