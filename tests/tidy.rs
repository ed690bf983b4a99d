//! Checks the rules of the code base: which module may import which, which modules may use the database and HTTP
//! clients, and how long files and functions may be. A violation is reported with its line, the rule and how to fix it.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// The modules that each top-level module may import. A file directly under `src/` is a module of its own name. Any
/// module but `domain` may import `clock` and `failpoints`: domain functions take the time as an argument and have no
/// side effects. Tests inside a module may import anything.
const IMPORTS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("failpoints", &[]),
    ("domain", &[]),
    ("store", &["domain", "clock"]),
    ("stripe", &["domain", "clock", "failpoints"]),
    ("app", &["domain", "store", "stripe", "clock", "failpoints"]),
    ("grpc", &["app", "domain", "clock", "failpoints"]),
    // Also serves the metrics.
    ("http", &["app", "domain", "clock", "telemetry"]),
    ("worker", &["app", "domain", "clock"]),
    // Validates database addresses with `store`.
    ("config", &["store"]),
    ("telemetry", &["config"]),
    ("lifecycle", &[]),
    (
        "server",
        &["app", "clock", "config", "domain", "grpc", "http", "lifecycle", "store", "stripe", "telemetry", "worker"],
    ),
];
/// Modules that may import anything.
const UNRESTRICTED: [&str; 3] = ["main", "lib", "dev"];

/// Words that only some modules may use, and why.
const RESTRICTED_WORDS: &[(&str, &[&str], &str)] = &[
    ("diesel", &["store"], "SQL belongs in `store`: add a free function there, in the file of the noun"),
    ("diesel_async", &["store"], "connections belong in `store`: use the types that it exports"),
    ("reqwest", &["stripe", "dev"], "only `stripe` makes HTTP calls: add a function there"),
    (
        ".transaction(",
        &["store", "app"],
        "only `app` opens transactions, through the helper in `store`, so that none is open during a Stripe call (P3)",
    ),
];

/// Split, so that this file does not violate its own rule.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!"), concat!("unimplem", "ented!")];

const FILE_LINES_TARGET: usize = 400;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// A source file.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The top-level module: the folder or file below `src/`, or `tests`.
    fn module(&self) -> String {
        let mut parts = self.path.iter().map(|part| part.to_string_lossy());
        let first = parts.next().unwrap_or_default();
        let second = parts.next().unwrap_or_default();
        if first == "src" { second.trim_end_matches(".rs").to_owned() } else { first.into_owned() }
    }

    /// The number of `super::` that lead from this file to the crate root.
    fn depth(&self) -> usize {
        let below_src = self.path.components().count() - 1;
        below_src - usize::from(self.path.ends_with("mod.rs"))
    }

    /// The numbered lines of production code: without comments, and up to the file's test module.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.path.ends_with("tests.rs") || self.path.iter().any(|part| part == "tests");
        let lines = self.text.lines().zip(1..).map(|(line, number)| (number, line));
        let code = lines.take_while(move |(_, line)| !tests && *line != "mod tests {");
        code.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// All files under these folders whose names have one of these endings.
fn sources(folders: &[&str], endings: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut queue: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = queue.pop() {
        if path.is_dir() {
            queue.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() && endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push(Source { path: path.strip_prefix(root).unwrap().to_owned(), text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "no files found under {folders:?}");
    found
}

fn is_word_part(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The rest of `line` after each occurrence of `word` as a whole word.
fn word_ends<'line>(line: &'line str, word: &str) -> Vec<&'line str> {
    let at_edge = |at: &usize| !word.starts_with(is_word_part) || !line[..*at].ends_with(is_word_part);
    let ends = line.match_indices(word).map(|(at, _)| at).filter(at_edge).map(|at| &line[at + word.len()..]);
    ends.filter(|rest| !word.ends_with(is_word_part) || !rest.starts_with(is_word_part)).collect()
}

/// The top-level modules that the paths in this line refer to.
fn referenced_modules(line: &str, depth: usize) -> Vec<String> {
    let up = "super::".repeat(depth);
    let mut rests = [word_ends(line, "crate::"), word_ends(line, "paybridge::")].concat();
    if depth > 0 {
        rests.extend(word_ends(line, &up));
    }
    rests.into_iter().flat_map(first_names).collect()
}

/// `domain::Money` → domain; `{app::x, store::{a, b}}` → app, store.
fn first_names(path: &str) -> Vec<String> {
    let Some(group) = path.strip_prefix('{') else {
        return vec![path.chars().take_while(|c| is_word_part(*c)).collect()];
    };
    let mut names = vec![String::new()];
    let mut depth = 0;
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => names.push(String::new()),
            _ if depth == 0 => names.last_mut().unwrap().push(character),
            _ => {}
        }
    }
    let first = |name: &String| name.trim().chars().take_while(|c| is_word_part(*c)).collect();
    names.iter().map(first).collect()
}

