//! An embedded Postgres for `paybridge dev`, `paybridge demo` and the tests.
//!
//! The *server* is the `postgres` program of this machine; the *supervisor* is a thread that started it and waits for
//! its exit; [`Postgres`] is the handle. A start finds the programs ([`install`]) or fetches them ([`fetch`]), locks
//! the folder and cleans up after an earlier server ([`folder`]), creates the database files if there are none, starts
//! the server and waits until it is ready.
//!
//! The server listens on a Unix socket in a folder that only its own account may enter, and on no TCP port unless one
//! is given, so it cannot conflict with another server. It is durable unless [`Options::durable`] is off. It never
//! outlives this process: it is stopped by [`Postgres::stop`], when the handle is dropped, and, if this process is
//! killed, by the death signal that the kernel sends. Linux only.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use self::folder::{Account, LockedFolder};
use self::installation::Installation;
pub(super) use self::process::end_with_parent;
use self::process::last_lines;

mod fetch;
mod folder;
mod install;
mod installation;
mod process;
#[cfg(test)]
mod tests;

/// How long a server may take to become ready, including crash recovery.
const READY_TIMEOUT: Duration = Duration::from_mins(2);
/// How long orphaned processes of a killed server may hold its shared memory.
const ORPHANS_TIMEOUT: Duration = Duration::from_secs(20);
/// How often the server's state file is read while waiting.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// The signals to stop a server with (fast shutdown, immediate shutdown, kill), and the timeout of each.
const STOP_SIGNALS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(30)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(5)),
];
/// What the server logs when processes of the previous server still run.
const ORPHANS_MESSAGE: &str = "pre-existing shared memory block";

/// How a server is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Whether a commit survives a crash of the machine. `false` turns fsync off, which is faster.
    pub durable: bool,
    /// Whether to delete the data in the folder and start with an empty database.
    pub fresh: bool,
    /// The folder of `postgres` and `initdb`. `None` uses the newest installed version, else fetched programs.
    pub programs: Option<PathBuf>,
    /// A port of 127.0.0.1 to listen on as well, for what a Unix socket cannot do, such as TLS.
    pub tcp_port: Option<u16>,
}

impl Default for Options {
    /// Durable, keeps existing data, and uses the programs that `PAYBRIDGE_POSTGRES_PROGRAMS` names, so that all tests
    /// can run on a chosen version.
    fn default() -> Self {
        let programs = std::env::var_os("PAYBRIDGE_POSTGRES_PROGRAMS").filter(|folder| !folder.is_empty());
        Self { durable: true, fresh: false, programs: programs.map(PathBuf::from), tcp_port: None }
    }
}

/// A running server. Dropping it stops the server, which blocks for about 0.1 s.
#[derive(Debug)]
pub struct Postgres {
    server: Arc<Server>,
    folder: LockedFolder,
    programs: PathBuf,
}

impl Postgres {
    /// Starts a server with its files in `folder`. The folder is created if it does not exist and must hold nothing
    /// else.
    ///
    /// Blocks for about 0.1 s, for 1 s if the folder is new, and longer while programs are fetched: use
    /// `spawn_blocking` in async code. Errors are written for the person at the terminal: Postgres is neither installed
    /// nor fetchable, another process uses the folder, or the server failed, with the end of its log.
    pub fn start(folder: &Path, options: &Options) -> Result<Self> {
        let installed = install::find(options.programs.as_deref())?;
        let folder = LockedFolder::acquire(folder, options.tcp_port)?;
        folder.wait_for_previous_server()?;
        if options.fresh {
            folder.remove_data()?;
        }
        let programs = install::choose(&installed, folder.data_version()?)?;
        if folder.data_version()?.is_none() {
            initialize_data(programs, &folder, options.durable)?;
        }
        let deadline = Instant::now() + ORPHANS_TIMEOUT;
        loop {
            folder.remove_stale_locks()?;
            match launch(programs, &folder, options) {
                Ok(server) => return Ok(Self { server, folder, programs: programs.programs.clone() }),
                Err(Failure::Orphans) if Instant::now() < deadline => thread::park_timeout(POLL_INTERVAL * 10),
                Err(Failure::Orphans) => bail!(
                    "processes of an earlier Postgres server still use {}; stop them and try again",
                    folder.data().display()
                ),
                Err(Failure::Other(error)) => return Err(error),
            }
        }
    }

