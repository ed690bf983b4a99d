//! The folder of an embedded Postgres: its owner, its lock, and what an earlier server left in it.
//!
//! ```text
//! folder/lock          locked (flock) by the process that runs the server; holds its id
//! folder/data/         Postgres' files; `data.unfinished` while they are being created
//! folder/run/          the socket, unless its path would be too long
//! folder/postgres.log  the server's log
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, geteuid};
use sha2::{Digest, Sha256};

/// The port number in the socket's name if the server listens on no TCP port.
const PORT: u16 = 5432;
/// The kernel's limit for the path of a socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A larger log is truncated at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long the server of a killed process may take to shut down.
const PREVIOUS_SERVER_TIMEOUT: Duration = Duration::from_secs(30);
/// Where the files go if we are root and the server's account cannot enter the requested folder.
pub(super) const FALLBACK_FOLDER: &str = "/var/lib/paybridge";

/// The account that the server runs as if we are root, because Postgres refuses to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Any account but root: it owns nothing.
pub(super) const OTHER_ACCOUNT: Account = Account { uid: u32::MAX, gid: u32::MAX };

/// A folder that this process has locked: no other process starts a server in it until the value is dropped.
#[derive(Debug)]
pub(super) struct LockedFolder {
    path: PathBuf,
    account: Option<Account>,
    socket_folder: PathBuf,
    port: u16,
    _lock: File,
}

