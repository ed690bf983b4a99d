//! Durable work: which use case a job leads to, and what happens to it when that fails.

use std::time::Duration as RealDuration;

use time::Duration;
use tracing::Instrument as _;
use uuid::Uuid;

use super::App;
use crate::crash::{self, Point};
use crate::domain::jobs::{JobKind, Lease};
use crate::domain::{Error, Result};
use crate::store::{self, Scope};

/// How long a lease lasts unless it is renewed, in the clock's time.
pub const LEASE_PERIOD: Duration = Duration::seconds(10);

/// The least that a lease lasts, real time, however fast the clock runs.
const LEASE_REAL_MIN: RealDuration = RealDuration::from_secs(2);

/// Failed tries after which a job is an error for an operator to look at: with the backoff below, some hours of them. It
/// goes on being tried, because nothing that was accepted may be lost (P8).
const FAILURES_ALARMING: i32 = 20;

/// The pause before the next try: 1 s, 2 s, 5 s, 15 s, 30 s, 1 min, 2 min, 5 min, then every 30 min.
pub(super) fn backoff(failures: i32) -> Duration {
    const SECONDS: [i64; 9] = [1, 2, 5, 15, 30, 60, 120, 300, 1800];
    let step = usize::try_from(failures).unwrap_or_default().min(SECONDS.len() - 1);
    Duration::seconds(SECONDS[step])
}

impl App {
    /// Leases at most `limit` jobs that are due.
    pub async fn lease_jobs(&self, limit: i64) -> Result<Vec<Lease>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let leases = store::jobs::lease(&mut tx, self.clock().now(), limit, self.lease_period()).await?;
        tx.commit().await?;
        if !leases.is_empty() {
            crash::point(Point::AfterLease);
        }
        Ok(leases)
    }

    /// Prolongs leases, given by job and epoch; returns the jobs that are still ours.
    pub async fn renew_leases(&self, held: &[(Uuid, i64)]) -> Result<Vec<Uuid>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        let renewed = store::jobs::renew(&mut tx, held, self.lease_period()).await?;
        tx.commit().await?;
        Ok(renewed)
    }

    /// A lease lasts as long on a fast clock as a round trip to the database may take.
    fn lease_period(&self) -> RealDuration {
        self.clock().real(LEASE_PERIOD).max(LEASE_REAL_MIN)
    }

    /// When the next job is due that nobody holds.
    pub async fn next_job_due(&self) -> Result<Option<time::OffsetDateTime>> {
        let mut tx = self.0.pool.begin(Scope::System).await?;
        store::jobs::next_due(&mut tx).await
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
        if let Err(error) = self.give_back(lease, &error).await {
            tracing::warn!(job.id = %lease.id, %error, "the job could not be given back; its lease will run out");
        }
    }

    async fn dispatch(&self, lease: &Lease) -> Result<()> {
        match lease.kind {
            JobKind::SubmitPayment => self.submit_payment(lease).await,
            JobKind::CancelPayment => self.finish_cancellation(lease).await,
            JobKind::ReconcilePayment => self.reconcile_payment(lease).await,
            JobKind::ApplyDelivery => self.apply_delivery(lease).await,
            JobKind::SyncCustomer => self.sync_customer(lease).await,
            JobKind::ImportPaymentMethods => self.import_payment_methods(lease).await,
            JobKind::PushDefaultMethod => self.push_default_method(lease).await,
            JobKind::DetachMethod => self.detach_method(lease).await,
            JobKind::CreateCheckoutSession => self.make_checkout_session(lease).await,
            JobKind::ConnectIntegration => self.finish_connecting(lease).await,
            JobKind::DisconnectIntegration => self.finish_disconnecting(lease).await,
            JobKind::PollEvents => self.poll_events(lease).await,
        }
    }

    async fn give_back(&self, lease: &Lease, error: &Error) -> Result<()> {
        let text = match error {
            Error::Internal(source) => format!("{source:#}"),
            other => other.to_string(),
        };
        let now = self.clock().now();
        let (kind, failures) = (lease.kind.as_str(), lease.failures + 1);
        if failures >= FAILURES_ALARMING {
            tracing::error!(job.id = %lease.id, job.kind = kind, job.failures = failures, error = %text, "a job fails");
        } else {
            tracing::warn!(job.id = %lease.id, job.kind = kind, job.failures = failures, error = %text, "a job failed");
        }
        let mut tx = self.read(lease.organization_id).await?;
        store::jobs::release(&mut tx, lease, now + backoff(lease.failures), Some(&text)).await?;
        tx.commit().await
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
    }
}
