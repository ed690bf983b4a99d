//! P7, settled stays settled: late failures, refunds and disputes.

use paybridge::dev::sandbox::{WebhookAction, WebhookFault};
use paybridge::grpc::proto::PaymentState;
use paybridge::grpc::proto::event::Object;
use time::Duration;
use tonic::Code;

use crate::support::customers::DECLINING_CARD;
use crate::support::errors::reason;
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_late_failure_or_a_cancellation_does_not_unsettle_a_paid_payment() {
    let mut harness = Harness::with_customer("settled", DECLINING_CARD).await;
    // The webhook about the decline arrives two hours late, after the success.
    harness.sandbox().add_webhook_fault(WebhookFault {
        event: "payment_intent.payment_failed".to_owned(),
        action: WebhookAction::Delay { milliseconds: 7_200_000 },
        ..WebhookFault::default()
    });
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    let provider_id = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.retry("retry", &failed, false).await.expect("the retry is accepted");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.advance(Duration::hours(3));
    harness.all_delivered().await;
    let after = harness.payment("inv").await;
    assert_eq!(after.state(), PaymentState::Succeeded, "settled stays settled");
    assert_eq!(after.etag, paid.etag, "nothing about it has changed");
    assert_eq!(
        harness.event_count("invoice.payment_failure", "inv").await,
        1,
        "the decline was reported when it happened"
    );
    let refused = harness.cancel(&paid).await.expect_err("a paid payment cannot be canceled");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_NOT_CANCELABLE"));
    let refused = harness.retry("late", &paid, true).await.expect_err("nor retried");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_NOT_RETRYABLE"));
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_refunds_change_no_payment_state_in_any_order_of_events() {
    // Refunds to this card fail after they have succeeded.
    let mut harness = Harness::with_customer("refunds", "pm_card_refundFail").await;
    for event in ["refund.*", "charge.refunded"] {
        let action = WebhookAction::Shuffle { within_milliseconds: 400 };
        harness.sandbox().add_webhook_fault(WebhookFault {
            event: event.to_owned(),
            action,
            ..WebhookFault::default()
        });
        let action = WebhookAction::Double;
        harness.sandbox().add_webhook_fault(WebhookFault {
            event: event.to_owned(),
            action,
            ..WebhookFault::default()
        });
    }
    harness.pay("hooli", "inv").await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    let intent = paid.provider_payment_intent_id.clone();
    for amount in [1000, 500] {
        post_to_stripe(&harness, "/v1/refunds", &format!("payment_intent={intent}&amount={amount}")).await;
    }
    let refunded = |cents: i64| {
        move |payment: &paybridge::grpc::proto::Payment| {
            payment.amount_refunded.as_ref().is_some_and(|money| money.minor_units == cents)
        }
    };
    let after = harness.payment_when("inv", "has 15.00 refunded", refunded(1500)).await;
    assert_eq!(after.state(), PaymentState::Succeeded, "a refund changes no state");
    harness.all_delivered().await;
    harness.advance(Duration::days(2));
    let after = harness.payment_when("inv", "has both refunds failed", refunded(0)).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    harness.all_delivered().await;
    let emitted: Vec<(String, String)> = harness
        .billing
        .events()
        .into_iter()
        .filter(|event| event.webhook_type == "payment.refund_updated")
        .filter_map(|event| match event.object {
            Some(Object::Refund(refund)) => Some((refund.provider_refund_id, refund.status)),
            _ => None,
        })
        .collect();
    let refunds: std::collections::BTreeSet<_> = emitted.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(refunds.len(), 2, "both are reported: {emitted:?}");
    for refund in refunds {
        let states: Vec<_> = emitted.iter().filter(|(id, _)| *id == refund).map(|(_, state)| state.as_str()).collect();
        assert_eq!(states, ["succeeded", "failed"], "each state once, in Stripe's order");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_disputes_change_no_payment_state_and_a_lost_one_is_reported_once() {
    let mut harness = Harness::with_customer("disputes", "pm_card_createDispute").await;
    harness.sandbox().add_webhook_fault(WebhookFault {
        event: "charge.dispute.*".to_owned(),
        action: WebhookAction::Shuffle { within_milliseconds: 400 },
        ..WebhookFault::default()
    });
    harness.pay("hooli", "inv").await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    let opened = dispute_in(&mut harness, "needs_response").await;
    let path = format!("/v1/disputes/{opened}");
    post_to_stripe(&harness, &path, "evidence[uncategorized_text]=losing_evidence").await;
    dispute_in(&mut harness, "lost").await;
    harness.all_delivered().await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Succeeded, "a dispute changes no state");
    let lost = harness.events().await;
    let lost = lost.iter().filter(|event| event.webhook_type == "invoice.payment_dispute_lost").count();
    assert_eq!(lost, 1, "a lost dispute is reported once");
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 0, "and is no failure");
    harness.shutdown().await;
}

/// Waits for an event about a dispute in this status, and returns the dispute's Stripe id.
async fn dispute_in(harness: &mut Harness, status: &str) -> String {
    let what = format!("a dispute that is {status}");
    let dispute = harness.billing.wait_for(&what, |event| match &event.object {
        Some(Object::Dispute(dispute)) => (dispute.status == status).then(|| dispute.provider_dispute_id.clone()),
        _ => None,
    });
    dispute.await.expect("the event is emitted")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_returned_debit_fails_once_and_one_returned_after_success_is_a_dispute() {
    let mut harness = Harness::with_customer("debits", "DE62370400440532013001").await;
    harness.customer("returned-later", "DE35370400440532013002").await;
    harness.pay("hooli", "inv").await;
    harness.pay("returned-later", "inv-later").await;
    for invoice in ["inv", "inv-later"] {
        harness.payment_in(invoice, PaymentState::Processing).await;
        until("the bank has the debit", async || (harness.live_charges(invoice) == 1).then_some(())).await;
    }
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Failed).await;
    harness.payment_in("inv-later", PaymentState::Succeeded).await;
    dispute_in(&mut harness, "lost").await;
    harness.all_delivered().await;
    assert_eq!(
        harness.event_count("invoice.payment_failure", "inv").await,
        1,
        "before success it is a failure, reported once"
    );
    assert_eq!(harness.payment("inv-later").await.state(), PaymentState::Succeeded, "after success it is a dispute");
    assert_eq!(harness.event_count("invoice.payment_failure", "inv-later").await, 0);
    harness.shutdown().await;
}
