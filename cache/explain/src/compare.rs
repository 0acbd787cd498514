//! The comparison: of each step the causes that made it run, from the sources upwards. A step whose own definition and
//! files are as they were points to the step before it that ran or differs.

use std::collections::{HashMap, HashSet};

use rbuild_tree::PatternMatcher;

use crate::align::align;
use crate::cause::Place;
use crate::{
    Cause, FileChange, FileChangeKind, Manifest, ManifestEntry, Outcome, Step, StepKind, Trace, words,
};

/// Changes that a cause keeps.
const KEPT: usize = 20;

/// What a comparison has to know besides the traces.
pub trait World {
    /// The files of a content key, if they were kept.
    fn manifest(&self, content: &str) -> Option<Manifest>;
    /// Whether the file that `step`'s input at `position` has now at `path` would have had the digest `old` with the old
    /// permissions.
    fn only_mode(&self, step: usize, position: usize, old: &ManifestEntry) -> bool;
    /// When and why a record of this name and preimage was removed.
    fn removed(&self, name: &str, preimage: &str) -> Option<Removed>;
    /// Whether an imported cache has this operation, whatever its inputs.
    fn offered(&self, op: &str) -> bool;
}

/// A record's end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    /// When, in nanoseconds since 1970.
    pub at: i64,
    /// Why.
    pub reason: String,
}

/// Fills in the causes of all steps of `new` that ran or differ. `old` are earlier builds, the one to compare with first.
pub fn explain(new: &mut Trace, old: &[Trace], world: &dyn World) {
    let aligned: Vec<Vec<Option<usize>>> = old.iter().map(|old| align(new, old)).collect();
    for at in 0..new.steps.len() {
        let causes = Comparison { new, old, aligned: &aligned, world }.causes(at);
        if let Some(step) = new.steps.get_mut(at) {
            step.causes = causes;
        }
    }
}

struct Comparison<'a> {
    new: &'a Trace,
    old: &'a [Trace],
    aligned: &'a [Vec<Option<usize>>],
    world: &'a dyn World,
}

/// An earlier build's step.
struct Earlier<'a> {
    trace: &'a Trace,
    step: &'a Step,
    /// For each step of the new build its counterpart.
    aligned: &'a [Option<usize>],
}

