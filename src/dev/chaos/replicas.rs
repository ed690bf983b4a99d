//! The processes under test: real `paybridge serve` and `paybridge worker` processes. Each has a *supervisor*, a thread
//! that restarts it whenever it exits, and a task that measures how long each new incarnation takes to become ready.
//!
//! All incarnations of a process listen on the same two ports. They are below the range that the kernel uses for
//! outgoing connections, so nobody takes them while the process is down.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use strum::VariantArray as _;
use tokio::sync::watch;

use super::polling::poll_until;
use crate::clock::pause;
use crate::dev::postgres::end_with_parent;
use crate::dev::rng::Rng;
use crate::failpoints::{self, Failpoint};

/// The pause before the restart of a process that exited on its own.
const RESTART_DELAY: Duration = Duration::from_millis(200);
/// The interval of the readiness probes of a new incarnation.
const PROBE_INTERVAL: Duration = Duration::from_millis(10);
/// A process crashes when it passes its failpoint for the nth time; n is at most this.
const PASSES_MAX: u64 = 60;
/// How long all processes may take to become ready.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a graceful shutdown may take, more than the grace period of the processes.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// The settings of a process, besides its ports.
pub(super) struct Launch {
    /// The name in the log files.
    pub name: &'static str,
    /// The program to start.
    pub program: PathBuf,
    /// Environment variables that are the same for every incarnation.
    pub environment: Vec<(&'static str, String)>,
    /// The folder of the log files.
    pub logs: PathBuf,
    /// The value of `PAYBRIDGE_CLOCK`, which changes when the clock is moved.
    pub clock: Mutex<String>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Serves the API and webhooks, and runs jobs.
    ApiAndWorker,
    /// Serves the API and webhooks only.
    Api,
    /// Runs jobs only.
    Worker,
}

impl Role {
    /// Of three processes, one has each role. With fewer than three, every process does both.
    fn of(number: usize, count: usize) -> Self {
        match number % 3 {
            2 if count > 2 => Self::Api,
            0 => Self::Worker,
            _ => Self::ApiAndWorker,
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::ApiAndWorker => &["serve"],
            Self::Api => &["serve", "--worker-concurrency", "0"],
            Self::Worker => &["worker"],
        }
    }
}

/// A supervised process, across restarts.
pub(super) struct Replica {
    number: usize,
    role: Role,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    inner: Mutex<Inner>,
    incarnations: watch::Sender<Incarnation>,
}

struct Inner {
    /// `None` while no process runs. Signals are sent under this lock, and a process is reaped under it, so that no
    /// signal reaches another process with the same id.
    pid: Option<Pid>,
    /// While present, every new incarnation gets a random failpoint.
    failpoints: Option<Rng>,
    should_run: bool,
}

/// One incarnation of a process.
#[derive(Clone, Copy, Debug)]
struct Incarnation {
    number: u32,
    began: Instant,
    is_ready: bool,
}

/// All processes under test.
#[derive(Clone)]
pub(super) struct Replicas {
    pub all: Arc<Vec<Arc<Replica>>>,
    launch: Arc<Launch>,
    records: Arc<Mutex<Records>>,
}

/// What was measured and observed.
#[derive(Default)]
pub(super) struct Records {
    /// The times from a process start to readiness.
    pub ready_after: Vec<Duration>,
    /// Exits that no signal caused, with their status.
    pub unexpected_exits: Vec<String>,
}

impl Replica {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Sends a signal. Returns whether a process was running.
    pub fn signal(&self, signal: Signal) -> bool {
        let inner = self.lock();
        inner.pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// Makes every later incarnation crash at a random failpoint. `None` turns that off.
    pub fn set_failpoints(&self, failpoints: Option<Rng>) {
        self.lock().failpoints = failpoints;
    }

    pub fn is_ready(&self) -> bool {
        self.incarnations.borrow().is_ready
    }
}

impl Replicas {
    /// Starts `count` processes. Returns before they are ready.
    pub fn start(count: usize, launch: Launch, rng: &mut Rng) -> Result<Self> {
        let replica = |number, ports: (u16, u16)| {
            let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let incarnation = Incarnation { number: 0, began: Instant::now(), is_ready: false };
            let inner = Mutex::new(Inner { pid: None, failpoints: None, should_run: true });
            let role = Role::of(number, count);
            Arc::new(Replica {
                number,
                role,
                grpc: at(ports.0),
                http: at(ports.1),
                inner,
                incarnations: watch::Sender::new(incarnation),
            })
        };
        let mut all = Vec::new();
        for number in 1..=count {
            all.push(replica(number, (free_port(rng)?, free_port(rng)?)));
        }
        let replicas = Self { all: Arc::new(all), launch: Arc::new(launch), records: Arc::default() };
        for replica in replicas.all.iter() {
            tokio::spawn(probe_readiness(Arc::clone(replica), Arc::clone(&replicas.records)));
            replicas.supervise(replica)?;
        }
        Ok(replicas)
    }

