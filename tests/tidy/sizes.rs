//! How long files and functions may be, and how many parameters a function may have.

use super::{Source, assert_none, check, is_word_part, source, sources};

const FILE_LINES_MAX: usize = 400;
const FUNCTION_LINES_MAX: usize = 70;
/// Without `self`.
const PARAMETERS_MAX: usize = 5;

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

/// The number of parameters in a list that begins after its `(`, without `self`.
fn parameter_count(list: &str) -> usize {
    let (mut depth, mut before) = (0, ' ');
    let mut parameters = vec![String::new()];
    for character in list.chars() {
        match character {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' if depth == 0 => break,
            ')' | ']' | '}' => depth -= 1,
            // Not the end of an arrow.
            '>' if before != '-' => depth -= 1,
            ',' if depth == 0 => parameters.push(String::new()),
            _ => {}
        }
        before = character;
        if character != ',' || depth > 0 {
            parameters.last_mut().unwrap().push(character);
        }
    }
    let is_self = |parameter: &str| parameter.split([':', ' ']).any(|word| word.trim_start_matches('&') == "self");
    parameters.iter().map(|parameter| parameter.trim()).filter(|text| !text.is_empty() && !is_self(text)).count()
}

fn many_parameters(source: &Source) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, _) in source.text.match_indices("fn ").filter(|(at, _)| !source.text[..*at].ends_with(is_word_part)) {
        let name: String = source.text[at + 3..].chars().take_while(|c| is_word_part(*c)).collect();
        let rest = &source.text[at + 3 + name.len()..];
        // A list of type parameters may stand before the list of parameters.
        let Some(list) = rest.find('(').filter(|_| rest.starts_with(['(', '<'])).map(|open| &rest[open + 1..]) else {
            continue;
        };
        let count = if name.is_empty() { 0 } else { parameter_count(list) };
        if count > PARAMETERS_MAX {
            let place = format!("{}:{}", source.path.display(), source.text[..at].matches('\n').count() + 1);
            wrong.push(format!(
                "{place}: `{name}` has {count} parameters, more than {PARAMETERS_MAX}; pass a struct, or find the seam"
            ));
        }
    }
    wrong
}

#[test]
fn functions_are_short() {
    check(&sources(&["src", "tests", "build.rs"], &[".rs"]), long_functions);
}

#[test]
fn functions_have_few_parameters() {
    check(&sources(&["src", "tests", "benches", "build.rs"], &[".rs"]), many_parameters);
}

#[test]
fn files_are_short() {
    let mut too_long = Vec::new();
    for source in sources(&["src", "tests", "build.rs"], &[".rs"]) {
        let lines = source.text.lines().count();
        if lines > FILE_LINES_MAX {
            let place = source.path.display();
            too_long.push(format!("{place} has {lines} lines, more than {FILE_LINES_MAX}; split it into two files"));
        }
    }
    assert_none(&too_long);
}

#[test]
fn long_functions_are_found() {
    let function =
        |lines: usize| format!("impl X {{\n    pub fn x() {{\n{}    }}\n}}\n", "        y();\n".repeat(lines));
    assert_eq!(long_functions(&source("src/a.rs", &function(70))).len(), 0);
    assert_eq!(long_functions(&source("src/a.rs", &function(71))).len(), 1);
}

#[test]
fn functions_with_many_parameters_are_found() {
    let found = |head: &str| many_parameters(&source("src/a.rs", head)).len();
    let list = |count: usize| "a: HashMap<K, V>, ".repeat(count);
    assert_eq!(found(&format!("fn f(&mut self, {}) {{}}", list(5))), 0);
    assert_eq!(found(&format!("fn f({}) -> X {{}}", list(6))), 1);
    assert_eq!(
        found("pub async fn f<T: Fn(A) -> B>(\n    a: (A, B),\n    b: impl Fn(X, Y) -> Z,\n    c: [u8; 2],\n) {}"),
        0
    );
}
