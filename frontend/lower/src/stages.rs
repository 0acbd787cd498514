//! The stages of a file: names → indices, what each starts from and copies from, which the target needs, cycles.
//! Everything here is known without images; triggers of base images are added later (`onbuild.rs`).

use std::collections::HashMap;

use rbuild_diag::{Diagnostic, Span, Spanned, nearest};
use rbuild_dockerfile::{ArgDecl, FromInstr, Instruction, InstructionKind};
use rbuild_oci::Platform;

use crate::codes;
use crate::ctx::{At, Ctx};
use crate::fault::Fault;
use crate::from::{check_base_name, check_default_args, expand_from, plan_platform};
use crate::onbuild::Trigger;
use crate::outline::{Capture, description};
use crate::uses::{counts_as_source, find_cycle, find_uses};
use crate::{NoCache, StageOutline, StagePlan, args, lint};

/// All stages, in the order of the file.
pub(crate) struct Plan<'a> {
    pub(crate) stages: Vec<Stage<'a>>,
    pub(crate) by_name: HashMap<String, usize>,
    pub(crate) target: usize,
}

/// One stage.
pub(crate) struct Stage<'a> {
    pub(crate) from: &'a Instruction,
    /// The word after `FROM`.
    pub(crate) base_span: Span,
    pub(crate) body: &'a [Instruction],
    /// Lower-case.
    pub(crate) name: Option<String>,
    /// The name, or `stage-N`.
    pub(crate) label: String,
    pub(crate) base: Base,
    pub(crate) base_text: String,
    pub(crate) platform: Option<Platform>,
    /// The named context that stands in for it.
    pub(crate) replaced: Option<usize>,
    pub(crate) ignore_cache: bool,
    /// From the base; they run before the body.
    pub(crate) triggers: Vec<Trigger>,
    /// Whether the base's triggers were looked at.
    pub(crate) triggers_known: bool,
    /// Stages that steps take from, and where they say so.
    pub(crate) uses: Vec<(usize, Span)>,
    /// Images and contexts that steps take from.
    pub(crate) externals: Vec<Spanned<String>>,
    pub(crate) needed: bool,
}

/// What a stage starts from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// An earlier stage.
    Stage(usize),
    /// `scratch`, a named context or an image, by name.
    External(String),
}

/// Plans the stages; `None` when there are none. Mistakes are in `ctx.errors`.
pub(crate) fn plan<'a>(ctx: &mut Ctx<'a>) -> Option<Plan<'a>> {
    let parsed = ctx.parsed;
    lint::check_file(&mut ctx.lint, parsed, ctx.source);
    check_frontend(ctx);
    let (globals, parts) = split(ctx);
    if parts.is_empty() {
        let last = parsed.instructions.last().map_or(Span::default(), |last| last.keyword.span);
        ctx.errors.push(
            Diagnostic::error(codes::NO_STAGE, "the Dockerfile has no stage to build")
                .at(ctx.source, last)
                .help("start a stage with FROM, for example: FROM alpine:3"),
        );
        return None;
    }
    let last_name =
        parts.last().and_then(|(_, from, _)| from.name.as_ref()).map(|name| name.value.to_lowercase());
    let target_name =
        ctx.options.target.clone().filter(|it| !it.is_empty()).or(last_name).unwrap_or_default();
    args::set_platform_args(ctx, &target_name);
    check_default_args(ctx, &globals, &parts);
    let start = ctx.globals.clone();
    match args::declared(ctx, &start, &globals, true) {
        Ok((env, all)) => {
            (ctx.globals, ctx.global_args) = (env, all);
            Capture::globals(ctx, &globals);
        }
        Err(faults) => faults.into_iter().for_each(|fault| ctx.fail(fault)),
    }
    args::resolve_epoch(ctx);

    let mut out = Plan { stages: Vec::with_capacity(parts.len()), by_name: HashMap::new(), target: 0 };
    for (index, (instruction, from, body)) in parts.into_iter().enumerate() {
        let stage = plan_stage(ctx, &out.by_name, index, instruction, from, body);
        if let Some(name) = &stage.name {
            out.by_name.insert(name.clone(), index);
        }
        out.stages.push(stage);
    }
    out.target = find_target(ctx, &out);
    check_no_cache(ctx, &out);
    find_uses(ctx, &mut out);
    find_cycle(ctx, &out);
    Some(out)
}

