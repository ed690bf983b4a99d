//! Durable work. A job names an object to process, not the action to take; the handler reads the object and decides.
//! There is one row for each kind and object. Enqueuing a job while it runs makes it run again afterwards. Jobs hold
//! ids only.

use std::collections::HashMap;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{JobId, OrganizationId};

/// The kind of a job, which determines the object it processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumString, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum JobKind {
    /// Submits a payment to Stripe, or closes its payment path there.
    SubmitPayment,
    /// Reads a payment that has been in progress for long from Stripe.
    ReconcilePayment,
    /// Requests a refund at Stripe, or reads one that has been in progress for long.
    RefundPayment,
    /// Reads a Checkout session that has passed its expiry without a webhook.
    ReconcileSession,
    /// Applies a stored webhook event.
    ApplyDelivery,
    /// Creates, links or updates a customer at Stripe.
    SyncCustomer,
    /// Reads a customer's payment methods and default from Stripe.
    ImportPaymentMethods,
    /// Writes a customer's default payment method to Stripe if it differs there.
    PushDefaultMethod,
    /// Detaches a payment method at Stripe.
    DetachMethod,
    /// Creates a setup-mode Checkout session.
    CreateCheckoutSession,
    /// Resumes connecting an integration after an interruption.
    ConnectIntegration,
    /// Disconnects an integration: closes what is open, then deletes endpoint and secrets.
    DisconnectIntegration,
    /// Polls an integration's events list.
    PollEvents,
    /// Enqueues reads of an integration's stale objects.
    SweepIntegration,
    /// Checks an integration's webhook endpoint, and repairs it.
    CheckEndpoint,
    /// Reads back from Stripe what an integration's database has forgotten.
    CatchUp,
}

impl JobKind {
    /// The periodic jobs that every live integration has: its reconcilers.
    pub const RECONCILERS: [Self; 3] = [Self::PollEvents, Self::SweepIntegration, Self::CheckEndpoint];

    /// Whether it must run until it succeeds, because nothing else does its work: it is never parked.
    pub fn is_never_parked(self) -> bool {
        self == Self::CatchUp || Self::RECONCILERS.contains(&self)
    }

    /// The name in the database and in logs. A variant that is renamed keeps the name of its rows with
    /// `#[strum(serialize = "…")]`.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// A job leased by this process. Every write made on its behalf verifies `epoch` first (P8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The leased job.
    pub id: JobId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// What to do with the object.
    pub kind: JobKind,
    /// Our id of the object; for a delivery, the id of its integration.
    pub object_id: Uuid,
    /// For a delivery, Stripe's event id; otherwise empty.
    pub object_key: String,
    /// For objects in a table partitioned by time, the time that locates the row.
    pub object_time: Option<OffsetDateTime>,
    /// Increases with every lease. A worker whose epoch differs from the row's has lost the lease.
    pub epoch: i64,
    /// How often the job had been enqueued when it was leased. If the row's value is higher by the end, the job runs
    /// again.
    pub generation: i64,
    /// Failed runs since the last successful one.
    pub failures: i32,
}

/// The due jobs of one organization and kind: the unit of fair scheduling. The kind is a name because a newer release
/// may know more kinds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The name of the job kind.
    pub kind: String,
}

impl Lane {
    /// Sorts before all lanes.
    pub fn start() -> Self {
        Self { organization_id: Uuid::nil().into(), kind: String::new() }
    }
}

/// A worker's free capacity, and where the round-robin over lanes continues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// How many more jobs the worker can run.
    pub free: usize,
    /// The most jobs of one organization that may run at once, so that an organization with slow calls cannot
    /// use up the capacity.
    pub organization_max: usize,
    /// How many jobs of each organization are running.
    pub held: HashMap<OrganizationId, usize>,
    /// The lane that was served last.
    pub after: Lane,
    /// Whether the last scan stopped before it had visited every lane.
    pub is_scan_incomplete: bool,
}

impl Capacity {
    /// Organizations that already run `organization_max` jobs.
    pub fn full(&self) -> impl Iterator<Item = OrganizationId> {
        self.held.iter().filter(|(_, held)| **held >= self.organization_max).map(|(org, _)| *org)
    }

