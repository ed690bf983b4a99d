//! Pure nouns and rules. Nothing here does IO, reads a clock or knows a wire format: `store` turns rows into these
//! types, `stripe` turns Stripe's JSON into [`signals::Signal`]s, the doors turn them into proto; the rules that decide
//! what happens to money are plain functions of them.

pub mod checkout_sessions;
pub mod customers;
pub mod deliveries;
pub mod error;
pub mod events;
pub mod ids;
pub mod integrations;
pub mod jobs;
pub mod limits;
pub mod money;
pub mod payment_methods;
pub mod payments;
pub mod reconcile;
pub mod refunds;
pub mod signals;
#[cfg(test)]
mod twin;

pub use error::{Error, Result, Violation};
pub use ids::{
    CheckoutSessionId, CustomerId, IntegrationId, JobId, OrganizationId, PaymentId, PaymentMethodId, RefundId, TokenId,
};
pub use money::{Currency, Money};

/// A page of a list: at most `size` items whose id is smaller than `after`. Lists run from the newest to the oldest, and
/// ids (UUID v7) with them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many, 1 or more.
    pub size: i64,
    /// The last id of the page before.
    pub after: Option<uuid::Uuid>,
}
