//! The processes under test: real `paybridge serve` and `paybridge worker` processes, each watched by a *keeper*, a
//! thread that starts it again as soon as it has ended, however it ended. A *watcher* task measures how long each new
//! life takes to be ready.
//!
//! Every process listens on the same two ports in all its lives, below the ports that the kernel gives to outgoing
//! connections, so that nobody takes them while it is dead.

use std::fs::{File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

use super::{lock, pause, until};
use crate::crash::{self, Point};
use crate::dev::postgres::end_with_us;
use crate::dev::rng::Rng;

/// How long a process that ended by itself, not by a signal, waits for its next life.
const AFTER_OWN_END: Duration = Duration::from_millis(200);
/// How often a new life is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// A process dies when it passes a point for the nth time; n is at most this.
const PASSES_MAX: u64 = 60;
/// How long all processes may take to be ready at first.
const READY_WITHIN: Duration = Duration::from_mins(1);
/// How long an orderly end may take, which is more than the grace that the processes are given.
const END_WITHIN: Duration = Duration::from_secs(20);

/// What a process is started with, besides its own ports.
pub(super) struct Launch {
    /// What they are called.
    pub name: &'static str,
    /// This program.
    pub program: PathBuf,
    /// Environment variables that are the same in every life.
    pub environment: Vec<(&'static str, String)>,
    /// Where logs go.
    pub logs: PathBuf,
    /// The value of `PAYBRIDGE_CLOCK`, which changes when time is moved.
    pub clock: Mutex<String>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// Has doors, and works.
    Both,
    /// Has doors only.
    Doors,
    /// Works only.
    Worker,
}

impl Role {
    /// Of three, one does both, one has doors and one works; two do both.
    fn of(number: usize, count: usize) -> Self {
        match number % 3 {
            2 if count > 2 => Self::Doors,
            0 => Self::Worker,
            _ => Self::Both,
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Both => &["serve"],
            Self::Doors => &["serve", "--worker-concurrency", "0"],
            Self::Worker => &["worker"],
        }
    }
}

/// One place in which one process after the other lives.
pub(super) struct Replica {
    number: usize,
    role: Role,
    pub grpc: SocketAddr,
    pub http: SocketAddr,
    inner: Mutex<Inner>,
    lives: watch::Sender<Life>,
}

struct Inner {
    /// Empty while no process lives. Signals are sent under this lock, and a process is collected under it, so that none
    /// reaches a stranger with the same id.
    pid: Option<Pid>,
    /// While it is there, every life is born with a trap that this draws.
    traps: Option<Rng>,
    is_wanted: bool,
}

/// A life of a process.
#[derive(Clone, Copy, Debug)]
struct Life {
    number: u32,
    began: Instant,
    is_ready: bool,
}

/// All processes.
#[derive(Clone)]
pub(super) struct Replicas {
    pub all: Arc<Vec<Arc<Replica>>>,
    launch: Arc<Launch>,
    records: Arc<Mutex<Records>>,
}

/// What was measured and noticed.
#[derive(Default)]
pub(super) struct Records {
    /// From a process' start until it was ready.
    pub ready_after: Vec<Duration>,
    /// Ends that no signal caused, and how.
    pub own_ends: Vec<String>,
}

impl Replica {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// Sends a signal, if a process lives. Tells whether one does.
    pub fn signal(&self, signal: Signal) -> bool {
        let inner = self.lock();
        inner.pid.is_some_and(|pid| kill_process(pid, signal).is_ok())
    }

    /// From its next life on every life dies at a point of the code, drawn from `traps`; with `None` no more do.
    pub fn set_traps(&self, traps: Option<Rng>) {
        self.lock().traps = traps;
    }

    pub fn is_ready(&self) -> bool {
        self.lives.borrow().is_ready
    }
}

impl Replicas {
    /// Starts `count` processes; returns at once.
    pub fn start(count: usize, launch: Launch, rng: &mut Rng) -> Result<Self> {
        let replica = |number, ports: (u16, u16)| {
            let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            let life = Life { number: 0, began: Instant::now(), is_ready: false };
            let inner = Mutex::new(Inner { pid: None, traps: None, is_wanted: true });
            let role = Role::of(number, count);
            Arc::new(Replica {
                number,
                role,
                grpc: at(ports.0),
                http: at(ports.1),
                inner,
                lives: watch::Sender::new(life),
            })
        };
        let mut all = Vec::new();
        for number in 1..=count {
            all.push(replica(number, (free_port(rng)?, free_port(rng)?)));
        }
        let replicas = Self { all: Arc::new(all), launch: Arc::new(launch), records: Arc::default() };
        for replica in replicas.all.iter() {
            tokio::spawn(watch_lives(Arc::clone(replica), Arc::clone(&replicas.records)));
            replicas.keep(replica)?;
        }
        Ok(replicas)
    }

    /// Starts the keeper of a place.
    fn keep(&self, replica: &Arc<Replica>) -> Result<()> {
        let (replica, launch, records) = (Arc::clone(replica), Arc::clone(&self.launch), Arc::clone(&self.records));
        let log = log_file(&launch.logs, launch.name, replica.number)?;
        let work = move || {
            loop {
                match live(&replica, &launch, &log) {
                    End::Wanted => return,
                    End::Told => {}
                    End::Own(how) => {
                        let end = format!("replica {} ended by itself: {how}", replica.number);
                        lock(&records).own_ends.push(end);
                        thread::park_timeout(AFTER_OWN_END);
                    }
                }
            }
        };
        thread::Builder::new().name("replica-keeper".to_owned()).spawn(work).context("cannot start a thread")?;
        Ok(())
    }

    /// Those that take calls and webhooks.
    pub fn doors(&self) -> impl Iterator<Item = &Arc<Replica>> {
        self.all.iter().filter(|replica| replica.role != Role::Worker)
    }

    /// Waits until all are ready.
    pub async fn all_ready(&self) -> Result<()> {
        let ready = until(READY_WITHIN, async || self.all.iter().all(|replica| replica.is_ready())).await;
        if !ready {
            bail!("the processes were not ready within {READY_WITHIN:?}; see {}", self.launch.logs.display());
        }
        Ok(())
    }

    /// How many are ready now.
    pub fn ready(&self) -> usize {
        self.all.iter().filter(|replica| replica.is_ready()).count()
    }

    /// Kills all of them and lets them begin again with this clock.
    pub async fn begin_again(&self, clock: String) -> Result<()> {
        *lock(&self.launch.clock) = clock;
        let before: Vec<u32> = self.all.iter().map(|replica| replica.lives.borrow().number).collect();
        for replica in self.all.iter() {
            replica.set_traps(None);
            replica.signal(Signal::KILL);
        }
        let begun = async || self.all.iter().zip(&before).all(|(it, before)| it.lives.borrow().number > *before);
        until(READY_WITHIN, begun).await;
        self.all_ready().await
    }

    /// Lets all of them end in order, and waits. `false`: some had to be killed.
    pub async fn end(&self) -> bool {
        for replica in self.all.iter() {
            replica.lock().is_wanted = false;
            replica.signal(Signal::CONT);
            replica.signal(Signal::TERM);
        }
        let gone = async || self.all.iter().all(|replica| replica.lock().pid.is_none());
        let is_orderly = until(END_WITHIN, gone).await;
        for replica in self.all.iter() {
            replica.signal(Signal::KILL);
        }
        is_orderly
    }

    /// Reads what was measured so far.
    pub fn records<T>(&self, read: impl FnOnce(&Records) -> T) -> T {
        read(&lock(&self.records))
    }
}

/// How a life ended.
enum End {
    /// As it should: no more are wanted.
    Wanted,
    /// As it was told to: killed, or asked to end.
    Told,
    /// Otherwise.
    Own(String),
}

/// One life, from its start to its end.
fn live(replica: &Replica, launch: &Launch, log: &File) -> End {
    let mut inner = replica.lock();
    if !inner.is_wanted {
        return End::Wanted;
    }
    let trap = inner.traps.as_mut().map(draw_trap);
    let (Ok(out), Ok(err)) = (log.try_clone(), log.try_clone()) else {
        return End::Own("its log can't be opened".to_owned());
    };
    let mut command = Command::new(&launch.program);
    command
        .args(replica.role.arguments())
        .env_clear()
        .envs(launch.environment.iter().map(|(name, value)| (name, value)))
        .env("PAYBRIDGE_CLOCK", lock(&launch.clock).as_str())
        .env("PAYBRIDGE_GRPC_LISTEN", replica.grpc.to_string())
        .env("PAYBRIDGE_HTTP_LISTEN", replica.http.to_string())
        .envs(trap.map(|trap| (crash::VARIABLE, trap)))
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err);
    end_with_us(&mut command, Signal::KILL);
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => return End::Own(error.to_string()),
    };
    let pid = Pid::from_child(&child);
    inner.pid = Some(pid);
    drop(inner);
    replica.lives.send_modify(|life| {
        *life = Life { number: life.number + 1, began: Instant::now(), is_ready: false };
    });
    // Waits without collecting first: while the process is uncollected, its id is nobody else's.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(pid), options), Err(rustix::io::Errno::INTR)) {}
    let mut inner = replica.lock();
    inner.pid = None;
    let end = child.wait();
    let is_wanted = inner.is_wanted;
    drop(inner);
    replica.lives.send_modify(|life| life.is_ready = false);
    match end {
        Ok(_) if !is_wanted => End::Wanted,
        Ok(status) if status.signal().is_some() || status.success() => End::Told,
        Ok(status) => End::Own(status.to_string()),
        Err(error) => End::Own(error.to_string()),
    }
}

