use super::*;
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
        asked: 1,
        failures: 0,
    }
}

/// P8: whoever lost a lease stops prolonging it, and one that was taken anew meanwhile is not dropped for it.
#[tokio::test]
async fn what_was_lost_is_forgotten_and_nothing_else() {
    let held = Held::default();
    let mut tasks = JoinSet::new();
    let mut hold = |lease| held.lock().insert(tasks.spawn(pending::<()>()).id(), lease);
    hold(lease(1, 1));
    hold(lease(2, 5));
    let asked = held.all();
    hold(lease(3, 1));
    assert_eq!(held.keep(&asked, &[Uuid::from_u128(2)]), 1);
    let mut left = held.all();
    left.sort_unstable();
    assert_eq!(left, [(Uuid::from_u128(2), 5), (Uuid::from_u128(3), 1)]);
}

/// P8.
#[tokio::test(flavor = "multi_thread")]
async fn p8_held_leases_are_prolonged_until_another_worker_has_them() {
    let database = Database::start().await;
    let app = administration(&database.url).unwrap();
    let organization = app.create_organization("Hooli").await.unwrap();
    let job = format!(
        "INSERT INTO jobs (id, organization_id, kind, object_id, object_key, run_at, asked, failures, lease_epoch) \
         VALUES (gen_random_uuid(), '{}', 'submit_payment', gen_random_uuid(), '', now() - interval '1 h', 1, 0, 0)",
        organization.id
    );
    database.run(&job).await;
    let room = Room { free: 10, organization_max: 10, held: Vec::new() };
    let lease = app.lease_jobs(&room).await.unwrap().pop().expect("the job is due");
    assert!(app.lease_jobs(&room).await.unwrap().is_empty(), "it is held");

    let held = Held::default();
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
