//! What the rows of several nouns have in common.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::unreadable;
use crate::domain::{Currency, Error, Result};

/// The currency in a `char(3)` column.
pub fn currency(table: &'static str, code: &str) -> Result<Currency> {
    Currency::parse(code).ok_or_else(|| unreadable(table, "currency", code))
}

/// A value for a `jsonb` column.
pub fn to_json<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(Error::internal)
}

/// The value in a `jsonb` column.
pub fn from_json<T: DeserializeOwned>(table: &'static str, column: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| unreadable(table, column, error))
}
