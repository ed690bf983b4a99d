//! Stripe's events list beside webhooks: what they missed is found there, what they brought is known there, and a read that
//! was cut off goes on (P6).

use paybridge::app::Periods;
use paybridge::dev::sandbox::{Action, Fault};
use paybridge::grpc::proto::PaymentState;
use time::Duration;

use crate::cashier::{Cashier, at_stripe, until};
use crate::links::GOOD_IBAN;
use crate::reconcile::{NEVER, has_default, lose, mended, mended_reaches, passing, refunds, session, till};

/// Only the events list is read.
fn list_alone() -> Periods {
    Periods { sweep: NEVER, endpoint: NEVER, ..Periods::default() }
}

/// The same, with an hour between two reads: none is due before the test moves the clock.
fn list_alone_hourly() -> Periods {
    Periods { list_test: Duration::HOUR, ..list_alone() }
}

/// Waits until no read of the list is under way: what is recorded or changed from now on belongs to the next read.
async fn no_read_under_way(cashier: &Cashier) {
    let database = cashier.database().await;
    until("no read of the list is under way", || async {
        let query = "SELECT FROM jobs WHERE kind = 'poll_events' AND lease_until IS NULL";
        database.query_opt(query, &[]).await.expect("a look").map(|_| ())
    })
    .await;
}

/// How many events of Stripe's are stored.
async fn deliveries(cashier: &Cashier) -> i64 {
    let database = cashier.database().await;
    database.query_one("SELECT count(*) FROM deliveries", &[]).await.expect("a count").get(0)
}

/// Every webhook is lost; a page is completed, an invoice collected, money sent back, a method detached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_what_every_webhook_missed_is_found_in_the_events_list_and_a_repeat_changes_nothing() {
    let mut cashier = till("all lost", list_alone()).await;
    lose(&cashier, "*");
    let before = mended(&cashier, "event").await;
    cashier.bare_customer("hooli").await;
    let page = session(&mut cashier).await;
    cashier.sandbox().complete_session(&page, GOOD_IBAN, true).expect("the page is completed");
    passing(&mut cashier, Duration::minutes(1), "the method is found", has_default).await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Processing).await;
    until("it is at the bank", || async { (cashier.live_charges("inv") == 1).then_some(()) }).await;
    cashier.advance(Duration::days(6));
    let paid = passing(&mut cashier, Duration::minutes(1), "the debit's end is found", async |cashier| {
        let payment = cashier.payment("inv").await;
        (payment.state() == PaymentState::Succeeded).then_some(payment)
    })
    .await;
    let body = format!("payment_intent={}&amount=900", paid.provider_payment_intent_id);
    at_stripe(&cashier, "/v1/refunds", &body).await;
    passing(&mut cashier, Duration::minutes(1), "the refund is found", async |cashier| {
        (refunds(cashier) == ["succeeded"]).then_some(())
    })
    .await;
    let method = cashier.methods("hooli").await[0].provider_payment_method_id.clone();
    cashier.sandbox().detach_by_hand(&method).expect("it is detached");
    passing(&mut cashier, Duration::minutes(1), "the detached method is found", async |cashier| {
        cashier.methods("hooli").await.is_empty().then_some(())
    })
    .await;
    mended_reaches(&cashier, "event", before + 4).await;

    // Now all of it comes by webhook after all.
    cashier.at_rest(&["apply_delivery", "push_default_method"]).await;
    cashier.sandbox().clear_faults();
    let told = cashier.events().await.len();
    let events = cashier.sandbox().events(&cashier.player.account);
    let stored = deliveries(&cashier).await;
    for event in &events {
        cashier.sandbox().resend(event["id"].as_str().expect("an id")).expect("it is sent");
    }
    cashier.all_delivered().await;
    assert_eq!(cashier.events().await.len(), told, "nothing is told twice");
    assert_eq!(deliveries(&cashier).await, stored, "nothing was new");
    let after = cashier.payment("inv").await;
    assert_eq!(
        (after.state(), after.amount_refunded.map(|money| money.minor_units)),
        (PaymentState::Succeeded, Some(900))
    );
    cashier.end().await;
}

