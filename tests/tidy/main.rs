//! Checks the rules of the code base. A violation is reported with its line, the rule and how to fix it.

#![expect(clippy::unwrap_used, reason = "test helpers may panic")]

mod circles;
mod imports;
mod sizes;
mod texts;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

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

/// The entries of a group in a `use`, of which `text` is what follows its brace: `a, b::{c, d}};` → `a`, `b::{c, d}`.
fn group_entries(text: &str) -> Vec<String> {
    let (mut entries, mut depth) = (vec![String::new()], 0);
    for character in text.chars() {
        match character {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ => {}
        }
        match character {
            ',' if depth == 0 => entries.push(String::new()),
            _ => entries.last_mut().unwrap().push(character),
        }
    }
    entries.iter().map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect()
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

fn source(path: &str, text: &str) -> Source {
    Source { path: PathBuf::from(path), text: text.to_owned() }
}
