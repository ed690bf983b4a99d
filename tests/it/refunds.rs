//! Requested refunds: they change no payment state, and every change of one is reported, in any order of the events
//! (P6, P7). For lost responses see `unknown_refunds`.

use paybridge::dev::sandbox::{Action, DashboardPayment, Effect, Fault, WebhookAction, WebhookFault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CreateRefundRequest, GetRefundRequest, IntegrationState, ListRefundsRequest, Payment, PaymentState, RefundState,
    list_refunds_request,
};
use time::Duration;
use tonic::Code;

use crate::support::errors::{expect_error, violations};
use crate::support::harness::post_to_stripe;
use crate::support::refunds::{
    REFUNDS, captured_and_refunded, emitted_states, finish, get_refund, list_refunds, lose_refund_webhooks,
    paid_harness, refund, refund_events, refund_in, refund_request, refunded_once,
};
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_partial_refunds_never_exceed_the_charge_and_the_payment_stays_settled() {
    let (mut harness, payment) = paid_harness("parts", "pm_card_visa", Options::default()).await;
    harness.sandbox().clear_requests();
    let first = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    assert_eq!(first.state(), RefundState::Pending, "the call only accepts");
    assert_eq!(first.provider_charge_id, payment.attempts[0].provider_charge_id, "the charge that settled the payment");
    let first = refund_in(&harness, &first.id, RefundState::Succeeded).await;
    assert!(first.provider_refund_id.starts_with("re_") && first.failure_reason.is_empty());
    let same = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("the same request");
    assert_eq!(same, first, "returns the same refund in its current state");
    // Stripe refuses more than is left.
    let too_much = refund(&harness, refund_request("r2", &payment, Some(3901))).await.expect("it is accepted");
    let too_much = refund_in(&harness, &too_much.id, RefundState::Failed).await;
    assert_eq!(too_much.failure_reason, "more_than_is_left");
    let body = format!("charge={}&amount=400", first.provider_charge_id);
    let dashboard_refund = post_to_stripe(&harness, REFUNDS, &body).await;
    harness.all_delivered().await;
    let rest = refund(&harness, refund_request("r3", &payment, None)).await.expect("it is accepted");
    assert_eq!(rest.amount, None, "Stripe determines what is left");
    let rest = refund_in(&harness, &rest.id, RefundState::Succeeded).await;
    assert_eq!(rest.amount.as_ref().expect("an amount").minor_units, 3500);
    let again = refund(&harness, refund_request("r4", &payment, None)).await.expect("it is accepted");
    let again = refund_in(&harness, &again.id, RefundState::Failed).await;
    assert_eq!(again.failure_reason, "charge_already_refunded", "Stripe's code");
    harness.all_delivered().await;

    let after = harness.payment_when("inv", "is refunded", |it| it.amount_refunded == it.amount_received).await;
    assert_eq!(after.state(), PaymentState::Succeeded, "a refund changes no state");
    assert_eq!(captured_and_refunded(&harness, &first.provider_charge_id), (4900, 4900));
    let list = list_refunds(&harness, &payment).await;
    let ids: Vec<_> = list.iter().map(|refund| refund.provider_refund_id.as_str()).collect();
    let dashboard_refund = dashboard_refund["id"].as_str().expect("an id");
    assert_eq!(
        ids,
        ["", &*rest.provider_refund_id, dashboard_refund, "", &*first.provider_refund_id],
        "newest first, all of them"
    );
    for (refund, states) in
        [(&first, ["succeeded"]), (&too_much, ["failed"]), (&rest, ["succeeded"]), (&list[2], ["succeeded"])]
    {
        assert_eq!(emitted_states(&harness, refund).await, states, "emitted once: {refund:?}");
    }
    let failed =
        refund_events(&harness).await.into_iter().find(|event| event.status == "failed").expect("the event is emitted");
    assert_eq!(failed.failure_reason.as_deref(), Some("more_than_is_left"));
    assert!(failed.provider_refund_id.is_empty(), "Stripe has created none");
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_refunds_are_refused_with_the_reason() {
    let (mut harness, payment) = paid_harness("refusals", "pm_card_visa", Options::default()).await;
    harness.pay_as("nothing", "hooli", "nothing-due", 0).await.expect("it is accepted");
    let nothing = harness.payment_in("nothing-due", PaymentState::Succeeded).await;
    let mut api = harness.billing.api.payments.clone();
    let (message, details) = expect_error(
        api.create_refund(refund_request("r1", &nothing, None)).await,
        Code::FailedPrecondition,
        "PAYMENT_NOT_REFUNDABLE",
    );
    assert!(details.precondition_failure().is_some(), "{message}");
    let unknown = Payment { id: "01890a5d-ac96-774b-bcce-b302099a8057".to_owned(), ..Payment::default() };
    expect_error(api.create_refund(refund_request("r1", &unknown, None)).await, Code::NotFound, "PAYMENT_NOT_FOUND");
    expect_error(api.get_refund(GetRefundRequest { id: unknown.id.clone() }).await, Code::NotFound, "REFUND_NOT_FOUND");
    let of_unknown = Some(list_refunds_request::Payment::PaymentId(unknown.id));
    let list = ListRefundsRequest { payment: of_unknown, ..ListRefundsRequest::default() };
    expect_error(api.list_refunds(list).await, Code::NotFound, "PAYMENT_NOT_FOUND");
    let other =
        CreateRefundRequest { provider_charge_id: "ch_other".to_owned(), ..refund_request("r1", &payment, None) };
    assert_eq!(violations(api.create_refund(other).await), ["provider_charge_id"]);
    assert_eq!(violations(api.create_refund(refund_request("r1", &payment, Some(4901))).await), ["amount.minor_units"]);
    assert_eq!(violations(api.create_refund(refund_request("r1", &payment, Some(0))).await), ["amount.minor_units"]);
    let mut dollars = refund_request("r1", &payment, Some(100));
    dollars.amount.as_mut().expect("an amount").currency_code = "USD".to_owned();
    assert_eq!(violations(api.create_refund(dollars).await), ["amount.currency_code"]);
    assert_eq!(violations(api.create_refund(CreateRefundRequest::default()).await), ["payment", "request_id"]);
    assert!(list_refunds(&harness, &payment).await.is_empty(), "nothing is stored");
    refund(&harness, refund_request("r1", &payment, Some(100)))
        .await
        .expect("a refused request does not use up its id");
    expect_error(
        api.create_refund(refund_request("r1", &payment, Some(200))).await,
        Code::InvalidArgument,
        "REQUEST_ID_REUSED",
    );
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_refund_can_fail_after_it_succeeded_and_a_pending_one_can_succeed() {
    for (method, states, back) in [
        ("pm_card_refundFail", [RefundState::Succeeded, RefundState::Failed], 0),
        ("pm_card_pendingRefund", [RefundState::Pending, RefundState::Succeeded], 1000),
    ] {
        let (mut harness, payment) = paid_harness("late outcome", method, Options::default()).await;
        let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
        let first = until("Stripe has created it", async || {
            Some(get_refund(&harness, &requested.id).await).filter(|refund| !refund.provider_refund_id.is_empty())
        })
        .await;
        assert_eq!(first.state(), states[0]);
        let counted = |cents: i64| {
            move |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == cents)
        };
        harness.payment_when("inv", "counts it", counted(1000)).await;
        harness.all_delivered().await;
        harness.advance(Duration::days(2));
        refund_in(&harness, &requested.id, states[1]).await;
        harness.payment_when("inv", "counts the outcome", counted(back)).await;
        harness.all_delivered().await;
        // A scheduled read finds nothing to do.
        harness.advance(Duration::hours(2));
        harness.drain_jobs(&["refund_payment"]).await;
        let names = states.map(|state| state.as_str_name().trim_start_matches("REFUND_STATE_").to_lowercase());
        assert_eq!(emitted_states(&harness, &requested).await, names, "each change is reported once");
        assert_eq!(harness.payment("inv").await.state(), PaymentState::Succeeded, "the payment stays settled");
        finish(harness).await;
    }
}

/// No webhook reports the outcome of a pending refund.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refund_that_is_pending_for_long_is_read_from_stripe() {
    let (harness, payment) = paid_harness("lost webhooks", "pm_card_pendingRefund", Options::default()).await;
    let body = format!("charge={}&amount=400", payment.attempts[0].provider_charge_id);
    post_to_stripe(&harness, REFUNDS, &body).await;
    let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("both are known", async || {
        let all = list_refunds(&harness, &payment).await;
        (all.len() == 2 && all.iter().all(|refund| !refund.provider_refund_id.is_empty())).then_some(())
    })
    .await;
    harness.all_delivered().await;
    lose_refund_webhooks(&harness);
    harness.advance(Duration::days(2));
    until("both have succeeded", async || {
        // A read may come just before Stripe is done; the next one is an hour later.
        harness.advance_slowly(Duration::hours(1));
        let all = list_refunds(&harness, &payment).await;
        all.iter().all(|refund| refund.state() == RefundState::Succeeded).then_some(())
    })
    .await;
    assert_eq!(emitted_states(&harness, &requested).await, ["pending", "succeeded"]);
    harness.drain_jobs(&["refund_payment"]).await;
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p12_an_overpayment_is_reported_with_its_charge_and_can_be_refunded_by_it() {
    let (mut harness, payment) = paid_harness("overpaid", "pm_card_visa", Options::default()).await;
    let customer = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    let method = harness.methods("hooli").await[0].provider_payment_method_id.clone();
    let dashboard_payment = DashboardPayment {
        customer,
        payment_method: method,
        amount: 700,
        currency: "eur".to_owned(),
        metadata: [("invoice_id".to_owned(), "inv".to_owned())].into(),
    };
    let surplus = harness.sandbox().pay_in_dashboard(&dashboard_payment).expect("it is paid");
    let event = harness.billing.wait_for_event("payment.overpaid", "inv").await.expect("the event is emitted");
    let Some(Object::Payment(over)) = event.object else { panic!("a payment") };
    let charge = over.provider_charge_id.expect("with its charge");
    assert_eq!(surplus["latest_charge"], charge.as_str());
    assert_eq!((over.amount_cents, over.provider_payment_id.as_deref()), (Some(700), surplus["id"].as_str()));
    let over = harness.payment("inv").await;
    assert_eq!(over.state(), PaymentState::Succeeded);
    assert_eq!(over.amount_received.expect("an amount").minor_units, 5600, "it is recorded");

    let more = CreateRefundRequest { provider_charge_id: charge.clone(), ..refund_request("r0", &payment, Some(701)) };
    assert_eq!(violations(harness.billing.api.payments.create_refund(more).await), ["amount.minor_units"]);
    let back = CreateRefundRequest { provider_charge_id: charge.clone(), ..refund_request("r1", &payment, None) };
    let back = refund(&harness, back).await.expect("it is accepted");
    refund_in(&harness, &back.id, RefundState::Succeeded).await;
    harness.all_delivered().await;
    assert_eq!(captured_and_refunded(&harness, &charge), (700, 700), "the overpayment is refunded");
    assert_eq!(captured_and_refunded(&harness, &payment.attempts[0].provider_charge_id), (4900, 0), "and nothing else");
    // A refund of the surplus in the Stripe Dashboard also counts for the payment.
    let again = harness.sandbox().pay_in_dashboard(&dashboard_payment).expect("it is paid");
    until("the second overpayment is reported", async || {
        (harness.event_count("payment.overpaid", "inv").await == 2).then_some(())
    })
    .await;
    post_to_stripe(&harness, REFUNDS, &format!("payment_intent={}", again["id"].as_str().expect("an id"))).await;
    let both = |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == 1400);
    let after = harness.payment_when("inv", "counts both", both).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    finish(harness).await;
}

