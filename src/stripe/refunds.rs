//! Refunds: money that goes back, and sometimes comes back after all.

use serde::Deserialize;

use super::client::{Call, Client};
use super::error::Error;
use super::object::{currency, money, reference};
use super::pace::ApiKey;
use crate::domain::Currency;
use crate::domain::signals::RefundSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireRefund {
    id: String,
    amount: i64,
    #[serde(deserialize_with = "currency")]
    currency: Currency,
    /// Null on some kinds until the bank has answered.
    status: Option<String>,
    failure_reason: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    charge: Option<String>,
}

impl From<WireRefund> for RefundSnapshot {
    fn from(wire: WireRefund) -> Self {
        Self {
            id: wire.id,
            provider_payment_intent_id: wire.payment_intent,
            provider_charge_id: wire.charge,
            amount: money(wire.amount, wire.currency),
            status: wire.status.unwrap_or_else(|| "pending".to_owned()),
            failure_reason: wire.failure_reason,
        }
    }
}

impl Client {
    /// Reads a refund.
    pub async fn refund(&self, key: &ApiKey, id: &str) -> Result<RefundSnapshot, Error> {
        let call = Call::get("/v1/refunds/{id}", Some(id), "");
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }
}
