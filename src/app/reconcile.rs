//! Reconciliation: reads from Stripe what no event has reported. Each live integration has three reconcilers: a *sweep*
//! of what has been in flight for too long (here), a poll of the events list (`deliveries/poll`), and a check of the
//! webhook endpoint (`integrations/endpoint`). What they find is applied like a webhook, so that repeats change nothing
//! (P6). What they repair is counted.

use std::time::Duration as RealDuration;

use time::{Duration, OffsetDateTime};

use super::deliveries::SignalOrigin;
use super::unit_of_work::UnitOfWork;
use super::{App, if_allowed, if_found};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::reconcile::ReadSchedule;
use crate::domain::signals::SessionSnapshot;
use crate::domain::stripe_requests::KEY_AGE_MAX;
use crate::domain::{CheckoutSessionId, IntegrationId, OrganizationId, Result};
use crate::store::jobs::{NewJob, RequestedBy};
use crate::store::{self, Notification, Scope};
use crate::stripe;
use crate::stripe::Operation;

/// The minimum interval of reconcilers in real time, however fast the clock runs.
const INTERVAL_REAL_MIN: RealDuration = RealDuration::from_millis(100);

/// How many reconcilers one transaction enqueues (P11).
const BATCH: i64 = 1_000;

/// Counts what a reconciler repaired: an `event` that only the list reported, an object whose state a read changed, an
/// `endpoint`.
pub(super) fn record_repair(kind: &'static str, count: usize) {
    metrics::counter!("paybridge_repairs_total", "kind" => kind).increment(count as u64);
}

impl App {
    /// The outcome of a reconciler's run: the next one, `period` after `now`.
    pub(super) fn next_run(&self, now: OffsetDateTime, period: Duration) -> Outcome {
        Outcome::RunAgain(now + period.max(self.clock().shown(INTERVAL_REAL_MIN)))
    }

    /// Enqueues the reconcilers of a new integration. If the events list replaces webhooks, it is read at once.
    pub(super) fn start_reconcilers(&self, work: &mut UnitOfWork, integration: &Integration) {
        let (id, now, periods) = (integration.id.0, work.now, &self.0.settings.periods);
        let first_read = if integration.polls_events { now } else { now + self.list_period(integration) };
        work.enqueue_at(JobKind::PollEvents, id, first_read);
        work.enqueue_at(JobKind::SweepIntegration, id, now + periods.sweep);
        work.enqueue_at(JobKind::CheckEndpoint, id, now + self.endpoint_period(integration));
    }

    /// Enqueues the missing reconcilers of live integrations, such as those that an earlier release connected. For a
    /// timer.
    pub(super) async fn enqueue_missing_reconcilers(&self) -> Result<()> {
        loop {
            let now = self.clock().now();
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let missing = store::integration_health::missing_reconcilers(&mut tx, BATCH).await?;
            let new_job = |(organization_id, id, kind): (OrganizationId, IntegrationId, JobKind)| NewJob {
                organization_id,
                kind,
                object_id: id.0,
                object_key: String::new(),
                object_time: None,
                run_at: now,
            };
            let jobs: Vec<NewJob> = missing.into_iter().map(new_job).collect();
            store::jobs::enqueue(&mut tx, &jobs, RequestedBy::Paybridge, now, || self.clock().new_id()).await?;
            tx.commit().await?;
            if jobs.is_empty() {
                return Ok(());
            }
            self.0.notifier.notify(Notification::Jobs);
        }
    }

    /// Runs the sweep: each of the integration's stale objects gets a job of its own. What falls due while no process
    /// runs, or while the key does not work, is read once by the next sweep.
    pub(super) async fn sweep_integration(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::get(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Active {
            work.rollback().await?;
            self.report_expiring(lease, &integration).await?;
            work = self.begin_leased(lease).await?;
        }
        let now = work.now;
        match integration.state {
            IntegrationState::Disconnected => return work.end(Outcome::Done).await,
            IntegrationState::Active | IntegrationState::Disconnecting => {
                let before = store::integration_health::sweep_time(&mut work.tx, org, id).await?;
                let before = before.unwrap_or(OffsetDateTime::UNIX_EPOCH);
                let key_age_max = KEY_AGE_MAX.unsigned_abs();
                let oldest = now - ReadSchedule::Normal.first_read();
                let stale = store::stale::list(&mut work.tx, org, id, oldest, key_age_max).await?;
                for found in stale.into_iter().filter(|found| found.schedule.is_due(found.changed, before, now)) {
                    work.enqueue_at(found.kind, found.object_id, now);
                }
                store::integration_health::set_sweep_time(&mut work.tx, org, id, now).await?;
            }
            IntegrationState::Connecting | IntegrationState::Paused => {}
        }
        work.end(self.next_run(now, self.0.settings.periods.sweep)).await
    }

    /// Runs the job of a Checkout session past its expiry: it was completed or has expired, and no event has reported
    /// it.
    pub(super) async fn reconcile_session(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let session = self.current_session(org, id).await?;
        let open = session.provider_session_id.as_ref().filter(|_| session.state == SessionState::Open);
        if let Some(provider_id) = open {
            let account = self.stripe_account(org, session.integration_id).await?;
            let read = async {
                let read = self.0.stripe.checkout_session(&account.key, provider_id).await?;
                let method_time = self.method_create_time(&account.key, &read).await?;
                Ok::<_, stripe::Error>((read, method_time))
            };
            let (read, method_time) = self.checked(&account, Operation::CheckoutSessionRead, read.await).await?;
            let event_time = method_time.unwrap_or_else(|| self.clock().now());
            let origin = SignalOrigin { lease, integration_id: session.integration_id, event_time, request_key: None };
            self.on_session_event(&origin, &read).await?;
            if self.current_session(org, id).await?.state != SessionState::Open {
                record_repair("checkout_session", 1);
            }
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    async fn current_session(&self, org: OrganizationId, id: CheckoutSessionId) -> Result<CheckoutSession> {
        let mut tx = self.read(org).await?;
        let session = store::checkout_sessions::lock(&mut tx, org, id).await?;
        tx.close().await?;
        Ok(session)
    }

    /// When the method that a session stored was created. No event has reported when it was attached, and it must not
    /// count as newer than it is.
    async fn method_create_time(
        &self,
        key: &stripe::ApiKey,
        session: &SessionSnapshot,
    ) -> Result<Option<OffsetDateTime>, stripe::Error> {
        let Some(setup) = &session.provider_setup_intent_id else { return Ok(None) };
        let setup = if_allowed(self.0.stripe.setup_intent(key, setup).await)?.flatten();
        let Some(method) = setup.and_then(|setup| setup.provider_payment_method_id) else { return Ok(None) };
        let method = if_found(self.0.stripe.payment_method(key, &method).await)?;
        Ok(method.map(|method| method.created))
    }
}
