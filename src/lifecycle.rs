//! Process lifecycle: signals, graceful shutdown and its deadline.
//!
//! The components of the service (listeners, worker, …) run as named tasks. Two tokens stop them. A SIGTERM, a SIGINT,
//! or a task that ends on its own cancels the *shutdown* token: take no new work and finish what is in progress. A
//! second signal, or the end of the grace period, cancels the *abort* token: drop everything now. That loses nothing
//! (P8); the work is started again elsewhere. The order of steps within a component is its own: see [`crate::server`].

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

/// How long tasks may take to end after the abort token is cancelled.
const ABORT_TIMEOUT: Duration = Duration::from_secs(2);

/// The running tasks and the tokens that stop them. Clones share both.
#[derive(Clone, Debug)]
pub struct Lifecycle {
    shutdown: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
    failed: Arc<AtomicBool>,
    grace: Duration,
}

/// How a shutdown ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Every task finished the work in progress.
    Graceful,
    /// A second signal arrived, or the grace period ended.
    Forced,
    /// A task failed, which shut the others down.
    Failed,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        if outcome == Outcome::Graceful { Self::SUCCESS } else { Self::FAILURE }
    }
}

impl Lifecycle {
    /// A lifecycle without tasks. `grace` is the time between shutdown and abort. It is real time, because the platform
    /// that kills the process uses real time.
    pub fn new(grace: Duration) -> Self {
        let abort = CancellationToken::new();
        let shutdown = abort.child_token();
        Self { shutdown, abort, tasks: TaskTracker::new(), failed: Arc::default(), grace }
    }

    /// The time between shutdown and abort, real time.
    pub fn grace(&self) -> Duration {
        self.grace
    }

    /// Cancelled when no new work may be taken; also cancelled by the abort token.
    pub fn shutdown(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Cancelled when the work in progress must be dropped.
    pub fn abort(&self) -> &CancellationToken {
        &self.abort
    }

    /// Runs a task. It must end with `Ok` after the shutdown token is cancelled. If it ends earlier, fails or panics,
    /// the process shuts down, so that the platform replaces it. The abort token drops the task.
    pub fn spawn(&self, name: &'static str, task: impl Future<Output = Result<()>> + Send + 'static) {
        let guard = TaskGuard { name, shutdown: self.shutdown.clone(), failed: Arc::clone(&self.failed), is_ok: false };
        let abort = self.abort.clone();
        self.tasks.spawn(async move {
            let mut guard = guard;
            tokio::select! {
                result = task => guard.record(result),
                () = abort.cancelled() => guard.is_ok = true,
            }
        });
    }

    /// Waits for a signal or a failed task, then shuts down within the grace period. Call it once, after the tasks were
    /// spawned. An error means that signals cannot be received.
    pub async fn run(self) -> Result<Outcome> {
        Ok(self.run_with(signals()?).await)
    }

    /// Shuts down now, as after a signal. For processes that run several lifecycles.
    pub async fn stop(self) -> Outcome {
        // The sender is kept: a closed channel would be ready at once.
        let (_sender, signals) = mpsc::channel(1);
        self.shutdown.cancel();
        self.run_with(signals).await
    }

    async fn run_with(self, mut signals: mpsc::Receiver<&'static str>) -> Outcome {
        let signal = tokio::select! {
            Some(name) = signals.recv() => Some(name),
            () = self.shutdown.cancelled() => None,
        };
        tracing::info!(signal, grace = ?self.grace, "shutting down");
        self.shutdown.cancel();
        self.tasks.close();
        let is_graceful = tokio::select! {
            () = self.tasks.wait() => true,
            Some(signal) = signals.recv() => {
                tracing::warn!(signal, "second signal: dropping the work in progress");
                false
            }
            () = after(self.grace) => {
                tracing::warn!(grace = ?self.grace, "the grace period is over: dropping the work in progress");
                false
            }
        };
        self.abort.cancel();
        if tokio::time::timeout(ABORT_TIMEOUT, self.tasks.wait()).await.is_err() {
            tracing::error!(tasks = self.tasks.len(), "tasks did not stop in time: leaving them");
        }
        match (self.failed.load(Ordering::Acquire), is_graceful) {
            (true, _) => Outcome::Failed,
            (false, true) => Outcome::Graceful,
            (false, false) => Outcome::Forced,
        }
    }
}

/// Waits in real time: a platform's deadline does not pass faster in `dev`.
async fn after(period: Duration) {
    // A timeout over a future that never completes is a sleep.
    let _ = tokio::time::timeout(period, std::future::pending::<()>()).await;
}

/// Records how a task ends. After a panic only `drop` runs.
struct TaskGuard {
    name: &'static str,
    shutdown: CancellationToken,
    failed: Arc<AtomicBool>,
    is_ok: bool,
}

impl TaskGuard {
    fn record(&mut self, result: Result<()>) {
        self.is_ok = match result {
            Ok(()) if self.shutdown.is_cancelled() => true,
            Ok(()) => {
                tracing::error!(task = self.name, "a task of the service ended on its own");
                false
            }
            Err(error) => {
                tracing::error!(task = self.name, "a task of the service failed: {error:#}");
                false
            }
        };
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        if !self.is_ok {
            self.failed.store(true, Ordering::Release);
        }
        self.shutdown.cancel();
    }
}

/// Receives the names of the signals that request a shutdown.
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