fn wrong_imports(source: &Source) -> Vec<String> {
    let module = source.module();
    if UNRESTRICTED.contains(&module.as_str()) {
        return vec![];
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{}: `{module}` is a new module: list what it may import in tests/tidy.rs",
            source.path.display()
        )];
    };
    let is_module = |name: &str| UNRESTRICTED.contains(&name) || IMPORTS.iter().any(|(module, _)| *module == name);
    let mut wrong = Vec::new();
    for (number, line) in source.code() {
        for name in referenced_modules(line, source.depth()) {
            if name != module && is_module(&name) && !allowed.contains(&name.as_str()) {
                let permitted = if allowed.is_empty() { "no other module".to_owned() } else { allowed.join(", ") };
                let place = format!("{}:{number}", source.path.display());
                wrong.push(format!(
                    "{place}: `{module}` imports `{name}`, but may import {permitted} (see src/lib.rs). \
                     Move the code to a module that may import both, or pass what is needed as an argument."
                ));
            }
        }
    }
    wrong
}

fn misplaced_words(source: &Source) -> Vec<String> {
    let module = source.module();
    let mut wrong = Vec::new();
    for (number, line) in source.code() {
        for (word, modules, reason) in RESTRICTED_WORDS {
            if !modules.contains(&module.as_str()) && !word_ends(line, word).is_empty() {
                wrong.push(format!("{}:{number}: `{word}` in `{module}`: {reason}", source.path.display()));
            }
        }
    }
    wrong
}

/// Functions whose bodies are too long, counted as clippy does: without blank lines and comments. Rustfmt aligns the
/// closing brace of a body with its `fn`.
fn long_functions(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut wrong = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let head = line.trim_start();
        let begins =
            head.starts_with("fn ") || (head.starts_with("pub") || head.starts_with("async")) && head.contains(" fn ");
        if !begins {
            continue;
        }
        let end = format!("{}}}", &line[..line.len() - head.len()]);
        let body = lines[start + 1..].iter().take_while(|line| **line != end).map(|line| line.trim());
        let count = body.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
        let has_body = !line.ends_with('}') && !line.ends_with(';');
        if has_body && count > FUNCTION_LINES_MAX {
            let place = format!("{}:{}", source.path.display(), start + 1);
            wrong.push(format!("{place}: this function has {count} lines, more than {FUNCTION_LINES_MAX}; split it"));
        }
    }
    wrong
}

fn unfinished_code(source: &Source) -> Vec<String> {
    let lines = source.text.lines().zip(1..);
    let found = lines.filter(|(line, _)| UNFINISHED.iter().any(|word| !word_ends(line, word).is_empty()));
    let report =
        |(_, number)| format!("{}:{number}: finish it, or open an issue for what is left", source.path.display());
    found.map(report).collect()
}

fn assert_none(violations: &[String]) {
    let mut report = String::new();
    for violation in violations {
        let _ = writeln!(report, "  {violation}");
    }
    assert!(violations.is_empty(), "{} violations:\n{report}", violations.len());
}

