//! Charges: what a try came to, and how much of it went back.

use serde::Deserialize;

use super::client::{Call, Client};
use super::error::Error;
use super::object::{or_default, reference};
use super::pace::ApiKey;
use crate::domain::signals::ChargeSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireCharge {
    id: String,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    amount_refunded: i64,
}

impl From<WireCharge> for ChargeSnapshot {
    fn from(wire: WireCharge) -> Self {
        Self { id: wire.id, provider_payment_intent_id: wire.payment_intent, amount_refunded: wire.amount_refunded }
    }
}

impl Client {
    /// Reads a charge.
    pub async fn charge(&self, key: &ApiKey, id: &str) -> Result<ChargeSnapshot, Error> {
        let call = Call::get("/v1/charges/{id}", Some(id), "");
        Ok(self.send::<WireCharge>(key, call).await?.into())
    }
}
