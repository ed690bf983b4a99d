//! A received request of the API. The state stores those that are executed later.

use serde::{Deserialize, Serialize};

/// The API version in which objects are stored, and the default version of accounts.
pub(super) const API_VERSION: &str = "2026-08-26.dahlia";

/// A received request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct ApiRequest {
    pub method: String,
    pub path: String,
    pub form: Vec<(String, String)>,
    pub request_id: String,
    pub idempotency_key: Option<String>,
    /// The API version in which the request is checked and the response is rendered.
    #[serde(default = "default_version")]
    pub version: String,
}

pub(super) fn default_version() -> String {
    API_VERSION.to_owned()
}

impl ApiRequest {
    /// The cause that the events of this request name.
    pub fn cause(&self) -> Cause {
        Cause { request_id: self.request_id.clone(), idempotency_key: self.idempotency_key.clone() }
    }
}

/// The API request that caused an event. Payers, people in the Dashboard and timers leave it unset.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub request_id: String,
    pub idempotency_key: Option<String>,
}