/// The file may name a frontend that speaks another language.
fn check_frontend(ctx: &mut Ctx<'_>) {
    let directive = ctx.parsed.directives.syntax.as_ref();
    let argument = ctx.build_args.get("BUILDKIT_SYNTAX").filter(|text| !text.is_empty());
    let text = match (argument, directive) {
        (Some(text), _) => text.as_str(),
        (None, Some(directive)) => directive.value.as_str(),
        (None, None) => return,
    };
    let image = text.split(' ').next().unwrap_or_default();
    let path = image.split('@').next().unwrap_or_default();
    let name = path.rsplit('/').next().unwrap_or_default().split(':').next().unwrap_or_default();
    if matches!(name, "" | "dockerfile" | "dockerfile-upstream" | "dockerfile.v0") {
        return;
    }
    let message =
        format!("the frontend {image:?} is not run: the file is read as docker/dockerfile reads it");
    let mut warning = Diagnostic::warning(codes::OTHER_FRONTEND, message);
    match directive.filter(|_| argument.is_none()) {
        Some(directive) => warning = warning.at(ctx.source, directive.span),
        None => warning = warning.note("it was given as build argument BUILDKIT_SYNTAX"),
    }
    ctx.warnings.push(warning.help("write # syntax=docker/dockerfile:1 if the file is a plain Dockerfile"));
}

/// A `FROM` and what follows it.
pub(crate) type Part<'a> = (&'a Instruction, &'a FromInstr, &'a [Instruction]);

/// The arguments before the first `FROM`, and the stages.
fn split<'a>(ctx: &mut Ctx<'a>) -> (Vec<(&'a Instruction, &'a [ArgDecl])>, Vec<Part<'a>>) {
    let all = &ctx.parsed.instructions;
    let (mut globals, mut stages) = (Vec::new(), Vec::new());
    let mut rest = all.as_slice();
    while let Some((instruction, after)) = rest.split_first() {
        match &instruction.kind {
            InstructionKind::From(from) => {
                let end = after
                    .iter()
                    .position(|it| matches!(it.kind, InstructionKind::From(_)))
                    .unwrap_or(after.len());
                let (body, next) = after.split_at(end);
                stages.push((instruction, from, body));
                rest = next;
                continue;
            }
            InstructionKind::Arg(args) => globals.push((instruction, args.as_slice())),
            InstructionKind::Invalid => {}
            _ => ctx.errors.push(
                Diagnostic::error(
                    codes::BEFORE_FROM,
                    format!("{} before the first FROM", instruction.keyword.value),
                )
                .at(ctx.source, instruction.keyword.span)
                .note("only ARG may stand before the first FROM")
                .help("move it below a FROM"),
            ),
        }
        rest = after;
    }
    (globals, stages)
}

fn plan_stage<'a>(
    ctx: &mut Ctx<'a>,
    by_name: &HashMap<String, usize>,
    index: usize,
    instruction: &'a Instruction,
    from: &'a FromInstr,
    body: &'a [Instruction],
) -> Stage<'a> {
    let at = At { file: ctx.source, instruction, from: None };
    let name = from.name.as_ref().map(|name| name.value.to_lowercase());
    let base = expand_from(ctx, at, &from.base).unwrap_or_default();
    let base_text = base.value;
    ctx.outline.uses(index, &base.used);
    let platform =
        from.platform.as_ref().and_then(|word| plan_platform(ctx, at, word, name.as_deref(), index));
    let wanted = platform.clone().unwrap_or_else(|| ctx.options.platform.clone());
    let replaced = name.as_deref().and_then(|name| ctx.named_context(name, &wanted));
    let base = match by_name.get(&base_text) {
        Some(stage) => Base::Stage(*stage),
        None => {
            if replaced.is_none() {
                check_base_name(ctx, by_name, at, from, &base_text, &base.unmatched);
            }
            Base::External(base_text.clone())
        }
    };
    let ignore_cache = match &ctx.options.no_cache {
        NoCache::None => false,
        NoCache::All => true,
        NoCache::Stages(names) => {
            name.as_ref().is_some_and(|name| names.iter().any(|it| it.eq_ignore_ascii_case(name)))
        }
    };
    Stage {
        from: instruction,
        base_span: from.base.span,
        body,
        label: name.clone().unwrap_or_else(|| format!("stage-{index}")),
        name,
        base,
        base_text,
        platform,
        replaced,
        ignore_cache,
        triggers: vec![],
        triggers_known: false,
        uses: vec![],
        externals: vec![],
        needed: false,
    }
}

