//! Durable jobs: dispatch to the use cases, and what happens when they fail.

use std::time::Duration as RealDuration;

use time::Duration;
use tracing::Instrument as _;
use uuid::Uuid;

use super::App;
use crate::domain::jobs::{Capacity, JobFilter, JobKind, JobReport, Lease, Outcome};
use crate::domain::{Error, JobId, OrganizationId, Result};
use crate::failpoints::{self, Failpoint};
use crate::store::jobs::JobFailure;
use crate::store::{self, Notification, Scope};
use crate::stripe;

/// How long a lease lasts unless it is renewed, in clock time.
pub const LEASE_PERIOD: Duration = Duration::seconds(10);

/// The minimum duration of a lease in real time, however fast the clock runs.
const LEASE_REAL_MIN: RealDuration = RealDuration::from_secs(2);

/// After how many failed attempts a job is parked, if the failure is its own: several hours with the backoff below.
/// Nothing that was accepted is lost (P8): the job waits for an operator, with its reason, and holds up no other job.
const OWN_FAILURES_MAX: i32 = 20;

/// The maximum backoff while Stripe or the database is unavailable.
const UNAVAILABLE_BACKOFF_MAX: Duration = Duration::minutes(5);

/// The maximum backoff of jobs that are never parked: whether an integration may collect depends on them.
const NEVER_PARKED_BACKOFF_MAX: Duration = Duration::MINUTE;

/// The maximum number of jobs listed (P11).
const LISTED_MAX: i64 = 1_000;

/// The backoff before the next attempt: 1 s, 2 s, 5 s, 15 s, 30 s, 1 min, 2 min, 5 min, then every 30 min.
pub(super) fn backoff(failures: i32) -> Duration {
    const SECONDS: [i64; 9] = [1, 2, 5, 15, 30, 60, 120, 300, 1800];
    let step = usize::try_from(failures).unwrap_or_default().min(SECONDS.len() - 1);
    Duration::seconds(SECONDS[step])
}

/// The backoff if the job is not at fault: whatever was unavailable may be back soon.
pub(super) fn backoff_unavailable(failures: i32) -> Duration {
    backoff(failures).min(UNAVAILABLE_BACKOFF_MAX)
}

