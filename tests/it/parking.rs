//! Jobs that fail for a reason of their own are parked, in an operator's sight and in nobody's way; those that fail because
//! Stripe is away never are.

use std::process::Command;

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{CreateCustomerRequest, Customer, PaymentState, RotateIntegrationKeyRequest};
use time::Duration;
use tokio_postgres::Client;

use crate::cashier::{Cashier, until};
use crate::links::{DECLINING, WANTS_HOLDER, supports_3ds};
use crate::support::{http, program};

/// From now on no event of this invoice can be written.
async fn poison(database: &Client, invoice: &str) {
    let block = format!(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            IF NEW.payload::text LIKE '%{invoice}%' THEN RAISE EXCEPTION 'this one is poison'; END IF; \
            RETURN NEW; END $$; \
        CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION poison();"
    );
    database.batch_execute(&block).await.expect("the trigger is set");
}

/// Failures in all and of its own, and whether it is parked, of the only job of a kind.
async fn job(database: &Client, kind: &str) -> Option<(i32, i32, bool)> {
    let query = "SELECT failures, own_failures, park_time IS NOT NULL FROM jobs WHERE kind = $1";
    let row = database.query_opt(query, &[&kind]).await.expect("a look");
    row.map(|row| (row.get(0), row.get(1), row.get(2)))
}

