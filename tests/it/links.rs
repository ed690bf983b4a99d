//! P1, one open way to pay, where there are several: a link to a page, another amount, a payment made elsewhere, a
//! customer who must prove who they are; each beside a charge. Any two at once are in `pairs`.

use futures_util::future::join_all;
use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{Integration, Payment, PaymentAttemptKind, PaymentState, UpdateIntegrationRequest};
use prost_types::Timestamp;
use time::Duration;
use tonic::Code;

use crate::cashier::{Cashier, reason, until};

/// A card that can be stored, and declines every charge.
pub const DECLINING: &str = "4000000000000341";
/// A card whose bank wants to see its holder for every charge.
pub const WANTS_HOLDER: &str = "4000002760003184";
pub const GOOD_CARD: &str = "4242424242424242";
pub const GOOD_IBAN: &str = "DE89370400440532013000";
pub const BAD_IBAN: &str = "DE62370400440532013001";

/// A till with the customer `hooli` and a payment that was declined.
pub async fn declined(name: &str) -> (Cashier, Payment) {
    let mut cashier = Cashier::new(name, Options::default()).await;
    cashier.customer("hooli", DECLINING).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    (cashier, failed)
}

fn status_of(cashier: &Cashier, id: &str) -> String {
    let object = cashier.sandbox().object(id).expect("it is at Stripe");
    object["status"].as_str().unwrap_or_default().to_owned()
}

