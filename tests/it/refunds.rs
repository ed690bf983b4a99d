//! Refunds on request: facts beside the payment's state, told at every change and in any order (P6, P7). What becomes
//! of a refund whose answer is lost is in `unknown_refunds`.

use std::collections::BTreeSet;

use paybridge::dev::sandbox::{Action, Effect, Fault, HandPayment, WebhookAction, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    GetRefundRequest, IntegrationState, ListRefundsRequest, Payment, PaymentState, RefundPaymentRequest, RefundState,
};
use time::Duration;
use tonic::Code;

use crate::cashier::{at_stripe, until};
use crate::hands::{refused, violations};
use crate::refunding::{
    REFUNDS, ask, end, listed, made_once, paid_till, read, refund, refund_in, silence, states_told, taken_and_back,
    told,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_money_goes_back_in_parts_never_more_than_came_and_the_payment_stays_settled() {
    let (mut cashier, payment) = paid_till("parts", "pm_card_visa", Options::default()).await;
    cashier.sandbox().forget_requests();
    let first = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    assert_eq!(first.state(), RefundState::Pending, "accepting is all that the call does");
    assert_eq!(first.provider_charge_id, payment.attempts[0].provider_charge_id, "of the charge that settled it");
    let first = refund_in(&cashier, &first.id, RefundState::Succeeded).await;
    assert!(first.provider_refund_id.starts_with("re_") && first.failure_reason.is_empty());
    let same = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("the same request");
    assert_eq!(same, first, "names the same refund, as it is now");
    // Stripe knows what is left, and says so.
    let too_much = refund(&cashier, ask("r2", &payment, Some(3901))).await.expect("it is accepted");
    let too_much = refund_in(&cashier, &too_much.id, RefundState::Failed).await;
    assert_eq!(too_much.failure_reason, "more_than_is_left");
    let by_hand = format!("charge={}&amount=400", first.provider_charge_id);
    let by_hand = at_stripe(&cashier, REFUNDS, &by_hand).await;
    cashier.all_delivered().await;
    let rest = refund(&cashier, ask("r3", &payment, None)).await.expect("it is accepted");
    assert_eq!(rest.amount, None, "how much is left is Stripe's to say");
    let rest = refund_in(&cashier, &rest.id, RefundState::Succeeded).await;
    assert_eq!(rest.amount.as_ref().expect("an amount").minor_units, 3500);
    let again = refund(&cashier, ask("r4", &payment, None)).await.expect("it is accepted");
    let again = refund_in(&cashier, &again.id, RefundState::Failed).await;
    assert_eq!(again.failure_reason, "charge_already_refunded", "Stripe's own word");
    cashier.all_delivered().await;

    let after = cashier.payment_when("inv", "is refunded", |it| it.amount_refunded == it.amount_received).await;
    assert_eq!(after.state(), PaymentState::Succeeded, "a refund changes no state");
    assert_eq!(taken_and_back(&cashier, &first.provider_charge_id), (4900, 4900));
    let list = listed(&cashier, &payment).await;
    let ids: Vec<_> = list.iter().map(|refund| refund.provider_refund_id.as_str()).collect();
    let by_hand = by_hand["id"].as_str().expect("an id");
    assert_eq!(
        ids,
        ["", &*rest.provider_refund_id, by_hand, "", &*first.provider_refund_id],
        "newest first, all of them"
    );
    for (refund, states) in
        [(&first, ["succeeded"]), (&too_much, ["failed"]), (&rest, ["succeeded"]), (&list[2], ["succeeded"])]
    {
        assert_eq!(states_told(&cashier, refund).await, states, "told once: {refund:?}");
    }
    let failed = told(&cashier).await.into_iter().find(|told| told.status == "failed").expect("it is told");
    assert_eq!(failed.failure_reason.as_deref(), Some("more_than_is_left"));
    assert!(failed.provider_refund_id.is_empty(), "Stripe made none");
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_not_be_refunded_is_refused_with_the_reason() {
    let (mut cashier, payment) = paid_till("refusals", "pm_card_visa", Options::default()).await;
    cashier.pay_as("nothing", "hooli", "nothing-due", 0).await.expect("it is taken");
    let nothing = cashier.payment_in("nothing-due", PaymentState::Succeeded).await;
    let mut api = cashier.player.api.payments.clone();
    let (message, details) = refused(
        api.refund_payment(ask("r1", &nothing, None)).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_REFUNDABLE",
    );
    assert!(details.precondition_failure().is_some(), "{message}");
    let unknown = Payment { id: "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(), ..Payment::default() };
    refused(api.refund_payment(ask("r1", &unknown, None)).await, Code::NotFound, "PAYMENT_NOT_FOUND");
    refused(api.get_refund(GetRefundRequest { id: unknown.id.clone() }).await, Code::NotFound, "REFUND_NOT_FOUND");
    let list = ListRefundsRequest { payment_id: unknown.id, ..ListRefundsRequest::default() };
    refused(api.list_refunds(list).await, Code::NotFound, "PAYMENT_NOT_FOUND");
    let other = RefundPaymentRequest { provider_charge_id: "ch_other".to_owned(), ..ask("r1", &payment, None) };
    assert_eq!(violations(api.refund_payment(other).await), ["provider_charge_id"]);
    assert_eq!(violations(api.refund_payment(ask("r1", &payment, Some(4901))).await), ["amount.minor_units"]);
    assert_eq!(violations(api.refund_payment(ask("r1", &payment, Some(0))).await), ["amount.minor_units"]);
    let mut dollars = ask("r1", &payment, Some(100));
    dollars.amount.as_mut().expect("an amount").currency_code = "USD".to_owned();
    assert_eq!(violations(api.refund_payment(dollars).await), ["amount.currency_code"]);
    assert_eq!(violations(api.refund_payment(RefundPaymentRequest::default()).await), ["payment_id", "request_id"]);
    assert!(listed(&cashier, &payment).await.is_empty(), "nothing was written");
    refund(&cashier, ask("r1", &payment, Some(100))).await.expect("errors are not remembered");
    refused(api.refund_payment(ask("r1", &payment, Some(200))).await, Code::InvalidArgument, "REQUEST_ID_REUSED");
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_refund_may_fail_after_it_succeeded_and_a_pending_one_comes_through() {
    for (method, states, back) in [
        ("pm_card_refundFail", [RefundState::Succeeded, RefundState::Failed], 0),
        ("pm_card_pendingRefund", [RefundState::Pending, RefundState::Succeeded], 1000),
    ] {
        let (mut cashier, payment) = paid_till("late news", method, Options::default()).await;
        let asked = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
        let first = until("Stripe has made it", || async {
            Some(read(&cashier, &asked.id).await).filter(|refund| !refund.provider_refund_id.is_empty())
        })
        .await;
        assert_eq!(first.state(), states[0]);
        let counted = |cents: i64| {
            move |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == cents)
        };
        cashier.payment_when("inv", "counts it", counted(1000)).await;
        cashier.all_delivered().await;
        cashier.advance(Duration::days(2));
        refund_in(&cashier, &asked.id, states[1]).await;
        cashier.payment_when("inv", "counts it anew", counted(back)).await;
        cashier.all_delivered().await;
        // A look that was still to come finds nothing to do.
        cashier.advance(Duration::hours(2));
        cashier.at_rest(&["refund_payment"]).await;
        let names = states.map(|state| state.as_str_name().trim_start_matches("REFUND_STATE_").to_lowercase());
        assert_eq!(states_told(&cashier, &asked).await, names, "each change is told once");
        assert_eq!(cashier.payment("inv").await.state(), PaymentState::Succeeded, "the payment stays settled");
        end(cashier).await;
    }
}

/// Nobody tells how a pending refund ends: it is asked about.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_that_moves_for_long_is_read() {
    let (cashier, payment) = paid_till("no news", "pm_card_pendingRefund", Options::default()).await;
    let by_hand = format!("charge={}&amount=400", payment.attempts[0].provider_charge_id);
    at_stripe(&cashier, REFUNDS, &by_hand).await;
    let asked = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("both are known", || async {
        let all = listed(&cashier, &payment).await;
        (all.len() == 2 && all.iter().all(|refund| !refund.provider_refund_id.is_empty())).then_some(())
    })
    .await;
    cashier.all_delivered().await;
    silence(&cashier);
    cashier.advance(Duration::days(2));
    until("both are through, the one made by hand as well", || async {
        // A look may have come a moment before Stripe was done; the next one is an hour later.
        cashier.advance(Duration::hours(1));
        let all = listed(&cashier, &payment).await;
        all.iter().all(|refund| refund.state() == RefundState::Succeeded).then_some(())
    })
    .await;
    assert_eq!(states_told(&cashier, &asked).await, ["pending", "succeeded"]);
    cashier.at_rest(&["refund_payment"]).await;
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_overpayment_is_told_with_its_charge_and_refunded_by_it() {
    let (mut cashier, payment) = paid_till("overpaid", "pm_card_visa", Options::default()).await;
    let customer = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    let by_hand = HandPayment {
        customer,
        payment_method: method,
        amount: 700,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
    };
    let surplus = cashier.sandbox().pay_by_hand(&by_hand).expect("it is paid");
    let told_over = cashier.player.told("payment.overpaid", "inv").await.expect("it is told");
    let Some(Object::Payment(over)) = told_over.object else { panic!("a payment") };
    let charge = over.provider_charge_id.expect("with its charge");
    assert_eq!(surplus["latest_charge"], charge.as_str());
    assert_eq!((over.amount_cents, over.provider_payment_id.as_deref()), (Some(700), surplus["id"].as_str()));
    let over = cashier.payment("inv").await;
    assert_eq!(over.state(), PaymentState::Succeeded);
    assert_eq!(over.amount_received.expect("an amount").minor_units, 5600, "it is recorded");

    let more = RefundPaymentRequest { provider_charge_id: charge.clone(), ..ask("r0", &payment, Some(701)) };
    assert_eq!(violations(cashier.player.api.payments.refund_payment(more).await), ["amount.minor_units"]);
    let back = RefundPaymentRequest { provider_charge_id: charge.clone(), ..ask("r1", &payment, None) };
    let back = refund(&cashier, back).await.expect("it is accepted");
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;
    cashier.all_delivered().await;
    assert_eq!(taken_and_back(&cashier, &charge), (700, 700), "the overpayment went back");
    assert_eq!(taken_and_back(&cashier, &payment.attempts[0].provider_charge_id), (4900, 0), "and nothing else");
    // One made by hand at Stripe for the surplus' intent finds its way to the payment as well.
    let again = cashier.sandbox().pay_by_hand(&by_hand).expect("it is paid");
    until("it is told, too", || async { (cashier.count("payment.overpaid", "inv").await == 2).then_some(()) }).await;
    at_stripe(&cashier, REFUNDS, &format!("payment_intent={}", again["id"].as_str().expect("an id"))).await;
    let both = |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == 1400);
    let after = cashier.payment_when("inv", "counts both", both).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    end(cashier).await;
}

/// Shuffled and doubled while the answers come, too: every refund ends as Stripe has it, each state told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_shuffled_and_doubled_webhooks_of_refunds_end_in_the_same_state() {
    let (mut cashier, payment) = paid_till("refund orders", "pm_card_refundFail", Options::default()).await;
    for action in [WebhookAction::Shuffle { within_milliseconds: 1_000 }, WebhookAction::Double] {
        for event in ["refund.*", "charge.refunded"] {
            let event = event.to_owned();
            cashier.sandbox().add_webhook_fault(WebhookFault { event, action, ..WebhookFault::default() });
        }
    }
    let mut asked = Vec::new();
    for number in 0..4 {
        let request = ask(&format!("r{number}"), &payment, Some(500 + number));
        asked.push(refund(&cashier, request).await.expect("it is accepted"));
    }
    for refund in &asked {
        refund_in(&cashier, &refund.id, RefundState::Succeeded).await;
    }
    cashier.all_delivered().await;
    let all = |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == 2006);
    cashier.payment_when("inv", "counts all", all).await;
    cashier.advance(Duration::days(2));
    for refund in &asked {
        refund_in(&cashier, &refund.id, RefundState::Failed).await;
    }
    cashier.all_delivered().await;
    // Once more, the old ones last.
    let events = cashier.sandbox().events(&cashier.player.account);
    for event in events.iter().rev().filter(|event| event["type"].as_str().is_some_and(|it| it.contains("refund"))) {
        cashier.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
    }
    cashier.all_delivered().await;
    for refund in &asked {
        assert_eq!(read(&cashier, &refund.id).await.state(), RefundState::Failed);
        assert_eq!(states_told(&cashier, refund).await, ["succeeded", "failed"], "each state once, in Stripe's order");
    }
    let after = cashier.payment("inv").await;
    assert_eq!((after.state(), after.amount_refunded.expect("an amount").minor_units), (PaymentState::Succeeded, 0));
    assert_eq!(listed(&cashier, &payment).await.len(), 4, "four rows, whoever told of them");
    end(cashier).await;
}

