//! One stage while its instructions are lowered: what the file system, the environment and the config are so far,
//! and how its steps are called.

use std::sync::Arc;

use rbuild_diag::{Span, Spanned};
use rbuild_dockerfile::{Word, expand_word};
use rbuild_graph::{Edge, NodeMeta};
use rbuild_oci::{ImageConfig, Platform};

use crate::args::{is_scan_arg, platform_text};
use crate::codes;
use crate::ctx::{At, Ctx};
use crate::env::Env;
use crate::fault::Fault;
use crate::image::Image;
use crate::instr;
use crate::paths;
use crate::sources::Found;
use crate::stages::{Base, Plan};
use crate::uses::{Source, resolve_source};

/// What a finished stage leaves to those that start from it.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// `None` is an empty file system.
    pub(crate) rootfs: Option<Edge>,
    pub(crate) env: Arc<Env>,
    /// Absolute, `/`-separated.
    pub(crate) cwd: String,
    pub(crate) user: String,
    pub(crate) platform: Platform,
    pub(crate) image: Image,
    /// The config of the image at the bottom, as it was.
    pub(crate) base_config: Option<Arc<ImageConfig>>,
    /// Declared arguments, each name once, with the value of the last declaration.
    pub(crate) build_args: Arc<Vec<(String, Option<String>)>>,
    /// `WORKDIR` stood in this file.
    pub(crate) workdir_set: bool,
}

impl State {
    fn new(platform: Platform, image: Image) -> Self {
        Self {
            rootfs: None,
            env: Arc::default(),
            cwd: "/".to_owned(),
            user: String::new(),
            platform,
            image,
            base_config: None,
            build_args: Arc::default(),
            workdir_set: false,
        }
    }

    /// Declares an argument.
    pub(crate) fn declare(&mut self, name: &str, value: Option<String>) {
        let all = Arc::make_mut(&mut self.build_args);
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => all.push((name.to_owned(), value)),
        }
    }

    /// Sets a variable of the environment.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        Arc::make_mut(&mut self.env).set(name, value);
    }
}

/// A stage that is being lowered.
pub(crate) struct Run<'p> {
    pub(crate) index: usize,
    /// For step names; empty when the file has one stage.
    step_label: &'p str,
    /// As named, or `stage-N`.
    pub(crate) label: &'p str,
    total: usize,
    shown: usize,
    /// A trigger is being lowered.
    pub(crate) on_build: bool,
    pub(crate) ignore_cache: bool,
    pub(crate) state: State,
    /// Where the last `CMD`, `ENTRYPOINT`, `HEALTHCHECK` of this stage stood.
    pub(crate) cmd: Option<Span>,
    pub(crate) entrypoint: Option<Span>,
    pub(crate) healthcheck: Option<Span>,
}

impl<'p> Run<'p> {
    fn new(plan: &'p Plan<'_>, index: usize, state: State) -> Self {
        let stage = &plan.stages[index];
        let from = usize::from(matches!(&stage.base, Base::External(text) if text != "scratch"));
        let steps = stage.body.iter().filter(|instruction| instr::is_step(instruction)).count();
        Self {
            index,
            step_label: plan.step_label(index),
            label: &stage.label,
            total: from + steps + stage.triggers.len(),
            shown: 0,
            on_build: false,
            ignore_cache: stage.ignore_cache,
            state,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
        }
    }

    /// The step's name: `[linux/arm64 build 2/4] RUN make`. Counts the step.
    pub(crate) fn title(&mut self, ctx: &Ctx<'_>, text: &str, env: Option<&Env>) -> String {
        self.shown += 1;
        self.same_title(ctx, text, env)
    }

    /// The name of one more operation of the step that was counted last.
    pub(crate) fn same_title(&self, ctx: &Ctx<'_>, text: &str, env: Option<&Env>) -> String {
        self.prefix(ctx, self.shown, env) + text
    }

