//! Parses a response into a value or an [`Error`]. This is the only place that interprets HTTP statuses.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::{Detail, Error, RateLimit, UnknownCause};
use super::redact::scrub;

/// A complete response.
#[derive(Debug)]
pub(super) struct Response {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

#[derive(Deserialize)]
struct ErrorBody {
    error: Detail,
}

impl Response {
    /// A header's value, if it is text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Stripe's request id.
    pub fn request_id(&self) -> Option<String> {
        self.header("request-id").map(scrub)
    }

    /// Whether Stripe replayed the stored response of an idempotency key.
    pub fn is_replayed(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    /// Parses the expected value, or returns the error.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, Error> {
        if !self.status.is_success() {
            return Err(self.error());
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            // The parser's message has line and column, and may quote a value of the wrong type.
            let message = scrub(&format!("the response is unreadable: {error}"));
            self.unknown(UnknownCause::Unreadable, self.detail(None, &message))
        })
    }

    fn error(&self) -> Error {
        let object = serde_json::from_slice::<ErrorBody>(&self.body).ok().map(|body| body.error);
        // A body without an error object that has a type is not Stripe's.
        let object = object.filter(|object| object.error_type.is_some());
        let from_stripe = object.is_some();
        let detail = self.detail(object, "the response contains no Stripe error");
        let mismatch = detail.error_type.as_deref() == Some("idempotency_error");
        match self.status.as_u16() {
            // A front end of Stripe may reject a call without a body. A delay is harmless whoever sent the 429.
            429 if detail.code.as_deref() == Some("lock_timeout") => Error::Locked(Box::new(detail)),
            429 => Error::RateLimited {
                reason: RateLimit::parse(self.header("stripe-rate-limited-reason")),
                retry_after: self.retry_after(),
                detail: Box::new(detail),
            },
            500.. => self.unknown(UnknownCause::ServerError, detail),
            _ if !from_stripe => self.unknown(UnknownCause::Unreadable, detail),
            400 if mismatch => {
                tracing::error!(%detail, "idempotency key reused with another body (P2)");
                Error::IdempotencyMismatch(Box::new(detail))
            }
            400 | 404 => Error::Invalid(Box::new(detail)),
            401 => Error::Unauthorized(Box::new(detail)),
            402 => Error::Declined(Box::new(detail)),
            403 => Error::Forbidden { scope: missing_scope(&detail), detail: Box::new(detail) },
            409 => Error::InUse(Box::new(detail)),
            // Stripe uses 424 for a failed dependency. No other status belongs to the calls that we make.
            _ => self.unknown(UnknownCause::Unreadable, detail),
        }
    }

    fn unknown(&self, reason: UnknownCause, detail: Detail) -> Error {
        Error::Unknown { reason, replayed: self.is_replayed(), detail: Box::new(detail) }
    }

    fn detail(&self, object: Option<Detail>, otherwise: &str) -> Detail {
        let object = object.unwrap_or_else(|| Detail { message: Some(otherwise.to_owned()), ..Detail::default() });
        Detail { http_status: Some(self.status.as_u16()), request_id: self.request_id(), ..object }
    }

    fn retry_after(&self) -> Option<Duration> {
        let seconds = self.headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
        Some(Duration::from_secs(seconds))
    }
}

