//! Errors and findings as text for people or as JSON for programs. Which of the two is decided once, by the command's arguments.

use std::sync::atomic::{AtomicBool, Ordering};

use rbuild::{BuildError, Diagnostic, RenderOptions, Severity, render};
use serde_json::{Value, json};

use crate::args::MessageFormat;
use crate::render::{colors, eprint, size};

static JSON: AtomicBool = AtomicBool::new(false);

/// Decides how everything is shown from now on.
pub(crate) fn use_format(format: MessageFormat) {
    JSON.store(format == MessageFormat::Json, Ordering::Relaxed);
}

/// Whether messages are JSON.
pub(crate) fn json() -> bool {
    JSON.load(Ordering::Relaxed)
}

/// Prints what the build checks and the like found: how many, and each with its rule and place.
pub(crate) fn show_findings(findings: &[&Diagnostic]) {
    if !json() && !findings.is_empty() {
        eprint(&format!("{}:", count(findings.len())));
    }
    for finding in findings {
        show(finding);
    }
    if !json() && !findings.is_empty() {
        eprint("");
    }
}

/// `1 warning found`.
pub(crate) fn count(findings: usize) -> String {
    match findings {
        1 => "1 warning found".to_owned(),
        many => format!("{many} warnings found"),
    }
}

/// Prints one diagnostic.
pub(crate) fn show(diagnostic: &Diagnostic) {
    if json() {
        eprint(&diagnostic_json(diagnostic).to_string());
        return;
    }
    eprint(&text(diagnostic));
}

/// One diagnostic as people read it; findings of build checks say where there is more about the rule.
pub(crate) fn text(diagnostic: &Diagnostic) -> String {
    let options = RenderOptions { color: colors(), width: size().0 };
    match rbuild::rule(diagnostic.code) {
        Some(rule) => render(&diagnostic.clone().note(documentation(rule.name)), options),
        None => render(diagnostic, options),
    }
}

/// Where a code is explained.
pub(crate) fn documentation(code: &str) -> String {
    format!("docs/codes.md#{}, or rbuild explain-code {code}", code.to_lowercase())
}

/// Prints why a build failed.
pub(crate) fn show_error(error: &BuildError) {
    for (number, diagnostic) in error.diagnostics.iter().enumerate() {
        if !json() {
            show(diagnostic);
            continue;
        }
        let mut value = diagnostic_json(diagnostic);
        if let Value::Object(fields) = &mut value
            && number == 0
            && let Some(step) = &error.step
        {
            fields.insert("step".to_owned(), json!(step));
            fields.insert("exitCode".to_owned(), json!(error.exit_code));
            fields.insert("log".to_owned(), json!(error.log_tail));
        }
        eprint(&value.to_string());
    }
}

/// Prints that the command line is wrong.
pub(crate) fn usage(message: &str) {
    if json() {
        eprint(&json!({"severity": "error", "code": "usage", "message": message}).to_string());
    } else {
        eprint(&format!("error: {message}\n\nFor more information, try '--help'."));
    }
}

/// Prints a remark.
pub(crate) fn note(message: &str) {
    if !json() {
        eprint(&format!("note: {message}"));
    }
}

/// A diagnostic as data. Lines and columns count from 1, columns in characters; `start` and `end` are bytes from 0.
pub(crate) fn diagnostic_json(diagnostic: &Diagnostic) -> Value {
    let mut out = json!({
        "severity": match diagnostic.severity { Severity::Error => "error", Severity::Warning => "warning" },
        "code": diagnostic.code,
        "message": diagnostic.message,
        "notes": diagnostic.notes,
        "help": diagnostic.help,
        "explain": format!("rbuild explain-code {}", diagnostic.code),
    });
    if let (Value::Object(fields), Some((file, span))) = (&mut out, &diagnostic.place) {
        let (start, end) = (file.line_col(span.start), file.line_col(span.end));
        let excerpt = file.text().get(span.range()).unwrap_or_default();
        fields.insert("file".to_owned(), json!(file.name()));
        fields.insert("line".to_owned(), json!(start.line));
        fields.insert("column".to_owned(), json!(start.col));
        fields.insert("endLine".to_owned(), json!(end.line));
        fields.insert("endColumn".to_owned(), json!(end.col));
        fields.insert("start".to_owned(), json!(span.start));
        fields.insert("end".to_owned(), json!(span.end));
        fields.insert("text".to_owned(), json!(excerpt));
    }
    out
}
