//! P1, one open payment path, with several kinds of path: payment links, changes of the amount, manual payments, and
//! 3-D Secure. For any two actions at once see `concurrency`.

use futures_util::future::join_all;
use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{PaymentAttemptKind, PaymentNextAction, PaymentState};
use prost_types::Timestamp;
use time::Duration;
use tonic::Code;

use crate::support::customers::{BAD_IBAN, CHALLENGE_CARD, GOOD_CARD, GOOD_IBAN};
use crate::support::errors::reason;
use crate::support::harness::Harness;
use crate::support::payments::{declined_payment, enable_3ds, stripe_status};
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_link_opens_after_the_intent_is_canceled_and_is_paid_once() {
    let (mut harness, failed) = declined_payment("link").await;
    let (session, open) = harness.link("link", &failed).await.expect("a link");
    assert_eq!(
        stripe_status(&harness, &failed.provider_payment_intent_id),
        "canceled",
        "the first payment path is closed"
    );
    assert_eq!((open.state(), open.next_action()), (PaymentState::RequiresAction, PaymentNextAction::Pay));
    assert!(open.next_action_url.ends_with(&session));
    let event = harness.billing.wait_for_event("payment.requires_action", "inv").await.expect("the event is emitted");
    assert!(format!("{event:?}").contains(&session), "with the link");

    let (again, _) = harness.link("another", &open).await.expect("the same link");
    assert_eq!(again, session, "one open link at a time");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert!(paid.provider_charge_id.starts_with("ch_"), "{paid:?}");
    let link = paid.attempts.last().expect("an attempt");
    assert_eq!(link.kind(), PaymentAttemptKind::Link);
    assert!(link.provider_payment_intent_id.starts_with("pi_"));
    assert_eq!(harness.event_count("payment.succeeded", "inv").await, 1, "emitted once");
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 0);
    let (none, _) = harness.link("link", &paid).await.expect("a repeated request succeeds");
    assert_eq!(none, "", "its link is used");
    let refused = harness.link("late", &paid).await.expect_err("it is paid");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_URL_REFUSED"));
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_concurrent_requests_for_a_link_create_one() {
    let (mut harness, failed) = declined_payment("many").await;
    harness.sandbox().add_fault(Fault {
        times: None,
        percent: 20,
        ..Fault::once("POST", "/v1/checkout/sessions", Action::Cut { work: Effect::Done })
    });
    let harness_ref = &harness;
    let requests = (0..8).map(|caller| {
        let failed = failed.clone();
        async move { harness_ref.link(&format!("link-{caller}"), &failed).await }
    });
    let mut sessions = std::collections::BTreeSet::new();
    for result in join_all(requests).await {
        match result {
            Ok((session, _)) => _ = sessions.insert(session),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    harness.sandbox().clear_faults();
    let open = harness.payment_in("inv", PaymentState::RequiresAction).await;
    let (session, _) = harness.link("last", &open).await.expect("the link");
    sessions.insert(session);
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let events = harness.sandbox().events(&harness.billing.account);
    let completed = events.iter().filter(|event| event["type"] == "checkout.session.completed").count();
    assert_eq!(completed, 0);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unused_link_expires_and_another_one_can_be_created() {
    let (mut harness, failed) = declined_payment("unused").await;
    let (session, _) = harness.link("link", &failed).await.expect("a link");
    harness.advance(Duration::hours(25));
    let ended = harness
        .payment_when("inv", "has failed for its link", |payment| {
            payment.failure.as_ref().is_some_and(|failure| failure.code == "payment_url_expired")
        })
        .await;
    assert_eq!(stripe_status(&harness, &session), "expired");
    let (next, _) = harness.link("next", &ended).await.expect("another link");
    assert_ne!(next, session);
    harness.sandbox().complete_session(&next, GOOD_CARD, true).expect("the payer pays");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_returns_its_own_link_if_that_is_still_open() {
    let (mut harness, failed) = declined_payment("repeats").await;
    let (first, _) = harness.link("first", &failed).await.expect("a link");
    let (same, _) = harness.link("meanwhile", &failed).await.expect("the open link");
    assert_eq!(same, first);
    harness.advance(Duration::hours(25));
    let ended = harness.payment_in("inv", PaymentState::Failed).await;
    let (second, _) = harness.link("second", &ended).await.expect("another link");
    assert_ne!(second, first);
    for (request, link) in [("first", ""), ("meanwhile", ""), ("second", &second)] {
        let (session, payment) = harness.link(request, &ended).await.expect("a repeat succeeds");
        assert_eq!((session.as_str(), payment.state()), (link, PaymentState::RequiresAction), "{request}");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_for_a_refused_link_gets_the_same_error() {
    let (harness, failed) = declined_payment("refused link").await;
    let failure = Action::ServerError { work: Effect::NotDone };
    harness.sandbox().add_fault(Fault { times: None, ..Fault::once("POST", "/v1/checkout/sessions", failure) });
    let first = until("the link is refused for good", async || {
        let refused = harness.link("link", &failed).await.expect_err("Stripe fails");
        (refused.code() != Code::Unavailable).then_some(refused)
    })
    .await;
    assert_eq!((first.code(), reason(&first).as_str()), (Code::FailedPrecondition, "PAYMENT_URL_REFUSED"));
    harness.sandbox().clear_faults();
    let again = harness.link("link", &failed).await.expect_err("the same error");
    assert_eq!((reason(&again), again.message()), (reason(&first), first.message()));
    let (created, _) = harness.link("another", &failed).await.expect("another request");
    assert_eq!(stripe_status(&harness, &created), "open");
    let again = harness.link("link", &failed).await.expect_err("still the same error");
    assert_eq!((reason(&again), again.message()), (reason(&first), first.message()));
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_through_a_link_is_processing_until_the_bank_responds() {
    for (iban, outcome) in [(GOOD_IBAN, PaymentState::Succeeded), (BAD_IBAN, PaymentState::Failed)] {
        let (mut harness, failed) = declined_payment("debit").await;
        let (session, _) = harness.link("link", &failed).await.expect("a link");
        harness.sandbox().complete_session(&session, iban, true).expect("the payer gives an IBAN");
        let processing = harness.payment_in("inv", PaymentState::Processing).await;
        let refused = harness.retry("retry", &processing, true).await.expect_err("the link is still the open attempt");
        assert_eq!(reason(&refused), "PAYMENT_NOT_RETRYABLE");
        harness.advance(Duration::days(6));
        harness.payment_in("inv", outcome).await;
        harness.quiesce().await;
        let failures = if outcome == PaymentState::Failed { 2 } else { 1 };
        assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, failures, "{outcome:?}");
        assert_eq!(harness.live_charges("inv"), usize::from(outcome == PaymentState::Succeeded));
        harness.shutdown().await;
    }
}

/// Reads are rationed: a debit that takes days is not read every minute after its link has expired.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_link_is_not_polled_after_its_expiry() {
    let (mut harness, failed) = declined_payment("over").await;
    let (session, _) = harness.link("link", &failed).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    harness.payment_in("inv", PaymentState::Processing).await;
    harness.advance(Duration::hours(25));
    harness.drain_jobs(&["reconcile_payment"]).await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "the bank has the debit");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_change_of_the_amount_closes_the_intent_or_the_link_first() {
    let (mut harness, failed) = declined_payment("amount").await;
    let changing = harness.change_amount(&failed, 3000).await.expect("it is accepted");
    assert_eq!(changing.amount.as_ref().map(|it| it.minor_units), Some(4900), "not before Stripe has responded");
    assert_eq!(changing.requested_amount.as_ref().map(|it| it.minor_units), Some(3000));
    let smaller = harness
        .payment_when("inv", "has the new amount", |it| it.amount.as_ref().is_some_and(|it| it.minor_units == 3000))
        .await;
    assert_eq!(smaller.state(), PaymentState::Failed, "a decline is not retried automatically");
    assert_eq!(stripe_status(&harness, &failed.provider_payment_intent_id), "canceled");

    let (session, open) = harness.link("link", &smaller).await.expect("a link");
    assert_eq!(harness.sandbox().object(&session).expect("a session")["amount_total"], 3000);
    harness.change_amount(&open, 2000).await.expect("a change is accepted with an open link");
    let changed = harness
        .payment_when("inv", "has the next amount", |it| it.amount.as_ref().is_some_and(|it| it.minor_units == 2000))
        .await;
    assert_eq!(changed.failure.as_ref().map(|it| it.code.as_str()), Some("payment_url_closed"));
    assert_eq!(stripe_status(&harness, &session), "expired", "nobody can pay the old amount");
    let (session, _) = harness.link("link-2", &changed).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    let charges = harness.charges("inv");
    let captured: Vec<_> = charges.iter().filter(|it| it.status == "succeeded").map(|it| it.amount).collect();
    assert_eq!(captured, [2000]);
    let late = harness.payment("inv").await;
    assert_eq!(reason(&harness.change_amount(&late, 1000).await.expect_err("final")), "PAYMENT_NOT_UPDATABLE");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_below_the_minimum_is_collected_once_its_amount_is_raised() {
    let mut harness = Harness::new("small", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.pay_as("small", "hooli", "inv", 10).await.expect("the payment is accepted");
    let small = harness.payment_when("inv", "waits", |it| it.pending_reason != 0).await;
    harness.change_amount(&small, 4900).await.expect("it is accepted");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_retry_or_a_cancellation_expires_an_open_link_first() {
    let (mut harness, failed) = declined_payment("instead").await;
    let (session, _) = harness.link("link", &failed).await.expect("a link");
    let provider_id = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    let open = harness.payment("inv").await;
    assert_eq!(open.state(), PaymentState::RequiresAction, "a new method is not charged while a link is open");
    harness.retry("retry", &open, false).await.expect("it is accepted");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(stripe_status(&harness, &session), "expired", "nobody can pay twice");
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);

    harness.sandbox().add_fault(Fault::once(
        "POST",
        "/v1/payment_intents",
        Action::Delay { milliseconds: 5_000, after_work: false },
    ));
    let pending = harness.pay("hooli", "inv-2").await;
    let (session, open) = harness.link("link-2", &pending).await.expect("a link replaces the charge");
    harness.cancel(&open).await.expect("it is accepted");
    harness.payment_in("inv-2", PaymentState::Canceled).await;
    assert_eq!(stripe_status(&harness, &session), "expired");
    harness.advance(Duration::seconds(10));
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv-2"), 0);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_manual_payment_settles_after_the_intent_is_canceled() {
    let (mut harness, failed) = declined_payment("elsewhere").await;
    harness.sandbox().add_fault(Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable));
    harness.record_manual("manual", &failed).await.expect("it is accepted");
    let settled = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(stripe_status(&harness, &failed.provider_payment_intent_id), "canceled");
    assert_eq!(settled.manual_payment.as_ref().map(|it| it.reference.as_str()), Some("bank transfer 4711"));
    assert_eq!(settled.amount_received.as_ref().map(|it| it.minor_units), Some(0), "nothing through Stripe");
    let event = harness.billing.wait_for_event("payment.succeeded", "inv").await.expect("the event is emitted");
    assert!(format!("{event:?}").contains("manual"), "as a manual payment");
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 0);
    harness.record_manual("manual", &failed).await.expect("a repeated request succeeds");
    let late = harness.record_manual("late", &failed).await.expect_err("it is settled");
    assert_eq!(reason(&late), "PAYMENT_SETTLED");
    let year_3000 = Timestamp { seconds: 32_503_680_000, nanos: 0 };
    let future =
        harness.record_manual_at("future", &failed, Some(year_3000)).await.expect_err("the time is in the future");
    assert_eq!(reason(&future), "INVALID_FIELDS");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_manual_payment_waits_for_a_used_link_without_retries() {
    let (mut harness, failed) = declined_payment("used link").await;
    let (session, _) = harness.link("link", &failed).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    let processing = harness.payment_in("inv", PaymentState::Processing).await;
    harness.quiesce().await;
    harness.record_manual("manual", &processing).await.expect("it is accepted");
    until("Stripe has responded", async || harness.posts("/expire").iter().any(|it| it.status.is_some()).then_some(()))
        .await;
    harness.drain_jobs(&["submit_payment"]).await;
    assert_eq!(harness.posts("/expire").len(), 1, "one response that the link was used is enough");
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "the bank decides");
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.billing.wait_for_event("payment.overpaid", "inv").await.expect("the double payment is reported");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_a_debit_that_succeeds_after_a_manual_payment_is_reported_as_overpaid() {
    let mut harness = Harness::new("paid twice", Options::default()).await;
    harness.customer("hooli", GOOD_IBAN).await;
    harness.pay("hooli", "inv").await;
    let processing = harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.record_manual("manual", &processing).await.expect("it is accepted");
    until("Stripe has refused to cancel", async || {
        harness.posts("/cancel").iter().any(|post| post.status == Some(400)).then_some(())
    })
    .await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "the bank decides");
    harness.advance(Duration::days(6));
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.billing.wait_for_event("payment.overpaid", "inv").await.expect("the double payment is reported");
    let charge = harness.payment("inv").await.provider_charge_id;
    let overpaid = harness.events().await.into_iter().find_map(|event| match event.object {
        Some(Object::Payment(payment)) if event.webhook_type == "payment.overpaid" => Some(payment),
        _ => None,
    });
    let overpaid = overpaid.expect("the event is emitted");
    assert_eq!(
        (overpaid.provider_charge_id, overpaid.amount_cents),
        (Some(charge), Some(4900)),
        "the amount, and the charge"
    );
    assert_eq!(overpaid.payment_provider_type, "PaymentProviders::StripeProvider", "as in Lago");
    harness.quiesce().await;
    assert_eq!(harness.event_count("payment.overpaid", "inv").await, 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_that_needs_3d_secure_is_confirmed_on_session_on_the_same_intent() {
    let mut harness = Harness::new("3ds", Options::default()).await;
    enable_3ds(&mut harness).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    harness.pay("hooli", "inv").await;
    let challenged = harness.payment_in("inv", PaymentState::RequiresAction).await;
    assert!(challenged.next_action_url.contains("/3ds/"), "{challenged:?}");
    let event = harness.billing.wait_for_event("payment.requires_action", "inv").await.expect("the event is emitted");
    assert!(format!("{event:?}").contains(&challenged.next_action_url), "with the link");
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 0, "nothing has failed");
    assert_eq!(harness.intents("inv").len(), 1, "the same intent");
    harness.sandbox().authenticate(&challenged.provider_payment_intent_id, true).expect("the customer authenticates");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(paid.attempts.len(), 2);
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unfinished_3d_secure_action_expires_after_a_day_and_a_link_can_be_created() {
    let mut harness = Harness::new("3ds late", Options::default()).await;
    enable_3ds(&mut harness).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    harness.pay("hooli", "inv").await;
    let challenged = harness.payment_in("inv", PaymentState::RequiresAction).await;
    harness.advance(Duration::hours(25));
    let ended = harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(ended.failure.as_ref().map(|it| it.code.as_str()), Some("action_expired"));
    assert_eq!(
        stripe_status(&harness, &challenged.provider_payment_intent_id),
        "canceled",
        "the intent is canceled first"
    );
    assert_eq!(harness.event_count("invoice.payment_failure", "inv").await, 1);
    let (session, _) = harness.link("link", &ended).await.expect("a link");
    harness.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.quiesce().await;
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_supports_3ds_a_charge_that_needs_3d_secure_fails() {
    let mut harness = Harness::new("no 3ds", Options::default()).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    let failure = failed.failure.expect("a failure");
    assert!(failure.code == "authentication_required" || failure.decline_code == "authentication_required");
    harness.billing.wait_for_event("invoice.payment_failure", "inv").await.expect("the event is emitted");
    harness.shutdown().await;
}
