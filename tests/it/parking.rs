//! Jobs that fail for a reason of their own are parked, in an operator's sight and in nobody's way; those that fail because
//! Stripe is away never are.

use std::process::Command;

use paybridge::dev::sandbox::{Action, Fault};
use paybridge::dev::stage::Options;
use paybridge::grpc::proto::{CreateCustomerRequest, Customer, PaymentState};
use time::Duration;
use tokio_postgres::Client;

use crate::cashier::{Cashier, until};
use crate::support::program;

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

    // It blocks nothing beside it, and asking for it again does not bring it back.
    cashier.pay("hooli", "inv-good").await;
    cashier.payment_in("inv-good", PaymentState::Succeeded).await;
    cashier.pay_as("again", "hooli", "inv-poison", 4900).await.expect("the same invoice again is accepted");
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
        let client = reqwest::Client::builder().no_proxy().build().expect("a client");
        let metrics = client.get(format!("{worker}/metrics")).send().await.ok()?.text().await.ok()?;
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
