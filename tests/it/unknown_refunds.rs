//! P2 for refunds: one request makes one refund, each way in which an answer of Stripe's can get lost made to happen by
//! the sandbox.

use paybridge::dev::sandbox::{Action, Effect, Fault};
use paybridge::dev::stage::Options;
use paybridge::dev::story::Api;
use paybridge::grpc::proto::{RefundState, RotateIntegrationKeyRequest};
use time::Duration;

use crate::cashier::{Cashier, until};
use crate::refunding::{
    REFUNDS, ask, at_stripe_of, end, made_once, paid_till, read, refund, refund_in, silence, states_told,
    taken_and_back,
};
use crate::support::program;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_storm_of_the_same_request_on_two_servers_makes_one_refund() {
    let options = Options { servers: 2, ..Options::default() };
    let (mut cashier, payment) = paid_till("refund storm", "pm_card_visa", options).await;
    cashier.fault(REFUNDS, 2, Action::Cut { work: Effect::Done });
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..10 {
        let server = cashier.scenery.stage.servers[caller % 2].grpc.clone();
        let (token, request) = (cashier.player.token.clone(), ask("r1", &payment, Some(1000)));
        callers.spawn(async move {
            let mut api = Api::connect(&server, &token).await.expect("the server is there");
            api.payments
                .refund_payment(request)
                .await
                .expect("it is accepted")
                .into_inner()
                .refund
                .expect("a refund")
                .id
        });
    }
    let ids = callers.join_all().await;
    assert!(ids.iter().all(|id| *id == ids[0]), "all name the same refund: {ids:?}");
    let made = refund_in(&cashier, &ids[0], RefundState::Succeeded).await;
    cashier.all_delivered().await;
    cashier.at_rest(&["refund_payment"]).await;
    assert_eq!(at_stripe_of(&cashier, &made).len(), 1, "one refund at Stripe");
    assert_eq!(taken_and_back(&cashier, &made.provider_charge_id), (4900, 1000));
    assert_eq!(states_told(&cashier, &made).await, ["succeeded"], "told once");
    let after = cashier.payment("inv").await;
    assert_eq!(after.amount_refunded.expect("an amount").minor_units, 1000);
    end(cashier).await;
}

