//! Faults on demand: what goes wrong between Stripe and its caller, and with webhooks. A rule names the requests it
//! is for and how often; all rules that match a request apply to it.

use serde::{Deserialize, Serialize};
use time::Duration;

use super::refusal::Refusal;
use crate::dev::rng::Rng;

/// Something that goes wrong with a request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct Fault {
    /// `POST`, `GET` or `DELETE`; empty for all.
    pub method: String,
    /// The path; `*` stands for any letters.
    pub path: String,
    /// `acct_…`; empty for all.
    pub account: String,
    /// Requests that match and pass before the first one is hit.
    pub skip: u32,
    /// How many requests are hit; `null` for all from then on.
    pub times: Option<u32>,
    /// How many of a hundred matching requests are hit, by chance.
    pub percent: u8,
    /// What goes wrong.
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
    /// A fault that hits the next request that matches, once.
    pub fn once(method: &str, path: &str, action: Action) -> Self {
        Self { method: method.to_owned(), path: path.to_owned(), action, ..Self::default() }
    }
}

/// What goes wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Action {
    /// The answer takes longer.
    Delay {
        /// How much, in milliseconds of the clock.
        milliseconds: u64,
        /// Wait after the work rather than before it.
        after_work: bool,
    },
    /// 429.
    RateLimit {
        /// `global-rate`, `endpoint-rate`, `global-concurrency`, `endpoint-concurrency`, `resource-specific`; or
        /// `lock_timeout`, which is a code and has no reason header.
        reason: String,
    },
    /// 401, as if the key had been revoked.
    Unauthorized,
    /// 403, as if the key lacked the permission.
    Forbidden,
    /// 500, stored under the idempotency key and replayed, as at Stripe.
    ServerError {
        /// What becomes of the work.
        work: Effect,
    },
    /// 503, which nothing remembers; the work is not done.
    Unavailable,
    /// The connection is cut without an answer.
    Cut {
        /// What becomes of the work.
        work: Effect,
    },
}

/// Whether the work behind a failed answer is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Never.
    NotDone,
    /// Before the answer.
    Done,
    /// By itself, later.
    DoneLater {
        /// How much later, in seconds of the clock.
        seconds: i64,
    },
}

/// Something that goes wrong with webhooks.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default)]
pub struct WebhookFault {
    /// The event type; `*` stands for any letters.
    pub event: String,
    /// `acct_…`; empty for all.
    pub account: String,
    /// How many deliveries are hit; `null` for all.
    pub times: Option<u32>,
    /// How many of a hundred are hit, by chance.
    pub percent: u8,
    /// What goes wrong.
    pub action: WebhookAction,
}

impl Default for WebhookFault {
    fn default() -> Self {
        Self { event: "*".into(), account: String::new(), times: None, percent: 100, action: WebhookAction::Lose }
    }
}

/// What goes wrong with a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum WebhookAction {
    /// It is never sent; the events list has it.
    Lose,
    /// It is sent twice.
    Double,
    /// It is sent later.
    Delay {
        /// How much later, in milliseconds of the clock.
        milliseconds: i64,
    },
    /// It is sent at a random time, so that the order is lost.
    Shuffle {
        /// The longest wait, in milliseconds of the clock.
        within_milliseconds: i64,
    },
}

/// All that will go wrong with one request.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub refusal: Option<Refusal>,
    pub delay_before: Duration,
    pub delay_after: Duration,
    pub server_error: Option<Effect>,
    pub cut: Option<Effect>,
}

impl Plan {
    /// Whether nothing goes wrong.
    pub fn is_empty(&self) -> bool {
        self.refusal.is_none()
            && self.server_error.is_none()
            && self.cut.is_none()
            && self.delay_before.is_zero()
            && self.delay_after.is_zero()
    }
}

/// Collects what the rules do to a request, and counts it.
pub(super) fn plan(rules: &mut Vec<Fault>, rng: &mut Rng, method: &str, path: &str, account: &str) -> Plan {
    let mut plan = Plan::default();
    for rule in rules.iter_mut() {
        let concerns = (rule.method.is_empty() || rule.method == method)
            && (rule.account.is_empty() || rule.account == account)
            && matches(&rule.path, path);
        if !concerns || rule.times == Some(0) {
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
        Action::RateLimit { reason } if reason == "lock_timeout" => plan.refusal = Some(Refusal::locked()),
        Action::RateLimit { reason } => plan.refusal = Some(Refusal::limited(reason)),
        Action::Unauthorized => {
            let refusal = Refusal::new(401, "invalid_request_error", "Expired API Key provided: ****");
            plan.refusal = Some(refusal.code("api_key_expired").early());
        }
        Action::Forbidden => {
            let message = "The provided key does not have the required permissions for this endpoint.";
            plan.refusal = Some(Refusal::new(403, "invalid_request_error", message).early());
        }
        Action::Unavailable => {
            let message = "Stripe is temporarily unavailable. Please try again.";
            plan.refusal = Some(Refusal::new(503, "api_error", message).early());
        }
        Action::ServerError { work } => plan.server_error = Some(*work),
        Action::Cut { work } => plan.cut = Some(*work),
    }
}

/// When the copies of one delivery are sent, in microseconds from now; none if it is lost.
pub(super) fn sendings(rules: &mut Vec<WebhookFault>, rng: &mut Rng, kind: &str, account: &str) -> Vec<i64> {
    let (mut copies, mut lost, mut delay) = (1, false, 0_i64);
    for rule in rules.iter_mut() {
        let concerns = (rule.account.is_empty() || rule.account == account) && matches(&rule.event, kind);
        if !concerns || rule.times == Some(0) || !rng.chance(rule.percent.into()) {
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

/// Whether `text` fits a pattern in which `*` stands for any letters.
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
    fn patterns() {
        assert!(matches("*", "/v1/customers"));
        assert!(matches("/v1/payment_intents/*/confirm", "/v1/payment_intents/pi_1/confirm"));
        assert!(!matches("/v1/payment_intents/*/confirm", "/v1/payment_intents/pi_1"));
        assert!(matches("charge.*", "charge.failed"));
        assert!(!matches("charge", "charge.failed"));
    }

    #[test]
    fn a_rule_skips_hits_and_is_used_up() {
        let rule = Fault { skip: 1, times: Some(2), ..Fault::once("POST", "/v1/*", Action::Unavailable) };
        let mut rules = vec![rule];
        let mut hit =
            |method: &str| plan(&mut rules, &mut Rng::new(1), method, "/v1/customers", "acct").refusal.is_some();
        assert_eq!([hit("GET"), hit("POST"), hit("POST"), hit("POST"), hit("POST")], [false, false, true, true, false]);
    }
}
