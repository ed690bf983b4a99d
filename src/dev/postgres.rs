//! A private, real Postgres for `paybridge dev`, `paybridge demo` and the tests.
//!
//! Actors: the *server* is the `postgres` program that is installed on this machine; the *keeper* is a thread of ours
//! that started it and waits for its end; [`Postgres`] is the handle that others hold. The flow of a start: find the
//! programs ([`install`]) or fetch them ([`fetch`]), claim the folder and settle what an earlier life left in it
//! ([`place`]), make the database files if there are none, start the server, wait until it says that it is ready.
//!
//! The server listens on a Unix socket in a folder that only its own account may enter, and on no port unless one is
//! given, so it can't clash with another one. It is durable unless asked otherwise. It ends with us in every case: by
//! [`Postgres::stop`], by dropping the handle, and, when we are killed, by the death signal that the kernel sends it.
//! Linux only.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, getppid, kill_process, waitid};

use self::install::Installation;
use self::place::{Account, Place};

mod fetch;
mod install;
mod place;
#[cfg(test)]
mod tests;

/// How long a server may take to be ready. Recovery after a crash is part of it.
const READY_WITHIN: Duration = Duration::from_mins(2);
/// How long orphans of a killed server may keep its shared memory.
const ORPHANS_WITHIN: Duration = Duration::from_secs(20);
/// How often the server's state file is read while we wait.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// The three ways to stop, from polite to final, and how long each may take.
const STOPS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(30)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(5)),
];
/// What the server logs when processes of its predecessor are still there.
const ORPHANS: &str = "pre-existing shared memory block";

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a commit survives a crash of the machine. `false` turns fsync off: faster, for tests.
    pub durable: bool,
    /// Whether to throw away what the folder holds and start with an empty database.
    pub fresh: bool,
    /// The folder of `postgres` and `initdb`; absent: the newest that is installed, else those that were or are fetched.
    pub programs: Option<PathBuf>,
    /// A port of 127.0.0.1 to listen on as well, for what a Unix socket can't do, such as TLS.
    pub tcp_port: Option<u16>,
}

impl Default for Options {
    /// Durable, with what the folder holds, and with the programs that `PAYBRIDGE_POSTGRES_PROGRAMS` names, so that all
    /// tests can be run on a Postgres of choice.
    fn default() -> Self {
        let programs = std::env::var_os("PAYBRIDGE_POSTGRES_PROGRAMS").filter(|folder| !folder.is_empty());
        Self { durable: true, fresh: false, programs: programs.map(PathBuf::from), tcp_port: None }
    }
}

/// A running server. Dropping it stops the server, which blocks for as long as that takes (usually 0.1 s).
#[derive(Debug)]
pub struct Postgres {
    server: Arc<Server>,
    place: Place,
    programs: PathBuf,
}

