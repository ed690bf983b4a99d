//! `paybridge chaos`: breaks everything that can break, and checks that no money was taken twice and nothing was lost.
//!
//! The *replicas* are real `paybridge serve` and `paybridge worker` processes. Postgres is real, too. The sandbox
//! stands in for Stripe, in this process, so that nothing under test can influence it. *Callers* and other *actors*
//! play billing systems, payers and Stripe Dashboard users by a seeded *plan*; *subscribers* follow the event logs; the
//! *history* records what they observed. The *fault injector* disturbs all of it. Then the faults stop, the clock is
//! moved until the banks have answered, the system has to become quiescent, and the *checker* compares the sandbox, the
//! database and the history.

mod actors;
mod callers;
mod checker;
mod dashboard;
mod database;
mod evidence;
mod faults;
mod history;
mod monitor;
mod operations;
mod plan;
mod polling;
mod proxy;
mod quiescence;
mod recovery;
mod repetition;
mod replicas;
mod report;
mod requests;
mod restorations;
mod restoring;
mod run;
mod setup;
mod subscribers;
mod time;
mod workload;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::evidence::Evidence;
use self::faults::FaultInjector;
use self::polling::{QUIESCE_TIMEOUT, poll_until};
use self::recovery::RecoveryTimes;
use self::run::Run;
use self::setup::SEAL_KEY;
use self::subscribers::{Subscriber, SubscriberKind};
use crate::clock::pause;
use crate::config;
use crate::dev::rng::Rng;

/// The faults last at least this long, so that each kind of fault occurs.
const FAULTS_MIN: Duration = Duration::from_secs(40);
/// The share of a run's time after which the faults stop, whatever is unsettled, in percent.
const FAULTS_PERCENT_MAX: u32 = 65;

/// Runs the workload and the checks, prints what happens, and succeeds only without a violation.
pub async fn run_chaos(settings: config::Chaos) -> Result<ExitCode> {
    let seed = settings.seed.unwrap_or_else(Rng::fresh_seed);
    println!(
        "paybridge chaos: seed {seed}, {} payments, {} replicas, faults {}%, a kill every {:?}, a restoration every \
         {:?}, clock speed {}",
        settings.payments,
        settings.replicas,
        settings.faults,
        settings.kill_every,
        settings.restore_every,
        settings.clock_speed
    );
    let folder = tempfile::Builder::new().prefix("paybridge-chaos-").tempdir()?;
    // Postgres may run as another account, which has to enter this folder.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
    let began = Instant::now();
    let ended = async {
        let run = Run::set_up(settings, seed, folder.path()).await?;
        let ended = run.run_to_end().await;
        finish(&run, ended).await
    };
    let ended = ended.await;
    if matches!(ended, Ok(true)) {
        println!("\nNo violation after {:.0} s, with seed {seed}.", began.elapsed().as_secs_f32());
        return Ok(ExitCode::SUCCESS);
    }
    let folder = folder.keep();
    println!("\nSeed {seed}. The logs, all violations and the database are kept in {}.", folder.display());
    ended.map(|_| ExitCode::FAILURE)
}

/// Stops what still runs, checks the evidence and prints the results. `true`: no violation.
async fn finish(run: &Run, ended: Result<RecoveryTimes>) -> Result<bool> {
    let recovery_times = ended.unwrap_or_else(|error| {
        run.add_incomplete(format!("the run failed: {error:#}"));
        RecoveryTimes::default()
    });
    // Jobs that become due after this, while the processes stop, are not counted.
    let ended_at = run.time.seconds();
    if !run.replicas.stop().await {
        run.add_incomplete("a process did not shut down gracefully".to_owned());
    }
    let evidence = run.evidence(ended_at).await;
    let stopped = run.database.stop().await;
    run.sandbox.stop().await;
    let evidence = evidence?;
    let results = checker::check(&evidence);
    stopped?;
    print!("{}", report::table(&results));
    run.print_recovery_times(&recovery_times, &evidence);
    let is_clean = results.iter().all(|result| result.violations.is_empty());
    if !is_clean {
        std::fs::write(run.folder.join("violations.txt"), report::all_violations(&results))?;
    }
    Ok(is_clean)
}

impl Run {
    /// Runs all phases within the time limit, and prints a line a second.
    async fn run_to_end(&self) -> Result<RecoveryTimes> {
        let left = self.settings.time_limit.saturating_sub(self.began.elapsed());
        tokio::select! {
            ended = self.run_phases() => ended,
            () = report::print_progress(self) => bail!("the progress report stopped"),
            () = pause(left) => bail!("it was not finished after {:?}", self.settings.time_limit),
            _ = tokio::signal::ctrl_c() => bail!("it was interrupted"),
        }
    }

    async fn run_phases(&self) -> Result<RecoveryTimes> {
        let (events, received) = mpsc::unbounded_channel();
        let (subscribers, stop_following) = (TaskTracker::new(), CancellationToken::new());
        for (number, organization) in self.organizations.iter().enumerate() {
            for kind in [SubscriberKind::Billing(events.clone()), SubscriberKind::Slow, SubscriberKind::Reconnecting] {
                let subscriber = Subscriber::new(organization, number, kind, &self.history, self.seed);
                subscribers.spawn(subscriber.follow(stop_following.clone()));
            }
        }
        drop(events);
        tokio::spawn(Arc::clone(&self.workload).handle_events(received));
        tokio::spawn(Arc::clone(&self.monitor).run(self.sandbox.clone()));

        self.inject_faults().await;
        self.set_phase("recover");
        self.wait_until_caught_up().await;
        self.quiesce().await?;
        self.set_phase("measure");
        let recovery_times = self.measure().await?;
        self.set_phase("days");
        self.advance_until_settled().await?;
        self.set_phase("settle");
        if !poll_until(QUIESCE_TIMEOUT, async || self.all_caught_up().await).await {
            self.add_incomplete(format!("not every subscriber had read the whole log after {QUIESCE_TIMEOUT:?}"));
        }
        // Reconcilers start and finish all the time. But one whose process was killed when the clock was last moved
        // keeps its lease until that expires.
        let is_free = async || {
            self.held_leases().await.is_ok_and(|held| held == 0) && self.open_jobs().await.is_ok_and(|jobs| jobs == 0)
        };
        if !poll_until(QUIESCE_TIMEOUT, is_free).await {
            self.add_incomplete(format!("jobs were leased at every moment for {QUIESCE_TIMEOUT:?}"));
        }
        stop_following.cancel();
        subscribers.close();
        subscribers.wait().await;
        Ok(recovery_times)
    }

