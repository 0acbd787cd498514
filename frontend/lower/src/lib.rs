//! Dockerfile syntax tree → build graph and image config, as BuildKit's dockerfile frontend emits them, because
//! cache keys and image configs must agree with it. Pure: what it has to know of images and git it asks for
//! (`Outcome::Need`), the caller finds out and calls again. Knows nothing of registries, stores or the engine.

mod args;
mod codes;
mod ctx;
mod draft;
mod dump;
mod env;
mod facts;
mod fault;
mod from;
mod git;
mod gotext;
mod ignore;
mod image;
mod instr;
mod lint;
mod onbuild;
mod options;
mod outline;
mod paths;
mod sources;
mod stage;
mod stages;
mod uses;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rbuild_diag::{Diagnostic, SourceFile, Span};
use rbuild_dockerfile::Dockerfile;
use rbuild_graph::{Edge, Graph};
use rbuild_oci::{ImageConfig, Platform};

use ctx::Ctx;
use stage::Stages;
use stages::{Base, Plan};

pub use codes::CODES;
pub use dump::{dump, dump_outcome};
pub use facts::{Facts, GitFacts, GitQuery, ImageFacts, ImageOrigin, ImageQuery, Need, Needs};
pub use git::{GitContext, remote_context};
pub use lint::{RULES, Rule, is_secret_name, merge_checks, rule};
pub use options::{IgnoreFile, LowerOptions, MainContext, NamedContext, NamedContextValue, NoCache};
pub use outline::{Outline, OutlineArg, OutlineMount, description};

/// The result of a call to `lower`.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Finished.
    Done(Box<Lowered>),
    /// These must be resolved and added to the facts; then call again.
    Need(Needs),
}

/// A build as data.
#[derive(Clone, Debug)]
pub struct Lowered {
    /// The operations.
    pub graph: Graph,
    /// What becomes the image's file system; `None` is an empty one.
    pub target: Option<Edge>,
    /// The image's config: history with its `empty_layer` flags, `rootfs` empty. `created` (also of the new history
    /// entries) is set only by `SOURCE_DATE_EPOCH`.
    pub config: ImageConfig,
    /// The config of the image the target starts from, as it was.
    pub base_config: Option<ImageConfig>,
    /// The file's stages, and which of them the target needs.
    pub plan: StagePlan,
    /// Lint findings and other warnings, in the order of the file.
    pub warnings: Vec<Diagnostic>,
    /// The platform of the target stage.
    pub platform: Platform,
    /// Whether any step reads the main build context.
    pub uses_context: bool,
    /// Whether the target stage must not be answered from the cache.
    pub ignore_cache: bool,
    /// `SOURCE_DATE_EPOCH` in seconds.
    pub source_date_epoch: Option<i64>,
    /// The main context, where it is to be scanned for a bill of materials.
    pub scan_context: Option<Edge>,
    /// Stages other than the target that are to be scanned, by name.
    pub scan_stages: Vec<(String, Edge)>,
    /// What it takes from outside.
    pub outline: Outline,
}

/// The stages of a file and what the target needs of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StagePlan {
    /// In the order of the file.
    pub stages: Vec<StageOutline>,
    /// Index of the target.
    pub target: usize,
    /// Global arguments with their values.
    pub global_args: Vec<(String, Option<String>)>,
}

/// One stage in outline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StageOutline {
    /// Lower-case name, or `stage-N`.
    pub name: String,
    /// Whether the file gives the name.
    pub named: bool,
    /// From the comment `# NAME description` above `FROM`.
    pub description: String,
    /// What `FROM` names, expanded.
    pub base: String,
    /// `--platform`, expanded.
    pub platform: Option<Platform>,
    /// Whether the target needs it.
    pub needed: bool,
    /// Stages it takes from (`FROM`, `COPY --from`, mounts), each once, ascending.
    pub uses: Vec<usize>,
    /// Instructions in it.
    pub instructions: usize,
    /// Place of `FROM`.
    pub span: Span,
}

