//! Checkout sessions. In setup mode a session stores a payment method and moves no money; in payment mode it pays one
//! invoice.

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::call::Call;
use super::client::{Client, Executed};
use super::error::Error;
use super::form::{Form, PAYMENT_METHOD_TYPES};
use super::list::ListPage;
use super::metadata;
use super::object::{Metadata, metadata_id, metadata_text, null_as_default, reference, seconds};
use super::rate_limit::ApiKey;
use super::redact::HostedUrl;
use crate::domain::checkout_sessions::CheckoutSession;
use crate::domain::payment_methods::MethodKind;
use crate::domain::payments::Payment;
use crate::domain::signals::{SessionSnapshot, SessionStatus};
use crate::domain::stripe_requests::StripeRequest;

const LIST: &str = "/v1/checkout/sessions";

/// The most pages of 100 sessions of a customer that are read (P11).
const PAGES_MAX: usize = 50;

/// The longest product name that Stripe accepts, in characters.
const PRODUCT_NAME_MAX: usize = 250;

#[derive(Debug, Deserialize)]
pub(super) struct WireSession {
    id: String,
    url: Option<HostedUrl>,
    #[serde(deserialize_with = "status")]
    status: SessionStatus,
    #[serde(deserialize_with = "seconds")]
    expires_at: OffsetDateTime,
    #[serde(default, deserialize_with = "reference")]
    setup_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    payment_intent: Option<String>,
    #[serde(default, deserialize_with = "reference")]
    customer: Option<String>,
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SessionStatus, D::Error> {
    let name = String::deserialize(deserializer)?;
    name.parse().map_err(|_| D::Error::custom("not a status of a Checkout session"))
}

impl From<WireSession> for SessionSnapshot {
    fn from(wire: WireSession) -> Self {
        Self {
            id: wire.id,
            url: wire.url.map(|url| url.expose().to_owned()),
            status: wire.status,
            expire_time: wire.expires_at,
            provider_setup_intent_id: wire.setup_intent,
            provider_payment_intent_id: wire.payment_intent,
            provider_customer_id: wire.customer,
        }
    }
}

/// A session in a list: while it is open, its page can store a method or take money.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSession {
    /// Stripe's `cs_…`.
    pub id: String,
    /// Whether it is open, complete or expired.
    pub status: SessionStatus,
    /// The invoice that it pays, from the metadata.
    pub invoice_id: Option<String>,
    /// Our organization id, from the metadata.
    pub organization_id: Option<Uuid>,
    /// The name of the installation that created it, from the metadata.
    pub installation: Option<String>,
}

#[derive(Debug, Deserialize)]
struct WireListedSession {
    id: String,
    #[serde(deserialize_with = "status")]
    status: SessionStatus,
    #[serde(default, deserialize_with = "null_as_default")]
    metadata: Metadata,
}

impl From<WireListedSession> for ListedSession {
    fn from(wire: WireListedSession) -> Self {
        Self {
            id: wire.id,
            status: wire.status,
            invoice_id: metadata_text(&wire.metadata, metadata::INVOICE_ID),
            organization_id: metadata_id(&wire.metadata, metadata::ORGANIZATION_ID),
            installation: metadata_text(&wire.metadata, metadata::INSTALLATION),
        }
    }
}

/// The body of a session that stores one method of the allowed kinds. No `expires_at` is sent: Stripe's default is 24
/// h. The metadata is set on the session and on its SetupIntent, because Stripe copies none.
pub fn setup_body(
    installation: &str,
    session: &CheckoutSession,
    provider_customer_id: &str,
    kinds: &[MethodKind],
) -> String {
    let entries = [
        (metadata::ORGANIZATION_ID, session.organization_id.to_string()),
        (metadata::CUSTOMER_ID, session.customer_id.to_string()),
        (metadata::CHECKOUT_SESSION_ID, session.id.to_string()),
        (metadata::INSTALLATION, installation.to_owned()),
    ];
    Form::new()
        .push("mode", "setup")
        .push("customer", provider_customer_id)
        .push_list(PAYMENT_METHOD_TYPES, kinds.iter().map(|kind| kind.as_str()))
        .push("success_url", &session.success_url)
        .push_map("metadata", &entries)
        .push_map("setup_intent_data[metadata]", &entries)
        .into_body()
}