    /// Starts the supervisor of a process.
    fn supervise(&self, replica: &Arc<Replica>) -> Result<()> {
        let (replica, launch, records) = (Arc::clone(replica), Arc::clone(&self.launch), Arc::clone(&self.records));
        let log = log_file(&launch.logs, launch.name, replica.number)?;
        let supervisor = move || {
            loop {
                match run_once(&replica, &launch, &log) {
                    Exit::Stopped => return,
                    Exit::Signaled => {}
                    Exit::Unexpected(status) => {
                        let exit = format!("replica {} exited on its own: {status}", replica.number);
                        records.lock().unexpected_exits.push(exit);
                        thread::park_timeout(RESTART_DELAY);
                    }
                }
            }
        };
        thread::Builder::new()
            .name("replica-supervisor".to_owned())
            .spawn(supervisor)
            .context("cannot start a thread")?;
        Ok(())
    }

    /// The processes that serve the API and webhooks.
    pub fn serving(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.all.iter().filter(|replica| replica.role != Role::Worker)
    }

    /// Waits until all processes are ready.
    pub async fn wait_until_ready(&self) -> Result<()> {
        let ready = poll_until(READY_TIMEOUT, async || self.all.iter().all(|replica| replica.is_ready())).await;
        if !ready {
            bail!("the processes were not ready within {READY_TIMEOUT:?}; see {}", self.launch.logs.display());
        }
        Ok(())
    }

    /// The number of ready processes.
    pub fn ready_count(&self) -> usize {
        self.all.iter().filter(|replica| replica.is_ready()).count()
    }

    /// Kills all processes and restarts them with this clock.
    pub async fn restart_all(&self, clock: String) -> Result<()> {
        *self.launch.clock.lock() = clock;
        let before: Vec<u32> = self.all.iter().map(|replica| replica.incarnations.borrow().number).collect();
        for replica in self.all.iter() {
            replica.set_failpoints(None);
            replica.signal(Signal::KILL);
        }
        let restarted =
            async || self.all.iter().zip(&before).all(|(it, before)| it.incarnations.borrow().number > *before);
        poll_until(READY_TIMEOUT, restarted).await;
        self.wait_until_ready().await
    }

    /// Stops all processes gracefully. `false`: some had to be killed.
    pub async fn stop(&self) -> bool {
        for replica in self.all.iter() {
            replica.lock().should_run = false;
            replica.signal(Signal::CONT);
            replica.signal(Signal::TERM);
        }
        let exited = async || self.all.iter().all(|replica| replica.lock().pid.is_none());
        let is_graceful = poll_until(STOP_TIMEOUT, exited).await;
        for replica in self.all.iter() {
            replica.signal(Signal::KILL);
        }
        is_graceful
    }

