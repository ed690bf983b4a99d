//! Stripe's API: parameters, headers, errors, signatures, objects and events.
//!
//! `app` builds a body with a resource's pure `…_body` function, commits it as a
//! [`StripeRequest`](crate::domain::stripe_requests::StripeRequest) with its key (P2), and passes that to the resource's
//! send function. Every call goes through [`Client`] once [`rate_limit`] permits it, and every failure becomes an
//! [`Error`]. An object in a response, webhook or list becomes the same snapshot of
//! [`crate::domain::signals`], so that one set of rules applies to all. [`signature`] verifies webhooks, [`signals`]
//! parses their events.

mod call;
pub mod client;
pub mod error;
pub mod form;
mod list;
pub mod metadata;
mod object;
mod operation;
mod random;
mod rate_limit;
pub mod redact;
mod response;
pub mod scopes;
pub mod signals;
pub mod signature;

pub mod accounts;
pub mod charges;
pub mod checkout_sessions;
pub mod customers;
pub mod disputes;
pub mod events;
pub mod mandates;
pub mod payment_intents;
pub mod payment_methods;
pub mod refunds;
pub mod setup_intents;
pub mod webhook_endpoints;

#[cfg(test)]
mod scripted;

pub use client::{Client, STRIPE_URL, Timeouts};
pub use error::{Detail, Disposition, Error, UnknownCause, UnsentCause};
pub use list::ListPage;
pub use operation::Operation;
pub use rate_limit::{ACQUIRE_TIMEOUT, ApiKey, RateLimiters};

/// The API version of every call and of the webhook endpoints that we register: the last one that accepts
/// [`form::PAYMENT_METHOD_TYPES`].
pub const API_VERSION: &str = "2026-08-26.dahlia";
