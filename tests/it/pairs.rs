//! P1, one open way to pay: any two moves about a payment at once, on two servers, while answers get lost.

use futures_util::future::join_all;
use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{Payment, PaymentState};
use time::Duration;
use tonic::Code;

use crate::cashier::{CONFIRM, Cashier};
use crate::links::{DECLINING, GOOD_CARD, at_rest};

/// What somebody may do about a payment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Move {
    CreateAgain,
    Retry,
    Link,
    PayLink,
    ChangeAmount,
    Cancel,
    RecordManual,
    PayByHand,
}

const MOVES: [Move; 8] = [
    Move::CreateAgain,
    Move::Retry,
    Move::Link,
    Move::PayLink,
    Move::ChangeAmount,
    Move::Cancel,
    Move::RecordManual,
    Move::PayByHand,
];

/// Makes a move; that it is refused or unavailable is an answer like any other.
async fn make(cashier: &Cashier, payment: &Payment, step: Move, name: &str) {
    let answer = match step {
        Move::CreateAgain => cashier.pay_as(name, "hooli", &payment.invoice_id, 4900).await.map(|_| ()),
        Move::Retry => cashier.retry(name, payment, true).await.map(|_| ()),
        Move::Link => cashier.link(name, payment).await.map(|_| ()),
        Move::PayLink => match cashier.link(name, payment).await {
            Ok((session, _)) => {
                let _ = cashier.sandbox().complete_session(&session, GOOD_CARD, true);
                Ok(())
            }
            Err(status) => Err(status),
        },
        Move::ChangeAmount => cashier.change_amount(payment, 3000).await.map(|_| ()),
        Move::Cancel => cashier.cancel(payment).await.map(|_| ()),
        Move::RecordManual => cashier.record_manual(name, payment).await.map(|_| ()),
        Move::PayByHand => {
            for intent in cashier.intents(&payment.invoice_id) {
                let intent = intent["id"].as_str().expect("an id").to_owned();
                let _ = cashier.sandbox().pay_intent_by_hand(&intent, "pm_card_visa");
            }
            Ok(())
        }
    };
    if let Err(status) = answer {
        let known = [Code::FailedPrecondition, Code::Unavailable, Code::AlreadyExists];
        assert!(known.contains(&status.code()), "{step:?}: {status}");
    }
}

/// Every two moves at once, in both orders, from a payment that was declined and from one that is just being sent, while
/// answers get lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_any_two_ways_at_once_take_money_once() {
    let mut cashier = Cashier::new("pairs", Options { servers: 2, ..Options::default() }).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    for (path, percent) in [(CONFIRM, 25), ("/v1/payment_intents/*/cancel", 15), ("/v1/checkout/sessions*", 15)] {
        let action = Action::Cut { work: Effect::Done };
        cashier.sandbox().add_fault(Fault { times: None, percent, ..Fault::once("POST", path, action) });
    }
    let mut invoices = Vec::new();
    for (round, first) in MOVES.iter().enumerate() {
        for (turn, second) in MOVES.iter().enumerate() {
            let invoice = format!("inv-{round}-{turn}");
            let payment = cashier.pay("hooli", &invoice).await;
            invoices.push((invoice, *first, *second, payment));
        }
    }
    for (invoice, ..) in &invoices {
        cashier.payment_in(invoice, PaymentState::Failed).await;
    }
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    let till = &cashier;
    let pairs = invoices.iter().map(|(invoice, first, second, payment)| async move {
        let (one, two) = (format!("{invoice}-a"), format!("{invoice}-b"));
        tokio::join!(make(till, payment, *first, &one), make(till, payment, *second, &two));
    });
    join_all(pairs).await;
    cashier.sandbox().clear_faults();
    at_rest(&cashier).await;
    // What still moves is a link that nobody uses: it ends in a day.
    cashier.advance(Duration::hours(25));
    for (invoice, first, second, _) in &invoices {
        let payment = cashier
            .payment_when(invoice, "rests", |it| {
                matches!(it.state(), PaymentState::Succeeded | PaymentState::Failed | PaymentState::Canceled)
            })
            .await;
        let told = format!("{first:?} beside {second:?}: {payment:#?}");
        let taken: i64 =
            cashier.charges(invoice).iter().filter(|it| it.status == "succeeded").map(|it| it.amount).sum();
        assert!(cashier.live_charges(invoice) <= 1, "{told}");
        let received = payment.amount_received.as_ref().map_or(0, |it| it.minor_units);
        assert_eq!(received, taken, "{told}");
        assert!(taken == 0 || payment.state() == PaymentState::Succeeded, "{told}");
        let is_paid = taken > 0 || payment.manual_payment.is_some();
        assert!(payment.state() != PaymentState::Succeeded || is_paid, "{told}");
    }
    cashier.end().await;
}
