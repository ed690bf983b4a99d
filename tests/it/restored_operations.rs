//! What callers request while an integration catches up, after a restoration, waits until it is known what Stripe can
//! still collect (P1).

use paybridge::grpc::proto::{IntegrationState, Payment, PaymentState};
use time::Duration;

use crate::support::customers::CHALLENGE_CARD;
use crate::support::harness::Harness;
use crate::support::payments::{enable_3ds, stripe_status};
use crate::support::restores::{options, restore, settle, snapshot, until_caught_up, until_serving};
use crate::support::wait::advance_until;

/// The snapshot knows two payments that lack a method. Afterwards both wait for the customer to authenticate, which the
/// restored database does not know.
async fn restored_before_challenges(name: &str, invoices: [&str; 2]) -> (Harness, Vec<Payment>) {
    let mut harness = Harness::new(name, options()).await;
    enable_3ds(&mut harness).await;
    let provider_id = harness.customer_without_method("hooli").await;
    for invoice in invoices {
        harness.pay("hooli", invoice).await;
        harness.payment_in(invoice, PaymentState::Failed).await;
    }
    settle(&harness).await;
    snapshot(&harness).await;
    harness.add_method("hooli", &provider_id, CHALLENGE_CARD).await;
    let mut challenged = Vec::new();
    for invoice in invoices {
        challenged.push(harness.payment_in(invoice, PaymentState::RequiresAction).await);
    }
    settle(&harness).await;
    restore(&harness).await;
    (harness, challenged)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_is_canceled_or_paid_elsewhere_while_catching_up_is_closed_at_stripe_first() {
    let (mut harness, challenged) = restored_before_challenges("restored operations", ["canceled", "manual"]).await;
    let known = harness.payment("canceled").await;
    let canceling = harness.cancel(&known).await.expect("it is accepted meanwhile");
    let known = harness.payment("manual").await;
    let recording = harness.record_manual("transfer", &known).await.expect("it is accepted meanwhile");
    for waiting in [canceling, recording] {
        assert_eq!(waiting.state(), PaymentState::Failed, "what Stripe can collect is not known yet");
    }
    until_caught_up(&harness).await;
    harness.payment_in("canceled", PaymentState::Canceled).await;
    let paid = harness.payment_in("manual", PaymentState::Succeeded).await;
    assert!(paid.manual_payment.is_some(), "{paid:?}");
    for Payment { provider_payment_intent_id: intent, .. } in &challenged {
        assert_eq!(stripe_status(&harness, intent), "canceled");
        harness.sandbox().authenticate(intent, true).expect_err("nobody can pay it any more");
    }
    settle(&harness).await;
    assert_eq!(harness.sandbox().ledger().iter().filter(|entry| entry.status == "succeeded").count(), 0);
    harness.shutdown().await;
}

/// Nothing is at Stripe: what waited is executed when the integration has caught up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_what_is_requested_while_catching_up_is_executed_at_the_end_if_stripe_has_nothing() {
    let mut harness = Harness::new("restored requests", options()).await;
    harness.customer_without_method("hooli").await;
    for invoice in ["canceled", "manual", "changed"] {
        harness.pay("hooli", invoice).await;
        harness.payment_in(invoice, PaymentState::Failed).await;
    }
    settle(&harness).await;
    snapshot(&harness).await;
    restore(&harness).await;
    let [canceled, manual, changed] =
        [harness.payment("canceled").await, harness.payment("manual").await, harness.payment("changed").await];
    harness.cancel(&canceled).await.expect("it is accepted meanwhile");
    harness.record_manual("transfer", &manual).await.expect("it is accepted meanwhile");
    harness.change_amount(&changed, 6000).await.expect("it is accepted meanwhile");
    until_caught_up(&harness).await;
    harness.payment_in("canceled", PaymentState::Canceled).await;
    harness.payment_in("manual", PaymentState::Succeeded).await;
    let is_changed = |payment: &Payment| payment.amount.as_ref().is_some_and(|amount| amount.minor_units == 6000);
    harness.payment_when("changed", "has its new amount", is_changed).await;
    harness.shutdown().await;
}

/// Nothing can be read any more, so what waits ends with the integration.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_what_is_requested_while_catching_up_ends_if_the_key_was_revoked_and_the_integration_is_disconnected() {
    let mut harness = Harness::new("restored requests, revoked", options()).await;
    harness.customer_without_method("hooli").await;
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Failed).await;
    settle(&harness).await;
    snapshot(&harness).await;
    harness.sandbox().revoke_key(&harness.billing.key);
    restore(&harness).await;
    until_serving(&harness).await;
    let known = harness.payment("inv").await;
    harness.cancel(&known).await.expect("it is accepted");
    harness.disconnect(false).await;
    advance_until(&mut harness, Duration::seconds(30), "it is disconnected", async |harness| {
        (until_serving(harness).await == IntegrationState::Disconnected).then_some(())
    })
    .await;
    advance_until(&mut harness, Duration::seconds(30), "it is canceled", async |harness| {
        (harness.payment("inv").await.state() == PaymentState::Canceled).then_some(())
    })
    .await;
    harness.shutdown().await;
}
