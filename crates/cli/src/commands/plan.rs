//! `rbuild plan`: the stages and the graph, without running anything.

use std::fmt::Write as _;
use std::process::ExitCode;

use rbuild::{Builder, CancelToken, Lowered, dot, dump};

use crate::args::{Cli, PlanArgs, PlanFormat, ProgressMode};
use crate::error::{Failure, show};
use crate::render::{Display, print};
use crate::{environment, request, signals};

/// Prints the plan.
pub(crate) fn run(cli: &Cli, args: &PlanArgs) -> Result<ExitCode, Failure> {
    let store = environment::open_store(cli)?;
    let prepared = request::source(&args.source, store.root())?;
    let builder = Builder::new(store)?;
    let cancel = CancelToken::new();
    signals::cancel_on_signals(&cancel);
    let display = Display::start(ProgressMode::Quiet);
    let plans = builder.plan(&prepared.request, display.clone(), &cancel);
    display.finish().iter().for_each(show);
    for plan in plans? {
        print(
            match args.format {
                PlanFormat::Text => text(&plan),
                PlanFormat::Dot => dot(&plan.graph),
            }
            .trim_end(),
        );
    }
    Ok(ExitCode::SUCCESS)
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
