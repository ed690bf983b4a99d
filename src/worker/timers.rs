//! Timers: what is done by the clock alone. All processes that work look at them, and one of them does it.

use std::time::Duration;

use crate::app::{App, Timer};
use crate::clock::pause;

/// The least pause between looks at a timer, real time, however fast the clock runs.
const LOOK_AFTER: Duration = Duration::from_millis(200);

/// How soon a timer is looked at again whose work could not be done, real time.
const TRY_AGAIN: Duration = Duration::from_secs(5);

/// Runs all timers, for ever.
pub(super) async fn run(app: &App) {
    // Each by itself, so that a long one holds up no other.
    tokio::join!(follow(app, Timer::Retire), follow(app, Timer::Reconcilers));
}

async fn follow(app: &App, timer: Timer) {
    loop {
        match app.run_timer(timer).await {
            Ok(next) => {
                tokio::join!(app.clock().sleep_until(next), pause(LOOK_AFTER));
            }
            Err(error) => {
                if !error.is_database_away() {
                    tracing::warn!(timer = timer.as_str(), %error, "a timer's work could not be done; trying again");
                }
                pause(TRY_AGAIN).await;
            }
        }
    }
}
