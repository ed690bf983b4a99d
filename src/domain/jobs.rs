//! Durable work. A job says *what to look at*, never what to do with it: there is one row for a kind and an object, and
//! asking for it again while it runs makes it run again afterwards. Jobs hold ids only.

use std::collections::HashMap;

use time::OffsetDateTime;
use uuid::Uuid;

use super::{JobId, OrganizationId};

/// What is to be looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobKind {
    /// A payment that may have to be sent to Stripe, or to be closed there.
    SubmitPayment,
    /// A payment whose cancellation a process of the release before payment links has accepted.
    CancelPayment,
    /// A payment that has been moving for long.
    ReconcilePayment,
    /// A refund to be made at Stripe, or one that has been moving for long.
    RefundPayment,
    /// A Checkout session that is past its end, and of which nothing was heard.
    ReconcileSession,
    /// A stored webhook.
    ApplyDelivery,
    /// A customer to be created, linked or pushed.
    SyncCustomer,
    /// A customer whose methods and default are to be read from Stripe.
    ImportPaymentMethods,
    /// A customer whose default is to be written to Stripe, if it differs there.
    PushDefaultMethod,
    /// A method to be detached at Stripe.
    DetachMethod,
    /// A Checkout session to be made.
    CreateCheckoutSession,
    /// An integration whose connecting was cut short.
    ConnectIntegration,
    /// An integration to be wound down.
    DisconnectIntegration,
    /// An integration whose events list is to be read.
    PollEvents,
    /// An integration whose stale objects are to be asked about.
    SweepIntegration,
    /// An integration whose webhook endpoint is to be looked at, and mended.
    CheckEndpoint,
}

impl JobKind {
    /// All kinds, with their names in the database and in logs.
    pub const ALL: [(Self, &'static str); 16] = [
        (Self::SubmitPayment, "submit_payment"),
        // Nobody asks for it any more. It goes once no process of that release can run beside this one: with the next.
        (Self::CancelPayment, "cancel_payment"),
        (Self::ReconcilePayment, "reconcile_payment"),
        (Self::RefundPayment, "refund_payment"),
        (Self::ReconcileSession, "reconcile_session"),
        (Self::ApplyDelivery, "apply_delivery"),
        (Self::SyncCustomer, "sync_customer"),
        (Self::ImportPaymentMethods, "import_payment_methods"),
        (Self::PushDefaultMethod, "push_default_method"),
        (Self::DetachMethod, "detach_method"),
        (Self::CreateCheckoutSession, "create_checkout_session"),
        (Self::ConnectIntegration, "connect_integration"),
        (Self::DisconnectIntegration, "disconnect_integration"),
        (Self::PollEvents, "poll_events"),
        (Self::SweepIntegration, "sweep_integration"),
        (Self::CheckEndpoint, "check_endpoint"),
    ];

    /// The kinds that every live integration has a job of, for as long as it lives: its reconcilers.
    pub const RECONCILERS: [Self; 3] = [Self::PollEvents, Self::SweepIntegration, Self::CheckEndpoint];

    /// The name in the database and in logs.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("unknown", |(_, name)| name)
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
    }
}

/// A job that this process holds. Every write that it leads to first shows `epoch` (P8).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The job.
    pub id: JobId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// What is to be looked at.
    pub kind: JobKind,
    /// The object, by our id; for a delivery its integration's.
    pub object_id: Uuid,
    /// For a delivery Stripe's event id; else empty.
    pub object_key: String,
    /// Where the object's table is partitioned by time: the time to find it by.
    pub object_time: Option<OffsetDateTime>,
    /// Rises with every lease; a worker whose epoch is not the row's has lost it.
    pub epoch: i64,
    /// How often the job was asked for when it was leased; more by now means: look again.
    pub asked: i64,
    /// Failed tries since it last went well.
    pub failures: i32,
}

/// Due jobs of one organization and kind. The kind by its name: it may be one that only a newer release knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Lane {
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The kind's name.
    pub kind: String,
}

impl Lane {
    /// Before all lanes.
    pub fn start() -> Self {
        Self { organization_id: Uuid::nil().into(), kind: String::new() }
    }
}

/// What a worker has room for, and whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    /// Free places.
    pub free: usize,
    /// The most places that one organization's jobs may take: so that those whose calls are slow leave some to others.
    pub organization_max: usize,
    /// How many places each organization's jobs have.
    pub held: HashMap<OrganizationId, usize>,
    /// The lane that had the last turn.
    pub after: Lane,
    /// Whether the look ended before it had gone round: lanes are left that it did not come to.
    pub is_cut_short: bool,
}

impl Room {
    /// Organizations that have all the places they may have.
    pub fn full(&self) -> impl Iterator<Item = OrganizationId> {
        self.held.iter().filter(|(_, held)| **held >= self.organization_max).map(|(org, _)| *org)
    }

    /// How many of `most` jobs the next lane may take, whosever it is: no more than are free, or than any organization that
    /// is not full may still have.
    pub fn share(&self, most: usize) -> usize {
        let held = self.held.values().filter(|held| **held < self.organization_max).max();
        let left = self.organization_max.saturating_sub(held.copied().unwrap_or_default());
        most.min(self.free).min(left)
    }
}

/// How a look at an object ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is left to do.
    Done,
    /// Look again at this time; nothing is wrong.
    Again(OffsetDateTime),
    /// Nothing was tried: look again at this time. What failed before still counts.
    Postponed(OffsetDateTime),
    /// It can't be done now, for no reason of its own: Stripe is away, or what it is about is not known yet. Back off,
    /// with the reason for people.
    Retry(String),
}

/// A job as an operator sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobReport {
    /// The job.
    pub id: JobId,
    /// The tenant.
    pub organization_id: OrganizationId,
    /// The name of its kind; perhaps one that only another release knows.
    pub kind: String,
    /// The object, as in [`Lease`].
    pub object_id: Uuid,
    /// As in [`Lease`].
    pub object_key: String,
    /// Failed tries since it last went well.
    pub failures: i32,
    /// Why the last try failed.
    pub reason: Option<String>,
    /// When it is next looked at, unless it is parked.
    pub run_at: OffsetDateTime,
    /// Since when it is parked, if it is.
    pub park_time: Option<OffsetDateTime>,
}

impl JobReport {
    /// When it was first asked for; its id carries the time.
    pub fn create_time(&self) -> Option<OffsetDateTime> {
        let (seconds, nanoseconds) = self.id.0.get_timestamp()?.to_unix();
        let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
        OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
    }
}
