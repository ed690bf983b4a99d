//! The house rules, as a test: which room may import which, where a database or an HTTP client may be spoken to, and how
//! long files and functions may grow. A breach is told with its line, the rule, and what to do about it.

#![expect(clippy::unwrap_used, reason = "the helpers of tests are tests, too")]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// What each room may import of ours. A file directly under `src/` is a room of its own name. `clock` and `crash` are
/// everybody's but the domain's, whose functions are given the time and can't die half way; tests inside a room may
/// import anything.
const IMPORTS: &[(&str, &[&str])] = &[
    ("clock", &[]),
    ("crash", &[]),
    ("domain", &[]),
    ("store", &["domain", "clock"]),
    ("stripe", &["domain", "clock", "crash"]),
    ("app", &["domain", "store", "stripe", "clock", "crash"]),
    ("grpc", &["app", "domain", "clock", "crash"]),
    // It also hands out the metrics.
    ("webhook", &["app", "domain", "clock", "telemetry"]),
    ("worker", &["app", "domain", "clock"]),
    // What an address of Postgres may say is known where connections are opened.
    ("config", &["store"]),
    ("telemetry", &["config"]),
    ("lifecycle", &[]),
    (
        "server",
        &["app", "clock", "config", "domain", "grpc", "lifecycle", "store", "stripe", "telemetry", "webhook", "worker"],
    ),
];
/// These wire everything, or build on everything.
const FREE: [&str; 3] = ["main", "lib", "dev"];

/// Words that only some rooms may use, and why.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    ("diesel", &["store"], "SQL lives in `store`: add a free function there, in the file of the noun"),
    ("diesel_async", &["store"], "connections are made in `store`: use the types that it exports"),
    ("reqwest", &["stripe", "dev"], "HTTP calls go out from `stripe` alone: add a function there"),
    (
        ".transaction(",
        &["store", "app"],
        "only `app` opens transactions, through store's helper, so that none is open over a call to Stripe (P3)",
    ),
];

/// Written apart, so that this file does not break its own rule.
const UNFINISHED: [&str; 4] =
    [concat!("TO", "DO"), concat!("FIX", "ME"), concat!("todo", "!"), concat!("unimplem", "ented!")];

const FILE_LINES_AIM: usize = 400;
const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;

/// A source file, with what the rules need to know of it.
struct Source {
    path: PathBuf,
    text: String,
}

impl Source {
    /// The folder or file below `src/`, or `tests`.
    fn room(&self) -> String {
        let mut parts = self.path.iter().map(|part| part.to_string_lossy());
        let first = parts.next().unwrap_or_default();
        let second = parts.next().unwrap_or_default();
        if first == "src" { second.trim_end_matches(".rs").to_owned() } else { first.into_owned() }
    }

    /// How many `super::` lead from this file to the root of the crate.
    fn depth(&self) -> usize {
        let below_src = self.path.components().count() - 1;
        below_src - usize::from(self.path.ends_with("mod.rs"))
    }

    /// Numbered lines of code that is built into the binary: no comments, and nothing from the file's tests on.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        let tests = self.path.ends_with("tests.rs") || self.path.iter().any(|part| part == "tests");
        let lines = self.text.lines().zip(1..).map(|(line, number)| (number, line));
        let code = lines.take_while(move |(_, line)| !tests && *line != "mod tests {");
        code.filter(|(_, line)| !line.trim_start().starts_with("//"))
    }
}

/// All files of the repository under these folders that end with one of these names.
fn sources(folders: &[&str], endings: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut waiting: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut found = Vec::new();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.is_file() && endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push(Source { path: path.strip_prefix(root).unwrap().to_owned(), text });
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(!found.is_empty(), "nothing was found under {folders:?}");
    found
}

fn is_word_part(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// The places in `line` where `word` stands by itself.
fn word_ends<'line>(line: &'line str, word: &str) -> Vec<&'line str> {
    let at_edge = |at: &usize| !word.starts_with(is_word_part) || !line[..*at].ends_with(is_word_part);
    let ends = line.match_indices(word).map(|(at, _)| at).filter(at_edge).map(|at| &line[at + word.len()..]);
    ends.filter(|rest| !word.ends_with(is_word_part) || !rest.starts_with(is_word_part)).collect()
}

