//! `test_data/{ok,err}/NAME/Dockerfile` against `ast.txt` and `diag.txt`; `UPDATE_EXPECT=1` rewrites them.

use std::path::Path;

use rbuild_diag::{RenderOptions, Severity, render};

use super::{cases, parse_text};
use crate::{Parsed, dump};

fn diagnostics(parsed: &Parsed) -> String {
    let options = RenderOptions { color: false, width: 100 };
    parsed.diagnostics.iter().map(|diagnostic| render(diagnostic, options) + "\n\n").collect()
}

fn has_errors(parsed: &Parsed) -> bool {
    parsed.diagnostics.iter().any(|diagnostic| diagnostic.severity == Severity::Error)
}

/// Compares a file with what it should hold, nothing meaning that it should not be there. Says what differs.
fn compare(path: &Path, actual: &str, wrong: &mut Vec<String>) {
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        if actual.is_empty() {
            let _ = std::fs::remove_file(path);
        } else {
            std::fs::write(path, actual).unwrap();
        }
        return;
    }
    let expected = std::fs::read_to_string(path).unwrap_or_default();
    if expected != actual {
        let lines = expected.lines().zip(actual.lines()).position(|(expected, actual)| expected != actual);
        let line = lines.unwrap_or_else(|| expected.lines().count().min(actual.lines().count()));
        wrong.push(format!(
            "{}:{}\n  expected: {}\n  actual:   {}",
            path.display(),
            line + 1,
            expected.lines().nth(line).unwrap_or("(end)"),
            actual.lines().nth(line).unwrap_or("(end)")
        ));
    }
}

fn check(kind: &str, should_fail: bool, least: usize) {
    let cases = cases(kind);
    assert!(cases.len() >= least, "only {} cases in {kind}", cases.len());
    let mut wrong = Vec::new();
    for (folder, text) in &cases {
        let parsed = parse_text(text);
        if has_errors(&parsed) != should_fail {
            wrong.push(format!("{}: errors: {}", folder.display(), diagnostics(&parsed)));
        }
        let ast = if should_fail { String::new() } else { dump(&parsed.file) };
        compare(&folder.join("ast.txt"), &ast, &mut wrong);
        compare(&folder.join("diag.txt"), &diagnostics(&parsed), &mut wrong);
    }
    assert!(wrong.is_empty(), "UPDATE_EXPECT=1 rewrites:\n{}", wrong.join("\n"));
}

#[test]
fn files_that_parse() {
    check("ok", false, 60);
}

#[test]
fn files_that_do_not() {
    check("err", true, 25);
}

#[test]
fn every_code_has_a_case() {
    let seen: Vec<&str> = cases("err")
        .iter()
        .flat_map(|(_, text)| parse_text(text).diagnostics)
        .map(|diagnostic| diagnostic.code)
        .collect();
    // These two need a line that no file has: a text of several instructions, and a lexer that contradicts itself.
    let elsewhere = [crate::codes::NOT_ONE_INSTRUCTION, crate::codes::INVALID_HEREDOC];
    for (code, what) in crate::CODES {
        assert!(seen.contains(code) || elsewhere.contains(code), "{code} ({what}) has no case");
    }
}
