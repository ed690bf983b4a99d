use tokio::time::timeout;

use super::*;
use crate::domain::jobs::JobKind;
use crate::server::administration;
use crate::server::tests::Database;

fn lease(job: u128, epoch: i64) -> Lease {
    Lease {
        id: Uuid::from_u128(job).into(),
        organization_id: Uuid::from_u128(9).into(),
        kind: JobKind::SubmitPayment,
        object_id: Uuid::from_u128(job),
        object_key: String::new(),
        object_time: None,
        epoch,
        generation: 1,
        failures: 0,
    }
}

fn capacity() -> Capacity {
    Capacity { free: 10, organization_max: 10, held: HashMap::new(), after: Lane::start(), is_scan_incomplete: false }
}

/// P8: a process that lost a lease stops renewing it. A lease that was acquired meanwhile is kept.
#[tokio::test]
async fn only_lost_leases_are_forgotten() {
    let held = HeldLeases::default();
    let mut tasks = JoinSet::new();
    let mut add = |lease| held.lock().insert(tasks.spawn(pending::<()>()).id(), lease);
    add(lease(1, 1));
    add(lease(2, 5));
    let requested = held.all();
    add(lease(3, 1));
    assert_eq!(held.forget_lost(&requested, &[Uuid::from_u128(2)]), 1);
    let mut left = held.all();
    left.sort_unstable();
    assert_eq!(left, [(Uuid::from_u128(2), 5), (Uuid::from_u128(3), 1)]);
}

/// P8.
#[tokio::test(flavor = "multi_thread")]
async fn p8_held_leases_are_renewed_until_another_worker_has_them() {
    let database = Database::start().await;
    let app = administration(&database.url).unwrap();
    let organization = app.create_organization("Hooli").await.unwrap();
    let job = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
             lease_epoch) \
         VALUES (gen_random_uuid(), '{}', 'submit_payment', gen_random_uuid(), '', now() - interval '1 h', 1, 0, 0)",
        organization.id
    );
    database.run(&job).await;
    let lease = app.lease_jobs(&mut capacity()).await.unwrap().pop().expect("the job is due");
    assert!(app.lease_jobs(&mut capacity()).await.unwrap().is_empty(), "it is leased");

    let held = HeldLeases::default();
    let task = tokio::spawn(pending::<()>());
    held.lock().insert(task.id(), lease);
    let database = &database;
    let changes = async {
        let until = database.run("SELECT lease_until FROM jobs").await;
        while database.run("SELECT lease_until FROM jobs").await == until {}
        database.run("UPDATE jobs SET lease_epoch = lease_epoch + 1").await;
        while !held.all().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = renew(&app, &held) => {}
        changed = timeout(Duration::from_secs(30), changes) => changed.expect("renewed in time, then forgotten"),
    }
    task.abort();
}

/// P8: a job's own transaction locks its row while it commits, and enqueues others. The renewer must not wait for any
/// of them: it locks many rows, so that would be a deadlock.
#[tokio::test(flavor = "multi_thread")]
async fn p8_renewal_neither_waits_for_nor_loses_a_job_that_is_completing() {
    let database = Database::start().await;
    let app = administration(&database.url).unwrap();
    let organization = app.create_organization("Hooli").await.unwrap();
    let job = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, generation, failures, \
             lease_epoch) \
         SELECT gen_random_uuid(), '{}', 'submit_payment', gen_random_uuid(), '', now() - interval '1 h', 1, 0, 0 \
         FROM generate_series(1, 2)",
        organization.id
    );
    database.run(&job).await;
    let leases = app.lease_jobs(&mut capacity()).await.unwrap();
    let held: Vec<_> = leases.iter().map(|lease| (lease.id.0, lease.epoch)).collect();
    let (ended, other) = (held[0].0, held[1].0);

    let (client, connection) = tokio_postgres::connect(&database.admin(), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute(&format!("BEGIN; SELECT FROM jobs WHERE id = '{ended}' FOR UPDATE")).await.unwrap();
    let until = |id: Uuid| format!("SELECT lease_until FROM jobs WHERE id = '{id}'");
    let before = (database.run(&until(ended)).await, database.run(&until(other)).await);
    let renewed = timeout(Duration::from_secs(10), app.renew_leases(&held)).await.expect("it does not wait");
    let mut renewed = renewed.unwrap();
    renewed.sort_unstable();
    let mut both = [ended, other];
    both.sort_unstable();
    assert_eq!(renewed, both, "both leases are still held");
    assert_eq!(database.run(&until(ended)).await, before.0);
    assert_ne!(database.run(&until(other)).await, before.1, "the other one is renewed");
    timeout(Duration::from_secs(10), app.release_leases(&held)).await.expect("releasing does not wait either").unwrap();
    client.batch_execute("ROLLBACK").await.unwrap();
}