impl Postgres {
    /// Starts a server whose files lie in `folder`, which is made if it is missing and is Postgres' alone.
    ///
    /// This call blocks, for about 0.1 s, or 1 s when the folder is new, and longer while the programs are fetched: in
    /// async code wrap it in `spawn_blocking`. Errors are sentences for the person at the terminal: no Postgres installed
    /// and none to be fetched, the folder in use (by which process), or the end of the server's log.
    pub fn start(folder: &Path, options: &Options) -> Result<Self> {
        let installed = install::find(options.programs.as_deref())?;
        let place = Place::claim(folder, options.tcp_port)?;
        place.wait_for_predecessor()?;
        if options.fresh {
            place.clear()?;
        }
        let programs = install::choose(&installed, place.data_version()?)?;
        if place.data_version()?.is_none() {
            make_files(programs, &place, options.durable)?;
        }
        let deadline = Instant::now() + ORPHANS_WITHIN;
        loop {
            place.prepare_start()?;
            match launch(programs, &place, options) {
                Ok(server) => return Ok(Self { server, place, programs: programs.programs.clone() }),
                Err(Failure::Orphans) if Instant::now() < deadline => thread::park_timeout(LOOK_EVERY * 10),
                Err(Failure::Orphans) => bail!(
                    "processes of an earlier Postgres still use {}; end them and start again",
                    place.data().display()
                ),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    /// The address of `database` for its superuser `postgres`, as `key=value` pairs that tokio-postgres understands.
    pub fn connection_string(&self, database: &str) -> String {
        self.connection_string_as("postgres", database)
    }

    /// The address of `database` for `role`. Nobody needs a password: whoever can reach the socket is trusted.
    pub fn connection_string_as(&self, role: &str, database: &str) -> String {
        let (socket, port) = (self.place.socket_folder().display(), self.place.port());
        format!("host={socket} port={port} user={} dbname={}", quoted(role), quoted(database))
    }

    /// Where the files are: the folder that was asked for, unless the server's account can't enter it.
    pub fn folder(&self) -> &Path {
        self.place.folder()
    }

    /// The folder of the programs that belong to the server. An installation has `psql`, `pgbench` and others there; of
    /// fetched programs only `postgres` and `initdb` are certain.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.place.log_file()
    }

    /// The process id of the server.
    pub fn pid(&self) -> u32 {
        self.server.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Ends the server without a word to anybody, as a crash of it would: sessions are cut, and the next start recovers
    /// what was committed. `Signal::QUIT` is Postgres' own way to do it, `Signal::KILL` asks nobody.
    pub fn crash(self, signal: Signal) -> Result<()> {
        self.server.signal(signal);
        let patience = Duration::from_secs(10);
        let ended = self.server.wait(patience);
        ended.map(|_| ()).with_context(|| format!("Postgres did not end within {patience:?} of {signal:?}"))
    }

    /// The Unix socket that the server listens on.
    pub fn socket_file(&self) -> PathBuf {
        self.place.socket_file()
    }

    /// Stops the server: open transactions are rolled back, committed ones are on disk. An error says that it had to be
    /// killed, which the next start recovers from.
    pub fn stop(self) -> Result<()> {
        self.server.stop()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.server.stop() {
            tracing::warn!("{error:#}");
        }
        self.place.leave();
    }
}

/// The server's process, shared by the handle and the keeper.
#[derive(Debug)]
struct Server {
    pid: Pid,
    /// How the process ended. Signals are sent only under this lock and while it is empty, and the keeper collects the
    /// process under it, so that a signal can never reach a stranger who was given the same id.
    end: Mutex<Option<String>>,
    ended: Condvar,
}

impl Server {
    fn end(&self) -> MutexGuard<'_, Option<String>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn signal(&self, signal: Signal) {
        let end = self.end();
        if end.is_none() {
            // It can only fail for a process that is gone, which the wait that follows finds out.
            let _ = kill_process(self.pid, signal);
        }
    }

    fn wait(&self, at_most: Duration) -> Option<String> {
        let waited = self.ended.wait_timeout_while(self.end(), at_most, |end| end.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    fn stop(&self) -> Result<()> {
        for (nth, (signal, patience)) in STOPS.into_iter().enumerate() {
            self.signal(signal);
            if self.wait(patience).is_some() {
                return if nth == 0 { Ok(()) } else { Err(anyhow!("Postgres had to be ended by {signal:?}")) };
            }
        }
        bail!("Postgres (process {}) doesn't end", self.pid)
    }
}

enum Failure {
    /// Processes of a killed server still hold its memory; they leave within seconds.
    Orphans,
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Makes the database files beside their final place and moves them there when they are whole, so that a kill in the
/// middle leaves nothing half made.
fn make_files(programs: &Installation, place: &Place, durable: bool) -> Result<()> {
    tracing::info!(folder = %place.folder().display(), "making a new Postgres data folder, this takes a second or two");
    let unfinished = place.clear_unfinished()?;
    let mut command = command(&programs.initdb(), place.account());
    command.arg("--pgdata").arg(&unfinished).args([
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--locale=C.UTF-8",
        "--data-checksums",
    ]);
    if !durable {
        command.arg("--no-sync");
    }
    let output = command.output().with_context(|| format!("cannot run {}", programs.initdb().display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", programs.initdb().display(), output.status, said.trim());
    }
    std::fs::rename(&unfinished, place.data()).context("cannot move the new Postgres data folder to its place")
}

fn launch(programs: &Installation, place: &Place, options: &Options) -> Result<Arc<Server>, Failure> {
    let log = place.open_log()?;
    let log_start = log.metadata().map_err(anyhow::Error::from)?.len();
    let server = keep(server_command(programs, place, options, log))?;
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if place.is_ready(server.pid) {
            return Ok(server);
        }
        if let Some(end) = server.wait(LOOK_EVERY) {
            let said = log_since(&place.log_file(), log_start);
            if said.contains(ORPHANS) {
                return Err(Failure::Orphans);
            }
            return Err(anyhow!("Postgres did not start ({end}); its log says:\n{}", last_lines(&said, 12)).into());
        }
        if Instant::now() > deadline {
            let said = log_since(&place.log_file(), log_start);
            let stopped = server.stop();
            let text =
                format!("Postgres was not ready after {READY_WITHIN:?}; its log says:\n{}", last_lines(&said, 12));
            return Err(stopped
                .err()
                .map_or_else(|| anyhow!(text.clone()), |error| error.context(text.clone()))
                .into());
        }
    }
}

fn server_command(programs: &Installation, place: &Place, options: &Options, log: File) -> Command {
    let mut command = command(&programs.postgres(), place.account());
    command.arg("-D").arg(place.data()).arg("-k").arg(place.socket_folder()).args(["-p", &place.port().to_string()]);
    let mut settings = vec![
        if options.tcp_port.is_some() { "listen_addresses=127.0.0.1" } else { "listen_addresses=" },
        "unix_socket_permissions=0700",
        "max_connections=200",
        "shared_buffers=32MB",
        "timezone=UTC",
        "log_timezone=UTC",
        "cluster_name=paybridge",
    ];
    if !options.durable {
        settings.extend(["fsync=off", "full_page_writes=off", "synchronous_commit=off"]);
    }
    for setting in settings {
        command.args(["-c", setting]);
    }
    // A group of its own: ^C at the terminal reaches us first, and we stop the server after its last client.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    end_with_us(&mut command, Signal::INT);
    command
}

/// Nothing of our own environment, which may hold secrets, reaches Postgres; and `/` is a folder that any account can
/// stand in.
fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Has the kernel send the child a signal (Postgres is shut down in order by SIGINT) when the thread that starts it ends,
/// which for a keeper means: when our process ends, even by kill -9.
pub(super) fn end_with_us(command: &mut Command, signal: Signal) {
    let us = rustix::process::getpid();
    let before_exec = move || {
        rustix::process::set_parent_process_death_signal(Some(signal))?;
        // We may have died between the fork and the line above; then nobody would ever send the signal.
        if getppid() == Some(us) { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
    };
    #[expect(
        unsafe_code,
        reason = "the only way to act in the child before it becomes another program. What runs there is two system calls: it \
                  takes no lock and allocates nothing, which is all that pre_exec asks for"
    )]
    unsafe {
        command.pre_exec(before_exec);
    }
}

/// Starts the server on a thread that lives as long as the server does, because the death signal is tied to that thread.
fn keep(mut command: Command) -> Result<Arc<Server>> {
    let (tell, hear) = mpsc::channel();
    let keeper = move || match start(&mut command) {
        Err(error) => drop(tell.send(Err(error))),
        Ok((child, server)) => {
            // Nobody listens any more if the starter is gone; the server must be collected all the same.
            let _ = tell.send(Ok(Arc::clone(&server)));
            collect(child, &server);
        }
    };
    thread::Builder::new().name("postgres-keeper".to_owned()).spawn(keeper).context("cannot start a thread")?;
    hear.recv().context("the thread that starts Postgres ended early")?
}

fn start(command: &mut Command) -> Result<(Child, Arc<Server>)> {
    let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let pid = Pid::from_child(&child);
    Ok((child, Arc::new(Server { pid, end: Mutex::new(None), ended: Condvar::new() })))
}

fn collect(mut child: Child, server: &Server) {
    // Waits without collecting first: while the process is uncollected, its id is nobody else's.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(server.pid), options), Err(rustix::io::Errno::INTR)) {}
    let mut end = server.end();
    *end = Some(match child.wait() {
        Ok(status) => status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}")),
        Err(error) => error.to_string(),
    });
    server.ended.notify_all();
}

fn log_since(file: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(file)?;
        log.seek(SeekFrom::Start(start))?;
        let mut said = Vec::new();
        log.take(64 * 1024).read_to_end(&mut said)?;
        Ok(said)
    };
    read().map_or_else(|error| error.to_string(), |said| String::from_utf8_lossy(&said).into_owned())
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// A value of a connection string, in quotes, with the two characters escaped that would end it.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
