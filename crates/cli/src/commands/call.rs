//! `rbuild build --call=check|outline|targets`: questions about a Dockerfile, answered on standard output as text or in the JSON that
//! BuildKit's frontend answers with.

use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;

use base64::Engine as _;
use rbuild::{Builder, CancelToken, CheckReport, Diagnostic, OutlineReport, SourceFile, Span, TargetList};
use serde_json::{Value, json};

use crate::args::{BuildArgs, Cli, parse_bool};
use crate::commands::build::progress;
use crate::error::{self, Failure};
use crate::render::{Display, print};
use crate::request::Usage;
use crate::{environment, messages, request, signals};

/// What is asked, and whether the answer is JSON.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Method {
    question: Question,
    json: bool,
    /// Findings do not make the command fail.
    ignore_status: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Check,
    Outline,
    Targets,
    Describe,
}

/// Reads `--call` and `--check`; `None` is a build.
pub(crate) fn method(args: &BuildArgs) -> Result<Option<Method>, Usage> {
    let text = if args.check { "check" } else { args.call.as_str() };
    let mut fields = text.split(',');
    let name = fields.next().unwrap_or_default();
    let question = match name {
        "build" | "" => None,
        "check" | "lint" | "frontend.lint" => Some(Question::Check),
        "outline" | "frontend.outline" => Some(Question::Outline),
        "targets" | "frontend.targets" => Some(Question::Targets),
        "subrequests.describe" | "frontend.subrequests.describe" => Some(Question::Describe),
        other => {
            let near = rbuild::nearest(other, ["build", "check", "outline", "targets"]);
            return Err(Usage(match near {
                Some(near) => format!("--call: unknown method {other:?}; did you mean {near}?"),
                None => format!("--call: unknown method {other:?}; choose build, check, outline or targets"),
            }));
        }
    };
    let (mut json, mut ignore_status) = (false, false);
    for field in fields {
        let ignore = field.strip_prefix("ignorestatus=").and_then(parse_bool);
        match (field.split_once('='), ignore) {
            (Some(("format", "json")), _) => json = true,
            (Some(("format", "text" | "txt")), _) => json = false,
            (_, Some(ignore)) => ignore_status = ignore,
            _ => {
                let known = "format=json, format=text or ignorestatus=true";
                return Err(Usage(format!("--call: {field:?} is not {known}")));
            }
        }
    }
    Ok(question.map(|question| Method { question, json, ignore_status }))
}

/// Answers.
pub(crate) fn run(cli: &Cli, args: &BuildArgs, method: Method) -> Result<ExitCode, Failure> {
    if method.question == Question::Describe {
        print(&describe(method.json));
        return Ok(ExitCode::SUCCESS);
    }
    let store = environment::open_store(cli)?;
    let prepared = request::source(&args.source, store.root())?;
    let builder = Builder::new(store)?;
    let cancel = CancelToken::new();
    signals::cancel_on_signals(&cancel);
    let display = Display::start(progress(args));
    let request = &prepared.request;
    let events: Arc<Display> = display.clone();
    let answer = match method.question {
        Question::Check => builder.check(request, events, &cancel).map(Answer::Check),
        Question::Outline => builder.outline(request, events, &cancel).map(Answer::Outline),
        Question::Targets | Question::Describe => {
            builder.targets(request, events, &cancel).map(Answer::Targets)
        }
    };
    display.finish();
    drop(prepared.temporary);
    Ok(match (answer?, method.json) {
        (Answer::Check(report), json) => checked(&report, json, method.ignore_status),
        (Answer::Outline(report), false) => printed(&outline_text(&report)),
        (Answer::Outline(report), true) => printed(&pretty(&outline_json(&report))),
        (Answer::Targets(list), false) => printed(&targets_text(&list)),
        (Answer::Targets(list), true) => printed(&pretty(&targets_json(&list))),
    })
}

enum Answer {
    Check(CheckReport),
    Outline(OutlineReport),
    Targets(TargetList),
}

fn printed(text: &str) -> ExitCode {
    print(text.trim_end());
    ExitCode::SUCCESS
}

fn pretty(value: &Value) -> String {
    format!("{value:#}")
}