/// Stripe names the permission only in the message: "Having the 'rak_…' permission would allow …".
fn missing_scope(detail: &Detail) -> Option<String> {
    let message = detail.message.as_deref()?;
    let rest = &message[message.find("rak_")?..];
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
    Some(rest[..end].to_owned())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::error::Disposition;
    use super::*;

    fn response(status: u16, headers: &[(&'static str, &str)], body: &str) -> Response {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect::<HeaderMap>();
        Response { status: StatusCode::from_u16(status).unwrap(), headers, body: body.as_bytes().to_vec() }
    }

    fn error(status: u16, headers: &[(&'static str, &str)], body: &str) -> Error {
        response(status, headers, body).parse::<Value>().unwrap_err()
    }

    fn stripe(error: &str) -> String {
        format!(r#"{{"error":{error}}}"#)
    }

    #[test]
    fn p2_each_status_maps_to_its_error_and_disposition() {
        let invalid = stripe(r#"{"type":"invalid_request_error","message":"no"}"#);
        let keyed = stripe(r#"{"type":"idempotency_error","message":"no"}"#);
        let locked = stripe(r#"{"type":"invalid_request_error","code":"lock_timeout"}"#);
        let card = stripe(r#"{"type":"card_error","code":"card_declined"}"#);
        let api = stripe(r#"{"type":"api_error","message":"sorry"}"#);
        let page = "<html>502 Bad Gateway</html>";
        let table: [(u16, &str, &str, Disposition); 22] = [
            (400, &invalid, "Invalid", Disposition::Refused),
            (404, &invalid, "Invalid", Disposition::Refused),
            (400, &keyed, "IdempotencyMismatch", Disposition::Unknown),
            (401, &invalid, "Unauthorized", Disposition::NotDone),
            (402, &card, "Declined", Disposition::Refused),
            (403, &invalid, "Forbidden", Disposition::NotDone),
            (409, &keyed, "InUse", Disposition::Unknown),
            (429, &invalid, "RateLimited", Disposition::NotDone),
            (429, &locked, "Locked", Disposition::NotDone),
            (429, "", "RateLimited", Disposition::NotDone),
            (424, &api, "Unknown", Disposition::Unknown),
            (500, &api, "Unknown", Disposition::Unknown),
            (502, page, "Unknown", Disposition::Unknown),
            (503, "", "Unknown", Disposition::Unknown),
            (504, "{}", "Unknown", Disposition::Unknown),
            // A proxy's response: not Stripe's.
            (302, "", "Unknown", Disposition::Unknown),
            (400, page, "Unknown", Disposition::Unknown),
            (402, "{}", "Unknown", Disposition::Unknown),
            (403, page, "Unknown", Disposition::Unknown),
            (404, r#"{"error":"not found"}"#, "Unknown", Disposition::Unknown),
            (407, page, "Unknown", Disposition::Unknown),
            (200, page, "Unknown", Disposition::Unknown),
        ];
        for (status, body, name, disposition) in table {
            let error = error(status, &[("request-id", "req_1")], body);
            assert!(format!("{error:?}").starts_with(name), "{status} {body}: {error:?}");
            assert_eq!(error.disposition(), disposition, "{status} {body}");
            assert_eq!(error.detail().http_status, Some(status));
            assert_eq!(error.detail().request_id.as_deref(), Some("req_1"));
        }
    }

    #[test]
    fn a_decline_keeps_all_details() {
        let body = stripe(
            r#"{"type":"card_error","code":"card_declined","decline_code":"insufficient_funds",
            "advice_code":"try_again_later","network_decline_code":"51","param":"payment_method","charge":"ch_1",
            "message":"Your card has insufficient funds.","payment_intent":{"id":"pi_1","amount":4900,"currency":"eur",
            "status":"requires_payment_method","created":1700000000,"latest_charge":"ch_1","client_secret":"pi_1_secret_x"}}"#,
        );
        let Error::Declined(detail) = error(402, &[("request-id", "req_9")], &body) else { panic!("a decline") };
        assert_eq!(detail.decline_code.as_deref(), Some("insufficient_funds"));
        assert_eq!(detail.advice_code.as_deref(), Some("try_again_later"));
        assert_eq!(detail.network_decline_code.as_deref(), Some("51"));
        assert_eq!(detail.charge.as_deref(), Some("ch_1"));
        let text = "Your card has insufficient funds. (status 402, code card_declined, \
            decline code insufficient_funds, parameter payment_method, request req_9)";
        assert_eq!(detail.to_string(), text);
        assert!(!format!("{detail:?}").contains("_secret_"));
    }

    #[test]
    fn a_missing_permission_and_a_limit_are_named() {
        let body = stripe(
            r#"{"type":"invalid_request_error","message":"The provided key 'rk_test_*****abc' does not have the permission. Having the 'rak_customer_write' permission would allow this request."}"#,
        );
        let refused = error(403, &[], &body);
        assert!(matches!(&refused, Error::Forbidden { scope: Some(scope), .. } if scope == "rak_customer_write"));
        assert!(!format!("{refused} {refused:?}").contains("rk_test"));

        let limited = error(429, &[("stripe-rate-limited-reason", "endpoint-rate"), ("retry-after", "2")], "");
        let Error::RateLimited { reason, retry_after, .. } = limited else { panic!("a limit") };
        assert_eq!((reason, retry_after), (RateLimit::EndpointRate, Some(Duration::from_secs(2))));
    }

    #[test]
    fn only_a_missing_permission_names_the_account_of_a_key() {
        let named = |status, object: &str| error(status, &[], &stripe(object)).named_account().map(str::to_owned);
        let text = |message: &str| format!(r#"{{"type":"invalid_request_error","message":"{message}"}}"#);
        let lacks = "The provided key 'rk_test_*****abc' does not have the required permissions for this endpoint";
        let own = Some("acct_1PJBLEBBLEfV".to_owned());
        for tail in [
            "on account 'acct_1PJBLEBBLEfV'. Having the 'rak_accounts_kyc_basic_read' permission would allow this.",
            "on account 'acct_1PJBLEBBLEfV'. The permissions are not available. See acct_1PJBLEBBLEfV.",
        ] {
            assert_eq!(named(403, &text(&format!("{lacks} {tail}"))), own);
        }
        assert_eq!(named(403, &text(&format!("{lacks}."))), None, "not every text names it");
        assert_eq!(named(403, &text("acct_1 may not act for acct_2")), None, "two accounts are ambiguous");
        assert_eq!(named(403, &text("no acct_ at all")), None);
        assert_eq!(named(404, &text("No such account: 'acct_1'")), None);
        let foreign = r#"{"type":"invalid_request_error","code":"account_invalid","message":"no access to 'acct_9'"}"#;
        assert_eq!(named(403, foreign), None);
    }

    #[test]
    fn a_replayed_error_is_marked() {
        let body = stripe(r#"{"type":"api_error"}"#);
        let replayed = |error| matches!(error, Error::Unknown { replayed: true, .. });
        assert!(replayed(error(500, &[("idempotent-replayed", "true")], &body)));
        assert!(!replayed(error(500, &[], &body)));
    }

    #[test]
    fn p9_an_unreadable_response_does_not_quote_secrets() {
        let error = response(200, &[], r#"{"amount":"whsec_abc"}"#).parse::<i64>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("whsec_"));
    }
}
