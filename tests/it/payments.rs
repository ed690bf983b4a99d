//! P1, one invoice, one open way to pay; P3, nothing is locked while Stripe is called; P4, what belongs together commits
//! together; P7, settled stays settled. And the ways to retry and to cancel.

use paybridge::dev::sandbox::{Action, Effect, Fault, WebhookAction, WebhookFault};
use paybridge::dev::stage::Options;
use paybridge::dev::story::Api;
use paybridge::grpc::proto::event::Object;
use paybridge::grpc::proto::{
    CancelPaymentRequest, CreatePaymentRequest, Money, PaymentState, RetryPaymentRequest,
    create_payment_request::Customer,
};
use time::Duration;
use tonic::Code;

use crate::cashier::{CONFIRM, Cashier, at_stripe, reason, until};
use crate::links::{DECLINING, GOOD_IBAN};

async fn till(name: &str, method: &str) -> Cashier {
    let mut cashier = Cashier::new(name, Options::default()).await;
    cashier.customer("hooli", method).await;
    cashier
}

/// Two servers are asked by many at once to charge, retry and cancel; meanwhile the database is watched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_storm_of_tries_on_two_servers_charges_once() {
    let mut cashier = Cashier::new("storm", Options { servers: 2, ..Options::default() }).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    let database = cashier.database().await;
    // Every open attempt ever made is noted; so is the most that were open at once.
    let watch = "CREATE TABLE open_at_once (payment_id uuid, open bigint); \
        CREATE FUNCTION watch() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN \
            INSERT INTO open_at_once SELECT payment_id, count(*) FROM payment_attempts \
                WHERE state = 'open' AND payment_id = NEW.payment_id GROUP BY payment_id; \
            RETURN NULL; END $$; \
        CREATE TRIGGER watch AFTER INSERT OR UPDATE ON payment_attempts FOR EACH ROW EXECUTE FUNCTION watch();";
    database.batch_execute(watch).await.expect("the watch is set");
    cashier.sandbox().add_fault(Fault {
        times: None,
        percent: 30,
        ..Fault::once("POST", CONFIRM, Action::Cut { work: Effect::Done })
    });
    storm(&cashier, "first").await;
    cashier.payment_in("inv", PaymentState::Failed).await;
    // Now a good method is there, and tries of both kinds go on.
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    storm(&cashier, "second").await;
    storm(&cashier, "third").await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;

    assert_eq!(cashier.live_charges("inv"), 1, "one charge took money");
    assert_eq!(cashier.intents("inv").len(), 1, "all tries were for one intent");
    let intent = &paid.provider_payment_intent_id;
    assert!(cashier.posts("/confirm").iter().all(|confirm| confirm.path.contains(intent)), "and confirmed it");
    let most = database.query_one("SELECT max(open) FROM open_at_once", &[]).await.expect("a count");
    assert_eq!(most.get::<_, Option<i64>>(0), Some(1), "never two open attempts");
    assert_eq!(cashier.count("payment.succeeded", "inv").await, 1, "told once");
    cashier.end().await;
}

