//! `rbuild check`.

use std::process::ExitCode;

use rbuild::{CheckOptions, ProblemKind, StoreReport};
use serde_json::json;

use crate::args::{CheckArgs, Cli, TextFormat};
use crate::environment;
use crate::error::Failure;
use crate::render::{bytes, print};

/// Looks the store over.
pub(crate) fn run(cli: &Cli, args: &CheckArgs) -> Result<ExitCode, Failure> {
    let store = environment::open_store(cli)?;
    let warnings = store.warnings();
    let report = store.check(CheckOptions { read_data: args.read_data, repair: args.repair })?;
    match args.format {
        TextFormat::Text => {
            warnings.iter().for_each(|warning| print(&format!("index  {warning}  (repaired)")));
            text(&report, args);
        }
        TextFormat::Json => print(&as_json(&report, &warnings).to_string()),
    }
    Ok(if report.damaged() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn text(report: &StoreReport, args: &CheckArgs) {
    for problem in &report.problems {
        let done = if problem.repaired { "  (repaired)" } else { "" };
        print(&format!("{}  {}  {}{done}", problem.kind, problem.id, problem.what));
    }
    let read =
        if args.read_data { format!(", {} of blobs read", bytes(report.bytes)) } else { String::new() };
    let leftovers = report.problems.iter().filter(|it| it.kind == ProblemKind::Leftover).count();
    let found = match (report.problems.len() - leftovers, leftovers) {
        (0, 0) => "nothing is wrong".to_owned(),
        (0, n) => format!("nothing is damaged; {n} that nothing refers to"),
        (1, _) => "1 problem".to_owned(),
        (n, _) => format!("{n} problems"),
    };
    print(&format!("{} layers and {} blobs checked{read}: {found}", report.layers, report.blobs));
    if report.damaged() && !args.repair {
        print("run `rbuild check --repair` to drop what is damaged; the next build makes it again");
    }
}

fn as_json(report: &StoreReport, warnings: &[String]) -> serde_json::Value {
    let problems: Vec<_> = report
        .problems
        .iter()
        .map(|it| json!({"kind": it.kind.to_string(), "id": it.id, "what": it.what, "repaired": it.repaired}))
        .collect();
    json!({
        "layers": report.layers, "blobs": report.blobs, "bytes": report.bytes, "damaged": report.damaged(),
        "problems": problems, "warnings": warnings,
    })
}
