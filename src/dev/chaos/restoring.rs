//! The fault that restores the database from a snapshot that is some seconds old, while everything runs. Then callers
//! repeat what was acknowledged since.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio_util::sync::CancellationToken;

use super::callers::Organization;
use super::faults::{FaultInjector, increment, stopped_within};
use crate::clock::pause;
use crate::dev::rng::Rng;
use crate::grpc::proto::RotateIntegrationKeyRequest;

/// The age of a snapshot when it is restored, in milliseconds of real time: at least, and less than.
const SNAPSHOT_AGE: (u64, u64) = (1_500, 8_000);
/// The timeout of a key rotation, which is then repeated.
const ROTATION_TIMEOUT: Duration = Duration::from_secs(5);

impl FaultInjector {
    /// Restores the database again and again. One restoration is complete, and repeated, before the next snapshot.
    pub(super) async fn restore_database(self: Arc<Self>, stop: CancellationToken) {
        let mut rng = Rng::named(self.seed, "restorations");
        let every = u64::try_from(self.restore_every.as_millis()).unwrap_or(u64::MAX);
        loop {
            let wait = Duration::from_millis(rng.between(every / 2, every + every / 2));
            if stopped_within(&stop, wait).await {
                return;
            }
            if let Err(error) = self.restore_once(&mut rng, &stop).await {
                tracing::error!("the database was not restored: {error:#}");
            }
        }
    }

    /// Takes a snapshot, restores it some seconds later, and lets callers repeat what it lacks. A stop shortens the
    /// wait, so that a run ends with the database restored.
    async fn restore_once(&self, rng: &mut Rng, stop: &CancellationToken) -> Result<()> {
        let restorations = &self.workload.calls.restorations;
        restorations.begin_snapshot();
        let snapshot = self.now();
        self.database.snapshot().await?;
        stopped_within(stop, Duration::from_millis(rng.between(SNAPSHOT_AGE.0, SNAPSHOT_AGE.1))).await;
        restorations.begin_restoration();
        let restored = self.database.restore().await;
        if restored.is_ok() {
            increment(&self.counts.restorations);
            let lost = restorations.end_restoration((snapshot, self.now()));
            tracing::info!(requests = lost.len(), "the database was restored");
            tokio::join!(self.workload.repeat(lost), self.rotate_to_newest_keys(rng));
        }
        restorations.end_repetition();
        restored
    }

    /// Gives every integration its newest key: the snapshot may hold one that was revoked since.
    async fn rotate_to_newest_keys(&self, rng: &mut Rng) {
        for organization in &self.organizations {
            // While Stripe fails, or a revoked key has no successor yet, none can be verified.
            while !rotate_to_newest_key(organization, rng).await {
                pause(Duration::from_millis(300)).await;
            }
        }
    }

    /// The time in microseconds since 1970, to the second below.
    fn now(&self) -> i64 {
        self.sandbox.seconds() * 1_000_000
    }
}

/// Returns whether the rotation was acknowledged.
async fn rotate_to_newest_key(organization: &Organization, rng: &mut Rng) -> bool {
    let secret_key = organization.keys().pop().unwrap_or_default();
    let request = RotateIntegrationKeyRequest { id: organization.integration.clone(), secret_key };
    let mut api = organization.any_api(rng).integrations;
    let rotated = tokio::time::timeout(ROTATION_TIMEOUT, api.rotate_integration_key(request)).await;
    matches!(rotated, Ok(Ok(_)))
}