impl Comparison<'_> {
    fn causes(&self, at: usize) -> Vec<Cause> {
        let Some(step) = self.new.steps.get(at) else { return vec![] };
        if step.ran() && step.no_cache {
            return vec![Cause::NoCache { stage: (!self.new.no_cache).then(|| step.stage.clone()) }];
        }
        match &step.outcome {
            Outcome::Ran { why, .. } if why == "lost" => return vec![Cause::Lost],
            Outcome::Ran { .. } | Outcome::Failed => {}
            // What was found with the same key as before is the same; what it is under another key, its users ask.
            Outcome::Hit(_) | Outcome::NotNeeded => return self.differences(at, step),
        }
        let causes = self.differences(at, step);
        if !causes.is_empty() {
            return causes;
        }
        let ran =
            |input: &usize| self.new.steps.get(*input).is_some_and(|it| it.ran() && !it.kind.is_source());
        if let Some(input) = step.inputs.iter().map(|input| input.step).find(ran) {
            return vec![Cause::Step { step: input }];
        }
        if step.kind.is_source() {
            return vec![];
        }
        vec![self.missing(at, step)]
    }

    /// Nothing differs, and yet there was no record.
    fn missing(&self, at: usize, step: &Step) -> Cause {
        let earlier = self.earlier(at);
        if let Some(removed) = self.world.removed(&step.name, &step.preimage) {
            let after = earlier.as_ref().is_none_or(|earlier| removed.at >= earlier.trace.at);
            if after {
                return Cause::Pruned { at: removed.at, reason: removed.reason };
            }
        }
        match earlier {
            Some(earlier) if earlier.trace.imported => self.never(step),
            Some(earlier) if earlier.step.outcome == Outcome::Failed => Cause::FailedBefore,
            Some(_) => Cause::Gone,
            None => self.unknown(step),
        }
    }

    /// No earlier build had it.
    fn unknown(&self, step: &Step) -> Cause {
        let elsewhere = self.old.iter().flat_map(|trace| &trace.steps).find(|it| {
            it.succeeded() && it.stage == step.stage && it.text == step.text && it.platform != step.platform
        });
        if let Some(other) = elsewhere {
            return Cause::Platform { built: other.platform.clone(), wanted: step.platform.clone() };
        }
        let known = self.old.iter().any(|trace| trace.steps.iter().any(|it| it.platform == step.platform));
        if known { Cause::New } else { self.never(step) }
    }

    /// This machine has not built it, and no import had its result: what imports had of it.
    fn never(&self, step: &Step) -> Cause {
        let imports = self.new.imports.clone();
        match &step.outcome {
            // Its key was known without a record.
            Outcome::Ran { why, .. } if why == "pruned" && !imports.is_empty() => Cause::NoResult { imports },
            _ if self.world.offered(&step.op) => Cause::OtherInputs { imports },
            _ => Cause::Never { imports },
        }
    }

    /// The step in the latest build that reached it, if there is one for the same platform.
    fn earlier(&self, at: usize) -> Option<Earlier<'_>> {
        let target = &self.new.steps.get(at)?.target;
        let mut reached = self.old.iter().zip(self.aligned).filter_map(|(trace, aligned)| {
            let step = trace.steps.get((*aligned.get(at)?)?)?;
            let reached = step.kind.is_source() || step.outcome != Outcome::NotNeeded;
            reached.then_some(Earlier { trace, step, aligned })
        });
        let first = reached.next()?;
        if first.step.target == *target {
            return Some(first);
        }
        Some(reached.find(|it| it.step.target == *target).unwrap_or(first))
    }

    /// What differs between a step and what it was: its own definition and what it reads; else where that comes from.
    fn differences(&self, at: usize, step: &Step) -> Vec<Cause> {
        let Some(earlier) = self.earlier(at) else {
            let missing = self.unknown(step);
            // The first new step speaks for those that follow.
            let before = step.inputs.iter().map(|input| input.step).find(|input| self.speaks(*input));
            return match (step.kind.is_source(), before) {
                (true, _) => vec![],
                (false, Some(step)) => vec![Cause::Step { step }],
                (false, None) => vec![missing],
            };
        };
        let mut out = if step.op == earlier.step.op { vec![] } else { self.definition(step, &earlier) };
        let mut pointers = vec![];
        if step.inputs.len() != earlier.step.inputs.len() {
            out.push(Cause::Inputs);
        }
        for (position, input) in step.inputs.iter().enumerate() {
            match self.input(at, position, &earlier) {
                Some(cause @ Cause::Step { .. }) => pointers.push(cause),
                Some(cause) => out.push(cause),
                None if self.other_input(input.step, position, &earlier) => out.push(Cause::Inputs),
                None => {}
            }
        }
        out.dedup();
        if out.is_empty() {
            pointers.dedup();
            return pointers;
        }
        out
    }

    fn speaks(&self, at: usize) -> bool {
        self.new.steps.get(at).is_some_and(|it| !it.causes.is_empty() && (it.ran() || it.kind.is_source()))
    }

    /// Whether the input comes from another step than before, although neither differs.
    fn other_input(&self, input: usize, position: usize, earlier: &Earlier<'_>) -> bool {
        let counterpart = earlier.aligned.get(input).copied().flatten();
        let was = earlier.step.inputs.get(position).map(|input| input.step);
        let (Some(new), Some(Some(old))) =
            (self.new.steps.get(input), was.map(|was| earlier.trace.steps.get(was)))
        else {
            return false;
        };
        was != counterpart && new.op != old.op && !new.ran()
    }

    /// What an input contributes.
    fn input(&self, at: usize, position: usize, earlier: &Earlier<'_>) -> Option<Cause> {
        let step = self.new.steps.get(at)?;
        let input = step.inputs.get(position)?;
        let from = self.new.steps.get(input.step)?;
        let was = earlier.step.inputs.get(position)?;
        let same_content = match (&input.content, &was.content) {
            (Some(new), Some(old)) => Some(new == old),
            _ => None,
        };
        if same_content == Some(true) {
            return None;
        }
        match from.kind {
            StepKind::Local => {
                let (Some(new), Some(old)) = (&input.content, &was.content) else { return None };
                self.files(at, position, earlier, old, new)
            }
            StepKind::Image | StepKind::Remote => {
                let other = || {
                    let old = earlier.trace.steps.get(was.step)?;
                    let image =
                        || (old.kind == StepKind::Image && old.op != from.op).then(|| image(from, old));
                    other_platform(from, old).or_else(image)
                };
                from.causes.first().cloned().or_else(other)
            }
            _ if from.ran() || !from.causes.is_empty() => Some(Cause::Step { step: input.step }),
            _ => None,
        }
    }

    /// What differs in a local directory.
    fn files(
        &self,
        at: usize,
        position: usize,
        earlier: &Earlier<'_>,
        old: &str,
        new: &str,
    ) -> Option<Cause> {
        let of = self.source_name(at, position);
        let (Some(mut before), Some(now)) = (self.world.manifest(old), self.world.manifest(new)) else {
            return Some(Cause::Content { of });
        };
        if let ([was], [is]) = (before.entries(), now.entries())
            && was.path != is.path
        {
            // The key of a single file does not tell its name: it may be that of another one with the same content.
            if self.new.steps.get(at)?.op != earlier.step.op {
                return None;
            }
            before = Manifest::new(vec![ManifestEntry { path: is.path.clone(), ..was.clone() }]);
        }
        let mut changes = before.changes_to(&now, |was, _| self.world.only_mode(at, position, was));
        // A directory's own entry says nothing that its files do not.
        let main = self.new.steps.get(at).and_then(|step| step.inputs.get(position));
        let main =
            main.and_then(|input| self.new.steps.get(input.step)).is_some_and(|it| it.text == "context");
        if main {
            mark_ignored(&mut changes, &earlier.trace.ignore, &self.new.ignore);
        }
        let total = changes.len();
        let by_ignoring = |it: &FileChange| {
            matches!(it.kind, FileChangeKind::Hidden | FileChangeKind::Shown)
                || it.path == self.new.ignore_file
                || it.path == earlier.trace.ignore_file
        };
        let some = changes.iter().any(|it| matches!(it.kind, FileChangeKind::Hidden | FileChangeKind::Shown));
        let all = some && changes.iter().all(by_ignoring);
        changes.truncate(KEPT);
        let file = [&self.new.ignore_file, &earlier.trace.ignore_file].into_iter().find(|it| !it.is_empty());
        Some(match (total, all, file) {
            (0, ..) => Cause::Content { of },
            (_, true, Some(file)) => Cause::Ignore { file: file.clone(), changes, total },
            _ => Cause::Files { of, changes, total },
        })
    }

    fn source_name(&self, at: usize, position: usize) -> String {
        let input = self.new.steps.get(at).and_then(|step| step.inputs.get(position));
        match input.and_then(|input| self.new.steps.get(input.step)) {
            Some(it) if it.kind == StepKind::Local && it.text == "context" => "the build context".to_owned(),
            Some(it) if it.kind == StepKind::Local => format!("the context {}", it.text),
            Some(it) => it.name.clone(),
            None => String::new(),
        }
    }

    /// What differs in the operation itself.
    fn definition(&self, step: &Step, earlier: &Earlier<'_>) -> Vec<Cause> {
        let old = earlier.step;
        match step.kind {
            StepKind::Image => return vec![image(step, old)],
            StepKind::Local => return vec![],
            StepKind::Exec | StepKind::File | StepKind::Layers | StepKind::Remote => {}
        }
        let fields = changed_fields(step, old);
        let mut out = vec![];
        let mut rest = vec![];
        for field in fields {
            match field.path.strip_prefix("env.") {
                Some(name) => out.push(self.variable(name, &field, step, earlier)),
                None => rest.push(field),
            }
        }
        if step.text != old.text {
            out.insert(0, Cause::Instruction { from: old.text.clone(), to: step.text.clone() });
            // It says all that the fields would; what was set elsewhere, it does not.
            rest.retain(|field| words::set_elsewhere(&field.path));
        } else {
            let named = self.named_variables(step, earlier);
            if !named.is_empty() {
                let known: HashSet<About> = out.iter().filter_map(About::of).collect();
                out.extend(
                    named.into_iter().filter(|it| About::of(it).is_none_or(|it| !known.contains(&it))),
                );
                rest.retain(|field| words::set_elsewhere(&field.path));
            }
        }
        out.extend(rest.into_iter().map(|field| Cause::Setting {
            what: words::field(&field.path),
            from: field.from,
            to: field.to,
        }));
        if out.is_empty() {
            out.push(Cause::Setting {
                what: "its definition".to_owned(),
                from: Some(old.op.clone()),
                to: Some(step.op.clone()),
            });
        }
        out
    }

    /// A variable of a command: an argument, or of its environment.
    fn variable(&self, name: &str, field: &Changed, step: &Step, earlier: &Earlier<'_>) -> Cause {
        let place = |line: Option<u32>| line.map(|line| Place { file: self.new.dockerfile.clone(), line });
        let (name, from, to) = (name.to_owned(), field.from.clone(), field.to.clone());
        let set = self.new.variables.iter().chain(&earlier.trace.variables);
        let set: Vec<_> = set.filter(|it| it.name == name && !it.arg).collect();
        let (_, line) = self.new.argument(&name, step.line);
        match (set.first(), line) {
            (Some(_), _) => {
                let lines =
                    self.new.variables.iter().filter(|it| it.name == name && !it.arg).map(|it| it.line);
                let line = lines.filter(|line| step.line.is_none_or(|at| *line <= at)).max();
                Cause::Environment { name, from, to, place: place(line) }
            }
            (None, Some(line)) => Cause::Argument { name, from, to, place: place(Some(line)) },
            (None, None) if self.new.args.iter().chain(&earlier.trace.args).any(|(key, _)| *key == name) => {
                Cause::Argument { name, from, to, place: None }
            }
            (None, None) => Cause::Environment { name, from, to, place: None },
        }
    }

    /// Variables that the instruction's text names and that have other values now.
    fn named_variables(&self, step: &Step, earlier: &Earlier<'_>) -> Vec<Cause> {
        let mut out = vec![];
        for name in words::variables(&step.text) {
            let (to, line) = self.new.argument(&name, step.line);
            let (from, _) = earlier.trace.argument(&name, earlier.step.line);
            let env = |trace: &Trace, line: Option<u32>| {
                let before = trace.variables.iter().filter(|it| !it.arg && it.name == name);
                let before = before.filter(|it| line.is_none_or(|line| it.line <= line));
                before.max_by_key(|it| it.line).map(|it| (it.value.clone(), it.line))
            };
            let (was, is) = (env(earlier.trace, earlier.step.line), env(self.new, step.line));
            let place = |line: u32| Place { file: self.new.dockerfile.clone(), line };
            let value = |it: &Option<(Option<String>, u32)>| it.as_ref().and_then(|it| it.0.clone());
            if let Some(cause) = self.target_platform(&name, earlier) {
                out.push(cause);
            } else if value(&was) != value(&is) {
                let line = is.as_ref().map(|it| it.1);
                let (from, to) = (value(&was), value(&is));
                out.push(Cause::Environment { name, from, to, place: line.map(place) });
            } else if from != to {
                let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
                out.push(Cause::Argument { name, from, to, place: line.map(place) });
            }
        }
        out
    }

    /// A variable that is set from the platform that is built for, when that is another one.
    fn target_platform(&self, name: &str, earlier: &Earlier<'_>) -> Option<Cause> {
        let set = ["TARGETPLATFORM", "TARGETOS", "TARGETARCH", "TARGETVARIANT"].contains(&name);
        match (earlier.trace.platforms.as_slice(), self.new.platforms.as_slice()) {
            ([built], [wanted]) if set && built != wanted => {
                Some(Cause::Platform { built: built.clone(), wanted: wanted.clone() })
            }
            _ => None,
        }
    }
}

