//! Paybridge connects a billing system to Stripe and charges every invoice exactly once.
//!
//! This file is the map of the house, in the order in which data flows. Imports go one way: `domain` imports nothing of
//! ours, `store` and `stripe` import `domain`, `app` imports those three, the doors import `app` and `domain`, `config`
//! checks addresses with `store`, and `server` wires all of them together. `tests/tidy.rs` holds us to it.

/// The one clock, and the ids that carry its time. Anybody may import it.
pub mod clock;

/// Named points at which a process can be made to die, for `paybridge chaos`. Anybody but the domain may import it.
pub mod crash;

/// Pure nouns and rules: what a payment is and how a signal changes it. No IO, no clock, nothing to mock.
pub mod domain;

/// The first cupboard: Postgres. The only room with SQL; free functions that take a connection, a file a noun.
pub mod store;

/// The second cupboard: Stripe's wire. The only room that knows its parameters, errors, signatures and objects.
pub mod stripe;

/// The kitchen: use cases. The only room that opens transactions, and never holds one over a call to Stripe (P3).
pub mod app;

/// Door 1: the gRPC API. Proto to domain and back, tokens, status codes, the event stream.
pub mod grpc;

/// Door 2: HTTP. Stripe's webhooks come in here; health and metrics are read here.
pub mod webhook;

/// Door 3: durable work. Leases jobs and hands them to `app`; timers.
pub mod worker;

/// Settings: every flag and environment variable, all mistakes reported at once.
pub mod config;

/// Logs, traces and metrics.
pub mod telemetry;

/// Signals of the operating system, and the deadlines of a shutdown.
pub mod lifecycle;

/// The composition root: listeners in, a running service out.
pub mod server;

/// A private Postgres, a stateful Stripe sandbox, `paybridge dev` and `paybridge demo`. Nobody imports it.
#[cfg(feature = "dev")]
pub mod dev;
