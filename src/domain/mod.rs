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
pub mod money;
pub mod payment_methods;
pub mod payments;
pub mod signals;

pub use error::{Error, Result, Violation};
pub use ids::{
    CheckoutSessionId, CustomerId, IntegrationId, JobId, OrganizationId, PaymentId, PaymentMethodId, TokenId,
};
pub use money::{Currency, Money};
