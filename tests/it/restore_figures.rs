//! How long catching up takes. `cargo test --test it ten_thousand -- --ignored --nocapture` prints it.

use std::time::Instant;

use paybridge::grpc::proto::IntegrationState;
use time::Duration;
use uuid::Uuid;

use crate::support::harness::{CREATE, Harness, post_to_stripe};
use crate::support::restores::{contact, options, restore, settle, snapshot, until_serving};
use crate::support::wait::until;

/// How long it takes to read back 10,000 payments, and how many reads of Stripe.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "it measures, and takes minutes"]
async fn measure_reading_back_ten_thousand_payments() {
    const PAYMENTS: usize = 10_000;
    let mut harness = Harness::new("ten thousand", options()).await;
    let hooli = harness.customer_without_method("hooli").await;
    let customer = harness.billing.customer("hooli").await.expect("a customer");
    settle(&harness).await;
    snapshot(&harness).await;
    for number in 0..PAYMENTS {
        let metadata = [
            ("organization_id", harness.billing.organization.clone()),
            ("installation", "paybridge".to_owned()),
            ("payment_id", Uuid::from_u128(number as u128).to_string()),
            ("invoice_id", format!("inv-{number}")),
            ("customer_id", customer.id.clone()),
            ("external_customer_id", "hooli".to_owned()),
        ];
        let metadata =
            metadata.iter().fold(String::new(), |text, (key, value)| text + &format!("&metadata[{key}]={value}"));
        let body = format!("amount=4900&currency=eur&customer={hooli}&payment_method_types[]=card{metadata}");
        post_to_stripe(&harness, CREATE, &body).await;
    }
    restore(&harness).await;
    let began = Instant::now();
    let mut before = contact(&harness).await;
    while until_serving(&harness).await != IntegrationState::Active {
        before = until("it goes on", async || {
            if contact(&harness).await["stage"] == "other_copies" {
                harness.advance_slowly(Duration::MINUTE);
            }
            let now = contact(&harness).await;
            (now != before).then_some(now)
        })
        .await;
        if before["stage"] == "takeover" {
            harness.advance(Duration::minutes(3));
        }
    }
    let elapsed = began.elapsed();
    let reads = harness.sandbox().requests().iter().filter(|request| request.method == "GET").count();
    println!("{PAYMENTS} payments were read back in {elapsed:?}, with {reads} reads of Stripe");
    assert!(reads < PAYMENTS / 10, "pages are read, and no object by itself: {reads}");
    harness.shutdown().await;
}
