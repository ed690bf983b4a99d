//! Durable work: which use case a job leads to, and what happens to it when that fails.

use std::time::Duration as RealDuration;

use time::Duration;
use tracing::Instrument as _;
use uuid::Uuid;

use super::App;
use crate::crash::{self, Point};
use crate::domain::jobs::{JobKind, JobReport, Lease, Outcome, Room};
use crate::domain::{Error, JobId, OrganizationId, Result};
use crate::store::{self, Hint, Scope};
use crate::stripe;

/// How long a lease lasts unless it is renewed, in the clock's time.
pub const LEASE_PERIOD: Duration = Duration::seconds(10);

/// The least that a lease lasts, real time, however fast the clock runs.
const LEASE_REAL_MIN: RealDuration = RealDuration::from_secs(2);

/// Failed tries for a reason of its own after which a job is parked: with the backoff below, some hours of them. Nothing
/// that was accepted is lost by it (P8): it waits for an operator, with its reason, and takes nobody's place meanwhile.
const OWN_FAILURES_MAX: i32 = 20;

/// How far apart the tries are at most while the reason is that Stripe or the database is away.
const AWAY_PAUSE_MAX: Duration = Duration::minutes(5);

/// How many jobs are listed at most (P11).
const LISTED_MAX: i64 = 1_000;

/// The pause before the next try: 1 s, 2 s, 5 s, 15 s, 30 s, 1 min, 2 min, 5 min, then every 30 min.
pub(super) fn backoff(failures: i32) -> Duration {
    const SECONDS: [i64; 9] = [1, 2, 5, 15, 30, 60, 120, 300, 1800];
    let step = usize::try_from(failures).unwrap_or_default().min(SECONDS.len() - 1);
    Duration::seconds(SECONDS[step])
}

/// The pause where the job itself is not to blame: whatever was away is looked for again before long.
pub(super) fn backoff_away(failures: i32) -> Duration {
    backoff(failures).min(AWAY_PAUSE_MAX)
}