/// A point, and how often it is passed: the last time is the end.
fn draw_trap(rng: &mut Rng) -> String {
    format!("{}:{}", rng.pick(&Point::ALL).name(), rng.between(1, PASSES_MAX))
}

/// Asks every new life until it is ready.
async fn watch_lives(replica: Arc<Replica>, records: Arc<Mutex<Records>>) {
    let Ok(client) = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(1)).build() else { return };
    let url = format!("http://{}/readyz", replica.http);
    let mut lives = replica.lives.subscribe();
    loop {
        let life = *lives.borrow_and_update();
        if life.number > 0 && !life.is_ready {
            let answer = client.get(&url).send().await;
            if answer.is_ok_and(|answer| answer.status().is_success()) {
                let took = life.began.elapsed();
                replica.lives.send_modify(|now| now.is_ready |= now.number == life.number);
                lock(&records).ready_after.push(took);
                continue;
            }
            pause(ASK_EVERY).await;
        } else if lives.changed().await.is_err() {
            return;
        }
    }
}

/// The log of a place; all lives write to one file.
fn log_file(logs: &Path, name: &str, number: usize) -> Result<File> {
    let path = logs.join(format!("{name}-{number}.log"));
    let opened = OpenOptions::new().create(true).append(true).open(&path);
    opened.with_context(|| format!("{} can't be written", path.display()))
}

/// A port that nobody listens on, and that the kernel gives to no outgoing connection.
fn free_port(rng: &mut Rng) -> Result<u16> {
    for _ in 0..1_000 {
        let port = u16::try_from(rng.between(10_000, 32_000))?;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no free port was found")
}
