//! Tools for one machine that production never needs: an embedded Postgres, the Stripe sandbox, a test environment that
//! connects both with servers, and the scenarios that run in it.

mod chaos;
mod demo;
mod rng;
mod run;

/// Snapshots, restorations and copies of a database.
pub mod backups;
/// An embedded Postgres, started from the programs that the machine has or can fetch.
pub mod postgres;
/// A stateful stand-in for Stripe's API.
pub mod sandbox;
/// The product's main scenarios, in eighteen steps.
pub mod scenarios;
/// A database, a sandbox and servers, connected to each other.
pub mod test_environment;

pub use self::chaos::run_chaos;
pub use self::demo::run_demo;
pub use self::run::{run_dev, run_sandbox};
