//! The errors of calls to Stripe, classified by what they mean for money, so that other modules need not know HTTP.
//!
//! The classification follows P2: only a response that Stripe itself wrote settles anything. A refusal counts only if
//! its body is a Stripe error object. A proxy's error page, a broken connection and every 5xx leave the outcome
//! unknown.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;

use super::object::reference;
use super::random::random_fraction;
use super::redact::{scrub, scrubbed};
use crate::domain::payments::Failure;
use crate::domain::stripe_requests::KeyState;

/// The delay after a 429 from Stripe's rate limiter, and the longest `Retry-After` that is honored, in the clock's
/// time.
const RATE_LIMITED_DELAY: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// 402: the parameters were valid, the payment was declined. The next attempt needs a new key.
    #[error("Stripe declined the payment: {0}")]
    Declined(Box<Detail>),
    /// 400 or 404: a parameter is invalid, or the object is missing or in a state that does not allow this.
    #[error("Stripe refused the request: {0}")]
    Invalid(Box<Detail>),
    /// 400 `idempotency_error`: the same key was used with another body, so the object exists. It is looked up, and
    /// another key is never guessed, because the first request with this key may have moved money.
    #[error("Stripe has received this idempotency key with another request: {0}")]
    IdempotencyMismatch(Box<Detail>),
    /// 401: the API key is wrong, expired or revoked. Nothing was done.
    #[error("Stripe rejects the API key: {0}")]
    Unauthorized(Box<Detail>),
    /// 403: the API key lacks a permission. Nothing was done.
    #[error("the API key lacks a permission at Stripe: {detail}")]
    Forbidden {
        /// The missing permission, `rak_…`, if Stripe names it.
        scope: Option<String>,
        /// Stripe's details.
        detail: Box<Detail>,
    },
    /// 429: too many calls. Nothing was done; the same key is sent again later.
    #[error("Stripe's rate limit is exceeded ({reason:?}): {detail}")]
    RateLimited {
        /// The limit that was exceeded.
        reason: RateLimit,
        /// Stripe's `Retry-After`, which it seldom sends.
        retry_after: Option<Duration>,
        /// Stripe's details.
        detail: Box<Detail>,
    },
    /// The call was not sent, so nothing was done: the rate limiter gave no permit in time, Stripe currently fails most
    /// calls, or the key is [read-only](super::ApiKey::read_only).
    #[error("{detail}")]
    NotSent {
        /// What held the call back.
        cause: UnsentCause,
        /// When to retry, in the clock's time.
        retry_after: Duration,
        /// The message for people.
        detail: Box<Detail>,
    },
    /// 429 `lock_timeout`: another request holds a lock on the object. Nothing was done.
    #[error("another request holds Stripe's lock on the object: {0}")]
    Locked(Box<Detail>),
    /// 409: a request with this key is still in progress. Its outcome is unknown; the same key is sent again.
    #[error("a request with this idempotency key is still in progress at Stripe: {0}")]
    InUse(Box<Detail>),
    /// The outcome is unknown. The same body is sent again with the same key, or the object is read.
    #[error("the outcome at Stripe is unknown ({reason}): {detail}")]
    Unknown {
        /// Why the outcome is unknown.
        reason: UnknownCause,
        /// Stripe replayed a stored response (`Idempotent-Replayed`): the same key will never return another one.
        replayed: bool,
        /// What is known; status and request id if there was a response.
        detail: Box<Detail>,
    },
}

/// What an error says about the requested work. It is about this call only: if an earlier call with the same key ended
/// [`Disposition::Unknown`], a later [`Disposition::NotDone`] does not change that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// Refused by Stripe; it will not happen with this key.
    Refused,
    /// Not done and not attempted: retry later with the same key and body.
    NotDone,
    /// It may have been done. Unknown is not failed (P2).
    Unknown,
}

/// Why a call was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum UnsentCause {
    /// The account's rate limit is exhausted.
    Limit,
    /// Stripe, or this account at Stripe, fails most calls.
    Outage,
    /// The integration catches up with Stripe; until then its key is [read-only](super::ApiKey::read_only).
    CatchingUp,
}

/// Why an outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownCause {
    /// No complete response in time.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// A 5xx.
    ServerError,
    /// Not a response of Stripe: no JSON, another structure, or a redirect.
    Unreadable,
    /// An earlier attempt of this call has an unknown outcome, and its retry was rejected or not sent.
    RetryRejected,
    /// More data than we read (P11).
    TooLong,
}

