//! Fault injection for requests and webhooks. A rule says which requests it matches and how many it hits. All matching
//! rules apply to a request.

use serde::{Deserialize, Serialize};
use time::Duration;

use super::api_error::ApiError;
use crate::dev::rng::Rng;

/// A fault for requests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// `POST`, `GET` or `DELETE`; empty for all.
    pub method: String,
    /// The path. `*` matches any characters.
    pub path: String,
    /// `acct_…`; empty for all.
    pub account: String,
    /// The number of matching requests that pass before the first one is hit.
    pub skip: u32,
    /// The number of requests to hit; `null` for no limit.
    pub times: Option<u32>,
    /// The probability that a matching request is hit, in percent.
    pub percent: u8,
    /// What happens to a request that is hit.
    pub action: Action,
}

impl Default for Fault {
    fn default() -> Self {
        let action = Action::ServerError { work: Effect::NotDone };
        let any = String::new();
        Self { method: any.clone(), path: "*".into(), account: any, skip: 0, times: Some(1), percent: 100, action }
    }
}

impl Fault {
    /// A fault that hits only the next matching request.
    pub fn once(method: &str, path: &str, action: Action) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), action, ..Self::default() }
    }
}

/// What a fault does to a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// Delays the response.
    Delay {
        /// In milliseconds of the clock.
        milliseconds: u64,
        /// Wait after the request is executed, not before.
        after_work: bool,
    },
    /// 429.
    RateLimit {
        /// `global-rate`, `endpoint-rate`, `global-concurrency`, `endpoint-concurrency`, `resource-specific`; or
        /// `lock_timeout`, which is an error code and sets no reason header.
        reason: String,
    },
    /// 401, as if the key had been revoked.
    Unauthorized,
    /// 403, as if the key lacked the permission.
    Forbidden,
    /// 500, stored under the idempotency key and replayed, as at Stripe.
    ServerError {
        /// Whether the request is executed.
        work: Effect,
    },
    /// 503. The request is not executed, and the response is not stored.
    Unavailable,
    /// Resets the connection without a response.
    Cut {
        /// Whether the request is executed.
        work: Effect,
    },
}

/// Whether a request that fails for its caller is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Never.
    NotDone,
    /// Before the response.
    Done,
    /// Later, by a timer.
    DoneLater {
        /// The delay in seconds of the clock.
        seconds: i64,
    },
}

/// A fault for webhooks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookFault {
    /// The event type. `*` matches any characters.
    pub event: String,
    /// `acct_…`; empty for all.
    pub account: String,
    /// The number of deliveries to hit; `null` for no limit.
    pub times: Option<u32>,
    /// The probability that a matching delivery is hit, in percent.
    pub percent: u8,
    /// What happens to a delivery that is hit.
    pub action: WebhookAction,
}

impl Default for WebhookFault {
    fn default() -> Self {
        Self { event: "*".into(), account: String::new(), times: None, percent: 100, action: WebhookAction::Lose }
    }
}

/// What a fault does to a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WebhookAction {
    /// Never sends it. The events list contains the event.
    Lose,
    /// Sends it twice.
    Double,
    /// Sends it later.
    Delay {
        /// The delay in milliseconds of the clock.
        milliseconds: i64,
    },
    /// Sends it after a random delay, which changes the order.
    Shuffle {
        /// The maximum delay in milliseconds of the clock.
        within_milliseconds: i64,
    },
}

/// The combined faults for one request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub api_error: Option<ApiError>,
    pub delay_before: Duration,
    pub delay_after: Duration,
    pub server_error: Option<Effect>,
    pub cut: Option<Effect>,
}

impl Plan {
    /// Whether no fault applies.
    pub fn is_empty(&self) -> bool {
        self.api_error.is_none()
            && self.server_error.is_none()
            && self.cut.is_none()
            && self.delay_before.is_zero()
            && self.delay_after.is_zero()
    }
}

