//! Circles of imports: files of one top-level module that import one another, directly or through others. None of them
//! can be read, tested or changed without the rest.
//!
//! An import is a path to an item that another file defines, in a `use` or in place. Declaring a module and re-exporting
//! an item is no import; a path through a re-export leads to the file that defines the item. Tests may import anything.

use std::collections::{BTreeMap, BTreeSet};

use super::{Source, assert_none, group_entries, is_word_part, source, sources};

struct File {
    path: String,
    /// What the names in scope stand for: paths below the crate root, such as `app::payments`.
    names: BTreeMap<String, String>,
    /// The used paths as they are written, each with its first line, in the order of these.
    paths: Vec<(String, usize)>,
}

/// All files, by the path of their module.
type Files = BTreeMap<String, File>;

/// Imports, by the importing and the imported module: the text that reports the first one.
type Imports<'a> = BTreeMap<(&'a str, &'a str), String>;

fn module_path(source: &Source) -> String {
    let path = source.path.with_extension("").to_string_lossy().replace('/', "::");
    path.trim_start_matches("src::").trim_end_matches("::mod").to_owned()
}

/// The paths in a `use` tree.
fn expand(prefix: &str, tree: &str) -> Vec<String> {
    match tree.split_once('{') {
        Some((head, group)) => {
            group_entries(group).iter().flat_map(|entry| expand(&format!("{prefix}{head}"), entry)).collect()
        }
        None => vec![format!("{prefix}{tree}")],
    }
}

/// The path below the crate root that is written as `path` in `module`.
fn absolute(module: &str, path: &str) -> String {
    let mut base: Vec<&str> = module.split("::").collect();
    let mut names = path.split("::").peekable();
    if names.next_if_eq(&"crate").is_some() {
        base.clear();
    }
    names.next_if_eq(&"self");
    while names.next_if_eq(&"super").is_some() {
        base.pop();
    }
    base.into_iter().chain(names).collect::<Vec<_>>().join("::")
}

/// The modules that a file declares for tests only.
fn test_modules(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let is_for_tests = |line: &str| line == "#[cfg(test)]" || line.starts_with("#[cfg(all(test,");
    let declarations =
        lines.windows(2).filter(|pair| is_for_tests(pair[0])).filter_map(|pair| pair[1].strip_suffix(';'));
    let names = declarations.filter_map(|line| line.split_once("mod ")).map(|(_, name)| name);
    names.map(|name| format!("{}::{name}", module_path(source))).collect()
}

fn parse(source: &Source) -> File {
    let module = module_path(source);
    let (mut names, mut first_lines) = (BTreeMap::new(), BTreeMap::new());
    let mut lines = source.code();
    while let Some((line, text)) = lines.next() {
        let text = text.trim_start();
        let (visibility, item) = text.split_at(match text.strip_prefix("pub") {
            Some(rest) if rest.starts_with('(') => text.find(") ").map_or(0, |at| at + 2),
            Some(rest) if rest.starts_with(' ') => 4,
            _ => 0,
        });
        if let Some(tree) = item.strip_prefix("use ") {
            let mut tree = tree.to_owned();
            while !tree.contains(';') {
                let Some((_, more)) = lines.next() else { break };
                tree.push_str(more.trim());
            }
            for path in expand("", tree.trim_end_matches(';')) {
                let (path, alias) = path.split_once(" as ").unwrap_or((&path, ""));
                let path = path.trim_end_matches("::self");
                let name = if alias.is_empty() { path.rsplit("::").next().unwrap_or(path) } else { alias };
                if visibility.is_empty() {
                    first_lines.entry(path.to_owned()).or_insert(line);
                }
                // Another crate's name, as of the macro `anyhow::anyhow`, must not stand for itself.
                if path.split("::").next() != Some(name) {
                    names.insert(name.to_owned(), absolute(&module, path));
                }
            }
        } else if !item.starts_with("mod ") {
            for word in text.replace("..", " ").split(|c| !is_word_part(c) && !matches!(c, ':' | '.')) {
                let path = word.split('.').next().unwrap_or_default().trim_end_matches(':');
                first_lines.entry(path.to_owned()).or_insert(line);
            }
        }
    }
    let mut paths: Vec<(String, usize)> = first_lines.into_iter().collect();
    paths.sort_by_key(|(_, line)| *line);
    File { path: source.path.display().to_string(), names, paths }
}

