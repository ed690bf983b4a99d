//! Stripe's error responses.

use serde_json::{Map, Value, json};

/// An error response: the HTTP status and the `error` object.
#[derive(Debug, Clone)]
pub(super) struct ApiError {
    pub status: u16,
    /// The `error` object. It always has `type` and `message`.
    pub error: Map<String, Value>,
    /// The request failed before its execution began. Such errors are not stored under the idempotency key.
    pub early: bool,
    /// `Stripe-Rate-Limited-Reason`.
    pub limited: Option<String>,
    /// `Stripe-Should-Retry`.
    pub should_retry: Option<bool>,
}

/// A Stripe object, or the error to respond with.
pub(super) type ApiResult = Result<Value, ApiError>;

impl ApiError {
    /// An error with this status, type and message.
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

    /// 404 `resource_missing`. `param` names the parameter, or the id in the path.
    pub fn missing(kind: &str, id: &str, param: &str) -> Self {
        let noun = match kind {
            "checkout.session" => "checkout.session".to_owned(),
            "payment_method" => "PaymentMethod".to_owned(),
            "setup_intent" => "setupintent".to_owned(),
            kind => kind.to_owned(),
        };
        Self::new(404, "invalid_request_error", format!("No such {noun}: '{id}'")).code("resource_missing").at(param)
    }

    /// Sets `code`, and the `doc_url` that explains it.
    pub fn code(self, code: &str) -> Self {
        let page = format!("https://docs.stripe.com/error-codes/{}", code.replace('_', "-"));
        self.with("code", code).with("doc_url", page)
    }

    /// Sets `param`, the name of the invalid parameter.
    pub fn at(self, param: &str) -> Self {
        self.with("param", param)
    }

    /// Sets any other field.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.error.insert(field.to_owned(), value.into());
        self
    }

    /// Marks an error that a check of the request returned before its execution.
    pub fn before_execution(mut self) -> Self {
        self.early = true;
        self
    }

    /// 429 from a rate limiter. `reason` is the `Stripe-Rate-Limited-Reason`.
    pub fn limited(reason: &str) -> Self {
        let message =
            "Request rate limit exceeded. Learn more about rate limits here https://docs.stripe.com/rate-limits.";
        let mut api_error = Self::new(429, "invalid_request_error", message).code("rate_limit").before_execution();
        api_error.limited = Some(reason.to_owned());
        api_error
    }

    /// 429 because another request holds the object's lock.
    pub fn locked() -> Self {
        let message = "This object cannot be accessed right now because another API request or Stripe process is \
                       currently accessing it. If you see this error intermittently, retry the request.";
        let mut api_error = Self::new(429, "invalid_request_error", message).code("lock_timeout").before_execution();
        api_error.should_retry = Some(true);
        api_error
    }

    /// The JSON body of the response.
    pub fn body(&self, request_id: &str) -> Value {
        let mut error = self.error.clone();
        let log = format!("https://dashboard.stripe.com/test/logs/{request_id}");
        error.insert("request_log_url".into(), log.into());
        json!({ "error": error })
    }
}