/// What `paybridge jobs …` prints.
fn jobs(cashier: &Cashier, arguments: &[&str]) -> String {
    let mut command = Command::new(program());
    command.arg("jobs").args(arguments).env("DATABASE_URL", &cashier.scenery.stage.database_url);
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "jobs {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_job_is_parked_the_others_go_on_and_retry_replays_it() {
    let mut cashier = Cashier::new("poison", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    let database = cashier.database().await;
    poison(&database, "inv-poison").await;
    let poisoned = cashier.pay("hooli", "inv-poison").await;
    let parked = until("it is parked", || async {
        // Its pauses grow to half an hour.
        cashier.advance(Duration::minutes(31));
        job(&database, "submit_payment").await.filter(|(.., is_parked)| *is_parked)
    })
    .await;
    assert_eq!((parked.0, parked.1), (20, 20), "after 20 failures of its own");

    // It blocks nothing beside it, and a request that comes again, as after a lost answer, does not bring it back.
    cashier.pay("hooli", "inv-good").await;
    cashier.payment_in("inv-good", PaymentState::Succeeded).await;
    cashier.pay("hooli", "inv-poison").await;
    cashier.advance(Duration::hours(2));
    cashier.pay("hooli", "inv-better").await;
    cashier.payment_in("inv-better", PaymentState::Succeeded).await;
    assert_eq!(job(&database, "submit_payment").await.map(|job| (job.1, job.2)), Some((20, true)), "still parked");

    // An operator sees it, by the payment's id and with the reason.
    let listed = jobs(&cashier, &["list", "--parked"]);
    let line = listed.lines().nth(1).expect("one job is listed");
    for part in ["submit_payment", &poisoned.id, &cashier.player.organization, "this one is poison"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let elsewhere = jobs(&cashier, &["list", "--organization", &poisoned.id]);
    assert_eq!(elsewhere.lines().count(), 1, "nothing of another organization: {elsewhere}");
    let worker = cashier.scenery.stage.add_worker(&program()).await.expect("a worker");
    until("the metrics show it", || async {
        let metrics = http().get(format!("{worker}/metrics")).send().await.ok()?.text().await.ok()?;
        metrics.contains(r#"paybridge_jobs_parked{kind="submit_payment"} 1"#).then_some(())
    })
    .await;

    database.batch_execute("DROP TRIGGER poison ON events").await.expect("it is mended");
    let id = line.split_whitespace().next().expect("an id");
    assert!(jobs(&cashier, &["retry", id]).starts_with("1 job is due"));
    cashier.payment_in("inv-poison", PaymentState::Succeeded).await;
    assert_eq!(cashier.live_charges("inv-poison"), 1, "one charge");
    assert!(jobs(&cashier, &["retry", "--all-parked"]).starts_with("0 jobs are due"), "none is left");
    cashier.end().await;
}

/// A parked job of a kind, as if it had failed 20 times for a reason that is mended by now.
async fn park(database: &Client, kind: &str, organization: &str, object: &str) {
    let park = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, own_failures, \
             lease_epoch, park_time, last_error) \
         VALUES (gen_random_uuid(), '{organization}', '{kind}', '{object}', '', now() + interval '1 year', 1, 20, 20, \
             20, now(), 'out of order')"
    );
    database.execute(&park, &[]).await.expect("it is parked");
}

/// What a caller asks for, and is told is accepted, is never left to a job that nobody tries.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_callers_request_brings_a_parked_job_back() {
    let mut cashier = Cashier::new("asked for again", Options::default()).await;
    let provider_id = cashier.customer("hooli", DECLINING).await;
    let database = cashier.database().await;
    let mut payments = Vec::new();
    for invoice in ["inv-retried", "inv-canceled", "inv-canceled-twice", "inv-changed-twice"] {
        payments.push(cashier.pay("hooli", invoice).await);
        cashier.payment_in(invoice, PaymentState::Failed).await;
    }
    cashier.add_method("hooli", &provider_id, "pm_card_visa").await;
    cashier.all_delivered().await;
    cashier.at_rest(&["submit_payment"]).await;
    for payment in &payments {
        park(&database, "submit_payment", &cashier.player.organization, &payment.id).await;
    }
    cashier.retry("retry", &payments[0], false).await.expect("the retry is accepted");
    cashier.payment_in("inv-retried", PaymentState::Succeeded).await;
    cashier.cancel(&payments[1]).await.expect("the cancellation is accepted");
    cashier.payment_in("inv-canceled", PaymentState::Canceled).await;
    // The cancellation was accepted before, and its job has been parked since: nothing is new about the payment.
    let errand =
        r#"UPDATE payments SET errand = '{"kind": "cancel"}', cancel_request_time = now() WHERE invoice_id = $1"#;
    database.execute(errand, &[&"inv-canceled-twice"]).await.expect("the errand");
    cashier.cancel(&payments[2]).await.expect("the cancellation is accepted again");
    cashier.payment_in("inv-canceled-twice", PaymentState::Canceled).await;
    let errand =
        r#"UPDATE payments SET errand = '{"kind": "change_amount", "minor_units": 3000}' WHERE invoice_id = $1"#;
    database.execute(errand, &[&"inv-changed-twice"]).await.expect("the errand");
    cashier.change_amount(&payments[3], 3000).await.expect("the change is accepted again");
    cashier
        .payment_when("inv-changed-twice", "has the amount", |payment| {
            payment.amount.as_ref().is_some_and(|amount| amount.minor_units == 3000)
        })
        .await;
    cashier.end().await;
}

/// The drain of a disconnect comes by every minute: it is no caller, and what is parked stays in sight.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disconnect_that_waits_leaves_a_job_parked() {
    let mut cashier = Cashier::new("drain", Options::default()).await;
    supports_3ds(&mut cashier).await;
    cashier.customer("hooli", WANTS_HOLDER).await;
    cashier.pay("hooli", "inv").await;
    let asked = cashier.payment_in("inv", PaymentState::RequiresAction).await;
    cashier.at_rest(&["submit_payment"]).await;
    let database = cashier.database().await;
    park(&database, "submit_payment", &cashier.player.organization, &asked.id).await;
    cashier.disconnect(false).await;
    let query = "SELECT asked, park_time IS NOT NULL FROM jobs WHERE kind = 'submit_payment'";
    let job = until("it is asked for", || async {
        let job = database.query_opt(query, &[]).await.expect("a look")?;
        (job.get::<_, i64>(0) > 1).then_some(job)
    })
    .await;
    assert!(job.get::<_, bool>(1), "and parked still");
    cashier.end().await;
}