    /// The connection string of `database` for the superuser `postgres`, as `key=value` pairs.
    pub fn connection_string(&self, database: &str) -> String {
        self.connection_string_as("postgres", database)
    }

    /// The connection string of `database` for `role`. There are no passwords: whoever can reach the socket is trusted.
    pub fn connection_string_as(&self, role: &str, database: &str) -> String {
        let (socket, port) = (self.folder.socket_folder().display(), self.folder.port());
        format!("host={socket} port={port} user={} dbname={}", quote(role), quote(database))
    }

    /// The folder of the files: the requested one, or a fallback if the server's account cannot enter that.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folder of the server's programs. An installation has `psql`, `pgbench` and others there; fetched programs
    /// include only `postgres` and `initdb` for certain.
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// The server's log file.
    pub fn log_file(&self) -> PathBuf {
        self.folder.log_file()
    }

    /// The server's process id.
    pub fn pid(&self) -> u32 {
        self.server.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Crashes the server: sessions are cut, and the next start recovers what was committed. `Signal::QUIT` is
    /// Postgres' immediate shutdown, `Signal::KILL` a kill.
    pub fn crash(self, signal: Signal) -> Result<()> {
        self.server.signal(signal);
        let timeout = Duration::from_secs(10);
        let exited = self.server.wait(timeout);
        exited.map(|_| ()).with_context(|| format!("Postgres did not exit within {timeout:?} after {signal:?}"))
    }

    /// The Unix socket that the server listens on.
    pub fn socket_file(&self) -> PathBuf {
        self.folder.socket_file()
    }

    /// Stops the server: open transactions are rolled back, committed ones are on disk. Returns an error if it had to
    /// be killed; the next start then runs crash recovery.
    pub fn stop(self) -> Result<()> {
        self.server.stop()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Err(error) = self.server.stop() {
            tracing::warn!("{error:#}");
        }
        self.folder.remove_socket_folder();
    }
}

/// The server's process, shared by the handle and the supervisor.
#[derive(Debug)]
struct Server {
    pid: Pid,
    /// How the process exited. Signals are sent only under this lock and while it is empty, and the supervisor reaps
    /// the process under it, so that no signal reaches another process with the same id.
    exit: Mutex<Option<String>>,
    exited: Condvar,
}

impl Server {
    fn signal(&self, signal: Signal) {
        let exit = self.exit.lock();
        if exit.is_none() {
            // Fails only if the process has exited, which the following wait notices.
            let _ = kill_process(self.pid, signal);
        }
    }

    fn wait(&self, timeout: Duration) -> Option<String> {
        let mut exit = self.exit.lock();
        self.exited.wait_while_for(&mut exit, |exit| exit.is_none(), timeout);
        exit.clone()
    }

