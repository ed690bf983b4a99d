//! One transaction that changes something. It takes all locks in one order: rows first, then jobs, then the event log's
//! counter (P5), and commits all three together (P4).

use time::OffsetDateTime;
use uuid::Uuid;

use super::App;
use crate::domain::events::NewEvent;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::stripe_requests::{KeyScope, RequestTarget, StripeRequest};
use crate::domain::{OrganizationId, Result};
use crate::failpoints::{self, Failpoint};
use crate::store::jobs::{NewJob, RequestedBy};
use crate::store::{self, Notification, Scope, Transaction};

/// A transaction in progress, with the jobs and events to write at its commit.
pub(super) struct UnitOfWork {
    /// Reads and writes rows.
    pub tx: Transaction,
    pub org: OrganizationId,
    /// When the transaction began.
    pub now: OffsetDateTime,
    app: App,
    events: Vec<NewEvent>,
    jobs: Vec<NewJob>,
    lease: Option<(Lease, Option<Outcome>)>,
}

/// Who makes the change.
#[derive(Clone, Copy)]
pub(super) enum Actor<'a> {
    /// A job. Its writes commit only while its lease is held (P8).
    Job(&'a Lease),
    /// A caller, authenticated for the organization.
    Caller(OrganizationId),
}

impl Actor<'_> {
    pub fn org(self) -> OrganizationId {
        match self {
            Self::Job(lease) => lease.organization_id,
            Self::Caller(org) => org,
        }
    }
}

impl App {
    /// Begins a change as `actor`.
    pub(super) async fn begin_as(&self, actor: Actor<'_>) -> Result<UnitOfWork> {
        match actor {
            Actor::Job(lease) => self.begin_leased(lease).await,
            Actor::Caller(org) => self.begin(org).await,
        }
    }

    pub(super) async fn begin(&self, org: OrganizationId) -> Result<UnitOfWork> {
        let tx = self.0.pool.begin(Scope::Tenant(org)).await?;
        let now = self.0.clock.now();
        Ok(UnitOfWork { tx, org, now, app: self.clone(), events: Vec::new(), jobs: Vec::new(), lease: None })
    }

    /// Begins a change made by a job. It commits only while the lease is held (P8).
    pub(super) async fn begin_leased(&self, lease: &Lease) -> Result<UnitOfWork> {
        let mut work = self.begin(lease.organization_id).await?;
        work.lease = Some((lease.clone(), None));
        Ok(work)
    }
}

impl UnitOfWork {
    /// Adds an event, written at the commit.
    pub(super) fn record_event(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Adds events, written at the commit.
    pub(super) fn record_events(&mut self, events: impl IntoIterator<Item = NewEvent>) {
        self.events.extend(events);
    }

    /// Enqueues a job at the commit, to run immediately.
    pub(super) fn enqueue(&mut self, kind: JobKind, object_id: Uuid) {
        self.enqueue_at(kind, object_id, self.now);
    }

    /// Enqueues a job at the commit, to run at `run_at`.
    pub(super) fn enqueue_at(&mut self, kind: JobKind, object_id: Uuid, run_at: OffsetDateTime) {
        let object_key = String::new();
        let organization_id = self.org;
        self.jobs.push(NewJob { organization_id, kind, object_id, object_key, object_time: None, run_at });
    }

    /// Enqueues a job at the commit.
    pub(super) fn enqueue_job(&mut self, job: NewJob) {
        self.jobs.push(job);
    }

    /// The name of this installation, which is in the metadata of every object at Stripe.
    pub(super) fn installation(&self) -> &str {
        &self.app.0.settings.installation
    }

    /// Whose keys the requests to Stripe have.
    pub(super) fn key_scope(&self) -> KeyScope<'_> {
        KeyScope { installation: self.installation(), organization: self.org }
    }

    /// Stores a request to Stripe with this change, before it is first sent (P2).
    pub(super) async fn prepare(
        &mut self,
        target: &RequestTarget,
        generation: i32,
        body: String,
    ) -> Result<StripeRequest> {
        let request = target.request(self.key_scope(), generation, body, self.now);
        store::stripe_requests::insert(&mut self.tx, self.org, target, &request).await?;
        Ok(request)
    }

    /// How long a customer has to authenticate (3-D Secure).
    pub(super) fn action_period(&self) -> time::Duration {
        self.app.0.settings.action_period
    }

    /// Rolls back, and waits for the rollback: no transaction may be open when Stripe is called next (P3).
    pub(super) async fn rollback(self) -> Result<()> {
        self.tx.close().await
    }

    /// Commits, and ends the job that made the change.
    pub(super) async fn end(mut self, outcome: Outcome) -> Result<()> {
        if let Some((_, end)) = &mut self.lease {
            *end = Some(outcome);
        }
        self.commit().await
    }

    /// Commits. The job that made the change, if any, continues.
    pub(super) async fn commit(self) -> Result<()> {
        let Self { mut tx, org, now, app, events, jobs, lease } = self;
        let clock = app.clock();
        // Whatever a caller was promised is attempted, even if its job was parked before (P8).
        let by = if lease.is_some() { RequestedBy::Paybridge } else { RequestedBy::Caller };
        // Enqueued jobs are locked before the job's own row, everywhere: otherwise two jobs that enqueue each other
        // deadlock.
        store::jobs::enqueue(&mut tx, &jobs, by, now, || clock.new_id()).await?;
        if let Some((lease, end)) = &lease {
            match end {
                None => store::jobs::verify_lease(&mut tx, lease).await?,
                Some(Outcome::Done) => store::jobs::finish(&mut tx, lease, now).await?,
                Some(Outcome::RunAgain(run_at)) => store::jobs::release(&mut tx, lease, *run_at, None).await?,
                Some(Outcome::Postponed(run_at)) => store::jobs::postpone(&mut tx, lease, *run_at).await?,
                Some(Outcome::Retry(error)) => {
                    let run_at = now + super::jobs::backoff_unavailable(lease.failures);
                    store::jobs::release(&mut tx, lease, run_at, Some(error)).await?;
                }
            }
        }
        store::events::append(&mut tx, org, &events, now, || clock.new_id()).await?;
        failpoints::hit(Failpoint::BeforeCommit);
        tx.commit().await?;
        failpoints::hit(Failpoint::AfterCommit);
        if !jobs.is_empty() {
            app.0.notifier.notify(Notification::Jobs);
        }
        if !events.is_empty() {
            app.0.notifier.notify(Notification::Events(org));
        }
        Ok(())
    }
}
