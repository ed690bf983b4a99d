//! Mandates: whether a SEPA method may still be debited.

use serde::Deserialize;

use super::object::reference;

#[derive(Debug, Deserialize)]
pub(super) struct WireMandate {
    pub id: String,
    pub status: String,
    #[serde(default, deserialize_with = "reference")]
    pub payment_method: Option<String>,
}
