//! Paybridge connects a billing system to Stripe and charges every invoice exactly once.
//!
//! The modules are listed in the order in which data flows. Imports go one way: `domain` imports nothing of ours;
//! `store` and `stripe` import `domain`; `app` imports those three; the entry points (`grpc`, `http`, `worker`) import
//! `app` and `domain`; `config` validates addresses with `store`; and `server` wires all of them together. Inside a
//! module, no two files import one another. `tests/tidy/` enforces this.

/// The injected clock, and ids that contain its time. Any module may import it.
pub mod clock;

/// Failpoints: named points at which `paybridge chaos` kills the process. Any module but `domain` may import it.
pub mod failpoints;

/// Pure types and rules: what a payment is, how a signal changes it, and when a request to Stripe may be sent again. No
/// IO, no clock, no mocks.
pub mod domain;

/// Postgres. The only module with SQL: free functions that take a connection, one file per noun.
pub mod store;

/// Stripe's API. The only module that knows its parameters, errors, signatures and objects.
pub mod stripe;

/// The application layer: use cases. The only module that opens transactions; none is open during a call to Stripe
/// (P3).
pub mod app;

/// The gRPC API: conversion between proto and domain, authentication, status codes, the event stream.
pub mod grpc;

/// The HTTP API: receives Stripe's webhooks, and serves health and metrics.
pub mod http;

/// The worker: leases jobs and runs them in `app`; runs timers.
pub mod worker;

/// Settings: every flag and environment variable; all errors are reported at once.
pub mod config;

/// Logs, traces and metrics.
pub mod telemetry;

/// Operating system signals and the deadline of a shutdown.
pub mod lifecycle;

/// The composition root: starts a service on given listeners.
pub mod server;

/// A private Postgres, a stateful Stripe sandbox, `paybridge dev`, `demo` and `chaos`. No other module imports it.
#[cfg(feature = "dev")]
pub mod dev;
