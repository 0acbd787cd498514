//! What a build takes from outside: arguments, secrets, ssh agents, of the target stage and of those it needs, as
//! BuildKit's outline has them. Collected while stages are lowered.

use std::collections::BTreeSet;

use rbuild_diag::{Span, Spanned};
use rbuild_dockerfile::{ArgDecl, Instruction, expand_word};

use crate::ctx::Ctx;
use crate::stages::{Base, Plan};

/// What a target takes from outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outline {
    /// The target stage's name; empty when the file gives none.
    pub name: String,
    /// From the comment above its `FROM`.
    pub description: String,
    /// Arguments that are used, in the order of the file.
    pub args: Vec<OutlineArg>,
    /// Secrets, in the order of the file.
    pub secrets: Vec<OutlineMount>,
    /// ssh agents, in the order of the file.
    pub ssh: Vec<OutlineMount>,
}

/// An argument.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What it is in this build; empty when it is unset.
    pub value: String,
    /// From a comment `# NAME description` above it.
    pub description: String,
    /// Place of the `ARG`.
    pub span: Span,
}

/// A secret or ssh agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// Whether the step fails without it.
    pub required: bool,
    /// Place of the `RUN`.
    pub span: Span,
}

/// What is known so far.
#[derive(Debug, Default)]
pub(crate) struct Capture {
    globals: Vec<Global>,
    stages: Vec<OfStage>,
}

#[derive(Debug)]
struct Global {
    arg: OutlineArg,
    /// What its default is made of.
    uses: Vec<String>,
}

#[derive(Clone, Debug, Default)]
struct OfStage {
    args: Vec<OutlineArg>,
    used: BTreeSet<String>,
    secrets: Vec<OutlineMount>,
    ssh: Vec<OutlineMount>,
}

/// The text behind `name` in the first comment that begins with it.
#[must_use]
pub fn description(comments: &[Spanned<String>], name: &str) -> String {
    let text =
        |comment: &Spanned<String>| comment.value.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    if name.is_empty() { String::new() } else { comments.iter().find_map(text).unwrap_or_default() }
}

impl Capture {
    /// Notes the arguments before the first `FROM`, whose values are known by now.
    pub(crate) fn globals(ctx: &mut Ctx<'_>, declarations: &[(&Instruction, &[ArgDecl])]) {
        let values = ctx.global_args.clone();
        let all = declarations
            .iter()
            .flat_map(|(instruction, args)| args.iter().map(move |arg| (*instruction, arg)));
        let mut globals: Vec<Global> = Vec::new();
        for ((instruction, arg), (_, value)) in all.zip(values) {
            let lookup = |name: &str| ctx.globals.get(name).map(str::to_owned);
            let given = ctx.build_args.contains_key(&arg.name.value);
            let uses = match &arg.default {
                Some(default) if !given => {
                    let expanded = expand_word(&default.value, ctx.parsed.directives.escape, &lookup);
                    expanded.map(|expanded| expanded.used).unwrap_or_default()
                }
                _ => vec![],
            };
            let name = arg.name.value.clone();
            globals.retain(|known| known.arg.name != name);
            let description = description(&instruction.comments, &name);
            let value = value.unwrap_or_default();
            globals
                .push(Global { arg: OutlineArg { name, value, description, span: instruction.span }, uses });
        }
        ctx.outline.globals = globals;
    }

    fn stage(&mut self, index: usize) -> &mut OfStage {
        if self.stages.len() <= index {
            self.stages.resize_with(index + 1, OfStage::default);
        }
        &mut self.stages[index]
    }

    /// Notes that `FROM` of a stage uses these.
    pub(crate) fn uses(&mut self, stage: usize, names: &[String]) {
        self.stage(stage).used.extend(names.iter().cloned());
    }

    /// Notes an `ARG` of a stage; `own` is `None` when it takes the value from before the first `FROM`.
    pub(crate) fn arg(&mut self, stage: usize, name: &str, own: Option<OutlineArg>) {
        let stage = self.stage(stage);
        stage.used.insert(name.to_owned());
        if let Some(arg) = own {
            stage.args.retain(|known| known.name != name);
            stage.args.push(arg);
        }
    }

    /// Notes a secret.
    pub(crate) fn secret(&mut self, stage: usize, mount: OutlineMount) {
        add(&mut self.stage(stage).secrets, mount);
    }

    /// Notes an ssh agent.
    pub(crate) fn ssh(&mut self, stage: usize, mount: OutlineMount) {
        add(&mut self.stage(stage).ssh, mount);
    }

    /// The outline of the target.
    pub(crate) fn finish(&self, plan: &Plan<'_>) -> Outline {
        let Some(target) = plan.stages.get(plan.target) else { return Outline::default() };
        let name = target.name.clone().unwrap_or_default();
        let description = description(&target.from.comments, &name);
        let mut out = Outline { name, description, ..Outline::default() };
        let mut seen = vec![false; plan.stages.len()];
        let mut stack = vec![plan.target];
        while let Some(index) = stack.pop() {
            let Some(stage) = plan.stages.get(index) else { continue };
            if std::mem::replace(&mut seen[index], true) {
                continue;
            }
            if let Some(own) = self.stages.get(index) {
                self.add_args(&mut out.args, own);
                own.secrets.iter().for_each(|secret| add(&mut out.secrets, secret.clone()));
                own.ssh.iter().for_each(|ssh| add(&mut out.ssh, ssh.clone()));
            }
            // The base goes first, then what is copied from, in the order of the file.
            let mut next: Vec<usize> = stage.uses.iter().map(|(used, _)| *used).collect();
            next.sort_unstable_by(|a, b| b.cmp(a));
            stack.extend(next);
            if let Base::Stage(base) = stage.base {
                stack.push(base);
            }
        }
        out.args.sort_by_key(|arg| arg.span.start);
        out.secrets.sort_by_key(|secret| secret.span.start);
        out.ssh.sort_by_key(|ssh| ssh.span.start);
        out
    }

    fn add_args(&self, out: &mut Vec<OutlineArg>, stage: &OfStage) {
        let mut used = stage.used.clone();
        let mut stack: Vec<&String> = stage.used.iter().collect();
        while let Some(name) = stack.pop() {
            let global = self.globals.iter().find(|global| global.arg.name == *name);
            let own = stage.args.iter().any(|arg| arg.name == *name);
            for more in global.filter(|_| !own).iter().flat_map(|global| &global.uses) {
                if used.insert(more.clone()) {
                    stack.push(more);
                }
            }
        }
        for arg in stage.args.iter().chain(self.globals.iter().map(|global| &global.arg)) {
            if used.contains(&arg.name) && out.iter().all(|known| known.name != arg.name) {
                out.push(arg.clone());
            }
        }
    }
}

/// The first of a name counts.
fn add(all: &mut Vec<OutlineMount>, mount: OutlineMount) {
    if all.iter().all(|known| known.name != mount.name) {
        all.push(mount);
    }
}
