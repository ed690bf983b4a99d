//! One transaction that changes something. It keeps the order in which everything of ours is locked: rows first, then
//! jobs, then the event log's counter (P5), and it commits all three together (P4).

use time::OffsetDateTime;
use uuid::Uuid;

use super::App;
use crate::crash::{self, Point};
use crate::domain::events::NewEvent;
use crate::domain::jobs::{JobKind, Lease, Outcome};
use crate::domain::{OrganizationId, Result};
use crate::store::jobs::{By, NewJob};
use crate::store::requests::{FrozenRequest, Purpose};
use crate::store::{self, Hint, Scope, Transaction};

/// A change in the making.
pub(super) struct Work {
    /// Where rows are read and written.
    pub tx: Transaction,
    /// The tenant.
    pub org: OrganizationId,
    /// The time of the change.
    pub now: OffsetDateTime,
    app: App,
    events: Vec<NewEvent>,
    jobs: Vec<NewJob>,
    lease: Option<(Lease, Option<Outcome>)>,
}

/// Who makes a change.
#[derive(Clone, Copy)]
pub(super) enum Hand<'a> {
    /// A job: its writes commit only while the lease is its own (P8).
    Job(&'a Lease),
    /// A caller of the organization, or whoever acts for one.
    Caller(OrganizationId),
}

impl Hand<'_> {
    /// The tenant.
    pub fn org(self) -> OrganizationId {
        match self {
            Self::Job(lease) => lease.organization_id,
            Self::Caller(org) => org,
        }
    }
}

impl App {
    /// Begins a change of whosever hand it is.
    pub(super) async fn begin_by(&self, hand: Hand<'_>) -> Result<Work> {
        match hand {
            Hand::Job(lease) => self.begin_leased(lease).await,
            Hand::Caller(org) => self.begin(org).await,
        }
    }

    /// Begins a change.
    pub(super) async fn begin(&self, org: OrganizationId) -> Result<Work> {
        let tx = self.0.pool.begin(Scope::Tenant(org)).await?;
        let now = self.0.clock.now();
        Ok(Work { tx, org, now, app: self.clone(), events: Vec::new(), jobs: Vec::new(), lease: None })
    }

    /// Begins a change that a job leads to: it commits only while the lease is ours (P8).
    pub(super) async fn begin_leased(&self, lease: &Lease) -> Result<Work> {
        let mut work = self.begin(lease.organization_id).await?;
        work.lease = Some((lease.clone(), None));
        Ok(work)
    }
}

impl Work {
    /// Writes an event with this change.
    pub(super) fn tell(&mut self, event: NewEvent) {
        self.events.push(event);
    }

    /// Writes events with this change.
    pub(super) fn tell_all(&mut self, events: impl IntoIterator<Item = NewEvent>) {
        self.events.extend(events);
    }

    /// Asks for a job with this change, to run at once.
    pub(super) fn ask(&mut self, kind: JobKind, object_id: Uuid) {
        self.ask_at(kind, object_id, self.now);
    }

    /// Asks for a job with this change, to run at `run_at`.
    pub(super) fn ask_at(&mut self, kind: JobKind, object_id: Uuid, run_at: OffsetDateTime) {
        let object_key = String::new();
        let organization_id = self.org;
        self.jobs.push(NewJob { organization_id, kind, object_id, object_key, object_time: None, run_at });
    }

    /// Asks for a job with this change.
    pub(super) fn ask_for(&mut self, job: NewJob) {
        self.jobs.push(job);
    }

    /// Freezes a request to Stripe with this change, before it is first sent (P2).
    pub(super) async fn freeze(
        &mut self,
        purpose: Purpose,
        object_id: Uuid,
        number: i32,
        body: String,
    ) -> Result<FrozenRequest> {
        let request = purpose.request(object_id, number, body, self.now);
        store::requests::freeze(&mut self.tx, self.org, purpose, object_id, &request).await?;
        Ok(request)
    }

    /// How long a customer has to prove who they are.
    pub(super) fn action_period(&self) -> time::Duration {
        self.app.0.settings.action_period
    }

    /// Ends without a change, and waits for it: no transaction is open when Stripe is called next (P3).
    pub(super) async fn abandon(self) -> Result<()> {
        self.tx.close().await
    }

    /// Commits, and ends the job that led here.
    pub(super) async fn end(mut self, outcome: Outcome) -> Result<()> {
        if let Some((_, end)) = &mut self.lease {
            *end = Some(outcome);
        }
        self.commit().await
    }

    /// Commits; a job that led here goes on.
    pub(super) async fn commit(self) -> Result<()> {
        let Self { mut tx, org, now, app, events, jobs, lease } = self;
        let clock = app.clock();
        // What a caller is told is accepted is tried, although its job may have been parked before (P8).
        let by = if lease.is_some() { By::Ourselves } else { By::Caller };
        // Asked rows first, a job's own row after them, as everywhere: else two jobs that ask for each other's wait in a
        // circle.
        store::jobs::ask(&mut tx, &jobs, by, now, || clock.new_id()).await?;
        if let Some((lease, end)) = &lease {
            match end {
                None => store::jobs::hold(&mut tx, lease).await?,
                Some(Outcome::Done) => store::jobs::finish(&mut tx, lease, now).await?,
                Some(Outcome::Again(run_at)) => store::jobs::release(&mut tx, lease, *run_at, None).await?,
                Some(Outcome::Postponed(run_at)) => store::jobs::postpone(&mut tx, lease, *run_at).await?,
                Some(Outcome::Retry(error)) => {
                    let run_at = now + super::jobs::backoff_away(lease.failures);
                    store::jobs::release(&mut tx, lease, run_at, Some(error)).await?;
                }
            }
        }
        store::events::append(&mut tx, org, &events, now, || clock.new_id()).await?;
        crash::point(Point::BeforeCommit);
        tx.commit().await?;
        crash::point(Point::AfterCommit);
        if !jobs.is_empty() {
            app.0.wake.tell(Hint::Jobs);
        }
        if !events.is_empty() {
            app.0.wake.tell(Hint::Events(org));
        }
        Ok(())
    }
}