    fn stop(&self) -> Result<()> {
        for (nth, (signal, timeout)) in STOP_SIGNALS.into_iter().enumerate() {
            self.signal(signal);
            if self.wait(timeout).is_some() {
                return if nth == 0 {
                    Ok(())
                } else {
                    Err(anyhow!("Postgres did not stop in time and was stopped by {signal:?}"))
                };
            }
        }
        bail!("Postgres (process {}) does not exit; kill it", self.pid)
    }
}

enum Failure {
    /// Processes of a killed server still hold its shared memory; they exit within seconds.
    Orphans,
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

/// Creates the database files in a temporary folder and renames it, so that a kill leaves nothing half done.
fn initialize_data(programs: &Installation, folder: &LockedFolder, durable: bool) -> Result<()> {
    tracing::info!(folder = %folder.path().display(), "creating a Postgres data folder");
    let unfinished = folder.prepare_unfinished()?;
    let mut command = command(&programs.initdb(), folder.account());
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
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{} failed ({}): {}", programs.initdb().display(), output.status, stderr.trim());
    }
    std::fs::rename(&unfinished, folder.data()).context("cannot rename the new Postgres data folder")
}

fn launch(programs: &Installation, folder: &LockedFolder, options: &Options) -> Result<Arc<Server>, Failure> {
    let log = folder.open_log()?;
    let log_start = log.metadata().map_err(anyhow::Error::from)?.len();
    let server = supervise(server_command(programs, folder, options, log))?;
    let deadline = Instant::now() + READY_TIMEOUT;
    loop {
        if folder.is_ready(server.pid) {
            return Ok(server);
        }
        if let Some(exit) = server.wait(POLL_INTERVAL) {
            let output = log_since(&folder.log_file(), log_start);
            if output.contains(ORPHANS_MESSAGE) {
                return Err(Failure::Orphans);
            }
            return Err(
                anyhow!("Postgres did not start ({exit}). Its log ends with:\n{}", last_lines(&output, 12)).into()
            );
        }
        if Instant::now() > deadline {
            let output = log_since(&folder.log_file(), log_start);
            let stopped = server.stop();
            let text = format!(
                "Postgres was not ready after {READY_TIMEOUT:?}. Its log ends with:\n{}",
                last_lines(&output, 12)
            );
            return Err(stopped
                .err()
                .map_or_else(|| anyhow!(text.clone()), |error| error.context(text.clone()))
                .into());
        }
    }
}

fn server_command(programs: &Installation, folder: &LockedFolder, options: &Options, log: File) -> Command {
    let mut command = command(&programs.postgres(), folder.account());
    command.arg("-D").arg(folder.data()).arg("-k").arg(folder.socket_folder()).args(["-p", &folder.port().to_string()]);
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
    // A process group of its own: ^C at the terminal reaches this process first, which stops the server after its last
    // client.
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
    end_with_parent(&mut command, Signal::INT);
    command
}

/// Clears the environment, which may hold secrets, and runs in `/`, which every account may enter.
fn command(program: &Path, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid);
    }
    command
}

/// Starts the server on a thread that lives as long as the server, because the death signal is tied to that thread.
fn supervise(mut command: Command) -> Result<Arc<Server>> {
    let (sender, receiver) = mpsc::channel();
    let supervisor = move || match start(&mut command) {
        Err(error) => drop(sender.send(Err(error))),
        Ok((child, server)) => {
            // The receiver may be gone; the server must be reaped all the same.
            let _ = sender.send(Ok(Arc::clone(&server)));
            reap(child, &server);
        }
    };
    thread::Builder::new().name("postgres-supervisor".to_owned()).spawn(supervisor).context("cannot start a thread")?;
    receiver.recv().context("the thread that starts Postgres failed")?
}

fn start(command: &mut Command) -> Result<(Child, Arc<Server>)> {
    let child = command.spawn().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    let pid = Pid::from_child(&child);
    Ok((child, Arc::new(Server { pid, exit: Mutex::new(None), exited: Condvar::new() })))
}

fn reap(mut child: Child, server: &Server) {
    // Waits without reaping first: until the process is reaped, its id is not reused.
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(server.pid), options), Err(rustix::io::Errno::INTR)) {}
    let mut exit = server.exit.lock();
    *exit = Some(match child.wait() {
        Ok(status) => status.signal().map_or_else(|| status.to_string(), |signal| format!("killed by signal {signal}")),
        Err(error) => error.to_string(),
    });
    server.exited.notify_all();
}

fn log_since(file: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut log = File::open(file)?;
        log.seek(SeekFrom::Start(start))?;
        let mut output = Vec::new();
        log.take(64 * 1024).read_to_end(&mut output)?;
        Ok(output)
    };
    read().map_or_else(|error| error.to_string(), |output| String::from_utf8_lossy(&output).into_owned())
}

/// Quotes a value of a connection string.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}
