//! Coming to rest: whatever was begun is waited for, and the clock is moved to whatever is meant for later.

use std::time::Duration;

use anyhow::Result;

use super::callers::Organization;
use super::{REST_WITHIN, Run, pause, until};

/// How often time may be moved to the next try of something that failed, before the system counts as not at rest. The
/// longest pause between tries is half an hour of ours, and an hour of Stripe's.
const TRIES_MAX: u32 = 40;
/// Time is moved by at least this much, so that hundreds of tries that lie close together are one step.
const STEP_MIN: ::time::Duration = ::time::Duration::minutes(10);
/// How far time is moved at once while banks are waited for, and for how long in all.
const STEP: ::time::Duration = ::time::Duration::hours(6);
const STEPS_MAX: u32 = 60;
/// What counts as late by so much, in real time, is due; the rest is just being done.
const LATE: Duration = Duration::from_secs(1);
/// For how long nothing may have to be done before it counts as quiet, real time.
const QUIET_FOR: Duration = Duration::from_millis(300);

/// Jobs that are held or overdue: since before `$1`, unix seconds. Reconcilers are held all the time, for they never end;
/// they count once they are late.
const OPEN: &str = "((lease_until > clock_timestamp() \
     AND kind NOT IN ('poll_events', 'sweep_integration', 'check_endpoint')) \
     OR (run_at < to_timestamp($1::float8) AND park_time IS NULL))";

impl Run {
    /// Moves the clock until the banks have answered everything, a few hours at a time; the system comes to rest after
    /// each step.
    pub(super) async fn let_days_pass(&self) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if !self.come_to_rest().await? {
                return Ok(());
            }
            let next = self.sandbox.next_timer();
            if next.is_none() && self.unsettled().await? == 0 {
                return Ok(());
            }
            let to_next = next.map(|next| ::time::Duration::seconds(next - self.time.seconds()));
            self.move_time(to_next.unwrap_or_default().max(STEP)).await?;
        }
        Ok(())
    }

    async fn move_time(&self, by: ::time::Duration) -> Result<()> {
        self.time.advance(by);
        self.sandbox.advance(::time::Duration::ZERO);
        self.replicas.begin_again(self.time.setting()).await
    }

    /// Waits until nothing is left but what is meant for later. What has failed and waits for its next try is not waited
    /// for in real time: the clock is moved there. `false`, and noted: it does not come to rest.
    pub(super) async fn come_to_rest(&self) -> Result<bool> {
        for _ in 0..TRIES_MAX {
            if !self.quiet(REST_WITHIN).await {
                self.note(format!(
                    "{:?} were not enough for what was due, {} after the start: {}",
                    REST_WITHIN,
                    self.time.passed(),
                    self.due().await?
                ));
                return Ok(false);
            }
            let next_try = "SELECT extract(epoch FROM min(run_at))::bigint FROM jobs \
                 WHERE failures > 0 AND park_time IS NULL";
            let of_jobs: Option<i64> = self.database.connect().await?.query_one(next_try, &[]).await?.get(0);
            let Some(next) = of_jobs.into_iter().chain(self.sandbox.next_delivery()).min() else { return Ok(true) };
            self.move_time(::time::Duration::seconds(next - self.time.seconds()).max(STEP_MIN)).await?;
        }
        self.note(format!("something still fails after {TRIES_MAX} tries, {} after the start", self.time.passed()));
        Ok(false)
    }

    /// Payments and refunds that nobody but Paybridge or Stripe can move.
    async fn unsettled(&self) -> Result<i64> {
        let counted = "SELECT (SELECT count(*) FROM payments \
             WHERE state IN ('processing', 'requires_action') OR (state = 'pending' AND pending_reason IS NULL)) \
             + (SELECT count(*) FROM refunds WHERE status IN ('pending', 'requires_action'))";
        Ok(self.database.connect().await?.query_one(counted, &[]).await?.get(0))
    }

    /// Waits until nothing is to be done for now: no job is due or held, no webhook is to be sent, nobody acts.
    pub(super) async fn quiet(&self, within: Duration) -> bool {
        let is_quiet = async || {
            let is_due = |next: i64| next <= self.time.seconds();
            let idle = self.workload.people.is_empty() && !self.sandbox.next_delivery().is_some_and(is_due);
            idle && self.open_jobs().await.is_ok_and(|jobs| jobs == 0)
        };
        until(within, async || {
            // Twice, so that whatever a reconciler was just finding has come up.
            is_quiet().await && {
                pause(QUIET_FOR).await;
                is_quiet().await
            }
        })
        .await
    }

    /// How many jobs are open.
    pub(super) async fn open_jobs(&self) -> Result<i64> {
        let counted = format!("SELECT count(*) FROM jobs WHERE {OPEN}");
        Ok(self.database.connect().await?.query_one(&counted, &[&self.late()]).await?.get(0))
    }

    /// What is to be done now, for people.
    async fn due(&self) -> Result<String> {
        let listed = format!(
            "SELECT format('%s %s, %s, %s s late', kind, object_id, \
             CASE WHEN lease_until > clock_timestamp() THEN 'held' ELSE 'free' END, \
             extract(epoch FROM to_timestamp($1::float8) - run_at)::bigint) \
             FROM jobs WHERE {OPEN} ORDER BY run_at LIMIT 20"
        );
        let jobs = self.database.connect().await?.query(&listed, &[&self.late()]).await?;
        let jobs: Vec<String> = jobs.iter().map(|job| job.get(0)).collect();
        let (people, webhook) = (self.workload.people.len(), self.sandbox.next_delivery());
        let now = self.time.seconds();
        Ok(format!("jobs {jobs:?}, {people} people act, the next webhook is due at {webhook:?}, it is {now}"))
    }

    /// What should have been done before this is late, unix seconds.
    #[expect(clippy::cast_precision_loss, reason = "a second more or less does not matter")]
    fn late(&self) -> f64 {
        self.time.seconds() as f64 - f64::from(self.settings.clock_speed) * LATE.as_secs_f64()
    }

    /// How many jobs are held just now.
    pub(super) async fn leases(&self) -> Result<i64> {
        let counted = "SELECT count(*) FROM jobs WHERE lease_until > clock_timestamp()";
        Ok(self.database.connect().await?.query_one(counted, &[]).await?.get(0))
    }

    /// Whether every subscriber stands at its log's end.
    pub(super) async fn all_read(&self) -> bool {
        let read = async || -> Result<bool> {
            let heads = "SELECT organization_id::text, last_position FROM event_heads";
            let rows = self.database.connect().await?.query(heads, &[]).await?;
            let last = |organization: &Organization| {
                let id = organization.id.to_string();
                rows.iter().find(|row| row.get::<_, String>(0) == id).map_or(0, |row| row.get::<_, i64>(1))
            };
            let mut positions = self.book.positions().into_iter();
            Ok(positions.all(|(organization, seen)| seen == last(&self.organizations[organization])))
        };
        read().await.unwrap_or(false)
    }
}