/// Findings make the command fail, as an error does; what is no finding of a rule does not.
fn checked(report: &CheckReport, json: bool, ignore_status: bool) -> ExitCode {
    if json {
        print(&pretty(&check_json(report)));
    } else if messages::json() {
        report.warnings.iter().for_each(messages::show);
    } else {
        print(check_text(report).trim_end());
    }
    match &report.error {
        Some(error) => error::report(&Failure::Build(Box::new(error.clone()))),
        None if !ignore_status && report.warnings.iter().any(|it| rbuild::rule(it.code).is_some()) => {
            ExitCode::from(1)
        }
        None => ExitCode::SUCCESS,
    }
}

fn check_text(report: &CheckReport) -> String {
    let mut out = match (report.warnings.len(), &report.error) {
        (0, Some(_)) => return String::new(),
        (0, None) => return "Check complete, no warnings found.".to_owned(),
        (1, _) => "Check complete, 1 warning has been found!\n".to_owned(),
        (many, _) => format!("Check complete, {many} warnings have been found!\n"),
    };
    for warning in &report.warnings {
        let _ = write!(out, "\n{}\n", messages::text(warning));
    }
    out
}

fn check_json(report: &CheckReport) -> Value {
    let warnings: Vec<Value> = report
        .warnings
        .iter()
        .map(|warning| {
            let mut out = json!({"ruleName": warning.code});
            if let (Value::Object(fields), Some(rule)) = (&mut out, rbuild::rule(warning.code)) {
                fields.insert("description".to_owned(), json!(rule.description));
                fields.insert("url".to_owned(), json!(url(rule.name)));
            }
            if let Value::Object(fields) = &mut out {
                fields.insert("detail".to_owned(), json!(warning.message));
                fields.insert("location".to_owned(), of_instruction(report, warning));
            }
            out
        })
        .collect();
    let mut out = json!({"warnings": warnings, "sources": [source(&report.source)]});
    if let (Value::Object(fields), Some(error)) = (&mut out, &report.error) {
        let first = error.diagnostics.first();
        let place = first.map_or(json!({"sourceIndex": -1}), |first| of_instruction(report, first));
        fields.insert("buildError".to_owned(), json!({"message": error.to_string(), "location": place}));
    }
    out
}

fn url(code: &str) -> String {
    format!("docs/codes.md#{}", code.to_lowercase())
}

/// The lines of the instruction that a message is about: BuildKit's places are whole instructions.
fn of_instruction(report: &CheckReport, diagnostic: &Diagnostic) -> Value {
    let Some((file, span)) = &diagnostic.place else { return json!({"sourceIndex": -1}) };
    if file.name() != report.source.name() {
        return json!({"sourceIndex": -1});
    }
    let around = if diagnostic.code == "InvalidDefinitionDescription" {
        // It is shown at the comment, and is about what the comment stands above.
        report.instructions.iter().find(|it| it.start >= span.end)
    } else {
        report.instructions.iter().find(|it| it.start <= span.start && span.start < it.end)
    };
    let mut span = around.copied().unwrap_or(*span);
    if diagnostic.code == "NoEmptyContinuation" {
        span.start = span.end;
    }
    location(file, span)
}

fn location(file: &SourceFile, span: Span) -> Value {
    let line = |offset: u32| file.line_col(offset).line;
    // A span that ends with a line break ends on the line before it.
    let end = span.end.saturating_sub(1).max(span.start);
    // One range for each line, as BuildKit has them.
    let ranges =
        (line(span.start)..=line(end)).map(|line| json!({"start": {"line": line}, "end": {"line": line}}));
    json!({"ranges": ranges.collect::<Vec<_>>()})
}

fn source(file: &SourceFile) -> Value {
    json!({"filename": file.name(), "language": "Dockerfile", "data": base64(file.text().as_bytes())})
}

fn outline_text(report: &OutlineReport) -> String {
    let outline = &report.outline;
    let mut out = String::new();
    if !outline.name.is_empty() || !outline.description.is_empty() {
        let name = if outline.name.is_empty() { "(default)" } else { &outline.name };
        let _ = writeln!(out, "TARGET:      {name}");
        if !outline.description.is_empty() {
            let _ = writeln!(out, "DESCRIPTION: {}", outline.description);
        }
        out.push('\n');
    }
    let args = outline.args.iter().map(|arg| vec![&*arg.name, &*arg.value, &*arg.description]);
    table(&mut out, &["BUILD ARG", "VALUE", "DESCRIPTION"], args.collect());
    let required = |required: bool| if required { "true" } else { "" };
    let secrets = outline.secrets.iter().map(|secret| vec![&*secret.name, required(secret.required)]);
    table(&mut out, &["SECRET", "REQUIRED"], secrets.collect());
    let ssh = outline.ssh.iter().map(|ssh| vec![&*ssh.name, required(ssh.required)]);
    table(&mut out, &["SSH", "REQUIRED"], ssh.collect());
    out
}

