//! One binary for all tests that need real parts.
