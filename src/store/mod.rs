//! The first cupboard: Postgres, and the only room with SQL. A file a noun; free functions that take a connection, so
//! that `app` decides what belongs to one transaction. Rows are private here.
//!
//! Locks are taken in one order, so that nobody waits in a circle: payments (in id order), customers, sessions,
//! integrations, jobs, and last of all the event log's counter (P5).

pub mod attempts;
pub mod budgets;
pub mod checkout_sessions;
mod connect;
pub mod customers;
pub mod deliveries;
mod error;
pub mod events;
pub mod integrations;
pub mod jobs;
pub mod leases;
pub mod migrate;
pub mod organizations;
pub mod parked_jobs;
pub mod payment_methods;
pub mod payments;
mod pool;
pub mod refunds;
pub mod requests;
mod rows;
mod schema;
mod seal;
pub mod settlements;
pub mod stale;
pub mod startup;
pub mod timers;
pub mod upkeep;
mod wake;

pub use connect::Address;
pub use pool::{Pool, Scope, Transaction};
pub use seal::{SealKey, Sealer};
pub use wake::{Hint, relay};
