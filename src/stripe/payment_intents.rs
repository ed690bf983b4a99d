//! PaymentIntents: created unconfirmed, so that no money can move, then confirmed once per attempt.

mod wire;

use time::OffsetDateTime;

pub(super) use self::wire::WireIntent;
use super::call::Call;
use super::client::{Client, Executed};
use super::error::{Error, UnknownCause};
use super::form::{Form, PAYMENT_METHOD_TYPES};
use super::metadata;
use super::object::Page;
use super::rate_limit::ApiKey;
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::Payment;
use crate::domain::signals::IntentSnapshot;
use crate::domain::stripe_requests::StripeRequest;

/// The most pages of 100 that are read to find an intent (P11). With more, the search has no result.
const PAGES_MAX: usize = 50;

/// The body that creates a payment's intent, unconfirmed. `kinds` are the customer's allowed kinds that take the
/// invoice's currency. The metadata names the invoice and our organization, payment and attempt.
pub fn create_body(payment: &Payment, provider_customer_id: &str, kinds: &[MethodKind]) -> String {
    let description = (!payment.invoice_number.is_empty()).then(|| format!("Invoice {}", payment.invoice_number));
    let entries = [
        (metadata::INVOICE_ID, payment.invoice_id.clone()),
        (metadata::ORGANIZATION_ID, payment.organization_id.to_string()),
        (metadata::PAYMENT_ID, payment.id.to_string()),
        (metadata::ATTEMPT_ID, format!("{}/{}", payment.id, payment.attempt_number + 1)),
    ];
    Form::new()
        .push("amount", payment.amount.minor_units)
        .push("currency", payment.amount.currency.to_lower())
        .push("customer", provider_customer_id)
        .push_list(PAYMENT_METHOD_TYPES, kinds.iter().map(|kind| kind.as_str()))
        .push_some("description", description)
        .push_map("metadata", &entries)
        .into_body()
}

/// The body that confirms with a stored method, off session. The list of kinds is recomputed for every confirmation, so
/// that the same intent can be attempted by card first and by SEPA next.
pub fn confirm_body(provider_payment_method_id: &str, kinds: &[MethodKind]) -> String {
    confirm_form(provider_payment_method_id, kinds).push("off_session", true).into_body()
}

/// The body that confirms with a stored method, on session. The customer returns to `return_url` after 3-D Secure.
pub fn confirm_on_session_body(provider_payment_method_id: &str, kinds: &[MethodKind], return_url: &str) -> String {
    confirm_form(provider_payment_method_id, kinds).push("return_url", return_url).into_body()
}

fn confirm_form(provider_payment_method_id: &str, kinds: &[MethodKind]) -> Form {
    Form::new()
        .push("payment_method", provider_payment_method_id)
        .push_list(PAYMENT_METHOD_TYPES, kinds.iter().map(|kind| kind.as_str()))
}

impl Client {
    /// Creates an intent; the request's body is a stored [`create_body`].
    pub async fn create_payment_intent(
        &self,
        key: &ApiKey,
        request: &StripeRequest,
    ) -> Result<Executed<IntentSnapshot>, Error> {
        self.execute::<WireIntent, _>(key, "/v1/payment_intents", None, request).await
    }

    /// Reads an intent. Its state settles unknown outcomes.
    pub async fn payment_intent(&self, key: &ApiKey, id: &str) -> Result<IntentSnapshot, Error> {
        let call = Call::get("/v1/payment_intents/{id}", Some(id), "");
        Ok(self.send::<WireIntent>(key, call).await?.into())
    }

    /// Confirms an intent: from here on money may move. `body` is an attempt's stored body.
    pub async fn confirm_payment_intent(
        &self,
        key: &ApiKey,
        id: &str,
        request: &StripeRequest,
    ) -> Result<Executed<IntentSnapshot>, Error> {
        self.execute::<WireIntent, _>(key, "/v1/payment_intents/{id}/confirm", Some(id), request).await
    }

    /// Cancels an intent. Only a `canceled` response closes it; Stripe refuses if it has progressed too far.
    pub async fn cancel_payment_intent(&self, key: &ApiKey, id: &str) -> Result<IntentSnapshot, Error> {
        let idempotency_key = self.unique_key("cancel");
        let call = Call::post("/v1/payment_intents/{id}/cancel", Some(id), &idempotency_key, "");
        Ok(self.send::<WireIntent>(key, call).await?.into())
    }

