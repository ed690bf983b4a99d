//! P2 for refunds: one request makes one refund, while the sandbox loses Stripe's responses in every possible way.

use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::scenarios::Api;
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{RefundState, RotateIntegrationKeyRequest};
use time::Duration;

use crate::support::harness::Harness;
use crate::support::program;
use crate::support::refunds::{
    REFUNDS, captured_and_refunded, emitted_states, finish, get_refund, lose_refund_webhooks, paid_harness, refund,
    refund_in, refund_request, refunded_once, stripe_refunds,
};
use crate::support::sql::forget;
use crate::support::wait::until;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_concurrent_repeats_of_a_request_on_two_servers_make_one_refund() {
    let options = Options { servers: 2, ..Options::default() };
    let (mut harness, payment) = paid_harness("concurrent refunds", "pm_card_visa", options).await;
    harness.fault(REFUNDS, 2, Action::Cut { work: Effect::Done });
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..10 {
        let server = harness.context.environment.servers[caller % 2].grpc.clone();
        let (token, request) = (harness.billing.token.clone(), refund_request("r1", &payment, Some(1000)));
        callers.spawn(async move {
            let mut api = Api::connect(&server, &token).await.expect("a connection");
            api.payments.create_refund(request).await.expect("it is accepted").into_inner().refund.expect("a refund").id
        });
    }
    let ids = callers.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "all return the same refund: {ids:?}");
    let succeeded = refund_in(&harness, &ids[0], RefundState::Succeeded).await;
    harness.all_delivered().await;
    harness.drain_jobs(&["refund_payment"]).await;
    assert_eq!(stripe_refunds(&harness, &succeeded).len(), 1, "one refund at Stripe");
    assert_eq!(captured_and_refunded(&harness, &succeeded.provider_charge_id), (4900, 1000));
    assert_eq!(emitted_states(&harness, &succeeded).await, ["succeeded"], "emitted once");
    let after = harness.payment("inv").await;
    assert_eq!(after.amount_refunded.expect("an amount").minor_units, 1000);
    finish(harness).await;
}

