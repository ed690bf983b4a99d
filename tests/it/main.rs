//! One binary for all tests that need real parts: an embedded Postgres, the Stripe sandbox over a socket, servers.

mod away;
mod bad_input;
mod bad_webhooks;
mod cashier;
mod deliveries;
mod doors;
mod endpoints;
mod hands;
mod limits;
mod links;
mod log;
mod pace;
mod parking;
mod payload;
mod payments;
mod readme;
mod reconcile;
mod refunds;
mod replicas;
mod secrets;
mod story;
mod strangers;
mod support;
mod tenants;
mod unknown;
mod unknown_refunds;
