//! See the map in `src/lib.rs`.
use std::process::ExitCode;

use crate::config;

/// A private, real Postgres, started from the machine's own programs.
pub mod postgres;
/// The Stripe sandbox.
pub mod sandbox;

/// `paybridge dev`
#[expect(clippy::unused_async, reason = "not there yet")]
pub async fn run_dev(_settings: config::Dev) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`paybridge dev` is not there yet")
}

/// `paybridge demo`
#[expect(clippy::unused_async, reason = "not there yet")]
pub async fn run_demo(_settings: config::Demo) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`paybridge demo` is not there yet")
}

/// `paybridge sandbox`
#[expect(clippy::unused_async, reason = "not there yet")]
pub async fn run_sandbox(_settings: config::Sandbox) -> anyhow::Result<ExitCode> {
    anyhow::bail!("`paybridge sandbox` is not there yet")
}
