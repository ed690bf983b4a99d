//! Limits of messages, in bytes.

/// The largest request, in bytes (P11). A customer with every text at its limit fits.
pub(super) const REQUEST_BYTES_MAX: usize = 256 * 1024;

/// The target size of a page, in bytes: half of the 4 MiB that clients accept by default (P11).
pub(super) const PAGE_BYTES_MAX: usize = 2 * 1024 * 1024;
