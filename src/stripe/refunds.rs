//! Refunds. A refund that has succeeded can still fail.

use serde::Deserialize;
use time::OffsetDateTime;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::Error;
use super::form::Form;
use super::list::{ListPage, created_since};
use super::metadata;
use super::object::{Metadata, currency, metadata_id, metadata_text, money, null_as_default, reference};
use super::rate_limit::ApiKey;
use crate::domain::Currency;
use crate::domain::refunds::Refund;
use crate::domain::signals::RefundSnapshot;
use crate::domain::stripe_requests::StripeRequest;

const LIST: &str = "/v1/refunds";

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
            organization_id: metadata_id(&wire.metadata, metadata::ORGANIZATION_ID),
            installation: metadata_text(&wire.metadata, metadata::INSTALLATION),
            request_id: metadata_text(&wire.metadata, metadata::REQUEST_ID),
        }
    }
}

/// The body that creates a refund. Its metadata names our installation, organization, refund and payment, the invoice,
/// and the caller's request.
pub fn create_body(installation: &str, refund: &Refund, invoice_id: &str) -> String {
    let mut entries = vec![
        (metadata::REFUND_ID, refund.id.to_string()),
        (metadata::PAYMENT_ID, refund.payment_id.to_string()),
        (metadata::INVOICE_ID, invoice_id.to_owned()),
        (metadata::ORGANIZATION_ID, refund.organization_id.to_string()),
        (metadata::INSTALLATION, installation.to_owned()),
    ];
    entries.extend(refund.request_id.clone().map(|request_id| (metadata::REQUEST_ID, request_id)));
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
        self.execute::<WireRefund, _>(key, LIST, None, request).await
    }

    /// Reads a refund.
    pub async fn refund(&self, key: &ApiKey, id: &str) -> Result<RefundSnapshot, Error> {
        let call = Call::get("/v1/refunds/{id}", Some(id), "");
        Ok(self.send::<WireRefund>(key, call).await?.into())
    }

    /// All refunds of a charge, newest first, from the list, which is current. [`Error::Unknown`] if there are more
    /// than are read: then nothing is proved.
    pub async fn refunds_of(&self, key: &ApiKey, charge: &str) -> Result<Vec<RefundSnapshot>, Error> {
        let filter = Form::new().push("charge", charge);
        let too_long = "the charge has more refunds than are read";
        self.whole_list::<WireRefund, _>(key, LIST, &filter, PAGES_MAX, too_long).await
    }

    /// A page of all refunds of the account that were created at `since` or later, newest first, from the one after
    /// `after` on. It is the first page again if `after` is not in the list.
    pub async fn refunds_since(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        after: Option<&str>,
    ) -> Result<ListPage<RefundSnapshot>, Error> {
        self.account_page::<WireRefund, _>(key, LIST, created_since(since), after).await
    }
}

#[cfg(test)]
mod tests {
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
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002&metadata[installation]=test";
        let body = |refund: &Refund| create_body("test", refund, "inv/1");
        let part = format!("charge=ch_1&amount=1000&{entries}&metadata[request_id]=r1");
        assert_eq!(body(&requested(Some(1000))), part);
        assert_eq!(body(&requested(None)), format!("charge=ch_1&{entries}&metadata[request_id]=r1"));
        let without_request = Refund { request_id: None, ..requested(None) };
        assert_eq!(body(&without_request), format!("charge=ch_1&{entries}"));
    }

    #[tokio::test]
    async fn refunds_of_the_account_are_read_with_all_our_metadata() {
        let refund = r#"{"id":"re_1","amount":100,"currency":"eur","status":"succeeded","metadata":{
            "installation":"test","request_id":"r1","organization_id":"00000000-0000-0000-0000-000000000002"}}"#;
        let page = format!(r#"{{"object":"list","has_more":true,"data":[{refund}]}}"#);
        let server = ScriptedServer::new(move |_| response(200, &page)).await;
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let page = server.client().refunds_since(&key(), since, None).await.unwrap();
        assert_eq!(server.requests()[0].target, "/v1/refunds?created[gte]=1700000000&limit=100");
        let read = &page.items[0];
        assert_eq!((read.installation.as_deref(), read.request_id.as_deref()), (Some("test"), Some("r1")));
        assert_eq!((read.organization_id, page.next.as_deref()), (Some(Uuid::from_u128(2)), Some("re_1")));
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
