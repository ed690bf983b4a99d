//! Tests of the sandbox through its socket, as its clients use it.

mod captures;
mod checkout;
mod declines;
mod disputes;
mod faults;
mod idempotency;
mod keys;
mod line_items;
mod lists;
mod manual_confirmation;
mod objects;
mod openapi;
mod payment_method_data;
mod refunds;
mod restart;
mod sepa;
mod setup_attempts;
mod sources;
mod unsupported;
mod validation;
mod versions;
mod webhooks;

use std::fmt::Write as _;

use serde_json::Value;
use tokio::net::TcpListener;

use super::{Options, SECRET_KEY, Sandbox};
use crate::clock::Clock;

/// A sandbox without a rate limiter, with its own clock.
pub(super) async fn sandbox() -> Sandbox {
    sandbox_with(Options { limits: None, ..Options::default() }).await
}

/// A sandbox with these options and its own clock.
pub(super) async fn sandbox_with(options: Options) -> Sandbox {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    Sandbox::start(listener, Clock::system(), options).unwrap()
}

/// An HTTP response.
#[derive(Debug)]
pub(super) struct Response {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Response {
    /// The object of a 200.
    #[track_caller]
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{:#}", self.body);
        self.body
    }

    /// The `error` object of a response with this status and code.
    #[track_caller]
    pub fn error(&self, status: u16, code: &str) -> &Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        let error = &self.body["error"];
        assert_eq!(error["code"].as_str().unwrap_or_default(), code, "{error:#}");
        error
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

/// A caller of the API.
#[derive(Clone)]
pub(super) struct Caller {
    http: reqwest::Client,
    url: String,
    key: String,
}

impl Caller {
    pub fn new(sandbox: &Sandbox) -> Self {
        Self::with_key(sandbox, SECRET_KEY)
    }

    pub fn with_key(sandbox: &Sandbox, key: &str) -> Self {
        let http = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Self { http, url: sandbox.url(), key: key.to_owned() }
    }

    pub async fn send(&self, request: reqwest::RequestBuilder) -> Result<Response, reqwest::Error> {
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await?;
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok(Response { status, headers, body })
    }

    /// A request, not sent yet.
    pub fn request(&self, method: &str, path: &str, form: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let encoded = encode(form);
        let method: reqwest::Method = method.parse().unwrap();
        let has_body = method == reqwest::Method::POST;
        let query = if has_body || encoded.is_empty() { String::new() } else { format!("?{encoded}") };
        let request = self.http.request(method, format!("{}{path}{query}", self.url));
        let request = request.header("authorization", format!("Bearer {}", self.key));
        if has_body {
            request.header("content-type", "application/x-www-form-urlencoded").body(encoded)
        } else {
            request
        }
    }

    pub async fn call(&self, method: &str, path: &str, form: &[(&str, &str)]) -> Response {
        self.send(self.request(method, path, form)).await.unwrap()
    }

    pub async fn post(&self, path: &str, form: &[(&str, &str)]) -> Response {
        self.call("POST", path, form).await
    }

    pub async fn get(&self, path: &str, form: &[(&str, &str)]) -> Response {
        self.call("GET", path, form).await
    }

    /// A POST with an idempotency key.
    pub async fn keyed(&self, key: &str, path: &str, form: &[(&str, &str)]) -> Response {
        self.send(self.request("POST", path, form).header("idempotency-key", key)).await.unwrap()
    }

    /// Creates a customer and returns its id.
    pub async fn customer(&self) -> String {
        let form = [("name", "Jenny Rosen"), ("email", "jenny@example.com")];
        id(&self.post("/v1/customers", &form).await.ok())
    }

    /// Attaches a payment method and returns its id.
    pub async fn attached(&self, customer: &str, method: &str) -> String {
        id(&self.post(&format!("/v1/payment_methods/{method}/attach"), &[("customer", customer)]).await.ok())
    }
}

pub(super) fn id(object: &Value) -> String {
    object["id"].as_str().unwrap().to_owned()
}

fn encode(form: &[(&str, &str)]) -> String {
    let mut out = String::new();
    for (name, value) in form {
        if !out.is_empty() {
            out.push('&');
        }
        for (part, end) in [(name, "="), (value, "")] {
            for byte in part.bytes() {
                if byte.is_ascii_alphanumeric() || b"-._~[]".contains(&byte) {
                    out.push(char::from(byte));
                } else {
                    write!(out, "%{byte:02X}").unwrap();
                }
            }
            out.push_str(end);
        }
    }
    out
}

/// The types of the account's events so far, oldest first.
pub(super) fn event_types(sandbox: &Sandbox) -> Vec<String> {
    sandbox.events(super::ACCOUNT).iter().map(|event| event["type"].as_str().unwrap().to_owned()).collect()
}
