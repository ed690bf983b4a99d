//! A cache of webhook secrets.

use std::collections::HashMap;

use parking_lot::Mutex;
use secrecy::SecretString;
use time::{Duration, OffsetDateTime};

use crate::domain::{IntegrationId, OrganizationId};

/// The maximum number of cached integrations (P11).
const SECRETS_MAX: usize = 10_000;

/// An integration's webhook secrets, unsealed: two while its endpoint is being replaced.
#[derive(Clone)]
pub(super) struct Secrets {
    pub org: OrganizationId,
    pub open: Vec<SecretString>,
    pub read_time: OffsetDateTime,
}

/// Webhook secrets read recently.
#[derive(Default)]
pub(in crate::app) struct SecretCache(Mutex<HashMap<IntegrationId, Secrets>>);

impl SecretCache {
    /// Cached secrets no older than `age`.
    pub(super) fn get(
        &self,
        org: OrganizationId,
        id: IntegrationId,
        now: OffsetDateTime,
        age: Duration,
    ) -> Option<Secrets> {
        let cache = self.0.lock();
        cache.get(&id).filter(|secrets| secrets.org == org && now < secrets.read_time + age).cloned()
    }

    pub(super) fn put(&self, id: IntegrationId, secrets: Secrets) {
        let mut cache = self.0.lock();
        if cache.len() >= SECRETS_MAX {
            cache.clear();
        }
        cache.insert(id, secrets);
    }
}
