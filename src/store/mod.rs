//! Postgres. All SQL is here: one file per noun, with free functions that take a connection, so that `app` decides what
//! belongs to one transaction. Row structs stay private.
//!
//! To avoid deadlocks, locks are taken in one order: payments (in id order), customers, sessions, integrations and
//! their contacts, jobs, and last the event log's counter (P5).

pub mod adopt;
pub(crate) mod attempts;
pub(crate) mod charges_and_disputes;
pub(crate) mod checkout_sessions;
mod connect;
pub(crate) mod contacts;
pub(crate) mod customers;
pub(crate) mod deliveries;
mod error;
pub mod events;
mod installation;
pub(crate) mod integration_health;
pub(crate) mod integrations;
pub(crate) mod jobs;
pub mod leases;
pub mod migrate;
mod notifications;
pub(crate) mod organizations;
pub(crate) mod parked_jobs;
pub(crate) mod payment_methods;
pub(crate) mod payments;
mod pool;
pub(crate) mod rate_limits;
pub(crate) mod refunds;
pub(crate) mod request_ids;
mod rows;
mod schema;
mod seal;
mod server_check;
pub(crate) mod stale;
pub mod startup;
pub(crate) mod stripe_requests;
pub(crate) mod timers;

pub use connect::Address;
pub use notifications::{Notification, relay};
pub use pool::{Pool, Scope, Transaction};
pub use seal::{SealKey, Sealer};
