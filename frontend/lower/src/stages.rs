//! The stages of a file: names → indices, what each starts from and copies from, which the target needs, cycles.
//! Everything here is known without images; triggers of base images are added later (`onbuild.rs`).

use std::collections::HashMap;

use rbuild_diag::{Diagnostic, Span, Spanned, nearest};
use rbuild_dockerfile::{
    ArgDecl, ExpandError, Expanded, FromInstr, Instruction, InstructionKind, expand_word,
};
use rbuild_oci::{Platform, Reference};

use crate::codes;
use crate::ctx::{At, Ctx, expand_error};
use crate::fault::Fault;
use crate::onbuild::Trigger;
use crate::{NoCache, StageOutline, StagePlan, args, lint};

/// All stages, in the order of the file.
pub(crate) struct Plan<'a> {
    pub(crate) stages: Vec<Stage<'a>>,
    by_name: HashMap<String, usize>,
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

/// Plans the stages; `None` when there are none. Mistakes are in `ctx.errors`.
pub(crate) fn plan<'a>(ctx: &mut Ctx<'a>) -> Option<Plan<'a>> {
    let parsed = ctx.parsed;
    lint::check_file(&mut ctx.lint, parsed, ctx.source);
    let (globals, parts) = split(ctx);
    if parts.is_empty() {
        ctx.errors.push(
            Diagnostic::error(codes::NO_STAGE, "the Dockerfile has no stage to build")
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
        Ok((env, all)) => (ctx.globals, ctx.global_args) = (env, all),
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

type Part<'a> = (&'a Instruction, &'a FromInstr, &'a [Instruction]);

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

/// `FROM` should be valid when no build argument is given.
fn check_default_args(ctx: &mut Ctx<'_>, globals: &[(&Instruction, &[ArgDecl])], parts: &[Part<'_>]) {
    let Ok((env, _)) = args::declared(ctx, &ctx.globals, globals, false) else { return };
    for (instruction, from, _) in parts.iter().filter(|(_, from, _)| from.base.value.contains('$')) {
        let lookup = |name: &str| env.get(name).map(str::to_owned);
        let Ok(base) = expand_word(&from.base.value, ctx.parsed.directives.escape, &lookup) else { return };
        if base.value.parse::<Reference>().is_ok() {
            continue;
        }
        let at = At { file: ctx.source, instruction, from: None };
        let message =
            format!("the default arguments make {:?} an empty or invalid image name", from.base.value);
        let help = "give the ARG before the first FROM a default that names an image".to_owned();
        ctx.warn(lint::INVALID_DEFAULT_ARG, at, from.base.span, message, Some(help));
    }
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
    let platform = from.platform.as_ref().and_then(|word| plan_platform(ctx, at, word, name.as_deref()));
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

/// Expands a word of `FROM` with the global arguments.
fn expand_from(ctx: &mut Ctx<'_>, at: At<'_>, word: &Spanned<String>) -> Option<Expanded> {
    let result: Result<Expanded, ExpandError> =
        expand_word(&word.value, ctx.parsed.directives.escape, &|name| {
            ctx.globals.get(name).map(str::to_owned)
        });
    let expanded = match result {
        Ok(expanded) => expanded,
        Err(error) => {
            let error = expand_error(at, word, &error);
            ctx.fail(error);
            return None;
        }
    };
    if expanded.unmatched.is_empty() {
        return Some(expanded);
    }
    let declared: Vec<String> = ctx.global_args.iter().map(|(name, _)| name.clone()).collect();
    for name in expanded.unmatched.iter().filter(|name| !declared.contains(name)) {
        let known = declared.iter().map(String::as_str).chain(ctx.globals.names());
        let help = match nearest(name, known) {
            Some(near) => format!("did you mean ${near}?"),
            None => format!("declare it before the first FROM: ARG {name}"),
        };
        let message = format!("FROM uses ${name}, which is not declared before the first FROM");
        ctx.warn(lint::UNDEFINED_ARG_IN_FROM, at, word.span, message, Some(help));
    }
    Some(expanded)
}

fn check_base_name(
    ctx: &mut Ctx<'_>,
    by_name: &HashMap<String, usize>,
    at: At<'_>,
    from: &FromInstr,
    text: &str,
    unset: &[String],
) {
    if text.is_empty() {
        if ctx.errors.iter().any(|it| it.place.as_ref().is_some_and(|(_, span)| *span == from.base.span)) {
            return; // its expansion failed, which was reported
        }
        let error = at
            .error(
                codes::EMPTY_BASE,
                from.base.span,
                format!("the base image {:?} expands to nothing", from.base.value),
            )
            .help("give the ARG a default before the first FROM, or pass it with --build-arg");
        ctx.fail(error);
        return;
    }
    if text == "scratch" {
        return;
    }
    let Err(error) = text.parse::<Reference>() else { return };
    let mut error = at.error(codes::INVALID_REFERENCE, from.base.span, error.to_string());
    let lower = text.to_lowercase();
    if let Some(near) = similar_arg(ctx, unset) {
        error = error.help(format!("did you mean ${near}?"));
    } else if by_name.contains_key(&lower) {
        error = error.help(format!("stage names are lower-case here: FROM {lower}"));
    } else if let Some(near) = nearest(text, by_name_sorted(by_name)) {
        error = error.help(format!("did you mean the stage {near:?}?"));
    }
    ctx.fail(error);
}

/// A global argument whose name is almost that of an unset one.
fn similar_arg(ctx: &Ctx<'_>, unset: &[String]) -> Option<String> {
    let known = || ctx.global_args.iter().map(|(name, _)| name.as_str()).chain(ctx.globals.names());
    unset.iter().find_map(|name| nearest(name, known()).filter(|near| near != name).map(str::to_owned))
}

fn by_name_sorted(by_name: &HashMap<String, usize>) -> Vec<&str> {
    let mut names: Vec<&str> = by_name.keys().map(String::as_str).collect();
    names.sort_unstable();
    names
}

fn plan_platform(
    ctx: &mut Ctx<'_>,
    at: At<'_>,
    word: &Spanned<String>,
    stage: Option<&str>,
) -> Option<Platform> {
    let expanded = expand_from(ctx, at, word)?;
    if expanded.used == ["TARGETPLATFORM"]
        && expanded.unmatched.is_empty()
        && ctx.globals.get("TARGETPLATFORM") == Some(&expanded.value)
    {
        let message = format!("--platform={} is the default", word.value);
        ctx.warn(lint::REDUNDANT_PLATFORM, at, word.span, message, Some("leave --platform out".to_owned()));
    }
    let constant = expanded.used.is_empty() && expanded.unmatched.is_empty();
    match expanded.value.parse::<Platform>() {
        Ok(platform) if !expanded.value.is_empty() => {
            let stage = stage.unwrap_or_default();
            if constant && !stage.contains(&platform.os) && !stage.contains(&platform.architecture) {
                let message = format!("FROM has the constant platform {:?}", expanded.value);
                let help = "use a variable such as $BUILDPLATFORM, or name the stage after the platform";
                ctx.warn(lint::CONST_PLATFORM, at, word.span, message, Some(help.to_owned()));
            }
            Some(platform)
        }
        result => {
            let message = match result {
                Err(error) if !expanded.value.is_empty() => error.to_string(),
                _ => format!("the platform {:?} expands to nothing", word.value),
            };
            let mut error = at.error(codes::INVALID_PLATFORM, word.span, message);
            let unset = expanded.unmatched.first();
            if let Some(near) = unset.and_then(|name| nearest(name, ctx.globals.names())) {
                error = error.help(format!("did you mean ${near}?"));
            }
            ctx.fail(error);
            None
        }
    }
}

fn find_target(ctx: &mut Ctx<'_>, plan: &Plan<'_>) -> usize {
    let last = plan.stages.len().saturating_sub(1);
    let Some(target) = ctx.options.target.as_deref().filter(|target| !target.is_empty()) else { return last };
    if let Some(index) = plan.by_name.get(&target.to_lowercase()) {
        return *index;
    }
    if let Some(index) = target.parse::<usize>().ok().filter(|index| *index < plan.stages.len()) {
        return index;
    }
    let labels = || plan.stages.iter().map(|stage| stage.label.as_str());
    if let Some(index) = labels().position(|label| label == target) {
        return index;
    }
    let mut error = Fault::error(codes::NO_SUCH_TARGET, format!("there is no target stage {target:?}"));
    error = match nearest(target, labels()) {
        Some(near) => error.help(format!("did you mean {near:?}?")),
        None => error.note(format!("the stages are {}", labels().collect::<Vec<_>>().join(", "))),
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
fn counts_as_source(plan: &Plan<'_>, instruction: &Instruction) -> bool {
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
                description: description(stage),
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

/// `# name text` above `FROM … AS name` describes the stage.
fn description(stage: &Stage<'_>) -> String {
    let (Some(name), Some(comment)) = (&stage.name, stage.from.comments.last()) else { return String::new() };
    match comment.value.split_once(' ') {
        Some((first, rest)) if first.eq_ignore_ascii_case(name) => rest.trim().to_owned(),
        _ => String::new(),
    }
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

fn find_uses<'a>(ctx: &mut Ctx<'a>, plan: &mut Plan<'a>) {
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
fn find_cycle(ctx: &mut Ctx<'_>, plan: &Plan<'_>) {
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