    /// Injects faults while invoices are submitted and settled.
    async fn inject_faults(&self) {
        let injector = Arc::new(FaultInjector {
            seed: self.seed,
            faults: self.settings.faults,
            kill_every: self.settings.kill_every,
            restore_every: self.settings.restore_every,
            clock_speed: self.settings.clock_speed,
            replicas: self.replicas.clone(),
            database: Arc::clone(&self.database),
            sandbox: self.sandbox.clone(),
            stripe: self.stripe.clone(),
            webhooks: self.webhooks.clone(),
            organizations: self.organizations.clone(),
            workload: Arc::clone(&self.workload),
            counts: Arc::clone(&self.counts),
        });
        let stop = CancellationToken::new();
        let _stops_on_drop = stop.clone().drop_guard();
        let injecting = tokio::spawn(injector.run(stop.clone()));
        let began = Instant::now();
        let at_most = (self.settings.time_limit * FAULTS_PERCENT_MAX / 100).saturating_sub(self.began.elapsed());
        if tokio::time::timeout(at_most, self.workload.submit_invoices(FAULTS_MIN * 4 / 5)).await.is_err() {
            self.add_incomplete(format!("not every invoice was accepted within {at_most:?}"));
        }
        pause(FAULTS_MIN.saturating_sub(began.elapsed())).await;
        stop.cancel();
        let _ = injecting.await;
        // The last restart also removes a failpoint that is still set.
        if let Err(error) = self.replicas.restart_all(self.time.setting()).await {
            self.add_incomplete(format!("{error:#}"));
        }
    }

    /// Collects all evidence. Jobs are judged by when they should have run before `ended_at`, in Unix seconds.
    async fn evidence(&self, ended_at: i64) -> Result<Evidence> {
        let mut evidence = Evidence::default();
        let client = self.database.connect().await?;
        #[expect(clippy::cast_precision_loss, reason = "one second more or less does not matter")]
        let now = ended_at as f64;
        evidence.read_database(&client, now).await?;
        evidence.read_sandbox(&self.sandbox, &self.organizations);
        (evidence.invoices, evidence.subscribers, evidence.external) = self.history.read();
        (evidence.overlaps, evidence.samples) = self.monitor.read();
        let mut secrets = vec![
            ("the encryption key".to_owned(), STANDARD.encode(SEAL_KEY)),
            ("the encryption key, in plain".to_owned(), String::from_utf8_lossy(&SEAL_KEY).into_owned()),
        ];
        for organization in &self.organizations {
            secrets.push((format!("the token of {}", organization.id), organization.token.clone()));
            let keys = organization.keys().into_iter();
            secrets.extend(keys.map(|key| (format!("a key of {}", organization.account), key)));
        }
        for entry in std::fs::read_dir(self.folder.join("logs"))? {
            evidence.read_log(&entry?.path(), &secrets)?;
        }
        if let Some(log) = self.database.log_file().await {
            evidence.read_log(&log, &secrets)?;
        }
        evidence.incomplete.clone_from(&self.incomplete.lock());
        evidence.lost_periods = self.workload.calls.restorations.lost_periods();
        evidence.unknown_sessions.clone_from(&self.unknown_sessions.lock());
        Ok(evidence)
    }

    fn print_recovery_times(&self, recovery_times: &RecoveryTimes, evidence: &Evidence) {
        let format_time = |time: &Option<Duration>| {
            time.map_or("not measured".to_owned(), |time| format!("{:.2} s", time.as_secs_f32()))
        };
        println!("\nRecovery, in real time:");
        println!(
            "  from a process start to readiness: {}",
            self.replicas.records(|it| report::format_spread(&it.ready_after))
        );
        println!("  from kill -9 of a process to the takeover of its jobs: {}", format_time(&recovery_times.take_over));
        println!(
            "  from the restart of Postgres to the first accepted payment: {}",
            format_time(&recovery_times.accept_after_postgres)
        );
        println!(
            "  from the end of a Stripe outage to the first settled payment: {}",
            format_time(&recovery_times.settle_after_stripe)
        );
        let crashes = evidence.failpoint_crashes.iter().map(|(point, count)| format!("{point} {count}"));
        println!("Crashes at failpoints: {}", crashes.collect::<Vec<_>>().join(", "));
        let paid_in_dashboard = self.workload.paid_in_dashboard.load(Ordering::Relaxed);
        println!(
            "In the Stripe Dashboard, {paid_in_dashboard} of our PaymentIntents were paid and {} others created.",
            evidence.external.dashboard_intents.len()
        );
        println!("Peak memory of this process, including the sandbox: {}", report::peak_memory());
        for exit in self.replicas.records(|it| it.unexpected_exits.clone()) {
            println!("  {exit}");
        }
    }
}
