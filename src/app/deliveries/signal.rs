//! Where a signal comes from, and what became of it.

use time::OffsetDateTime;

use crate::domain::IntegrationId;
use crate::domain::jobs::Lease;

/// Where a signal comes from: a delivery, or a read.
pub(in crate::app) struct SignalOrigin<'a> {
    /// The job that applies it.
    pub lease: &'a Lease,
    /// The integration on whose account it happened.
    pub integration_id: IntegrationId,
    /// When it happened.
    pub event_time: OffsetDateTime,
    /// The idempotency key of the request that caused it, if known.
    pub request_key: Option<&'a str>,
}

/// Where a snapshot of a PaymentIntent comes from.
pub(in crate::app) struct IntentSource<'a> {
    /// The job that applies it.
    pub lease: &'a Lease,
    /// The integration on whose account it is.
    pub integration_id: IntegrationId,
    /// The name of this installation. Another one may be a copy, with the same organizations and payments.
    pub installation: &'a str,
    /// It is rendered in our API version. In the account's own version it may lack its charge, and is read again.
    pub is_complete: bool,
    /// Its payment may still become known.
    pub is_recent: bool,
}

/// The outcome of one run over a delivery.
pub(in crate::app) enum DeliveryOutcome {
    /// Applied, possibly without effect.
    Applied,
    /// Kept, but not ours; with the reason.
    Ignored(String),
    /// Its object is unknown, and may become known soon.
    Unmatched(String),
}