    /// Reads what was measured so far.
    pub fn records<T>(&self, read: impl FnOnce(&Records) -> T) -> T {
        read(&self.records.lock())
    }
}

/// How an incarnation exited.
enum Exit {
    /// The process is stopped for good.
    Stopped,
    /// By a signal, or successfully.
    Signaled,
    /// On its own, with this status.
    Unexpected(String),
}

/// Runs one incarnation until it exits.
fn run_once(replica: &Replica, launch: &Launch, log: &File) -> Exit {
    let mut inner = replica.lock();
    if !inner.should_run {
        return Exit::Stopped;
    }
    let failpoint = inner.failpoints.as_mut().map(draw_failpoint);
    let (Ok(out), Ok(err)) = (log.try_clone(), log.try_clone()) else {
        return Exit::Unexpected("its log cannot be opened".to_owned());
    };
    let mut command = Command::new(&launch.program);
    command
        .args(replica.role.arguments())
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .env("PAYBRIDGE_CLOCK", launch.clock.lock().as_str())
        .env("PAYBRIDGE_GRPC_LISTEN", replica.grpc.to_string())
        .env("PAYBRIDGE_HTTP_LISTEN", replica.http.to_string())
        .envs(failpoint.map(|failpoint| (failpoints::VARIABLE, failpoint)))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    end_with_parent(&mut command, Signal::KILL);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return Exit::Unexpected(error.to_string()),
    };
    let pid = Pid::from_child(&child);
    inner.pid = Some(pid);
    drop(inner);
    replica.incarnations.send_modify(|incarnation| {
        *incarnation = Incarnation { number: incarnation.number + 1, began: Instant::now(), is_ready: false };
    });
    // Waits without reaping first: until the process is reaped, its id is not reused.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
    let mut inner = replica.lock();
    inner.pid = None;
    let exit = child.wait();
    let should_run = inner.should_run;
    drop(inner);
    replica.incarnations.send_modify(|incarnation| incarnation.is_ready = false);
    match exit {
        Ok(_) if !should_run => Exit::Stopped,
        Ok(status) if status.signal().is_some() || status.success() => Exit::Signaled,
        Ok(status) => Exit::Unexpected(status.to_string()),
        Err(error) => Exit::Unexpected(error.to_string()),
    }
}

/// Draws a failpoint, and how often it is passed before the crash.
fn draw_failpoint(rng: &mut Rng) -> String {
    format!("{}:{}", rng.pick(Failpoint::VARIANTS).as_str(), rng.between(1, PASSES_MAX))
}

/// Probes every new incarnation until it is ready.
async fn probe_readiness(replica: Arc<Replica>, records: Arc<Mutex<Records>>) {
    let Ok(client) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build() else { return };
    let url = format!("http://{}/readyz", replica.http);
    let mut incarnations = replica.incarnations.subscribe();
    loop {
        let incarnation = *incarnations.borrow_and_update();
        if incarnation.number > 0 && !incarnation.is_ready {
            let response = client.get(&url).send().await;
            if response.is_ok_and(|response| response.status().is_success()) {
                let took = incarnation.began.elapsed();
                replica.incarnations.send_modify(|now| now.is_ready |= now.number == incarnation.number);
                records.lock().ready_after.push(took);
                continue;
            }
            pause(PROBE_INTERVAL).await;
        } else if incarnations.changed().await.is_err() {
            return;
        }
    }
}

/// Opens the log file of a process. All incarnations append to it.
fn log_file(logs: &Path, name: &str, number: usize) -> Result<File> {
    let path = logs.join(format!("{name}-{number}.log"));
    let opened = OpenOptions::new().create(true).append(true).open(&path);
    opened.with_context(|| format!("{} cannot be written", path.display()))
}

/// Finds a port that nobody listens on and that the kernel uses for no outgoing connection.
fn free_port(rng: &mut Rng) -> Result<u16> {
    for _ in 0..1_000 {
        let port = u16::try_from(rng.between(10_000, 32_000))?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port was found")
}