/// The body of a session that pays one invoice with one of the allowed kinds that take its currency, and stores the
/// method for later invoices. No `expires_at` is sent: Stripe's default is 24 h. The metadata is set on the session and
/// on its PaymentIntent, because Stripe copies none. It names the payment's next attempt.
pub fn payment_body(
    installation: &str,
    payment: &Payment,
    provider_customer_id: &str,
    kinds: &[MethodKind],
    success_url: &str,
) -> String {
    let mut entries = metadata::of_next_attempt(installation, payment);
    entries.push((metadata::ATTEMPT_KIND, metadata::LINK.to_owned()));
    let name = product_name(payment);
    Form::new()
        .push("mode", "payment")
        .push("customer", provider_customer_id)
        .push_list(PAYMENT_METHOD_TYPES, kinds.iter().map(|kind| kind.as_str()))
        .push("line_items[0][quantity]", 1)
        .push("line_items[0][price_data][currency]", payment.amount.currency.to_lower())
        .push("line_items[0][price_data][unit_amount]", payment.amount.minor_units)
        .push("line_items[0][price_data][product_data][name]", &name)
        .push("success_url", success_url)
        .push_map("metadata", &entries)
        .push("payment_intent_data[description]", &name)
        .push("payment_intent_data[setup_future_usage]", "off_session")
        .push_map("payment_intent_data[metadata]", &entries)
        .into_body()
}

/// The product name on the page: the invoice. A long number is shown without the prefix, and truncated if it is still
/// too long.
fn product_name(payment: &Payment) -> String {
    let invoice = if payment.invoice_number.is_empty() { &payment.invoice_id } else { &payment.invoice_number };
    let name = format!("Invoice {invoice}");
    if name.chars().count() <= PRODUCT_NAME_MAX {
        return name;
    }
    if invoice.chars().count() <= PRODUCT_NAME_MAX {
        return invoice.clone();
    }
    invoice.chars().take(PRODUCT_NAME_MAX - 1).chain(['…']).collect()
}

impl Client {
    /// Creates a session; the request's body is a stored [`setup_body`] or [`payment_body`].
    pub async fn create_checkout_session(
        &self,
        key: &ApiKey,
        request: &StripeRequest,
    ) -> Result<Executed<SessionSnapshot>, Error> {
        self.execute::<WireSession, _>(key, LIST, None, request).await
    }

    /// Reads a session.
    pub async fn checkout_session(&self, key: &ApiKey, id: &str) -> Result<SessionSnapshot, Error> {
        let call = Call::get("/v1/checkout/sessions/{id}", Some(id), "");
        Ok(self.send::<WireSession>(key, call).await?.into())
    }

    /// The session that created an intent, if one did.
    pub async fn checkout_session_of(&self, key: &ApiKey, intent: &str) -> Result<Option<SessionSnapshot>, Error> {
        let of_intent = Form::new().push("payment_intent", intent);
        let page = self.page::<WireSession, SessionSnapshot>(key, LIST, of_intent, None).await?;
        Ok(page.items.into_iter().next())
    }

    /// A page of all open sessions of the account, newest first, from the one after `after` on. It is the first page
    /// again if `after` is not in the list, because that session is no longer open.
    pub async fn open_checkout_sessions(
        &self,
        key: &ApiKey,
        after: Option<&str>,
    ) -> Result<ListPage<ListedSession>, Error> {
        let open = Form::new().push("status", "open");
        self.account_page::<WireListedSession, _>(key, LIST, open, after).await
    }

    /// All sessions of a customer, newest first. [`Error::Unknown`] if there are too many to read them all.
    pub async fn checkout_sessions_of(&self, key: &ApiKey, customer: &str) -> Result<Vec<ListedSession>, Error> {
        let of_customer = Form::new().push("customer", customer);
        let too_long = "the customer has more Checkout sessions than are read";
        self.whole_list::<WireListedSession, _>(key, LIST, &of_customer, PAGES_MAX, too_long).await
    }

    /// Expires an open session. Stripe refuses one that is complete or expired: read it to find out.
    pub async fn expire_checkout_session(&self, key: &ApiKey, id: &str) -> Result<SessionSnapshot, Error> {
        let idempotency_key = self.unique_key("expire");
        let call = Call::post("/v1/checkout/sessions/{id}/expire", Some(id), &idempotency_key, "");
        Ok(self.send::<WireSession>(key, call).await?.into())
    }
}

#[cfg(test)]
mod tests {
    use super::super::scripted::{ScriptedServer, key, response};
    use super::*;
    use crate::domain::checkout_sessions::SessionState;
    use crate::domain::fixtures;

