//! How the process lives and ends.
//!
//! Actors: the *parts* (doors, worker) run as tasks under a name; two tokens tell them to stop. The flow: a SIGTERM,
//! a SIGINT, or a part that ended by itself cancels the *soft* token: stop taking new work, finish what is in hand. A
//! second signal, or the grace running out, cancels the *hard* token: drop everything now. Nothing is lost by that (P8),
//! it is only begun again elsewhere. The order within a door, health first, is the door's own matter.

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long parts may take to fall after the hard token.
const FALL_WITHIN: Duration = Duration::from_secs(2);

/// The running parts, and the tokens that stop them. Clones speak of the same process.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    soft: CancellationToken,
    hard: CancellationToken,
    parts: TaskTracker,
    failed: Arc<AtomicBool>,
    grace: Duration,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All parts finished what they had in hand.
    Orderly,
    /// A second signal came, or the grace ran out.
    Forced,
    /// A part failed, which took the others down in order.
    Failed,
}

impl From<End> for ExitCode {
    fn from(end: End) -> Self {
        if end == End::Orderly { Self::SUCCESS } else { Self::FAILURE }
    }
}

impl Lifecycle {
    /// Nothing runs yet. `grace` is the time between the soft and the hard token, in real time, because the platform
    /// that kills us reckons in it too.
    pub fn new(grace: Duration) -> Self {
        let hard = CancellationToken::new();
        let soft = hard.child_token();
        Self { soft, hard, parts: TaskTracker::new(), failed: Arc::default(), grace }
    }

    /// The time between the soft and the hard token, real time.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Canceled when no new work is to be taken. It is canceled with the hard token too.
    pub fn soft(&self) -> &CancellationToken {
        &self.soft
    }

    /// Canceled when work in hand is to be dropped.
    pub fn hard(&self) -> &CancellationToken {
        &self.hard
    }

    /// Runs a part. It should end, with `Ok`, some time after the soft token; ending before that, an error or a panic
    /// shuts the process down, so that the platform starts a whole one in its place. The hard token drops it.
    pub fn spawn(&self, name: &'static str, part: impl Future<Output = Result<()>> + Send + 'static) {
        let guard = Guard { name, soft: self.soft.clone(), failed: Arc::clone(&self.failed), ended: false };
        let hard = self.hard.clone();
        self.parts.spawn(async move {
            let mut guard = guard;
            tokio::select! {
                ended = part => guard.ended(ended),
                () = hard.cancelled() => guard.ended = true,
            }
        });
    }

    /// Waits for the end: a signal or a part's failure, then the parts, within the grace. Call it once, after the parts
    /// were spawned. An error means that signals can't be received.
    pub async fn run(self) -> Result<End> {
        Ok(self.run_with(signals()?).await)
    }

    /// Ends now, as after a signal: for those who run several lives in one process.
    pub async fn stop(self) -> End {
        // Kept, so that no signal comes, instead of the end of all signals.
        let (_none, signals) = mpsc::channel(1);
        self.soft.cancel();
        self.run_with(signals).await
    }

    async fn run_with(self, mut signals: mpsc::Receiver<&'static str>) -> End {
        tokio::select! {
            Some(name) = signals.recv() => tracing::info!("{name}: shutting down, work in hand has {:?}", self.grace),
            () = self.soft.cancelled() => tracing::info!("shutting down, work in hand has {:?}", self.grace),
        }
        self.soft.cancel();
        self.parts.close();
        let orderly = tokio::select! {
            () = self.parts.wait() => true,
            Some(name) = signals.recv() => {
                tracing::warn!("{name} again: dropping work in hand");
                false
            }
            () = after(self.grace) => {
                tracing::warn!("work in hand was not finished within {:?}: dropping it", self.grace);
                false
            }
        };
        self.hard.cancel();
        if tokio::time::timeout(FALL_WITHIN, self.parts.wait()).await.is_err() {
            tracing::error!("{} parts don't stop, leaving them", self.parts.len());
        }
        match (self.failed.load(Ordering::Acquire), orderly) {
            (true, _) => End::Failed,
            (false, true) => End::Orderly,
            (false, false) => End::Forced,
        }
    }
}

/// Real time, unlike the clock's: a platform's deadline doesn't pass faster in `dev`.
async fn after(period: Duration) {
    // A future that never ends, under a timeout, which therefore always strikes.
    let _ = tokio::time::timeout(period, std::future::pending::<()>()).await;
}