/// Combines the rules that hit a request, and updates their counters.
pub(super) fn plan(rules: &mut Vec<Fault>, rng: &mut Rng, method: &str, path: &str, account: &str) -> Plan {
    let mut plan = Plan::default();
    for rule in rules.iter_mut() {
        let applies = (rule.method.is_empty() || rule.method == method)
            && (rule.account.is_empty() || rule.account == account)
            && matches(&rule.path, path);
        if !applies || rule.times == Some(0) {
            continue;
        }
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        if !rng.chance(rule.percent.into()) {
            continue;
        }
        rule.times = rule.times.map(|times| times - 1);
        apply(&mut plan, &rule.action);
    }
    rules.retain(|rule| rule.times != Some(0));
    plan
}

fn apply(plan: &mut Plan, action: &Action) {
    match action {
        Action::Delay { milliseconds, after_work } => {
            let delay = Duration::milliseconds(i64::try_from(*milliseconds).unwrap_or(i64::MAX));
            *if *after_work { &mut plan.delay_after } else { &mut plan.delay_before } += delay;
        }
        Action::RateLimit { reason } if reason == "lock_timeout" => plan.api_error = Some(ApiError::locked()),
        Action::RateLimit { reason } => plan.api_error = Some(ApiError::limited(reason)),
        Action::Unauthorized => {
            let api_error = ApiError::new(401, "invalid_request_error", "Expired API Key provided: ****");
            plan.api_error = Some(api_error.code("api_key_expired").before_execution());
        }
        Action::Forbidden => {
            let message = "The provided key does not have the required permissions for this endpoint.";
            plan.api_error = Some(ApiError::new(403, "invalid_request_error", message).before_execution());
        }
        Action::Unavailable => {
            let message = "Stripe is temporarily unavailable. Please try again.";
            plan.api_error = Some(ApiError::new(503, "api_error", message).before_execution());
        }
        Action::ServerError { work } => plan.server_error = Some(*work),
        Action::Cut { work } => plan.cut = Some(*work),
    }
}

/// The delay of each copy of a delivery, in microseconds; empty if the delivery is lost.
pub(super) fn delivery_delays(rules: &mut Vec<WebhookFault>, rng: &mut Rng, kind: &str, account: &str) -> Vec<i64> {
    let (mut copies, mut lost, mut delay) = (1, false, 0_i64);
    for rule in rules.iter_mut() {
        let applies = (rule.account.is_empty() || rule.account == account) && matches(&rule.event, kind);
        if !applies || rule.times == Some(0) || !rng.chance(rule.percent.into()) {
            continue;
        }
        rule.times = rule.times.map(|times| times - 1);
        match rule.action {
            WebhookAction::Lose => lost = true,
            WebhookAction::Double => copies += 1,
            WebhookAction::Delay { milliseconds } => delay = delay.saturating_add(milliseconds.saturating_mul(1000)),
            WebhookAction::Shuffle { within_milliseconds } => {
                let within = u64::try_from(within_milliseconds).unwrap_or_default();
                let later = i64::try_from(rng.below(within)).unwrap_or(i64::MAX);
                delay = delay.saturating_add(later.saturating_mul(1000));
            }
        }
    }
    rules.retain(|rule| rule.times != Some(0));
    vec![delay; if lost { 0 } else { copies }]
}

/// Whether `text` matches a pattern in which `*` matches any characters.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, rest)) => text.strip_prefix(start).is_some_and(|after| {
            rest.is_empty() || after.char_indices().any(|(at, _)| matches(rest, &after[at..])) || matches(rest, "")
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn star_matches_any_characters() {
        assert!(matches("*", "/v1/customers"));
        assert!(matches("/v1/payment_intents/*/confirm", "/v1/payment_intents/pi_1/confirm"));
        assert!(!matches("/v1/payment_intents/*/confirm", "/v1/payment_intents/pi_1"));
        assert!(matches("charge.*", "charge.failed"));
        assert!(!matches("charge", "charge.failed"));
    }

    #[test]
    fn a_rule_skips_requests_then_hits_a_limited_number() {
        let rule = Fault { skip: 1, times: Some(2), ..Fault::once("POST", "/v1/*", Action::Unavailable) };
        let mut rules = vec![rule];
        let mut hit =
            |method: &str| plan(&mut rules, &mut Rng::new(1), method, "/v1/customers", "acct").api_error.is_some();
        assert_eq!([hit("GET"), hit("POST"), hit("POST"), hit("POST"), hit("POST")], [false, false, true, true, false]);
    }
}
