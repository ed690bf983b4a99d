//! Quiescence: waits for what was started, and moves the clock to what is scheduled for later.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::callers::Organization;
use super::polling::{QUIESCE_TIMEOUT, poll_until};
use super::run::Run;
use crate::clock::pause;

/// How often the clock may be moved to the next attempt of something that failed, before the system counts as stuck.
/// The longest pause between attempts is half an hour for Paybridge and an hour for Stripe.
const ADVANCES_MAX: u32 = 40;
/// The clock is moved by at least this much, so that hundreds of attempts that are due close together take one step.
const STEP_MIN: ::time::Duration = ::time::Duration::minutes(10);
/// How far the clock is moved at once while banks are awaited, and how often.
const STEP: ::time::Duration = ::time::Duration::hours(6);
const STEPS_MAX: u32 = 60;
/// A job that is late by this much is open; anything less is in progress. Real time.
const LATE: Duration = Duration::from_secs(1);
/// How long another copy of the database may be in use, which a restored one has to wait for. Clock time.
const COPY_TIMEOUT: Duration = Duration::from_mins(11);
/// How long nothing may be open before the system counts as idle. Real time.
const IDLE_FOR: Duration = Duration::from_millis(300);

/// Jobs that are leased, or due since before `$1` (Unix seconds). Reconcilers run all the time and count only once they
/// are late.
const OPEN: &str = "((lease_until > clock_timestamp() \
     AND kind NOT IN ('poll_events', 'sweep_integration', 'check_endpoint')) \
     OR (run_at < to_timestamp($1::float8) AND park_time IS NULL))";

impl Run {
    /// Waits until every integration has caught up with Stripe after restorations of the database. Then every open
    /// Checkout session is known; those that are not are recorded.
    pub(super) async fn wait_until_caught_up(&self) {
        let timeout = QUIESCE_TIMEOUT + COPY_TIMEOUT / self.settings.clock_speed.max(1);
        if !poll_until(timeout, async || self.catching_up().await.is_ok_and(|count| count == 0)).await {
            self.add_incomplete(format!("not every integration had caught up with Stripe after {timeout:?}"));
        }
        // A session that is being created is known soon.
        if !poll_until(QUIESCE_TIMEOUT, async || self.open_unknown_sessions().await.is_ok_and(|it| it.is_empty())).await
        {
            let unknown = self.open_unknown_sessions().await;
            *self.unknown_sessions.lock() = unknown.unwrap_or_else(|error| vec![format!("not read: {error:#}")]);
        }
    }

    /// The number of integrations that catch up with Stripe.
    async fn catching_up(&self) -> Result<i64> {
        let counted = "SELECT count(*) FROM stripe_contacts WHERE catch_up_reason IS NOT NULL";
        Ok(self.database.connect().await?.query_one(counted, &[]).await?.get(0))
    }

