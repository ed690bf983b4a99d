//! Durable requests to Stripe, and the one rule that decides when such a request is sent, when its object is read
//! instead, and when another idempotency key may be used (P2).
//!
//! A request is stored before it is first sent: every send has the same body and the same key, so Stripe executes it
//! once. Keys are functions of names that outlive our rows: for as long as Stripe keeps a key, a row that was lost and is
//! made anew learns from Stripe what exists already. A key stops being useful in three ways: it is older than 20 h, and
//! Stripe may have forgotten it; Stripe replays a stored 500 for it; or Stripe has received it with another body. What
//! follows depends only on what a second execution under another key would do ([`Repeat`]), and on what a read of the
//! object shows ([`Observed`]).

use std::fmt;

use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::OrganizationId;

/// A key older than this is never sent again: Stripe keeps keys for 24 h and may then prune them
/// (<https://docs.stripe.com/api/idempotent_requests>).
pub const KEY_AGE_MAX: Duration = Duration::hours(20);

/// For how long Stripe keeps a key at least.
pub const KEY_RETENTION: Duration = Duration::DAY;

/// When to read the object after a key has become useless, counted from then: until the last read, Stripe may still
/// complete the work.
const READS: [Duration; 3] = [Duration::minutes(1), Duration::minutes(5), Duration::minutes(30)];

/// A request prepared longer ago than this may have been sent by a process that was killed since.
const FIRST_SEND_PERIOD: Duration = Duration::minutes(1);

/// By how much Stripe's clock and ours may differ.
const CLOCK_DIFFERENCE: Duration = Duration::minutes(5);

/// The oldest request that a taken key can belong to: Stripe keeps keys for less time.
const TAKEN_KEY_PERIOD: Duration = Duration::days(30);

/// What a request creates or changes at Stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::IntoStaticStr, strum::VariantArray)]
#[strum(serialize_all = "snake_case")]
pub enum Purpose {
    /// A customer.
    Customer,
    /// The webhook endpoint of a new integration.
    WebhookEndpoint,
    /// An endpoint that replaces another one.
    ReplacementEndpoint,
    /// A page on which a customer stores a payment method.
    CheckoutSession,
    /// A PaymentIntent, unconfirmed.
    PaymentIntent,
    /// The confirmation of a PaymentIntent, which may take money.
    Confirmation,
    /// A page on which a payer pays an invoice.
    PaymentLink,
    /// A refund of what remains of a charge.
    Refund,
    /// A refund of a part of a charge. Stripe reports an amount for every refund, so the purpose of a full refund changes
    /// to this one; the name must not.
    #[strum(serialize = "refund")]
    PartialRefund,
    /// A customer's default payment method.
    DefaultMethod,
}

/// What a second execution of a request, under another key, would do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// Nothing that matters: nobody has the secret of the first endpoint, and a default is written again anyway.
    Harmless,
    /// It would make another page. Nobody has the URL of the first one, and after 20 h nobody waits for one.
    Page,
    /// It would make another payment page. Under a key that Stripe has received with another body, a page was made whose
    /// URL may be in the hands of a payer: it is closed before the link fails. Otherwise nobody has the URL.
    PaymentPage,
    /// It would make a duplicate that takes no money. The first one is looked up in Stripe's list, and adopted.
    Duplicate,
    /// It would make another intent. The first one is looked up in Stripe's list, and adopted: it may have been paid.
    Intent,
    /// It would act on the same object, which can succeed only once.
    SameObject,
    /// Stripe would refuse it if the first one succeeds.
    Once,
    /// It would succeed in addition to the first one.
    Adds,
}

impl Purpose {
    /// The name in the database, and in the key.
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    fn repeat(self) -> Repeat {
        match self {
            Self::WebhookEndpoint | Self::ReplacementEndpoint | Self::DefaultMethod => Repeat::Harmless,
            Self::CheckoutSession => Repeat::Page,
            Self::PaymentLink => Repeat::PaymentPage,
            Self::Customer => Repeat::Duplicate,
            Self::PaymentIntent => Repeat::Intent,
            Self::Confirmation => Repeat::SameObject,
            Self::Refund => Repeat::Once,
            Self::PartialRefund => Repeat::Adds,
        }
    }

