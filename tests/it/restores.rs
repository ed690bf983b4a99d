//! A database that was restored from a backup (P8): what it has forgotten is read back from Stripe before anything is
//! collected again, so callers who repeat their requests double nothing. See also `restore_faults` and `copies`.

use futures_util::future::join_all;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{Event, IntegrationState, Payment, PaymentMethodKind, PaymentState, RefundState};
use time::Duration;
use uuid::Uuid;

use crate::support::customers::{GOOD_CARD, GOOD_IBAN, charged_methods, checkout_session, default_method};
use crate::support::customers::{synced_customer, until_default_is};
use crate::support::harness::{Harness, post_to_stripe};
use crate::support::payments::stripe_status;
use crate::support::refunds::{paid_harness, pay_and_settle, refund, refund_in, refund_request};
use crate::support::reserved_port;
use crate::support::restores::{
    assert_matches_stripe, changes_at_stripe, contact, count, log, options, pass, restore, settle, snapshot,
    until_active, until_caught_up, until_serving,
};
use crate::support::wait::{advance_until, until};

/// The ids of the payments that `payment.succeeded` reports for an invoice.
fn reported_payments(events: &[Event], invoice: &str) -> Vec<String> {
    let payment = |event: &Event| match &event.object {
        Some(Object::Payment(payment)) if event.webhook_type == "payment.succeeded" => Some(payment.clone()),
        _ => None,
    };
    let payments = events.iter().filter_map(payment).filter(|payment| payment.lago_payable_id == invoice);
    payments.map(|payment| payment.lago_id).collect()
}

