//! `rbuild why` and `rbuild debug key`: what is known of the last build.

use std::fmt::Write as _;
use std::process::ExitCode;

use rbuild::{Step, Trace, explanation_json};
use serde_json::json;

use crate::args::{Cli, StepArgs, TextFormat, WhyArgs};
use crate::environment;
use crate::error::Failure;
use crate::render::{explain, print};
use crate::request::Usage;

/// Says why steps ran.
pub(crate) fn run(cli: &Cli, args: &WhyArgs) -> Result<ExitCode, Failure> {
    let (trace, chosen) = find(cli, &args.step)?;
    match args.step.format {
        TextFormat::Text => print(explain::text(&trace, &chosen).trim_end()),
        TextFormat::Json => {
            let mut value = explanation_json(&trace);
            let names: Vec<&str> =
                chosen.iter().filter_map(|at| trace.steps.get(*at)).map(|step| step.name.as_str()).collect();
            if let (Some(_), Some(steps)) =
                (&args.step.step, value.get_mut("steps").and_then(|it| it.as_array_mut()))
            {
                steps.retain(|step| step["name"].as_str().is_some_and(|name| names.contains(&name)));
            }
            print(&value.to_string());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints preimages and digests.
pub(crate) fn keys(cli: &Cli, args: &StepArgs) -> Result<ExitCode, Failure> {
    let (trace, chosen) = find(cli, args)?;
    for step in chosen.iter().filter_map(|at| trace.steps.get(*at)) {
        match args.format {
            TextFormat::Text => print(key_text(step, &trace).trim_end()),
            TextFormat::Json => {
                let inputs: Vec<_> = step
                    .inputs
                    .iter()
                    .map(|input| {
                        let of = trace.steps.get(input.step);
                        json!({"step": of.map(|it| &it.name), "digest": of.map(|it| &it.op), "content": input.content})
                    })
                    .collect();
                let row = json!({"name": step.name, "digest": step.op, "preimage": step.preimage, "inputs": inputs});
                print(&row.to_string());
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn key_text(step: &Step, trace: &Trace) -> String {
    let mut out = format!("{}\n  digest    {}\n  preimage  {}\n", step.name, step.op, step.preimage);
    for (at, input) in step.inputs.iter().enumerate() {
        let Some(of) = trace.steps.get(input.step) else { continue };
        let _ = writeln!(out, "  input {at}   {}  {}", of.op, of.name);
        if let Some(content) = &input.content {
            let _ = writeln!(out, "            content {content}");
        }
    }
    out
}

/// The last build of what the arguments name, and its steps that they choose.
fn find(cli: &Cli, args: &StepArgs) -> Result<(Trace, Vec<usize>), Failure> {
    let store = environment::open_store(cli)?;
    let named = args.file.is_some() || args.context.as_os_str() != ".";
    let exact = store.last_trace(args.file.as_deref(), Some(&args.context));
    let trace = match exact {
        None if !named => store.last_trace(None, None),
        other => other,
    };
    let Some(trace) = trace else {
        let of = args.file.clone().unwrap_or_else(|| args.context.clone());
        return Err(Usage(format!("no build of {} is remembered; build it first", of.display())).into());
    };
    let chosen = match &args.step {
        None => explain::all(&trace),
        Some(wanted) => choose(&trace, wanted)?,
    };
    Ok((trace, chosen))
}

fn choose(trace: &Trace, wanted: &str) -> Result<Vec<usize>, Usage> {
    let all = explain::all(trace);
    let step = |at: &usize| trace.steps.get(*at);
    let number = wanted.parse::<usize>().ok().and_then(|n| all.get(n.checked_sub(1)?)).copied();
    if let Some(found) = number {
        return Ok(vec![found]);
    }
    let line = wanted.rsplit_once(':').and_then(|(_, line)| line.parse::<u32>().ok());
    let lower = wanted.to_lowercase();
    let tests: [&dyn Fn(&Step) -> bool; 3] =
        [&|it| line.is_some() && it.line == line, &|it| it.stage == wanted, &|it| {
            it.name.to_lowercase().contains(&lower)
        }];
    for test in tests {
        let found: Vec<usize> = all.iter().copied().filter(|at| step(at).is_some_and(test)).collect();
        if !found.is_empty() {
            return Ok(found);
        }
    }
    let names: Vec<&str> = all.iter().filter_map(step).map(|it| it.name.as_str()).collect();
    Err(Usage(format!("no step is {wanted:?}; there are:\n  {}", names.join("\n  "))))
}
