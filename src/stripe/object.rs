//! What Stripe's objects have in common. Unknown fields are passed over everywhere: Stripe adds some at any time.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::domain::{Currency, Money};

/// Marks on an object: ours, or anybody's. At most 50, keys of 40 characters, values of 500.
pub(super) type Metadata = BTreeMap<String, String>;

/// One page of a list, as Stripe sends it: newest first.
#[derive(Debug, Deserialize)]
pub(super) struct Page<T> {
    pub data: Vec<T>,
    /// Whether there is another page in the direction asked for.
    #[serde(default)]
    pub has_more: bool,
}

/// An answer of which only the fact matters.
#[derive(Debug, Deserialize)]
pub(super) struct Acknowledged {}

#[derive(Deserialize)]
#[serde(untagged)]
enum Reference {
    Id(String),
    Object { id: String },
}

/// Reads a reference to another object, which Stripe sends as its id, or whole where it was expanded.
pub(super) fn reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(Option::<Reference>::deserialize(deserializer)?.map(|reference| match reference {
        Reference::Id(id) | Reference::Object { id } => id,
    }))
}

/// Reads null as the type's default: Stripe sends null for many a list, map or number that is not there.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// Reads a currency, which Stripe writes in lower case.
pub(super) fn currency<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Currency, D::Error> {
    let code = String::deserialize(deserializer)?;
    Currency::parse(&code).ok_or_else(|| D::Error::custom("not a currency"))
}

/// Reads a time, which Stripe writes in whole seconds since 1970.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OffsetDateTime, D::Error> {
    OffsetDateTime::from_unix_timestamp(i64::deserialize(deserializer)?).map_err(D::Error::custom)
}

/// An id of ours from an object's marks. Anybody can write there: what is no id was not written by us.
pub(super) fn mark(metadata: &Metadata, key: &str) -> Option<Uuid> {
    metadata.get(key)?.parse().ok()
}

/// Stripe's two fields as one amount.
pub(super) fn money(minor_units: i64, currency: Currency) -> Money {
    Money { minor_units, currency }
}