pub async fn at_rest(cashier: &Cashier) {
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_link_opens_after_the_intent_is_closed_and_is_paid_once() {
    let (mut cashier, failed) = declined("link").await;
    let (session, open) = cashier.link("link", &failed).await.expect("a link");
    assert_eq!(status_of(&cashier, &failed.provider_payment_intent_id), "canceled", "Stripe has closed the first way");
    assert_eq!(open.state(), PaymentState::RequiresAction);
    assert!(open.next_action_url.ends_with(&session));
    let told = cashier.player.told("payment.requires_action", "inv").await.expect("it is told");
    assert!(format!("{told:?}").contains(&session), "with the link");

    let (again, _) = cashier.link("another", &open).await.expect("the same link");
    assert_eq!(again, session, "one open link at a time");
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    assert!(paid.provider_charge_id.starts_with("ch_"), "{paid:?}");
    let link = paid.attempts.last().expect("an attempt");
    assert_eq!(link.kind(), PaymentAttemptKind::Link);
    assert!(link.provider_payment_intent_id.starts_with("pi_"));
    assert_eq!(cashier.count("payment.succeeded", "inv").await, 1, "told once");
    assert_eq!(cashier.count("payment.overpaid", "inv").await, 0);
    let (none, _) = cashier.link("link", &paid).await.expect("a repeated request is answered");
    assert_eq!(none, "", "its link is used");
    let refused = cashier.link("late", &paid).await.expect_err("it is paid");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_URL_REFUSED"));
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_many_who_ask_for_a_link_at_once_get_one() {
    let (mut cashier, failed) = declined("many").await;
    cashier.sandbox().add_fault(Fault {
        times: None,
        percent: 20,
        ..Fault::once("POST", "/v1/checkout/sessions", Action::Cut { work: Effect::Done })
    });
    let cashier_ref = &cashier;
    let asked = (0..8).map(|caller| {
        let failed = failed.clone();
        async move { cashier_ref.link(&format!("link-{caller}"), &failed).await }
    });
    let mut sessions = std::collections::BTreeSet::new();
    for answer in join_all(asked).await {
        match answer {
            Ok((session, _)) => _ = sessions.insert(session),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
    }
    cashier.sandbox().clear_faults();
    let open = cashier.payment_in("inv", PaymentState::RequiresAction).await;
    let (session, _) = cashier.link("last", &open).await.expect("the link");
    sessions.insert(session);
    assert_eq!(sessions.len(), 1, "{sessions:?}");
    let made = cashier.sandbox().events(&cashier.player.account);
    let open = made.iter().filter(|event| event["type"] == "checkout.session.completed").count();
    assert_eq!(open, 0);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_ends_unused_fails_and_another_one_may_be_made() {
    let (mut cashier, failed) = declined("unused").await;
    let (session, _) = cashier.link("link", &failed).await.expect("a link");
    cashier.advance(Duration::hours(25));
    let ended = cashier
        .payment_when("inv", "has failed for its link", |payment| {
            payment.failure.as_ref().is_some_and(|failure| failure.code == "payment_url_expired")
        })
        .await;
    assert_eq!(status_of(&cashier, &session), "expired");
    let (next, _) = cashier.link("next", &ended).await.expect("another link");
    assert_ne!(next, session);
    cashier.sandbox().complete_session(&next, GOOD_CARD, true).expect("the payer pays");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_stands_for_its_own_link_whatever_came_after() {
    let (mut cashier, failed) = declined("repeats").await;
    let (first, _) = cashier.link("first", &failed).await.expect("a link");
    let (same, _) = cashier.link("meanwhile", &failed).await.expect("the open one");
    assert_eq!(same, first);
    cashier.advance(Duration::hours(25));
    let ended = cashier.payment_in("inv", PaymentState::Failed).await;
    let (second, _) = cashier.link("second", &ended).await.expect("another link");
    assert_ne!(second, first);
    for (request, link) in [("first", ""), ("meanwhile", ""), ("second", &second)] {
        let (answer, payment) = cashier.link(request, &ended).await.expect("it is known");
        assert_eq!((answer.as_str(), payment.state()), (link, PaymentState::RequiresAction), "{request}");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_request_for_a_link_that_was_refused_is_refused_alike() {
    let (cashier, failed) = declined("refused link").await;
    let broken = Action::ServerError { work: Effect::NotDone };
    cashier.sandbox().add_fault(Fault { times: None, ..Fault::once("POST", "/v1/checkout/sessions", broken) });
    let first = until("Stripe will never make it", || async {
        let refused = cashier.link("link", &failed).await.expect_err("Stripe is broken");
        (refused.code() != Code::Unavailable).then_some(refused)
    })
    .await;
    assert_eq!((first.code(), reason(&first).as_str()), (Code::FailedPrecondition, "PAYMENT_URL_REFUSED"));
    cashier.sandbox().clear_faults();
    let again = cashier.link("link", &failed).await.expect_err("the same answer");
    assert_eq!((reason(&again), again.message()), (reason(&first), first.message()));
    let (made, _) = cashier.link("another", &failed).await.expect("another request may do better");
    assert_eq!(status_of(&cashier, &made), "open");
    let again = cashier.link("link", &failed).await.expect_err("still the same answer");
    assert_eq!((reason(&again), again.message()), (reason(&first), first.message()));
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_debit_through_a_link_is_processing_until_the_bank_answers() {
    for (iban, outcome) in [(GOOD_IBAN, PaymentState::Succeeded), (BAD_IBAN, PaymentState::Failed)] {
        let (mut cashier, failed) = declined("debit").await;
        let (session, _) = cashier.link("link", &failed).await.expect("a link");
        cashier.sandbox().complete_session(&session, iban, true).expect("the payer gives an IBAN");
        let moving = cashier.payment_in("inv", PaymentState::Processing).await;
        let refused = cashier.retry("retry", &moving, true).await.expect_err("the link still holds the slot");
        assert_eq!(reason(&refused), "PAYMENT_NOT_RETRYABLE");
        cashier.advance(Duration::days(6));
        cashier.payment_in("inv", outcome).await;
        at_rest(&cashier).await;
        let failures = if outcome == PaymentState::Failed { 2 } else { 1 };
        assert_eq!(cashier.count("invoice.payment_failure", "inv").await, failures, "{outcome:?}");
        assert_eq!(cashier.live_charges("inv"), usize::from(outcome == PaymentState::Succeeded));
        cashier.end().await;
    }
}

/// Reads are rationed: what a bank has in hand for days is not read once a minute because its link is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_used_link_is_not_looked_at_for_ever_after_its_end() {
    let (mut cashier, failed) = declined("over").await;
    let (session, _) = cashier.link("link", &failed).await.expect("a link");
    cashier.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    cashier.payment_in("inv", PaymentState::Processing).await;
    cashier.advance(Duration::hours(25));
    cashier.at_rest(&["reconcile_payment"]).await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "the bank has it");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_another_amount_ends_the_link_and_closes_the_intent_first() {
    let (mut cashier, failed) = declined("amount").await;
    let changing = cashier.change_amount(&failed, 3000).await.expect("it is taken on");
    assert_eq!(changing.amount.as_ref().map(|it| it.minor_units), Some(4900), "not before Stripe's answer");
    assert_eq!(changing.requested_amount.as_ref().map(|it| it.minor_units), Some(3000));
    let smaller = cashier
        .payment_when("inv", "has the new amount", |it| it.amount.as_ref().is_some_and(|it| it.minor_units == 3000))
        .await;
    assert_eq!(smaller.state(), PaymentState::Failed, "a decline is not tried again by itself");
    assert_eq!(status_of(&cashier, &failed.provider_payment_intent_id), "canceled");

    let (session, open) = cashier.link("link", &smaller).await.expect("a link");
    assert_eq!(cashier.sandbox().object(&session).expect("a session")["amount_total"], 3000);
    cashier.change_amount(&open, 2000).await.expect("also with an open link");
    let changed = cashier
        .payment_when("inv", "has the next amount", |it| it.amount.as_ref().is_some_and(|it| it.minor_units == 2000))
        .await;
    assert_eq!(changed.failure.as_ref().map(|it| it.code.as_str()), Some("payment_url_closed"));
    assert_eq!(status_of(&cashier, &session), "expired", "nobody can pay the old amount");
    let (session, _) = cashier.link("link-2", &changed).await.expect("a link");
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    let charges = cashier.charges("inv");
    let taken: Vec<_> = charges.iter().filter(|it| it.status == "succeeded").map(|it| it.amount).collect();
    assert_eq!(taken, [2000]);
    let late = cashier.payment("inv").await;
    assert_eq!(reason(&cashier.change_amount(&late, 1000).await.expect_err("final")), "PAYMENT_NOT_UPDATABLE");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payment_that_waits_for_a_larger_amount_is_collected_once_it_has_it() {
    let mut cashier = Cashier::new("small", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay_as("small", "hooli", "inv", 10).await.expect("the payment is taken");
    let small = cashier.payment_when("inv", "waits", |it| it.pending_reason != 0).await;
    cashier.change_amount(&small, 4900).await.expect("it is taken on");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(paid.amount_received.as_ref().map(|it| it.minor_units), Some(4900));
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_retry_or_a_cancel_ends_an_open_link_first() {
    let (mut cashier, failed) = declined("instead").await;
    let (session, _) = cashier.link("link", &failed).await.expect("a link");
    let provider_id = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    let open = cashier.payment("inv").await;
    assert_eq!(open.state(), PaymentState::RequiresAction, "a method that arrives does not charge beside a link");
    cashier.retry("retry", &open, false).await.expect("it is taken on");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(status_of(&cashier, &session), "expired", "nobody can pay twice");
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);

    cashier.sandbox().add_fault(Fault::once(
        "POST",
        "/v1/payment_intents",
        Action::Delay { milliseconds: 5_000, after_work: false },
    ));
    let pending = cashier.pay("hooli", "inv-2").await;
    let (session, open) = cashier.link("link-2", &pending).await.expect("a link takes the place of the charge");
    cashier.cancel(&open).await.expect("it is taken on");
    cashier.payment_in("inv-2", PaymentState::Canceled).await;
    assert_eq!(status_of(&cashier, &session), "expired");
    cashier.advance(Duration::seconds(10));
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv-2"), 0);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_payment_made_elsewhere_counts_once_stripe_can_take_nothing_more() {
    let (mut cashier, failed) = declined("elsewhere").await;
    cashier.sandbox().add_fault(Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable));
    cashier.record_manual("manual", &failed).await.expect("it is taken on");
    let settled = cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_eq!(status_of(&cashier, &failed.provider_payment_intent_id), "canceled");
    assert_eq!(settled.manual_payment.as_ref().map(|it| it.reference.as_str()), Some("bank transfer 4711"));
    assert_eq!(settled.amount_received.as_ref().map(|it| it.minor_units), Some(0), "Stripe has received nothing");
    let told = cashier.player.told("payment.succeeded", "inv").await.expect("it is told");
    assert!(format!("{told:?}").contains("manual"), "as a manual payment");
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 0);
    cashier.record_manual("manual", &failed).await.expect("a repeated request is answered");
    let late = cashier.record_manual("late", &failed).await.expect_err("it is settled");
    assert_eq!(reason(&late), "PAYMENT_SETTLED");
    let year_3000 = Timestamp { seconds: 32_503_680_000, nanos: 0 };
    let future = cashier.record_manual_of("future", &failed, Some(year_3000)).await.expect_err("nobody can know");
    assert_eq!(reason(&future), "INVALID_FIELDS");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_payment_made_elsewhere_waits_in_peace_for_a_used_link() {
    let (mut cashier, failed) = declined("used link").await;
    let (session, _) = cashier.link("link", &failed).await.expect("a link");
    cashier.sandbox().complete_session(&session, GOOD_IBAN, true).expect("the payer gives an IBAN");
    let moving = cashier.payment_in("inv", PaymentState::Processing).await;
    at_rest(&cashier).await;
    cashier.record_manual("manual", &moving).await.expect("it is taken on");
    until("Stripe was asked", || async { cashier.posts("/expire").iter().any(|it| it.status.is_some()).then_some(()) })
        .await;
    cashier.at_rest(&["submit_payment"]).await;
    assert_eq!(cashier.posts("/expire").len(), 1, "Stripe has said once that the page was used");
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "the bank will say");
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.player.told("payment.overpaid", "inv").await.expect("that it was paid twice is told");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_what_was_paid_elsewhere_and_at_the_bank_is_told() {
    let mut cashier = Cashier::new("both", Options::default()).await;
    cashier.customer("hooli", GOOD_IBAN).await;
    cashier.pay("hooli", "inv").await;
    let moving = cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.record_manual("manual", &moving).await.expect("it is taken on");
    until("Stripe has refused to cancel", || async {
        cashier.posts("/cancel").iter().any(|post| post.status == Some(400)).then_some(())
    })
    .await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "the bank will say");
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.player.told("payment.overpaid", "inv").await.expect("that it was paid twice is told");
    let charge = cashier.payment("inv").await.provider_charge_id;
    let told = cashier.events().await.into_iter().find_map(|event| match event.object {
        Some(Object::Payment(told)) if event.webhook_type == "payment.overpaid" => Some(told),
        _ => None,
    });
    let told = told.expect("it is told");
    assert_eq!(
        (told.provider_charge_id, told.amount_cents),
        (Some(charge), Some(4900)),
        "how much, and by which charge"
    );
    assert_eq!(told.payment_provider_type, "PaymentProviders::StripeProvider", "as in Lago");
    at_rest(&cashier).await;
    assert_eq!(cashier.count("payment.overpaid", "inv").await, 1);
    cashier.end().await;
}

pub async fn supports_3ds(cashier: &mut Cashier) {
    let integration = Integration { id: cashier.integration.id.clone(), supports_3ds: true, ..Integration::default() };
    let request = UpdateIntegrationRequest { integration: Some(integration), update_mask: None };
    cashier.player.api.integrations.update_integration(request).await.expect("3-D Secure is supported");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bank_that_wants_to_see_the_customer_is_asked_again_on_session_on_the_same_intent() {
    let mut cashier = Cashier::new("3ds", Options::default()).await;
    supports_3ds(&mut cashier).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    cashier.pay("hooli", "inv").await;
    let asked = cashier.payment_in("inv", PaymentState::RequiresAction).await;
    assert!(asked.next_action_url.contains("/3ds/"), "{asked:?}");
    let told = cashier.player.told("payment.requires_action", "inv").await.expect("it is told");
    assert!(format!("{told:?}").contains(&asked.next_action_url), "with the link");
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 0, "nothing has failed");
    assert_eq!(cashier.intents("inv").len(), 1, "the same intent");
    cashier.sandbox().authenticate(&asked.provider_payment_intent_id, true).expect("the customer proves who they are");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(paid.attempts.len(), 2);
    assert_eq!(cashier.live_charges("inv"), 1);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_action_that_nobody_finishes_is_taken_back_after_a_day_and_the_invoice_free_again() {
    let mut cashier = Cashier::new("3ds late", Options::default()).await;
    supports_3ds(&mut cashier).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    cashier.pay("hooli", "inv").await;
    let asked = cashier.payment_in("inv", PaymentState::RequiresAction).await;
    cashier.advance(Duration::hours(25));
    let ended = cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(ended.failure.as_ref().map(|it| it.code.as_str()), Some("action_expired"));
    assert_eq!(status_of(&cashier, &asked.provider_payment_intent_id), "canceled", "Stripe has closed it first");
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 1);
    let (session, _) = cashier.link("link", &ended).await.expect("it can be paid another way");
    cashier.sandbox().complete_session(&session, GOOD_CARD, true).expect("the payer pays");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    at_rest(&cashier).await;
    assert_eq!(cashier.live_charges("inv"), 1);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_support_a_bank_that_wants_to_see_the_customer_is_a_refusal_that_is_told() {
    let mut cashier = Cashier::new("no 3ds", Options::default()).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    let failure = failed.failure.expect("a failure");
    assert!(failure.code == "authentication_required" || failure.decline_code == "authentication_required");
    cashier.player.told("invoice.payment_failure", "inv").await.expect("it is told");
    cashier.end().await;
}
