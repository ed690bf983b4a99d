//! Disputes: a customer or the customer's bank reclaims a payment.

use serde::Deserialize;
use time::OffsetDateTime;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::list::{ListPage, created_since};
use super::object::{currency, money, reference};
use super::rate_limit::ApiKey;
use crate::domain::Currency;
use crate::domain::signals::DisputeSnapshot;

#[derive(Debug, Deserialize)]
pub(super) struct WireDispute {
    id: String,
    amount: i64,
    #[serde(deserialize_with = "currency")]
    currency: Currency,
    status: String,
    reason: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    charge: Option<String>,
}

impl From<WireDispute> for DisputeSnapshot {
    fn from(wire: WireDispute) -> Self {
        Self {
            id: wire.id,
            provider_payment_intent_id: wire.payment_intent,
            provider_charge_id: wire.charge,
            amount: money(wire.amount, wire.currency),
            status: wire.status,
            reason: wire.reason,
        }
    }
}

impl Client {
    /// Reads a dispute.
    pub async fn dispute(&self, key: &ApiKey, id: &str) -> Result<DisputeSnapshot, Error> {
        let call = Call::get("/v1/disputes/{id}", Some(id), "");
        Ok(self.send::<WireDispute>(key, call).await?.into())
    }

    /// A page of all disputes of the account that were created at `since` or later, newest first, from the one after
    /// `after` on. It is the first page again if `after` is not in the list.
    pub async fn disputes_since(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        after: Option<&str>,
    ) -> Result<ListPage<DisputeSnapshot>, Error> {
        self.account_page::<WireDispute, _>(key, "/v1/disputes", created_since(since), after).await
    }
}
