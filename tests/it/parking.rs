//! A job that keeps failing for a reason of its own is parked: an operator can see it, and it blocks nothing. A job
//! that fails because Stripe is unavailable is never parked.

use std::process::Command;

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::test_environment::Options;
use paybridge::grpc::proto::{CreateCustomerRequest, Customer, PaymentState, RotateIntegrationKeyRequest};
use time::Duration;
use tokio_postgres::Client;

use crate::support::customers::{CHALLENGE_CARD, DECLINING_CARD};
use crate::support::harness::Harness;
use crate::support::payments::enable_3ds;
use crate::support::wait::until;
use crate::support::{http, program};

/// Makes every insert of an event about this invoice fail.
async fn block_events(database: &Client, invoice: &str) {
    let block = format!(
        "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            IF NEW.payload::text LIKE '%{invoice}%' THEN RAISE EXCEPTION 'this one is poison'; END IF; \
            RETURN NEW; END $$; \
        CREATE TRIGGER poison BEFORE INSERT ON events FOR EACH ROW EXECUTE FUNCTION poison();"
    );
    database.batch_execute(&block).await.expect("the trigger is set");
}

/// The only job of a kind: all failures, failures of its own, and whether it is parked.
async fn job(database: &Client, kind: &str) -> Option<(i32, i32, bool)> {
    let query = "SELECT failures, own_failures, park_time IS NOT NULL FROM jobs WHERE kind = $1";
    let row = database.query_opt(query, &[&kind]).await.expect("a result");
    row.map(|row| (row.get(0), row.get(1), row.get(2)))
}

