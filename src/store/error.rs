//! Maps database errors to domain errors.

use std::time::Duration;

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use crate::domain::Error;
use crate::domain::error::DATABASE_UNAVAILABLE;

/// The retry delay that callers get while the database is unavailable.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The database cannot be reached in time: nothing was done. Readiness logs an outage once, so each error is only a
/// debug line.
pub fn unavailable(source: &dyn std::fmt::Display) -> Error {
    tracing::debug!(error = %source, "the database is unavailable");
    unavailable_because("the database cannot be reached")
}

/// The database aborted a statement because of a timeout, a deadlock or a serialization failure.
fn contended(source: &dyn std::fmt::Display) -> Error {
    tracing::warn!(error = %source, "the database aborted a statement; it is retried");
    unavailable_because("the database is too busy")
}

/// The database is unavailable, for a reason that is in the log already: nothing was done.
pub fn unavailable_because(why: &str) -> Error {
    Error::Unavailable {
        reason: DATABASE_UNAVAILABLE,
        message: format!("{why}; nothing was done, repeat the request"),
        retry_after: RETRY_AFTER,
    }
}

impl From<DieselError> for Error {
    fn from(error: DieselError) -> Self {
        match &error {
            DieselError::DatabaseError(kind, info) if is_contention(*kind, info.as_ref()) => contended(&error),
            DieselError::DatabaseError(kind, info) if is_outage(*kind, info.as_ref()) => unavailable(&error),
            DieselError::BrokenTransactionManager => unavailable(&error),
            _ => Self::internal(error),
        }
    }
}

/// diesel-async reports a lost connection as an unknown kind without details, so the texts of Postgres' shutdown codes
/// and of closed sockets are matched.
fn is_outage(kind: DatabaseErrorKind, info: &dyn DatabaseErrorInformation) -> bool {
    const TEXTS: [&str; 7] = [
        "connection closed",
        "communicating with the server",
        "terminating connection",
        "the database system is",
        "connection reset",
        "broken pipe",
        "too many clients",
    ];
    match kind {
        DatabaseErrorKind::ClosedConnection | DatabaseErrorKind::UnableToSendCommand => true,
        _ => has_text(info, &TEXTS),
    }
}

fn is_contention(kind: DatabaseErrorKind, info: &dyn DatabaseErrorInformation) -> bool {
    matches!(kind, DatabaseErrorKind::SerializationFailure)
        || has_text(info, &["statement timeout", "deadlock detected"])
}

fn has_text(info: &dyn DatabaseErrorInformation, texts: &[&str]) -> bool {
    let message = info.message().to_ascii_lowercase();
    texts.iter().any(|text| message.contains(text))
}

/// Whether `error` violates the unique constraint or index `name`.
pub fn violates(error: &DieselError, name: &str) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info)
        if info.constraint_name() == Some(name))
}

/// A column holds a value that no release writes.
pub fn unreadable(table: &'static str, column: &'static str, value: impl std::fmt::Display) -> Error {
    Error::internal(anyhow::anyhow!("{table}.{column} holds {value}, which is not a known value"))
}
