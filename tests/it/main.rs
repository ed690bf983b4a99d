//! One binary for all tests that need real parts: an embedded Postgres, the Stripe sandbox over a socket, servers.

mod readme;
mod story;
mod support;
