//! PaymentIntents: created unconfirmed, so that no money can move, then confirmed once per attempt.

mod wire;

use serde::Deserialize;
use time::OffsetDateTime;

pub(super) use self::wire::WireIntent;
use super::call::Call;
use super::client::{Client, Executed};
use super::error::Error;
use super::form::{Form, PAYMENT_METHOD_TYPES};
use super::list::{ListPage, created_since};
use super::metadata;
use super::rate_limit::ApiKey;
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::Payment;
use crate::domain::signals::IntentSnapshot;
use crate::domain::stripe_requests::StripeRequest;

const LIST: &str = "/v1/payment_intents";

/// The most pages of 100 that are read to find an intent (P11). With more, the search has no result.
const PAGES_MAX: usize = 50;

/// The body that creates a payment's intent, unconfirmed. `kinds` are the customer's allowed kinds that take the
/// invoice's currency. The metadata names the invoice, the customer, and our installation, organization, payment and
/// attempt.
pub fn create_body(installation: &str, payment: &Payment, provider_customer_id: &str, kinds: &[MethodKind]) -> String {
    let description = (!payment.invoice_number.is_empty()).then(|| format!("Invoice {}", payment.invoice_number));
    Form::new()
        .push("amount", payment.amount.minor_units)
        .push("currency", payment.amount.currency.to_lower())
        .push("customer", provider_customer_id)
        .push_list(PAYMENT_METHOD_TYPES, kinds.iter().map(|kind| kind.as_str()))
        .push_some("description", description)
        .push_map("metadata", &metadata::of_next_attempt(installation, payment))
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
        self.execute::<WireIntent, _>(key, LIST, None, request).await
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
        let filter = Form::new().push("customer", provider_customer_id).push("created[gte]", since.unix_timestamp());
        let too_long = "the customer has more intents than are read";
        let list = self.whole_list::<WireIntent, IntentSnapshot>(key, LIST, &filter, PAGES_MAX, too_long);
        let mut found = list.await?;
        found.retain(is_of_invoice);
        Ok(found)
    }

    /// A page of all intents of the account that were created at `since` or later, newest first, from the one after
    /// `after` on. It is the first page again if `after` is not in the list.
    pub async fn payment_intents_since(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        after: Option<&str>,
    ) -> Result<ListPage<IntentSnapshot>, Error> {
        self.account_page::<WireIntent, _>(key, LIST, created_since(since), after).await
    }

    /// A page of all intents as they were at their creation, at `since` or later, newest first: of the events list, which
    /// reaches back 30 days. Their metadata is what their creator had written. `after` is the id of an event.
    pub async fn payment_intents_as_created(
        &self,
        key: &ApiKey,
        since: OffsetDateTime,
        after: Option<&str>,
    ) -> Result<ListPage<IntentSnapshot>, Error> {
        let creations = created_since(since).push("type", "payment_intent.created");
        self.account_page::<Creation, _>(key, "/v1/events", creations, after).await
    }
}

/// The event of an intent's creation.
#[derive(Deserialize)]
struct Creation {
    data: CreatedObject,
}

#[derive(Deserialize)]
struct CreatedObject {
    object: WireIntent,
}