/// Advances the clock, as jobs that failed need, until a payment has succeeded.
async fn until_paid(harness: &mut Harness, invoice: &str) {
    advance_until(harness, Duration::seconds(5), &format!("{invoice} is paid"), async |harness| {
        (harness.payment(invoice).await.state() == PaymentState::Succeeded).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_charges_that_a_restored_database_forgot_are_not_made_again() {
    let mut harness = Harness::new("restored charges", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    pay_and_settle(&mut harness, "before").await;
    let (old_log, _) = log(&harness).await;
    snapshot(&harness).await;
    let mut paid: Vec<Payment> = Vec::new();
    for number in 0..3 {
        paid.push(pay_and_settle(&mut harness, &format!("inv-{number}")).await);
    }
    restore(&harness).await;
    harness.pay("hooli", "inv-0").await;
    until_caught_up(&harness).await;
    for before in &paid {
        harness.pay("hooli", &before.invoice_id).await;
        let now = harness.payment_in(&before.invoice_id, PaymentState::Succeeded).await;
        assert_eq!(now.provider_payment_intent_id, before.provider_payment_intent_id);
        if before.invoice_id != "inv-0" {
            assert_eq!(now.id, before.id, "what was not repeated too early has its old id");
        }
    }
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    let (new_log, events) = log(&harness).await;
    assert_ne!(new_log, old_log, "positions begin to mean something else");
    let about = ["payment_provider.catch_up_started", "payment_provider.catch_up_finished"];
    assert_eq!(about.map(|webhook_type| count(&events, webhook_type)), [1, 1]);
    assert_eq!(reported_payments(&events, "inv-1"), [paid[1].id.clone()], "reported in the new log, with its id");
    assert_eq!(reported_payments(&events, "before").len(), 1, "what was not forgotten is not reported again");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_refunds_that_a_restored_database_forgot_are_not_made_again() {
    let (mut harness, payment) = paid_harness("restored refunds", "pm_card_visa", options()).await;
    snapshot(&harness).await;
    let part = refund_request("r1", &payment, Some(1000));
    let first = refund(&harness, part.clone()).await.expect("it is accepted");
    refund_in(&harness, &first.id, RefundState::Succeeded).await;
    let later = pay_and_settle(&mut harness, "later").await;
    let all = refund_request("r2", &later, None);
    let second = refund(&harness, all.clone()).await.expect("it is accepted");
    refund_in(&harness, &second.id, RefundState::Succeeded).await;
    settle(&harness).await;

    restore(&harness).await;
    refund(&harness, part.clone()).await.expect("it is accepted meanwhile");
    until_caught_up(&harness).await;
    harness.pay("hooli", "later").await;
    for (request, amount) in [(part, 1000), (all, 4900)] {
        let again = refund(&harness, request).await.expect("it is accepted again");
        let again = refund_in(&harness, &again.id, RefundState::Succeeded).await;
        assert_eq!(again.amount.map(|it| it.minor_units), Some(amount));
    }
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    assert_eq!(harness.sandbox().objects("refund").len(), 2);
    let mut back: Vec<i64> = harness.sandbox().ledger().iter().map(|entry| entry.amount_refunded).collect();
    back.sort_unstable();
    assert_eq!(back, [1000, 4900]);
    harness.shutdown().await;
}

/// Submits an invoice of a customer without a payment method, and returns the session of a link for it.
async fn open_link(harness: &mut Harness, customer: &str, invoice: &str) -> String {
    harness.pay(customer, invoice).await;
    let payment = harness.payment_in(invoice, PaymentState::Failed).await;
    let (session, _) = harness.link(&format!("link-{invoice}"), &payment).await.expect("a link");
    session
}

/// Of four links, one is known to the snapshot and paid afterwards; of those made afterwards one is paid, one is left
/// open, and one stores a payment method.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_links_that_a_restored_database_forgot_are_closed_or_known_again() {
    let mut harness = Harness::new("restored links", options()).await;
    for customer in ["hooli", "gavin", "jared"] {
        harness.customer_without_method(customer).await;
    }
    let known = open_link(&mut harness, "gavin", "known").await;
    settle(&harness).await;
    snapshot(&harness).await;
    let paid = open_link(&mut harness, "jared", "paid").await;
    let storing = checkout_session(&mut harness).await;
    let open = open_link(&mut harness, "hooli", "open").await;
    for session in [&known, &paid] {
        harness.sandbox().complete_session(session, GOOD_CARD, true).expect("it is paid");
    }
    harness.payment_in("known", PaymentState::Succeeded).await;
    harness.payment_in("paid", PaymentState::Succeeded).await;
    settle(&harness).await;

    restore(&harness).await;
    until_caught_up(&harness).await;
    for session in [&open, &storing] {
        assert_eq!(stripe_status(&harness, session), "expired", "it could take money or a card, and nobody knew it");
        harness.sandbox().complete_session(session, GOOD_CARD, true).expect_err("it is closed");
    }
    harness.payment_in("known", PaymentState::Succeeded).await;
    harness.pay("jared", "paid").await;
    harness.payment_in("paid", PaymentState::Succeeded).await;
    let session = open_link(&mut harness, "hooli", "open").await;
    assert_ne!(session, open, "another one");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("it is paid");
    harness.payment_in("open", PaymentState::Succeeded).await;
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_customers_and_methods_that_a_restored_database_forgot_are_known_again() {
    let mut harness = Harness::new("restored customers", options()).await;
    let hooli = harness.customer_without_method("hooli").await;
    settle(&harness).await;
    snapshot(&harness).await;
    let debit = harness.add_method("hooli", &hooli, GOOD_IBAN).await;
    let gavin = harness.customer("gavin", "pm_card_visa").await;
    let card = default_method(&mut harness, "gavin").await;
    settle(&harness).await;

    restore(&harness).await;
    let kinds = [PaymentMethodKind::Card, PaymentMethodKind::SepaDebit];
    harness.billing.api.customers.create_customer(synced_customer("jared", &kinds)).await.expect("it is accepted");
    until_caught_up(&harness).await;
    assert_eq!(harness.customer_without_method("gavin").await, gavin, "no second Stripe customer");
    until_default_is(&mut harness, "hooli", &debit).await;
    until_default_is(&mut harness, "gavin", &card).await;
    harness.customer_without_method("jared").await;
    harness.pay("hooli", "by-debit").await;
    harness.payment_in("by-debit", PaymentState::Processing).await;
    harness.pay("gavin", "by-card").await;
    harness.payment_in("by-card", PaymentState::Succeeded).await;
    assert_eq!(charged_methods(&harness, "by-debit"), [debit]);
    assert_eq!(charged_methods(&harness, "by-card"), [card]);
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    assert_eq!(harness.sandbox().objects("customer").len(), 3);
    harness.shutdown().await;
}

/// Whether callers make their requests for the first time, or repeat them after a restoration. Payers act once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Round {
    First,
    Repeated,
}

/// Creates a customer and collects an invoice. By the number, the customer has a card, pays by a link, or leaves it
/// open, and the payment is refunded or not.
async fn collect(harness: &mut Harness, number: usize, round: Round) {
    let (customer, invoice) = (format!("customer-{number}"), format!("inv-{number}"));
    let provider_id = harness.customer_without_method(&customer).await;
    if round == Round::First && number.is_multiple_of(2) {
        harness.add_method(&customer, &provider_id, "pm_card_visa").await;
    }
    harness.pay(&customer, &invoice).await;
    let is_decided = |payment: &Payment| matches!(payment.state(), PaymentState::Succeeded | PaymentState::Failed);
    let payment = harness.payment_when(&invoice, "is decided", is_decided).await;
    if payment.state() == PaymentState::Failed {
        let (session, _) = harness.link(&format!("link-{number}"), &payment).await.expect("a link");
        if round == Round::First && number % 4 == 1 {
            harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("it is paid");
            harness.payment_in(&invoice, PaymentState::Succeeded).await;
        }
    } else if number.is_multiple_of(4) {
        let request = refund_request(&format!("refund-{number}"), &payment, Some(1_000));
        refund(harness, request).await.expect("the refund is accepted");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_an_hour_of_work_that_a_restored_database_forgot_is_repeated_and_doubles_nothing() {
    const CUSTOMERS: usize = 12;
    let mut harness = Harness::new("restored hour", options()).await;
    snapshot(&harness).await;
    for number in 0..CUSTOMERS {
        collect(&mut harness, number, Round::First).await;
        pass(&harness, Duration::minutes(5)).await;
    }
    settle(&harness).await;
    let (charges, refunds) = (harness.sandbox().ledger().len(), harness.sandbox().objects("refund").len());
    assert_eq!((charges, refunds), (CUSTOMERS / 4 * 3, CUSTOMERS / 4), "this is what there is to double");
    restore(&harness).await;
    until_caught_up(&harness).await;
    for number in 0..CUSTOMERS {
        collect(&mut harness, number, Round::Repeated).await;
    }
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    assert_eq!(harness.sandbox().ledger().len(), charges, "no other charge");
    assert_eq!(harness.sandbox().objects("refund").len(), refunds, "no other refund");
    assert_eq!(harness.sandbox().objects("customer").len(), CUSTOMERS, "no other customer");
    harness.shutdown().await;
}

/// The work in progress is cut at another point in every round, as by a failover that loses the last commits.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_commits_that_are_lost_in_the_middle_of_work_double_nothing() {
    const ROUNDS: usize = 4;
    const PAYMENTS: usize = 6;
    let mut harness = Harness::new("lost commits", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    for round in 0..ROUNDS {
        let invoices: Vec<String> = (0..PAYMENTS).map(|number| format!("inv-{round}-{number}")).collect();
        snapshot(&harness).await;
        harness.sandbox().clear_requests();
        let pay = |invoice: &String| {
            let (request, invoice, harness) = (format!("pay-{invoice}"), invoice.clone(), &harness);
            async move { harness.pay_as(&request, "hooli", &invoice, 4900).await }
        };
        for accepted in join_all(invoices.iter().map(pay)).await {
            accepted.expect("the payment is accepted");
        }
        let confirms = PAYMENTS * round / ROUNDS;
        until("some are confirmed", async || (harness.posts("/confirm").len() >= confirms).then_some(())).await;
        restore(&harness).await;
        until_active(&harness).await;
        for accepted in join_all(invoices.iter().map(pay)).await {
            accepted.expect("the payment is accepted again");
        }
        for invoice in &invoices {
            until_paid(&mut harness, invoice).await;
        }
        settle(&harness).await;
        assert_matches_stripe(&harness).await;
        assert_eq!(harness.sandbox().ledger().len(), PAYMENTS * (round + 1), "one charge for each invoice");
    }
    harness.shutdown().await;
}

/// Stripe lists events for 30 days, and remembers keys for one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_snapshot_that_is_older_than_stripes_events_doubles_nothing() {
    let mut harness = Harness::new("restored month", options()).await;
    let hooli = harness.customer_without_method("hooli").await;
    harness.customer("jared", "pm_card_visa").await;
    harness.pay("jared", "before").await;
    let before = harness.payment_in("before", PaymentState::Succeeded).await;
    settle(&harness).await;
    snapshot(&harness).await;
    let card = harness.add_method("hooli", &hooli, "pm_card_visa").await;
    let paid = pay_and_settle(&mut harness, "inv").await;
    for (request, payment) in [("r1", &before), ("r2", &paid)] {
        let made = refund(&harness, refund_request(request, payment, Some(1000))).await.expect("it is accepted");
        refund_in(&harness, &made.id, RefundState::Succeeded).await;
    }
    settle(&harness).await;
    harness.advance(Duration::days(31));

    restore(&harness).await;
    until_caught_up(&harness).await;
    until_default_is(&mut harness, "hooli", &card).await;
    harness.pay("hooli", "inv").await;
    let again = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(again.provider_payment_intent_id, paid.provider_payment_intent_id);
    for (request, payment) in [("r1", &before), ("r2", &again)] {
        let made = refund(&harness, refund_request(request, payment, Some(1000))).await.expect("it is accepted");
        refund_in(&harness, &made.id, RefundState::Succeeded).await;
    }
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    assert_eq!(harness.sandbox().objects("refund").len(), 2);
    harness.shutdown().await;
}

/// A server with the same addresses after every start.
fn restartable() -> Options {
    let ((_grpc, grpc_listen), (_http, http_listen)) = (reserved_port(), reserved_port());
    Options { grpc_listen, http_listen, ..options() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_plain_restart_does_not_catch_up() {
    let mut harness = Harness::new("restart", restartable()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    let (before, _) = log(&harness).await;
    harness.context.environment.stop_newest_server().await;
    harness.context.environment.add_server().await.expect("it starts again");
    assert_eq!(until_serving(&harness).await, IntegrationState::Active, "at once");
    // Minutes would have to pass if it caught up, and the clock is not advanced.
    pay_and_settle(&mut harness, "inv").await;
    let (after, events) = log(&harness).await;
    assert_eq!(after, before, "the same log");
    assert_eq!(count(&events, "payment_provider.catch_up_started"), 0);
    assert!(contact(&harness).await["catch_up_reason"].is_null());
    harness.shutdown().await;
}

/// Nobody knows what happened meanwhile: another copy may have been in use.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_process_that_was_stopped_for_an_hour_catches_up() {
    let mut harness = Harness::new("silence", restartable()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    harness.context.environment.stop_newest_server().await;
    harness.advance(Duration::HOUR);
    harness.context.environment.add_server().await.expect("it starts again");
    until_serving(&harness).await;
    harness.pay("hooli", "inv").await;
    until_paid(&mut harness, "inv").await;
    let (_, events) = log(&harness).await;
    let started = events.iter().position(|event| event.webhook_type == "payment_provider.catch_up_started");
    let finished = events.iter().position(|event| event.webhook_type == "payment_provider.catch_up_finished");
    let paid = events.iter().position(|event| event.webhook_type == "payment.succeeded");
    assert!(started.is_some() && started < finished && finished < paid, "{started:?} {finished:?} {paid:?}");
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

/// The database was set back in a way that its identity does not show. The counter at Stripe does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_counter_at_stripe_that_is_ahead_stops_collecting() {
    let mut harness = Harness::new("counter", options()).await;
    harness.customer("hooli", "pm_card_visa").await;
    settle(&harness).await;
    let endpoint = harness.integration.provider_webhook_endpoint_id.clone();
    let (writer, now) = (Uuid::from_u128(7), harness.context.environment.clock.now().unix_timestamp());
    let counter = format!("metadata[contact_counter]=1000000+{writer}+{now}");
    post_to_stripe(&harness, &format!("/v1/webhook_endpoints/{endpoint}"), &counter).await;
    harness.advance(Duration::seconds(61));
    until("it catches up", async || (until_serving(&harness).await == IntegrationState::CatchingUp).then_some(()))
        .await;
    harness.sandbox().clear_requests();
    let waiting = harness.pay("hooli", "inv").await;
    assert_eq!(waiting.state(), PaymentState::Pending);
    until_caught_up(&harness).await;
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert!(!changes_at_stripe(&harness).is_empty(), "it is collected now");
    settle(&harness).await;
    assert_matches_stripe(&harness).await;
    harness.shutdown().await;
}
