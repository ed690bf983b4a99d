//! The folder of a private Postgres: whose it is, who holds it, and what an earlier life left in it.
//!
//! ```text
//! folder/lock          held (flock) by the process that runs the server; says which one
//! folder/data/         Postgres' own files; `data.unfinished` while they are being made
//! folder/run/          the socket, unless its path would be too long
//! folder/postgres.log  what the server says
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

/// Names the socket file where nothing listens on a port.
const PORT: u16 = 5432;
/// The kernel's limit for the path of a socket, in bytes.
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// A log that has grown beyond this is begun anew at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long the server of a process that was killed may take to shut down.
const PREDECESSOR_WITHIN: Duration = Duration::from_secs(30);
/// Where files go if we are root and the server's account can't enter the folder that was asked for.
pub(super) const ELSEWHERE: &str = "/var/lib/paybridge";

/// The account that the server runs as when we are root, because Postgres refuses to run as root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// Stands for every account but root: it owns nothing.
pub(super) const ANYBODY: Account = Account { uid: u32::MAX, gid: u32::MAX };

/// A folder that we hold: nobody else starts a server in it while this lives.
#[derive(Debug)]
pub(super) struct Place {
    folder: PathBuf,
    account: Option<Account>,
    socket_folder: PathBuf,
    port: u16,
    _lock: File,
}

impl Place {
    /// Makes the folder if need be, gives it to the server's account, and takes its lock. The server is to listen on
    /// `tcp_port`, if on any.
    pub(super) fn claim(asked: &Path, tcp_port: Option<u16>) -> Result<Self> {
        let cannot = || format!("cannot use the folder {} for Postgres", asked.display());
        fs::create_dir_all(asked).with_context(cannot)?;
        let mut folder = asked.canonicalize().with_context(cannot)?;
        let mut account = if geteuid().is_root() { Some(account_for(&folder)?) } else { None };
        if account.is_some_and(|account| !reachable(&folder, account)) {
            let instead = elsewhere(&folder)?;
            tracing::info!(
                "Postgres can't run as root, and its account can't enter {}: its files are in {}",
                folder.display(),
                instead.display()
            );
            account = Some(account_for(&instead)?);
            folder = instead;
        }
        let lock = take_lock(&folder)?;
        own(&folder, account).with_context(cannot)?;
        let socket_folder = socket_folder(&folder, account)?;
        Ok(Self { folder, account, socket_folder, port: tcp_port.unwrap_or(PORT), _lock: lock })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn account(&self) -> Option<Account> {
        self.account
    }

    pub(super) fn socket_folder(&self) -> &Path {
        &self.socket_folder
    }

    /// The server's one port number, which also names its socket.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn socket_file(&self) -> PathBuf {
        self.socket_folder.join(format!(".s.PGSQL.{}", self.port))
    }

    pub(super) fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub(super) fn log_file(&self) -> PathBuf {
        self.folder.join("postgres.log")
    }

