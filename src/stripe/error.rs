//! What went wrong with a call, sorted by what it means for money, so that nobody outside this room needs to know HTTP.
//!
//! The rule behind the sorting is P2: only an answer that Stripe itself wrote settles anything. A refusal counts as
//! Stripe's word only if its body is an error object of Stripe's; the error page of a proxy, a cut connection and every
//! 5xx leave the outcome unknown.

use std::fmt;
use std::time::Duration;

use super::pace::chance;
use crate::domain::payments::Failure;
use crate::domain::signals::IntentSnapshot;

/// How soon to come again after Stripe's limiter has turned a call away, and how long Stripe may ask for, in the clock's
/// time.
const RATE_LIMITED_WAIT: Duration = Duration::from_secs(1);
const RETRY_AFTER_MAX: Duration = Duration::from_mins(1);

/// A call that did not bring what was asked for.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// 402: the parameters were fine, the payment was refused. The next try needs a new key.
    #[error("Stripe declined the payment: {0}")]
    Declined(Box<Detail>),
    /// 400 or 404: a parameter is wrong, the object is missing, or it is in a state that does not allow this.
    #[error("Stripe refused the request: {0}")]
    Invalid(Box<Detail>),
    /// The same key came with another body. A bug of ours: stop and alert, never take a new key silently, for
    /// whatever went first under this key may have moved money.
    #[error("Stripe has seen this idempotency key with another request: {0}")]
    IdempotencyMismatch(Box<Detail>),
    /// 401: the key is wrong, expired or revoked. Nothing was done.
    #[error("Stripe does not accept the API key: {0}")]
    Unauthorized(Box<Detail>),
    /// 403: the key is good but may not do this. Nothing was done.
    #[error("the API key lacks a permission at Stripe: {detail}")]
    Forbidden {
        /// The missing permission, `rak_…`, where Stripe names it.
        scope: Option<String>,
        /// Stripe's answer.
        detail: Box<Detail>,
    },
    /// 429: too many calls. Nothing was done; the same key goes again later, and slower.
    #[error("Stripe limits our calls ({reason:?}): {detail}")]
    RateLimited {
        /// Which limit was met.
        reason: RateLimit,
        /// How long Stripe asks us to wait, if it says so. It seldom does.
        retry_after: Option<Duration>,
        /// Stripe's answer.
        detail: Box<Detail>,
    },
    /// It was not sent, and nothing was done: its turn did not come in time, or Stripe fails most calls just now.
    #[error("{detail}")]
    NotNow {
        /// What it was held back by.
        hold: Hold,
        /// When to come again, in the clock's time.
        wait: Duration,
        /// What to tell people.
        detail: Box<Detail>,
    },
    /// 429 `lock_timeout`: somebody else is working on this object. Nothing was done.
    #[error("Stripe holds a lock on the object: {0}")]
    Locked(Box<Detail>),
    /// 409: a request with this key is still being worked on. Its outcome is unknown; the same key goes again.
    #[error("Stripe is still working on a request with this key: {0}")]
    InUse(Box<Detail>),
    /// It may have been done or not. The same body goes again under the same key, or the object is read.
    #[error("the outcome at Stripe is unknown ({reason}): {detail}")]
    Unknown {
        /// What came instead of an answer.
        reason: Doubt,
        /// Stripe replayed a stored answer (`Idempotent-Replayed`): the same key will never say anything else.
        replayed: bool,
        /// As much as is known; status and request id where there was an answer at all.
        detail: Box<Detail>,
    },
}

/// What an error says about the work that was asked for. It speaks of this call alone: if an earlier call with the
/// same key ended [`Verdict::Unknown`], a later [`Verdict::NotDone`] does not undo that doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Stripe's word: it was refused and will not happen under this key.
    Refused,
    /// Not done, nothing was tried: later, with the same key and body.
    NotDone,
    /// Unknown is not failed (P2).
    Unknown,
}

/// What holds a call back before it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The account's limit is used up.
    Limit,
    /// Stripe, or this account at Stripe, fails most calls.
    Outage,
}

/// Why an outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// No whole answer within the time allowed.
    Timeout,
    /// No connection, or it broke.
    Connection,
    /// A 5xx.
    ServerError,
    /// An answer that is not Stripe's: no JSON, another shape, a redirect, or too long.
    Unreadable,
    /// A first try within this call broke off, and its repetition was not let through.
    Unrepeated,
    /// More than we are willing to read.
    TooLong,
}

/// Which limit a 429 speaks of (`Stripe-Rate-Limited-Reason`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RateLimit {
    /// Calls a second of the whole account.
    GlobalRate,
    /// Calls of the account at the same time.
    GlobalConcurrency,
    /// Calls a second to this endpoint.
    EndpointRate,
    /// Calls to this endpoint at the same time.
    EndpointConcurrency,
    /// A limit of one object or one kind of work.
    ResourceSpecific,
    /// Stripe did not say, or said something new.
    Unnamed,
}

