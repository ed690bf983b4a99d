//! Stripe's error answers.

use serde_json::{Map, Value, json};

/// An answer that isn't 200: the HTTP status and what stands in `error`.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub status: u16,
    /// The `error` object; always has `type` and `message`.
    pub error: Map<String, Value>,
    /// Whether the refusal was decided before the endpoint began its work, so that no idempotency key remembers it.
    pub early: bool,
    /// `Stripe-Rate-Limited-Reason`.
    pub limited: Option<String>,
    /// `Stripe-Should-Retry`.
    pub should_retry: Option<bool>,
}

/// What the endpoints return: the object that the caller sees, or a refusal.
pub(super) type Answer = Result<Value, Refusal>;

impl Refusal {
    /// A refusal of the given status and type.
    pub fn new(status: u16, kind: &str, message: impl Into<String>) -> Self {
        let mut error = Map::new();
        error.insert("type".into(), kind.into());
        error.insert("message".into(), message.into().into());
        Self { status, error, early: false, limited: None, should_retry: None }
    }

    /// 400 `invalid_request_error`.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(400, "invalid_request_error", message)
    }

    /// 404 for an id in the path that names nothing here.
    pub fn missing(kind: &str, id: &str, param: &str) -> Self {
        let noun = match kind {
            "checkout.session" => "checkout.session".to_owned(),
            "payment_method" => "PaymentMethod".to_owned(),
            "setup_intent" => "setupintent".to_owned(),
            kind => kind.to_owned(),
        };
        Self::new(404, "invalid_request_error", format!("No such {noun}: '{id}'")).code("resource_missing").at(param)
    }

    /// With an error code, and the page that explains it.
    pub fn code(self, code: &str) -> Self {
        let page = format!("https://docs.stripe.com/error-codes/{}", code.replace('_', "-"));
        self.with("code", code).with("doc_url", page)
    }

    /// With the name of the parameter at fault.
    pub fn at(self, param: &str) -> Self {
        self.with("param", param)
    }

    /// With any other field.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.error.insert(field.to_owned(), value.into());
        self
    }

    /// Decided by looking at the request alone; a second try under the same key is looked at anew.
    pub fn early(mut self) -> Self {
        self.early = true;
        self
    }

    /// A rate limiter's 429.
    pub fn limited(reason: &str) -> Self {
        let message =
            "Request rate limit exceeded. Learn more about rate limits here https://docs.stripe.com/rate-limits.";
        let mut refusal = Self::new(429, "invalid_request_error", message).code("rate_limit").early();
        refusal.limited = Some(reason.to_owned());
        refusal
    }

    /// 429 because another request holds the object.
    pub fn locked() -> Self {
        let message = "This object cannot be accessed right now because another API request or Stripe process is \
                       currently accessing it. If you see this error intermittently, retry the request.";
        let mut refusal = Self::new(429, "invalid_request_error", message).code("lock_timeout").early();
        refusal.should_retry = Some(true);
        refusal
    }

    /// The JSON body.
    pub fn body(&self, request_id: &str) -> Value {
        let mut error = self.error.clone();
        let log = format!("https://dashboard.stripe.com/test/logs/{request_id}");
        error.insert("request_log_url".into(), log.into());
        json!({ "error": error })
    }
}