/// Every refund ends as at Stripe, and each of its states is reported once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_shuffled_and_doubled_webhooks_of_refunds_end_in_the_same_state() {
    let (mut harness, payment) = paid_harness("refund orders", "pm_card_refundFail", Options::default()).await;
    for action in [WebhookAction::Shuffle { within_milliseconds: 1_000 }, WebhookAction::Double] {
        for event in ["refund.*", "charge.refunded"] {
            let event = event.to_owned();
            harness.sandbox().add_webhook_fault(WebhookFault { event, action, ..WebhookFault::default() });
        }
    }
    let mut requested = Vec::new();
    for number in 0..4 {
        let request = refund_request(&format!("r{number}"), &payment, Some(500 + number));
        requested.push(refund(&harness, request).await.expect("it is accepted"));
    }
    for refund in &requested {
        refund_in(&harness, &refund.id, RefundState::Succeeded).await;
    }
    harness.all_delivered().await;
    let all = |it: &Payment| it.amount_refunded.as_ref().is_some_and(|money| money.minor_units == 2006);
    harness.payment_when("inv", "counts all", all).await;
    harness.advance(Duration::days(2));
    for refund in &requested {
        refund_in(&harness, &refund.id, RefundState::Failed).await;
    }
    harness.all_delivered().await;
    // All again, in reverse order.
    let events = harness.sandbox().events(&harness.billing.account);
    for event in events.iter().rev().filter(|event| event["type"].as_str().is_some_and(|it| it.contains("refund"))) {
        harness.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
    }
    harness.all_delivered().await;
    for refund in &requested {
        assert_eq!(get_refund(&harness, &refund.id).await.state(), RefundState::Failed);
        assert_eq!(
            emitted_states(&harness, refund).await,
            ["succeeded", "failed"],
            "each state once, in Stripe's order"
        );
    }
    let after = harness.payment("inv").await;
    assert_eq!((after.state(), after.amount_refunded.expect("an amount").minor_units), (PaymentState::Succeeded, 0));
    assert_eq!(list_refunds(&harness, &payment).await.len(), 4, "one row for each refund");
    finish(harness).await;
}

