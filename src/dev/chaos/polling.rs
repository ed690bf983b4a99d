//! Waiting for a condition.

use std::time::{Duration, Instant};

use crate::clock::pause;

/// How long the system may take to finish what is due. Real time.
pub(super) const QUIESCE_TIMEOUT: Duration = Duration::from_mins(1);

/// Polls until `condition` returns `true`. `false`: it did not within the time.
pub(super) async fn poll_until(within: Duration, condition: impl AsyncFn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if condition().await {
            return true;
        }
        if began.elapsed() > within {
            return false;
        }
        pause(Duration::from_millis(50)).await;
    }
}
