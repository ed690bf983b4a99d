//! Stripe's wire, and nothing else: parameters, headers, errors, signatures, objects and events.
//!
//! `app` builds a body with a resource's pure `…_body` function, commits it (P2), and hands it with a key to the
//! resource's send function. Every call leaves through [`client`]'s one send path, when [`pace`] lets it go, and comes
//! back through [`error`]'s one table. Whatever Stripe says of an object, in an answer, a webhook or a list, becomes the same snapshot of
//! [`crate::domain::signals`], so that one set of rules takes it in. What arrives unasked is checked by [`signature`] and
//! understood by [`signals`].

mod answer;
pub mod client;
pub mod error;
pub mod form;
mod object;
mod pace;
pub mod redact;
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
pub use error::{Detail, Error, Verdict};
pub use pace::{ApiKey, TURN_WITHIN};

/// The API version of every call, and of the webhook endpoints that we register: the last that takes
/// [`form::PAYMENT_METHOD_TYPES`].
pub const API_VERSION: &str = "2026-08-26.dahlia";

/// The keys of our own marks on Stripe's objects.
pub mod metadata {
    /// The billing system's invoice.
    pub const INVOICE_ID: &str = "invoice_id";
    /// The tenant.
    pub const ORGANIZATION_ID: &str = "organization_id";
    /// Our payment.
    pub const PAYMENT_ID: &str = "payment_id";
    /// Our refund.
    pub const REFUND_ID: &str = "refund_id";
    /// The payment's attempt that an object was made for: payment id and number.
    pub const ATTEMPT_ID: &str = "attempt_id";
    /// Our customer.
    pub const CUSTOMER_ID: &str = "customer_id";
    /// The billing system's customer.
    pub const EXTERNAL_CUSTOMER_ID: &str = "external_customer_id";
    /// Our Checkout session.
    pub const CHECKOUT_SESSION_ID: &str = "checkout_session_id";
    /// The integration.
    pub const INTEGRATION_ID: &str = "integration_id";
}