    /// The Checkout sessions that are open in Stripe, and that Paybridge does not know as open.
    async fn open_unknown_sessions(&self) -> Result<Vec<String>> {
        let text = |session: &Value, pointer: &str| {
            session.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut open = Vec::new();
        self.sandbox.visit(&["checkout.session"], |session| {
            if text(session, "/status") == "open" && !text(session, "/metadata/organization_id").is_empty() {
                open.push(text(session, "/id"));
            }
        });
        let query = "SELECT provider_session_id FROM checkout_sessions \
             WHERE state IN ('creating', 'open') AND provider_session_id IS NOT NULL \
             UNION ALL SELECT provider_session_id FROM payment_attempts \
             WHERE state = 'open' AND provider_session_id IS NOT NULL";
        let rows = self.database.connect().await?.query(query, &[]).await?;
        let known: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
        open.retain(|session| !known.contains(session));
        Ok(open)
    }

    /// Moves the clock, a few hours at a time, until the banks have answered everything. The system becomes quiescent
    /// after each step.
    pub(super) async fn advance_until_settled(&self) -> Result<()> {
        for _ in 0..STEPS_MAX {
            if !self.quiesce().await? {
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
        self.replicas.restart_all(self.time.setting()).await
    }

    /// Waits until only scheduled work is left. Failed work is not awaited in real time: the clock is moved to its next
    /// attempt. `false`, and recorded: the system does not become quiescent.
    pub(super) async fn quiesce(&self) -> Result<bool> {
        for _ in 0..ADVANCES_MAX {
            if !self.wait_until_idle(QUIESCE_TIMEOUT).await {
                self.add_incomplete(format!(
                    "the system was not idle after {:?}, {} after the start: {}",
                    QUIESCE_TIMEOUT,
                    self.time.elapsed(),
                    self.describe_due().await?
                ));
                return Ok(false);
            }
            let next_attempt = "SELECT extract(epoch FROM min(run_at))::bigint FROM jobs \
                 WHERE failures > 0 AND park_time IS NULL";
            let of_jobs: Option<i64> = self.database.connect().await?.query_one(next_attempt, &[]).await?.get(0);
            let Some(next) = of_jobs.into_iter().chain(self.sandbox.next_delivery()).min() else { return Ok(true) };
            self.move_time(::time::Duration::seconds(next - self.time.seconds()).max(STEP_MIN)).await?;
        }
        self.add_incomplete(format!(
            "something still fails after {ADVANCES_MAX} attempts, {} after the start",
            self.time.elapsed()
        ));
        Ok(false)
    }

    /// The number of payments and refunds that only Paybridge or Stripe can move.
    async fn unsettled(&self) -> Result<i64> {
        let counted = "SELECT (SELECT count(*) FROM payments \
             WHERE state IN ('processing', 'requires_action') OR (state = 'pending' AND pending_reason IS NULL)) \
             + (SELECT count(*) FROM refunds WHERE status IN ('pending', 'requires_action'))";
        Ok(self.database.connect().await?.query_one(counted, &[]).await?.get(0))
    }

    /// Waits until nothing is due: no job is due or leased, no webhook is to be sent, no actor is running.
    pub(super) async fn wait_until_idle(&self, within: Duration) -> bool {
        let is_idle = async || {
            let is_due = |next: i64| next <= self.time.seconds();
            let idle = self.workload.actors.is_empty() && !self.sandbox.next_delivery().is_some_and(is_due);
            idle && self.open_jobs().await.is_ok_and(|jobs| jobs == 0)
        };
        poll_until(within, async || {
            // Twice, so that work found by a reconciler shows up.
            is_idle().await && {
                pause(IDLE_FOR).await;
                is_idle().await
            }
        })
        .await
    }

    /// The number of open jobs.
    pub(super) async fn open_jobs(&self) -> Result<i64> {
        let counted = format!("SELECT count(*) FROM jobs WHERE {OPEN}");
        Ok(self.database.connect().await?.query_one(&counted, &[&self.late_before()]).await?.get(0))
    }

    /// Describes what is due, for the report.
    async fn describe_due(&self) -> Result<String> {
        let listed = format!(
            "SELECT format('%s %s, %s, %s s late', kind, object_id, \
             CASE WHEN lease_until > clock_timestamp() THEN 'leased' ELSE 'free' END, \
             extract(epoch FROM to_timestamp($1::float8) - run_at)::bigint) \
             FROM jobs WHERE {OPEN} ORDER BY run_at LIMIT 20"
        );
        let jobs = self.database.connect().await?.query(&listed, &[&self.late_before()]).await?;
        let jobs: Vec<String> = jobs.iter().map(|job| job.get(0)).collect();
        let (actors, webhook) = (self.workload.actors.len(), self.sandbox.next_delivery());
        let now = self.time.seconds();
        Ok(format!(
            "jobs {jobs:?}, {actors} actors are running, the next webhook is due at {webhook:?}, the time is {now}"
        ))
    }

    /// The time before which due work is late, in Unix seconds.
    #[expect(clippy::cast_precision_loss, reason = "one second more or less does not matter")]
    fn late_before(&self) -> f64 {
        self.time.seconds() as f64 - f64::from(self.settings.clock_speed) * LATE.as_secs_f64()
    }

    /// The number of leased jobs.
    pub(super) async fn held_leases(&self) -> Result<i64> {
        let counted = "SELECT count(*) FROM jobs WHERE lease_until > clock_timestamp()";
        Ok(self.database.connect().await?.query_one(counted, &[]).await?.get(0))
    }

    /// Whether every subscriber has reached the end of its log.
    pub(super) async fn all_caught_up(&self) -> bool {
        let read = async || -> Result<bool> {
            let heads = "SELECT organization_id::text, last_position FROM event_heads";
            let rows = self.database.connect().await?.query(heads, &[]).await?;
            let last = |organization: &Organization| {
                let id = organization.id.to_string();
                rows.iter().find(|row| row.get::<_, String>(0) == id).map_or(0, |row| row.get::<_, i64>(1))
            };
            let mut positions = self.history.positions().into_iter();
            Ok(positions.all(|(organization, seen)| seen == last(&self.organizations[organization])))
        };
        read().await.unwrap_or(false)
    }
}
