//! Timers: periodic work. Every worker process polls them, and one of them does the work.

use std::time::Duration;

use crate::app::{App, Timer};
use crate::clock::pause;

/// The shortest interval between polls of a timer, real time, however fast the clock runs.
const POLL_INTERVAL_MIN: Duration = Duration::from_millis(200);

/// The delay before a failed timer runs again, real time.
const RETRY_DELAY: Duration = Duration::from_secs(5);

/// Runs all timers for ever.
pub(super) async fn run(app: &App) {
    // Each on its own, so that a slow one delays no other.
    tokio::join!(run_timer_forever(app, Timer::Retire), run_timer_forever(app, Timer::Reconcilers));
}

async fn run_timer_forever(app: &App, timer: Timer) {
    loop {
        match app.run_timer(timer).await {
            Ok(next) => {
                tokio::join!(app.clock().sleep_until(next), pause(POLL_INTERVAL_MIN));
            }
            Err(error) => {
                if !error.is_database_unavailable() {
                    tracing::warn!(timer = timer.as_str(), %error, "a timer failed; retrying");
                }
                pause(RETRY_DELAY).await;
            }
        }
    }
}