impl From<Creation> for IntentSnapshot {
    fn from(creation: Creation) -> Self {
        creation.data.object.into()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::super::error::UnknownCause;
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;
    use crate::domain::fixtures;

    fn payment() -> Payment {
        Payment {
            id: Uuid::from_u128(5).into(),
            organization_id: Uuid::from_u128(2).into(),
            integration_id: Uuid::from_u128(4).into(),
            customer_id: Uuid::from_u128(1).into(),
            external_customer_id: "hooli_1234".to_owned(),
            invoice_id: "inv/1".to_owned(),
            invoice_number: "HOO-001".to_owned(),
            ..fixtures::payment(4900)
        }
    }

    #[test]
    fn p2_the_same_payment_gives_the_same_bytes_and_no_money_can_move_yet() {
        let kinds = [MethodKind::Card, MethodKind::SepaDebit];
        let body = create_body("test", &payment(), "cus_1", &kinds);
        let expected = "amount=4900&currency=eur&customer=cus_1&payment_method_types[0]=card\
            &payment_method_types[1]=sepa_debit&description=Invoice%20HOO-001&metadata[invoice_id]=inv%2F1\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002\
            &metadata[payment_id]=00000000-0000-0000-0000-000000000005\
            &metadata[attempt_id]=00000000-0000-0000-0000-000000000005%2F1\
            &metadata[installation]=test\
            &metadata[customer_id]=00000000-0000-0000-0000-000000000001\
            &metadata[external_customer_id]=hooli_1234&metadata[invoice_number]=HOO-001";
        assert_eq!(body, expected);
        assert_eq!(create_body("test", &payment(), "cus_1", &kinds), body);
        let unnumbered = Payment { invoice_number: String::new(), ..payment() };
        assert!(!create_body("test", &unnumbered, "cus_1", &kinds).contains("invoice_number"));
    }

    /// Stripe accepts 500 characters in a value of metadata. Callers' ids have at most 255.
    #[test]
    fn the_longest_ids_fit_the_metadata() {
        let longest = "ü".repeat(255);
        let payment = Payment {
            invoice_id: longest.clone(),
            invoice_number: longest.clone(),
            external_customer_id: longest,
            ..payment()
        };
        let entries = metadata::of_next_attempt(&"i".repeat(63), &payment);
        assert!(entries.iter().all(|(key, value)| key.len() <= 40 && value.chars().count() <= 500), "{entries:?}");
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
    async fn intents_of_the_account_are_read_with_all_our_metadata() {
        let intent = r#"{"id":"pi_1","status":"succeeded","amount":4900,"currency":"eur","metadata":{
            "invoice_id":"inv/1","invoice_number":"HOO-001","installation":"test","external_customer_id":"hooli_1234",
            "customer_id":"00000000-0000-0000-0000-000000000001"}}"#;
        let page = format!(r#"{{"object":"list","has_more":false,"data":[{intent}]}}"#);
        let server = ScriptedServer::new(move |_| response(200, &page)).await;
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let page = server.client().payment_intents_since(&key(), since, Some("pi_2")).await.unwrap();
        let target = "/v1/payment_intents?created[gte]=1700000000&limit=100&starting_after=pi_2";
        assert_eq!(server.requests()[0].target, target);
        let read = &page.items[0];
        assert_eq!((read.installation.as_deref(), read.customer_id), (Some("test"), Some(Uuid::from_u128(1))));
        assert_eq!(read.external_customer_id.as_deref(), Some("hooli_1234"));
        assert_eq!((read.invoice_number.as_deref(), page.next), (Some("HOO-001"), None));
    }

    #[tokio::test]
    async fn p8_the_metadata_of_a_creation_is_read_from_its_event() {
        let object = intent("pi_1", "inv/1");
        let page = format!(
            r#"{{"object":"list","has_more":true,"data":[
                {{"id":"evt_1","type":"payment_intent.created","created":1700000000,"data":{{"object":{object}}}}}]}}"#
        );
        let server = ScriptedServer::new(move |_| response(200, &page)).await;
        let since = OffsetDateTime::from_unix_timestamp(1_700_000_000).unwrap();
        let page = server.client().payment_intents_as_created(&key(), since, Some("evt_2")).await.unwrap();
        let target = "/v1/events?created[gte]=1700000000&type=payment_intent.created&limit=100&starting_after=evt_2";
        assert_eq!(server.requests()[0].target, target);
        assert_eq!((page.items[0].id.as_str(), page.items[0].invoice_id.as_deref()), ("pi_1", Some("inv/1")));
        assert_eq!(page.next.as_deref(), Some("evt_1"));
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