impl App {
    /// Leases as many jobs that are due as there is room for, organizations and kinds in turns; `room` shows afterwards
    /// what is left of it.
    pub async fn lease_jobs(&self, room: &mut Room) -> Result<Vec<Lease>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::make_due(&mut tx, self.clock().now()).await?;
        let leases = store::leases::lease(&mut tx, room, self.lease_period()).await?;
        tx.commit().await?;
        if !leases.is_empty() {
            crash::point(Point::AfterLease);
        }
        Ok(leases)
    }

    /// Frees jobs whose lease has run out, at most 200; whether there may be more.
    pub async fn free_lapsed_leases(&self) -> Result<bool> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let freed = store::leases::free_lapsed(&mut tx).await?;
        tx.commit().await?;
        if freed > 0 {
            tracing::debug!(freed, "leases have run out");
            self.0.wake.tell(Hint::Jobs);
        }
        Ok(freed > 0)
    }

    /// Prolongs leases, given by job and epoch; returns the jobs that are still ours.
    pub async fn renew_leases(&self, held: &[(Uuid, i64)]) -> Result<Vec<Uuid>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let renewed = store::leases::renew(&mut tx, held, self.lease_period()).await?;
        tx.commit().await?;
        Ok(renewed)
    }

    /// Gives leases back, by job and epoch, so that other workers need not wait until they run out.
    pub async fn give_up_leases(&self, held: &[(Uuid, i64)]) -> Result<()> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::give_up(&mut tx, held).await?;
        tx.commit().await?;
        self.0.wake.tell(Hint::Jobs);
        Ok(())
    }

    /// A lease lasts as long on a fast clock as a round trip to the database may take.
    fn lease_period(&self) -> RealDuration {
        self.clock().real(LEASE_PERIOD).max(LEASE_REAL_MIN)
    }

    /// When the next scheduled job becomes due.
    pub async fn next_job_due(&self) -> Result<Option<time::OffsetDateTime>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::next_due(&mut tx).await
    }

    /// Returns once jobs were asked for by this process, or by another that told us.
    pub async fn jobs_asked(&self) {
        self.0.wake.jobs().await;
    }

    /// Does what a job asks for. The use case ends the job in the same transaction as its last change; one that fails is
    /// given back, to be tried again later.
    pub async fn perform(&self, lease: &Lease) {
        // In a task of its own, so that a panic counts as a failed try instead of taking the job round for ever.
        let task = tokio::spawn({
            let (app, lease) = (self.clone(), lease.clone());
            async move { app.dispatch(&lease).await }.in_current_span()
        });
        let Err(error) = task.await.unwrap_or_else(|panic| Err(Error::internal(panic))) else { return };
        if matches!(error, Error::LeaseLost) {
            tracing::info!(job.id = %lease.id, job.kind = lease.kind.as_str(), "another worker has taken the job over");
            return;
        }
        let given_back = match &error {
            // Whatever the job was about went with the integration: nothing is left to ask Stripe for.
            Error::FailedPrecondition { reason: "INTEGRATION_DISCONNECTED", .. } => self.drop_job(lease).await,
            _ => self.give_back(lease, &error).await,
        };
        if let Err(error) = given_back
            && !error.is_database_away()
        {
            tracing::warn!(job.id = %lease.id, %error, "the job could not be given back; its lease will run out");
        }
    }

    async fn drop_job(&self, lease: &Lease) -> Result<()> {
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    async fn dispatch(&self, lease: &Lease) -> Result<()> {
        match lease.kind {
            JobKind::SubmitPayment => self.submit_payment(lease).await,
            JobKind::CancelPayment => self.take_cancellation_over(lease).await,
            JobKind::ReconcilePayment => self.reconcile_payment(lease).await,
            JobKind::RefundPayment => self.finish_refund(lease).await,
            JobKind::ApplyDelivery => self.apply_delivery(lease).await,
            JobKind::SyncCustomer => self.sync_customer(lease).await,
            JobKind::ImportPaymentMethods => self.import_payment_methods(lease).await,
            JobKind::PushDefaultMethod => self.push_default_method(lease).await,
            JobKind::DetachMethod => self.detach_method(lease).await,
            JobKind::CreateCheckoutSession => self.make_checkout_session(lease).await,
            JobKind::ConnectIntegration => self.finish_connecting(lease).await,
            JobKind::DisconnectIntegration => self.finish_disconnecting(lease).await,
            JobKind::PollEvents => self.poll_events(lease).await,
            JobKind::SweepIntegration => self.sweep_integration(lease).await,
            JobKind::CheckEndpoint => self.look_after_endpoint(lease).await,
            JobKind::ReconcileSession => self.reconcile_session(lease).await,
        }
    }

    /// How a job ends whose call to Stripe was not done, or perhaps not.
    pub(super) fn outcome_of(&self, error: &stripe::Error) -> Outcome {
        match error.held_back() {
            Some(wait) => Outcome::Postponed(self.clock().now() + wait),
            None => Outcome::Retry(error.to_string()),
        }
    }

    async fn give_back(&self, lease: &Lease, error: &Error) -> Result<()> {
        if let Error::HeldBack { retry_after, .. } = error {
            tracing::debug!(job.id = %lease.id, job.kind = lease.kind.as_str(), %error, "a job waits for Stripe");
            let mut tx = self.read(lease.organization_id).await?;
            store::jobs::postpone(&mut tx, lease, self.clock().now() + *retry_after).await?;
            return tx.commit().await;
        }
        let text = match error {
            Error::Internal(source) => format!("{source:#}"),
            other => other.to_string(),
        };
        let now = self.clock().now();
        let (kind, failures) = (lease.kind.as_str(), lease.failures + 1);
        let is_endless = JobKind::RECONCILERS.contains(&lease.kind);
        let mut tx = self.read(lease.organization_id).await?;
        let is_parked = if matches!(error, Error::Unavailable { .. }) {
            store::jobs::release(&mut tx, lease, now + backoff_away(lease.failures), Some(&text)).await?;
            false
        } else {
            // A reconciler has no end, and nobody else does its work: it goes on, however often it fails.
            let failures_max = if is_endless { i32::MAX } else { OWN_FAILURES_MAX };
            store::jobs::fail(&mut tx, lease, now + backoff(lease.failures), &text, failures_max, now).await?
        };
        tx.commit().await?;
        if is_parked {
            tracing::error!(
                job.id = %lease.id, job.kind = kind, job.object_id = %lease.object_id, job.failures = failures,
                error = %text, "a job is parked: mend what it fails for, then `paybridge jobs retry` it"
            );
        } else if is_endless && failures >= OWN_FAILURES_MAX {
            tracing::error!(
                job.id = %lease.id, job.kind = kind, job.object_id = %lease.object_id, job.failures = failures,
                error = %text, "what watches over an integration has failed for long"
            );
        } else {
            tracing::warn!(job.id = %lease.id, job.kind = kind, job.failures = failures, error = %text, "a job failed");
        }
        Ok(())
    }

    /// Jobs for an operator to look at, oldest first, at most 1,000: of all organizations or of one, all or only the
    /// parked ones.
    pub async fn list_jobs(&self, org: Option<OrganizationId>, only_parked: bool) -> Result<Vec<JobReport>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::parked_jobs::list(&mut tx, org, only_parked, LISTED_MAX).await
    }

    /// Makes a job due now, parked or not; without an id all that are parked. Returns how many that were.
    pub async fn retry_jobs(&self, id: Option<JobId>) -> Result<usize> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let retried = store::parked_jobs::retry(&mut tx, id, self.clock().now()).await?;
        tx.commit().await?;
        match id {
            Some(id) if retried == 0 => Err(Error::not_found("job", id)),
            _ => Ok(retried),
        }
    }

    /// How many jobs are parked, by kind.
    pub async fn parked_jobs(&self) -> Result<Vec<(String, i32)>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::parked_jobs::count(&mut tx).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let pauses: Vec<_> = (0..20).map(backoff).collect();
        assert!(pauses.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(pauses[0], Duration::SECOND);
        assert_eq!(backoff(i32::MAX), Duration::minutes(30));
        assert_eq!(backoff_away(i32::MAX), Duration::minutes(5));
    }
}