/// Twelve callers at once, half on each server: the same invoice, and retries of it.
async fn storm(cashier: &Cashier, name: &str) {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..12 {
        let server = cashier.scenery.stage.servers[caller % 2].grpc.clone();
        let (token, request_id) = (cashier.player.token.clone(), format!("{name}-{caller}"));
        callers.spawn(async move {
            let mut api = Api::connect(&server, &token).await.expect("the server is there");
            let request = CreatePaymentRequest {
                request_id: request_id.clone(),
                invoice_id: "inv".to_owned(),
                customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
                amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
                ..CreatePaymentRequest::default()
            };
            let payment = api.payments.create_payment(request).await.expect("the payment is taken").into_inner();
            let id = payment.payment.expect("a payment").id;
            let retry = RetryPaymentRequest { id, request_id: format!("retry-{request_id}"), ..Default::default() };
            match api.payments.retry_payment(retry).await {
                Ok(_) => {}
                Err(status) => assert_eq!(reason(&status), "PAYMENT_NOT_RETRYABLE", "{status}"),
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("a caller is answered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_the_database_refuses_a_second_open_attempt() {
    let mut cashier = till("slot", GOOD_IBAN).await;
    cashier.pay("hooli", "inv").await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    let database = cashier.database().await;
    let second = "INSERT INTO payment_attempts SELECT organization_id, payment_id, 2, amount, currency, \
        payment_method_id, provider_payment_intent_id, 'another-key', body, prior_charge, prior_error, state, failure, \
        provider_charge_id, dead_key_time, create_time, finish_time FROM payment_attempts";
    let refused = database.execute(second, &[]).await.expect_err("the slot is taken");
    let refusal = refused.as_db_error().expect("the database's own word");
    assert_eq!(refusal.constraint(), Some("payment_attempts_slot_key"), "{refusal}");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_payment_opened_again_gets_a_new_intent_only_after_the_old_one_is_canceled() {
    let mut cashier = till("again", DECLINING).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    // Stripe is slow to cancel: until it has, the invoice has its old way.
    cashier.sandbox().add_fault(Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable));
    cashier.cancel(&failed).await.expect("the request is taken");
    let same = cashier.pay_as("while-it-goes", "hooli", "inv", 4900).await.expect("the payment is named");
    assert_eq!(same.provider_payment_intent_id, failed.provider_payment_intent_id, "no other way is open yet");
    cashier.payment_in("inv", PaymentState::Canceled).await;
    let old = cashier.sandbox().object(&failed.provider_payment_intent_id).expect("the old intent");
    assert_eq!(old["status"], "canceled", "Stripe has closed the first way");

    let provider_id = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    let again = cashier.pay_as("again", "hooli", "inv", 4500).await.expect("it is opened again");
    assert_eq!(again.id, failed.id, "the same row");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    assert_ne!(paid.provider_payment_intent_id, failed.provider_payment_intent_id, "a new intent");
    assert_eq!(paid.amount.expect("an amount").minor_units, 4500, "of the new amount");
    assert_eq!(cashier.live_charges("inv"), 1);
    cashier.end().await;
}

/// A payment withdrawn while its intent is being made, and opened again with another amount, never takes the old one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_an_intent_that_arrives_after_its_payment_was_withdrawn_is_not_used_for_another_amount() {
    let mut cashier = till("withdrawn", "pm_card_visa").await;
    cashier.fault("/v1/payment_intents", 1, Action::Delay { milliseconds: 3_000, after_work: true });
    let first = cashier.pay("hooli", "inv").await;
    until("the intent is made", || async { (cashier.intents("inv").len() == 1).then_some(()) }).await;
    let withdrawn = cashier.cancel(&first).await.expect("nothing was sent that takes money");
    assert_eq!(withdrawn.state(), PaymentState::Canceled, "PENDING is canceled at once");
    cashier.pay_as("again", "hooli", "inv", 10_000).await.expect("it is opened again");
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    let charges = cashier.charges("inv");
    assert_eq!(charges.len(), 1, "one charge");
    assert_eq!(charges[0].amount, 10_000, "of the amount that was asked for");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_is_open_or_locked_while_stripe_is_called() {
    let mut cashier = till("locks", "pm_card_visa").await;
    let database = cashier.database().await;
    for path in ["/v1/payment_intents", CONFIRM] {
        let invoice = format!("inv-{}", path.len());
        // The clock's time: it goes on when the clock is moved.
        cashier.fault(path, 1, Action::Delay { milliseconds: 8_000, after_work: false });
        cashier.pay("hooli", &invoice).await;
        let end = if path == CONFIRM { "/confirm" } else { path };
        until("the call is in flight", || async {
            cashier.posts(end).iter().any(|request| request.status.is_none()).then_some(())
        })
        .await;
        let open = "SELECT pid, state, query FROM pg_stat_activity \
            WHERE datname = current_database() AND usename = 'paybridge' AND state LIKE 'idle in transaction%'";
        let locks = "SELECT relation::regclass::text, mode FROM pg_locks JOIN pg_stat_activity USING (pid) \
            WHERE usename = 'paybridge' AND datname = current_database() AND mode = 'RowShareLock' \
              AND relation IN ('payments'::regclass, 'payment_attempts'::regclass)";
        // The renewal of leases opens and ends transactions all the time: what stays open is of one process and query.
        for _ in 0..10 {
            let open = database.query(open, &[]).await.expect("a look");
            let open: Vec<(i32, String)> = open.iter().map(|row| (row.get(0), row.get(2))).collect();
            let of_payments: Vec<_> = open.iter().filter(|(_, query)| query.contains("payment")).collect();
            assert!(of_payments.is_empty(), "open while {path} is in flight: {of_payments:?}");
            let held = database.query(locks, &[]).await.expect("a look");
            assert!(held.is_empty(), "locked while {path} is in flight: {:?}", held[0].get::<_, String>(0));
            assert!(cashier.posts(end).iter().any(|request| request.status.is_none()), "it is still in flight");
            // Whoever wants the row gets it.
            let row = "SELECT FROM payments WHERE invoice_id = $1 FOR UPDATE NOWAIT";
            database.query_one(row, &[&invoice]).await.expect("the payment's row is free");
            let job = "SELECT FROM jobs WHERE kind = 'submit_payment' FOR UPDATE NOWAIT";
            assert!(!database.query(job, &[]).await.expect("the job's row is free").is_empty());
        }
        cashier.advance(Duration::seconds(9));
        cashier.payment_in(&invoice, PaymentState::Succeeded).await;
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_state_is_not_changed_without_its_event_nor_its_job() {
    let mut cashier = till("together", DECLINING).await;
    let database = cashier.database().await;
    let block = "CREATE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            IF NEW.webhook_type LIKE 'invoice.%' OR NEW.webhook_type LIKE 'payment.%' \
            THEN RAISE EXCEPTION 'no event today'; END IF; RETURN NEW; END $$; \
        CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events();";
    database.batch_execute(block).await.expect("events are blocked");
    cashier.pay("hooli", "inv").await;
    until("the job has failed twice", || async {
        let query = "SELECT FROM jobs WHERE kind = 'submit_payment' AND failures >= 2 AND last_error LIKE '%event%'";
        (!database.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
    let waiting = cashier.payment("inv").await;
    assert_eq!(waiting.state(), PaymentState::Pending, "without its event the state does not change");
    assert!(waiting.attempts.is_empty(), "nor is the attempt there");
    assert!(cashier.charges("inv").is_empty(), "nor was anything sent that takes money");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events flow again");
    cashier.payment_in("inv", PaymentState::Failed).await;

    // The same where Stripe has spoken already: its word is neither lost nor told twice.
    let again = "CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events()";
    let provider_id = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    cashier.add_method("hooli", &provider_id, GOOD_IBAN).await;
    let failed = cashier.payment("inv").await;
    cashier.retry("retry", &failed, false).await.expect("it is tried again");
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    database.batch_execute(again).await.expect("events are blocked");
    cashier.advance(Duration::days(6));
    until("the webhook's job has failed", || async {
        let query = "SELECT FROM jobs WHERE kind = 'apply_delivery' AND failures >= 1";
        (!database.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Processing, "not without its event");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events flow again");
    cashier.player.told("payment.succeeded", "inv").await.expect("it is told");
    cashier.all_delivered().await;
    for (webhook_type, times) in [("payment.succeeded", 1), ("invoice.payment_failure", 1), ("payment.processing", 2)] {
        assert_eq!(cashier.count(webhook_type, "inv").await, times, "{webhook_type}: exactly once for each time");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_late_failure_or_cancellation_does_not_unsettle_what_is_paid() {
    let mut cashier = till("settled", DECLINING).await;
    // Stripe's word of the decline comes two hours late, after the success.
    cashier.sandbox().add_webhook_fault(WebhookFault {
        event: "payment_intent.payment_failed".to_owned(),
        action: WebhookAction::Delay { milliseconds: 7_200_000 },
        ..WebhookFault::default()
    });
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    let provider_id = cashier.player.customer("hooli").await.expect("a customer").provider_customer_id;
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    cashier.retry("retry", &failed, false).await.expect("it is tried again");
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.advance(Duration::hours(3));
    cashier.all_delivered().await;
    let after = cashier.payment("inv").await;
    assert_eq!(after.state(), PaymentState::Succeeded, "settled stays settled");
    assert_eq!(after.etag, paid.etag, "nothing about it has changed");
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 1, "the decline was told when it happened");
    let refused = cashier.cancel(&paid).await.expect_err("what is paid is not canceled");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_NOT_CANCELABLE"));
    let refused = cashier.retry("late", &paid, true).await.expect_err("nor tried again");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "PAYMENT_NOT_RETRYABLE"));
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_refunds_are_facts_beside_the_state_in_any_order() {
    // Refunds of this card fail after they had succeeded.
    let mut cashier = till("refunds", "pm_card_refundFail").await;
    for event in ["refund.*", "charge.refunded"] {
        let action = WebhookAction::Shuffle { within_milliseconds: 400 };
        cashier.sandbox().add_webhook_fault(WebhookFault {
            event: event.to_owned(),
            action,
            ..WebhookFault::default()
        });
        let action = WebhookAction::Double;
        cashier.sandbox().add_webhook_fault(WebhookFault {
            event: event.to_owned(),
            action,
            ..WebhookFault::default()
        });
    }
    cashier.pay("hooli", "inv").await;
    let paid = cashier.payment_in("inv", PaymentState::Succeeded).await;
    let intent = paid.provider_payment_intent_id.clone();
    for amount in [1000, 500] {
        at_stripe(&cashier, "/v1/refunds", &format!("payment_intent={intent}&amount={amount}")).await;
    }
    let refunded = |cents: i64| {
        move |payment: &paybridge::grpc::proto::Payment| {
            payment.amount_refunded.as_ref().is_some_and(|money| money.minor_units == cents)
        }
    };
    let after = cashier.payment_when("inv", "has 15.00 refunded", refunded(1500)).await;
    assert_eq!(after.state(), PaymentState::Succeeded, "a refund changes no state");
    cashier.all_delivered().await;
    cashier.advance(Duration::days(2));
    let after = cashier.payment_when("inv", "has both refunds failed", refunded(0)).await;
    assert_eq!(after.state(), PaymentState::Succeeded);
    cashier.all_delivered().await;
    let told: Vec<(String, String)> = cashier
        .player
        .events()
        .into_iter()
        .filter(|event| event.webhook_type == "payment.refund_updated")
        .filter_map(|event| match event.object {
            Some(Object::Refund(refund)) => Some((refund.provider_refund_id, refund.status)),
            _ => None,
        })
        .collect();
    let refunds: std::collections::BTreeSet<_> = told.iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(refunds.len(), 2, "both are told: {told:?}");
    for refund in refunds {
        let states: Vec<_> = told.iter().filter(|(id, _)| *id == refund).map(|(_, state)| state.as_str()).collect();
        assert_eq!(states, ["succeeded", "failed"], "each state once, in Stripe's order");
    }
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_disputes_are_facts_beside_the_state_and_a_lost_one_is_told_once() {
    let mut cashier = till("disputes", "pm_card_createDispute").await;
    cashier.sandbox().add_webhook_fault(WebhookFault {
        event: "charge.dispute.*".to_owned(),
        action: WebhookAction::Shuffle { within_milliseconds: 400 },
        ..WebhookFault::default()
    });
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    let opened = dispute_told(&mut cashier, "needs_response").await;
    let path = format!("/v1/disputes/{opened}");
    at_stripe(&cashier, &path, "evidence[uncategorized_text]=losing_evidence").await;
    dispute_told(&mut cashier, "lost").await;
    cashier.all_delivered().await;
    assert_eq!(cashier.payment("inv").await.state(), PaymentState::Succeeded, "a dispute changes no state");
    let lost = cashier.events().await;
    let lost = lost.iter().filter(|event| event.webhook_type == "invoice.payment_dispute_lost").count();
    assert_eq!(lost, 1, "a lost dispute is told once");
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 0, "and is no failure");
    cashier.end().await;
}

async fn dispute_told(cashier: &mut Cashier, status: &str) -> String {
    let what = format!("a dispute that is {status}");
    let told = cashier.player.event(&what, |event| match &event.object {
        Some(Object::Dispute(dispute)) => (dispute.status == status).then(|| dispute.provider_dispute_id.clone()),
        _ => None,
    });
    told.await.expect("it is told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_debit_that_the_bank_refuses_is_failed_once_and_one_taken_back_later_is_a_dispute() {
    let mut cashier = till("debits", "DE62370400440532013001").await;
    cashier.customer("taken-back", "DE35370400440532013002").await;
    cashier.pay("hooli", "inv").await;
    cashier.pay("taken-back", "inv-back").await;
    for invoice in ["inv", "inv-back"] {
        cashier.payment_in(invoice, PaymentState::Processing).await;
        until("it is at the bank", || async { (cashier.live_charges(invoice) == 1).then_some(()) }).await;
    }
    cashier.advance(Duration::days(6));
    cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.payment_in("inv-back", PaymentState::Succeeded).await;
    dispute_told(&mut cashier, "lost").await;
    cashier.all_delivered().await;
    assert_eq!(cashier.count("invoice.payment_failure", "inv").await, 1, "before success it is a failure, told once");
    assert_eq!(cashier.payment("inv-back").await.state(), PaymentState::Succeeded, "after success it is a dispute");
    assert_eq!(cashier.count("invoice.payment_failure", "inv-back").await, 0);
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_against_the_banks_advice_needs_force() {
    let mut cashier = till("advice", DECLINING).await;
    cashier.pay("hooli", "inv").await;
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.all_delivered().await;
    // No test card that can be stored draws this advice, so it is put in the bank's mouth.
    let database = cashier.database().await;
    let advise = "UPDATE payment_attempts SET failure = jsonb_set(failure, '{advice_code}', '\"do_not_try_again\"')";
    database.execute(advise, &[]).await.expect("the advice is written");
    let refused = cashier.retry("retry", &failed, false).await.expect_err("the bank said never again");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "DO_NOT_TRY_AGAIN"));
    assert_eq!(cashier.payment("inv").await.attempts.len(), 1, "nothing was tried");
    cashier.retry("forced", &failed, true).await.expect("force tries all the same");
    let again = cashier.payment_when("inv", "was tried again", |payment| payment.attempts.len() == 2).await;
    assert_eq!(again.provider_payment_intent_id, failed.provider_payment_intent_id, "on the same intent");
    let same = cashier.retry("forced", &failed, true).await.expect("the same request names the same try");
    assert_eq!(same.id, failed.id);
    cashier.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(cashier.payment("inv").await.attempts.len(), 2, "the same request makes one try");
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn canceling_follows_stripes_answer() {
    let mut cashier = till("cancel", "DE62370400440532013001").await;
    // At the bank: Stripe refuses, the payment goes on, the caller is told.
    cashier.pay("hooli", "inv").await;
    let moving = cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    let asked = cashier.cancel(&moving).await.expect("the request is taken");
    assert_eq!(asked.state(), PaymentState::Processing, "Stripe's answer decides");
    assert!(asked.cancel_request_time.is_some(), "the request is recorded");
    cashier.player.told("payment.cancellation_refused", "inv").await.expect("the caller is told");
    let going_on = cashier.payment("inv").await;
    assert_eq!(going_on.state(), PaymentState::Processing, "it goes on");
    assert!(going_on.cancel_request_time.is_none(), "the request is over");

    // The bank refuses the same day; now Stripe cancels, though it refused to do so before.
    assert_eq!(cashier.sandbox().settle(None), 1, "the bank answers");
    let failed = cashier.payment_in("inv", PaymentState::Failed).await;
    cashier.cancel(&failed).await.expect("the request is taken");
    cashier.player.told("payment.canceled", "inv").await.expect("it is told");
    let canceled = cashier.payment("inv").await;
    assert_eq!(canceled.state(), PaymentState::Canceled);
    let there = cashier.sandbox().object(&failed.provider_payment_intent_id).expect("the intent");
    assert_eq!(there["status"], "canceled", "closed at Stripe first");
    let again = cashier.cancel(&canceled).await.expect("asking again is harmless");
    assert_eq!(again.state(), PaymentState::Canceled);
    let refused = cashier.retry("late", &canceled, true).await.expect_err("what is canceled is not retried");
    assert_eq!(reason(&refused), "PAYMENT_NOT_RETRYABLE");

    // Nothing at Stripe yet: canceled at once, and Stripe is not even asked.
    cashier.bare_customer("waiting").await;
    cashier.pay("waiting", "inv-waiting").await;
    let lacking = cashier.payment_in("inv-waiting", PaymentState::Failed).await;
    let cancel = CancelPaymentRequest { id: lacking.id.clone() };
    let answer = cashier.player.api.payments.cancel_payment(cancel).await.expect("an answer").into_inner();
    assert_eq!(answer.payment.expect("a payment").state(), PaymentState::Canceled, "canceled at once");
    assert!(cashier.intents("inv-waiting").is_empty(), "there never was an intent");
    cashier.end().await;
}