fn check(files: &[Source], rule: fn(&Source) -> Vec<String>) {
    assert_none(&files.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn imports_go_one_way() {
    check(&sources(&["src"], &[".rs"]), wrong_imports);
}

#[test]
fn databases_and_http_are_used_only_in_their_modules() {
    check(&sources(&["src"], &[".rs"]), misplaced_words);
}

#[test]
fn functions_are_short() {
    check(&sources(&["src", "tests", "build.rs"], &[".rs"]), long_functions);
}

#[test]
fn no_code_is_unfinished() {
    let folders = ["src", "tests", "build.rs", "migrations", "proto", "helm", ".ci"];
    let present: Vec<&str> =
        folders.into_iter().filter(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).exists()).collect();
    check(&sources(&present, &[".rs", ".sql", ".proto", ".sh", ".yaml", ".tpl", ".py", ".js", "run"]), unfinished_code);
}

#[test]
fn files_are_short() {
    let mut too_long = Vec::new();
    for source in sources(&["src", "tests", "build.rs"], &[".rs"]) {
        let lines = source.text.lines().count();
        let report = format!("{} has {lines} lines; split it into two files", source.path.display());
        if lines > FILE_LINES_MAX {
            too_long.push(format!("{report} (maximum {FILE_LINES_MAX}, target {FILE_LINES_TARGET})"));
        } else if lines > FILE_LINES_TARGET {
            println!("note: {report}");
        }
    }
    assert_none(&too_long);
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
            Err(error) => violations.push(format!("{name} was released and can't be read: {error}")),
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

// Tests of the rules.

fn source(path: &str, text: &str) -> Source {
    Source { path: PathBuf::from(path), text: text.to_owned() }
}

#[test]
fn forbidden_imports_are_found_in_all_spellings() {
    let spellings = [
        ("src/domain/money.rs", "use crate::store::Payment;"),
        ("src/domain/money.rs", "    let x: crate::clock::Clock = y;"),
        ("src/store/payments.rs", "use crate::{domain::{a, b}, stripe::Client};"),
        ("src/store/payments.rs", "use super::super::app::payments;"),
        ("src/store/mod.rs", "use super::app::payments;"),
        ("src/grpc/mod.rs", "use crate::store;"),
        ("src/server.rs", "use crate::dev::sandbox;"),
        ("src/unlisted/mod.rs", "fn f() {}"),
    ];
    for (path, line) in spellings {
        assert_eq!(wrong_imports(&source(path, line)).len(), 1, "{path}: {line}");
    }
}

#[test]
fn allowed_imports_pass() {
    let allowed = [
        ("src/store/payments.rs", "use crate::domain::{Money, app::x};\nuse super::app_rows;\nuse super::stripe;"),
        ("src/app/payments.rs", "use crate::{domain, store, stripe::Client, clock::Clock};"),
        ("src/domain/money.rs", "// see crate::store\n#[cfg(test)]\nmod tests {\n    use crate::dev::postgres;\n}"),
        ("src/store/tests.rs", "use crate::dev::postgres::Postgres;"),
        ("src/dev/demo.rs", "use crate::server;"),
        ("src/grpc/mod.rs", "pub mod proto {}\nuse crate::grpc::proto;"),
    ];
    for (path, text) in allowed {
        assert_eq!(wrong_imports(&source(path, text)), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn restricted_words_are_found_outside_of_their_modules() {
    let text = "use diesel::prelude::*;\nconn.transaction(async |c| {})\nlet client = reqwest::Client::builder();";
    assert_eq!(misplaced_words(&source("src/app/payments.rs", text)).len(), 2);
    assert_eq!(misplaced_words(&source("src/grpc/mod.rs", text)).len(), 3);
    assert_eq!(misplaced_words(&source("src/store/mod.rs", text)).len(), 1);
    assert_eq!(misplaced_words(&source("src/grpc/mod.rs", "let my_diesel = 1; // reqwests")).len(), 0);
}

#[test]
fn long_functions_and_unfinished_code_are_found() {
    let function =
        |lines: usize| format!("impl X {{\n    pub fn x() {{\n{}    }}\n}}\n", "        y();\n".repeat(lines));
    assert_eq!(long_functions(&source("src/a.rs", &function(70))).len(), 0);
    assert_eq!(long_functions(&source("src/a.rs", &function(71))).len(), 1);
    let unfinished = format!("// {}: later\nfn method() {{ {}() }}\n", UNFINISHED[0], UNFINISHED[2]);
    assert_eq!(unfinished_code(&source("src/a.rs", &unfinished)).len(), 2);
    assert_eq!(unfinished_code(&source("src/a.rs", "let todos = 1; // TODOS")).len(), 0);
}