/// Lowers `parsed` for one platform.
///
/// # Errors
/// All mistakes that were found, with the findings of the lint, in the order of the file.
pub fn lower(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
    facts: &Facts,
) -> Result<Outcome, Vec<Diagnostic>> {
    let mut ctx = Ctx::new(parsed, source, options, facts);
    let Some(plan) = prepare(&mut ctx) else { return Err(report(ctx)) };
    if !ctx.needs.is_empty() {
        return foresee(&ctx);
    }
    let stages = lower_stages(&mut ctx, &plan);
    if !ctx.needs.is_empty() && ctx.errors.is_empty() {
        return Ok(Outcome::Need(ctx.needs));
    }
    finish(ctx, &plan, &stages)
}

/// Plans the stages and asks for the images; `None` when there are mistakes.
fn prepare<'a>(ctx: &mut Ctx<'a>) -> Option<Plan<'a>> {
    let mut plan = stages::plan(ctx)?;
    if ctx.errors.is_empty() {
        require_bases(ctx, &mut plan);
    }
    ctx.errors.is_empty().then_some(plan)
}

fn lower_stages(ctx: &mut Ctx<'_>, plan: &Plan<'_>) -> Stages {
    let mut stages = Stages::new(plan);
    for index in 0..plan.stages.len() {
        if plan.stages[index].needed {
            stages.lower(ctx, plan, index);
        }
    }
    stages
}

/// Looks ahead with images assumed to be plain: mistakes that no image can change are reported before anything is
/// fetched, and git references are asked for together with the images.
fn foresee(ctx: &Ctx<'_>) -> Result<Outcome, Vec<Diagnostic>> {
    let mut needs = ctx.needs.clone();
    let assumed = assume(ctx.facts, &needs);
    let mut ahead = Ctx::new(ctx.parsed, ctx.source, ctx.options, &assumed);
    if let Some(plan) = prepare(&mut ahead) {
        lower_stages(&mut ahead, &plan);
    }
    ahead.errors.retain(|error| error.code != codes::NO_MOUNT_TARGET && certain(&error.place));
    if !ahead.errors.is_empty() {
        return Err(in_order(ctx.source, ahead.errors));
    }
    for need in ahead.needs.git {
        if certain(&need.place) && needs.git.iter().all(|known| known.query != need.query) {
            needs.git.push(need);
        }
    }
    Ok(Outcome::Need(needs))
}

/// What depends on a variable, or on the working directory, may depend on the image.
fn certain(place: &Option<(SourceFile, Span)>) -> bool {
    let text = place.as_ref().and_then(|(file, span)| file.text().get(span.range()));
    text.is_some_and(|text| !text.contains('$'))
}

/// Whether a word cannot be expanded whatever the variables are.
fn is_malformed_expansion(error: &Diagnostic) -> bool {
    let malformed = [": syntax error: ", ": unsupported modifier (", ": unexpected end of statement "];
    error.code == codes::EXPANSION && malformed.iter().any(|text| error.message.contains(text))
}

/// The facts, and plain images where there are none.
fn assume(facts: &Facts, needs: &Needs) -> Facts {
    let mut assumed = facts.clone();
    for need in &needs.images {
        assumed.images.insert(need.query.clone(), plain_image(&need.query.platform));
    }
    assumed
}

/// Mistakes in single instructions of a file that cannot be lowered because the parser found others: whatever the
/// broken lines were meant to say, these are wrong.
#[must_use]
pub fn local_mistakes(parsed: &Dockerfile, source: &SourceFile, options: &LowerOptions) -> Vec<Diagnostic> {
    let options = LowerOptions { all_stages: true, ..options.clone() };
    let facts = Facts::default();
    let mut first = Ctx::new(parsed, source, &options, &facts);
    if let Some(mut plan) = stages::plan(&mut first) {
        require_bases(&mut first, &mut plan);
    }
    let assumed = assume(&facts, &first.needs);
    let mut ctx = Ctx::new(parsed, source, &options, &assumed);
    let Some(mut plan) = stages::plan(&mut ctx) else { return vec![] };
    require_bases(&mut ctx, &mut plan);
    lower_stages(&mut ctx, &plan);
    ctx.errors.retain(|error| {
        let sure = error.code == codes::VARIABLE_IN_FROM || certain(&error.place);
        sure && codes::LOCAL.contains(&error.code) || is_malformed_expansion(error)
    });
    let mut errors = in_order(source, ctx.errors);
    // What planning found, lowering found again.
    errors.dedup();
    errors
}