impl LockedFolder {
    /// Creates the folder if it does not exist, gives it to the server's account and locks it. `tcp_port` is the port
    /// that the server will listen on, if any.
    pub(super) fn acquire(requested: &Path, tcp_port: Option<u16>) -> Result<Self> {
        let cannot = || format!("cannot use the folder {} for Postgres", requested.display());
        fs::create_dir_all(requested).with_context(cannot)?;
        let mut folder = requested.canonicalize().with_context(cannot)?;
        let mut account = if geteuid().is_root() { Some(account_for(&folder)?) } else { None };
        if account.is_some_and(|account| !is_reachable(&folder, account)) {
            let fallback = fallback_folder(&folder)?;
            tracing::info!(
                "Postgres cannot run as root, and its account cannot enter {}; its files are in {}",
                folder.display(),
                fallback.display()
            );
            account = Some(account_for(&fallback)?);
            folder = fallback;
        }
        let lock = acquire_lock(&folder)?;
        make_private(&folder, account).with_context(cannot)?;
        let socket_folder = socket_folder(&folder, account)?;
        Ok(Self { path: folder, account, socket_folder, port: tcp_port.unwrap_or(PORT), _lock: lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }

    pub(super) fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// The server's port number, which is also part of the socket's name.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn socket_file(&self) -> PathBuf {
        self.socket_folder.join(format!(".s.PGSQL.{}", self.port))
    }

    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    pub(super) fn log_file(&self) -> PathBuf {
        self.path.join("postgres.log")
    }

    /// The major version that created the files, or `None` if there are none.
    pub(super) fn data_version(&self) -> Result<Option<u32>> {
        match fs::read_to_string(self.data().join("PG_VERSION")) {
            Ok(text) => text.trim().parse().map(Some).context("PG_VERSION in the data folder is not a number"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read the Postgres data folder"),
        }
    }

    /// Deletes the database files.
    pub(super) fn remove_data(&self) -> Result<()> {
        remove_folder(&self.data())
    }

    /// Deletes what an interrupted first start left. Returns the folder to create the files in.
    pub(super) fn prepare_unfinished(&self) -> Result<PathBuf> {
        let unfinished = self.path.join("data.unfinished");
        remove_folder(&unfinished)?;
        // Without PG_VERSION it holds nothing that Postgres could open.
        remove_folder(&self.data())?;
        Ok(unfinished)
    }

    /// Opened by this process, which passes it to the server as standard error.
    pub(super) fn open_log(&self) -> Result<File> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.with_context(|| format!("cannot write {}", self.log_file().display()))?;
        if log.metadata()?.len() > LOG_BYTES_MAX {
            log.set_len(0)?;
        }
        Ok(log)
    }

    /// Waits for a server whose parent was killed, which is shutting down. If a server of another owner keeps running
    /// here, returns an error.
    pub(super) fn wait_for_previous_server(&self) -> Result<()> {
        let deadline = Instant::now() + PREVIOUS_SERVER_TIMEOUT;
        while let Some(pid) = self.running_server() {
            if Instant::now() > deadline {
                bail!(
                    "another Postgres server (process {pid}) uses {}; stop it, or choose another folder",
                    self.data().display()
                );
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Removes stale files that would prevent a start. Postgres itself handles a lock file whose process has exited; it
    /// is misled only by a zombie, or by another process with the same id.
    pub(super) fn remove_stale_locks(&self) -> Result<()> {
        if let Some(pid) = self.postmaster_pid()
            && self.running_server().is_none()
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            fs::remove_file(self.postmaster_pid_file()).context("cannot remove the stale lock file of Postgres")?;
        }
        for file in [self.socket_file(), self.socket_file().with_extension(format!("{}.lock", self.port))] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the server with this id reports, in line 8 of its lock file, that it accepts connections.
    pub(super) fn is_ready(&self, pid: Pid) -> bool {
        let Ok(text) = fs::read_to_string(self.postmaster_pid_file()) else { return false };
        let mut lines = text.lines();
        let is_same = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid.as_raw_nonzero().get());
        is_same && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    /// Removes the socket folder if it is outside of this one.
    pub(super) fn remove_socket_folder(&self) {
        if !self.socket_folder.starts_with(&self.path) {
            // A leftover in the temporary folder does no harm.
            let _ = fs::remove_dir_all(&self.socket_folder);
        }
    }

    fn postmaster_pid_file(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn postmaster_pid(&self) -> Option<u32> {
        fs::read_to_string(self.postmaster_pid_file()).ok()?.lines().next()?.trim().parse().ok()
    }

    fn running_server(&self) -> Option<u32> {
        self.postmaster_pid().filter(|pid| is_server_of(*pid, &self.data()))
    }
}

/// Whether the process is a live Postgres server of `data`. One whose working directory we may not read counts as one.
fn is_server_of(pid: u32, data: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((name, rest)) = stat.rsplit_once(')') else { return false };
    let is_dead = matches!(rest.trim_start().chars().next(), Some('Z' | 'X'));
    let is_postgres = name.ends_with("(postgres") || name.ends_with("(postmaster");
    !is_dead && is_postgres && fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |folder| folder == data)
}

/// Locks the folder. The kernel releases the lock when the process exits, however it exits.
fn acquire_lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let cannot = || format!("cannot lock {} (does the folder belong to another user?)", path.display());
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut owner = String::new();
            file.read_to_string(&mut owner)?;
            bail!(
                "process {} already runs Postgres in {}; stop it, or choose another folder",
                owner.trim(),
                folder.display()
            );
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
    }
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())?;
    Ok(file)
}

/// The account that owns existing files, so that whoever created them can still read them; else `postgres`, else
/// `nobody`.
fn account_for(folder: &Path) -> Result<Account> {
    for existing in [folder.join("data"), folder.to_owned()] {
        if let Ok(metadata) = fs::metadata(existing)
            && metadata.uid() != 0
        {
            return Ok(Account { uid: metadata.uid(), gid: metadata.gid() });
        }
    }
    let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let found = ["postgres", "nobody"].into_iter().find_map(|name| account_named(&accounts, name));
    found.context(
        "Postgres cannot run as root, and there is no account `postgres` or `nobody` to run it; create one of them",
    )
}

fn account_named(passwd: &str, name: &str) -> Option<Account> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?;
    let uid = fields.nth(2)?.parse().ok()?;
    Some(Account { uid, gid: fields.next()?.parse().ok()? })
}

