//! Asking Stripe about what nobody has told of. Three jobs watch over each integration for as long as it lives: a *sweep*
//! of what has been moving for too long (here), a read of the events list (`deliveries/poll`), and a look at the webhook
//! endpoint (`integrations/endpoint`). Whatever they find takes the same way as a webhook, so that a repeat of it changes
//! nothing (P6); what they mend is counted.

use std::time::Duration as RealDuration;

use time::{Duration, OffsetDateTime};

use super::customers::if_allowed;
use super::deliveries::About;
use super::work::Work;
use super::{App, KEY_AGE_MAX};
use crate::domain::checkout_sessions::{CheckoutSession, SessionState};
use crate::domain::integrations::{Integration, IntegrationState};
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::reconcile::Pace;
use crate::domain::signals::SessionSnapshot;
use crate::domain::{CheckoutSessionId, IntegrationId, OrganizationId, Result};
use crate::store::jobs::{By, NewJob};
use crate::store::{self, Hint, Scope};
use crate::stripe;

/// How far apart they look at least, real time, however fast the clock runs.
const LOOK_AFTER: RealDuration = RealDuration::from_millis(100);

/// How many reconcilers are made in one transaction (P11).
const BATCH: i64 = 1_000;

/// How far apart reconcilers look, in the clock's time.
#[derive(Clone, Copy, Debug)]
pub struct Periods {
    /// At the events list, where it stands in for webhooks, with a test key.
    pub poll_test: Duration,
    /// The same with a live key: Stripe rations reads.
    pub poll_live: Duration,
    /// At the events list beside webhooks, with a test key.
    pub list_test: Duration,
    /// The same with a live key.
    pub list_live: Duration,
    /// At what has been moving for long.
    pub sweep: Duration,
    /// At the webhook endpoint.
    pub endpoint: Duration,
}

impl Default for Periods {
    fn default() -> Self {
        Self {
            poll_test: Duration::seconds(5),
            poll_live: Duration::minutes(5),
            list_test: Duration::MINUTE,
            list_live: Duration::minutes(10),
            sweep: Duration::MINUTE,
            endpoint: Duration::HOUR,
        }
    }
}

/// Counts what a reconciler has mended: an `event` that only the list brought, an object whose state a read changed, an
/// `endpoint`.
pub(super) fn mended(kind: &'static str, count: usize) {
    metrics::counter!("paybridge_mended_total", "kind" => kind).increment(count as u64);
}

impl App {
    /// How a reconciler's look ends: with the next one, `period` after `now`.
    pub(super) fn look_again(&self, now: OffsetDateTime, period: Duration) -> Outcome {
        Outcome::Again(now + period.max(self.clock().shown(LOOK_AFTER)))
    }

    /// Gives a new integration its reconcilers. Where the events list stands in for webhooks it is read at once.
    pub(super) fn start_reconcilers(&self, work: &mut Work, integration: &Integration) {
        let (id, now, periods) = (integration.id.0, work.now, &self.0.settings.periods);
        let first_read = if integration.polls_events { now } else { now + self.list_period(integration) };
        work.ask_at(JobKind::PollEvents, id, first_read);
        work.ask_at(JobKind::SweepIntegration, id, now + periods.sweep);
        work.ask_at(JobKind::CheckEndpoint, id, now + periods.endpoint);
    }

    /// Gives every live integration the reconcilers that it lacks: one that an earlier release has connected, say. For a
    /// timer.
    pub(super) async fn make_reconcilers(&self) -> Result<()> {
        loop {
            let now = self.clock().now();
            let mut tx = self.0.pool.begin(Scope::System).await?;
            let missing = store::upkeep::missing_reconcilers(&mut tx, BATCH).await?;
            let new_job = |(organization_id, id, kind): (OrganizationId, IntegrationId, JobKind)| NewJob {
                organization_id,
                kind,
                object_id: id.0,
                object_key: String::new(),
                object_time: None,
                run_at: now,
            };
            let jobs: Vec<NewJob> = missing.into_iter().map(new_job).collect();
            store::jobs::ask(&mut tx, &jobs, By::Ourselves, now, || self.clock().new_id()).await?;
            tx.commit().await?;
            if jobs.is_empty() {
                return Ok(());
            }
            self.0.wake.tell(Hint::Jobs);
        }
    }

