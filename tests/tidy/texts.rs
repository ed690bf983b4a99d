//! Unfinished code, references of the documentation, and released migrations.

use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::{Source, assert_none, check, source, sources, word_ends};

/// Split, so that this file does not violate its own rule.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!"), concat!("unimplem", "ented!")];

fn unfinished_code(source: &Source) -> Vec<String> {
    let lines = source.text.lines().zip(1..);
    let found = lines.filter(|(line, _)| UNFINISHED.iter().any(|word| !word_ends(line, word).is_empty()));
    let report =
        |(_, number)| format!("{}:{number}: finish it, or open an issue for what is left", source.path.display());
    found.map(report).collect()
}

/// Links to files that do not exist, and tests that do not exist.
fn broken_references(source: &Source) -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join(&source.path).parent().unwrap().to_owned();
    let links = source.text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    let files = links.filter(|link| !link.contains("://")).filter_map(|link| link.split('#').next());
    let missing = files.filter(|file| !file.is_empty() && !folder.join(file).exists());
    let mut wrong: Vec<String> =
        missing.map(|file| format!("{}: {file} does not exist", source.path.display())).collect();
    let tests: Vec<Source> = sources(&["src", "tests"], &[".rs"]);
    for name in source.text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::")) {
        let (file, function) = (format!("{}.rs", name.0), format!("fn {}(", name.1));
        if !tests.iter().any(|test| test.path.ends_with(&file) && test.text.contains(&function)) {
            wrong.push(format!("{}: {file} has no `{}`", source.path.display(), name.1));
        }
    }
    wrong
}

#[test]
fn no_code_is_unfinished() {
    let folders = ["src", "tests", "build.rs", "migrations", "proto", "helm", ".ci"];
    let present: Vec<&str> =
        folders.into_iter().filter(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).exists()).collect();
    check(&sources(&present, &[".rs", ".sql", ".proto", ".sh", ".yaml", ".tpl", ".py", ".js", "run"]), unfinished_code);
}

#[test]
fn the_documentation_refers_to_what_exists() {
    check(&sources(&["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs"], &[".md"]), broken_references);
}

/// A database that has run a migration never runs it again, so a later change of its text would be missing there.
/// `migrations/released.sha256` lists the files that releases have shipped, as `sha256sum` writes them. It is empty
/// before the first release; from then on all migrations but the newest are listed.
#[test]
fn released_migrations_are_unchanged() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let list = std::fs::read_to_string(folder.join("released.sha256")).unwrap();
    let list = list.lines().filter(|line| !line.starts_with('#'));
    let released: Vec<(&str, &str)> = list.map(|line| line.split_once("  ").unwrap()).collect();
    let mut violations = Vec::new();
    for (listed, name) in &released {
        match std::fs::read(folder.join(name)) {
            Ok(text) if hex::encode(Sha256::digest(&text)) == *listed => {}
            Ok(_) => violations.push(format!("{name} was changed after its release; write a new migration instead")),
            Err(error) => violations.push(format!("{name} was released and cannot be read: {error}")),
        }
    }
    let mut present: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    present.retain(|path| path.is_dir());
    present.sort();
    let newest = present.pop().expect("there are migrations");
    for path in present.iter().filter(|_| !released.is_empty()).flat_map(|it| [it.join("up.sql"), it.join("down.sql")])
    {
        let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
        if !released.iter().any(|(_, listed)| *listed == name) {
            let old = format!("{name} is older than {}", newest.display());
            violations.push(format!("{old}: list it, by sha256sum, in migrations/released.sha256"));
        }
    }
    assert_none(&violations);
}

#[test]
fn unfinished_code_is_found() {
    let unfinished = format!("// {}: later\nfn method() {{ {}() }}\n", UNFINISHED[0], UNFINISHED[2]);
    assert_eq!(unfinished_code(&source("src/a.rs", &unfinished)).len(), 2);
    assert_eq!(unfinished_code(&source("src/a.rs", "let todos = 1; // TODOS")).len(), 0);
}

#[test]
fn references_to_what_does_not_exist_are_found() {
    let broken = |text: &str| broken_references(&source("docs/a.md", text)).len();
    assert_eq!(
        broken("[x](../README.md#tests) `texts.rs::references_to_what_does_not_exist_are_found` [y](https://x)"),
        0
    );
    assert_eq!(broken("[x](missing.md) and `texts.rs::missing`"), 2);
}