/// Whether `account` may enter every parent of this folder. The usual obstacle is a home folder of mode 0700.
pub(super) fn is_reachable(folder: &Path, account: Account) -> bool {
    folder.ancestors().skip(1).all(|above| {
        fs::metadata(above).is_ok_and(|metadata| {
            let shift = match metadata {
                _ if metadata.uid() == account.uid => 6,
                _ if metadata.gid() == account.gid => 3,
                _ => 0,
            };
            (metadata.mode() >> shift) & 1 == 1
        })
    })
}

/// The fallback folder for a requested one. Every requested folder has a fallback of its own.
fn fallback_folder(requested: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot create {FALLBACK_FOLDER}");
    if !Path::new(FALLBACK_FOLDER).exists() {
        fs::create_dir_all(FALLBACK_FOLDER).with_context(cannot)?;
        fs::set_permissions(FALLBACK_FOLDER, Permissions::from_mode(0o755)).with_context(cannot)?;
    }
    let name = hex::encode(&Sha256::digest(requested.as_os_str().as_encoded_bytes())[..8]);
    let folder = Path::new(FALLBACK_FOLDER).join(format!("dev-{name}"));
    fs::create_dir_all(&folder).with_context(cannot)?;
    Ok(folder)
}

/// Makes a folder accessible to the server's account only.
fn make_private(folder: &Path, account: Option<Account>) -> io::Result<()> {
    if let Some(account) = account {
        chown(folder, Some(account.uid), Some(account.gid))?;
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// `run` in the folder; or a short private folder among the temporary files, if a socket cannot have that path because
/// it is too long or has characters that separate addresses.
fn socket_folder(folder: &Path, account: Option<Account>) -> Result<PathBuf> {
    let inside = folder.join("run");
    if fits_socket(&inside) {
        fs::create_dir_all(&inside)?;
        make_private(&inside, account)?;
        return Ok(inside);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    let name = format!("paybridge-{}", hex::encode(random));
    for base in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let outside = base.join(&name);
        let can_enter = account.is_none_or(|account| is_reachable(&outside, account));
        if can_enter && fits_socket(&outside) && DirBuilder::new().mode(0o700).create(&outside).is_ok() {
            make_private(&outside, account)?;
            return Ok(outside);
        }
    }
    bail!("the path {} is too long for a socket, and no temporary folder can be used instead", inside.display())
}

fn fits_socket(folder: &Path) -> bool {
    let socket = folder.join(format!(".s.PGSQL.{}.lock", u16::MAX));
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+@".contains(byte);
    socket.as_os_str().len() <= SOCKET_PATH_BYTES_MAX && folder.as_os_str().as_encoded_bytes().iter().all(plain)
}

/// Removes a folder and its content, if it exists.
pub(super) fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\npostgres:x:101:104:,,,:/var/lib/postgresql:/bin/sh\n";

    #[test]
    fn accounts_are_read_from_passwd() {
        assert_eq!(account_named(PASSWD, "postgres"), Some(Account { uid: 101, gid: 104 }));
        assert_eq!(account_named(PASSWD, "post"), None);
    }

    #[test]
    fn a_parent_folder_without_access_is_detected() {
        let above = std::env::temp_dir().join(format!("paybridge-closed-{}", std::process::id()));
        let inner = above.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let other = Account { uid: 4_000_000, gid: 4_000_000 };
        fs::set_permissions(&above, Permissions::from_mode(0o755)).unwrap();
        assert!(is_reachable(&inner, other));
        fs::set_permissions(&above, Permissions::from_mode(0o700)).unwrap();
        assert!(!is_reachable(&inner, other));
        fs::remove_dir_all(above).unwrap();
    }

    #[test]
    fn sockets_need_short_plain_paths() {
        assert!(fits_socket(Path::new("/home/someone/project/.paybridge/postgres/run")));
        assert!(!fits_socket(Path::new("/home/a,b/run")));
        assert!(!fits_socket(Path::new(&format!("/{}", "x".repeat(100)))));
    }

    #[test]
    fn this_process_is_not_a_server() {
        assert!(!is_server_of(std::process::id(), Path::new("/")));
    }
}