/// An answer that was under way for long tells what was; what is known since counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_read_that_is_older_than_what_is_known_changes_nothing() {
    let (cashier, payment) = paid_till("old read", "pm_card_refundFail", Options::default()).await;
    let slow = Action::Delay { milliseconds: 10 * 24 * 60 * 60 * 1_000, after_work: true };
    cashier.sandbox().add_fault(Fault::once("GET", "/v1/refunds/*", slow));
    let asked = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    let reads = || {
        let requests = cashier.sandbox().requests();
        requests.into_iter().filter(|it| it.method == "GET" && it.path.starts_with("/v1/refunds/")).collect::<Vec<_>>()
    };
    refund_in(&cashier, &asked.id, RefundState::Succeeded).await;
    cashier.advance(Duration::days(2));
    refund_in(&cashier, &asked.id, RefundState::Failed).await;
    assert!(reads().iter().any(|read| read.status.is_none()), "one answer is still under way");
    cashier.advance(Duration::days(10));
    cashier.all_delivered().await;
    cashier.at_rest(&["refund_payment"]).await;
    assert!(reads().iter().all(|read| read.status.is_some()), "it has come");
    assert_eq!(read(&cashier, &asked.id).await.state(), RefundState::Failed);
    assert_eq!(states_told(&cashier, &asked).await, ["succeeded", "failed"]);
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_is_open_or_locked_while_a_refund_is_sent() {
    let (cashier, payment) = paid_till("refund locks", "pm_card_visa", Options::default()).await;
    let database = cashier.database().await;
    cashier.fault(REFUNDS, 1, Action::Delay { milliseconds: 8_000, after_work: false });
    let asked = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    let in_flight = || cashier.posts(REFUNDS).iter().any(|request| request.status.is_none());
    until("the call is in flight", || async { in_flight().then_some(()) }).await;
    for row in [
        "SELECT FROM payments WHERE invoice_id = 'inv' FOR UPDATE NOWAIT",
        "SELECT FROM refunds FOR UPDATE NOWAIT",
        "SELECT FROM jobs WHERE kind = 'refund_payment' FOR UPDATE NOWAIT",
    ] {
        assert_eq!(database.query(row, &[]).await.expect("the row is free").len(), 1);
    }
    let open = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND usename = 'paybridge' \
        AND state LIKE 'idle in transaction%' AND query LIKE '%refund%'";
    assert!(database.query(open, &[]).await.expect("a look").is_empty(), "nothing is open");
    assert!(in_flight(), "it is still in flight");
    cashier.advance(Duration::seconds(9));
    made_once(&cashier, &asked).await;
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_refund_does_not_change_without_its_event() {
    let (cashier, payment) = paid_till("refund together", "pm_card_visa", Options::default()).await;
    silence(&cashier);
    let database = cashier.database().await;
    let block = "CREATE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            RAISE EXCEPTION 'no event today'; END $$; \
        CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events();";
    database.batch_execute(block).await.expect("events are blocked");
    let made = refund(&cashier, ask("r1", &payment, Some(4900))).await.expect("accepting tells nothing");
    until("the job has failed", || async {
        let query = "SELECT FROM jobs WHERE kind = 'refund_payment' AND failures >= 1";
        (!database.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
    assert_eq!(read(&cashier, &made.id).await.state(), RefundState::Pending, "not without its event");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events flow again");
    made_once(&cashier, &made).await;
    end(cashier).await;
}

/// While releases change, the one before this one writes what it hears of refunds its own way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_written_by_the_release_before_is_a_refund_like_any_other() {
    let (cashier, payment) = paid_till("refund before", "pm_card_visa", Options::default()).await;
    let database = cashier.database().await;
    let insert = "INSERT INTO refunds (organization_id, provider_refund_id, payment_id, provider_charge_id, amount, \
            currency, status, failure_reason, update_time) \
        SELECT organization_id, $1, id, 'ch_1', 100, 'EUR', 'succeeded', NULL, update_time FROM payments \
        ON CONFLICT (organization_id, provider_refund_id) DO UPDATE SET status = excluded.status";
    for id in ["re_1", "re_2", "re_1"] {
        database.execute(insert, &[&id]).await.expect("it is written");
    }
    let list = listed(&cashier, &payment).await;
    let ids: BTreeSet<_> = list.iter().map(|refund| refund.provider_refund_id.as_str()).collect();
    assert_eq!((list.len(), ids), (2, BTreeSet::from(["re_1", "re_2"])), "each once");
    assert!(list.iter().all(|refund| refund.integration_id == cashier.integration.id), "{list:#?}");
    assert!(list[0].create_time.is_some() && read(&cashier, &list[0].id).await == list[0]);
    // It noted no charges: the attempt that settled the payment knows its own.
    database.execute("DELETE FROM charges", &[]).await.expect("they are gone");
    let back = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    assert_eq!(back.provider_charge_id, payment.attempts[0].provider_charge_id);
    refund_in(&cashier, &back.id, RefundState::Succeeded).await;
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_waits_for_refunds_and_afterwards_none_is_accepted() {
    let (mut cashier, payment) = paid_till("refund disconnect", "pm_card_pendingRefund", Options::default()).await;
    let slow = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    cashier.disconnect(false).await;
    let late = refund(&cashier, ask("r2", &payment, Some(500))).await.expect("still accepted");
    for refund in [&slow, &late] {
        until("Stripe has made it", || async {
            (!read(&cashier, &refund.id).await.provider_refund_id.is_empty()).then_some(())
        })
        .await;
    }
    cashier.advance(Duration::minutes(2));
    assert_eq!(cashier.integration_now().await.state(), IntegrationState::Disconnecting, "it waits for what moves");
    cashier.advance(Duration::days(2));
    refund_in(&cashier, &slow.id, RefundState::Succeeded).await;
    refund_in(&cashier, &late.id, RefundState::Succeeded).await;
    until("it is disconnected", || async {
        cashier.advance(Duration::minutes(1));
        (cashier.integration_now().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
    let answer = cashier.player.api.payments.refund_payment(ask("r3", &payment, Some(100))).await;
    refused(answer, Code::FailedPrecondition, "INTEGRATION_DISCONNECTED");
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_disconnect_leaves_no_refund_waiting_for_ever() {
    let (mut cashier, payment) = paid_till("refund forced", "pm_card_pendingRefund", Options::default()).await;
    let known = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("Stripe has made it", || async {
        (!read(&cashier, &known.id).await.provider_refund_id.is_empty()).then_some(())
    })
    .await;
    cashier.cut(REFUNDS, 1_000, Effect::NotDone);
    let lost = refund(&cashier, ask("r2", &payment, Some(500))).await.expect("it is accepted");
    until("its outcome is unknown", || async { read(&cashier, &lost.id).await.outcome_unknown_time.map(|_| ()) }).await;
    cashier.disconnect(true).await;
    cashier
        .player
        .event("the end", |event| (event.webhook_type == "payment_provider.disconnected").then_some(()))
        .await
        .expect("it is told");
    cashier.at_rest(&["refund_payment"]).await;
    for refund in [&known, &lost] {
        let left = read(&cashier, &refund.id).await;
        assert_eq!(left.state(), RefundState::Pending, "nobody knows how it ended");
        assert!(left.outcome_unknown_time.is_some(), "and that is visible");
        let mut told =
            told(&cashier).await.into_iter().filter(|told| told.lago_refund_id.as_deref() == Some(&refund.id));
        assert!(told.next_back().expect("it is told").outcome_unknown_at.is_some(), "and told");
    }
    end(cashier).await;
}
