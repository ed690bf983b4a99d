//! Types and rules. Nothing here does IO, reads a clock or knows a wire format. `store` maps rows to these types,
//! `stripe` maps Stripe's JSON to [`signals::Signal`]s, and `grpc` and `http` map them to their own formats.
//! The rules that decide what happens to money are pure functions over these types.

pub mod catch_up;
pub mod checkout_sessions;
pub mod customers;
pub mod deliveries;
pub mod error;
pub mod events;
#[cfg(test)]
pub(crate) mod fixtures;
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
mod simulation;
pub mod stripe_requests;

pub use error::{Error, Result, Violation};
pub use ids::{
    CheckoutSessionId, CustomerId, IntegrationId, JobId, LogId, OrganizationId, PaymentId, PaymentMethodId, RefundId,
    TokenId,
};
pub use money::{Currency, Money};

/// One page of a list: at most `size` items whose id is smaller than `after`. Lists run from newest to oldest, which is
/// the descending order of ids (UUID v7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// The largest number of items to return; at least 1.
    pub size: i64,
    /// The last id of the previous page; `None` for the first page.
    pub after: Option<uuid::Uuid>,
}