/// What webhooks brought costs nothing more: the list is read, and no object is read for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_events_that_webhooks_brought_are_known_to_the_list_by_their_id() {
    let mut cashier = till("all told", list_alone_hourly()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.pay("hooli", "inv").await;
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    cashier.all_delivered().await;
    let told = cashier.events().await.len();
    let stored = deliveries(&cashier).await;
    cashier.sandbox().forget_requests();
    cashier.advance(Duration::minutes(61));
    until("the list is read", || async {
        let is_read = |path: &str| path == "/v1/events";
        cashier.sandbox().requests().iter().any(|request| is_read(&request.path)).then_some(())
    })
    .await;
    no_read_under_way(&cashier).await;
    cashier.at_rest(&["apply_delivery"]).await;
    let others: Vec<String> = cashier.sandbox().requests().into_iter().map(|request| request.path).collect();
    assert!(others.iter().all(|path| path == "/v1/events"), "nothing else is read: {others:?}");
    assert_eq!(cashier.events().await.len(), told, "nothing is told twice");
    assert_eq!(deliveries(&cashier).await, stored, "nothing was new");
    cashier.end().await;
}

/// What a request says of a parameter.
fn value(form: &[(String, String)], name: &str) -> Option<String> {
    form.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
}

/// Reads are rationed: what is not ours is not read again at every look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_others_move_the_reads_of_the_list_on() {
    let mut cashier = till("strangers", list_alone()).await;
    // Nothing of ours happens: Stripe tells of strangers alone, in events that nobody asked for.
    cashier.advance(Duration::hours(1));
    at_stripe(&cashier, "/v1/customers", "name=Stranger").await;
    let told = cashier.scenery.stage.clock.now().unix_timestamp();
    passing(&mut cashier, Duration::minutes(1), "the read begins after them", async |cashier| {
        let asked = cashier.sandbox().requests();
        let last = asked.iter().rev().find(|request| request.path == "/v1/events")?;
        let since = value(&last.form, "created[gte]")?.parse::<i64>().ok()?;
        // They overlap by two minutes.
        (since >= told - 125).then_some(())
    })
    .await;
    cashier.end().await;
}

/// Reads are rationed, and Stripe may be away for hours: a look that was cut off goes on where it was (P6).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p6_a_read_of_the_list_that_was_cut_off_goes_on_from_its_last_page() {
    let mut cashier = till("cut off", list_alone_hourly()).await;
    // Three pages of strangers, none of them told by a webhook.
    for _ in 0..250 {
        at_stripe(&cashier, "/v1/customers", "name=Stranger").await;
    }
    cashier.sandbox().forget_requests();
    let away = Fault { skip: 2, ..Fault::once("GET", "/v1/events", Action::Unavailable) };
    cashier.sandbox().add_fault(away);
    let looks = |cashier: &Cashier| -> Vec<Option<String>> {
        let asked = cashier.sandbox().requests().into_iter().filter(|request| request.path == "/v1/events");
        asked.map(|request| value(&request.form, "starting_after")).collect()
    };
    passing(&mut cashier, Duration::minutes(10), "a second look begins", async |cashier| {
        (looks(cashier).iter().filter(|after| after.is_none()).count() >= 2).then_some(())
    })
    .await;
    no_read_under_way(&cashier).await;
    let read = looks(&cashier);
    assert!(read[0].is_none() && read[1].is_some() && read[2].is_some() && read[1] != read[2], "pages: {read:?}");
    assert_eq!(read[3], read[2], "the page that failed is the next to be read");
    assert!(read[4].is_none(), "it was the last: {read:?}");
    let database = cashier.database().await;
    let query = "SELECT extract(epoch FROM poll_time)::bigint FROM integrations";
    let newest: i64 = database.query_one(query, &[]).await.expect("a look").get(0);
    let all = cashier.sandbox().events(&cashier.player.account);
    let told = all.iter().filter_map(|event| event["created"].as_i64()).max();
    assert_eq!(Some(newest), told, "and the next look goes back to the newest that it has read");

    // An event is listed for 30 days. A place that Stripe no longer knows is left, and the look begins anew.
    let lost = "UPDATE integrations SET list_walk_after = 'evt_gone', list_walk_since = poll_time";
    database.execute(lost, &[]).await.expect("a walk from a place that is gone");
    cashier.sandbox().forget_requests();
    passing(&mut cashier, Duration::minutes(10), "the list is read from its newest on", async |cashier| {
        let read = looks(cashier);
        (read.len() > 1 && read.last().is_some_and(Option::is_none)).then_some(())
    })
    .await;
    assert_eq!(looks(&cashier)[0].as_deref(), Some("evt_gone"));
    cashier.end().await;
}