/// The name of a variable that a cause is about.
#[derive(PartialEq, Eq, Hash)]
struct About(String);

impl About {
    fn of(cause: &Cause) -> Option<Self> {
        match cause {
            Cause::Argument { name, .. } | Cause::Environment { name, .. } => Some(Self(name.clone())),
            _ => None,
        }
    }
}

struct Changed {
    path: String,
    from: Option<String>,
    to: Option<String>,
}

fn changed_fields(new: &Step, old: &Step) -> Vec<Changed> {
    let mut seen: HashMap<&str, ()> = HashMap::new();
    let mut out = vec![];
    for (path, _) in new.fields.iter().chain(&old.fields) {
        if seen.insert(path, ()).is_some() {
            continue;
        }
        let values = |step: &Step| -> Vec<String> {
            step.fields.iter().filter(|(name, _)| name == path).map(|(_, value)| value.clone()).collect()
        };
        let (was, is) = (values(old), values(new));
        if was != is {
            let text = |values: Vec<String>| (!values.is_empty()).then(|| values.join(", "));
            out.push(Changed { path: path.clone(), from: text(was), to: text(is) });
        }
    }
    out
}

fn image(new: &Step, old: &Step) -> Cause {
    let digest = |step: &Step| step.field("Digest").unwrap_or(&step.op).to_owned();
    let name = |step: &Step| step.text.split("@sha256:").next().unwrap_or_default().to_owned();
    if name(new) == name(old) && digest(new) != digest(old) {
        return Cause::Moved { reference: name(new), from: digest(old), to: digest(new) };
    }
    Cause::Base { from: old.text.clone(), to: new.text.clone() }
}

/// The same image for another platform than before.
fn other_platform(new: &Step, old: &Step) -> Option<Cause> {
    let other = new.kind == old.kind && new.op != old.op && new.platform != old.platform;
    other.then(|| Cause::Platform { built: old.platform.clone(), wanted: new.platform.clone() })
}

/// Files that came or went because other patterns hide them.
fn mark_ignored(changes: &mut [FileChange], old: &[String], new: &[String]) {
    if old == new {
        return;
    }
    let (Ok(old), Ok(new)) = (PatternMatcher::new(old), PatternMatcher::new(new)) else { return };
    for change in changes {
        let (was, is) = (old.matches(&change.path), new.matches(&change.path));
        match change.kind {
            FileChangeKind::Removed if is && !was => change.kind = FileChangeKind::Hidden,
            FileChangeKind::Added if was && !is => change.kind = FileChangeKind::Shown,
            _ => {}
        }
    }
}