    fn prefix(&self, ctx: &Ctx<'_>, shown: usize, env: Option<&Env>) -> String {
        if self.total == 0 {
            return String::new();
        }
        let mut out = String::from("[");
        if ctx.options.multi_platform {
            out.push_str(&platform_text(&self.state.platform));
            if let Some(other) = env.and_then(|env| other_platform(&self.state.platform, env)) {
                out.push_str("->");
                out.push_str(&other);
            }
            out.push(' ');
        }
        if !self.step_label.is_empty() {
            out.push_str(self.step_label);
            out.push(' ');
        }
        let width = self.total.to_string().len();
        out.push_str(&format!("{shown:width$}/{}] ", self.total));
        if self.on_build {
            out.push_str("ONBUILD ");
        }
        out
    }

    /// What people see of a step of this stage.
    pub(crate) fn meta(&self, ctx: &Ctx<'_>, at: At<'_>, name: String, ignore_cache: bool) -> NodeMeta {
        NodeMeta {
            name,
            place: Some(ctx.place(at)),
            stage: self.label.to_owned(),
            ignore_cache,
            progress_group: None,
        }
    }

    /// Expands a word with this stage's variables.
    pub(crate) fn expand(&self, ctx: &mut Ctx<'_>, at: At<'_>, word: &Word) -> Result<String, Fault> {
        let declared = |name: &str| self.declared(name);
        ctx.expand(&self.state.env, &declared, at, word)
    }

    /// Whether an `ARG` of this stage, or of the one it starts from, names it.
    pub(crate) fn declared(&self, name: &str) -> bool {
        self.state.build_args.iter().any(|(known, _)| known == name)
    }

    /// An instruction's text for a step name: variables replaced, keyword in capitals.
    pub(crate) fn display(&self, ctx: &Ctx<'_>, original: &str) -> String {
        let env = &self.state.env;
        let lookup = |name: &str| env.get(name).map(str::to_owned);
        let text = match original.contains(['$', '\'', '"', '\\', '`']) {
            true => expand_word(original, ctx.parsed.directives.escape, &lookup)
                .map_or_else(|_| original.to_owned(), |expanded| expanded.value),
            false => original.to_owned(),
        };
        uppercase_keyword(&text)
    }
}