fn outline_json(report: &OutlineReport) -> Value {
    let outline = &report.outline;
    let place = |span: Span| location(&report.source, span);
    let args = outline.args.iter().map(|arg| {
        let fields = [("description", json!(arg.description)), ("value", json!(arg.value))];
        object(("name", json!(arg.name)), fields, ("location", place(arg.span)))
    });
    let mount = |mount: &rbuild::OutlineMount| {
        let required = if mount.required { json!(true) } else { json!("") };
        object(("name", json!(mount.name)), [("required", required)], ("location", place(mount.span)))
    };
    let list = |all: Vec<Value>| if all.is_empty() { json!("") } else { json!(all) };
    object(
        ("name", json!(outline.name)),
        [
            ("description", json!(outline.description)),
            ("args", list(args.collect())),
            ("secrets", list(outline.secrets.iter().map(mount).collect())),
            ("ssh", list(outline.ssh.iter().map(mount).collect())),
        ],
        ("sources", json!([base64(report.source.text().as_bytes())])),
    )
}

/// The fields that are not empty.
fn object<const N: usize>(first: (&str, Value), others: [(&str, Value); N], last: (&str, Value)) -> Value {
    let mut out = serde_json::Map::new();
    let all = std::iter::once(first).chain(others).chain([last]);
    for (name, value) in all.filter(|(_, value)| *value != "") {
        out.insert(name.to_owned(), value);
    }
    Value::Object(out)
}

fn targets_text(list: &TargetList) -> String {
    let names: Vec<String> = list
        .targets
        .iter()
        .map(|target| match (target.name.is_empty(), target.default) {
            (true, true) => "(default)".to_owned(),
            (false, true) => format!("{} (default)", target.name),
            _ => target.name.clone(),
        })
        .collect();
    let rows = names.iter().zip(&list.targets).map(|(name, target)| vec![&**name, &*target.description]);
    let mut out = String::new();
    table(&mut out, &["TARGET", "DESCRIPTION"], rows.collect());
    out
}

fn targets_json(list: &TargetList) -> Value {
    let targets = list.targets.iter().map(|target| {
        let default = if target.default { json!(true) } else { json!("") };
        object(
            ("name", json!(target.name)),
            [
                ("default", default),
                ("description", json!(target.description)),
                ("base", json!(target.base)),
                ("platform", json!(target.platform)),
            ],
            ("location", location(&list.source, target.span)),
        )
    });
    json!({"targets": targets.collect::<Vec<_>>(), "sources": [base64(list.source.text().as_bytes())]})
}

/// Columns as wide as their widest cell, a blank between them; nothing without rows.
fn table(out: &mut String, head: &[&str], rows: Vec<Vec<&str>>) {
    if rows.is_empty() {
        return;
    }
    let wide = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.chain(head.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(wide).collect();
    for row in std::iter::once(head).chain(rows.iter().map(Vec::as_slice)) {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(out, "{}", cells.join("  ").trim_end());
    }
    out.push('\n');
}

fn describe(json: bool) -> String {
    let all = [
        ("frontend.lint", "Lint a Dockerfile"),
        ("frontend.outline", "List all parameters current build target supports"),
        ("frontend.targets", "List all targets current build supports"),
        ("frontend.subrequests.describe", "List available subrequest types"),
    ];
    if json {
        let list = all.map(|(name, description)| {
            json!({"name": name, "version": "1.0.0", "type": "rpc", "description": description})
        });
        return pretty(&json!(list));
    }
    let mut out = String::new();
    table(
        &mut out,
        &["NAME", "VERSION", "DESCRIPTION"],
        all.iter().map(|(name, description)| vec![*name, "1.0.0", *description]).collect(),
    );
    out.trim_end().to_owned()
}

fn base64(bytes: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(bytes)
}