    /// The series of requests of this purpose about what `name` identifies. Wherever a second execution matters, it is
    /// an id that the billing system or Stripe has assigned, and never that of a row: a row that is made anew must send
    /// the old key.
    pub fn of(self, name: impl fmt::Display) -> RequestTarget {
        RequestTarget { purpose: self, name: name.to_string() }
    }
}

/// Stripe's `Idempotency-Key`. Only this type makes our keys, and recognizes them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(String);

impl IdempotencyKey {
    const PREFIX: &str = "paybridge-";

    /// The key of a call that may be executed any number of times, and is never sent again under the same key.
    pub fn unique(action: &str, id: Uuid) -> Self {
        Self(format!("{}{action}-{id}", Self::PREFIX))
    }

    /// A key that was stored. `text` is one that this type has made.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// Whether Paybridge has made the key that Stripe reports.
    pub fn is_ours(text: &str) -> bool {
        text.starts_with(Self::PREFIX)
    }

    /// The value of the header.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whose requests: part of every key, so that no two installations or organizations share one.
#[derive(Clone, Copy, Debug)]
pub struct KeyScope<'a> {
    /// The name of the installation.
    pub installation: &'a str,
    /// The tenant.
    pub organization: OrganizationId,
}

/// What a series of requests is about. Their generations are 1, 2, 3, …
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestTarget {
    /// What is created or changed.
    pub purpose: Purpose,
    /// Which one.
    pub name: String,
}

impl RequestTarget {
    /// The key of a generation: a pure function, so that a row that is made anew sends the old key.
    fn key(&self, scope: KeyScope<'_>, generation: i32) -> IdempotencyKey {
        let digest = [scope.installation.as_bytes(), scope.organization.0.as_bytes(), self.name.as_bytes()]
            .into_iter()
            // Each part with its length, so that no two lists of parts have the same bytes.
            .fold(Sha256::new(), |hash, part| hash.chain_update(part.len().to_be_bytes()).chain_update(part))
            .finalize();
        let name = hex::encode(&digest[..16]);
        IdempotencyKey(format!("{}{}-{name}-{generation}", IdempotencyKey::PREFIX, self.purpose.as_str()))
    }

    /// Builds a request, prepared now.
    pub fn request(&self, scope: KeyScope<'_>, generation: i32, body: String, now: OffsetDateTime) -> StripeRequest {
        let (purpose, key) = (self.purpose, self.key(scope, generation));
        StripeRequest { purpose, generation, key, body, create_time: now, key_state: KeyState::Usable }
    }
}

/// What Stripe has shown of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Nothing that forbids its use.
    Usable,
    /// Since this time, Stripe is known to replay a stored 500: the key will never return anything else.
    ReplaysError(OffsetDateTime),
    /// Since this time, Stripe is known to have received the key with another body (`idempotency_error`).
    Taken(OffsetDateTime),
}

/// A POST to Stripe: every send has the same body and the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StripeRequest {
    /// What it creates or changes.
    pub purpose: Purpose,
    /// Increases when another key is used.
    pub generation: i32,
    /// Its key.
    pub key: IdempotencyKey,
    /// The form-encoded body.
    pub body: String,
    /// When it was prepared; its key's age counts from then.
    pub create_time: OffsetDateTime,
    /// What Stripe has shown of its key.
    pub key_state: KeyState,
}

/// What is known of the effect of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observed {
    /// Nothing, and nothing is known to have been sent.
    Unsent,
    /// Nothing: the object was not read in this run, and the request may have been sent.
    Unread,
    /// A read shows no effect. If the key is useless, Stripe may still complete the work.
    Absent,
    /// It was executed, and what it made can no longer be used, such as a deleted customer.
    Spent,
    /// It was executed.
    Present,
}