    /// A customer's intents whose metadata names a payment's invoice, created at `since` or later; newest first. They
    /// are read from the list, which is current, never from search, which lags (P2). [`Error::Unknown`] if the list is
    /// too long to be read completely: then nothing is proved.
    pub async fn find_payment_intents(
        &self,
        key: &ApiKey,
        provider_customer_id: &str,
        since: OffsetDateTime,
        payment: &Payment,
    ) -> Result<Vec<IntentSnapshot>, Error> {
        let is_of_invoice = |intent: &IntentSnapshot| {
            intent.organization_id == Some(payment.organization_id.0)
                && intent.invoice_id.as_ref() == Some(&payment.invoice_id)
        };
        let mut found = Vec::new();
        let mut after = None::<String>;
        for _ in 0..PAGES_MAX {
            let query = Form::new()
                .push("customer", provider_customer_id)
                .push("created[gte]", since.unix_timestamp())
                .push("limit", 100)
                .push_some("starting_after", after.as_deref())
                .into_body();
            let page: Page<WireIntent> = self.send(key, Call::get("/v1/payment_intents", None, &query)).await?;
            after = page.data.last().map(|intent| intent.id.clone());
            let intents = page.data.into_iter().map(IntentSnapshot::from);
            found.extend(intents.filter(is_of_invoice));
            if !page.has_more || after.is_none() {
                return Ok(found);
            }
        }
        Err(Error::unknown(UnknownCause::TooLong, "the customer has more intents than are read"))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;
    use crate::domain::fixtures;

    fn payment() -> Payment {
        Payment {
            id: Uuid::from_u128(5).into(),
            organization_id: Uuid::from_u128(2).into(),
            integration_id: Uuid::from_u128(4).into(),
            customer_id: Uuid::from_u128(1).into(),
            invoice_id: "inv/1".to_owned(),
            invoice_number: "HOO-001".to_owned(),
            ..fixtures::payment(4900)
        }
    }

    #[test]
    fn p2_the_same_payment_gives_the_same_bytes_and_no_money_can_move_yet() {
        let body = create_body(&payment(), "cus_1", &[MethodKind::Card, MethodKind::SepaDebit]);
        let expected = "amount=4900&currency=eur&customer=cus_1&payment_method_types[0]=card\
            &payment_method_types[1]=sepa_debit&description=Invoice%20HOO-001&metadata[invoice_id]=inv%2F1\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002\
            &metadata[payment_id]=00000000-0000-0000-0000-000000000005\
            &metadata[attempt_id]=00000000-0000-0000-0000-000000000005%2F1";
        assert_eq!(body, expected);
        assert_eq!(create_body(&payment(), "cus_1", &[MethodKind::Card, MethodKind::SepaDebit]), body);
    }

    #[test]
    fn a_confirmation_is_off_session_or_has_a_return_url_and_never_both() {
        let kinds = [MethodKind::Card];
        let common = "payment_method=pm_1&payment_method_types[0]=card";
        assert_eq!(confirm_body("pm_1", &kinds), format!("{common}&off_session=true"));
        let on_session = confirm_on_session_body("pm_1", &kinds, "https://shop.test/");
        assert_eq!(on_session, format!("{common}&return_url=https%3A%2F%2Fshop.test%2F"));
    }

    fn intent(id: &str, invoice_id: &str) -> String {
        format!(
            r#"{{"id":"{id}","status":"canceled","amount":1,"currency":"eur","metadata":{{"invoice_id":"{invoice_id}",
            "organization_id":"00000000-0000-0000-0000-000000000002"}}}}"#
        )
    }

    #[tokio::test]
    async fn an_intent_is_searched_in_the_complete_list() {
        let server = ScriptedServer::new(move |request| {
            let (data, has_more) = if request.target.contains("starting_after=pi_2") {
                (intent("pi_1", "inv/1"), false)
            } else {
                ([intent("pi_3", "inv/1"), intent("pi_2", "inv/2")].join(","), true)
            };
            response(200, &format!(r#"{{"object":"list","data":[{data}],"has_more":{has_more}}}"#))
        })
        .await;
        let key = key();
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let found = server.client().find_payment_intents(&key, "cus_1", since, &payment()).await.unwrap();
        let ids: Vec<_> = found.iter().map(|intent| intent.id.as_str()).collect();
        assert_eq!(ids, ["pi_3", "pi_1"]);
        let first = "/v1/payment_intents?customer=cus_1&created[gte]=1700000000&limit=100";
        assert_eq!(server.requests()[0].target, first);
    }

    #[tokio::test]
    async fn p11_p2_a_list_beyond_the_limit_proves_nothing() {
        let page = format!(r#"{{"data":[{}],"has_more":true}}"#, intent("pi_9", "inv/9"));
        let server = ScriptedServer::new(move |_| response(200, &page)).await;
        let key = key();
        let since = OffsetDateTime::UNIX_EPOCH;
        let error = server.client().find_payment_intents(&key, "cus_1", since, &payment()).await.unwrap_err();
        assert!(matches!(error, Error::Unknown { reason: UnknownCause::TooLong, .. }), "{error:?}");
        assert_eq!(server.requests().len(), PAGES_MAX);
    }
}
