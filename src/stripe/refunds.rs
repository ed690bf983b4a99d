//! Refunds: money that goes back, and sometimes comes back after all.

use secrecy::SecretString;
use serde::Deserialize;

use super::client::{Call, Client};
use super::error::{Doubt, Error};
use super::form::Form;
use super::metadata;
use super::object::{Metadata, Page, currency, mark, money, or_default, reference};
use crate::domain::Currency;
use crate::domain::payments::Payment;
use crate::domain::refunds::Refund;
use crate::domain::signals::RefundSnapshot;

/// Pages of 100 refunds that are read of one charge (P11). More than these hold, and nothing is proved.
const MOST_PAGES: usize = 50;

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
    #[serde(default, deserialize_with = "or_default")]
    metadata: Metadata,
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
            refund_id: mark(&wire.metadata, metadata::REFUND_ID),
        }
    }
}

/// The body that makes a refund. The marks say whose it is: ours, the payment's, the invoice's and the organization's.
pub fn create_body(refund: &Refund, payment: &Payment) -> String {
    let marks = [
        (metadata::REFUND_ID, refund.id.to_string()),
        (metadata::PAYMENT_ID, refund.payment_id.to_string()),
        (metadata::INVOICE_ID, payment.invoice_id.clone()),
        (metadata::ORGANIZATION_ID, refund.organization_id.to_string()),
    ];
    Form::new()
        .push_some("charge", refund.provider_charge_id.as_deref())
        .push_some("amount", refund.amount)
        .push_map("metadata", &marks)
        .into_body()
}

impl Client {
    /// Makes a refund; `body` is a stored [`create_body`].
    pub async fn create_refund(
        &self,
        key: &SecretString,
        idempotency_key: &str,
        body: &str,
    ) -> Result<RefundSnapshot, Error> {
        let call = Call::post("/v1/refunds", None, idempotency_key, body);
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// Reads a refund.
    pub async fn refund(&self, key: &SecretString, id: &str) -> Result<RefundSnapshot, Error> {
        let call = Call::get("/v1/refunds/{id}", Some(id), "");
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// All refunds of a charge, newest first, from the list, which is current. [`Error::Unknown`] if there are more than
    /// can be read: then nothing is proved.
    pub async fn refunds_of(&self, key: &SecretString, charge: &str) -> Result<Vec<RefundSnapshot>, Error> {
        let mut found = Vec::new();
        let mut after = None::<String>;
        for _ in 0..MOST_PAGES {
            let query = Form::new()
                .push("charge", charge)
                .push("limit", 100)
                .push_some("starting_after", after.as_deref())
                .into_body();
            let page: Page<WireRefund> = self.send(key, Call::get("/v1/refunds", None, &query)).await?;
            after = page.data.last().map(|refund| refund.id.clone());
            found.extend(page.data.into_iter().map(RefundSnapshot::from));
            if !page.has_more || after.is_none() {
                return Ok(found);
            }
        }
        Err(Error::unknown(Doubt::TooLong, "the charge has more refunds than can be looked through"))
    }
}
