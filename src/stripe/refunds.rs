//! Refunds. A refund that has succeeded can still fail.

use serde::Deserialize;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::{Error, UnknownCause};
use super::form::Form;
use super::metadata;
use super::object::{Metadata, Page, currency, metadata_id, money, null_as_default, reference};
use super::rate_limit::ApiKey;
use crate::domain::Currency;
use crate::domain::refunds::Refund;
use crate::domain::signals::RefundSnapshot;
use crate::domain::stripe_requests::StripeRequest;

/// The most pages of 100 refunds read of one charge (P11). With more, nothing is proved.
const PAGES_MAX: usize = 50;

#[derive(Debug, Deserialize)]
pub(super) struct WireRefund {
    id: String,
    amount: i64,
    #[serde(deserialize_with = "currency")]
    currency: Currency,
    /// Null for some kinds until the bank has responded.
    status: Option<String>,
    failure_reason: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    charge: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
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
            refund_id: metadata_id(&wire.metadata, metadata::REFUND_ID),
        }
    }
}

/// The body that creates a refund. Its metadata names our refund, payment, invoice and organization.
pub fn create_body(refund: &Refund, invoice_id: &str) -> String {
    let entries = [
        (metadata::REFUND_ID, refund.id.to_string()),
        (metadata::PAYMENT_ID, refund.payment_id.to_string()),
        (metadata::INVOICE_ID, invoice_id.to_owned()),
        (metadata::ORGANIZATION_ID, refund.organization_id.to_string()),
    ];
    Form::new()
        .push_some("charge", refund.provider_charge_id.as_deref())
        .push_some("amount", refund.amount)
        .push_map("metadata", &entries)
        .into_body()
}

impl Client {
    /// Creates a refund; the request's body is a stored [`create_body`].
    pub async fn create_refund(
        &self,
        key: &ApiKey,
        request: &StripeRequest,
    ) -> Result<Executed<RefundSnapshot>, Error> {
        self.execute::<WireRefund, _>(key, "/v1/refunds", None, request).await
    }

    /// Reads a refund.
    pub async fn refund(&self, key: &ApiKey, id: &str) -> Result<RefundSnapshot, Error> {
        let call = Call::get("/v1/refunds/{id}", Some(id), "");
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// All refunds of a charge, newest first, from the list, which is current. [`Error::Unknown`] if there are more
    /// than are read: then nothing is proved.
    pub async fn refunds_of(&self, key: &ApiKey, charge: &str) -> Result<Vec<RefundSnapshot>, Error> {
        let mut found = Vec::new();
        let mut after = None::<String>;
        for _ in 0..PAGES_MAX {
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
        Err(Error::unknown(UnknownCause::TooLong, "the charge has more refunds than are read"))
    }
}

#[cfg(test)]
mod tests {
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    fn requested(amount: Option<i64>) -> Refund {
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
            request_id: Some("r1".to_owned()),
            create_time: OffsetDateTime::UNIX_EPOCH,
            update_time: OffsetDateTime::UNIX_EPOCH,
        }
    }

    #[test]
    fn p2_the_body_has_charge_and_metadata_and_no_amount_for_a_full_refund() {
        let entries = "metadata[refund_id]=00000000-0000-0000-0000-000000000007\
            &metadata[payment_id]=00000000-0000-0000-0000-000000000005&metadata[invoice_id]=inv%2F1\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002";
        assert_eq!(create_body(&requested(Some(1000)), "inv/1"), format!("charge=ch_1&amount=1000&{entries}"));
        assert_eq!(create_body(&requested(None), "inv/1"), format!("charge=ch_1&{entries}"));
    }

    #[tokio::test]
    async fn p2_the_list_is_read_completely_and_metadata_identifies_our_refunds() {
        let server = ScriptedServer::new(|request| {
            let (id, metadata, has_more) = if request.target.contains("starting_after=re_2") {
                ("re_1", r#"{"refund_id":"00000000-0000-0000-0000-000000000007"}"#, false)
            } else {
                ("re_2", "{}", true)
            };
            let refund = format!(
                r#"{{"id":"{id}","amount":100,"currency":"eur","status":"succeeded","failure_reason":null,
                "charge":"ch_1","payment_intent":"pi_1","metadata":{metadata}}}"#
            );
            response(200, &format!(r#"{{"object":"list","has_more":{has_more},"data":[{refund}]}}"#))
        })
        .await;
        let found = server.client().refunds_of(&key(), "ch_1").await.unwrap();
        let entries: Vec<_> = found.iter().map(|refund| (refund.id.as_str(), refund.refund_id)).collect();
        assert_eq!(entries, [("re_2", None), ("re_1", Some(Uuid::from_u128(7)))]);
    }
}