/// What the lint finds without any knowledge of images: for a file that cannot be lowered.
#[must_use]
pub fn lint_stages(parsed: &Dockerfile, source: &SourceFile, options: &LowerOptions) -> Vec<Diagnostic> {
    let facts = Facts::default();
    let mut ctx = Ctx::new(parsed, source, options, &facts);
    let _ = stages::plan(&mut ctx);
    let (mut findings, _) = ctx.lint.finish();
    findings.append(&mut ctx.warnings);
    in_order(source, findings)
}

fn plain_image(platform: &Platform) -> ImageFacts {
    let nothing = rbuild_digest::Digest::of("");
    let config = ImageConfig {
        architecture: platform.architecture.clone(),
        variant: platform.variant.clone(),
        os: platform.os.clone(),
        rootfs: rbuild_oci::RootFs { diff_ids: vec![nothing], ..rbuild_oci::RootFs::default() },
        ..ImageConfig::default()
    };
    ImageFacts { digest: nothing, manifest: nothing, platform: platform.clone(), config: Arc::new(config) }
}

/// The errors and what the lint found besides.
fn report(mut ctx: Ctx<'_>) -> Vec<Diagnostic> {
    let (findings, violation) = std::mem::take(&mut ctx.lint).finish();
    let all = ctx.errors.into_iter().chain(findings).chain(ctx.warnings).chain(violation);
    in_order(ctx.source, all.collect())
}

/// Finds out what the target needs and asks for the images in it. Triggers of base images can bring in more.
fn require_bases(ctx: &mut Ctx<'_>, plan: &mut Plan<'_>) {
    // Triggers run where the target needs them, also when all stages are looked at.
    loop {
        plan.mark_needed(false);
        if !onbuild::add_triggers(ctx, plan) {
            break;
        }
    }
    plan.mark_needed(ctx.options.all_stages);
    let target = ctx.options.platform.clone();
    for stage in plan.stages.iter().filter(|stage| stage.needed) {
        let own = stage.platform.clone().unwrap_or_else(|| target.clone());
        let base = (ctx.source, stage.base_span);
        if let Some(context) = stage.replaced {
            ctx.require(&sources::Found::Context(context), &own, base, || None);
            continue;
        }
        if let Base::External(text) = &stage.base
            && let Ok(found) = ctx.find(text, &own)
        {
            ctx.require(&found, &own, base, || plan.similar(text));
        }
        for external in &stage.externals {
            if let Ok(found) = ctx.find(&external.value, &target) {
                ctx.require(&found, &target, (ctx.source, external.span), || plan.similar(&external.value));
            }
        }
    }
}

fn finish(mut ctx: Ctx<'_>, plan: &Plan<'_>, stages: &Stages) -> Result<Outcome, Vec<Diagnostic>> {
    let target = stages.get(plan.target).filter(|_| ctx.errors.is_empty() && !ctx.lint.fails());
    let Some(target) = target else { return Err(report(ctx)) };
    let (scan_context, scans) = scans(&mut ctx, plan, stages);
    let mut wanted = vec![target.rootfs];
    wanted.extend(scans.iter().map(|(_, edge)| Some(*edge)));
    let stage_plan = plan.outline(&ctx);
    let outline = ctx.outline.finish(plan);
    let mut config = stages.config_of(plan.target);
    finish_config(&ctx, &mut config);
    let uses_context = ctx.contexts.main().is_some_and(|edge| ctx.draft.needs(&wanted, edge));
    let (graph, mut places) =
        std::mem::take(&mut ctx.draft).finish(&wanted, scan_context).map_err(|error| {
            vec![
                Diagnostic::error(codes::GRAPH, format!("the graph could not be built: {error}"))
                    .help("this is a mistake in rbuild, please report it with the Dockerfile"),
            ]
        })?;
    let scan_context = places.pop().flatten();
    let names = scans.into_iter().map(|(name, _)| name);
    let scan_stages = names.zip(places.iter().skip(1)).filter_map(|(name, place)| Some((name, (*place)?)));
    let (mut warnings, _) = std::mem::take(&mut ctx.lint).finish();
    warnings.append(&mut ctx.warnings);
    Ok(Outcome::Done(Box::new(Lowered {
        target: places.first().copied().flatten(),
        scan_context,
        scan_stages: scan_stages.collect(),
        graph,
        config,
        base_config: target.base_config.as_deref().cloned(),
        plan: stage_plan,
        outline,
        warnings: in_order(ctx.source, warnings),
        platform: target.platform.clone(),
        uses_context,
        ignore_cache: plan.stages[plan.target].ignore_cache,
        source_date_epoch: ctx.epoch,
    })))
}

