//! Why steps ran, as text.

use std::fmt::Write as _;

use rbuild::{Cause, FileChange, Found, Outcome, Root, Step, StepKind, Timestamp, Trace, explanation};

use super::text::rfc3339;

/// Files that are listed of one change.
const LISTED: usize = 10;

/// All steps that people see, by position.
pub(crate) fn all(trace: &Trace) -> Vec<usize> {
    let shown = |step: &Step| !step.kind.is_source() && step.outcome != Outcome::NotNeeded;
    trace.steps.iter().enumerate().filter(|(_, step)| shown(step)).map(|(at, _)| at).collect()
}

/// Roots with what hangs on them, then what was found; of the chosen steps.
pub(crate) fn text(trace: &Trace, chosen: &[usize]) -> String {
    let all = all(trace);
    let explained = explanation(trace);
    let ran = all.len() - explained.hits.len();
    let mut out = format!(
        "{}, built on {}, {ran} of {} steps ran{}\n",
        trace.dockerfile,
        minute(trace.at),
        all.len(),
        if ran > 0 { format!(", {}", seconds(explained.ms)) } else { String::new() },
    );
    if !trace.imports.is_empty() {
        let _ = writeln!(out, "imported caches: {}", trace.imports.join(", "));
    }
    for root in &explained.roots {
        let wanted = root.steps.iter().chain(&root.dependants).any(|at| chosen.contains(at));
        if wanted {
            write_root(&mut out, trace, root);
        }
    }
    let hits: Vec<usize> = explained.hits.iter().copied().filter(|at| chosen.contains(at)).collect();
    if !hits.is_empty() {
        out.push_str("\ncached\n");
    }
    for step in hits.iter().filter_map(|at| trace.steps.get(*at)) {
        let _ = writeln!(out, "  {}\n      {}", step.name, hit(step, trace));
    }
    out
}

fn write_root(out: &mut String, trace: &Trace, root: &Root) {
    out.push('\n');
    let mut causes = root.causes.iter();
    let first =
        causes.next().map_or_else(|| "it has to be looked at each time".to_owned(), ToString::to_string);
    let _ = writeln!(out, "{first}");
    for cause in causes {
        let _ = writeln!(out, "and {cause}");
    }
    for cause in &root.causes {
        if let Cause::Files { changes, total, .. } | Cause::Ignore { changes, total, .. } = cause {
            write_files(out, changes, *total);
        }
    }
    for step in root.steps.iter().filter_map(|at| trace.steps.get(*at)) {
        let _ = writeln!(out, "  {}{}  {}", step.name, place(step, trace), took(step));
    }
    for step in root.dependants.iter().filter_map(|at| trace.steps.get(*at)) {
        let _ = writeln!(out, "    \u{2514} {}  {}", step.name, took(step));
    }
}

fn write_files(out: &mut String, changes: &[FileChange], total: usize) {
    // The sentence names the first few itself.
    if total <= 5 {
        return;
    }
    for change in changes.iter().take(LISTED) {
        let _ = writeln!(out, "    {change}");
    }
    if total > LISTED.min(changes.len()) {
        let _ = writeln!(out, "    and {} more", total - LISTED.min(changes.len()));
    }
}

fn place(step: &Step, trace: &Trace) -> String {
    step.line.map_or_else(String::new, |line| format!(" ({}:{line})", trace.dockerfile))
}

fn took(step: &Step) -> String {
    match &step.outcome {
        Outcome::Ran { ms, .. } => seconds(*ms),
        Outcome::Failed => "failed".to_owned(),
        Outcome::Hit(_) => "cached".to_owned(),
        Outcome::NotNeeded => String::new(),
    }
}

fn hit(step: &Step, trace: &Trace) -> String {
    let local = |at: usize| trace.steps.get(at).is_some_and(|it| it.kind == StepKind::Local);
    let matched = match step.by_content() {
        true if step.inputs.iter().any(|it| it.content.is_some() && local(it.step)) => {
            "the same files (times do not count)"
        }
        true => "the same content",
        false => "the same definition",
    };
    let mut out = matched.to_owned();
    if let Outcome::Hit(Found { created, ms, imported }) = &step.outcome {
        match imported {
            Some(from) => {
                let _ = write!(out, ", from {from}");
            }
            None if *created > 0 => {
                let _ = write!(out, ", built here on {}", minute(*created));
            }
            None => out.push_str("; its result is not here, and was not needed"),
        }
        if *created > 0 {
            let _ = write!(out, ", {} saved", seconds(*ms));
        }
    }
    if !step.secrets.is_empty() {
        let _ = write!(
            out,
            "; not part of the key, so a change of it is not seen: secret {}",
            step.secrets.join(", ")
        );
    }
    out
}

fn minute(nanos: i64) -> String {
    rfc3339(Timestamp(nanos)).get(..16).unwrap_or_default().replace('T', " ")
}

fn seconds(ms: u64) -> String {
    format!("{}.{}s", ms / 1000, ms % 1000 / 100)
}
