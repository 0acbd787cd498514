//! `ONBUILD` triggers: those of a base image's config and those of a base stage in the same file. They run before
//! the body of the stage that starts from it, and may name stages of that file.

use rbuild_diag::{Diagnostic, Severity, SourceFile};
use rbuild_dockerfile::{Instruction, InstructionKind, parse_instruction};

use crate::NamedContextValue;
use crate::codes;
use crate::ctx::{At, Ctx};
use crate::sources::Found;
use crate::stages::{Base, Plan};
use crate::uses::add_uses;

/// A trigger, ready to run.
#[derive(Clone, Debug)]
pub(crate) struct Trigger {
    /// The text it stands in.
    pub(crate) file: SourceFile,
    pub(crate) instruction: Instruction,
}

/// Looks at the bases of all needed stages whose triggers are not known yet. Whether any were found.
pub(crate) fn add_triggers(ctx: &mut Ctx<'_>, plan: &mut Plan<'_>) -> bool {
    let mut found_any = false;
    for index in 0..plan.stages.len() {
        let stage = &plan.stages[index];
        if !stage.needed || stage.triggers_known || stage.replaced.is_some() {
            continue;
        }
        let triggers = match &stage.base {
            Base::Stage(base) => Some(of_stage(ctx, plan, index, *base)),
            Base::External(_) => of_image(ctx, plan, index),
        };
        let Some(triggers) = triggers else { continue };
        found_any |= !triggers.is_empty();
        let from = plan.stages[index].from;
        for trigger in &triggers {
            let at = At { file: &trigger.file, instruction: &trigger.instruction, from: Some(from) };
            add_uses(ctx, plan, index, at);
        }
        let stage = &mut plan.stages[index];
        stage.triggers = triggers;
        stage.triggers_known = true;
    }
    found_any
}

fn of_stage(ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize, base: usize) -> Vec<Trigger> {
    let base = &plan.stages[base];
    if base.replaced.is_some() {
        return vec![];
    }
    // BuildKit reads the text of a trigger again, and then a backslash is the escape character.
    let again = ctx.parsed.directives.escape != '\\';
    let mut out = vec![];
    for instruction in base.body {
        let InstructionKind::Onbuild(onbuild) = &instruction.kind else { continue };
        if again || onbuild.trigger.kind == InstructionKind::Invalid {
            out.extend(parse_all(ctx, plan, index, std::slice::from_ref(&onbuild.expression)));
        } else {
            out.push(Trigger { file: ctx.source.clone(), instruction: onbuild.trigger.as_ref().clone() });
        }
    }
    out
}

/// `None` when the image is not known yet.
fn of_image(ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize) -> Option<Vec<Trigger>> {
    let stage = &plan.stages[index];
    let platform = stage.platform.as_ref().unwrap_or(&ctx.options.platform).clone();
    let Ok(found) = ctx.find(&stage.base_text, &platform) else { return Some(vec![]) };
    let texts = match ctx.image_query(&found, &platform) {
        Some(query) => ctx.facts.images.get(&query)?.config.config.on_build.clone(),
        None => match found {
            Found::Context(context) => match ctx.options.named_contexts.get(context).map(|it| &it.value) {
                Some(NamedContextValue::Target(lowered)) => lowered.config.config.on_build.clone(),
                _ => vec![],
            },
            Found::Scratch | Found::Image(_) => vec![],
        },
    };
    Some(parse_all(ctx, plan, index, &texts))
}

fn parse_all(ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize, texts: &[String]) -> Vec<Trigger> {
    let (from, name) = (plan.stages[index].from, &plan.stages[index].base_text);
    let help = match plan.stages[index].base {
        Base::Stage(_) => "correct the trigger",
        Base::External(_) => "use another version of the base image",
    };
    let mut out = Vec::with_capacity(texts.len());
    for text in texts {
        let parsed = parse_instruction(text, '\\');
        let problem = parsed.diagnostics.iter().find(|it| it.severity == Severity::Error);
        let allowed = !matches!(
            parsed.instruction.kind,
            InstructionKind::From(_)
                | InstructionKind::Maintainer(_)
                | InstructionKind::Onbuild(_)
                | InstructionKind::Invalid
        );
        if problem.is_none() && allowed {
            out.push(Trigger { file: parsed.source, instruction: parsed.instruction });
            continue;
        }
        let reason = problem.map_or("it is not allowed as a trigger", |problem| problem.message.as_str());
        ctx.errors.push(
            Diagnostic::error(
                codes::TRIGGER,
                format!("the ONBUILD trigger {text:?} of {name} cannot run: {reason}"),
            )
            .at(ctx.source, from.span)
            .help(help),
        );
    }
    out
}
