//! Upgrading from the release before payment links: what it has acknowledged is done here.

use paybridge::dev::stage::Options;
use paybridge::grpc::proto::PaymentState;
use tokio_postgres::Client;

use crate::cashier::Cashier;

/// A payment that was refused, and whose cancellation the release before has accepted: it notes the time, and nothing of
/// errands.
async fn cancel_as_before(database: &Client, payment: &str) {
    let noted = format!("UPDATE payments SET cancel_request_time = update_time WHERE id = '{payment}'");
    database.execute(&noted, &[]).await.expect("it is noted");
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
    let mut cashier = Cashier::new("acknowledged before", Options::default()).await;
    cashier.customer("hooli", "4000000000000341").await;
    let payment = cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
    let database = cashier.database().await;
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
