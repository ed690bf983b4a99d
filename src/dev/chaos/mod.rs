//! `paybridge chaos`: breaks everything that can break, and shows that no money was taken twice and nothing was lost.
//!
//! Actors: the *replicas* are real `paybridge serve` processes; Postgres is real, too; the sandbox stands for Stripe, in
//! this process, so that nothing under test can influence it. *Callers* and *people* play the billing systems and those
//! around them by a seeded *plan*; *subscribers* follow the logs; the *book* keeps what they were told. The *storm* rages
//! over all of it. Then it ends, days pass until the banks have answered, the system has to come to rest, and the
//! *checker* compares what the sandbox, the database and the book hold.

mod book;
mod callers;
mod checker;
mod dashboard;
mod database;
mod evidence;
mod measures;
mod moves;
mod people;
mod plan;
mod proxy;
mod replicas;
mod report;
mod rest;
mod setup;
mod storm;
mod subscribers;
mod time;
mod watcher;
mod workload;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::book::Book;
use self::callers::Organization;
use self::database::Database;
use self::evidence::Evidence;
use self::measures::Measures;
use self::proxy::Proxy;
use self::replicas::Replicas;
use self::storm::{Counts, Storm};
use self::subscribers::{Subscriber, Temper};
use self::time::Time;
use self::watcher::Watcher;
use self::workload::Workload;
use crate::clock::pause;
use crate::config;
use crate::dev::rng::Rng;
use crate::dev::sandbox::Sandbox;

/// A key that seals what is of no worth; it must not stand in any log all the same.
const SEAL_KEY: [u8; 32] = *b"paybridge-chaos-seals-no-secrets";
/// The storm lasts at least this long, so that each of its kinds has struck.
const STORM_MIN: Duration = Duration::from_secs(40);
/// Which part of a run's time may pass before the storm is ended, whatever is unsettled, in percent.
const STORM_PERCENT_MAX: u32 = 65;
/// How long the system may take to do what is due, real time.
const REST_WITHIN: Duration = Duration::from_mins(1);
/// A run, set up.
struct Run {
    settings: config::Chaos,
    seed: u64,
    time: Time,
    began: Instant,
    folder: PathBuf,
    database: Arc<Database>,
    sandbox: Sandbox,
    stripe: Proxy,
    webhooks: Proxy,
    replicas: Replicas,
    organizations: Vec<Arc<Organization>>,
    book: Arc<Book>,
    backlog: Arc<AtomicUsize>,
    workload: Arc<Workload>,
    watcher: Arc<Watcher>,
    counts: Arc<Counts>,
    phase: Mutex<&'static str>,
    /// What did not come to its end in time.
    unrest: Mutex<Vec<String>>,
}

/// Runs it, prints what happens, and succeeds only if nothing was breached.
pub async fn run_chaos(settings: config::Chaos) -> Result<ExitCode> {
    let seed = settings.seed.unwrap_or_else(Rng::fresh_seed);
    println!(
        "paybridge chaos: seed {seed}, {} payments, {} replicas, faults {}%, a kill every {:?}; the clock runs {} times as \
         fast as the machine's",
        settings.payments, settings.replicas, settings.faults, settings.kill_every, settings.clock_speed
    );
    let folder = tempfile::Builder::new().prefix("paybridge-chaos-").tempdir()?;
    // Postgres may run under another account than ours, and has to come by.
    std::fs::set_permissions(folder.path(), Permissions::from_mode(0o711))?;
    let began = Instant::now();
    let ended = async {
        let run = Run::set_up(settings, seed, folder.path()).await?;
        let ended = run.play().await;
        finish(&run, ended).await
    };
    let ended = ended.await;
    if matches!(ended, Ok(true)) {
        println!("\nNo breach after {:.0} s, with seed {seed}.", began.elapsed().as_secs_f32());
        return Ok(ExitCode::SUCCESS);
    }
    let kept = folder.keep();
    println!("\nSeed {seed}. The logs, every breach and the database are kept in {}.", kept.display());
    ended.map(|_| ExitCode::FAILURE)
}

/// Judges, prints the verdict, and stops what still runs. `true`: no breach.
async fn finish(run: &Run, ended: Result<Measures>) -> Result<bool> {
    let measures = ended.unwrap_or_else(|error| {
        run.note(format!("the run broke off: {error:#}"));
        Measures::default()
    });
    // What falls due after this, while the processes end, is nobody's to do.
    let ended_at = run.time.seconds();
    if !run.replicas.end().await {
        run.note("a process did not end in order".to_owned());
    }
    let evidence = run.evidence(ended_at).await;
    let stopped = run.database.stop().await;
    run.sandbox.stop().await;
    let evidence = evidence?;
    let verdicts = checker::judge(&evidence);
    stopped?;
    print!("{}", report::table(&verdicts));
    run.print_measures(&measures, &evidence);
    let is_whole = verdicts.iter().all(|verdict| verdict.breaches.is_empty());
    if !is_whole {
        std::fs::write(run.folder.join("breaches.txt"), report::all_breaches(&verdicts))?;
    }
    Ok(is_whole)
}

