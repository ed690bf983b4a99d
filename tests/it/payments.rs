//! P1, one open payment path for an invoice; P3, no lock is held during a call to Stripe; P4, a state commits with its
//! event and its job. Also retries and cancellations.

use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::scenarios::Api;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{
    CancelPaymentRequest, CreatePaymentRequest, Money, PaymentState, RetryPaymentRequest, cancel_payment_request,
    create_payment_request::Customer, retry_payment_request,
};
use time::Duration;
use tonic::Code;

use crate::support::customers::{DECLINING_CARD, GOOD_IBAN};
use crate::support::errors::reason;
use crate::support::harness::{CONFIRM, Harness};
use crate::support::wait::until;

/// Many callers create and retry a payment on two servers at once, while a trigger counts open attempts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_concurrent_attempts_on_two_servers_charge_once() {
    let mut harness = Harness::new("concurrent", Options { servers: 2, ..Options::default() }).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    let database = harness.database().await;
    // Records how many attempts are open at once.
    let watch = "CREATE TABLE open_at_once (payment_id uuid, open bigint); \
        CREATE FUNCTION watch() RETURNS trigger SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN \
            INSERT INTO open_at_once SELECT payment_id, count(*) FROM payment_attempts \
                WHERE state = 'open' AND payment_id = NEW.payment_id GROUP BY payment_id; \
            RETURN NULL; END $$; \
        CREATE TRIGGER watch AFTER INSERT OR UPDATE ON payment_attempts FOR EACH ROW EXECUTE FUNCTION watch();";
    database.batch_execute(watch).await.expect("the trigger is set");
    harness.sandbox().add_fault(Fault {
        times: None,
        percent: 30,
        ..Fault::once("POST", CONFIRM, Action::Cut { work: Effect::Done })
    });
    create_and_retry(&harness, "first").await;
    harness.payment_in("inv", PaymentState::Failed).await;
    // Now there is a good method, and the calls continue.
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    create_and_retry(&harness, "second").await;
    create_and_retry(&harness, "third").await;
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment"]).await;

    assert_eq!(harness.live_charges("inv"), 1, "one charge is not failed");
    assert_eq!(harness.intents("inv").len(), 1, "all attempts use one intent");
    let intent = &paid.provider_payment_intent_id;
    assert!(harness.posts("/confirm").iter().all(|confirm| confirm.path.contains(intent)), "all confirms are of it");
    let max_open = database.query_one("SELECT max(open) FROM open_at_once", &[]).await.expect("a count");
    assert_eq!(max_open.get::<_, Option<i64>>(0), Some(1), "never two open attempts");
    assert_eq!(harness.event_count("payment.succeeded", "inv").await, 1, "emitted once");
    harness.shutdown().await;
}

