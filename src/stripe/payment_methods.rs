//! Payment methods at Stripe.

use serde::Deserialize;
use time::OffsetDateTime;

use super::call::Call;
use super::client::Client;
use super::error::Error;
use super::form::Form;
use super::object::{Page, reference, seconds};
use super::rate_limit::ApiKey;
use crate::domain::payment_methods::{MethodDetails, MethodKind};
use crate::domain::signals::MethodSnapshot;

/// The most pages of 100 that are read of one customer's methods of one kind (P11). Stripe allows far fewer methods.
const PAGES_MAX: usize = 10;

#[derive(Debug, Deserialize)]
pub(super) struct WireMethod {
    pub id: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(deserialize_with = "seconds")]
    created: OffsetDateTime,
    #[serde(default, deserialize_with = "reference")]
    customer: Option<String>,
    card: Option<WireDetails>,
    sepa_debit: Option<WireDetails>,
}

/// The details of a method, in a field named after its kind. No kind has all of them.
#[derive(Debug, Default, Deserialize)]
struct WireDetails {
    brand: Option<String>,
    last4: Option<String>,
    exp_month: Option<i32>,
    exp_year: Option<i32>,
    country: Option<String>,
    bank_code: Option<String>,
}

impl From<WireMethod> for MethodSnapshot {
    fn from(wire: WireMethod) -> Self {
        let details = wire.card.or(wire.sepa_debit).unwrap_or_default();
        let details = MethodDetails {
            brand: details.brand,
            last4: details.last4,
            exp_month: details.exp_month,
            exp_year: details.exp_year,
            country: details.country,
            bank_code: details.bank_code,
        };
        Self { id: wire.id, kind: wire.kind, details, provider_customer_id: wire.customer, created: wire.created }
    }
}

impl Client {
    /// Reads a method.
    pub async fn payment_method(&self, key: &ApiKey, id: &str) -> Result<MethodSnapshot, Error> {
        let call = Call::get("/v1/payment_methods/{id}", Some(id), "");
        Ok(self.send::<WireMethod>(key, call).await?.into())
    }

    /// All of a customer's methods of these kinds, newest first within a kind.
    pub async fn payment_methods_of(
        &self,
        key: &ApiKey,
        provider_customer_id: &str,
        kinds: &[MethodKind],
    ) -> Result<Vec<MethodSnapshot>, Error> {
        let mut methods = Vec::new();
        for kind in kinds {
            let mut after = None::<String>;
            for _ in 0..PAGES_MAX {
                let form = Form::new().push("type", kind.as_str()).push("limit", 100);
                let query = form.push_some("starting_after", after.as_deref()).into_body();
                let route = "/v1/customers/{id}/payment_methods";
                let page: Page<WireMethod> =
                    self.send(key, Call::get(route, Some(provider_customer_id), &query)).await?;
                after = page.data.last().map(|method| method.id.clone());
                methods.extend(page.data.into_iter().map(MethodSnapshot::from));
                if !page.has_more || after.is_none() {
                    break;
                }
            }
        }
        Ok(methods)
    }

    /// Detaches a method permanently. Stripe refuses one that is already detached, without a code: read it to find out.
    pub async fn detach_payment_method(&self, key: &ApiKey, id: &str) -> Result<MethodSnapshot, Error> {
        let idempotency_key = self.unique_key("detach");
        let call = Call::post("/v1/payment_methods/{id}/detach", Some(id), &idempotency_key, "");
        Ok(self.send::<WireMethod>(key, call).await?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;

    #[test]
    fn details_of_cards_and_bank_accounts_are_parsed() {
        let read = |json: &str| MethodSnapshot::from(serde_json::from_str::<WireMethod>(json).unwrap());
        let card = read(
            r#"{"id":"pm_1","type":"card","created":1700000000,"customer":"cus_1","allow_redisplay":"always",
            "card":{"brand":"visa","last4":"4242","exp_month":8,"exp_year":2030,"country":"US","checks":{}}}"#,
        );
        assert_eq!((card.kind.as_str(), card.provider_customer_id.as_deref()), ("card", Some("cus_1")));
        assert_eq!(card.details.brand.as_deref(), Some("visa"));
        assert_eq!((card.details.exp_month, card.details.exp_year), (Some(8), Some(2030)));
        let sepa = read(
            r#"{"id":"pm_2","type":"sepa_debit","created":1700000000,"customer":null,
            "sepa_debit":{"bank_code":"37040044","country":"DE","last4":"3000","branch_code":""}}"#,
        );
        assert_eq!(sepa.details.bank_code.as_deref(), Some("37040044"));
        assert_eq!(sepa.provider_customer_id, None);
        assert_eq!(read(r#"{"id":"pm_3","type":"link","created":1}"#).details, MethodDetails::default());
    }

    #[tokio::test]
    async fn all_pages_of_all_allowed_kinds_are_read() {
        let server = ScriptedServer::new(|request| {
            let (id, kind, has_more) = match request.target.split_once("?type=").map(|(_, query)| query) {
                Some("card&limit=100") => ("pm_1", "card", true),
                Some("card&limit=100&starting_after=pm_1") => ("pm_2", "card", false),
                Some("sepa_debit&limit=100") => ("pm_3", "sepa_debit", false),
                _ => return response(404, ""),
            };
            let method = format!(r#"{{"id":"{id}","type":"{kind}","created":1}}"#);
            response(200, &format!(r#"{{"data":[{method}],"has_more":{has_more}}}"#))
        })
        .await;
        let key = key();
        let kinds = [MethodKind::Card, MethodKind::SepaDebit];
        let methods = server.client().payment_methods_of(&key, "cus_1", &kinds).await.unwrap();
        let ids: Vec<_> = methods.iter().map(|method| method.id.as_str()).collect();
        assert_eq!(ids, ["pm_1", "pm_2", "pm_3"]);
    }
}
