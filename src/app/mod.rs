//! The application layer: use cases. Each file is named for its noun and holds what callers can request (methods of
//! [`App`]) and what its jobs do.
//!
//! Every change is a `UnitOfWork`: one transaction that writes rows, then follow-up jobs, then events, and notifies
//! workers and streams after the commit (P4, P5). No transaction is open during a call to Stripe (P3): a job reads and
//! prepares its request in one transaction, calls Stripe, and writes the outcome in the next.

mod catch_up;
mod customers;
mod deliveries;
mod event_payloads;
mod events;
mod integrations;
mod jobs;
mod notifications;
mod organizations;
mod payments;
mod rate_limits;
mod reconcile;
mod request_hash;
mod retention;
mod settings;
mod state;
mod stripe_requests;
mod timers;
mod token_cache;
mod unit_of_work;

pub use self::deliveries::{Ingested, Rejection};
use self::integrations::{if_allowed, if_found, stripe_unavailable};
pub use self::jobs::LEASE_PERIOD;
pub use self::rate_limits::SLOTS_EVERY;
pub use self::settings::{Periods, Settings};
use self::state::StripeAccount;
pub use self::state::{Adapters, App};
pub use self::timers::Timer;