/// Twelve callers at once, half on each server, create the payment of the same invoice and retry it.
async fn create_and_retry(harness: &Harness, name: &str) {
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..12 {
        let server = harness.context.environment.servers[caller % 2].grpc.clone();
        let (token, request_id) = (harness.billing.token.clone(), format!("{name}-{caller}"));
        callers.spawn(async move {
            let mut api = Api::connect(&server, &token).await.expect("a connection");
            let request = CreatePaymentRequest {
                request_id: request_id.clone(),
                invoice_id: "inv".to_owned(),
                customer: Some(Customer::ExternalCustomerId("hooli".to_owned())),
                amount: Some(Money { minor_units: 4900, currency_code: "EUR".to_owned() }),
                ..CreatePaymentRequest::default()
            };
            let payment = api.payments.create_payment(request).await.expect("the payment is accepted").into_inner();
            let id = retry_payment_request::Payment::Id(payment.payment.expect("a payment").id);
            let request_id = format!("retry-{request_id}");
            let retry = RetryPaymentRequest { payment: Some(id), request_id, ..Default::default() };
            match api.payments.retry_payment(retry).await {
                Ok(_) => {}
                Err(status) => assert_eq!(reason(&status), "PAYMENT_NOT_RETRYABLE", "{status}"),
            }
        });
    }
    while let Some(ended) = callers.join_next().await {
        ended.expect("every caller gets a response");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_the_database_refuses_a_second_open_attempt() {
    let mut harness = Harness::with_customer("slot", GOOD_IBAN).await;
    harness.pay("hooli", "inv").await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    harness.payment_in("inv", PaymentState::Processing).await;
    let database = harness.database().await;
    let second = "INSERT INTO payment_attempts (organization_id, payment_id, number, kind, amount, currency, \
            payment_method_id, provider_payment_intent_id, idempotency_key, body, state, create_time) \
        SELECT organization_id, payment_id, 2, kind, amount, currency, payment_method_id, provider_payment_intent_id, \
            'another-key', body, state, create_time FROM payment_attempts";
    let error = database.execute(second, &[]).await.expect_err("an attempt is open");
    let error = error.as_db_error().expect("an error of the database");
    assert_eq!(error.constraint(), Some("payment_attempts_slot_key"), "{error}");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_a_reopened_payment_gets_a_new_intent_only_after_the_old_one_is_canceled() {
    let mut harness = Harness::with_customer("again", DECLINING_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    // Until Stripe has canceled, the payment keeps its intent.
    harness.sandbox().add_fault(Fault::once("POST", "/v1/payment_intents/*/cancel", Action::Unavailable));
    harness.cancel(&failed).await.expect("the request is accepted");
    let same = harness.pay_as("during-the-cancellation", "hooli", "inv", 4900).await.expect("the payment is named");
    assert_eq!(same.provider_payment_intent_id, failed.provider_payment_intent_id, "no other payment path is open yet");
    harness.payment_in("inv", PaymentState::Canceled).await;
    let old = harness.sandbox().object(&failed.provider_payment_intent_id).expect("the old intent");
    assert_eq!(old["status"], "canceled", "the first payment path is closed");

    let provider_id = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    let again = harness.pay_as("again", "hooli", "inv", 4500).await.expect("it is reopened");
    assert_eq!(again.id, failed.id, "the same payment");
    let paid = harness.payment_in("inv", PaymentState::Succeeded).await;
    assert_ne!(paid.provider_payment_intent_id, failed.provider_payment_intent_id, "a new intent");
    assert_eq!(paid.amount.expect("an amount").minor_units, 4500, "of the new amount");
    assert_eq!(harness.live_charges("inv"), 1);
    harness.shutdown().await;
}

/// A payment is canceled while its intent is being created, and reopened with another amount.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_an_intent_created_for_a_canceled_payment_is_not_used_for_another_amount() {
    let mut harness = Harness::with_customer("reopened", "pm_card_visa").await;
    harness.fault("/v1/payment_intents", 1, Action::Delay { milliseconds: 3_000, after_work: true });
    let first = harness.pay("hooli", "inv").await;
    until("the intent is created", async || (harness.intents("inv").len() == 1).then_some(())).await;
    let canceled = harness.cancel(&first).await.expect("no charge was sent");
    assert_eq!(canceled.state(), PaymentState::Canceled, "PENDING is canceled at once");
    harness.pay_as("again", "hooli", "inv", 10_000).await.expect("it is reopened");
    harness.payment_in("inv", PaymentState::Succeeded).await;
    let charges = harness.charges("inv");
    assert_eq!(charges.len(), 1, "one charge");
    assert_eq!(charges[0].amount, 10_000, "of the new amount");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p3_nothing_is_open_or_locked_while_stripe_is_called() {
    let mut harness = Harness::with_customer("locks", "pm_card_visa").await;
    let database = harness.database().await;
    for path in ["/v1/payment_intents", CONFIRM] {
        let invoice = format!("inv-{}", path.len());
        // Other jobs have transactions, too.
        harness.all_delivered().await;
        harness.drain_jobs(&["create_checkout_session", "import_payment_methods"]).await;
        // In the clock's time: the call ends when the clock is advanced.
        harness.fault(path, 1, Action::Delay { milliseconds: 8_000, after_work: false });
        harness.pay("hooli", &invoice).await;
        let end = if path == CONFIRM { "/confirm" } else { path };
        until("the call is in flight", async || {
            harness.posts(end).iter().any(|request| request.status.is_none()).then_some(())
        })
        .await;
        let open = "SELECT pid, state, query FROM pg_stat_activity \
            WHERE datname = current_database() AND usename = 'paybridge' AND state LIKE 'idle in transaction%'";
        let locks = "SELECT relation::regclass::text, mode FROM pg_locks JOIN pg_stat_activity USING (pid) \
            WHERE usename = 'paybridge' AND datname = current_database() AND mode = 'RowShareLock' \
              AND relation IN ('payments'::regclass, 'payment_attempts'::regclass)";
        // Lease renewals open short transactions all the time. Only queries about payments count.
        for _ in 0..10 {
            let open = database.query(open, &[]).await.expect("a result");
            let open: Vec<(i32, String)> = open.iter().map(|row| (row.get(0), row.get(2))).collect();
            let of_payments: Vec<_> = open.iter().filter(|(_, query)| query.contains("payment")).collect();
            assert!(of_payments.is_empty(), "open while {path} is in flight: {of_payments:?}");
            let held = database.query(locks, &[]).await.expect("a result");
            assert!(held.is_empty(), "locked while {path} is in flight: {:?}", held[0].get::<_, String>(0));
            assert!(harness.posts(end).iter().any(|request| request.status.is_none()), "it is still in flight");
            // The rows can be locked by others.
            let row = "SELECT FROM payments WHERE invoice_id = $1 FOR UPDATE NOWAIT";
            database.query_one(row, &[&invoice]).await.expect("the payment's row is free");
            let job = "SELECT FROM jobs WHERE kind = 'submit_payment' FOR UPDATE NOWAIT";
            assert!(!database.query(job, &[]).await.expect("the job's row is free").is_empty());
        }
        harness.advance(Duration::seconds(9));
        harness.payment_in(&invoice, PaymentState::Succeeded).await;
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p4_a_state_does_not_change_without_its_event() {
    let mut harness = Harness::with_customer("together", DECLINING_CARD).await;
    let database = harness.database().await;
    let block = "CREATE FUNCTION no_events() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            IF NEW.webhook_type LIKE 'invoice.%' OR NEW.webhook_type LIKE 'payment.%' \
            THEN RAISE EXCEPTION 'no event today'; END IF; RETURN NEW; END $$; \
        CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events();";
    database.batch_execute(block).await.expect("events are blocked");
    harness.pay("hooli", "inv").await;
    until("the job has failed twice", async || {
        let query = "SELECT FROM jobs WHERE kind = 'submit_payment' AND failures >= 2 AND last_error LIKE '%event%'";
        (!database.query(query, &[]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
    let waiting = harness.payment("inv").await;
    assert_eq!(waiting.state(), PaymentState::Pending, "without its event the state does not change");
    assert!(waiting.attempts.is_empty(), "no attempt is stored");
    assert!(harness.charges("inv").is_empty(), "no charge was sent");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events are unblocked");
    harness.payment_in("inv", PaymentState::Failed).await;

    // The same for a webhook: its result is neither lost nor reported twice.
    let again = "CREATE TRIGGER no_events BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION no_events()";
    let provider_id = harness.billing.customer("hooli").await.expect("a customer").provider_customer_id;
    harness.add_method("hooli", &provider_id, GOOD_IBAN).await;
    let failed = harness.payment("inv").await;
    harness.retry("retry", &failed, false).await.expect("the retry is accepted");
    harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    database.batch_execute(again).await.expect("events are blocked");
    harness.advance(Duration::days(6));
    until("the webhook's job has failed", async || {
        let query = "SELECT FROM jobs WHERE kind = 'apply_delivery' AND failures >= 1";
        (!database.query(query, &[]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
    assert_eq!(harness.payment("inv").await.state(), PaymentState::Processing, "not without its event");
    database.batch_execute("DROP TRIGGER no_events ON events").await.expect("events are unblocked");
    harness.billing.wait_for_event("payment.succeeded", "inv").await.expect("the event is emitted");
    harness.all_delivered().await;
    for (webhook_type, times) in [("payment.succeeded", 1), ("invoice.payment_failure", 1), ("payment.processing", 2)] {
        assert_eq!(harness.event_count(webhook_type, "inv").await, times, "{webhook_type}: exactly once for each time");
    }
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_retry_against_the_banks_advice_needs_force() {
    let mut harness = Harness::with_customer("advice", DECLINING_CARD).await;
    harness.pay("hooli", "inv").await;
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    harness.all_delivered().await;
    // No test card that can be stored causes this advice.
    let database = harness.database().await;
    let advice = "UPDATE payment_attempts SET failure = jsonb_set(failure, '{advice_code}', '\"do_not_try_again\"')";
    database.execute(advice, &[]).await.expect("the advice is written");
    let refused = harness.retry("retry", &failed, false).await.expect_err("the bank advised against it");
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::FailedPrecondition, "DO_NOT_TRY_AGAIN"));
    assert_eq!(harness.payment("inv").await.attempts.len(), 1, "no other attempt");
    harness.retry("forced", &failed, true).await.expect("force overrides the advice");
    let again = harness.payment_when("inv", "has another attempt", |payment| payment.attempts.len() == 2).await;
    assert_eq!(again.provider_payment_intent_id, failed.provider_payment_intent_id, "on the same intent");
    let same = harness.retry("forced", &failed, true).await.expect("a repeated request succeeds");
    assert_eq!(same.id, failed.id);
    harness.payment_in("inv", PaymentState::Failed).await;
    assert_eq!(harness.payment("inv").await.attempts.len(), 2, "a repeated request makes no other attempt");
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancellation_follows_stripes_response() {
    let mut harness = Harness::with_customer("cancel", "DE62370400440532013001").await;
    // The bank has the debit: Stripe refuses, the payment continues, and the refusal is reported.
    harness.pay("hooli", "inv").await;
    let processing = harness.payment_in("inv", PaymentState::Processing).await;
    until("the bank has the debit", async || (harness.live_charges("inv") == 1).then_some(())).await;
    let requested = harness.cancel(&processing).await.expect("the request is accepted");
    assert_eq!(requested.state(), PaymentState::Processing, "Stripe decides");
    assert!(requested.cancel_request_time.is_some(), "the request is recorded");
    harness.billing.wait_for_event("payment.cancellation_refused", "inv").await.expect("the event is emitted");
    let continued = harness.payment("inv").await;
    assert_eq!(continued.state(), PaymentState::Processing, "it continues");
    assert!(continued.cancel_request_time.is_none(), "the request is over");

    // The bank returns the debit on the same day. Now Stripe cancels, although it refused to before.
    assert_eq!(harness.sandbox().settle(None), 1, "the bank answers");
    let failed = harness.payment_in("inv", PaymentState::Failed).await;
    harness.cancel(&failed).await.expect("the request is accepted");
    harness.billing.wait_for_event("payment.canceled", "inv").await.expect("the event is emitted");
    let canceled = harness.payment("inv").await;
    assert_eq!(canceled.state(), PaymentState::Canceled);
    let intent = harness.sandbox().object(&failed.provider_payment_intent_id).expect("the intent");
    assert_eq!(intent["status"], "canceled", "canceled at Stripe first");
    let again = harness.cancel(&canceled).await.expect("a repeat is accepted");
    assert_eq!(again.state(), PaymentState::Canceled);
    let refused = harness.retry("late", &canceled, true).await.expect_err("a canceled payment cannot be retried");
    assert_eq!(reason(&refused), "PAYMENT_NOT_RETRYABLE");

    // Nothing is at Stripe yet: the payment is canceled at once, without a call.
    harness.customer_without_method("waiting").await;
    harness.pay("waiting", "inv-waiting").await;
    let failed = harness.payment_in("inv-waiting", PaymentState::Failed).await;
    let which = cancel_payment_request::Payment::InvoiceId(failed.invoice_id);
    let cancel = CancelPaymentRequest { payment: Some(which) };
    let response = harness.billing.api.payments.cancel_payment(cancel).await.expect("a response").into_inner();
    assert_eq!(response.payment.expect("a payment").state(), PaymentState::Canceled, "canceled at once");
    assert!(harness.intents("inv-waiting").is_empty(), "there is no intent");
    harness.shutdown().await;
}
