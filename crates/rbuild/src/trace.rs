//! Turns a build's graphs and what happened to their nodes into a trace.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache_explain::{Found, Input, Outcome, Step, StepKind, Trace, Variable};
use rbuild_cache_key::{Facts, cache_map};
use rbuild_diag::SourceFile;
use rbuild_dockerfile::{Dockerfile, InstructionKind};
use rbuild_engine::{Event, Hashed, Why};
use rbuild_graph::{Edge, Graph, MountKind, Node, NodeId, Op, SourceOp};
use rbuild_ports::{RecordKind, Timestamp};

use crate::history::{Finish, Historian, Told};
use crate::{BuildRequest, CacheFrom, NoCache};

/// No more of an instruction's text is kept.
const TEXT: usize = 8 << 10;

/// What happened to the nodes of one graph.
pub(crate) struct GraphNotes {
    number: usize,
    historian: Arc<Historian>,
    graph: Arc<Graph>,
    targets: Vec<Edge>,
    notes: Mutex<HashMap<NodeId, Notes>>,
}

#[derive(Default)]
struct Notes {
    outcome: Outcome,
    started: Option<Timestamp>,
    content: HashMap<usize, String>,
}

impl GraphNotes {
    pub(crate) fn new(
        number: usize,
        historian: Arc<Historian>,
        graph: Arc<Graph>,
        targets: Vec<Edge>,
    ) -> Self {
        Self { number, historian, graph, targets, notes: Mutex::default() }
    }

    pub(crate) fn hashed(&self, hashed: Hashed) {
        self.note(hashed.step, |notes| {
            notes.content.insert(hashed.input, hashed.key.0.to_string());
        });
        self.historian.hashed(self.number, hashed);
    }

    pub(crate) fn event(&self, event: &Event) {
        match event {
            Event::Cached { step, created, kind, cost_ms } => self.note(*step, |notes| {
                let imported = (*kind == Some(RecordKind::Imported)).then(|| "an imported cache".to_owned());
                notes.outcome = Outcome::Hit(Found { created: created.0, ms: *cost_ms, imported });
            }),
            Event::Started { step, why, at } => self.note(*step, |notes| {
                notes.started = Some(*at);
                notes.outcome = Outcome::Ran { why: word(*why).to_owned(), ms: 0 };
            }),
            Event::Finished { step, at } => self.note(*step, |notes| {
                if let (Outcome::Ran { ms, .. }, Some(started)) = (&mut notes.outcome, notes.started) {
                    *ms = u64::try_from(at.0.saturating_sub(started.0) / 1_000_000).unwrap_or(0);
                }
            }),
            Event::Failed { step, .. } => self.note(*step, |notes| notes.outcome = Outcome::Failed),
            Event::Cancelled { step, .. } => self.note(*step, |notes| notes.outcome = Outcome::NotNeeded),
            Event::Log { .. } | Event::Status { .. } | Event::Warning { .. } => {}
        }
    }

    fn note(&self, step: NodeId, change: impl FnOnce(&mut Notes)) {
        change(self.notes.lock().unwrap_or_else(PoisonError::into_inner).entry(step).or_default());
    }

    /// Adds this graph's steps to a trace.
    fn add_to(&self, trace: &mut Trace, nodes: &mut Vec<(usize, NodeId)>) {
        let mut notes = self.notes.lock().unwrap_or_else(PoisonError::into_inner);
        let targets: Vec<NodeId> = self.targets.iter().map(|edge| edge.node).collect();
        let mut position: HashMap<NodeId, usize> = HashMap::new();
        let mut ordinals: HashMap<(String, bool), usize> = HashMap::new();
        for id in self.graph.needed(&targets) {
            let node = self.graph.node(id);
            let Notes { outcome, content, .. } = notes.remove(&id).unwrap_or_default();
            let mut step = describe(node, outcome);
            let ordinal = ordinals.entry((step.stage.clone(), step.kind.is_source())).or_default();
            step.ordinal = *ordinal;
            step.target = trace.platforms.get(self.number).cloned().unwrap_or_default();
            *ordinal += 1;
            for (at, edge) in node.inputs.iter().enumerate() {
                let Some(from) = position.get(&edge.node) else { continue };
                step.inputs.push(Input { step: *from, content: content.get(&at).cloned() });
            }
            position.insert(id, trace.steps.len());
            trace.steps.push(step);
            nodes.push((self.number, id));
        }
    }
}

fn word(why: Why) -> &'static str {
    match why {
        Why::NoCache => "no-cache",
        Why::NotInCache => "not-in-cache",
        Why::Pruned => "pruned",
        Why::Lost => "lost",
        Why::Source => "source",
    }
}