/// The module that defines the item at `path`. `None` if `path` is a module, or not in a file. A path into another crate
/// ends where it is written.
fn definer<'a>(files: &'a Files, path: &str) -> Option<&'a str> {
    let names: Vec<&str> = path.split("::").collect();
    let (mut module, _) = files.get_key_value(names[0])?;
    for (at, name) in names.iter().enumerate().skip(1) {
        match (files.get_key_value(&format!("{module}::{name}")), files[module].names.get(*name)) {
            // A module and a function may share a name. What stands last is the function.
            (Some((child, _)), known) if known.is_none() || at + 1 < names.len() => module = child,
            (_, Some(known)) => {
                return definer(files, &[&[known.as_str()][..], &names[at + 1..]].concat().join("::"));
            }
            (_, None) => return Some(module.as_str()),
        }
    }
    None
}

fn imports(files: &Files) -> Imports<'_> {
    let mut found = Imports::new();
    for (module, file) in files {
        for (path, line) in &file.paths {
            let target = definer(files, &absolute(module, path)).filter(|target| *target != module);
            let Some(target) = target else { continue };
            if module.split("::").next() == target.split("::").next() {
                let text = format!("{}:{line} imports {} (`{path}`)", file.path, files[target].path);
                found.entry((module.as_str(), target)).or_insert(text);
            }
        }
    }
    found
}

/// The shortest chain of imports from `from` to `to`, both included.
fn shortest<'a>(imports: &Imports<'a>, from: &'a str, to: &'a str) -> Option<Vec<&'a str>> {
    let mut chains = vec![vec![from]];
    let mut seen = BTreeSet::from([from]);
    while !chains.is_empty() {
        if let Some(chain) = chains.iter().find(|chain| chain.last() == Some(&to)) {
            return Some(chain.clone());
        }
        let mut longer = Vec::new();
        for chain in chains {
            for (_, next) in imports.keys().filter(|(importer, _)| Some(importer) == chain.last()) {
                if seen.insert(*next) {
                    longer.push([&chain[..], &[*next]].concat());
                }
            }
        }
        chains = longer;
    }
    None
}

/// Each circle once, the shortest first. One that shares an import with a shorter one is left out: the shorter one has
/// to be cut first.
fn circles(sources: &[Source]) -> Vec<String> {
    let for_tests: Vec<String> = sources.iter().flat_map(test_modules).map(|module| module + "::").collect();
    let is_for_tests = |module: &str| for_tests.iter().any(|test| format!("{module}::").starts_with(test));
    let files = sources.iter().map(|source| (module_path(source), parse(source)));
    let files: Files = files.filter(|(module, _)| !is_for_tests(module)).collect();
    let imports = imports(&files);
    let mut all: Vec<Vec<&str>> = imports.keys().filter_map(|(from, to)| shortest(&imports, to, from)).collect();
    all.sort_by_key(Vec::len);
    let (mut shown, mut reports) = (BTreeSet::new(), Vec::new());
    for circle in all {
        let steps: Vec<_> = (0..circle.len()).map(|at| (circle[at], circle[(at + 1) % circle.len()])).collect();
        if steps.iter().any(|step| shown.contains(step)) {
            continue;
        }
        let lines: Vec<&str> = steps.iter().map(|step| imports[step].as_str()).collect();
        reports.push(format!(
            "these files import one another:\n    {}\n    Move what they share into the lower file, or into a file of \
             its own that imports none of them.",
            lines.join("\n    ")
        ));
        shown.extend(steps);
    }
    reports
}

#[test]
fn files_of_a_module_do_not_import_one_another() {
    assert_none(&circles(&sources(&["src"], &[".rs"])));
}