/// The modules directly under the crate's root that a path of this line leads to.
fn roots(line: &str, depth: usize) -> Vec<String> {
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
    let room = source.room();
    if FREE.contains(&room.as_str()) {
        return vec![];
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == room) else {
        return vec![format!(
            "{}: `{room}` is a new room: say in tests/tidy.rs what it may import",
            source.path.display()
        )];
    };
    let is_room = |name: &str| FREE.contains(&name) || IMPORTS.iter().any(|(room, _)| *room == name);
    let mut wrong = Vec::new();
    for (number, line) in source.code() {
        for name in roots(line, source.depth()) {
            if name != room && is_room(&name) && !allowed.contains(&name.as_str()) {
                let may = if allowed.is_empty() { "nothing of ours".to_owned() } else { allowed.join(", ") };
                let place = format!("{}:{number}", source.path.display());
                wrong.push(format!(
                    "{place}: `{room}` imports `{name}`, but it may import {may} (imports go one way, see src/lib.rs). \
                     Move the code to a room that sees both, or hand in what is needed."
                ));
            }
        }
    }
    wrong
}

fn misplaced_words(source: &Source) -> Vec<String> {
    let room = source.room();
    let mut wrong = Vec::new();
    for (number, line) in source.code() {
        for (word, rooms, reason) in ONLY_IN {
            if !rooms.contains(&room.as_str()) && !word_ends(line, word).is_empty() {
                wrong.push(format!("{}:{number}: `{word}` in `{room}`: {reason}", source.path.display()));
            }
        }
    }
    wrong
}

/// Functions whose bodies are too long, as clippy counts: without blank lines and comments. Rustfmt puts a body's last
/// brace under its `fn`.
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
            wrong.push(format!(
                "{place}: this function has {count} lines; it reads better as two (at most {FUNCTION_LINES_MAX})"
            ));
        }
    }
    wrong
}

fn unfinished_work(source: &Source) -> Vec<String> {
    let lines = source.text.lines().zip(1..);
    let found = lines.filter(|(line, _)| UNFINISHED.iter().any(|word| !word_ends(line, word).is_empty()));
    let tell =
        |(_, number)| format!("{}:{number}: finish it, or write down in an issue what is left", source.path.display());
    found.map(tell).collect()
}

fn assert_none(breaches: &[String]) {
    let mut told = String::new();
    for breach in breaches {
        let _ = writeln!(told, "  {breach}");
    }
    assert!(breaches.is_empty(), "{} to tidy up:\n{told}", breaches.len());
}

fn check(files: &[Source], rule: fn(&Source) -> Vec<String>) {
    assert_none(&files.iter().flat_map(rule).collect::<Vec<_>>());
}

#[test]
fn imports_go_one_way() {
    check(&sources(&["src"], &[".rs"]), wrong_imports);
}

#[test]
fn databases_and_http_are_spoken_to_in_their_own_rooms() {
    check(&sources(&["src"], &[".rs"]), misplaced_words);
}

#[test]
fn functions_fit_on_a_page() {
    check(&sources(&["src", "tests", "build.rs"], &[".rs"]), long_functions);
}

#[test]
fn nothing_is_left_unfinished() {
    let folders = ["src", "tests", "build.rs", "migrations", "proto", "helm", ".ci"];
    let present: Vec<&str> =
        folders.into_iter().filter(|folder| Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).exists()).collect();
    check(&sources(&present, &[".rs", ".sql", ".proto", ".sh", ".yaml", ".tpl", ".py", ".js", "run"]), unfinished_work);
}

#[test]
fn files_are_short_enough_to_be_read() {
    let mut too_long = Vec::new();
    for source in sources(&["src", "tests", "build.rs"], &[".rs"]) {
        let lines = source.text.lines().count();
        let told = format!("{} has {lines} lines; look for the seam where it is two files", source.path.display());
        if lines > FILE_LINES_MAX {
            too_long.push(format!("{told} (at most {FILE_LINES_MAX}, better {FILE_LINES_AIM})"));
        } else if lines > FILE_LINES_AIM {
            println!("a kind word: {told}");
        }
    }
    assert_none(&too_long);
}