/// The limit behind a 429 (`Stripe-Rate-Limited-Reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum RateLimit {
    /// Calls per second of the whole account.
    GlobalRate,
    /// Concurrent calls of the account.
    GlobalConcurrency,
    /// Calls per second to this endpoint.
    EndpointRate,
    /// Concurrent calls to this endpoint.
    EndpointConcurrency,
    /// A limit of one object or one kind of work.
    ResourceSpecific,
    /// No reason, or an unknown one.
    Unnamed,
}

/// Stripe's error object, in the response to a failed call or as an intent's `last_payment_error`. Every text is
/// redacted and truncated to 1,000 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// The HTTP status of the response; absent if there was none.
    #[serde(skip)]
    pub http_status: Option<u16>,
    /// `card_error`, `invalid_request_error`, `api_error`, `idempotency_error`.
    #[serde(rename = "type", deserialize_with = "scrubbed")]
    pub error_type: Option<String>,
    /// The error code: `card_declined`, `resource_missing`, `amount_too_small`, …
    #[serde(deserialize_with = "scrubbed")]
    pub code: Option<String>,
    /// The issuer's reason: `insufficient_funds`, …
    #[serde(deserialize_with = "scrubbed")]
    pub decline_code: Option<String>,
    /// Stripe's advice: `try_again_later`, `do_not_try_again`, `confirm_card_data`.
    #[serde(deserialize_with = "scrubbed")]
    pub advice_code: Option<String>,
    /// The card network's code.
    #[serde(deserialize_with = "scrubbed")]
    pub network_decline_code: Option<String>,
    /// The invalid parameter.
    #[serde(deserialize_with = "scrubbed")]
    pub param: Option<String>,
    /// The message for people.
    #[serde(deserialize_with = "scrubbed")]
    pub message: Option<String>,
    /// Stripe's id of the request, from the response's headers, for its support and logs.
    #[serde(skip)]
    pub request_id: Option<String>,
    /// The charge that failed, `ch_…`.
    #[serde(deserialize_with = "scrubbed_reference")]
    pub charge: Option<String>,
}

fn scrubbed_reference<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    Ok(reference(deserializer)?.map(|id| scrub(&id)))
}

impl Error {
    /// What this error says about the requested work.
    pub fn disposition(&self) -> Disposition {
        match self {
            Self::Declined(_) | Self::Invalid(_) => Disposition::Refused,
            Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::RateLimited { .. }
            | Self::NotSent { .. }
            | Self::Locked(_) => Disposition::NotDone,
            Self::InUse(_) | Self::Unknown { .. } | Self::IdempotencyMismatch(_) => Disposition::Unknown,
        }
    }

    /// Stripe's details.
    pub fn detail(&self) -> &Detail {
        match self {
            Self::Declined(detail)
            | Self::Invalid(detail)
            | Self::IdempotencyMismatch(detail)
            | Self::Unauthorized(detail)
            | Self::Locked(detail)
            | Self::InUse(detail)
            | Self::Forbidden { detail, .. }
            | Self::RateLimited { detail, .. }
            | Self::NotSent { detail, .. }
            | Self::Unknown { detail, .. } => detail,
        }
    }

    /// Stripe's error code.
    pub fn code(&self) -> Option<&str> {
        self.detail().code.as_deref()
    }

    /// What the error shows of the request's idempotency key, if it forbids its use.
    pub fn key_state(&self, now: OffsetDateTime) -> Option<KeyState> {
        match self {
            Self::Unknown { replayed: true, .. } => Some(KeyState::ReplaysError(now)),
            Self::IdempotencyMismatch(_) => Some(KeyState::Taken(now)),
            _ => None,
        }
    }

