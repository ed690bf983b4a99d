//! A cache of verified API tokens.

use std::collections::HashMap;

use parking_lot::Mutex;
use time::{Duration, OffsetDateTime};

use crate::domain::OrganizationId;

/// How long a valid token is cached. A revoked token works for up to this long.
const TOKEN_CACHE_PERIOD: Duration = Duration::seconds(10);
/// The maximum number of cached tokens (P11).
const TOKEN_CACHE_SIZE: usize = 10_000;

/// Tokens verified recently, by hash.
#[derive(Default)]
pub(super) struct TokenCache(Mutex<HashMap<[u8; 32], (OrganizationId, OffsetDateTime)>>);

impl TokenCache {
    pub(super) fn get(&self, hash: &[u8; 32], now: OffsetDateTime) -> Option<OrganizationId> {
        let cache = self.0.lock();
        cache.get(hash).filter(|(_, until)| now < *until).map(|(organization, _)| *organization)
    }

    pub(super) fn put(&self, hash: [u8; 32], organization: OrganizationId, now: OffsetDateTime) {
        let mut cache = self.0.lock();
        if cache.len() >= TOKEN_CACHE_SIZE {
            cache.clear();
        }
        cache.insert(hash, (organization, now + TOKEN_CACHE_PERIOD));
    }
}