    #[test]
    fn a_setup_session_has_the_allowed_kinds_and_metadata_twice() {
        let session = CheckoutSession {
            id: Uuid::from_u128(3).into(),
            organization_id: Uuid::from_u128(2).into(),
            customer_id: Uuid::from_u128(1).into(),
            integration_id: Uuid::from_u128(4).into(),
            state: SessionState::Creating,
            success_url: "https://shop.test/?s={CHECKOUT_SESSION_ID}".to_owned(),
            provider_session_id: None,
            url: None,
            expire_time: None,
            reports_url: true,
            create_time: OffsetDateTime::UNIX_EPOCH,
        };
        let body = setup_body("test", &session, "cus_1", &[MethodKind::Card, MethodKind::SepaDebit]);
        let expected = "mode=setup&customer=cus_1&payment_method_types[0]=card&payment_method_types[1]=sepa_debit\
            &success_url=https%3A%2F%2Fshop.test%2F%3Fs%3D%7BCHECKOUT_SESSION_ID%7D\
            &metadata[organization_id]=00000000-0000-0000-0000-000000000002\
            &metadata[customer_id]=00000000-0000-0000-0000-000000000001\
            &metadata[checkout_session_id]=00000000-0000-0000-0000-000000000003&metadata[installation]=test\
            &setup_intent_data[metadata][organization_id]=00000000-0000-0000-0000-000000000002\
            &setup_intent_data[metadata][customer_id]=00000000-0000-0000-0000-000000000001\
            &setup_intent_data[metadata][checkout_session_id]=00000000-0000-0000-0000-000000000003\
            &setup_intent_data[metadata][installation]=test";
        assert_eq!(body, expected);
    }

    #[test]
    fn a_payment_session_has_the_metadata_of_an_intent_twice() {
        let payment = Payment { invoice_id: "inv/1".to_owned(), attempt_number: 2, ..fixtures::payment(4900) };
        let body = payment_body("test", &payment, "cus_1", &[MethodKind::Card], "https://shop.test/");
        let entries = metadata::of_next_attempt("test", &payment);
        assert!(entries.contains(&(metadata::ATTEMPT_ID, format!("{}/3", payment.id))));
        for map in ["metadata", "payment_intent_data[metadata]"] {
            let expected = Form::new().push_map(map, &entries).into_body();
            assert!(body.contains(&expected), "{expected} in {body}");
        }
    }

    #[tokio::test]
    async fn open_sessions_are_read_page_by_page_and_anew_after_one_that_has_ended() {
        let server = ScriptedServer::new(|request| {
            let session =
                |id: &str, metadata: &str| format!(r#"{{"id":"{id}","status":"open","metadata":{metadata}}}"#);
            let ours = r#"{"installation":"test","organization_id":"00000000-0000-0000-0000-000000000002"}"#;
            let (data, has_more) = match request.target.split_once("&starting_after=").map(|(_, after)| after) {
                None => (session("cs_2", ours), true),
                Some("cs_2") => (session("cs_1", "{}"), false),
                // As Stripe refuses a cursor that is not in the list.
                Some(_) => {
                    let error =
                        r#"{"type":"invalid_request_error","code":"resource_missing","param":"starting_after"}"#;
                    return response(400, &format!(r#"{{"error":{error}}}"#));
                }
            };
            response(200, &format!(r#"{{"object":"list","data":[{data}],"has_more":{has_more}}}"#))
        })
        .await;
        let client = server.client();
        let page = client.open_checkout_sessions(&key(), None).await.unwrap();
        assert_eq!(server.requests()[0].target, "/v1/checkout/sessions?status=open&limit=100");
        let expected = ListedSession {
            id: "cs_2".to_owned(),
            status: SessionStatus::Open,
            invoice_id: None,
            organization_id: Some(Uuid::from_u128(2)),
            installation: Some("test".to_owned()),
        };
        assert_eq!((page.items.as_slice(), page.next.as_deref()), ([expected].as_slice(), Some("cs_2")));
        let last = client.open_checkout_sessions(&key(), Some("cs_2")).await.unwrap();
        assert_eq!((last.items[0].id.as_str(), last.items[0].organization_id, last.next), ("cs_1", None, None));
        assert_eq!(client.open_checkout_sessions(&key(), Some("cs_9")).await.unwrap(), page);
    }

    #[test]
    fn p9_a_session_is_parsed_and_its_url_not_printed() {
        let json = r#"{"id":"cs_test_1","url":"https://checkout.stripe.com/c/pay/cs_test_1","status":"open",
            "expires_at":1700086400,"setup_intent":"seti_1","customer":"cus_1","mode":"setup"}"#;
        let wire: WireSession = serde_json::from_str(json).unwrap();
        assert!(!format!("{wire:?}").contains("checkout.stripe.com"));
        let snapshot = SessionSnapshot::from(wire);
        assert_eq!(snapshot.status, SessionStatus::Open);
        assert_eq!(snapshot.expire_time.unix_timestamp(), 1_700_086_400);
        assert_eq!(snapshot.url.as_deref(), Some("https://checkout.stripe.com/c/pay/cs_test_1"));
    }
}