    /// The largest batch, up to `max`, that may be leased from any lane of an organization that is not full: limited by
    /// the free capacity, and by what the busiest such organization may still take.
    pub fn share(&self, max: usize) -> usize {
        let held = self.held.values().filter(|held| **held < self.organization_max).max();
        let remaining = self.organization_max.saturating_sub(held.copied().unwrap_or_default());
        max.min(self.free).min(remaining)
    }
}

/// How the run of a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do; the job is deleted.
    Done,
    /// Succeeded; run again at this time.
    RunAgain(OffsetDateTime),
    /// Nothing was attempted; run again at this time. Earlier failures still count.
    Postponed(OffsetDateTime),
    /// Cannot be done now for an external reason: Stripe is unavailable, or the object is not known yet. Retried with
    /// backoff; the reason is shown to operators.
    Retry(String),
}

/// The jobs that an operator lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JobFilter {
    /// All jobs.
    All,
    /// Only parked ones.
    Parked,
}

/// A job as shown to operators.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// Our id.
    pub id: JobId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The name of its kind, possibly one that only another release knows.
    pub kind: String,
    /// The object, as in [`Lease::object_id`].
    pub object_id: Uuid,
    /// As in [`Lease::object_key`].
    pub object_key: String,
    /// Failed runs since the last successful one.
    pub failures: i32,
    /// Why the last run failed.
    pub reason: Option<String>,
    /// When it runs next, unless it is parked.
    pub run_at: OffsetDateTime,
    /// Since when it has been parked.
    pub park_time: Option<OffsetDateTime>,
}

impl JobReport {
    /// When it was first enqueued, taken from its UUID v7.
    pub fn create_time(&self) -> Option<OffsetDateTime> {
        let (seconds, nanoseconds) = self.id.0.get_timestamp()?.to_unix();
        let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn organization(number: u128) -> OrganizationId {
        Uuid::from_u128(number).into()
    }

    /// A worker in which one organization may run four jobs at once.
    fn capacity(free: usize, held: &[(u128, usize)]) -> Capacity {
        Capacity {
            free,
            organization_max: 4,
            held: held.iter().map(|(number, held)| (organization(*number), *held)).collect(),
            after: Lane::start(),
            is_scan_incomplete: false,
        }
    }

    #[test]
    fn a_kind_is_read_back_by_its_name() {
        for kind in <JobKind as strum::VariantArray>::VARIANTS {
            assert_eq!(kind.as_str().parse(), Ok(*kind));
        }
    }

    #[test]
    fn p11_an_organization_that_runs_its_share_is_full_and_the_others_are_not() {
        let capacity = capacity(10, &[(1, 3), (2, 4), (3, 5)]);
        let mut full: Vec<_> = capacity.full().collect();
        full.sort();
        assert_eq!(full, [organization(2), organization(3)]);
    }

    #[test]
    fn p11_a_batch_exceeds_neither_the_free_capacity_nor_what_an_organization_may_still_run() {
        for (free, held, max, expected) in [
            (10, &[][..], 2, 2),
            (10, &[], 9, 4),
            (3, &[], 9, 3),
            (10, &[(1, 1), (2, 3)], 9, 1),
            (10, &[(1, 4), (2, 1)], 9, 3),
            (0, &[], 9, 0),
        ] {
            assert_eq!(capacity(free, held).share(max), expected, "{free} free, {held:?} held");
        }
    }

    #[test]
    fn a_job_was_enqueued_when_its_id_was_made() {
        let timestamp = uuid::Timestamp::from_unix(uuid::NoContext, 1_700_000_000, 123_000_000);
        let report = |id: Uuid| JobReport {
            id: id.into(),
            organization_id: organization(1),
            kind: JobKind::SubmitPayment.as_str().to_owned(),
            object_id: Uuid::nil(),
            object_key: String::new(),
            failures: 0,
            reason: None,
            run_at: OffsetDateTime::UNIX_EPOCH,
            park_time: None,
        };
        let expected = OffsetDateTime::UNIX_EPOCH + time::Duration::milliseconds(1_700_000_000_123);
        assert_eq!(report(Uuid::new_v7(timestamp)).create_time(), Some(expected));
        assert_eq!(report(Uuid::nil()).create_time(), None, "it is not a UUID v7");
    }
}
