//! The error type of the application's rules, independent of transport. `grpc/status.rs` is the only place that maps it
//! to a gRPC status. Texts are for the caller: what happened, to what, and what to do next. They never contain a secret
//! or another tenant's data. Details for the operator go to the source of [`Error::Internal`], which is logged and
//! never sent.

use std::time::Duration;

use super::LogId;

/// The result of a use case.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A field of a request that violates a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `amount.currency_code`.
    pub field: String,
    /// What is wrong with the field, and what would be right.
    pub description: String,
}

impl Violation {
    /// Creates a violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Why a use case was not carried out. Each variant requires something different of the caller.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is invalid. Lists all violations at once.
    #[error("the request breaks {} rule(s); see the violations", .0.len())]
    Invalid(Vec<Violation>),
    /// The same `request_id` was used before with another body.
    #[error("request_id {0} was used before with another body; repeat that request exactly, or use a new request_id")]
    RequestIdReused(String),
    /// No object of this kind and id is visible to the caller's organization.
    #[error("{kind} {id} not found")]
    NotFound {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// The requested id.
        id: String,
    },
    /// The object already exists and differs from the request.
    #[error("{message}")]
    AlreadyExists {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// The id of the one that exists.
        id: String,
        /// What exists, and how to proceed.
        message: String,
    },
    /// The request is valid, but the state of an object does not allow it.
    #[error("{message}")]
    FailedPrecondition {
        /// Stable, `UPPER_SNAKE`.
        reason: &'static str,
        /// What is in the wrong state, such as `payment/018f…`.
        subject: String,
        /// The current state, and what would be allowed.
        message: String,
    },
    /// The `etag` is not the current one.
    #[error("{kind} {id} was changed by someone else; read it again and repeat the change with its new etag")]
    EtagMismatch {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// Our id of the object.
        id: String,
    },
    /// The requested position is older than the first event of the log.
    #[error("position {requested} is older than the retained log; the oldest position to start after is {oldest}")]
    PositionTrimmed {
        /// The requested `after_position`.
        requested: i64,
        /// The smallest `after_position` that loses no event.
        oldest: i64,
    },
    /// The requested position is of another log than the one that the organization has now.
    #[error(
        "log {requested} was replaced by log {current}; start after position {oldest}, and skip the events that you know"
    )]
    LogReplaced {
        /// The requested `log_id`.
        requested: LogId,
        /// The `log_id` of the present log.
        current: LogId,
        /// The smallest `after_position` that loses no event of the present log.
        oldest: i64,
    },
    /// The token is missing or not valid.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// A limit of Paybridge's is reached (P11).
    #[error("{message}")]
    Exhausted {
        /// Stable, `UPPER_SNAKE`.
        reason: &'static str,
        /// The limit, and how to proceed.
        message: String,
    },
    /// A dependency is unavailable. Nothing was done, or what was begun continues by itself.
    #[error("{message}")]
    Unavailable {
        /// `STRIPE_UNAVAILABLE`, `INTEGRATION_CATCHING_UP`, `DATABASE_UNAVAILABLE`, `SHUTTING_DOWN`.
        reason: &'static str,
        /// What is unavailable.
        message: String,
        /// When to retry.
        retry_after: Duration,
    },
    /// A call to Stripe was delayed by our own rate limiter or breaker, or rejected by Stripe's. Nothing is wrong with
    /// the work itself, so a job that ends with this error has not failed.
    #[error("{message}")]
    Throttled {
        /// What delayed it.
        message: String,
        /// When to retry, in the clock's time.
        retry_after: Duration,
    },
    /// The lease on the job was lost to another worker, so nothing may be written (P8).
    #[error("the lease on the job was lost")]
    LeaseLost,
    /// A fault of Paybridge's. The caller sees a fixed text; the source is logged.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// The reason of an [`Error::Unavailable`] caused by the database.
pub const DATABASE_UNAVAILABLE: &str = "DATABASE_UNAVAILABLE";

impl Error {
    /// Whether the database is unavailable. The readiness check logs that once, so callers need not log each failure.
    pub fn is_database_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { reason: DATABASE_UNAVAILABLE, .. })
    }

    /// An [`Error::Invalid`] with a single violation.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, description)])
    }

    /// No object of `kind` has this id.
    pub fn not_found(kind: &'static str, id: impl std::fmt::Display) -> Self {
        Self::NotFound { kind, id: id.to_string() }
    }

    /// The state of `subject` does not allow the request.
    pub fn precondition(reason: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::FailedPrecondition { reason, subject: subject.into(), message: message.into() }
    }

    /// A bug or a broken invariant; the details are for the operator only.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self::Internal(source.into())
    }
}