/// What Stripe said about an error. Every text is scrubbed of secrets and cut to 1,000 characters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detail {
    /// The HTTP status; absent where no answer came.
    pub http_status: Option<u16>,
    /// `card_error`, `invalid_request_error`, `api_error`, `idempotency_error`.
    pub error_type: Option<String>,
    /// For programs: `card_declined`, `resource_missing`, `amount_too_small`, …
    pub code: Option<String>,
    /// The bank's reason: `insufficient_funds`, …
    pub decline_code: Option<String>,
    /// What to do next: `try_again_later`, `do_not_try_again`, `confirm_card_data`.
    pub advice_code: Option<String>,
    /// The card network's own code.
    pub network_decline_code: Option<String>,
    /// The parameter at fault.
    pub param: Option<String>,
    /// For people.
    pub message: Option<String>,
    /// Stripe's id of the request, for its support and its logs.
    pub request_id: Option<String>,
    /// The charge that failed, `ch_…`.
    pub charge: Option<String>,
    /// The intent as the refused call left it: a refused create still makes one. Without its action's link, which
    /// would show wherever the error is printed.
    pub payment_intent: Option<Box<IntentSnapshot>>,
}

impl Error {
    /// What this error says about the work that was asked for.
    pub fn verdict(&self) -> Verdict {
        match self {
            Self::Declined(_) | Self::Invalid(_) => Verdict::Refused,
            Self::Unauthorized(_)
            | Self::Forbidden { .. }
            | Self::RateLimited { .. }
            | Self::NotNow { .. }
            | Self::Locked(_) => Verdict::NotDone,
            Self::InUse(_) | Self::Unknown { .. } | Self::IdempotencyMismatch(_) => Verdict::Unknown,
        }
    }

    /// Everything Stripe said.
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
            | Self::NotNow { detail, .. }
            | Self::Unknown { detail, .. } => detail,
        }
    }

    /// Stripe's code, if it gave one.
    pub fn code(&self) -> Option<&str> {
        self.detail().code.as_deref()
    }

    /// Whether the object asked for is not there. After a DELETE it means that the work is done.
    pub fn is_missing(&self) -> bool {
        matches!(self, Self::Invalid(detail)
            if detail.code.as_deref() == Some("resource_missing") || detail.http_status == Some(404))
    }

    /// Whether the key must be mended before anything goes on: it is no longer accepted, or lacks a permission.
    pub fn is_key_trouble(&self) -> bool {
        matches!(self, Self::Unauthorized(_) | Self::Forbidden { .. })
    }

    /// The account that a refusal for lack of a permission names in its text (`… on account 'acct_…'`). Stripe does not
    /// document it, and not every such text names one. Every other error is silent: it may speak of somebody else's.
    pub fn named_account(&self) -> Option<&str> {
        let Self::Forbidden { detail, .. } = self else { return None };
        // `account_invalid` names an account that the key has nothing to do with.
        let message = detail.message.as_deref().filter(|_| detail.code.as_deref() != Some("account_invalid"))?;
        let (start, _) = message.match_indices("acct_").next()?;
        let rest = &message[start..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        let named = &rest[..end];
        let is_only_one = message.matches("acct_").count() == message.matches(named).count();
        (named.len() > "acct_".len() && is_only_one).then_some(named)
    }

    /// When to come again, in the clock's time, if the call was held back, by us or by Stripe's limiter. Nothing is wrong
    /// with what was asked for.
    pub fn held_back(&self) -> Option<Duration> {
        match self {
            Self::NotNow { wait, .. } => Some(*wait),
            Self::RateLimited { retry_after, .. } => {
                let wait = retry_after.map_or(RATE_LIMITED_WAIT, |wait| wait.clamp(RATE_LIMITED_WAIT, RETRY_AFTER_MAX));
                Some(wait.mul_f64(1.0 + chance()))
            }
            _ => None,
        }
    }

    /// A call that was not sent.
    pub(super) fn not_now(hold: Hold, wait: time::Duration) -> Self {
        let message = match hold {
            Hold::Limit => {
                "as many calls as Stripe allows for this account are under way or wait; this try was not sent"
            }
            Hold::Outage => "Stripe fails most calls just now; this try was not sent",
        };
        let detail = Box::new(Detail { message: Some(message.to_owned()), ..Detail::default() });
        Self::NotNow { hold, wait: wait.try_into().unwrap_or_default(), detail }
    }

    /// A refusal of our own, before anything was sent, in the words that Stripe would use.
    pub(super) fn invalid(param: &str, message: &str) -> Self {
        Self::Invalid(Box::new(Detail {
            error_type: Some("invalid_request_error".to_owned()),
            param: Some(param.to_owned()),
            message: Some(message.to_owned()),
            ..Detail::default()
        }))
    }

    /// No answer that settles anything; `message` is ours.
    pub(super) fn unknown(reason: Doubt, message: &str) -> Self {
        let detail = Box::new(Detail { message: Some(message.to_owned()), ..Detail::default() });
        Self::Unknown { reason, replayed: false, detail }
    }
}

impl From<&Detail> for Failure {
    /// A refusal, as a payment keeps it.
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

impl Hold {
    /// For metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Outage => "outage",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer in time",
            Self::Connection => "the connection broke",
            Self::ServerError => "Stripe had an error of its own",
            Self::Unreadable => "the answer was not Stripe's",
            Self::Unrepeated => "a try broke off and could not be repeated",
            Self::TooLong => "there is more than we read",
        })
    }
}

impl RateLimit {
    pub(super) fn parse(reason: Option<&str>) -> Self {
        match reason {
            Some("global-rate") => Self::GlobalRate,
            Some("global-concurrency") => Self::GlobalConcurrency,
            Some("endpoint-rate") => Self::EndpointRate,
            Some("endpoint-concurrency") => Self::EndpointConcurrency,
            Some("resource-specific") => Self::ResourceSpecific,
            _ => Self::Unnamed,
        }
    }
}
