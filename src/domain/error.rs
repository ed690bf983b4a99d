//! The one error of Paybridge's own rules, free of any transport. `grpc/status.rs` is the one place where it becomes a
//! status. Texts are for the caller: what happened, to what, what to do next; never a secret, never another tenant's
//! data. What is only for the operator stays in [`Error::Internal`]'s source, which is logged and never sent.

use std::time::Duration;

/// What use cases return.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One field of a request that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field's path in the request, such as `amount.currency_code`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub description: String,
}

impl Violation {
    /// A violation of `field`.
    pub fn new(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self { field: field.into(), description: description.into() }
    }
}

/// Why a use case did not do what was asked. Every variant is a different thing for the caller to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request itself is wrong; all that is wrong with it, at once.
    #[error("the request breaks {} rule(s); see the violations", .0.len())]
    Invalid(Vec<Violation>),
    /// The same `request_id` was used before with another body.
    #[error("request_id {0} was used before with another body; repeat that request exactly, or use a new request_id")]
    RequestIdReused(String),
    /// Nothing of this kind with this id is visible to the caller's organization.
    #[error("{kind} {id} not found")]
    NotFound {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// The id that was asked for.
        id: String,
    },
    /// The thing to be made is there already, and differs from what was asked.
    #[error("{message}")]
    AlreadyExists {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// The id of the one that exists.
        id: String,
        /// What exists, and what to do about it.
        message: String,
    },
    /// The request is right, the state of things is not.
    #[error("{message}")]
    FailedPrecondition {
        /// Stable, `UPPER_SNAKE`.
        reason: &'static str,
        /// What is in the wrong state, such as `payment/018f…`.
        subject: String,
        /// The state, and what would be allowed.
        message: String,
    },
    /// The `etag` is not the present one.
    #[error("{kind} {id} was changed by someone else; read it again and repeat the change with its new etag")]
    EtagMismatch {
        /// `payment`, `customer`, …
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The position asked for is older than the log's first event.
    #[error("position {asked} is older than the retained log; the oldest position to start after is {oldest}")]
    PositionTrimmed {
        /// The `after_position` that was asked for.
        asked: i64,
        /// The smallest `after_position` that still loses nothing.
        oldest: i64,
    },
    /// No token, or not a live one.
    #[error("{0}")]
    Unauthenticated(&'static str),
    /// A limit of ours is reached (P11).
    #[error("{message}")]
    Exhausted {
        /// Stable, `UPPER_SNAKE`.
        reason: &'static str,
        /// The limit, and what to do.
        message: String,
    },
    /// Something that we need is not there now; nothing was done, or what was begun goes on by itself.
    #[error("{message}")]
    Unavailable {
        /// `STRIPE_UNAVAILABLE`, `DATABASE_UNAVAILABLE`, `SHUTTING_DOWN`.
        reason: &'static str,
        /// What is not there.
        message: String,
        /// When it makes sense to come back.
        retry_after: Duration,
    },
    /// A call to Stripe was held back, by us or by Stripe's limiter. Nothing is wrong with what was to be done, so a job
    /// that ends in this has not failed.
    #[error("{message}")]
    HeldBack {
        /// What by.
        message: String,
        /// When to come again, in the clock's time.
        retry_after: Duration,
    },
    /// The lease on a job was lost to another worker: whatever was about to be written must not be (P8).
    #[error("the lease on the job was lost")]
    LeaseLost,
    /// Our fault. The caller sees a fixed text; the source goes to the log.
    #[error("internal error")]
    Internal(#[source] anyhow::Error),
}

/// The reason of an [`Error::Unavailable`] whose cause is the database.
pub const DATABASE_UNAVAILABLE: &str = "DATABASE_UNAVAILABLE";

impl Error {
    /// Whether the database is away. Readiness logs that once for all; what fails meanwhile need not log it again.
    pub fn is_database_away(&self) -> bool {
        matches!(self, Self::Unavailable { reason: DATABASE_UNAVAILABLE, .. })
    }

    /// A single violation.
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::Invalid(vec![Violation::new(field, description)])
    }

    /// Nothing of `kind` with this id.
    pub fn not_found(kind: &'static str, id: impl std::fmt::Display) -> Self {
        Self::NotFound { kind, id: id.to_string() }
    }

    /// A wrong state of `subject`.
    pub fn precondition(reason: &'static str, subject: impl Into<String>, message: impl Into<String>) -> Self {
        Self::FailedPrecondition { reason, subject: subject.into(), message: message.into() }
    }

    /// A bug or a broken invariant, told to the operator only.
    pub fn internal(source: impl Into<anyhow::Error>) -> Self {
        Self::Internal(source.into())
    }
}
