//! What Stripe's objects have in common. Unknown fields are ignored everywhere, because Stripe adds fields at any time.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{Currency, Money};

/// An object's metadata, ours and others': at most 50 keys of 40 characters, values of 500.
pub(super) type Metadata = BTreeMap<String, String>;

/// A page of a list, newest first.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    pub data: Vec<T>,
    /// Whether there is another page in the requested direction.
    #[serde(default)]
    pub has_more: bool,
}

/// A response whose content is irrelevant.
#[derive(Debug, Deserialize)]
pub(super) struct Acknowledged {}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Id(String),
    Object { id: String },
}

/// Reads a reference to another object: an id, or the whole object if it was expanded.
pub(super) fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Reference>::deserialize(deserializer)?.map(|reference| match reference {
        Reference::Id(id) | Reference::Object { id } => id,
    }))
}

/// Reads null as the type's default: Stripe sends null for many missing lists, maps and numbers.
pub(super) fn null_as_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a currency; Stripe sends lower case.
pub(super) fn currency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Currency, D::Error> {
    let code = String::deserialize(deserializer)?;
    Currency::parse(&code).ok_or_else(|| D::Error::custom("not a currency"))
}

/// Reads a time in whole seconds since 1970.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    OffsetDateTime::from_unix_timestamp(i64::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// Reads one of our ids from metadata. Anybody can write there: a value that is not a UUID is not ours.
pub(super) fn metadata_id(metadata: &Metadata, key: &str) -> Option<Uuid> {
    metadata.get(key)?.parse().ok()
}

/// Reads one of our texts from metadata.
pub(super) fn metadata_text(metadata: &Metadata, key: &str) -> Option<String> {
    metadata.get(key).cloned()
}

/// Joins Stripe's two fields into an amount.
pub(super) fn money(minor_units: i64, currency: Currency) -> Money {
    Money { minor_units, currency }
}
