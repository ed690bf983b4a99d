//! What tests do by hand: SQL as the superuser, customers and payments in a few words, refusals looked at closely.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use paybridge::dev::stage::Stage;
use paybridge::dev::story::{Player, Scenery};
use paybridge::grpc::proto::create_payment_request::Customer as Payer;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{CreateCustomerRequest, CreatePaymentRequest, Customer, Money, Payment};
use tokio_postgres::NoTls;
use tonic::{Code, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// How long a test waits for anything, real time.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection as the superuser, whom row level security does not hold.
pub async fn superuser(database_url: &str) -> tokio_postgres::Client {
    let mut config: tokio_postgres::Config = database_url.parse().expect("the stage's own address");
    let (client, connection) = config.user("postgres").connect(NoTls).await.expect("Postgres is there");
    tokio::spawn(connection);
    client
}

/// Asks until there is an answer; `what` says what was waited for.
pub async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut ask: impl FnMut() -> F) -> T {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(found) = ask().await {
            return found;
        }
        let _ = tokio::time::timeout(Duration::from_millis(10), std::future::pending::<()>()).await;
    }
    panic!("waited in vain until {what}");
}

/// How many rows each table holds, of what calls write. Work in progress and the log of what happened are left out.
pub async fn census(stage: &Stage) -> BTreeMap<&'static str, i64> {
    let client = superuser(&stage.database_url).await;
    let mut rows = BTreeMap::new();
    for table in
        ["integrations", "customers", "payments", "payment_attempts", "checkout_sessions", "request_ids", "deliveries"]
    {
        let row = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.expect("a table of ours");
        rows.insert(table, row.get(0));
    }
    rows
}

/// The refusal that a call was answered with.
pub fn refusal<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> (Code, String, ErrorDetails) {
    match answer {
        Ok(answer) => panic!("this was to be refused, and was answered with {:?}", answer.into_inner()),
        Err(status) => (status.code(), status.message().to_owned(), status.get_error_details()),
    }
}

/// Checks code and reason of a refusal, and returns its message and details.
pub fn refused<T: std::fmt::Debug>(
    answer: Result<Response<T>, Status>,
    code: Code,
    reason: &str,
) -> (String, ErrorDetails) {
    let (told, message, details) = refusal(answer);
    let told_reason = details.error_info().map(|info| info.reason.as_str()).unwrap_or_default();
    assert_eq!((told, told_reason), (code, reason), "{message}");
    assert_eq!(details.error_info().map(|info| info.domain.as_str()), Some("paybridge"));
    (message, details)
}

/// The fields that a refused request breaks rules with, in order.
pub fn violations<T: std::fmt::Debug>(answer: Result<Response<T>, Status>) -> Vec<String> {
    let (_, details) = refused(answer, Code::InvalidArgument, "INVALID_FIELDS");
    let bad = details.bad_request().expect("a BadRequest");
    assert!(bad.field_violations.iter().all(|it| !it.description.is_empty()), "each says what would be right");
    bad.field_violations.iter().map(|it| it.field.clone()).collect()
}

/// A customer that is to be created at Stripe.
pub fn synced(external_id: &str, kinds: &[paybridge::grpc::proto::PaymentMethodKind]) -> CreateCustomerRequest {
    CreateCustomerRequest {
        request_id: format!("customer-{external_id}"),
        external_id: external_id.to_owned(),
        name: "Hooli".to_owned(),
        email: "billing@hooli.test".to_owned(),
        sync_with_provider: true,
        provider_payment_methods: kinds.iter().map(|kind| i32::from(*kind)).collect(),
        ..CreateCustomerRequest::default()
    }
}

/// A customer that lives here only.
pub async fn plain_customer(player: &mut Player, external_id: &str) -> Customer {
    let request = CreateCustomerRequest { external_id: external_id.to_owned(), ..CreateCustomerRequest::default() };
    player.api.customers.create_customer(request).await.expect("a customer").into_inner().customer.expect("a customer")
}

/// A customer that is created at Stripe and has stored a method on its Checkout page.
pub async fn ready_customer(scenery: &Scenery, player: &mut Player, external_id: &str, method: &str) -> Customer {
    let request = synced(external_id, &[]);
    player.api.customers.create_customer(request).await.expect("a customer");
    let link = player
        .event("a Checkout link", |event| match &event.object {
            Some(Object::PaymentProviderCustomerCheckoutUrl(link)) if link.external_customer_id == external_id => {
                Some(link.checkout_url.clone())
            }
            _ => None,
        })
        .await
        .expect("a link is told");
    let session = link.rsplit('/').next().expect("a link has parts");
    scenery.stage.sandbox.complete_session(session, method, true).expect("the page takes the method");
    player
        .customer_when(external_id, "has a default method", |customer| !customer.default_payment_method_id.is_empty())
        .await
        .expect("the method becomes the default")
}

/// An invoice to be given in.
pub fn invoice(external_customer_id: &str, invoice_id: &str, minor_units: i64, currency: &str) -> CreatePaymentRequest {
    CreatePaymentRequest {
        request_id: format!("pay-{invoice_id}"),
        invoice_id: invoice_id.to_owned(),
        invoice_number: String::new(),
        customer: Some(Payer::ExternalCustomerId(external_customer_id.to_owned())),
        amount: Some(Money { minor_units, currency_code: currency.to_owned() }),
    }
}

/// Gives an invoice in.
pub async fn pay(player: &mut Player, request: CreatePaymentRequest) -> Result<Payment, Status> {
    let answer = player.api.payments.create_payment(request).await?.into_inner();
    Ok(answer.payment.expect("the answer holds a payment"))
}

/// The signing secret of a webhook endpoint, which Stripe tells once: read from what the sandbox keeps in `state_file`.
pub async fn webhook_secret(state_file: &std::path::Path, endpoint: &str) -> String {
    until("the sandbox has written down the endpoint's secret", || async {
        let state: serde_json::Value = serde_json::from_slice(&std::fs::read(state_file).ok()?).ok()?;
        let mut accounts = state["accounts"].as_object()?.values();
        accounts.find_map(|account| Some(account["hidden"][endpoint]["secret"].as_str()?.to_owned()))
    })
    .await
}
