//! Which module may import which, and which modules may use the database and HTTP clients.

use super::{Source, check, group_entries, is_word_part, source, sources, word_ends};

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
    let first = |path: &str| path.chars().take_while(|c| is_word_part(*c)).collect();
    match path.strip_prefix('{') {
        Some(group) => group_entries(group).iter().map(|entry| first(entry)).collect(),
        None => vec![first(path)],
    }
}

fn wrong_imports(source: &Source) -> Vec<String> {
    let module = source.module();
    if UNRESTRICTED.contains(&module.as_str()) {
        return vec![];
    }
    let Some((_, allowed)) = IMPORTS.iter().find(|(name, _)| *name == module) else {
        return vec![format!(
            "{}: `{module}` is a new module: list what it may import in tests/tidy/imports.rs",
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

#[test]
fn imports_go_one_way() {
    check(&sources(&["src"], &[".rs"]), wrong_imports);
}

#[test]
fn databases_and_http_are_used_only_in_their_modules() {
    check(&sources(&["src"], &[".rs"]), misplaced_words);
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
