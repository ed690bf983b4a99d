//! Conversions of column values that several tables share.

use std::str::FromStr;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::error::unreadable;
use crate::domain::{Currency, Error, Result};

/// Parses a `char(3)` column.
pub fn currency(table: &'static str, code: &str) -> Result<Currency> {
    Currency::parse(code).ok_or_else(|| unreadable(table, "currency", code))
}

/// Parses a column that holds the name of an enum's variant.
pub fn variant<T: FromStr>(table: &'static str, column: &'static str, name: &str) -> Result<T> {
    name.parse().map_err(|_| unreadable(table, column, name))
}

/// Serializes a value for a `jsonb` column.
pub fn to_json<T: Serialize>(value: &T) -> Result<Value> {
    serde_json::to_value(value).map_err(Error::internal)
}

/// Deserializes a `jsonb` column.
pub fn from_json<T: DeserializeOwned>(table: &'static str, column: &'static str, value: Value) -> Result<T> {
    serde_json::from_value(value).map_err(|error| unreadable(table, column, error))
}
