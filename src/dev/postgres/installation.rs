//! A folder with the programs of one version of Postgres.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with the programs `postgres` and `initdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Installation {
    pub(super) major: u32,
    pub(super) programs: PathBuf,
}

impl Installation {
    pub(super) fn postgres(&self) -> PathBuf {
        self.programs.join("postgres")
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.programs.join("initdb")
    }

    /// Inspects a folder. `None`: it has no such programs, or they don't run.
    pub(super) fn at(programs: &Path) -> Option<Self> {
        let found = Self { major: 0, programs: programs.canonicalize().ok()? };
        if !found.initdb().is_file() {
            return None;
        }
        let output = Command::new(found.postgres()).arg("--version").output().ok()?;
        let major = major_of(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { major, ..found })
    }
}

/// `postgres (PostgreSQL) 15.18 (Debian 15.18-1)` → 15; `… 19beta1` → 19.
fn major_of(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL) ")?.1;
    let end = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_postgres_prints_them() {
        assert_eq!(major_of("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_of("postgres (PostgreSQL) 19beta1"), Some(19));
        assert_eq!(major_of("something else 15"), None);
    }
}