/// What to do next with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the stored body under the stored key.
    Send,
    /// Read the object, or look it up in Stripe's list. It decides.
    Read,
    /// Read the object at this time.
    Wait(OffsetDateTime),
    /// Prepare a request of the next generation.
    NewKey,
    /// The outcome is known.
    Done,
    /// Give it up: nobody waits for what it may have created, or can use it.
    Abandon,
    /// Neither a repetition nor another key is safe, for this reason.
    Stop(&'static str),
}

impl StripeRequest {
    /// The same request under another key.
    #[must_use]
    pub fn under_new_key(&self, target: &RequestTarget, scope: KeyScope<'_>, now: OffsetDateTime) -> Self {
        target.request(scope, self.generation + 1, self.body.clone(), now)
    }

    /// From which time on Stripe's list is read to find what the request created.
    pub fn list_from(&self) -> OffsetDateTime {
        match self.key_state {
            // The request with the other body was sent before this one was prepared.
            KeyState::Taken(_) => self.create_time - TAKEN_KEY_PERIOD,
            KeyState::Usable | KeyState::ReplaysError(_) => self.create_time - CLOCK_DIFFERENCE,
        }
    }

    /// Decides what to do next with the request.
    pub fn next(&self, observed: Observed, now: OffsetDateTime) -> Next {
        let age = now - self.create_time;
        let is_usable = self.key_state == KeyState::Usable && age <= KEY_AGE_MAX;
        let repeat = self.purpose.repeat();
        match (observed, repeat) {
            (Observed::Present, _) => Next::Done,
            (Observed::Spent, Repeat::PaymentPage) => Next::Abandon,
            (Observed::Spent, _) => Next::NewKey,
            // The outcome of a confirmation shows on the intent. Only what nobody can have sent is sent unread.
            (Observed::Unread, Repeat::SameObject) => Next::Read,
            (Observed::Unsent, Repeat::SameObject) if !is_usable || age > FIRST_SEND_PERIOD => Next::Read,
            (Observed::Unsent | Observed::Unread | Observed::Absent, _) if is_usable => Next::Send,
            // The page made under the key may still be paid.
            (Observed::Unsent | Observed::Unread, Repeat::PaymentPage)
                if matches!(self.key_state, KeyState::Taken(_)) =>
            {
                Next::Read
            }
            (_, Repeat::PaymentPage) => Next::Abandon,
            (_, Repeat::Page) if self.key_state == KeyState::Usable => Next::Abandon,
            (_, Repeat::Harmless | Repeat::Page) => Next::NewKey,
            (Observed::Unsent | Observed::Unread, _) => Next::Read,
            (Observed::Absent, repeat) => self.after_absence(repeat, now),
        }
    }

    /// The key is useless, and a read shows no effect of the request.
    fn after_absence(&self, repeat: Repeat, now: OffsetDateTime) -> Next {
        let too_old = self.create_time + KEY_AGE_MAX;
        let useless_since = match self.key_state {
            KeyState::Usable => too_old,
            // Stripe keeps errors under a key, too, so it may have created nothing. But if it has created an intent that
            // is not found, that may have been paid.
            KeyState::Taken(_) if repeat == Repeat::Intent => {
                return Next::Stop("Stripe has received its key with another body, and what that created is not found");
            }
            KeyState::ReplaysError(since) | KeyState::Taken(since) => since.min(too_old),
        };
        if matches!(repeat, Repeat::Duplicate | Repeat::Intent) {
            return Next::NewKey;
        }
        // A second part of a charge would be refunded in addition: wait until Stripe has forgotten the key, counted from
        // the last possible send.
        let last_read = (repeat == Repeat::Adds).then_some(useless_since + KEY_RETENTION);
        let mut reads = READS.into_iter().map(|wait| useless_since + wait).chain(last_read);
        reads.find(|read| *read > now).map_or(Next::NewKey, Next::Wait)
    }
}

#[cfg(test)]
mod tests;