fn find_target(ctx: &mut Ctx<'_>, plan: &Plan<'_>) -> usize {
    let last = plan.stages.len().saturating_sub(1);
    let Some(target) = ctx.options.target.as_deref().filter(|target| !target.is_empty()) else { return last };
    if let Some(index) = plan.by_name.get(&target.to_lowercase()) {
        return *index;
    }
    let names = || plan.stages.iter().filter_map(|stage| stage.name.as_deref());
    let mut error = Fault::error(codes::NO_SUCH_TARGET, format!("there is no target stage {target:?}"));
    // A label or a number, which is enough for COPY.
    let unnamed = plan.stages.iter().enumerate().find(|(index, stage)| {
        stage.name.is_none() && (stage.label == target || target.parse() == Ok(*index))
    });
    error = match (unnamed, nearest(target, names())) {
        (Some(_), _) => error.help("a target needs a name: write FROM image AS name"),
        (None, Some(near)) => error.help(format!("did you mean {near:?}?")),
        (None, None) if names().next().is_none() => error.note("no stage has a name"),
        (None, None) => error.note(format!("the stages are {}", names().collect::<Vec<_>>().join(", "))),
    };
    ctx.fail(error);
    last
}

/// Stages that are named to be built without the cache should exist.
fn check_no_cache(ctx: &mut Ctx<'_>, plan: &Plan<'_>) {
    let NoCache::Stages(names) = &ctx.options.no_cache else { return };
    for name in names.iter().filter(|name| !plan.by_name.contains_key(&name.to_lowercase())) {
        let message = format!("there is no stage {name:?} to build without the cache");
        let mut warning = Diagnostic::warning(codes::NO_CACHE_STAGE, message);
        if let Some(near) = plan.similar(name) {
            warning = warning.help(format!("did you mean {near:?}?"));
        }
        ctx.warnings.push(warning);
    }
}

impl Plan<'_> {
    /// A stage whose name is almost `text`.
    pub(crate) fn similar(&self, text: &str) -> Option<String> {
        nearest(text, self.stages.iter().filter_map(|stage| stage.name.as_deref())).map(str::to_owned)
    }

    /// The stage's name in step names: none when the file has one stage and takes from nothing else.
    pub(crate) fn step_label(&self, index: usize) -> &str {
        let Some(stage) = self.stages.get(index) else { return "" };
        let alone = self.stages.len() == 1 && !stage.body.iter().any(|it| counts_as_source(self, it));
        if alone { "" } else { &stage.label }
    }

    /// Marks the stages that the target needs, or all.
    pub(crate) fn mark_needed(&mut self, all: bool) {
        let mut stack: Vec<usize> = if all { (0..self.stages.len()).collect() } else { vec![self.target] };
        for stage in &mut self.stages {
            stage.needed = false;
        }
        while let Some(index) = stack.pop() {
            let Some(stage) = self.stages.get_mut(index) else { continue };
            if std::mem::replace(&mut stage.needed, true) || stage.replaced.is_some() {
                continue;
            }
            if let Base::Stage(base) = stage.base {
                stack.push(base);
            }
            stack.extend(stage.uses.iter().map(|(used, _)| *used));
        }
    }

    /// The plan for people.
    pub(crate) fn outline(&self, ctx: &Ctx<'_>) -> StagePlan {
        let stages = self.stages.iter().map(|stage| {
            let mut uses: Vec<usize> = stage.uses.iter().map(|(used, _)| *used).collect();
            if let Base::Stage(base) = stage.base {
                uses.push(base);
            }
            uses.sort_unstable();
            uses.dedup();
            StageOutline {
                name: stage.label.clone(),
                named: stage.name.is_some(),
                description: description(&stage.from.comments, stage.name.as_deref().unwrap_or_default()),
                base: stage.base_text.clone(),
                platform: stage.platform.clone(),
                needed: stage.needed,
                uses,
                instructions: stage.body.len(),
                span: stage.from.span,
            }
        });
        StagePlan { stages: stages.collect(), target: self.target, global_args: ctx.global_args.clone() }
    }
}
