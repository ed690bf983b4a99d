//! Refunds: money that goes back, and sometimes comes back after all.

use serde::Deserialize;

use super::client::{Call, Client};
use super::error::{Doubt, Error};
use super::form::Form;
use super::metadata;
use super::object::{Metadata, Page, currency, mark, money, or_default, reference};
use super::pace::ApiKey;
use crate::domain::Currency;
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
pub fn create_body(refund: &Refund, invoice_id: &str) -> String {
    let marks = [
        (metadata::REFUND_ID, refund.id.to_string()),
        (metadata::PAYMENT_ID, refund.payment_id.to_string()),
        (metadata::INVOICE_ID, invoice_id.to_owned()),
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
        key: &ApiKey,
        idempotency_key: &str,
        body: &str,
    ) -> Result<RefundSnapshot, Error> {
        let call = Call::post("/v1/refunds", None, idempotency_key, body);
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// Reads a refund.
    pub async fn refund(&self, key: &ApiKey, id: &str) -> Result<RefundSnapshot, Error> {
        let call = Call::get("/v1/refunds/{id}", Some(id), "");
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// All refunds of a charge, newest first, from the list, which is current. [`Error::Unknown`] if there are more than
    /// can be read: then nothing is proved.
    pub async fn refunds_of(&self, key: &ApiKey, charge: &str) -> Result<Vec<RefundSnapshot>, Error> {
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

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::super::scripted::{Script, answer, key};
    use super::*;

    fn asked(amount: Option<i64>) -> Refund {
        Refund {
            id: Uuid::from_u128(7).into(),
            organization_id: Uuid::from_u128(2).into(),
            integration_id: Uuid::from_u128(4).into(),
            payment_id: Uuid::from_u128(5).into(),
            provider_refund_id: None,
            provider_charge_id: Some("ch_1".to_owned()),
            amount,
            currency: Currency::EUR,
            status: "pending".to_owned(),
            failure_reason: None,
            unknown_since: None,
            dead_key_time: None,
            create_time: OffsetDateTime::UNIX_EPOCH,
            update_time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn p2_the_body_names_the_charge_and_bears_our_marks_and_no_amount_means_all_that_is_left() {
        let marks = "metadata[refund_id]=00000000-0000-0000-0000-000000000007\
            &metadata[payment_id]=00000000-0000-0000-0000-000000000005&metadata[invoice_id]=inv%2F1\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002";
        assert_eq!(create_body(&asked(Some(1000)), "inv/1"), format!("charge=ch_1&amount=1000&{marks}"));
        assert_eq!(create_body(&asked(None), "inv/1"), format!("charge=ch_1&{marks}"));
    }

    #[tokio::test]
    async fn p2_the_list_is_read_to_its_end_and_ours_are_known_by_their_mark() {
        let page = |id: &str, mark: &str, has_more: bool| {
            let refund = format!(
                r#"{{"id":"{id}","amount":100,"currency":"eur","status":"succeeded","failure_reason":null,
                "charge":"ch_1","payment_intent":"pi_1","metadata":{mark}}}"#
            );
            answer(200, &format!(r#"{{"object":"list","has_more":{has_more},"data":[{refund}]}}"#))
        };
        let script = Script::new(move |request| {
            if request.target.contains("starting_after=re_2") {
                page("re_1", r#"{"refund_id":"00000000-0000-0000-0000-000000000007"}"#, false)
            } else {
                page("re_2", "{}", true)
            }
        })
        .await;
        let found = script.client().refunds_of(&key(), "ch_1").await.unwrap();
        let marks: Vec<_> = found.iter().map(|refund| (refund.id.as_str(), refund.refund_id)).collect();
        assert_eq!(marks, [("re_2", None), ("re_1", Some(Uuid::from_u128(7)))]);
    }
}