/// What is scanned for a bill of materials beside the target: the context, and stages.
fn scans(ctx: &mut Ctx<'_>, plan: &Plan<'_>, stages: &Stages) -> (Option<Edge>, Vec<(String, Edge)>) {
    let mut out = (None, Vec::new());
    for (index, stage) in plan.stages.iter().enumerate().filter(|(_, stage)| stage.replaced.is_none()) {
        let Some(state) = stages.get(index) else { continue };
        if index == plan.target && stage::wants_scan(ctx, state, &stage.label, args::SCAN_CONTEXT) {
            out.0 = ctx.main_context((ctx.source, stage.from.span)).ok();
        }
        if index != plan.target
            && stage::wants_scan(ctx, state, &stage.label, args::SCAN_STAGE)
            && let Some(edge) = state.rootfs
        {
            out.1.push((stage.label.clone(), edge));
        }
    }
    out
}

/// What the request adds to the target's config.
fn finish_config(ctx: &Ctx<'_>, config: &mut ImageConfig) {
    config.config.labels.extend(ctx.options.labels.iter().cloned());
    config.created = ctx.epoch.map(gotext::rfc3339);
    let mut platform = Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        os_version: config.os_version.clone(),
        os_features: config.os_features.clone(),
        variant: config.variant.clone(),
    };
    let target = &ctx.options.platform;
    if !ctx.options.implicit_platform {
        let same = platform.os == target.os && platform.architecture == target.architecture;
        platform.os.clone_from(&target.os);
        platform.architecture.clone_from(&target.architecture);
        if !target.variant.is_empty() || !same {
            platform.variant.clone_from(&target.variant);
        }
        if !target.os_version.is_empty() || !same {
            platform.os_version.clone_from(&target.os_version);
        }
        if !target.os_features.is_empty() {
            platform.os_features.clone_from(&target.os_features);
        }
    }
    let platform = platform.normalized();
    config.architecture = platform.architecture;
    config.os = platform.os;
    config.os_version = platform.os_version;
    config.os_features = platform.os_features;
    config.variant = platform.variant;
}

fn in_order(source: &SourceFile, mut diagnostics: Vec<Diagnostic>) -> Vec<Diagnostic> {
    sort_by_place(source, &mut diagnostics);
    diagnostics
}

/// Those without a place first, then those of `source` by place, then those of triggers of base images.
pub fn sort_by_place(source: &SourceFile, diagnostics: &mut [Diagnostic]) {
    diagnostics
        .sort_by_key(|it| it.place.as_ref().map(|(file, span)| (file.name() != source.name(), span.start)));
}

/// Stages, their names and what the target needs of them, without any knowledge of images: triggers of base images
/// are not seen.
///
/// # Errors
/// Stage names, targets and global arguments that cannot be understood.
pub fn plan_stages(
    parsed: &Dockerfile,
    source: &SourceFile,
    options: &LowerOptions,
) -> Result<StagePlan, Vec<Diagnostic>> {
    let facts = Facts::default();
    let mut ctx = Ctx::new(parsed, source, options, &facts);
    let plan = stages::plan(&mut ctx);
    let Some(mut plan) = plan.filter(|_| ctx.errors.is_empty()) else { return Err(report(ctx)) };
    plan.mark_needed(options.all_stages);
    Ok(plan.outline(&ctx))
}
