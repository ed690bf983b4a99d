//! P1, one open payment path: any two actions on a payment at once, on two servers, while responses are lost.

use futures_util::future::join_all;
use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{Payment, PaymentState};
use time::Duration;
use tonic::Code;

use crate::support::customers::{DECLINING_CARD, GOOD_CARD};
use crate::support::harness::{CONFIRM, Harness};

/// An action on a payment, by a caller, the payer, or the merchant in the Stripe Dashboard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PaymentAction {
    CreateAgain,
    Retry,
    Link,
    PayLink,
    ChangeAmount,
    Cancel,
    RecordManual,
    PayInDashboard,
}

const ACTIONS: [PaymentAction; 8] = [
    PaymentAction::CreateAgain,
    PaymentAction::Retry,
    PaymentAction::Link,
    PaymentAction::PayLink,
    PaymentAction::ChangeAmount,
    PaymentAction::Cancel,
    PaymentAction::RecordManual,
    PaymentAction::PayInDashboard,
];

/// Performs an action. It may be refused or unavailable.
async fn perform(harness: &Harness, payment: &Payment, action: PaymentAction, name: &str) {
    let result = match action {
        PaymentAction::CreateAgain => harness.pay_as(name, "hooli", &payment.invoice_id, 4900).await.map(|_| ()),
        PaymentAction::Retry => harness.retry(name, payment, true).await.map(|_| ()),
        PaymentAction::Link => harness.link(name, payment).await.map(|_| ()),
        PaymentAction::PayLink => match harness.link(name, payment).await {
            Ok((session, _)) => {
                let _ = harness.sandbox().complete_session(&session, GOOD_CARD, true);
                Ok(())
            }
            Err(status) => Err(status),
        },
        PaymentAction::ChangeAmount => harness.change_amount(payment, 3000).await.map(|_| ()),
        PaymentAction::Cancel => harness.cancel(payment).await.map(|_| ()),
        PaymentAction::RecordManual => harness.record_manual(name, payment).await.map(|_| ()),
        PaymentAction::PayInDashboard => {
            for intent in harness.intents(&payment.invoice_id) {
                let intent = intent["id"].as_str().expect("an id").to_owned();
                let _ = harness.sandbox().pay_intent_in_dashboard(&intent, "pm_card_visa");
            }
            Ok(())
        }
    };
    if let Err(status) = result {
        let allowed = [Code::FailedPrecondition, Code::Unavailable, Code::AlreadyExists];
        assert!(allowed.contains(&status.code()), "{action:?}: {status}");
    }
}

/// Every two actions at once, in both orders, on a declined payment, while responses are lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_any_two_concurrent_actions_charge_at_most_once() {
    let mut harness = Harness::new("pairs", Options { servers: 2, ..Options::default() }).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    for (path, percent) in [(CONFIRM, 25), ("/v1/payment_intents/*/cancel", 15), ("/v1/checkout/sessions*", 15)] {
        let action = Action::Cut { work: Effect::Done };
        harness.sandbox().add_fault(Fault { times: None, percent, ..Fault::once("POST", path, action) });
    }
    let mut invoices = Vec::new();
    for (row, first) in ACTIONS.iter().enumerate() {
        for (column, second) in ACTIONS.iter().enumerate() {
            let invoice = format!("inv-{row}-{column}");
            let payment = harness.pay("hooli", &invoice).await;
            invoices.push((invoice, *first, *second, payment));
        }
    }
    for (invoice, ..) in &invoices {
        harness.payment_in(invoice, PaymentState::Failed).await;
    }
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    let harness_ref = &harness;
    let pairs = invoices.iter().map(|(invoice, first, second, payment)| async move {
        let (one, two) = (format!("{invoice}-a"), format!("{invoice}-b"));
        tokio::join!(perform(harness_ref, payment, *first, &one), perform(harness_ref, payment, *second, &two));
    });
    join_all(pairs).await;
    harness.sandbox().clear_faults();
    harness.quiesce().await;
    // Only unused links are left: they expire after a day.
    harness.advance(Duration::hours(25));
    for (invoice, first, second, _) in &invoices {
        let payment = harness
            .payment_when(invoice, "is final", |it| {
                matches!(it.state(), PaymentState::Succeeded | PaymentState::Failed | PaymentState::Canceled)
            })
            .await;
        let case = format!("{first:?} and {second:?}: {payment:#?}");
        let captured: i64 =
            harness.charges(invoice).iter().filter(|it| it.status == "succeeded").map(|it| it.amount).sum();
        assert!(harness.live_charges(invoice) <= 1, "{case}");
        let received = payment.amount_received.as_ref().map_or(0, |it| it.minor_units);
        assert_eq!(received, captured, "{case}");
        assert!(captured == 0 || payment.state() == PaymentState::Succeeded, "{case}");
        let is_paid = captured > 0 || payment.manual_payment.is_some();
        assert!(payment.state() != PaymentState::Succeeded || is_paid, "{case}");
    }
    harness.shutdown().await;
}
