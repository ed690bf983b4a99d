//! One binary for all tests that need real parts: an embedded Postgres, the Stripe sandbox over a socket, servers.

mod bad_input;
mod hands;
mod limits;
mod log;
mod story;
mod strangers;
mod support;
mod tenants;
