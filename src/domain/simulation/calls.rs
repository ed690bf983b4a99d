//! What the model of Stripe is asked to do, and what it answers.

use crate::domain::payments::Failure;
use crate::domain::signals::{IntentSnapshot, SessionSnapshot};

/// What happens when a payment method is charged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behavior {
    Succeeds,
    Declined,
    /// The bank requires authentication, which the holder completes or fails.
    RequiresAuthentication,
    /// A debit whose outcome the bank reports later.
    Debit {
        fails: bool,
    },
}

/// Whether the payer can authenticate a payment: on session or off session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Payer {
    Present,
    Absent,
}

/// How a requested authentication ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authentication {
    Completed,
    Failed,
}

/// What becomes of the work of a call that is answered with a 500.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Done,
    Delayed,
    Dropped,
}

/// A call that changes something at Stripe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    CreateIntent { amount: i64 },
    Confirm { intent: usize, behavior: Behavior, payer: Payer },
    Cancel { intent: usize },
    CreateSession { amount: i64 },
    Expire { session: usize },
}

/// What the caller receives.
#[derive(Clone, Debug)]
pub enum Response {
    Intent(Box<IntentSnapshot>),
    Session(Box<SessionSnapshot>),
    /// Stripe refused the request.
    Refused(Failure),
    /// Not executed, such as a 429.
    NotDone,
    /// The key was used with another body (`idempotency_error`).
    Mismatch,
    /// The stored response of an earlier call that was executed.
    Replayed(Box<Response>),
    /// It may have been executed. `replayed`: a stored 500, which this key returns from now on.
    Unknown {
        replayed: bool,
    },
}

/// A webhook: a snapshot of the object at the time of the event, and the key of the call that caused it.
#[derive(Clone, Debug)]
pub enum Webhook {
    Intent { snapshot: Box<IntentSnapshot>, key: Option<String> },
    Session { index: usize },
}
