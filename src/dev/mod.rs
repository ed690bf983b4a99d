//! See the map in `src/lib.rs`.
/// A private, real Postgres, started from the machine's own programs.
pub mod postgres;
/// The Stripe sandbox.
pub mod sandbox;