/// The output of `paybridge jobs …`.
fn jobs(harness: &Harness, arguments: &[&str]) -> String {
    let mut command = Command::new(program());
    command.arg("jobs").args(arguments).env("DATABASE_URL", &harness.context.environment.database_url);
    let output = command.output().expect("the command runs");
    assert!(output.status.success(), "jobs {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_job_is_parked_blocks_nothing_and_runs_again_after_a_retry() {
    let mut harness = Harness::new("poison", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    let database = harness.database().await;
    block_events(&database, "inv-poison").await;
    let poisoned = harness.pay("hooli", "inv-poison").await;
    let parked = until("it is parked", async || {
        // Its backoff grows to half an hour.
        harness.advance_slowly(Duration::minutes(31));
        job(&database, "submit_payment").await.filter(|(.., is_parked)| *is_parked)
    })
    .await;
    assert_eq!((parked.0, parked.1), (20, 20), "after 20 failures of its own");

    // It blocks no other job, and a repeated request does not unpark it.
    harness.pay("hooli", "inv-good").await;
    harness.payment_in("inv-good", PaymentState::Succeeded).await;
    harness.pay("hooli", "inv-poison").await;
    harness.advance(Duration::hours(2));
    harness.pay("hooli", "inv-better").await;
    harness.payment_in("inv-better", PaymentState::Succeeded).await;
    assert_eq!(job(&database, "submit_payment").await.map(|job| (job.1, job.2)), Some((20, true)), "still parked");

    // An operator sees it, with the payment's id and the reason.
    let listed = jobs(&harness, &["list", "--parked"]);
    let line = listed.lines().nth(1).expect("one job is listed");
    for part in ["submit_payment", &poisoned.id, &harness.billing.organization, "this one is poison"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let other_organization = jobs(&harness, &["list", "--organization", &poisoned.id]);
    assert_eq!(other_organization.lines().count(), 1, "none of another organization: {other_organization}");
    let worker = harness.context.environment.add_worker(&program()).await.expect("a worker");
    until("the metrics show it", async || {
        let metrics = http().get(format!("{worker}/metrics")).send().await.ok()?.text().await.ok()?;
        metrics.contains(r#"paybridge_jobs_parked{kind="submit_payment"} 1"#).then_some(())
    })
    .await;

    database.batch_execute("DROP TRIGGER poison ON events").await.expect("the trigger is dropped");
    let id = line.split_whitespace().next().expect("an id");
    assert!(jobs(&harness, &["retry", id]).starts_with("1 job is due"));
    harness.payment_in("inv-poison", PaymentState::Succeeded).await;
    assert_eq!(harness.live_charges("inv-poison"), 1, "one charge");
    assert!(jobs(&harness, &["retry", "--all-parked"]).starts_with("0 jobs are due"), "none is left");
    harness.shutdown().await;
}

/// Inserts a parked job, as if it had failed 20 times for a reason that no longer exists.
async fn park(database: &Client, kind: &str, organization: &str, object: &str) {
    let park = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
             own_failures, lease_epoch, park_time, last_error) \
         VALUES (gen_random_uuid(), '{organization}', '{kind}', '{object}', '', now() + interval '1 year', 1, 20, 20, \
             20, now(), 'out of order')"
    );
    database.execute(&park, &[]).await.expect("it is parked");
}

/// An accepted request is never left to a parked job.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_new_request_unparks_a_job() {
    let mut harness = Harness::new("requested again", Options::default()).await;
    let provider_id = harness.customer("hooli", DECLINING_CARD).await;
    let database = harness.database().await;
    let mut payments = Vec::new();
    for invoice in ["inv-retried", "inv-canceled", "inv-canceled-twice", "inv-changed-twice"] {
        payments.push(harness.pay("hooli", invoice).await);
        harness.payment_in(invoice, PaymentState::Failed).await;
    }
    harness.add_method("hooli", &provider_id, "pm_card_visa").await;
    harness.all_delivered().await;
    harness.drain_jobs(&["submit_payment"]).await;
    for payment in &payments {
        park(&database, "submit_payment", &harness.billing.organization, &payment.id).await;
    }
    harness.retry("retry", &payments[0], false).await.expect("the retry is accepted");
    harness.payment_in("inv-retried", PaymentState::Succeeded).await;
    harness.cancel(&payments[1]).await.expect("the cancellation is accepted");
    harness.payment_in("inv-canceled", PaymentState::Canceled).await;
    // The same request was accepted before, and its job has been parked since: the payment does not change.
    let accepted = r#"UPDATE payments SET pending_operation = '{"kind": "cancel"}', cancel_request_time = now()
        WHERE invoice_id = $1"#;
    database.execute(accepted, &[&"inv-canceled-twice"]).await.expect("it is stored");
    harness.cancel(&payments[2]).await.expect("the cancellation is accepted again");
    harness.payment_in("inv-canceled-twice", PaymentState::Canceled).await;
    let accepted = r#"UPDATE payments SET
        pending_operation = '{"kind": "change_amount", "minor_units": 3000, "part_known": 0}'
        WHERE invoice_id = $1"#;
    database.execute(accepted, &[&"inv-changed-twice"]).await.expect("it is stored");
    harness.change_amount(&payments[3], 3000).await.expect("the change is accepted again");
    harness
        .payment_when("inv-changed-twice", "has the amount", |payment| {
            payment.amount.as_ref().is_some_and(|amount| amount.minor_units == 3000)
        })
        .await;
    harness.shutdown().await;
}

/// A disconnect enqueues jobs every minute: that is no request of a caller, and unparks nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pending_disconnect_leaves_a_job_parked() {
    let mut harness = Harness::new("drain", Options::default()).await;
    enable_3ds(&mut harness).await;
    harness.customer("hooli", CHALLENGE_CARD).await;
    harness.pay("hooli", "inv").await;
    let payment = harness.payment_in("inv", PaymentState::RequiresAction).await;
    harness.drain_jobs(&["submit_payment"]).await;
    let database = harness.database().await;
    park(&database, "submit_payment", &harness.billing.organization, &payment.id).await;
    harness.disconnect(false).await;
    let query = "SELECT generation, park_time IS NOT NULL FROM jobs WHERE kind = 'submit_payment'";
    let job = until("it is enqueued again", async || {
        let job = database.query_opt(query, &[]).await.expect("a result")?;
        (job.get::<_, i64>(0) > 1).then_some(job)
    })
    .await;
    assert!(job.get::<_, bool>(1), "still parked");
    harness.shutdown().await;
}