/// A database that has run a migration never runs it again, so whatever is changed in it later is missing there. All but the
/// newest one are listed in `migrations/released.sha256`, as `sha256sum` writes it.
#[test]
fn released_migrations_keep_their_text() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    let list = std::fs::read_to_string(folder.join("released.sha256")).unwrap();
    let released: Vec<(&str, &str)> = list.lines().map(|line| line.split_once("  ").unwrap()).collect();
    let mut present: Vec<PathBuf> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    present.retain(|path| path.is_dir());
    present.sort();
    let mut breaches = Vec::new();
    for migration in &present[..present.len() - 1] {
        for direction in ["up.sql", "down.sql"] {
            let path = migration.join(direction);
            let name = path.strip_prefix(&folder).unwrap().to_str().unwrap();
            let hash = hex::encode(Sha256::digest(std::fs::read(&path).unwrap()));
            match released.iter().find(|(_, listed)| *listed == name) {
                Some((listed, _)) if *listed == hash => {}
                Some(_) => {
                    breaches.push(format!("{name} was changed after its release; write a new migration instead"));
                }
                None => breaches
                    .push(format!("{name} has a successor: list it, by sha256sum, in migrations/released.sha256")),
            }
        }
    }
    assert!(present.len() > 1 && released.len() >= 2 * (present.len() - 2), "the list is read");
    assert_none(&breaches);
}

// The rules themselves: each finds what it should and leaves alone what it should.

fn source(path: &str, text: &str) -> Source {
    Source { path: PathBuf::from(path), text: text.to_owned() }
}

#[test]
fn forbidden_imports_are_found_in_every_spelling() {
    let spellings = [
        ("src/domain/money.rs", "use crate::store::Payment;"),
        ("src/domain/money.rs", "    let x: crate::clock::Clock = y;"),
        ("src/store/payments.rs", "use crate::{domain::{a, b}, stripe::Client};"),
        ("src/store/payments.rs", "use super::super::app::payments;"),
        ("src/store/mod.rs", "use super::app::payments;"),
        ("src/grpc/mod.rs", "use crate::store;"),
        ("src/server.rs", "use crate::dev::sandbox;"),
        ("src/cellar/mod.rs", "fn new_room() {}"),
    ];
    for (path, line) in spellings {
        assert_eq!(wrong_imports(&source(path, line)).len(), 1, "{path}: {line}");
    }
}

#[test]
fn allowed_imports_are_left_alone() {
    let fine = [
        ("src/store/payments.rs", "use crate::domain::{Money, app::x};\nuse super::app_rows;\nuse super::stripe;"),
        ("src/app/payments.rs", "use crate::{domain, store, stripe::Client, clock::Clock};"),
        ("src/domain/money.rs", "// see crate::store\n#[cfg(test)]\nmod tests {\n    use crate::dev::postgres;\n}"),
        ("src/store/tests.rs", "use crate::dev::postgres::Postgres;"),
        ("src/dev/demo.rs", "use crate::server;"),
        ("src/grpc/mod.rs", "pub mod proto {}\nuse crate::grpc::proto;"),
    ];
    for (path, text) in fine {
        assert_eq!(wrong_imports(&source(path, text)), Vec::<String>::new(), "{path}");
    }
}

#[test]
fn words_are_found_only_outside_of_their_rooms() {
    let text = "use diesel::prelude::*;\nconn.transaction(async |c| {})\nlet client = reqwest::Client::builder();";
    assert_eq!(misplaced_words(&source("src/app/payments.rs", text)).len(), 2);
    assert_eq!(misplaced_words(&source("src/grpc/mod.rs", text)).len(), 3);
    assert_eq!(misplaced_words(&source("src/store/mod.rs", text)).len(), 1);
    assert_eq!(misplaced_words(&source("src/grpc/mod.rs", "let my_diesel = 1; // reqwests")).len(), 0);
}

#[test]
fn long_functions_and_unfinished_work_are_found() {
    let function =
        |lines: usize| format!("impl X {{\n    pub fn x() {{\n{}    }}\n}}\n", "        y();\n".repeat(lines));
    assert_eq!(long_functions(&source("src/a.rs", &function(70))).len(), 0);
    assert_eq!(long_functions(&source("src/a.rs", &function(71))).len(), 1);
    let unfinished = format!("// {}: later\nfn method() {{ {}() }}\n", UNFINISHED[0], UNFINISHED[2]);
    assert_eq!(unfinished_work(&source("src/a.rs", &unfinished)).len(), 2);
    assert_eq!(unfinished_work(&source("src/a.rs", "let todos = 1; // TODOS")).len(), 0);
}
