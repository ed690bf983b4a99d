//! See the map in `src/lib.rs`.
/// The Stripe sandbox.
pub mod sandbox;