impl Run {
    fn phase(&self) -> &'static str {
        *lock(&self.phase)
    }

    fn enter(&self, phase: &'static str) {
        *lock(&self.phase) = phase;
    }

    fn note(&self, unrest: String) {
        lock(&self.unrest).push(unrest);
    }

    /// The run itself, while a line a second tells how it goes.
    async fn play(&self) -> Result<Measures> {
        let left = self.settings.within.saturating_sub(self.began.elapsed());
        tokio::select! {
            ended = self.act() => ended,
            () = report::tell(self) => bail!("nobody tells any more"),
            () = pause(left) => bail!("it was not over after {:?}", self.settings.within),
            _ = tokio::signal::ctrl_c() => bail!("it was interrupted"),
        }
    }

    async fn act(&self) -> Result<Measures> {
        let (events, heard) = mpsc::unbounded_channel();
        let (subscribers, hang_up) = (TaskTracker::new(), CancellationToken::new());
        for (number, organization) in self.organizations.iter().enumerate() {
            for temper in [Temper::Billing(events.clone()), Temper::Slow, Temper::Restless] {
                let subscriber = Subscriber::new(organization, number, temper, &self.book, self.seed);
                subscribers.spawn(subscriber.follow(hang_up.clone()));
            }
        }
        drop(events);
        tokio::spawn(Arc::clone(&self.workload).act_on(heard));
        tokio::spawn(Arc::clone(&self.watcher).watch(self.sandbox.clone()));

        self.storm().await;
        self.enter("calm");
        self.come_to_rest().await?;
        self.enter("measure");
        let measures = self.measure().await?;
        self.enter("days");
        self.let_days_pass().await?;
        self.enter("rest");
        if !until(REST_WITHIN, async || self.all_read().await).await {
            self.note(format!("not every subscriber has read the whole log after {REST_WITHIN:?}"));
        }
        // Reconcilers end and begin all the time; but one whose process was killed at the last move of the clock is held
        // until its lease has run out.
        let is_free = async || {
            self.leases().await.is_ok_and(|held| held == 0) && self.open_jobs().await.is_ok_and(|jobs| jobs == 0)
        };
        if !until(REST_WITHIN, is_free).await {
            self.note(format!("there was no moment without a lease in {REST_WITHIN:?}"));
        }
        hang_up.cancel();
        subscribers.close();
        subscribers.wait().await;
        Ok(measures)
    }

    /// The storm, for as long as invoices are given in and settled under it.
    async fn storm(&self) {
        let storm = Arc::new(Storm {
            seed: self.seed,
            faults: self.settings.faults,
            kill_every: self.settings.kill_every,
            clock_speed: self.settings.clock_speed,
            replicas: self.replicas.clone(),
            database: Arc::clone(&self.database),
            sandbox: self.sandbox.clone(),
            stripe: self.stripe.clone(),
            webhooks: self.webhooks.clone(),
            organizations: self.organizations.clone(),
            counts: Arc::clone(&self.counts),
        });
        let stop = CancellationToken::new();
        let _ends_with_us = stop.clone().drop_guard();
        let raging = tokio::spawn(storm.rage(stop.clone()));
        let began = Instant::now();
        let at_most = (self.settings.within * STORM_PERCENT_MAX / 100).saturating_sub(self.began.elapsed());
        if tokio::time::timeout(at_most, self.workload.give_all_in(STORM_MIN * 4 / 5)).await.is_err() {
            self.note(format!("not every invoice was answered within {at_most:?}"));
        }
        pause(STORM_MIN.saturating_sub(began.elapsed())).await;
        stop.cancel();
        let _ = raging.await;
        // The last stroke, which also removes a trap that is still set.
        if let Err(error) = self.replicas.begin_again(self.time.setting()).await {
            self.note(format!("{error:#}"));
        }
    }

    /// All that the witnesses say; jobs are judged by when they should have run before `ended_at`, unix seconds.
    async fn evidence(&self, ended_at: i64) -> Result<Evidence> {
        let mut evidence = Evidence::default();
        let client = self.database.connect().await?;
        #[expect(clippy::cast_precision_loss, reason = "a second more or less does not matter")]
        let now = ended_at as f64;
        evidence.read_database(&client, now).await?;
        evidence.read_sandbox(&self.sandbox, &self.organizations);
        (evidence.invoices, evidence.readers, evidence.outside) = self.book.read();
        (evidence.sightings, evidence.looks) = self.watcher.read();
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
        evidence.unrest.clone_from(&lock(&self.unrest));
        Ok(evidence)
    }

    fn print_measures(&self, measures: &Measures, evidence: &Evidence) {
        let shown = |time: &Option<Duration>| {
            time.map_or("not measured".to_owned(), |time| format!("{:.2} s", time.as_secs_f32()))
        };
        println!("\nRecovery, in real time:");
        println!(
            "  from a process' start to its being ready: {}",
            self.replicas.records(|it| report::spread(&it.ready_after))
        );
        println!("  from kill -9 of one to its work being taken up: {}", shown(&measures.take_over));
        println!("  from Postgres' restart to the first accepted payment: {}", shown(&measures.accept_after_postgres));
        println!("  from Stripe's return to the first settled payment: {}", shown(&measures.settle_after_stripe));
        let points = evidence.crash_points.iter().map(|(point, count)| format!("{point} {count}"));
        println!("Processes died at these points of the code: {}", points.collect::<Vec<_>>().join(", "));
        let by_hand = self.workload.paid_by_hand.load(Ordering::Relaxed);
        println!(
            "Clerks paid {by_hand} of our intents by hand, and made {} of their own.",
            evidence.outside.beside.len()
        );
        println!("The most memory of this process, sandbox and all: {}", report::memory());
        for end in self.replicas.records(|it| it.own_ends.clone()) {
            println!("  {end}");
        }
    }
}

/// What a mutex guards, also after a holder has panicked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Looks until it is so, or the time is over. `false`: it never was.
async fn until(within: Duration, is_so: impl AsyncFn() -> bool) -> bool {
    let began = Instant::now();
    loop {
        if is_so().await {
            return true;
        }
        if began.elapsed() > within {
            return false;
        }
        pause(Duration::from_millis(50)).await;
    }
}