/// Notices how a part ends, also when it panics: then only `drop` runs.
struct Guard {
    name: &'static str,
    soft: CancellationToken,
    failed: Arc<AtomicBool>,
    ended: bool,
}

impl Guard {
    fn ended(&mut self, ended: Result<()>) {
        self.ended = match ended {
            Ok(()) if self.soft.is_cancelled() => true,
            Ok(()) => {
                tracing::error!(part = self.name, "a part of the service ended by itself");
                false
            }
            Err(error) => {
                tracing::error!(part = self.name, "a part of the service failed: {error:#}");
                false
            }
        };
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.ended {
            self.failed.store(true, Ordering::Release);
        }
        self.soft.cancel();
    }
}

/// The names of the signals that ask us to end, as they come.
fn signals() -> Result<mpsc::Receiver<&'static str>> {
    let listen = |kind| signal(kind).context("cannot receive signals");
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let (send, receive) = mpsc::channel(2);
    tokio::spawn(async move {
        loop {
            let name = tokio::select! {
                _ = terminate.recv() => "SIGTERM",
                _ = interrupt.recv() => "SIGINT",
            };
            if send.send(name).await.is_err() {
                return;
            }
        }
    });
    Ok(receive)
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const LONG: Duration = Duration::from_mins(10);

    /// Ends, with `Ok`, some time after the soft token.
    async fn polite(soft: CancellationToken) -> Result<()> {
        soft.cancelled().await;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn stubborn() -> Result<()> {
        std::future::pending().await
    }

    fn start(grace: Duration) -> (Lifecycle, mpsc::Sender<&'static str>, mpsc::Receiver<&'static str>) {
        let (send, signals) = mpsc::channel(4);
        (Lifecycle::new(grace), send, signals)
    }

    #[tokio::test]
    async fn one_signal_ends_polite_parts_in_order() {
        let (life, send, signals) = start(LONG);
        life.spawn("polite", polite(life.soft().clone()));
        send.send("SIGTERM").await.unwrap();
        let hard = life.hard().clone();
        assert_eq!(life.run_with(signals).await, End::Orderly);
        assert!(hard.is_cancelled());
    }

    #[tokio::test]
    async fn a_life_can_be_ended_without_a_signal() {
        let life = Lifecycle::new(LONG);
        life.spawn("polite", polite(life.soft().clone()));
        assert_eq!(life.stop().await, End::Orderly);
    }

    #[tokio::test]
    async fn a_second_signal_drops_work_in_hand() {
        let (life, send, signals) = start(LONG);
        let (held, dropped) = oneshot::channel::<()>();
        life.spawn("stubborn", async move {
            let _held = held;
            stubborn().await
        });
        let soft = life.soft().clone();
        let running = tokio::spawn(life.run_with(signals));
        send.send("SIGINT").await.unwrap();
        soft.cancelled().await;
        assert!(!running.is_finished(), "work in hand is waited for");
        send.send("SIGINT").await.unwrap();
        assert_eq!(running.await.unwrap(), End::Forced);
        assert!(dropped.await.is_err(), "the part was dropped");
    }

    #[tokio::test]
    async fn the_grace_ends_what_does_not_end_by_itself() {
        let (life, send, signals) = start(Duration::from_millis(20));
        life.spawn("stubborn", stubborn());
        send.send("SIGTERM").await.unwrap();
        assert_eq!(life.run_with(signals).await, End::Forced);
    }

    #[tokio::test]
    async fn a_part_that_fails_takes_the_others_down_in_order() {
        let failures: [fn() -> Result<()>; 3] = [|| Ok(()), || anyhow::bail!("port taken"), || panic!("a bug")];
        for failure in failures {
            let (life, _send, signals) = start(LONG);
            life.spawn("polite", polite(life.soft().clone()));
            life.spawn("failing", async move { failure() });
            assert_eq!(life.run_with(signals).await, End::Failed);
        }
    }

    #[tokio::test]
    async fn a_real_signal_is_received() {
        let life = Lifecycle::new(LONG);
        let signals = signals().unwrap();
        life.spawn("polite", polite(life.soft().clone()));
        #[cfg(feature = "dev")]
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        #[cfg(not(feature = "dev"))]
        life.soft().cancel();
        assert_eq!(life.run_with(signals).await, End::Orderly);
    }
}