    /// Ends with `Ok` some time after the shutdown token is cancelled.
    async fn cooperative(shutdown: CancellationToken) -> Result<()> {
        shutdown.cancelled().await;
        tokio::task::yield_now().await;
        Ok(())
    }

    async fn endless() -> Result<()> {
        std::future::pending().await
    }

    fn start(grace: Duration) -> (Lifecycle, mpsc::Sender<&'static str>, mpsc::Receiver<&'static str>) {
        let (send, signals) = mpsc::channel(4);
        (Lifecycle::new(grace), send, signals)
    }

    #[tokio::test]
    async fn one_signal_ends_cooperative_tasks_gracefully() {
        let (lifecycle, send, signals) = start(LONG);
        lifecycle.spawn("cooperative", cooperative(lifecycle.shutdown().clone()));
        send.send("SIGTERM").await.unwrap();
        let abort = lifecycle.abort().clone();
        assert_eq!(lifecycle.run_with(signals).await, Outcome::Graceful);
        assert!(abort.is_cancelled());
    }

    #[tokio::test]
    async fn stop_shuts_down_without_a_signal() {
        let lifecycle = Lifecycle::new(LONG);
        lifecycle.spawn("cooperative", cooperative(lifecycle.shutdown().clone()));
        assert_eq!(lifecycle.stop().await, Outcome::Graceful);
    }

    #[tokio::test]
    async fn a_second_signal_drops_the_work_in_progress() {
        let (lifecycle, send, signals) = start(LONG);
        let (held, dropped) = oneshot::channel::<()>();
        lifecycle.spawn("endless", async move {
            let _held = held;
            endless().await
        });
        let shutdown = lifecycle.shutdown().clone();
        let running = tokio::spawn(lifecycle.run_with(signals));
        send.send("SIGINT").await.unwrap();
        shutdown.cancelled().await;
        assert!(!running.is_finished(), "the shutdown waits for the work in progress");
        send.send("SIGINT").await.unwrap();
        assert_eq!(running.await.unwrap(), Outcome::Forced);
        assert!(dropped.await.is_err(), "the task was dropped");
    }

    #[tokio::test]
    async fn the_end_of_the_grace_period_drops_tasks_that_do_not_end() {
        let (lifecycle, send, signals) = start(Duration::from_millis(20));
        lifecycle.spawn("endless", endless());
        send.send("SIGTERM").await.unwrap();
        assert_eq!(lifecycle.run_with(signals).await, Outcome::Forced);
    }

    #[tokio::test]
    async fn a_task_that_fails_shuts_the_others_down() {
        let failures: [fn() -> Result<()>; 3] = [|| Ok(()), || anyhow::bail!("port taken"), || panic!("a bug")];
        for failure in failures {
            let (lifecycle, _send, signals) = start(LONG);
            lifecycle.spawn("cooperative", cooperative(lifecycle.shutdown().clone()));
            lifecycle.spawn("failing", async move { failure() });
            assert_eq!(lifecycle.run_with(signals).await, Outcome::Failed);
        }
    }

    #[tokio::test]
    async fn a_real_signal_is_received() {
        let lifecycle = Lifecycle::new(LONG);
        let signals = signals().unwrap();
        lifecycle.spawn("cooperative", cooperative(lifecycle.shutdown().clone()));
        #[cfg(feature = "dev")]
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM).unwrap();
        #[cfg(not(feature = "dev"))]
        lifecycle.shutdown().cancel();
        assert_eq!(lifecycle.run_with(signals).await, Outcome::Graceful);
    }
}
