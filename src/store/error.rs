//! Where a database error becomes one of ours.

use std::time::Duration;

use diesel::result::{DatabaseErrorInformation, DatabaseErrorKind, Error as DieselError};

use crate::domain::Error;
use crate::domain::error::DATABASE_UNAVAILABLE;

/// When a caller may try again after the database was not there.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// The database can't be reached, or not in time: nothing was done. Readiness logs that once; each case is for debugging.
pub fn unavailable(source: &dyn std::fmt::Display) -> Error {
    tracing::debug!(error = %source, "the database is unavailable");
    away("the database can't be reached")
}

/// The database is there and did not carry a statement out: it took too long, or others were in its way.
fn contended(source: &dyn std::fmt::Display) -> Error {
    tracing::warn!(error = %source, "the database did not carry a statement out; it is tried again");
    away("the database is too busy")
}

/// There is no database to work with, for a reason that is in the log already: nothing was done.
pub fn away(why: &str) -> Error {
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

/// Diesel-async reports what tokio-postgres says of a lost connection as an unknown kind without a constraint or table,
/// so that the texts of Postgres' shutdown codes and of closed sockets have to serve.
fn is_outage(kind: DatabaseErrorKind, info: &dyn DatabaseErrorInformation) -> bool {
    const SIGNS: [&str; 7] = [
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
        _ => says(info, &SIGNS),
    }
}

fn is_contention(kind: DatabaseErrorKind, info: &dyn DatabaseErrorInformation) -> bool {
    matches!(kind, DatabaseErrorKind::SerializationFailure) || says(info, &["statement timeout", "deadlock detected"])
}

fn says(info: &dyn DatabaseErrorInformation, signs: &[&str]) -> bool {
    let message = info.message().to_ascii_lowercase();
    signs.iter().any(|sign| message.contains(sign))
}

/// Whether `error` is the violation of the unique constraint or index `name`.
pub fn violates(error: &DieselError, name: &str) -> bool {
    matches!(error, DieselError::DatabaseError(DatabaseErrorKind::UniqueViolation, info)
        if info.constraint_name() == Some(name))
}

/// A value in a column that no version of ours writes there.
pub fn unreadable(table: &'static str, column: &'static str, value: impl std::fmt::Display) -> Error {
    Error::internal(anyhow::anyhow!("{table}.{column} holds {value}, which is none of its values"))
}