    /// Whether the object does not exist. After a DELETE this means that the work is done.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Invalid(detail)
            if detail.code.as_deref() == Some("resource_missing") || detail.http_status == Some(404))
    }

    /// Whether the API key must be repaired first: it is rejected or lacks a permission.
    pub fn is_api_key_error(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Forbidden { .. })
    }

    /// The account that the text of a 403 names (`… on account 'acct_…'`). Stripe does not document it, and not every
    /// such text names one. Other errors return `None`: they may name another account.
    pub fn named_account(&self) -> Option<&str> {
        let Self::Forbidden { detail, .. } = self else { return None };
        // `account_invalid` names an account that the key does not belong to.
        let message = detail.message.as_deref().filter(|_| detail.code.as_deref() != Some("account_invalid"))?;
        let (start, _) = message.match_indices("acct_").next()?;
        let rest = &message[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let named = &rest[..end];
        let is_only_one = message.matches("acct_").count() == message.matches(named).count();
        (named.len() > "acct_".len() && is_only_one).then_some(named)
    }

    /// When to retry, in the clock's time, if the call was held back by us or by Stripe's rate limiter. The request
    /// itself is valid.
    pub fn retry_delay(&self) -> Option<Duration> {
        match self {
            Self::NotSent { retry_after, .. } => Some(*retry_after),
            Self::RateLimited { retry_after, .. } => {
                let delay =
                    retry_after.map_or(RATE_LIMITED_DELAY, |delay| delay.clamp(RATE_LIMITED_DELAY, RETRY_AFTER_MAX));
                Some(delay.mul_f64(1.0 + random_fraction()))
            }
            _ => None,
        }
    }

    /// The error of a call that was not sent.
    pub(super) fn not_sent(cause: UnsentCause, retry_after: time::Duration) -> Self {
        let message = match cause {
            UnsentCause::Limit => {
                "the calls in progress and waiting exhaust Stripe's rate limit for this account; this call was not sent"
            }
            UnsentCause::Outage => "Stripe currently fails most calls; this call was not sent",
            UnsentCause::CatchingUp => {
                "the integration is catching up with Stripe after its database was restored, failed over or copied; \
                 nothing is changed at Stripe until that is done"
            }
        };
        let detail = Box::new(Detail { message: Some(message.to_owned()), ..Detail::default() });
        Self::NotSent { cause, retry_after: retry_after.try_into().unwrap_or_default(), detail }
    }

    /// A refusal of our own before anything was sent, in Stripe's form.
    pub(super) fn invalid(param: &str, message: &str) -> Self {
        Self::Invalid(Box::new(Detail {
            error_type: Some("invalid_request_error".to_owned()),
            param: Some(param.to_owned()),
            message: Some(message.to_owned()),
            ..Detail::default()
        }))
    }

    /// An unknown outcome; `message` is ours.
    pub(super) fn unknown(reason: UnknownCause, message: &str) -> Self {
        let detail = Box::new(Detail { message: Some(message.to_owned()), ..Detail::default() });
        Self::Unknown { reason, replayed: false, detail }
    }
}

impl From<&Detail> for Failure {
    /// The failure that a payment stores.
    fn from(detail: &Detail) -> Self {
        let code = detail.code.as_deref().or(detail.error_type.as_deref());
        Self {
            code: Self::code_of(code.unwrap_or("unknown")).to_owned(),
            message: detail.message.clone().unwrap_or_default(),
            decline_code: detail.decline_code.clone(),
            advice_code: detail.advice_code.clone(),
            network_decline_code: detail.network_decline_code.clone(),
            param: detail.param.clone(),
            provider_charge_id: detail.charge.clone(),
            provider_request_id: detail.request_id.clone(),
            http_status: detail.http_status,
        }
    }
}

impl fmt::Display for Detail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message.as_deref().unwrap_or("no message"))?;
        let facts = [
            ("code", self.code.as_deref()),
            ("decline code", self.decline_code.as_deref()),
            ("parameter", self.param.as_deref()),
            ("request", self.request_id.as_deref()),
        ];
        let mut separator = " (";
        if let Some(status) = self.http_status {
            write!(f, "{separator}status {status}")?;
            separator = ", ";
        }
        for (name, value) in facts {
            if let Some(value) = value {
                write!(f, "{separator}{name} {value}")?;
                separator = ", ";
            }
        }
        f.write_str(if separator == ", " { ")" } else { "" })
    }
}

impl UnsentCause {
    /// The metric's label.
    pub(super) fn as_str(self) -> &'static str {
        self.into()
    }
}

impl fmt::Display for UnknownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no response in time",
            Self::Connection => "the connection broke",
            Self::ServerError => "server error at Stripe",
            Self::Unreadable => "the response was not from Stripe",
            Self::RetryRejected => "an attempt has an unknown outcome and could not be retried",
            Self::TooLong => "there is more data than is read",
        })
    }
}

impl RateLimit {
    pub(super) fn parse(reason: Option<&str>) -> Self {
        reason.and_then(|reason| reason.parse().ok()).unwrap_or(Self::Unnamed)
    }
}
