//! How fast it recovers, measured after the storm, one trouble at a time: a killed process' work is taken up, Postgres is
//! back and a payment accepted, Stripe is back and a payment settled.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::Signal;

use super::plan::{InvoicePlan, Script, Wallet};
use super::{Run, until};
use crate::dev::sandbox::{Action, Fault};

/// How long anything may take before it counts as not recovered.
const PATIENCE: Duration = Duration::from_mins(1);
/// How long Stripe is away.
const OUTAGE: Duration = Duration::from_secs(5);
/// How many payments are given in for each measurement.
const PAYMENTS: usize = 12;

/// What was measured.
#[derive(Debug, Default)]
pub(super) struct Measures {
    pub take_over: Option<Duration>,
    pub accept_after_postgres: Option<Duration>,
    pub settle_after_stripe: Option<Duration>,
}

impl Run {
    /// Takes all measures.
    pub(super) async fn measure(&self) -> Result<Measures> {
        let take_over = self.measure_take_over().await.context("measuring how work is taken over")?;
        self.quiet(PATIENCE).await;
        let accept_after_postgres = self.measure_postgres().await.context("measuring how Postgres comes back")?;
        self.quiet(PATIENCE).await;
        let settle_after_stripe = self.measure_stripe().await.context("measuring how Stripe comes back")?;
        self.quiet(PATIENCE).await;
        Ok(Measures { take_over, accept_after_postgres, settle_after_stripe })
    }

    /// An invoice of a customer whose card pays.
    fn probe(&self, name: &str, number: usize) -> InvoicePlan {
        let of = &self.workload.plan.organizations[0];
        let customer = of.iter().position(|customer| customer.wallet == Wallet::Good).unwrap_or_default();
        let id = format!("probe-{name}-{number}");
        InvoicePlan { organization: 0, customer, id, amount: 4_900, currency: "EUR", script: Script::Plain }
    }

    async fn give_in_probes(&self, name: &str) {
        let mut callers = tokio::task::JoinSet::new();
        for number in 0..PAYMENTS {
            let (workload, probe) = (Arc::clone(&self.workload), self.probe(name, number));
            callers.spawn(async move { workload.give_in(&probe).await });
        }
        while callers.join_next().await.is_some() {}
    }

    /// Held jobs with their leases' epochs.
    async fn held(&self) -> Result<BTreeMap<String, i64>> {
        let held = "SELECT id::text, lease_epoch FROM jobs WHERE lease_until > clock_timestamp()";
        let rows = self.database.connect().await?.query(held, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }

    /// Every process is in the middle of calls when one is killed: until the last of its jobs is done or another's.
    async fn measure_take_over(&self) -> Result<Option<Duration>> {
        let slow = Action::Delay { milliseconds: u64::from(self.settings.clock_speed) * 1_500, after_work: false };
        self.sandbox.add_fault(Fault { times: None, action: slow, ..Fault::once("POST", "*", Action::Unavailable) });
        self.give_in_probes("kill").await;
        until(PATIENCE, async || self.held().await.is_ok_and(|held| held.len() >= PAYMENTS / 2)).await;
        let before = self.held().await?;
        self.sandbox.clear_faults();
        self.replicas.all[0].signal(Signal::KILL);
        let began = Instant::now();
        let is_taken = async || {
            let Ok(now) = self.held().await else { return false };
            // Held under the same epoch: by the dead one, until its lease ends, or by one that is still at it.
            !before.iter().any(|(id, epoch)| now.get(id) == Some(epoch))
        };
        let came = until(PATIENCE, is_taken).await;
        Ok(came.then(|| began.elapsed()))
    }

    /// From the moment at which Postgres takes connections again, to the first payment that is accepted.
    async fn measure_postgres(&self) -> Result<Option<Duration>> {
        self.database.crash(Signal::KILL, Duration::from_secs(1)).await?;
        let began = Instant::now();
        let probe = self.probe("postgres", 0);
        let accepted = tokio::time::timeout(PATIENCE, self.workload.give_in(&probe)).await;
        Ok(accepted.is_ok().then(|| began.elapsed()))
    }

    /// From the moment at which Stripe answers again, to the first payment that is settled.
    async fn measure_stripe(&self) -> Result<Option<Duration>> {
        self.sandbox.add_fault(Fault { times: None, action: Action::Unavailable, ..Fault::default() });
        let began = Instant::now();
        self.give_in_probes("stripe").await;
        super::pause(OUTAGE.saturating_sub(began.elapsed())).await;
        self.sandbox.clear_faults();
        let began = Instant::now();
        let settled = "SELECT count(*) FROM payments WHERE invoice_id LIKE 'probe-stripe-%' AND state = 'succeeded'";
        let is_settled = async || {
            let Ok(client) = self.database.connect().await else { return false };
            client.query_one(settled, &[]).await.is_ok_and(|row| row.get::<_, i64>(0) > 0)
        };
        let came = until(PATIENCE, is_settled).await;
        Ok(came.then(|| began.elapsed()))
    }
}