fn found(files: &[(&str, &str)]) -> Vec<String> {
    circles(&files.iter().map(|(path, text)| source(path, text)).collect::<Vec<_>>())
}

#[test]
fn a_circle_is_found_in_all_spellings() {
    let spellings = [
        "use super::b::f;",
        "use crate::app::b::f;",
        "use super::{\n    // Both.\n    b::{self, f},\n    c,\n};",
        "use super::b as other;\n\nfn g() {\n    other::f();\n}",
        "use super::b::*;",
        "fn g() {\n    super::b::f();\n}",
        // Through the re-export of the parent.
        "use super::f;",
        "pub(super) fn g() {\n    crate::app::f(0..1);\n}",
    ];
    for text in spellings {
        let parent = ("src/app/mod.rs", "mod a;\nmod b;\npub(in crate::app) use self::b::f;");
        let reports = found(&[parent, ("src/app/a.rs", text), ("src/app/b.rs", "use super::a::g;\n\nfn f() {}")]);
        assert_eq!(reports.len(), 1, "{text}");
        assert!(!reports[0].contains("mod.rs"), "{}", reports[0]);
    }
}

#[test]
fn a_circle_through_several_files_is_shown_once_with_its_imports() {
    let files = [
        ("src/app/mod.rs", ""),
        ("src/app/a.rs", "use super::b::f;\nuse super::b::g;"),
        ("src/app/b.rs", "\nuse super::c::h;"),
        ("src/app/c.rs", "use super::a::i;"),
        // Imports the circle, and is not part of it.
        ("src/app/d.rs", "use super::a::i;"),
    ];
    let reports = found(&files);
    assert_eq!(reports.len(), 1, "{reports:?}");
    for line in [
        "    src/app/a.rs:1 imports src/app/b.rs (`super::b::f`)",
        "    src/app/b.rs:2 imports src/app/c.rs (`super::c::h`)",
        "    src/app/c.rs:1 imports src/app/a.rs (`super::a::i`)",
    ] {
        assert_eq!(reports[0].matches(line).count(), 1, "{}", reports[0]);
    }
    assert_eq!(reports[0].matches(" imports src/").count(), 3, "{}", reports[0]);
}

#[test]
fn a_parent_and_its_child_are_a_circle_if_each_uses_the_other() {
    let child = ("src/app/a.rs", "use super::App;\n\nfn f() {}");
    let parent = |text: &'static str| ("src/app.rs", text);
    assert_eq!(found(&[child, parent("mod a;\nstruct App;\n\nfn g() {\n    a::f();\n}")]).len(), 1);
    assert_eq!(found(&[child, parent("mod a;\npub use a::f;\nstruct App;\n\nfn g() {\n    f();\n}")]).len(), 1);
    // A re-export alone is no use, and neither is a method of the same name.
    assert_eq!(found(&[child, parent("mod a;\npub use a::f;\nstruct App;\n\nfn g() {\n    x.f();\n}")]).len(), 0);
}

#[test]
fn tests_and_other_modules_are_no_part_of_a_circle() {
    let parent = ("src/app/mod.rs", "");
    let importer = ("src/app/a.rs", "use super::b::f;\nuse crate::store::f;");
    let back = "use crate::app::a::g;";
    let in_test = format!("fn f() {{}}\n\n#[cfg(test)]\nmod tests {{\n    {back}\n}}");
    assert_eq!(found(&[parent, importer, ("src/app/b.rs", back)]).len(), 1);
    let none = [
        vec![parent, importer, ("src/app/b.rs", in_test.as_str())],
        vec![parent, ("src/app/a.rs", "use super::tests::f;"), ("src/app/tests.rs", back)],
        vec![("src/app/mod.rs", "#[cfg(test)]\npub(crate) mod b;"), importer, ("src/app/b.rs", back)],
        vec![parent, importer, ("src/store.rs", back)],
    ];
    for files in none {
        assert_eq!(found(&files), Vec::<String>::new());
    }
}
