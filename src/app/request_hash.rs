//! Hashes of requests: a caller that repeats a `request_id` must repeat its request.

use sha2::{Digest, Sha256};

/// A hash over a request's parts. Each part is preceded by its length, so that different requests have different input.
pub(super) fn hash_request(method: &str, parts: &[&str]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in [&[method], parts].concat() {
        hash.update(part.len().to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}
