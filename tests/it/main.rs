//! One binary for all tests that need real parts: an embedded Postgres, the Stripe sandbox over a socket, servers.

mod away;
mod bad_input;
mod cashier;
mod deliveries;
mod doors;
mod hands;
mod limits;
mod log;
mod payload;
mod payments;
mod readme;
mod secrets;
mod stored;
mod story;
mod strangers;
mod support;
mod tenants;
mod unknown;