/// The first word in capitals.
pub(crate) fn uppercase_keyword(text: &str) -> String {
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

/// For cross compilation: what the `TARGET…` variables say, where it is not the stage's platform.
fn other_platform(base: &Platform, env: &Env) -> Option<String> {
    let target = match env.get("TARGETPLATFORM").and_then(|text| text.parse::<Platform>().ok()) {
        Some(platform) => platform,
        None => {
            let (os, arch, variant) = (env.get("TARGETOS"), env.get("TARGETARCH"), env.get("TARGETVARIANT"));
            if os.is_none() && arch.is_none() && variant.is_none() {
                return None;
            }
            let or = |value: Option<&str>, other: &str| {
                value.filter(|value| !value.is_empty()).unwrap_or(other).to_owned()
            };
            Platform {
                os: or(os, &base.os),
                architecture: or(arch, &base.architecture),
                variant: variant.unwrap_or_default().to_owned(),
                ..Platform::default()
            }
        }
    }
    .normalized();
    if target.os != base.os {
        return Some(platform_text(&target));
    }
    if target.architecture == base.architecture {
        return None;
    }
    let variant = if target.variant.is_empty() { String::new() } else { format!("/{}", target.variant) };
    Some(format!("{}{variant}", target.architecture))
}

/// All stages that are lowered so far.
pub(crate) struct Stages {
    done: Vec<Option<State>>,
}

impl Stages {
    pub(crate) fn new(plan: &Plan<'_>) -> Self {
        Self { done: vec![None; plan.stages.len()] }
    }

    pub(crate) fn get(&self, index: usize) -> Option<&State> {
        self.done.get(index)?.as_ref()
    }

    /// A finished stage's config with its whole history.
    pub(crate) fn config_of(&self, index: usize) -> ImageConfig {
        let mut chain = Vec::new();
        let mut next = self.get(index).and_then(|state| state.image.history_of);
        while let Some(base) = next {
            chain.push(base);
            next = self.get(base).and_then(|state| state.image.history_of);
        }
        let before = chain.iter().rev().filter_map(|base| self.get(*base));
        let before = before.flat_map(|state| state.image.history.iter().cloned()).collect();
        let image = self.get(index).map_or_else(Image::blank, |state| state.image.clone());
        image.finish(before)
    }

    /// The file system that `--from` of a step names. `Ok(None)` is an empty one; `Err(Fault::Known)` was reported before.
    pub(crate) fn source(
        &self,
        ctx: &mut Ctx<'_>,
        plan: &Plan<'_>,
        run: &Run<'_>,
        at: At<'_>,
        text: &Spanned<String>,
        mount: bool,
    ) -> Result<Option<Edge>, Fault> {
        match resolve_source(ctx, plan, at, text, mount)? {
            Source::Stage(index) => match self.get(index) {
                Some(state) => Ok(state.rootfs),
                None if index < run.index => Err(Fault::Known),
                None => Err(not_yet(plan, run, at, text, index)),
            },
            Source::External(name) => {
                let platform = ctx.options.platform.clone();
                let found = ctx
                    .find(&name, &platform)
                    .map_err(|error| at.error(codes::INVALID_REFERENCE, text.span, error.to_string()))?;
                let place = (at.file, text.span);
                let opened = ctx.open(&found, &platform, place, "", &mut |name| format!("FROM {name}"))?;
                opened.map(|opened| opened.rootfs).ok_or(Fault::Known)
            }
        }
    }

    /// Lowers stage `index`, which the target needs.
    pub(crate) fn lower(&mut self, ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize) {
        let state = if plan.stages[index].replaced.is_some() {
            self.replaced(ctx, plan, index)
        } else {
            self.body(ctx, plan, index)
        };
        if let Some(slot) = self.done.get_mut(index) {
            *slot = state;
        }
    }

    /// A stage whose place a named context takes.
    fn replaced(&self, ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize) -> Option<State> {
        let stage = &plan.stages[index];
        let platform = stage.platform.as_ref().unwrap_or(&ctx.options.platform).normalized();
        let place = (ctx.source, stage.from.span);
        let found = Found::Context(stage.replaced?);
        let opened = match ctx.open(&found, &platform, place, &stage.label, &mut |name| name) {
            Ok(opened) => opened?,
            Err(error) => {
                ctx.fail(error);
                return None;
            }
        };
        let mut state = State::new(platform, Image::blank());
        if let Some(config) = &opened.config {
            state.image = Image::from_base(config);
            state.image.edit().on_build.clear();
            for entry in &config.config.env {
                let (name, value) = crate::env::split(entry);
                state.set_env(name, value);
            }
            if !config.config.working_dir.is_empty() {
                state.cwd = paths::join("/", &config.config.working_dir);
            }
            state.platform = opened
                .platform
                .filter(|platform| !platform.os.is_empty() && !platform.architecture.is_empty())
                .unwrap_or(state.platform);
        }
        state.rootfs = opened.rootfs;
        Some(state)
    }

    fn body(&self, ctx: &mut Ctx<'_>, plan: &Plan<'_>, index: usize) -> Option<State> {
        let stage = &plan.stages[index];
        let platform = stage.platform.as_ref().unwrap_or(&ctx.options.platform).normalized();
        let from = At { file: ctx.source, instruction: stage.from, from: None };
        let mut run = Run::new(plan, index, State::new(platform, Image::blank()));
        match &stage.base {
            Base::Stage(base) => {
                let base_state = self.get(*base)?;
                run.state = base_state.clone();
                run.state.image = Image::from_stage(&base_state.image, *base);
            }
            Base::External(text) => self.open_base(ctx, plan, &mut run, text)?,
        }
        start(ctx, &mut run, from);
        for trigger in &stage.triggers {
            let from = Some(stage.from);
            let at = At { file: &trigger.file, instruction: &trigger.instruction, from };
            run.on_build = true;
            instr::lower(ctx, plan, self, &mut run, at);
        }
        run.on_build = false;
        for instruction in stage.body {
            let at = At { file: ctx.source, instruction, from: None };
            instr::lower(ctx, plan, self, &mut run, at);
        }
        Some(run.state)
    }

    fn open_base(&self, ctx: &mut Ctx<'_>, plan: &Plan<'_>, run: &mut Run<'_>, text: &str) -> Option<()> {
        let stage = &plan.stages[run.index];
        let target = ctx.options.platform.normalized();
        let platform = run.state.platform.clone();
        let at = At { file: ctx.source, instruction: stage.from, from: None };
        let found = match ctx.find(text, &platform) {
            Ok(found) => found,
            Err(error) => {
                ctx.fail(at.error(codes::INVALID_REFERENCE, stage.base_span, error.to_string()));
                return None;
            }
        };
        if matches!(found, Found::Scratch) {
            run.state = State::new(target.clone(), Image::scratch(&target));
            return Some(());
        }
        let prefix = run.prefix(ctx, run.shown + 1, None);
        let place = (ctx.source, stage.from.span);
        let mut title = |name: String| format!("{prefix}FROM {name}");
        let opened = match ctx.open(&found, &platform, place, &stage.label, &mut title) {
            Ok(opened) => opened?,
            Err(error) => {
                ctx.fail(error);
                return None;
            }
        };
        if matches!(found, Found::Image(_)) && opened.rootfs.is_some() {
            run.shown += 1;
            if let Some(actual) = &opened.platform {
                check_platform(ctx, at, stage.base_span, text, &platform, actual);
            }
        }
        run.state.rootfs = opened.rootfs;
        run.state.image = match &opened.config {
            Some(config) => Image::from_base(config),
            None => Image::scratch(&platform),
        };
        // The triggers ran, or will run, in this stage.
        if !run.state.image.config().config.on_build.is_empty() {
            run.state.image.edit().on_build.clear();
        }
        run.state.base_config = opened.config;
        Some(())
    }
}

fn not_yet(plan: &Plan<'_>, run: &Run<'_>, at: At<'_>, text: &Spanned<String>, index: usize) -> Fault {
    let other = &plan.stages[index];
    let (message, help) = if index == run.index {
        let message = format!("stage {:?} cannot take files from itself", other.label);
        (message, "name another stage, or copy within the stage with RUN cp".to_owned())
    } else {
        let message = format!(
            "stage {:?} is defined after stage {:?}, which takes files from it",
            other.label, run.label
        );
        (message, format!("move stage {:?} above this one", other.label))
    };
    at.error(codes::LATER_STAGE, text.span, message).help(help)
}

/// The base image should be of the platform that was asked for.
fn check_platform(
    ctx: &mut Ctx<'_>,
    at: At<'_>,
    span: Span,
    name: &str,
    wanted: &Platform,
    actual: &Platform,
) {
    if (&wanted.os, &wanted.architecture) == (&actual.os, &actual.architecture) {
        return;
    }
    let (wanted, actual) = (platform_text(wanted), platform_text(&actual.normalized()));
    let message = format!("base image {name} is for {actual}, not for {wanted}");
    let help =
        format!("use an image that exists for {wanted}, or state its own: FROM --platform={actual} {name}");
    ctx.warn(crate::lint::INVALID_BASE_PLATFORM, at, span, message, Some(help));
}

/// What every stage does first: the base's variables again, its working directory, its user.
fn start(ctx: &mut Ctx<'_>, run: &mut Run<'_>, at: At<'_>) {
    let state = &mut run.state;
    state.image.ensure_path(&state.platform.os);
    let config = &state.image.config().config;
    let (env, working_dir, user) = (config.env.clone(), config.working_dir.clone(), config.user.clone());
    if !env.is_empty() {
        let all = Arc::make_mut(&mut state.env);
        for entry in &env {
            let (name, value) = crate::env::split(entry);
            all.set(name, value);
        }
    }
    if !working_dir.is_empty()
        && let Err(error) = instr::workdir::enter(run, at, at.instruction.span, &working_dir)
    {
        ctx.fail(error);
    }
    if !user.is_empty() {
        run.state.user = user;
    }
}

/// Whether `name=value` asks to scan stage `label`: a truth value, or a list of stages.
fn scans(value: &str, label: &str) -> bool {
    crate::gotext::parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == label))
}

/// Whether argument `name` asks to scan this stage.
pub(crate) fn wants_scan(ctx: &Ctx<'_>, state: &State, label: &str, name: &str) -> bool {
    debug_assert!(is_scan_arg(name));
    let own = state.build_args.iter().find(|(known, _)| known == name);
    match own.and_then(|(_, value)| value.as_deref()) {
        Some(value) => scans(value, label),
        None => ctx.globals.get(name).is_some_and(|value| scans(value, label)),
    }
}