/// Webhooks are many, and are repeated: they unpark nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn webhooks_leave_a_job_parked_and_a_rotated_key_unparks_it() {
    let mut harness = Harness::new("webhooks", Options::default()).await;
    let provider_id = harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    let database = harness.database().await;
    let customer = harness.billing.customer("hooli").await.expect("a customer").id;
    park(&database, "push_default_method", &harness.billing.organization, &customer).await;
    harness.add_method("hooli", &provider_id, "pm_card_mastercard").await;
    harness.drain_jobs(&["apply_delivery"]).await;
    let query = "SELECT generation, park_time IS NOT NULL FROM jobs WHERE kind = 'push_default_method'";
    let row = database.query_one(query, &[]).await.expect("the job");
    assert_eq!((row.get(0), row.get(1)), (2_i64, true), "enqueued again, and still parked");
    let rotate =
        RotateIntegrationKeyRequest { id: harness.integration.id.clone(), secret_key: harness.billing.key.clone() };
    harness.billing.api.integrations.rotate_integration_key(rotate).await.expect("the key is accepted");
    harness.drain_jobs(&["push_default_method"]).await;
    harness.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_fails_because_stripe_is_unavailable_is_never_parked() {
    let mut harness = Harness::new("long outage", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    harness.all_delivered().await;
    let database = harness.database().await;
    harness.sandbox().add_fault(Fault { times: None, action: Action::Unavailable, ..Fault::default() });
    harness.pay("hooli", "inv").await;
    let newcomer = CreateCustomerRequest {
        request_id: "gavin".to_owned(),
        external_id: "gavin".to_owned(),
        sync_with_provider: true,
        ..CreateCustomerRequest::default()
    };
    harness.billing.api.customers.create_customer(newcomer).await.expect("it is accepted");
    until("both have more failures than it takes to park a job", async || {
        harness.advance_slowly(Duration::minutes(5) + Duration::SECOND);
        let jobs = [job(&database, "submit_payment").await?, job(&database, "sync_customer").await?];
        jobs.iter().all(|(failures, ..)| *failures >= 25).then_some(())
    })
    .await;
    let query = "SELECT max(own_failures), count(park_time) FROM jobs";
    let row = database.query_one(query, &[]).await.expect("a result");
    assert_eq!((row.get(0), row.get(1)), (Some(0), 0_i64), "none for a reason of its own");
    harness.sandbox().clear_faults();
    harness.advance(Duration::minutes(5) + Duration::SECOND);
    harness.payment_in("inv", PaymentState::Succeeded).await;
    let is_created = |customer: &Customer| !customer.provider_customer_id.is_empty();
    harness.billing.wait_for_customer("gavin", "is created at Stripe", is_created).await.expect("it continues");
    harness.shutdown().await;
}

/// A reconciler is a recurring job that nothing else replaces: it is retried until it succeeds.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_reconciler_is_never_parked() {
    let mut harness = Harness::new("reconciler", Options::default()).await;
    harness.customer("hooli", "pm_card_visa").await;
    let database = harness.database().await;
    let block = "CREATE FUNCTION poison() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
            RAISE EXCEPTION 'no sweep'; END $$; \
        CREATE TRIGGER poison BEFORE UPDATE OF sweep_time ON integrations FOR EACH ROW EXECUTE FUNCTION poison();";
    database.batch_execute(block).await.expect("the trigger is set");
    until("it has failed more often than it takes to park a job", async || {
        harness.advance_slowly(Duration::minutes(31));
        job(&database, "sweep_integration").await.filter(|(_, own, _)| *own > 22)
    })
    .await;
    let reconciler = job(&database, "sweep_integration").await.expect("the job");
    assert!(!reconciler.2, "it is not parked");
    database.batch_execute("DROP TRIGGER poison ON integrations").await.expect("the trigger is dropped");
    until("it succeeds again", async || {
        harness.advance_slowly(Duration::minutes(31));
        job(&database, "sweep_integration").await.filter(|(failures, ..)| *failures == 0)
    })
    .await;
    harness.shutdown().await;
}