fn describe(node: &Node, outcome: Outcome) -> Step {
    let meta = &node.meta;
    let (kind, text) = match &node.op {
        Op::Exec(_) => (StepKind::Exec, None),
        Op::File(_) => (StepKind::File, None),
        Op::Merge(_) | Op::Diff(_) => (StepKind::Layers, None),
        Op::Source(SourceOp::Image(image)) => (StepKind::Image, Some(image.reference.to_string())),
        Op::Source(SourceOp::OciLayout(layout)) => (StepKind::Image, Some(layout.path.clone())),
        Op::Source(SourceOp::Local(local)) => (StepKind::Local, Some(local.name.clone())),
        Op::Source(SourceOp::Http(http)) => (StepKind::Remote, Some(http.url.clone())),
        Op::Source(SourceOp::Git(git)) => (StepKind::Remote, Some(git.url.clone())),
    };
    let written = meta.place.as_ref().and_then(|place| place.file.text().get(place.span.range()));
    let text = text.or_else(|| written.map(str::to_owned)).unwrap_or_else(|| meta.name.clone());
    let map = cache_map(node, &Facts::default()).ok();
    let (op, preimage) = match map {
        Some(map) => (map.digest.to_string(), map.preimage),
        None => (text.clone(), rbuild_cache_key::Preimage::default()),
    };
    Step {
        name: meta.name.clone(),
        stage: meta.stage.clone(),
        ordinal: 0,
        platform: node.platform.to_string(),
        target: String::new(),
        kind,
        line: meta.place.as_ref().map(|place| place.file.line_col(place.span.start).line),
        text: text.chars().take(TEXT).collect(),
        op,
        preimage: preimage.text,
        fields: preimage.fields.into_iter().map(|field| (field.path, field.value)).collect(),
        inputs: vec![],
        secrets: secrets(&node.op),
        no_cache: meta.ignore_cache,
        outcome,
        causes: vec![],
    }
}

fn secrets(op: &Op) -> Vec<String> {
    let Op::Exec(exec) = op else { return vec![] };
    let mounted = exec.spec.mounts.iter().filter_map(|mount| match &mount.kind {
        MountKind::Secret { id, .. } | MountKind::Ssh { id, .. } => Some(id.clone()),
        MountKind::Bind | MountKind::Tmpfs { .. } | MountKind::Cache { .. } => None,
    });
    mounted.chain(exec.spec.secret_env.iter().map(|secret| secret.id.clone())).collect()
}

/// What is known of a build before it runs.
pub(crate) fn beginning(
    request: &BuildRequest,
    file: &Dockerfile,
    source: &SourceFile,
    ignore: Option<&rbuild_lower::IgnoreFile>,
) -> Trace {
    let name = |file: &SourceFile| file.name().to_owned();
    Trace {
        dockerfile: name(source),
        context: request.context.label().map(|label| label.display().to_string()),
        args: request.build_args.clone(),
        variables: variables(file, source),
        ignore_file: ignore.and_then(|it| it.file.as_ref()).map(name).unwrap_or_default(),
        ignore: ignore.map(|it| it.patterns.clone()).unwrap_or_default(),
        imports: request.cache_from.iter().map(import_name).collect(),
        no_cache: request.no_cache == NoCache::All,
        ..Trace::default()
    }
}

fn import_name(from: &CacheFrom) -> String {
    match from {
        CacheFrom::Registry { reference, .. } => reference.to_string(),
        CacheFrom::Local { src, .. } => src.display().to_string(),
    }
}

fn variables(file: &Dockerfile, source: &SourceFile) -> Vec<Variable> {
    let mut out = vec![];
    for instruction in &file.instructions {
        let line = source.line_col(instruction.span.start).line;
        match &instruction.kind {
            InstructionKind::Arg(declared) => out.extend(declared.iter().map(|it| Variable {
                name: it.name.value.clone(),
                arg: true,
                line,
                value: it.default.as_ref().map(|it| it.value.clone()),
            })),
            InstructionKind::Env(set) => out.extend(set.pairs.iter().map(|it| Variable {
                name: it.key.value.clone(),
                arg: false,
                line,
                value: Some(it.value.value.clone()),
            })),
            _ => {}
        }
    }
    out
}

/// Hands a build that ended to the historian.
pub(crate) fn finish(
    mut trace: Trace,
    graphs: Vec<Arc<GraphNotes>>,
    historian: &Historian,
    what: String,
    told: Box<dyn FnOnce() -> Told + Send>,
) {
    (trace.build, trace.at) = (historian.build.0.clone(), historian.build.1.0);
    let write = move || {
        let mut nodes = vec![];
        graphs.iter().for_each(|graph| graph.add_to(&mut trace, &mut nodes));
        name_origin(&mut trace);
        (trace, nodes)
    };
    historian.finish(Finish { write: Box::new(write), what, told });
}

/// Where imported records came from, when there is just one place.
fn name_origin(trace: &mut Trace) {
    let [only] = trace.imports.as_slice() else { return };
    for step in &mut trace.steps {
        if let Outcome::Hit(Found { imported: Some(from), .. }) = &mut step.outcome {
            from.clone_from(only);
        }
    }
}
