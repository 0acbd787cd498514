//! An explanation for people: the roots of what ran, what ran because of each, and what was found.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{Cause, Outcome, Trace};

/// Why a build did what it did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// What made steps run, in the order of the build.
    pub roots: Vec<Root>,
    /// Steps that were found, by position.
    pub hits: Vec<usize>,
    /// Milliseconds that steps ran.
    pub ms: u64,
}

/// One root cause.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Root {
    /// The steps it made run, by position in the trace; the first is where it struck.
    pub steps: Vec<usize>,
    /// What it is; the first is the one to name.
    pub causes: Vec<Cause>,
    /// Steps that ran only because those ran.
    pub dependants: Vec<usize>,
    /// Milliseconds all of them took.
    pub ms: u64,
}

/// Folds a trace whose causes are filled in.
#[must_use]
pub fn explanation(trace: &Trace) -> Explanation {
    let mut out = Explanation::default();
    for (at, step) in trace.steps.iter().enumerate() {
        if step.kind.is_source() {
            continue;
        }
        if !step.ran() {
            out.hits.extend(step.succeeded().then_some(at));
            continue;
        }
        let ms = match step.outcome {
            Outcome::Ran { ms, .. } => ms,
            _ => 0,
        };
        out.ms += ms;
        let top = top_of(trace, at);
        let causes = trace.steps.get(top).map(|step| step.causes.clone()).unwrap_or_default();
        let known =
            out.roots.iter_mut().find(|root| root.steps.contains(&top) || same(&root.causes, &causes));
        match known {
            Some(root) => {
                root.ms += ms;
                if top == at { root.steps.push(at) } else { root.dependants.push(at) }
            }
            None => out.roots.push(Root {
                steps: vec![top],
                causes,
                dependants: if top == at { vec![] } else { vec![at] },
                ms,
            }),
        }
    }
    out
}

/// Causes that strike several steps and are named once.
fn same(a: &[Cause], b: &[Cause]) -> bool {
    let common = |cause: &Cause| {
        matches!(
            cause,
            Cause::NoCache { .. }
                | Cause::Moved { .. }
                | Cause::Base { .. }
                | Cause::Never { .. }
                | Cause::NoResult { .. }
                | Cause::OtherInputs { .. }
                | Cause::Platform { .. }
                | Cause::Argument { .. }
                | Cause::Environment { .. }
                | Cause::Files { .. }
                | Cause::Ignore { .. }
        )
    };
    a == b && !a.is_empty() && a.iter().all(common)
}

/// The step at the end of the pointers.
fn top_of(trace: &Trace, at: usize) -> usize {
    let mut top = at;
    // Inputs come before their users, so this ends.
    while let Some(Cause::Step { step }) = trace.steps.get(top).and_then(|step| step.causes.first())
        && *step < top
    {
        top = *step;
    }
    top
}

/// The same as JSON for programs, with each cause in plain words beside its parts.
#[must_use]
pub fn to_json(trace: &Trace) -> Value {
    let explanation = explanation(trace);
    let name = |at: &usize| trace.steps.get(*at).map(|step| step.name.clone()).unwrap_or_default();
    let causes = |causes: &[Cause]| -> Vec<Value> {
        let one = |cause: &Cause| {
            let mut value = serde_json::to_value(cause).unwrap_or_default();
            if let Some(object) = value.as_object_mut() {
                object.insert("text".to_owned(), cause.to_string().into());
            }
            value
        };
        causes.iter().map(one).collect()
    };
    let roots: Vec<Value> = explanation
        .roots
        .iter()
        .map(|root| {
            let steps: Vec<String> = root.steps.iter().map(name).collect();
            let dependants: Vec<String> = root.dependants.iter().map(name).collect();
            json!({"steps": steps, "causes": causes(&root.causes), "dependants": dependants, "ms": root.ms})
        })
        .collect();
    let steps: Vec<Value> = trace
        .steps
        .iter()
        .filter(|step| !step.kind.is_source() && step.outcome != Outcome::NotNeeded)
        .map(|step| {
            let mut out = json!({
                "name": step.name, "stage": step.stage, "platform": step.platform, "line": step.line,
                "digest": step.op, "outcome": step.outcome, "causes": causes(&step.causes),
            });
            if let (Outcome::Hit(_), Some(object)) = (&step.outcome, out.as_object_mut()) {
                let matched = if step.by_content() { "content" } else { "definition" };
                object.insert("matched".to_owned(), matched.into());
            }
            out
        })
        .collect();
    json!({
        "build": trace.build, "dockerfile": trace.dockerfile, "context": trace.context, "imports": trace.imports,
        "at": trace.at, "ms": explanation.ms, "cached": explanation.hits.len(), "roots": roots, "steps": steps,
    })
}