/// Webhooks come by the thousand, and again and again: what is parked waits for somebody who wants it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_from_stripe_leave_a_job_parked_and_a_mended_key_brings_it_back() {
    let mut cashier = Cashier::new("news", Options::default()).await;
    let provider_id = cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    let database = cashier.database().await;
    let customer = cashier.player.customer("hooli").await.expect("a customer").id;
    park(&database, "push_default_method", &cashier.player.organization, &customer).await;
    cashier.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    cashier.at_rest(&["apply_delivery"]).await;
    let query = "SELECT asked, park_time IS NOT NULL FROM jobs WHERE kind = 'push_default_method'";
    let row = database.query_one(query, &[]).await.expect("the job");
    assert_eq!((row.get(0), row.get(1)), (2_i64, true), "asked for again, and parked still");
    let rotate =
        RotateIntegrationKeyRequest { id: cashier.integration.id.clone(), secret_key: cashier.player.key.clone() };
    cashier.player.api.integrations.rotate_integration_key(rotate).await.expect("the key is taken");
    cashier.at_rest(&["push_default_method"]).await;
    cashier.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_because_stripe_is_away_is_never_parked() {
    let mut cashier = Cashier::new("away for long", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    cashier.all_delivered().await;
    let database = cashier.database().await;
    cashier.sandbox().add_fault(Fault { times: None, action: Action::Unavailable, ..Fault::default() });
    cashier.pay("hooli", "inv").await;
    let newcomer = CreateCustomerRequest {
        request_id: "gavin".to_owned(),
        external_id: "gavin".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    cashier.player.api.customers.create_customer(newcomer).await.expect("it is accepted");
    until("both have failed more often than would park them", || async {
        cashier.advance(Duration::minutes(5) + Duration::SECOND);
        let jobs = [job(&database, "submit_payment").await?, job(&database, "sync_customer").await?];
        jobs.iter().all(|(failures, ..)| *failures >= 25).then_some(())
    })
    .await;
    let query = "SELECT max(own_failures), count(park_time) FROM jobs";
    let row = database.query_one(query, &[]).await.expect("a look");
    assert_eq!((row.get(0), row.get(1)), (Some(0), 0_i64), "none for a reason of its own");
    cashier.sandbox().clear_faults();
    cashier.advance(Duration::minutes(5) + Duration::SECOND);
    cashier.payment_in("inv", PaymentState::Succeeded).await;
    let is_made = |customer: &Customer| !customer.provider_customer_id.is_empty();
    cashier.player.customer_when("gavin", "is made at Stripe", is_made).await.expect("it goes on");
    cashier.end().await;
}

/// What watches over an integration has no end and no other hands: it fails for as long as it fails, and then goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_reconciler_is_never_parked() {
    let mut cashier = Cashier::new("watch", Options::default()).await;
    cashier.customer("hooli", "pm_card_visa").await;
    let database = cashier.database().await;
    let block = "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            RAISE EXCEPTION 'nobody sweeps'; END $$; \
        CREATE TRIGGER poison BEFORE UPDATE OF sweep_time ON integrations FOR EACH ROW EXECUTE FUNCTION poison();";
    database.batch_execute(block).await.expect("the trigger is set");
    until("it has failed for long", || async {
        cashier.advance(Duration::minutes(31));
        job(&database, "sweep_integration").await.filter(|(_, own, _)| *own > 22)
    })
    .await;
    let watched = job(&database, "sweep_integration").await.expect("the job");
    assert!(!watched.2, "it is tried still");
    database.batch_execute("DROP TRIGGER poison ON integrations").await.expect("the trigger is gone");
    until("it sweeps again", || async {
        cashier.advance(Duration::minutes(31));
        job(&database, "sweep_integration").await.filter(|(failures, ..)| *failures == 0)
    })
    .await;
    cashier.end().await;
}
