//! Recovery times, measured after the faults, one fault at a time: a process is killed until its jobs are taken over,
//! Postgres restarts until a payment is accepted, Stripe has an outage until a payment is settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::plan::{CustomerProfile, InvoicePlan, Script};
use super::polling::poll_until;
use super::run::Run;
use crate::clock::pause;
use crate::dev::sandbox::{Action, Fault};

/// The time after which something counts as not recovered.
const RECOVERY_TIMEOUT: Duration = Duration::from_mins(1);
/// The length of the Stripe outage.
const OUTAGE: Duration = Duration::from_secs(5);
/// The number of payments for each measurement.
const PAYMENTS: usize = 12;

/// The measured times; `None`: not recovered.
#[derive(Debug, Default)]
pub(super) struct RecoveryTimes {
    pub take_over: Option<Duration>,
    pub accept_after_postgres: Option<Duration>,
    pub settle_after_stripe: Option<Duration>,
}

impl Run {
    /// Measures all recovery times.
    pub(super) async fn measure(&self) -> Result<RecoveryTimes> {
        let take_over = self.measure_take_over().await.context("measuring the takeover of jobs")?;
        self.wait_until_idle(RECOVERY_TIMEOUT).await;
        let accept_after_postgres =
            self.measure_postgres().await.context("measuring the recovery from a Postgres crash")?;
        self.wait_until_idle(RECOVERY_TIMEOUT).await;
        let settle_after_stripe = self.measure_stripe().await.context("measuring the recovery from a Stripe outage")?;
        self.wait_until_idle(RECOVERY_TIMEOUT).await;
        Ok(RecoveryTimes { take_over, accept_after_postgres, settle_after_stripe })
    }

    /// An invoice of a customer whose card succeeds.
    fn probe(&self, name: &str, number: usize) -> InvoicePlan {
        let of = &self.workload.plan.organizations[0];
        let customer = of.iter().position(|customer| customer.profile == CustomerProfile::GoodCard).unwrap_or_default();
        let id = format!("probe-{name}-{number}");
        InvoicePlan { organization: 0, customer, id, amount: 4_900, currency: "EUR", script: Script::Plain }
    }

    async fn submit_probes(&self, name: &str) {
        let mut callers = tokio::task::JoinSet::new();
        for number in 0..PAYMENTS {
            let (workload, probe) = (Arc::clone(&self.workload), self.probe(name, number));
            callers.spawn(async move { workload.submit_invoice(&probe).await });
        }
        while callers.join_next().await.is_some() {}
    }

    /// The leased jobs with the epochs of their leases.
    async fn leased_jobs(&self) -> Result<BTreeMap<String, i64>> {
        let held = "SELECT id::text, lease_epoch FROM jobs WHERE lease_until > clock_timestamp()";
        let rows = self.database.connect().await?.query(held, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Kills a process while every process is in the middle of calls. Measures until each of its jobs is done or leased
    /// by another process.
    async fn measure_take_over(&self) -> Result<Option<Duration>> {
        let slow = Action::Delay { milliseconds: u64::from(self.settings.clock_speed) * 1_500, after_work: false };
        self.sandbox.add_fault(Fault { times: None, action: slow, ..Fault::once("POST", "*", Action::Unavailable) });
        self.submit_probes("kill").await;
        poll_until(RECOVERY_TIMEOUT, async || self.leased_jobs().await.is_ok_and(|held| held.len() >= PAYMENTS / 2))
            .await;
        let before = self.leased_jobs().await?;
        self.sandbox.clear_faults();
        self.replicas.all[0].signal(Signal::KILL);
        let began = Instant::now();
        let is_taken_over = async || {
            let Ok(now) = self.leased_jobs().await else { return false };
            // Under the same epoch it is held by the killed process, until its lease expires, or by one that still runs
            // it.
            !before.iter().any(|(id, epoch)| now.get(id) == Some(epoch))
        };
        let recovered = poll_until(RECOVERY_TIMEOUT, is_taken_over).await;
        Ok(recovered.then(|| began.elapsed()))
    }

    /// From the moment Postgres accepts connections again to the first accepted payment.
    async fn measure_postgres(&self) -> Result<Option<Duration>> {
        self.database.crash(Signal::KILL, Duration::from_secs(1)).await?;
        let began = Instant::now();
        let probe = self.probe("postgres", 0);
        let accepted = tokio::time::timeout(RECOVERY_TIMEOUT, self.workload.submit_invoice(&probe)).await;
        Ok(accepted.is_ok().then(|| began.elapsed()))
    }

    /// From the moment Stripe responds again to the first settled payment.
    async fn measure_stripe(&self) -> Result<Option<Duration>> {
        self.sandbox.add_fault(Fault { times: None, action: Action::Unavailable, ..Fault::default() });
        let began = Instant::now();
        self.submit_probes("stripe").await;
        pause(OUTAGE.saturating_sub(began.elapsed())).await;
        self.sandbox.clear_faults();
        let began = Instant::now();
        let settled = "SELECT count(*) FROM payments WHERE invoice_id LIKE 'probe-stripe-%' AND state = 'succeeded'";
        let is_settled = async || {
            let Ok(client) = self.database.connect().await else { return false };
            client.query_one(settled, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
        };
        let recovered = poll_until(RECOVERY_TIMEOUT, is_settled).await;
        Ok(recovered.then(|| began.elapsed()))
    }
}