    /// The major version that made the files, or `None` where there are none.
    pub(super) fn data_version(&self) -> Result<Option<u32>> {
        match fs::read_to_string(self.data().join("PG_VERSION")) {
            Ok(text) => text.trim().parse().map(Some).context("PG_VERSION in the data folder is no number"),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).context("cannot read the Postgres data folder"),
        }
    }

    /// Throws the database away.
    pub(super) fn clear(&self) -> Result<()> {
        remove_folder(&self.data())
    }

    /// Throws away what an interrupted first start left, and names the place to make the files in.
    pub(super) fn clear_unfinished(&self) -> Result<PathBuf> {
        let unfinished = self.folder.join("data.unfinished");
        remove_folder(&unfinished)?;
        // Without PG_VERSION there is nothing in it that Postgres could open.
        remove_folder(&self.data())?;
        Ok(unfinished)
    }

    /// Opened by us, because it is we who hand it to the server as its standard error.
    pub(super) fn open_log(&self) -> Result<File> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file());
        let log = log.with_context(|| format!("cannot write {}", self.log_file().display()))?;
        if log.metadata()?.len() > LOG_BYTES_MAX {
            log.set_len(0)?;
        }
        Ok(log)
    }

    /// A server whose parent was killed was told to shut down and may be at it; a server that somebody else runs here
    /// stays, and then we don't start.
    pub(super) fn wait_for_predecessor(&self) -> Result<()> {
        let deadline = Instant::now() + PREDECESSOR_WITHIN;
        while let Some(pid) = self.running_server() {
            if Instant::now() > deadline {
                bail!(
                    "another Postgres (process {pid}) runs on {}; stop it, or choose another folder",
                    self.data().display()
                );
            }
            thread::park_timeout(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Removes what would keep a new server from starting though the old one is gone. A lock whose process has vanished
    /// is left to Postgres, which knows what to do; it is misled only by a zombie, or by a stranger with the same id.
    pub(super) fn prepare_start(&self) -> Result<()> {
        if let Some(pid) = self.locked_by()
            && self.running_server().is_none()
            && Path::new(&format!("/proc/{pid}")).exists()
        {
            fs::remove_file(self.lock_of_postgres()).context("cannot remove the stale lock of Postgres")?;
        }
        for file in [self.socket_file(), self.socket_file().with_extension(format!("{}.lock", self.port))] {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether the server with this id says, in line 8 of its lock file, that it takes connections.
    pub(super) fn is_ready(&self, pid: Pid) -> bool {
        let Ok(text) = fs::read_to_string(self.lock_of_postgres()) else { return false };
        let mut lines = text.lines();
        let same = lines.next().and_then(|line| line.trim().parse().ok()) == Some(pid.as_raw_nonzero().get());
        same && lines.nth(6).is_some_and(|line| line.trim() == "ready")
    }

    /// Leaves nothing behind outside the folder.
    pub(super) fn leave(&self) {
        if !self.socket_folder.starts_with(&self.folder) {
            // A leftover in the temporary folder harms nobody.
            let _ = fs::remove_dir_all(&self.socket_folder);
        }
    }

    fn lock_of_postgres(&self) -> PathBuf {
        self.data().join("postmaster.pid")
    }

    fn locked_by(&self) -> Option<u32> {
        fs::read_to_string(self.lock_of_postgres()).ok()?.lines().next()?.trim().parse().ok()
    }

    fn running_server(&self) -> Option<u32> {
        self.locked_by().filter(|pid| is_server_of(*pid, &self.data()))
    }
}

/// Whether the process is a live Postgres that works in `data`. One whose folder we may not ask for counts as one.
fn is_server_of(pid: u32, data: &Path) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let Some((name, rest)) = stat.rsplit_once(')') else { return false };
    let dead = matches!(rest.trim_start().chars().next(), Some('Z' | 'X'));
    let postgres = name.ends_with("(postgres") || name.ends_with("(postmaster");
    !dead && postgres && fs::read_link(format!("/proc/{pid}/cwd")).map_or(true, |folder| folder == data)
}

/// The lock is the kernel's: it is gone when its process is, however that ended.
fn take_lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let cannot = || format!("cannot lock {} (does the folder belong to another user?)", path.display());
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.with_context(cannot)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder)?;
            bail!(
                "process {} already runs Postgres in {}; stop it, or choose another folder",
                holder.trim(),
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

/// The account that owns the files, so that they stay openable for whoever made them; else `postgres`, else `nobody`.
fn account_for(folder: &Path) -> Result<Account> {
    for made in [folder.join("data"), folder.to_owned()] {
        if let Ok(metadata) = fs::metadata(made)
            && metadata.uid() != 0
        {
            return Ok(Account { uid: metadata.uid(), gid: metadata.gid() });
        }
    }
    let accounts = fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let found = ["postgres", "nobody"].into_iter().find_map(|name| account_named(&accounts, name));
    found.context("Postgres can't run as root, and there is no account `postgres` or `nobody` to run it as")
}

fn account_named(passwd: &str, name: &str) -> Option<Account> {
    let mut fields = passwd.lines().map(|line| line.split(':')).find(|fields| fields.clone().next() == Some(name))?;
    let uid = fields.nth(2)?.parse().ok()?;
    Some(Account { uid, gid: fields.next()?.parse().ok()? })
}

/// Whether `account` may pass through every folder above this one (a home folder of mode 0700 is the usual obstacle).
pub(super) fn reachable(folder: &Path, account: Account) -> bool {
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

/// A folder for the files that belongs to the one asked for and to no other.
fn elsewhere(asked: &Path) -> Result<PathBuf> {
    let cannot = || format!("cannot make {ELSEWHERE}");
    if !Path::new(ELSEWHERE).exists() {
        fs::create_dir_all(ELSEWHERE).with_context(cannot)?;
        fs::set_permissions(ELSEWHERE, Permissions::from_mode(0o755)).with_context(cannot)?;
    }
    let name = hex::encode(&Sha256::digest(asked.as_os_str().as_encoded_bytes())[..8]);
    let folder = Path::new(ELSEWHERE).join(format!("dev-{name}"));
    fs::create_dir_all(&folder).with_context(cannot)?;
    Ok(folder)
}

/// Gives a folder to the server's account alone.
fn own(folder: &Path, account: Option<Account>) -> io::Result<()> {
    if let Some(account) = account {
        chown(folder, Some(account.uid), Some(account.gid))?;
    }
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// `run` in the folder, or a short private one among the temporary files where that path can't be a socket's: too long,
/// or with characters that separate addresses.
fn socket_folder(folder: &Path, account: Option<Account>) -> Result<PathBuf> {
    let inside = folder.join("run");
    if fits_socket(&inside) {
        fs::create_dir_all(&inside)?;
        own(&inside, account)?;
        return Ok(inside);
    }
    let mut random = [0; 8];
    getrandom::fill(&mut random).map_err(io::Error::from)?;
    let name = format!("paybridge-{}", hex::encode(random));
    for base in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        let outside = base.join(&name);
        let enter = account.is_none_or(|account| reachable(&outside, account));
        if enter && fits_socket(&outside) && DirBuilder::new().mode(0o700).create(&outside).is_ok() {
            own(&outside, account)?;
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

/// Removes a folder with all that is in it, if it is there.
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
    fn a_closed_folder_above_is_noticed() {
        let above = std::env::temp_dir().join(format!("paybridge-closed-{}", std::process::id()));
        let inner = above.join("inner");
        fs::create_dir_all(&inner).unwrap();
        let stranger = Account { uid: 4_000_000, gid: 4_000_000 };
        fs::set_permissions(&above, Permissions::from_mode(0o755)).unwrap();
        assert!(reachable(&inner, stranger));
        fs::set_permissions(&above, Permissions::from_mode(0o700)).unwrap();
        assert!(!reachable(&inner, stranger));
        fs::remove_dir_all(above).unwrap();
    }

    #[test]
    fn sockets_need_short_plain_paths() {
        assert!(fits_socket(Path::new("/home/someone/project/.paybridge/postgres/run")));
        assert!(!fits_socket(Path::new("/home/a,b/run")));
        assert!(!fits_socket(Path::new(&format!("/{}", "x".repeat(100)))));
    }

    #[test]
    fn our_own_process_is_no_server() {
        assert!(!is_server_of(std::process::id(), Path::new("/")));
    }
}