impl App {
    /// Leases as many due jobs as `capacity` allows, round-robin over organizations and kinds. What was leased is
    /// deducted from `capacity`.
    pub async fn lease_jobs(&self, capacity: &mut Capacity) -> Result<Vec<Lease>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::make_due(&mut tx, self.clock().now()).await?;
        let leases = store::leases::lease(&mut tx, capacity, self.lease_period()).await?;
        tx.commit().await?;
        if !leases.is_empty() {
            failpoints::hit(Failpoint::AfterLease);
        }
        Ok(leases)
    }

    /// Frees jobs with an expired lease, at most 200. Returns whether there may be more.
    pub async fn release_expired_leases(&self) -> Result<bool> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let freed = store::leases::release_expired(&mut tx).await?;
        tx.commit().await?;
        if freed > 0 {
            tracing::debug!(freed, "expired leases released");
            self.0.notifier.notify(Notification::Jobs);
        }
        Ok(freed > 0)
    }

    /// Renews leases, given by job and epoch. Returns the jobs still held.
    pub async fn renew_leases(&self, held: &[(Uuid, i64)]) -> Result<Vec<Uuid>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let renewed = store::leases::renew(&mut tx, held, self.lease_period()).await?;
        tx.commit().await?;
        Ok(renewed)
    }

    /// Releases leases, given by job and epoch, so that other workers need not wait for them to expire.
    pub async fn release_leases(&self, held: &[(Uuid, i64)]) -> Result<()> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::release(&mut tx, held).await?;
        tx.commit().await?;
        self.0.notifier.notify(Notification::Jobs);
        Ok(())
    }

    /// At least as long as a round trip to the database may take, even on a fast clock.
    fn lease_period(&self) -> RealDuration {
        self.clock().real(LEASE_PERIOD).max(LEASE_REAL_MIN)
    }

    /// When the next scheduled job becomes due.
    pub async fn next_job_due(&self) -> Result<Option<time::OffsetDateTime>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::leases::next_due(&mut tx).await
    }

    /// Returns once this process, or another one that notified us, has enqueued jobs.
    pub async fn jobs_enqueued(&self) {
        self.0.notifier.jobs().await;
    }

    /// Runs a job. Its use case ends the job in the transaction of its last change. A job that fails is rescheduled.
    pub async fn perform(&self, lease: &Lease) {
        // In a task of its own, so that a panic counts as a failed attempt and the job is not leased again forever.
        let task = tokio::spawn({
            let (app, lease) = (self.clone(), lease.clone());
            async move { Box::pin(app.dispatch(&lease)).await }.in_current_span()
        });
        let Err(error) = task.await.unwrap_or_else(|panic| Err(Error::internal(panic))) else { return };
        if matches!(error, Error::LeaseLost) {
            tracing::info!(job.id = %lease.id, job.kind = lease.kind.as_str(), "job lease lost to another worker");
            return;
        }
        let result = match &error {
            // The job's object was disconnected with the integration: there is nothing left to do at Stripe.
            Error::FailedPrecondition { reason: "INTEGRATION_DISCONNECTED", .. } if lease.kind != JobKind::CatchUp => {
                self.drop_job(lease).await
            }
            _ => self.reschedule(lease, &error).await,
        };
        if let Err(error) = result
            && !error.is_database_unavailable()
        {
            tracing::warn!(job.id = %lease.id, %error, "failed job not rescheduled; it runs again after its lease");
        }
    }

    async fn drop_job(&self, lease: &Lease) -> Result<()> {
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    async fn dispatch(&self, lease: &Lease) -> Result<()> {
        match lease.kind {
            JobKind::SubmitPayment => Box::pin(self.submit_payment(lease)).await,
            JobKind::ReconcilePayment => self.reconcile_payment(lease).await,
            JobKind::RefundPayment => self.finish_refund(lease).await,
            JobKind::ApplyDelivery => self.apply_delivery(lease).await,
            JobKind::SyncCustomer => self.sync_customer(lease).await,
            JobKind::ImportPaymentMethods => self.import_payment_methods(lease).await,
            JobKind::PushDefaultMethod => self.push_default_method(lease).await,
            JobKind::DetachMethod => self.detach_method(lease).await,
            JobKind::CreateCheckoutSession => self.create_checkout_session(lease).await,
            JobKind::ConnectIntegration => self.finish_connecting(lease).await,
            JobKind::DisconnectIntegration => self.finish_disconnecting(lease).await,
            JobKind::PollEvents => self.poll_events(lease).await,
            JobKind::SweepIntegration => self.sweep_integration(lease).await,
            JobKind::CheckEndpoint => self.maintain_endpoint(lease).await,
            JobKind::ReconcileSession => self.reconcile_session(lease).await,
            JobKind::CatchUp => self.catch_up(lease).await,
        }
    }

    /// How a job ends if its call to Stripe was not carried out, or has an unknown outcome.
    pub(super) fn outcome_of(&self, error: &stripe::Error) -> Outcome {
        match error.retry_delay() {
            Some(wait) => Outcome::Postponed(self.clock().now() + wait),
            None => Outcome::Retry(error.to_string()),
        }
    }

    async fn reschedule(&self, lease: &Lease, error: &Error) -> Result<()> {
        if let Error::Throttled { retry_after, .. } = error {
            tracing::debug!(job.id = %lease.id, job.kind = lease.kind.as_str(), %error, "job postponed");
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
        let is_never_parked = lease.kind.is_never_parked();
        let delay_max = if is_never_parked { NEVER_PARKED_BACKOFF_MAX } else { Duration::MAX };
        let mut tx = self.read(lease.organization_id).await?;
        let is_parked = if matches!(error, Error::Unavailable { .. }) {
            store::jobs::release(&mut tx, lease, now + backoff_unavailable(lease.failures).min(delay_max), Some(&text))
                .await?;
            false
        } else {
            // No other job does its work.
            let failures_max = if is_never_parked { i32::MAX } else { OWN_FAILURES_MAX };
            let run_at = now + backoff(lease.failures).min(delay_max);
            let failure = JobFailure { error: text.clone(), run_at, failures_max };
            store::jobs::fail(&mut tx, lease, &failure, now).await?
        };
        tx.commit().await?;
        if is_parked {
            tracing::error!(
                job.id = %lease.id, job.kind = kind, job.object_id = %lease.object_id, job.failures = failures,
                error = %text, "job parked; fix the cause, then run `paybridge jobs retry`"
            );
        } else if is_never_parked && failures >= OWN_FAILURES_MAX {
            tracing::error!(
                job.id = %lease.id, job.kind = kind, job.object_id = %lease.object_id, job.failures = failures,
                error = %text, "job keeps failing"
            );
        } else {
            tracing::warn!(job.id = %lease.id, job.kind = kind, job.failures = failures, error = %text, "job failed");
        }
        Ok(())
    }

    /// Lists jobs for an operator, oldest first, at most 1,000, of all organizations or of one.
    pub async fn list_jobs(&self, org: Option<OrganizationId>, filter: JobFilter) -> Result<Vec<JobReport>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::parked_jobs::list(&mut tx, org, filter, LISTED_MAX).await
    }

    /// Makes a job due now, parked or not; without an id, all parked jobs. Returns the number of jobs.
    pub async fn retry_jobs(&self, id: Option<JobId>) -> Result<usize> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let retried = store::parked_jobs::retry(&mut tx, id, self.clock().now()).await?;
        tx.commit().await?;
        match id {
            Some(id) if retried == 0 => Err(Error::not_found("job", id)),
            _ => Ok(retried),
        }
    }

    /// The number of parked jobs by kind.
    pub async fn parked_jobs(&self) -> Result<Vec<(String, i32)>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::parked_jobs::count(&mut tx).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_grows_and_is_bounded() {
        let backoffs: Vec<_> = (0..20).map(backoff).collect();
        assert!(backoffs.windows(2).all(|pair| pair[0] <= pair[1]));
        assert_eq!(backoffs[0], Duration::SECOND);
        assert_eq!(backoff(i32::MAX), Duration::minutes(30));
        assert_eq!(backoff_unavailable(i32::MAX), Duration::minutes(5));
    }
}
