//! What steps take from: `--from` of `COPY` and of mounts → stages and images, and stages that need each other.

use rbuild_diag::{Diagnostic, Spanned};
use rbuild_dockerfile::{Instruction, InstructionKind, expand_word};
use rbuild_oci::Reference;

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::stages::Plan;

/// What `--from` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// A stage.
    Stage(usize),
    /// `scratch`, a named context or an image, by name.
    External(String),
}

/// A reference from a step to a stage or image.
struct Use<'b> {
    text: &'b Spanned<String>,
    mount: bool,
}

/// The references in an instruction.
fn references(instruction: &Instruction) -> Vec<Use<'_>> {
    match &instruction.kind {
        InstructionKind::Copy(copy) => {
            let from = copy.from.iter().filter(|from| !from.value.is_empty());
            from.map(|text| Use { text, mount: false }).collect()
        }
        InstructionKind::Run(run) => {
            let fields = run.mounts.iter().flat_map(|mount| &mount.fields);
            let from = fields.filter(|field| field.key.value.eq_ignore_ascii_case("from"));
            let values =
                from.filter_map(|field| field.value.as_ref()).filter(|value| !value.value.is_empty());
            values.map(|text| Use { text, mount: true }).collect()
        }
        _ => vec![],
    }
}

/// Whether an instruction makes BuildKit count a source that is no stage. A file with one stage and no such
/// source shows step names without the stage's.
pub(crate) fn counts_as_source(plan: &Plan<'_>, instruction: &Instruction) -> bool {
    let stage = |text: &str| plan.by_name.contains_key(&text.to_lowercase());
    match &instruction.kind {
        InstructionKind::Run(run) => run.mounts.iter().any(|mount| {
            let from = mount.fields.iter().find(|field| field.key.value.eq_ignore_ascii_case("from"));
            let text = from.and_then(|field| field.value.as_ref()).map_or("", |value| value.value.as_str());
            text.is_empty() || !stage(text)
        }),
        InstructionKind::Copy(copy) => copy.from.as_ref().is_some_and(|from| {
            !from.value.is_empty() && from.value.parse::<i64>().is_err() && !stage(&from.value)
        }),
        _ => false,
    }
}

/// What `--from` of a step means.
pub(crate) fn resolve_source(
    ctx: &Ctx<'_>,
    plan: &Plan<'_>,
    at: At<'_>,
    text: &Spanned<String>,
    mount: bool,
) -> Result<Source, Fault> {
    let expands = if mount {
        text.value.char_indices().any(|(i, c)| c == '$' && i + 1 < text.value.len())
    } else {
        let expanded = expand_word(&text.value, ctx.parsed.directives.escape, &|_| None);
        expanded.map_or(true, |expanded| expanded.value != text.value)
    };
    if expands {
        return Err(at
            .error(
                codes::VARIABLE_IN_FROM,
                text.span,
                format!("variables are not expanded in from={}", text.value),
            )
            .note("stages and images must be known before the steps are")
            .help(
                "define a stage: FROM $IMAGE AS name, with ARG IMAGE before the first FROM, and name it here",
            ));
    }
    if let Ok(number) = text.value.parse::<i64>() {
        let index = usize::try_from(number).ok().filter(|index| *index < plan.stages.len());
        return match index {
            Some(index) if !mount => Ok(Source::Stage(index)),
            Some(index) => Err(at
                .error(
                    codes::NO_SUCH_STAGE,
                    text.span,
                    format!("a mount cannot name stage {number} by its number"),
                )
                .help(format!("name the stage: from={}", plan.stages[index].label))),
            None => Err(at
                .error(codes::NO_SUCH_STAGE, text.span, format!("there is no stage {number}"))
                .note(format!("the file has {} stages, numbered from 0", plan.stages.len()))),
        };
    }
    if let Some(index) = plan.by_name.get(&text.value.to_lowercase()) {
        return Ok(Source::Stage(*index));
    }
    if text.value != "scratch"
        && let Err(error) = text.value.parse::<Reference>()
    {
        let mut error = at.error(codes::INVALID_REFERENCE, text.span, error.to_string());
        if let Some(near) = plan.similar(&text.value) {
            error = error.help(format!("did you mean the stage {near:?}?"));
        }
        return Err(error);
    }
    Ok(Source::External(text.value.clone()))
}

/// Notes what one instruction of stage `index` takes from.
pub(crate) fn add_uses(ctx: &mut Ctx<'_>, plan: &mut Plan<'_>, index: usize, at: At<'_>) {
    for reference in references(at.instruction) {
        let result = resolve_source(ctx, plan, at, reference.text, reference.mount);
        let span = at.from.map_or(reference.text.span, |from| from.span);
        let Some(stage) = plan.stages.get_mut(index) else { continue };
        match result {
            Ok(Source::Stage(used)) => stage.uses.push((used, span)),
            Ok(Source::External(text)) => stage.externals.push(Spanned::new(text, span)),
            Err(error) => ctx.fail(error),
        }
    }
}

/// Notes what the steps of all stages take from.
pub(crate) fn find_uses<'a>(ctx: &mut Ctx<'a>, plan: &mut Plan<'a>) {
    for index in 0..plan.stages.len() {
        let body = plan.stages[index].body;
        for instruction in body {
            let at = At { file: ctx.source, instruction, from: None };
            add_uses(ctx, plan, index, at);
        }
    }
}

/// Reports one cycle of `--from`, if there is any. Bases always lie before; only a use of the same or a later
/// stage can close a cycle.
pub(crate) fn find_cycle(ctx: &mut Ctx<'_>, plan: &Plan<'_>) {
    let forward = |index: usize| plan.stages[index].uses.iter().any(|(used, _)| *used >= index);
    if !(0..plan.stages.len()).any(forward) {
        return;
    }
    let mut done = vec![false; plan.stages.len()];
    let mut on_path = vec![false; plan.stages.len()];
    for start in 0..plan.stages.len() {
        let mut path: Vec<(usize, usize)> = vec![(start, 0)];
        while let Some((index, next)) = path.last_mut() {
            let index = *index;
            if *next == 0 && std::mem::replace(&mut done[index], true) {
                path.pop();
                continue;
            }
            on_path[index] = true;
            let Some((used, _)) = plan.stages[index].uses.get(*next) else {
                on_path[index] = false;
                path.pop();
                continue;
            };
            *next += 1;
            if on_path[*used] {
                report_cycle(ctx, plan, &path, *used);
                return;
            }
            if !done[*used] {
                path.push((*used, 0));
            }
        }
    }
}

fn report_cycle(ctx: &mut Ctx<'_>, plan: &Plan<'_>, path: &[(usize, usize)], closing: usize) {
    let cycle: Vec<usize> =
        path.iter().map(|(index, _)| *index).skip_while(|index| *index != closing).collect();
    let mut names: Vec<&str> = cycle.iter().map(|index| plan.stages[*index].label.as_str()).collect();
    names.push(&plan.stages[closing].label);
    let (last, next) = path.last().copied().unwrap_or_default();
    let span =
        plan.stages[last].uses.get(next.saturating_sub(1)).map_or(plan.stages[last].from.span, |it| it.1);
    ctx.errors.push(
        Diagnostic::error(codes::CYCLE, format!("stages depend on each other: {}", names.join(" → ")))
            .at(ctx.source, span)
            .help("move what they share into a stage of its own"),
    );
}
