//! Upgrading from the release before payment links, and going back to it: what it has acknowledged is done here, and what it
//! does not know is not left in its way.

use std::collections::BTreeSet;
use std::path::Path;

use paybridge::domain::jobs::JobKind;
use paybridge::grpc::proto::{Payment, PaymentState};
use tokio_postgres::Client;

use crate::cashier::Cashier;
use crate::links::{at_rest, declined};

/// The kinds of jobs that the release before the parking of jobs, refunds and links knows.
const KNOWN_BEFORE: [&str; 12] = [
    "submit_payment",
    "cancel_payment",
    "reconcile_payment",
    "apply_delivery",
    "sync_customer",
    "import_payment_methods",
    "push_default_method",
    "detach_method",
    "create_checkout_session",
    "connect_integration",
    "disconnect_integration",
    "poll_events",
];

/// A payment that was refused, and whose cancellation the release before has accepted: it notes the time, and nothing of
/// errands.
async fn cancel_as_before(database: &Client, payment: &str) {
    let noted = format!("UPDATE payments SET cancel_request_time = update_time WHERE id = '{payment}'");
    database.execute(&noted, &[]).await.expect("it is noted");
}

/// A till at rest with a payment that was refused, and a look behind it.
async fn refused(name: &str) -> (Cashier, Payment, Client) {
    let (cashier, payment) = declined(name).await;
    at_rest(&cashier).await;
    let database = cashier.database().await;
    (cashier, payment, database)
}

/// Asks for a job as any release does.
async fn ask(database: &Client, kind: &str, payment: &str) {
    let asked = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, lease_epoch) \
         SELECT gen_random_uuid(), organization_id, '{kind}', id, '', update_time, 1, 0, 0 \
         FROM payments WHERE id = '{payment}'"
    );
    database.execute(&asked, &[]).await.expect("it is asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_cancellation_that_the_release_before_has_acknowledged_is_carried_out() {
    let (mut cashier, payment, database) = refused("acknowledged before").await;
    cancel_as_before(&database, &payment.id).await;
    ask(&database, "cancel_payment", &payment.id).await;
    cashier.payment_in("inv", PaymentState::Canceled).await;
    assert_eq!(cashier.intents("inv")[0]["status"], "canceled", "at Stripe, too");
    cashier.at_rest(&["cancel_payment", "submit_payment"]).await;
    // One that was withdrawn, or is over, leaves the payment alone.
    let other = cashier.pay("hooli", "inv-2").await;
    cashier.payment_in("inv-2", PaymentState::Failed).await;
    ask(&database, "cancel_payment", &other.id).await;
    cashier.at_rest(&["cancel_payment"]).await;
    assert_eq!(cashier.payment("inv-2").await.state(), PaymentState::Failed);
    cashier.end().await;
}

/// A migration's SQL: `up` or `down`.
fn migration(number: &str, direction: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let all = std::fs::read_dir(folder).expect("migrations").map(|entry| entry.expect("an entry").path());
    let found = all.into_iter().find(|path| path.to_string_lossy().contains(number)).expect("the migration");
    std::fs::read_to_string(found.join(format!("{direction}.sql"))).expect("its SQL")
}

/// Whoever goes back runs these, newest first; all of it is undone at the end of the transaction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_going_back_leaves_no_job_that_the_release_before_does_not_know_and_loses_no_cancellation() {
    let (cashier, payment, database) = refused("going back").await;
    database.batch_execute("BEGIN").await.expect("a transaction");
    cancel_as_before(&database, &payment.id).await;
    let errand = format!(r#"UPDATE payments SET errand = '{{"kind": "cancel"}}' WHERE id = '{}'"#, payment.id);
    database.execute(&errand, &[]).await.expect("the errand");
    database.execute("DELETE FROM jobs", &[]).await.expect("no job");
    for (_, kind) in JobKind::ALL.iter().filter(|(_, kind)| *kind != "cancel_payment") {
        ask(&database, kind, &payment.id).await;
    }
    for number in ["000013", "000012", "000011", "000010", "000009", "000008", "000007"] {
        database.batch_execute(&migration(number, "down")).await.expect("down");
    }
    let left = database.query("SELECT kind FROM jobs", &[]).await.expect("a look");
    let left: BTreeSet<String> = left.into_iter().map(|row| row.get(0)).collect();
    assert_eq!(left, KNOWN_BEFORE.map(str::to_owned).into(), "all that it knows, and nothing else");
    for number in ["000007", "000008", "000009", "000010", "000011", "000012", "000013"] {
        database.batch_execute(&migration(number, "up")).await.expect("up again");
    }
    let errand = database.query_one("SELECT errand->>'kind' FROM payments", &[]).await.expect("a look");
    assert_eq!(errand.get::<_, Option<String>>(0).as_deref(), Some("cancel"), "the cancellation is an errand again");
    database.batch_execute("ROLLBACK").await.expect("undone");
    cashier.end().await;
}

/// What would be lost, or charged beside, keeps the schema from going back, and says what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_going_back_is_refused_while_the_release_before_would_charge_beside_a_link_or_forget_what_was_accepted() {
    let (cashier, payment, database) = refused("not back").await;
    let refusal = async |before: &str| {
        let down = format!("{before}; {}; {}", migration("000009", "down"), migration("000008", "down"));
        database.batch_execute("BEGIN").await.expect("a transaction");
        let error = database.batch_execute(&down).await.expect_err("it is refused");
        database.batch_execute("ROLLBACK").await.expect("undone");
        error.as_db_error().expect("of the database").message().to_owned()
    };
    let record = r#"UPDATE payments SET errand = '{"kind": "record_manual", "reference": "", "time": ""}'"#;
    let told = refusal(record).await;
    assert!(told.contains("1 payment"), "{told}");
    let refund = "INSERT INTO refunds (organization_id, payment_id, currency, status, update_time) \
        SELECT organization_id, id, currency, 'pending', update_time FROM payments";
    let told = refusal(refund).await;
    assert!(told.contains("1 refund"), "{told}");
    cashier.link("link", &payment).await.expect("a link");
    let told = refusal("SELECT").await;
    assert!(told.contains("1 payment"), "{told}");
    cashier.end().await;
}
