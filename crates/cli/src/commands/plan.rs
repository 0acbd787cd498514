//! `rbuild plan`: the stages and the graph, without running anything.

use std::fmt::Write as _;
use std::process::ExitCode;

use rbuild::{Builder, CancelToken, Lowered, dot, dump};
use serde_json::json;

use crate::args::{Cli, MessageFormat, PlanArgs, PlanFormat, ProgressMode};
use crate::error::Failure;
use crate::render::{Display, print};
use crate::{environment, messages, request, signals};

/// Prints the plan.
pub(crate) fn run(cli: &Cli, args: &PlanArgs) -> Result<ExitCode, Failure> {
    if args.format == PlanFormat::Json {
        messages::use_format(MessageFormat::Json);
    }
    let store = environment::open_store(cli)?;
    let prepared = request::source(&args.source, store.root())?;
    let builder = Builder::new(store)?;
    let cancel = CancelToken::new();
    signals::cancel_on_signals(&cancel);
    let display = Display::start(ProgressMode::Quiet);
    let plans = builder.plan(&prepared.request, display.clone(), &cancel);
    messages::show_findings(&display.finish().iter().collect::<Vec<_>>());
    for plan in plans? {
        print(
            match args.format {
                PlanFormat::Text => text(&plan),
                PlanFormat::Dot => dot(&plan.graph),
                PlanFormat::Json => json(&plan).to_string(),
            }
            .trim_end(),
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn json(plan: &Lowered) -> serde_json::Value {
    let stages = plan.plan.stages.iter().map(|stage| {
        json!({
            "name": stage.name,
            "description": stage.description,
            "base": stage.base,
            "platform": stage.platform.as_ref().map(ToString::to_string),
            "needed": stage.needed,
            "uses": stage.uses,
            "instructions": stage.instructions,
        })
    });
    let nodes = plan.graph.nodes().map(|(id, node)| {
        let inputs: Vec<u32> = node.inputs.iter().map(|edge| edge.node.0).collect();
        json!({
            "id": id.0,
            "name": node.meta.name,
            "stage": node.meta.stage,
            "inputs": inputs,
            "line": node.meta.place.as_ref().map(|place| place.file.line_col(place.span.start).line),
        })
    });
    json!({
        "platform": plan.platform.to_string(),
        "target": plan.plan.target,
        "stages": stages.collect::<Vec<_>>(),
        "nodes": nodes.collect::<Vec<_>>(),
        "config": plan.config,
    })
}

fn text(plan: &Lowered) -> String {
    let mut out = format!("platform {}\n\nstages\n", plan.platform);
    for (i, stage) in plan.plan.stages.iter().enumerate() {
        let uses: Vec<&str> =
            stage.uses.iter().filter_map(|n| plan.plan.stages.get(*n)).map(|s| s.name.as_str()).collect();
        let mark = match (i == plan.plan.target, stage.needed) {
            (true, _) => "*",
            (false, true) => " ",
            (false, false) => "-",
        };
        let _ = write!(out, "{mark} {i} {}  from {}", stage.name, stage.base);
        if !uses.is_empty() {
            let _ = write!(out, "  uses {}", uses.join(", "));
        }
        out.push_str(if stage.needed { "\n" } else { "  (not needed)\n" });
    }
    let _ = write!(out, "\ngraph\n{}", dump(&plan.graph));
    out
}
