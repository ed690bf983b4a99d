//! Waiting for conditions, in real time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use paybridge::clock::pause;

use crate::support::harness::Harness;

/// The longest that a test waits for a condition, in real time.
pub const PATIENCE: Duration = Duration::from_secs(45);
const POLL_INTERVAL: Duration = Duration::from_millis(25);

/// Polls until there is a value. `what` completes "timed out waiting until …".
pub async fn until<T>(what: &str, mut poll: impl AsyncFnMut() -> Option<T>) -> T {
    until_ok(what, async || poll().await.ok_or_else(|| "not yet".to_owned())).await
}

/// Like [`until`]; a timeout shows the last error.
pub async fn until_ok<T>(what: &str, mut poll: impl AsyncFnMut() -> Result<T, String>) -> T {
    let began = Instant::now();
    loop {
        match poll().await {
            Ok(value) => return value,
            Err(error) => assert!(began.elapsed() < PATIENCE, "timed out waiting until {what}: {error}"),
        }
        pause(POLL_INTERVAL).await;
    }
}

/// Like [`until`], and advances the clock by `step` between polls.
pub async fn advance_until<T>(
    harness: &mut Harness,
    step: time::Duration,
    what: &str,
    mut poll: impl AsyncFnMut(&mut Harness) -> Option<T>,
) -> T {
    until(what, async || {
        let value = poll(harness).await;
        if value.is_none() {
            harness.advance_slowly(step);
        }
        value
    })
    .await
}

/// When a clock was last advanced while something was waited for.
#[derive(Default)]
pub struct Pace(Mutex<Option<Instant>>);

impl Pace {
    /// Whether the servers have had 100 ms to act on the last step.
    pub fn allows_step(&self) -> bool {
        let mut last = self.0.lock().expect("no panic while it was held");
        let is_allowed = last.is_none_or(|last| last.elapsed() >= Duration::from_millis(100));
        if is_allowed {
            *last = Some(Instant::now());
        }
        is_allowed
    }
}
