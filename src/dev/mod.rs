//! Everything that a developer needs on one machine, and production doesn't: a real Postgres, a stand-in for Stripe, a
//! stage that puts them together with servers, and the story that is played on it.

mod chaos;
mod demo;
mod rng;
mod run;

/// A private, real Postgres, started from the machine's own programs.
pub mod postgres;
/// The Stripe sandbox.
pub mod sandbox;
/// A database, a sandbox and servers, put together.
pub mod stage;
/// What Paybridge is for, in eighteen steps.
pub mod story;

pub use self::chaos::run_chaos;
pub use self::demo::run_demo;
pub use self::run::{run_dev, run_sandbox};