    /// The job of an integration whose stale objects are to be asked about: each of them gets a job of its own. What falls
    /// due while nobody looks, or while the key is no good, is asked about once at the next look.
    pub(super) async fn sweep_integration(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let mut work = self.begin_leased(lease).await?;
        let integration = store::integrations::get(&mut work.tx, org, id).await?;
        if integration.state == IntegrationState::Active {
            work.abandon().await?;
            self.report_expiring(lease, &integration).await?;
            work = self.begin_leased(lease).await?;
        }
        let now = work.now;
        match integration.state {
            IntegrationState::Disconnected => return work.end(Outcome::Done).await,
            IntegrationState::Active | IntegrationState::Disconnecting => {
                let before = store::upkeep::sweep_time(&mut work.tx, org, id).await?;
                let before = before.unwrap_or(OffsetDateTime::UNIX_EPOCH);
                let key_age_max = KEY_AGE_MAX.unsigned_abs();
                let oldest = now - Pace::Usual.first_read();
                let stale = store::stale::all(&mut work.tx, org, id, oldest, key_age_max).await?;
                for found in stale.into_iter().filter(|found| found.pace.is_due(found.changed, before, now)) {
                    work.ask_at(found.kind, found.object_id, now);
                }
                store::upkeep::set_sweep_time(&mut work.tx, org, id, now).await?;
            }
            IntegrationState::Connecting | IntegrationState::Paused => {}
        }
        work.end(self.look_again(now, self.0.settings.periods.sweep)).await
    }

    /// The job of a Checkout session that is past its end: it was used, or has ended, and nobody has told.
    pub(super) async fn reconcile_session(&self, lease: &Lease) -> Result<()> {
        let (org, id) = (lease.organization_id, lease.object_id.into());
        let session = self.session_now(org, id).await?;
        let open = session.provider_session_id.as_ref().filter(|_| session.state == SessionState::Open);
        if let Some(provider_id) = open {
            let access = self.access(org, session.integration_id).await?;
            let read = async {
                let read = self.0.stripe.checkout_session(&access.key, provider_id).await?;
                let stored = self.time_stored(&access.key, &read).await?;
                Ok::<_, stripe::Error>((read, stored))
            };
            let (read, stored) = match read.await {
                Ok(read) => read,
                Err(error) => return Err(self.stripe_trouble(&access, "checkout_session.read", &error).await),
            };
            let event_time = stored.unwrap_or_else(|| self.clock().now());
            let about = About { lease, integration_id: session.integration_id, event_time, request_key: None };
            self.session_told(&about, &read).await?;
            if self.session_now(org, id).await?.state != SessionState::Open {
                mended("checkout_session", 1);
            }
        }
        self.begin_leased(lease).await?.end(Outcome::Done).await
    }

    async fn session_now(&self, org: OrganizationId, id: CheckoutSessionId) -> Result<CheckoutSession> {
        let mut tx = self.read(org).await?;
        let session = store::checkout_sessions::lock(&mut tx, org, id).await?;
        tx.close().await?;
        Ok(session)
    }

    /// When the method that a session brought was made: no event has told when it was attached, and it must not count as
    /// newer than it is.
    async fn time_stored(
        &self,
        key: &stripe::ApiKey,
        session: &SessionSnapshot,
    ) -> Result<Option<OffsetDateTime>, stripe::Error> {
        let Some(setup) = &session.provider_setup_intent_id else { return Ok(None) };
        let setup = if_allowed(self.0.stripe.setup_intent(key, setup).await)?.flatten();
        let Some(method) = setup.and_then(|setup| setup.provider_payment_method_id) else { return Ok(None) };
        match self.0.stripe.payment_method(key, &method).await {
            Ok(method) => Ok(Some(method.created)),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