/// The sent refunds: all with the same body, and this many keys.
fn frozen_bodies(cashier: &Cashier, keys: usize) {
    let sent = cashier.posts(REFUNDS);
    assert!(sent.iter().all(|post| post.form == sent[0].form), "the same body goes again, byte for byte");
    let mut used: Vec<_> = sent.iter().map(|post| post.idempotency_key.clone().expect("a key")).collect();
    used.dedup();
    assert_eq!(used.len(), keys, "{used:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refund_whose_answer_is_lost_goes_again_under_the_same_key() {
    let (cashier, payment) = paid_till("refund cut", "pm_card_visa", Options::default()).await;
    silence(&cashier);
    for (number, (effect, times)) in
        [(Effect::Done, 1), (Effect::Done, 4), (Effect::NotDone, 4)].into_iter().enumerate()
    {
        cashier.sandbox().forget_requests();
        cashier.cut(REFUNDS, times, effect);
        let asked = refund(&cashier, ask(&format!("r{number}"), &payment, Some(1000))).await.expect("it is accepted");
        if times == 4 {
            until("its outcome is unknown", || async {
                read(&cashier, &asked.id).await.outcome_unknown_time.map(|_| ())
            })
            .await;
            assert_eq!(read(&cashier, &asked.id).await.state(), RefundState::Pending, "unknown is not failed");
        }
        made_once(&cashier, &asked).await;
        frozen_bodies(&cashier, 1);
    }
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_an_outage_a_limit_and_a_timeout_of_refunds_mean_later_not_failed() {
    let options = Options { stripe_timeout: std::time::Duration::from_millis(700), ..Options::default() };
    let (cashier, payment) = paid_till("refund later", "pm_card_visa", options).await;
    let actions = [
        Action::Unavailable,
        Action::RateLimit { reason: "endpoint-rate".to_owned() },
        Action::RateLimit { reason: "lock_timeout".to_owned() },
        Action::Delay { milliseconds: 20_000, after_work: false },
    ];
    for (number, action) in actions.into_iter().enumerate() {
        cashier.sandbox().forget_requests();
        let is_slow = matches!(action, Action::Delay { .. });
        cashier.fault(REFUNDS, if is_slow { 1 } else { 4 }, action);
        let asked = refund(&cashier, ask(&format!("r{number}"), &payment, Some(1000))).await.expect("it is accepted");
        until("it was turned away", || async {
            let away = [Some(429), Some(503), Some(409)];
            cashier.posts(REFUNDS).iter().any(|post| away.contains(&post.status)).then_some(())
        })
        .await;
        assert_eq!(read(&cashier, &asked.id).await.state(), RefundState::Pending, "later is not failed");
        if is_slow {
            cashier.advance(Duration::seconds(30));
        }
        made_once(&cashier, &asked).await;
        frozen_bodies(&cashier, 1);
    }
    end(cashier).await;
}

/// Waits until the job has found that the newest key is dead.
async fn dead_key_seen(cashier: &Cashier) {
    let database = cashier.database().await;
    until("the key is known to be dead", || async {
        let query = "SELECT FROM refunds WHERE dead_key_time IS NOT NULL";
        (!database.query(query, &[]).await.expect("a look").is_empty()).then_some(())
    })
    .await;
}

fn list_reads(cashier: &Cashier) -> usize {
    let requests = cashier.sandbox().requests();
    requests.iter().filter(|request| request.method == "GET" && request.path == REFUNDS).count()
}

/// Moves the clock over the reads after a dead key; meanwhile no other key is used.
async fn wait_out(cashier: &Cashier, minutes: &[i64]) {
    let sent = cashier.posts(REFUNDS).len();
    for minutes in minutes {
        let before = list_reads(cashier);
        assert_eq!(cashier.posts(REFUNDS).len(), sent, "no other key before the reads that P2 names");
        cashier.advance(Duration::minutes(*minutes) + Duration::seconds(1));
        until("the list is read", || async { (list_reads(cashier) > before).then_some(()) }).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_of_a_refund_is_settled_by_the_list_of_the_charges_refunds() {
    let (cashier, payment) = paid_till("refund 500", "pm_card_visa", Options::default()).await;
    silence(&cashier);
    // Done before the 500: the list has it at once. Done later: the read after five minutes finds it.
    for (request_id, work) in [("done", Effect::Done), ("later", Effect::DoneLater { seconds: 200 })] {
        cashier.sandbox().forget_requests();
        cashier.fault(REFUNDS, 1, Action::ServerError { work });
        let asked = refund(&cashier, ask(request_id, &payment, Some(1000))).await.expect("it is accepted");
        if work != Effect::Done {
            dead_key_seen(&cashier).await;
            let unknown = read(&cashier, &asked.id).await;
            assert_eq!(unknown.state(), RefundState::Pending, "unknown is not failed");
            assert!(unknown.outcome_unknown_time.is_some(), "and is visible");
            wait_out(&cashier, &[1, 4]).await;
        }
        made_once(&cashier, &asked).await;
        frozen_bodies(&cashier, 1);
    }
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_stored_500_whose_refund_is_never_made_leads_to_a_new_key_after_the_reads() {
    let (cashier, payment) = paid_till("refund never", "pm_card_visa", Options::default()).await;
    cashier.sandbox().forget_requests();
    cashier.fault(REFUNDS, 1, Action::ServerError { work: Effect::NotDone });
    // Of all that was taken: a second one would be refused.
    let asked = refund(&cashier, ask("r1", &payment, None)).await.expect("it is accepted");
    dead_key_seen(&cashier).await;
    wait_out(&cashier, &[1, 4, 25]).await;
    made_once(&cashier, &asked).await;
    frozen_bodies(&cashier, 2);
    end(cashier).await;
}

/// Stripe may do the work of a key hours after it has stored an error of its own for it. Of a part, nothing would keep a
/// second refund from going through beside it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_part_is_not_sent_under_another_key_while_stripe_may_still_do_the_work_of_the_first() {
    let (cashier, payment) = paid_till("refund part", "pm_card_visa", Options::default()).await;
    silence(&cashier);
    for (request, work, keys) in
        [("late", Effect::DoneLater { seconds: 5 * 60 * 60 }, 1), ("never", Effect::NotDone, 2)]
    {
        cashier.sandbox().forget_requests();
        cashier.fault(REFUNDS, 1, Action::ServerError { work });
        let asked = refund(&cashier, ask(request, &payment, Some(1000))).await.expect("it is accepted");
        dead_key_seen(&cashier).await;
        wait_out(&cashier, &[1, 4, 25, 23 * 60 + 30]).await;
        made_once(&cashier, &asked).await;
        frozen_bodies(&cashier, keys);
    }
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_no_key_of_a_refund_is_sent_after_20_hours() {
    let (cashier, payment) = paid_till("refund old", "pm_card_visa", Options::default()).await;
    silence(&cashier);
    for (request_id, effect, keys) in [("done", Effect::Done, 1), ("never", Effect::NotDone, 2)] {
        cashier.sandbox().forget_requests();
        // The first try may do its work; whatever follows is turned away until the key is too old.
        cashier.cut(REFUNDS, 1, effect);
        cashier.sandbox().add_fault(Fault {
            skip: 1,
            times: None,
            ..Fault::once("POST", REFUNDS, Action::Unavailable)
        });
        let asked = refund(&cashier, ask(request_id, &payment, Some(1000))).await.expect("it is accepted");
        until("its outcome is unknown", || async { read(&cashier, &asked.id).await.outcome_unknown_time.map(|_| ()) })
            .await;
        let sent_until = cashier.scenery.stage.clock.now().unix_timestamp() + 20 * 60 * 60;
        cashier.advance(Duration::hours(21));
        until("the list is read", || async { (list_reads(&cashier) > 0).then_some(()) }).await;
        cashier.sandbox().clear_faults();
        silence(&cashier);
        if keys == 2 {
            dead_key_seen(&cashier).await;
            // The last send was at 20 hours at most, and the first read at 21.
            wait_out(&cashier, &[1, 4, 25, 22 * 60 + 30]).await;
        }
        made_once(&cashier, &asked).await;
        frozen_bodies(&cashier, keys);
        let first_key = cashier.posts(REFUNDS)[0].idempotency_key.clone();
        let late = cashier.posts(REFUNDS);
        let late = late.iter().filter(|post| post.time > sent_until && post.idempotency_key == first_key);
        assert_eq!(late.count(), 0, "the old key is never sent again");
    }
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_revoked_key_pauses_a_refund_and_a_new_one_resumes_it() {
    let (mut cashier, payment) = paid_till("refund revoked", "pm_card_visa", Options::default()).await;
    cashier.sandbox().revoke_key(&cashier.player.key);
    let asked = refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    cashier
        .player
        .event("payment_provider.error", |event| (event.webhook_type == "payment_provider.error").then_some(()))
        .await
        .expect("it is told");
    assert_eq!(read(&cashier, &asked.id).await.state(), RefundState::Pending, "it waits");
    let new_key = "sk_test_rotated";
    cashier.sandbox().add_key(new_key, &cashier.player.account, None);
    let rotate = RotateIntegrationKeyRequest { id: cashier.integration.id.clone(), secret_key: new_key.to_owned() };
    cashier.player.api.integrations.rotate_integration_key(rotate).await.expect("the new key is taken");
    made_once(&cashier, &asked).await;
    end(cashier).await;
}

/// The work of a key that was given up is done in the very moment in which the next one is sent: what stands in the way
/// of that one is the refund itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p2_a_refusal_because_the_refund_is_made_already_is_no_failure() {
    let (cashier, payment) = paid_till("refund in the way", "pm_card_visa", Options::default()).await;
    let asked = refund(&cashier, ask("r1", &payment, None)).await.expect("it is accepted");
    made_once(&cashier, &asked).await;
    silence(&cashier);
    let database = cashier.database().await;
    let forget = "UPDATE refunds SET status = 'pending', provider_refund_id = NULL; \
        UPDATE frozen_requests SET number = 2, idempotency_key = 'another' WHERE purpose = 'refund'; \
        INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, lease_epoch) \
            SELECT gen_random_uuid(), organization_id, 'refund_payment', id, '', create_time, 1, 0, 0 FROM refunds";
    database.batch_execute(forget).await.expect("it is forgotten");
    until("the other key was refused", || async {
        cashier.posts(REFUNDS).iter().any(|post| post.status == Some(400)).then_some(())
    })
    .await;
    refund_in(&cashier, &asked.id, RefundState::Succeeded).await;
    cashier.at_rest(&["refund_payment"]).await;
    assert_eq!(at_stripe_of(&cashier, &asked).len(), 1);
    assert!(!states_told(&cashier, &asked).await.contains(&"failed".to_owned()), "it never failed");
    end(cashier).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_process_killed_while_a_refund_is_sent_makes_one_refund() {
    let options = Options { program: Some(program()), ..Options::default() };
    let (mut cashier, payment) = paid_till("refund killed", "pm_card_visa", options).await;
    silence(&cashier);
    cashier.sandbox().forget_requests();
    // The work is done, and whoever asked for it does not live to hear of it.
    cashier.fault(REFUNDS, 1, Action::Delay { milliseconds: 60_000, after_work: true });
    refund(&cashier, ask("r1", &payment, Some(1000))).await.expect("it is accepted");
    until("the call is in flight", || async {
        cashier.posts(REFUNDS).iter().any(|post| post.status.is_none()).then_some(())
    })
    .await;
    cashier.scenery.stage.end_newest_server().await;
    let database = cashier.database().await;
    let state = async || {
        let row = database.query_one("SELECT status, provider_refund_id FROM refunds", &[]).await.expect("the refund");
        (row.get::<_, String>(0), row.get::<_, Option<String>>(1))
    };
    assert_eq!(state().await, ("pending".to_owned(), None), "nobody has heard of it");
    cashier.scenery.stage.add_server().await.expect("another process");
    // The lease runs out, and the same key goes again.
    let made = until("it is known", || async { state().await.1 }).await;
    assert_eq!(state().await.0, "succeeded");
    cashier.at_rest(&["refund_payment"]).await;
    let back: Vec<_> = cashier.sandbox().ledger().iter().map(|entry| entry.amount_refunded).collect();
    assert_eq!(back, [1000], "one refund");
    frozen_bodies(&cashier, 1);
    let told = "SELECT FROM events WHERE webhook_type = 'payment.refund_updated' \
        AND payload->'refund'->>'provider_refund_id' = $1";
    assert_eq!(database.query(told, &[&made]).await.expect("the log").len(), 1, "told once");
    cashier.end().await;
}