/// The response to a read is slow, and the refund changes meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_read_older_than_the_known_state_changes_nothing() {
    let (harness, payment) = paid_harness("old read", "pm_card_refundFail", Options::default()).await;
    let slow = Action::Delay { milliseconds: 10 * 24 * 60 * 60 * 1_000, after_work: true };
    harness.sandbox().add_fault(Fault::once("GET", "/v1/refunds/*", slow));
    let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    let reads = || {
        let requests = harness.sandbox().requests();
        requests.into_iter().filter(|it| it.method == "GET" && it.path.starts_with("/v1/refunds/")).collect::<Vec<_>>()
    };
    refund_in(&harness, &requested.id, RefundState::Succeeded).await;
    harness.advance(Duration::days(2));
    refund_in(&harness, &requested.id, RefundState::Failed).await;
    assert!(reads().iter().any(|read| read.status.is_none()), "one response is still pending");
    harness.advance(Duration::days(10));
    harness.all_delivered().await;
    harness.drain_jobs(&["refund_payment"]).await;
    assert!(reads().iter().all(|read| read.status.is_some()), "the response has arrived");
    assert_eq!(get_refund(&harness, &requested.id).await.state(), RefundState::Failed);
    assert_eq!(emitted_states(&harness, &requested).await, ["succeeded", "failed"]);
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_is_open_or_locked_while_a_refund_is_sent() {
    let (harness, payment) = paid_harness("refund locks", "pm_card_visa", Options::default()).await;
    let database = harness.database().await;
    harness.fault(REFUNDS, 1, Action::Delay { milliseconds: 8_000, after_work: false });
    let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    let in_flight = || harness.posts(REFUNDS).iter().any(|request| request.status.is_none());
    until("the call is in flight", async || in_flight().then_some(())).await;
    for row in [
        "SELECT FROM payments WHERE invoice_id = 'inv' FOR UPDATE NOWAIT",
        "SELECT FROM refunds FOR UPDATE NOWAIT",
        "SELECT FROM jobs WHERE kind = 'refund_payment' FOR UPDATE NOWAIT",
    ] {
        assert_eq!(database.query(row, &[]).await.expect("the row is free").len(), 1);
    }
    let open = "SELECT query FROM pg_stat_activity WHERE datname = current_database() AND usename = 'paybridge' \
        AND state LIKE 'idle in transaction%' AND query LIKE '%refund%'";
    assert!(database.query(open, &[]).await.expect("a result").is_empty(), "nothing is open");
    assert!(in_flight(), "it is still in flight");
    harness.advance(Duration::seconds(9));
    refunded_once(&harness, &requested).await;
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_refund_does_not_change_without_its_event() {
    let (harness, payment) = paid_harness("refund together", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    let database = harness.database().await;
    let block = "CREATE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            RAISE EXCEPTION 'no event today'; END $$; \
        CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events();";
    database.batch_execute(block).await.expect("events are blocked");
    let accepted =
        refund(&harness, refund_request("r1", &payment, Some(4900))).await.expect("accepting emits no event");
    until("the job has failed", async || {
        let query = "SELECT FROM jobs WHERE kind = 'refund_payment' AND failures >= 1";
        (!database.query(query, &[]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
    assert_eq!(get_refund(&harness, &accepted.id).await.state(), RefundState::Pending, "not without its event");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events are unblocked");
    refunded_once(&harness, &accepted).await;
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_waits_for_refunds_and_afterwards_none_is_accepted() {
    let (mut harness, payment) = paid_harness("refund disconnect", "pm_card_pendingRefund", Options::default()).await;
    let slow = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    harness.disconnect(false).await;
    let late = refund(&harness, refund_request("r2", &payment, Some(500))).await.expect("still accepted");
    for refund in [&slow, &late] {
        until("Stripe has created it", async || {
            (!get_refund(&harness, &refund.id).await.provider_refund_id.is_empty()).then_some(())
        })
        .await;
    }
    harness.advance(Duration::minutes(2));
    assert_eq!(
        harness.read_integration().await.state(),
        IntegrationState::Disconnecting,
        "it waits for pending refunds"
    );
    harness.advance(Duration::days(2));
    refund_in(&harness, &slow.id, RefundState::Succeeded).await;
    refund_in(&harness, &late.id, RefundState::Succeeded).await;
    until("it is disconnected", async || {
        harness.advance_slowly(Duration::minutes(1));
        (harness.read_integration().await.state() == IntegrationState::Disconnected).then_some(())
    })
    .await;
    let response = harness.billing.api.payments.create_refund(refund_request("r3", &payment, Some(100))).await;
    expect_error(response, Code::FailedPrecondition, "INTEGRATION_DISCONNECTED");
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forced_disconnect_marks_pending_refunds_as_unknown() {
    let (mut harness, payment) = paid_harness("refund forced", "pm_card_pendingRefund", Options::default()).await;
    let known = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("Stripe has created it", async || {
        (!get_refund(&harness, &known.id).await.provider_refund_id.is_empty()).then_some(())
    })
    .await;
    harness.cut(REFUNDS, 1_000, Effect::NotDone);
    let lost = refund(&harness, refund_request("r2", &payment, Some(500))).await.expect("it is accepted");
    until("its outcome is unknown", async || get_refund(&harness, &lost.id).await.outcome_unknown_time.map(|_| ()))
        .await;
    harness.disconnect(true).await;
    harness
        .billing
        .wait_for("the end", |event| (event.webhook_type == "payment_provider.disconnected").then_some(()))
        .await
        .expect("the event is emitted");
    harness.drain_jobs(&["refund_payment"]).await;
    for refund in [&known, &lost] {
        let current = get_refund(&harness, &refund.id).await;
        assert_eq!(current.state(), RefundState::Pending, "its outcome is unknown");
        assert!(current.outcome_unknown_time.is_some(), "and visibly so");
        let mut events =
            refund_events(&harness).await.into_iter().filter(|it| it.lago_refund_id.as_deref() == Some(&refund.id));
        assert!(events.next_back().expect("the event is emitted").outcome_unknown_at.is_some(), "and reported");
    }
    finish(harness).await;
}