/// Checks that all requests for refunds have the same body, and the number of their keys.
fn assert_one_body(harness: &Harness, keys: usize) {
    let sent = harness.posts(REFUNDS);
    assert!(sent.iter().all(|post| post.form == sent[0].form), "the same body goes again, byte for byte");
    let mut used: Vec<_> = sent.iter().map(|post| post.idempotency_key.clone().expect("a key")).collect();
    used.dedup();
    assert_eq!(used.len(), keys, "{used:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refund_whose_response_is_lost_is_sent_again_under_the_same_key() {
    let (harness, payment) = paid_harness("refund cut", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    for (number, (effect, times)) in
        [(Effect::Done, 1), (Effect::Done, 4), (Effect::NotDone, 4)].into_iter().enumerate()
    {
        harness.sandbox().clear_requests();
        harness.cut(REFUNDS, times, effect);
        let requested = refund(&harness, refund_request(&format!("r{number}"), &payment, Some(1000)))
            .await
            .expect("it is accepted");
        if times == 4 {
            until("its outcome is unknown", async || {
                get_refund(&harness, &requested.id).await.outcome_unknown_time.map(|_| ())
            })
            .await;
            assert_eq!(
                get_refund(&harness, &requested.id).await.state(),
                RefundState::Pending,
                "unknown is not failed"
            );
        }
        refunded_once(&harness, &requested).await;
        assert_one_body(&harness, 1);
    }
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_outages_rate_limits_and_timeouts_delay_a_refund_and_do_not_fail_it() {
    let options = Options { stripe_timeout: std::time::Duration::from_millis(700), ..Options::default() };
    let (harness, payment) = paid_harness("refund later", "pm_card_visa", options).await;
    let actions = [
        Action::Unavailable,
        Action::RateLimit { reason: "endpoint-rate".to_owned() },
        Action::RateLimit { reason: "lock_timeout".to_owned() },
        Action::Delay { milliseconds: 20_000, after_work: false },
    ];
    for (number, action) in actions.into_iter().enumerate() {
        harness.sandbox().clear_requests();
        let is_slow = matches!(action, Action::Delay { .. });
        harness.fault(REFUNDS, if is_slow { 1 } else { 4 }, action);
        let requested = refund(&harness, refund_request(&format!("r{number}"), &payment, Some(1000)))
            .await
            .expect("it is accepted");
        until("it was rejected", async || {
            let rejections = [Some(429), Some(503), Some(409)];
            harness.posts(REFUNDS).iter().any(|post| rejections.contains(&post.status)).then_some(())
        })
        .await;
        assert_eq!(get_refund(&harness, &requested.id).await.state(), RefundState::Pending, "delayed is not failed");
        if is_slow {
            harness.advance(Duration::seconds(30));
        }
        refunded_once(&harness, &requested).await;
        assert_one_body(&harness, 1);
    }
    finish(harness).await;
}

/// Waits until the job has found that the key of a caller's request is useless, because Stripe replays a stored 500 for
/// it or has received it with another body, and has read the list for the first time.
async fn until_key_is_dead(harness: &Harness, request_id: &str) {
    let database = harness.database().await;
    until("the key is known to be dead", async || {
        let query = "SELECT FROM stripe_requests JOIN refunds ON refunds.request_id = stripe_requests.name \
            WHERE name = $1 AND coalesce(dead_key_time, taken_key_time) IS NOT NULL AND unknown_since IS NOT NULL";
        (!database.query(query, &[&request_id]).await.expect("a result").is_empty()).then_some(())
    })
    .await;
}

fn list_reads(harness: &Harness) -> usize {
    let requests = harness.sandbox().requests();
    requests.iter().filter(|request| request.method == "GET" && request.path == REFUNDS).count()
}

/// Advances the clock past the reads after a key has become useless, and checks that no other key is used before the
/// last of them.
async fn wait_for_reads(harness: &Harness, minutes: &[i64]) {
    let sent = harness.posts(REFUNDS).len();
    for minutes in minutes {
        let before = list_reads(harness);
        assert_eq!(harness.posts(REFUNDS).len(), sent, "no other key before the reads that P2 requires");
        harness.advance(Duration::minutes(*minutes) + Duration::seconds(1));
        until("the list is read", async || (list_reads(harness) > before).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_of_a_refund_is_settled_by_the_list_of_the_charges_refunds() {
    let (harness, payment) = paid_harness("refund 500", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    // Done before the 500: the list has it at once. Done later: the read after five minutes finds it.
    for (request_id, work) in [("done", Effect::Done), ("later", Effect::DoneLater { seconds: 200 })] {
        harness.sandbox().clear_requests();
        harness.fault(REFUNDS, 1, Action::ServerError { work });
        let requested =
            refund(&harness, refund_request(request_id, &payment, Some(1000))).await.expect("it is accepted");
        if work != Effect::Done {
            until_key_is_dead(&harness, request_id).await;
            let unknown = get_refund(&harness, &requested.id).await;
            assert_eq!(unknown.state(), RefundState::Pending, "unknown is not failed");
            assert!(unknown.outcome_unknown_time.is_some(), "and visibly so");
            wait_for_reads(&harness, &[1, 4]).await;
        }
        refunded_once(&harness, &requested).await;
        assert_one_body(&harness, 1);
    }
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_refund_is_never_created_leads_to_a_new_key_after_the_reads() {
    let (harness, payment) = paid_harness("refund never", "pm_card_visa", Options::default()).await;
    harness.sandbox().clear_requests();
    harness.fault(REFUNDS, 1, Action::ServerError { work: Effect::NotDone });
    // A full refund: Stripe would refuse a second one.
    let requested = refund(&harness, refund_request("r1", &payment, None)).await.expect("it is accepted");
    until_key_is_dead(&harness, "r1").await;
    wait_for_reads(&harness, &[1, 4, 25]).await;
    refunded_once(&harness, &requested).await;
    assert_one_body(&harness, 2);
    finish(harness).await;
}

/// The row is lost, as after a restore. The one that is made anew has another id, and so another body under the old key,
/// for which Stripe has stored an error. Nothing was refunded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_refund_that_is_made_anew_after_a_stored_500_gets_a_new_key_after_the_reads() {
    let (harness, payment) = paid_harness("refund anew", "pm_card_visa", Options::default()).await;
    harness.sandbox().clear_requests();
    harness.fault(REFUNDS, 1, Action::ServerError { work: Effect::NotDone });
    let first = refund(&harness, refund_request("r1", &payment, None)).await.expect("it is accepted");
    until_key_is_dead(&harness, "r1").await;
    forget(&harness, &["refunds", "request_ids", "jobs", "stripe_requests"]).await;

    let second = refund(&harness, refund_request("r1", &payment, None)).await.expect("it is accepted");
    assert_ne!(first.id, second.id, "it is another row");
    until_key_is_dead(&harness, "r1").await;
    wait_for_reads(&harness, &[1, 4, 25]).await;
    refunded_once(&harness, &second).await;
    let sent = harness.posts(REFUNDS);
    assert!(sent.iter().any(|post| post.status == Some(400)), "Stripe knew the key, with the body of the first row");
    assert_ne!(sent.last().map(|post| &post.idempotency_key), sent.first().map(|post| &post.idempotency_key));
    finish(harness).await;
}

/// Stripe may do the work of a key hours after it has stored a 500 for it. Nothing at Stripe would prevent a second
/// partial refund.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_partial_refund_gets_no_new_key_while_stripe_may_still_do_the_work_of_the_first() {
    let (harness, payment) = paid_harness("refund part", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    for (request, work, keys) in
        [("late", Effect::DoneLater { seconds: 5 * 60 * 60 }, 1), ("never", Effect::NotDone, 2)]
    {
        harness.sandbox().clear_requests();
        harness.fault(REFUNDS, 1, Action::ServerError { work });
        let requested = refund(&harness, refund_request(request, &payment, Some(1000))).await.expect("it is accepted");
        until_key_is_dead(&harness, request).await;
        wait_for_reads(&harness, &[1, 4, 25, 23 * 60 + 30]).await;
        refunded_once(&harness, &requested).await;
        assert_one_body(&harness, keys);
    }
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_key_of_a_refund_is_not_sent_after_20_hours() {
    let (harness, payment) = paid_harness("refund old", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    for (request_id, effect, keys) in [("done", Effect::Done, 1), ("never", Effect::NotDone, 2)] {
        harness.sandbox().clear_requests();
        // The first attempt may do its work. All others are rejected until the key is too old.
        harness.cut(REFUNDS, 1, effect);
        harness.sandbox().add_fault(Fault {
            skip: 1,
            times: None,
            ..Fault::once("POST", REFUNDS, Action::Unavailable)
        });
        let requested =
            refund(&harness, refund_request(request_id, &payment, Some(1000))).await.expect("it is accepted");
        until("its outcome is unknown", async || {
            get_refund(&harness, &requested.id).await.outcome_unknown_time.map(|_| ())
        })
        .await;
        let sent_until = harness.context.environment.clock.now().unix_timestamp() + 20 * 60 * 60;
        harness.advance(Duration::hours(21));
        until("the list is read", async || (list_reads(&harness) > 0).then_some(())).await;
        harness.sandbox().clear_faults();
        lose_refund_webhooks(&harness);
        if keys == 2 {
            // The last attempt was made within 20 hours, so the reads of the half hour after it are over. Stripe forgets
            // the key a day after it.
            let sent = harness.posts(REFUNDS).len();
            harness.advance(Duration::hours(22));
            let now = harness.context.environment.clock.now();
            let due = format!("SELECT FROM jobs WHERE kind = 'refund_payment' AND run_at <= '{now}'");
            let database = harness.database().await;
            until("no read is due", async || database.query(&due, &[]).await.expect("jobs").is_empty().then_some(()))
                .await;
            assert_eq!(harness.posts(REFUNDS).len(), sent, "no other key while Stripe may know the first");
            wait_for_reads(&harness, &[60]).await;
        }
        refunded_once(&harness, &requested).await;
        assert_one_body(&harness, keys);
        let first_key = harness.posts(REFUNDS)[0].idempotency_key.clone();
        let late = harness.posts(REFUNDS);
        let late = late.iter().filter(|post| post.time > sent_until && post.idempotency_key == first_key);
        assert_eq!(late.count(), 0, "the old key is never sent again");
    }
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_revoked_key_pauses_a_refund_and_a_new_one_resumes_it() {
    let (mut harness, payment) = paid_harness("refund revoked", "pm_card_visa", Options::default()).await;
    harness.sandbox().revoke_key(&harness.billing.key);
    let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    harness
        .billing
        .wait_for("payment_provider.error", |event| (event.webhook_type == "payment_provider.error").then_some(()))
        .await
        .expect("the event is emitted");
    assert_eq!(get_refund(&harness, &requested.id).await.state(), RefundState::Pending, "it waits");
    let new_key = "sk_test_rotated";
    harness.sandbox().add_key(new_key, &harness.billing.account, None);
    let rotate = RotateIntegrationKeyRequest { id: harness.integration.id.clone(), secret_key: new_key.to_owned() };
    harness.billing.api.integrations.rotate_integration_key(rotate).await.expect("the new key is accepted");
    refunded_once(&harness, &requested).await;
    finish(harness).await;
}

/// The clock of the process that accepted the refund is ahead of that of the worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refund_is_sent_under_its_first_key_whatever_the_clocks_show() {
    let (harness, payment) = paid_harness("refund clocks", "pm_card_visa", Options::default()).await;
    lose_refund_webhooks(&harness);
    harness.sandbox().clear_requests();
    harness.cut(REFUNDS, 3, Effect::Done);
    let requested = refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("its outcome is unknown", async || {
        get_refund(&harness, &requested.id).await.outcome_unknown_time.map(|_| ())
    })
    .await;
    let later = "UPDATE refunds SET create_time = create_time + interval '1 hour'";
    harness.database().await.execute(later, &[]).await.expect("the refund is newer than its request");
    refunded_once(&harness, &requested).await;
    assert_one_body(&harness, 1);
    finish(harness).await;
}

/// The work of an abandoned key is done just as the next key is sent: Stripe refuses that one because of the refund
/// itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refusal_because_the_refund_exists_already_is_no_failure() {
    let (harness, payment) = paid_harness("refund exists", "pm_card_visa", Options::default()).await;
    let requested = refund(&harness, refund_request("r1", &payment, None)).await.expect("it is accepted");
    refunded_once(&harness, &requested).await;
    lose_refund_webhooks(&harness);
    let database = harness.database().await;
    let reset = "UPDATE refunds SET status = 'pending', provider_refund_id = NULL; \
        UPDATE stripe_requests SET generation = 2, idempotency_key = 'another' WHERE purpose = 'refund'; \
        INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
                lease_epoch) \
            SELECT gen_random_uuid(), organization_id, 'refund_payment', id, '', create_time, 1, 0, 0 FROM refunds";
    database.batch_execute(reset).await.expect("the refund is reset");
    until("the other key is refused", async || {
        harness.posts(REFUNDS).iter().any(|post| post.status == Some(400)).then_some(())
    })
    .await;
    refund_in(&harness, &requested.id, RefundState::Succeeded).await;
    harness.drain_jobs(&["refund_payment"]).await;
    assert_eq!(stripe_refunds(&harness, &requested).len(), 1);
    assert!(!emitted_states(&harness, &requested).await.contains(&"failed".to_owned()), "it never failed");
    finish(harness).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_process_killed_while_a_refund_is_sent_makes_one_refund() {
    let options = Options { program: Some(program()), ..Options::default() };
    let (mut harness, payment) = paid_harness("refund killed", "pm_card_visa", options).await;
    lose_refund_webhooks(&harness);
    harness.sandbox().clear_requests();
    // The work is done, and the process is killed before the response.
    harness.fault(REFUNDS, 1, Action::Delay { milliseconds: 60_000, after_work: true });
    refund(&harness, refund_request("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("the call is in flight", async || {
        harness.posts(REFUNDS).iter().any(|post| post.status.is_none()).then_some(())
    })
    .await;
    harness.context.environment.stop_newest_server().await;
    let database = harness.database().await;
    let state = async || {
        let row = database.query_one("SELECT status, provider_refund_id FROM refunds", &[]).await.expect("the refund");
        (row.get::<_, String>(0), row.get::<_, Option<String>>(1))
    };
    assert_eq!(state().await, ("pending".to_owned(), None), "no response has arrived");
    harness.context.environment.add_server().await.expect("another process");
    // The lease expires, and the same key is sent again.
    let provider_id = until("it is known", async || state().await.1).await;
    assert_eq!(state().await.0, "succeeded");
    harness.drain_jobs(&["refund_payment"]).await;
    let back: Vec<_> = harness.sandbox().ledger().iter().map(|entry| entry.amount_refunded).collect();
    assert_eq!(back, [1000], "one refund");
    assert_one_body(&harness, 1);
    let events = "SELECT FROM events WHERE webhook_type = 'payment.refund_updated' \
        AND payload->'refund'->>'provider_refund_id' = $1";
    assert_eq!(database.query(events, &[&provider_id]).await.expect("the log").len(), 1, "emitted once");
    harness.shutdown().await;
}
