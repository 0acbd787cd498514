//! The scheduler: decides what is asked, hashed and run, in which order. It performs nothing: `poll` gives commands, `on`
//! takes replies, in any order. The rules follow BuildKit's: definition keys first, content keys only after that.
//!
//! Steps settle from the sources upwards. A step whose inputs are settled asks the index with the keys they have. If that misses, it
//! hashes what it reads of its inputs and asks again. If that misses too, it must run, and only then are the results of its inputs needed:
//! a result that is a hit is not touched before.
//!
//! A result may turn out to be lost. Its step then runs, and may make something else than before: whoever hashed what was there and
//! did not end yet looks again, and what was computed from it meanwhile does not count.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rbuild_digest::Digest;
use rbuild_graph::{Edge, NodeId};
use rbuild_ports::{Alternative, KeyId, KeyQuery};

use crate::{Command, Reply, SolvedInput, SolvedStep, StepState, Why};

/// What the scheduler must know of a step.
#[derive(Clone, Debug)]
pub struct StepSpec {
    /// The step's node.
    pub node: NodeId,
    /// Inputs by position.
    pub inputs: Vec<Edge>,
    /// How each input counts, by position.
    pub deps: Vec<DepSpec>,
    /// How its keys are found.
    pub kind: StepKind,
    /// `--no-cache`: never looked up, still saved.
    pub ignore_cache: bool,
    /// The outputs that somebody uses, ascending; at least one.
    pub outputs: Vec<u32>,
    /// Counts against the limit of steps at a time.
    pub heavy: bool,
}

/// How an input counts in a step's key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DepSpec {
    /// Selector of the links from the input's definition keys.
    pub selector: Option<Digest>,
    /// Whether the content of what is read of it may stand for it.
    pub content: bool,
}

/// How a step's keys are found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum StepKind {
    /// A source that needs no work to be known: its keys (none for a local context: only content counts).
    Known(Vec<KeyId>),
    /// A source whose keys are known only after it ran.
    Fetch,
    /// An operation with this cache-map digest.
    Op(Digest),
}

#[derive(Debug)]
struct Step {
    spec: StepSpec,
    state: StepState,
    /// Keys of each wanted output.
    keys: Vec<Vec<KeyId>>,
    /// Content key of each input, once hashed.
    content: Vec<Option<Content>>,
    /// Inputs being hashed or wanted to be.
    hashing: BTreeSet<usize>,
    /// Those that are being hashed, with the losses when that was asked for.
    asked: BTreeMap<usize, u64>,
    /// The losses when it was told to run.
    started: u64,
    /// The number of its result's loss among all losses; zero if it never was lost.
    lost: u64,
    /// Nothing can match, so it runs as soon as its inputs' contents, under which it is saved too, are hashed.
    doomed: Option<Why>,
    /// Somebody needs the result.
    needed: bool,
    /// The index had no key for it before it ran, so nothing can hang on its key.
    new_key: bool,
    /// It ran anew since it must not trust the cache, or on such an input: old records of its users do not count. Decided before
    /// its users look at it.
    fresh: bool,
    priority: u64,
    users: Vec<usize>,
}

/// A content key, with the losses when it was asked for.
#[derive(Clone, Debug)]
struct Content {
    key: KeyId,
    losses: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Scheduler {
    steps: Vec<Step>,
    /// Node number → position in `steps`.
    position: Vec<Option<usize>>,
    targets: Vec<usize>,
    dirty: VecDeque<usize>,
    ready: BTreeSet<(std::cmp::Reverse<u64>, usize)>,
    jobs: usize,
    busy: usize,
    outstanding: usize,
    stopped: bool,
    /// How many results turned out to be lost.
    losses: u64,
}

impl Scheduler {
    /// Steps in an order where inputs come before users; `targets` are nodes among them. At most `jobs` heavy steps run at a time.
    #[must_use]
    pub fn new(specs: Vec<StepSpec>, targets: &[NodeId], jobs: usize) -> Self {
        let size = specs.iter().map(|spec| spec.node.index() + 1).max().unwrap_or(0);
        let mut position = vec![None; size];
        for (i, spec) in specs.iter().enumerate() {
            position[spec.node.index()] = Some(i);
        }
        let mut steps: Vec<Step> = specs
            .into_iter()
            .map(|spec| Step {
                keys: vec![Vec::new(); spec.outputs.len()],
                content: vec![None; spec.inputs.len()],
                spec,
                state: StepState::Waiting,
                hashing: BTreeSet::new(),
                asked: BTreeMap::new(),
                started: 0,
                lost: 0,
                doomed: None,
                needed: false,
                new_key: false,
                fresh: false,
                priority: 0,
                users: Vec::new(),
            })
            .collect();
        for i in (0..steps.len()).rev() {
            let height = steps[i].priority + 1;
            for edge in steps[i].spec.inputs.clone() {
                if let Some(input) = position[edge.node.index()] {
                    steps[input].priority = steps[input].priority.max(height);
                    steps[input].users.push(i);
                }
            }
        }
        let targets: Vec<usize> =
            targets.iter().filter_map(|node| position.get(node.index()).copied().flatten()).collect();
        for target in &targets {
            steps[*target].needed = true;
        }
        let dirty = (0..steps.len()).collect();
        Self {
            steps,
            position,
            targets,
            dirty,
            ready: BTreeSet::new(),
            jobs: jobs.max(1),
            busy: 0,
            outstanding: 0,
            stopped: false,
            losses: 0,
        }
    }

    /// What to do now. Empty when everything waits for replies, or all is over.
    pub fn poll(&mut self) -> Vec<Command> {
        let mut out = Vec::new();
        loop {
            while let Some(i) = self.dirty.pop_front() {
                if !self.stopped {
                    self.advance(i, &mut out);
                }
            }
            if self.stopped || self.busy >= self.jobs {
                break;
            }
            let Some((_, i)) = self.ready.pop_first() else { break };
            self.start(i, &mut out);
        }
        self.outstanding += out.len();
        out
    }

    /// Takes an answer.
    pub fn on(&mut self, reply: Reply) {
        self.outstanding = self.outstanding.saturating_sub(1);
        match reply {
            Reply::Probed { step, keys, hit } => self.with(step, |this, i| this.on_probed(i, keys, hit)),
            Reply::Hashed { step, input, key } => self.with(step, |this, i| this.on_hashed(i, input, key)),
            Reply::Ran { step, keys } => self.with(step, |this, i| this.on_ran(i, keys)),
            Reply::Joined { step, keys } => self.with(step, |this, i| this.on_joined(i, keys)),
            Reply::Lost { step, input, lost } => self.with(step, |this, i| this.on_lost(i, input, lost)),
            Reply::Failed { step } => self.with(step, |this, i| {
                this.leave_running(i);
                this.set(i, StepState::Failed);
                this.stopped = true;
            }),
        }
    }

    /// Starts nothing more. Commands under way are still awaited.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Whether no reply is awaited and nothing more will be asked for.
    #[must_use]
    pub fn finished(&self) -> bool {
        self.outstanding == 0 && (self.stopped || self.succeeded())
    }

    /// Whether all targets have results.
    #[must_use]
    pub fn succeeded(&self) -> bool {
        self.targets.iter().all(|i| self.steps[*i].state.has_result())
    }

    /// A step's state; `None` for nodes that are not part of this solve.
    #[must_use]
    pub fn state(&self, node: NodeId) -> Option<StepState> {
        let i = self.position.get(node.index()).copied().flatten()?;
        Some(self.steps[i].state)
    }

    /// Steps whose keys are known without a result, which nobody asked for: what follows them is in the cache.
    #[must_use]
    pub fn passed_over(&self) -> Vec<NodeId> {
        let known = self.steps.iter().filter(|step| step.state == StepState::Known);
        known.map(|step| step.spec.node).collect()
    }

    /// What is known of all steps' keys.
    #[must_use]
    pub fn solved(&self) -> Vec<SolvedStep> {
        let step = |step: &Step| SolvedStep {
            node: step.spec.node,
            op: match step.spec.kind {
                StepKind::Op(op) => Some(op),
                StepKind::Known(_) | StepKind::Fetch => None,
            },
            inputs: (step.spec.inputs.iter().zip(&step.content).enumerate())
                .map(|(position, (edge, content))| {
                    let dep = step.spec.deps.get(position).copied().unwrap_or_default();
                    let (selector, by_content) = (dep.selector, dep.content);
                    let content = content.as_ref().map(|content| content.key.clone());
                    SolvedInput { edge: *edge, selector, by_content, content }
                })
                .collect(),
            outputs: step.spec.outputs.iter().copied().zip(step.keys.iter().cloned()).collect(),
        };
        self.steps.iter().map(step).collect()
    }

    fn with(&mut self, node: NodeId, f: impl FnOnce(&mut Self, usize)) {
        if let Some(i) = self.position.get(node.index()).copied().flatten() {
            f(self, i);
        }
    }

    fn set(&mut self, i: usize, next: StepState) {
        let state = self.steps[i].state;
        debug_assert!(state.may_become(next), "step {i}: {state:?} -> {next:?}");
        self.steps[i].state = next;
        if next.settled() || next.has_result() {
            self.dirty.extend(self.steps[i].users.iter().copied());
        }
        self.dirty.push_back(i);
    }

    fn input(&self, i: usize, position: usize) -> Option<usize> {
        let edge = self.steps[i].spec.inputs.get(position)?;
        self.position.get(edge.node.index()).copied().flatten()
    }

    fn input_steps(&self, i: usize) -> Vec<usize> {
        (0..self.steps[i].spec.inputs.len()).filter_map(|position| self.input(i, position)).collect()
    }

    fn advance(&mut self, i: usize, out: &mut Vec<Command>) {
        match self.steps[i].state {
            StepState::Waiting => self.advance_waiting(i, out),
            StepState::Hashing => self.advance_hashing(i, out),
            StepState::Known if self.steps[i].needed => self.set(i, StepState::NeedInputs(Why::Pruned)),
            StepState::NeedInputs(why) => {
                let stale = self.stale(i);
                if !stale.is_empty() {
                    // It looks again, once they are there.
                    for position in stale {
                        self.steps[i].content[position] = None;
                    }
                    self.steps[i].new_key = false;
                    return self.set(i, StepState::Waiting);
                }
                let inputs = self.input_steps(i);
                for input in &inputs {
                    self.need(*input);
                }
                if inputs.iter().all(|input| self.steps[*input].state.has_result()) {
                    self.set(i, StepState::Ready(why));
                    if self.steps[i].spec.heavy {
                        self.ready.insert((std::cmp::Reverse(self.steps[i].priority), i));
                    } else {
                        self.start(i, out);
                    }
                }
            }
            StepState::Known
            | StepState::Probing
            | StepState::Ready(_)
            | StepState::Running(_)
            | StepState::Hit
            | StepState::Done
            | StepState::Failed => {}
        }
    }

    fn advance_waiting(&mut self, i: usize, out: &mut Vec<Command>) {
        if !self.input_steps(i).iter().all(|input| self.steps[*input].state.settled()) {
            return;
        }
        match self.steps[i].spec.kind.clone() {
            StepKind::Known(keys) => {
                self.steps[i].keys = vec![keys; self.steps[i].spec.outputs.len()];
                self.set(i, StepState::Done);
            }
            StepKind::Fetch => self.set(i, StepState::NeedInputs(Why::Source)),
            StepKind::Op(_) => self.begin(i, out),
        }
    }

    /// All inputs of an operation are settled: what can be asked is asked.
    fn begin(&mut self, i: usize, out: &mut Vec<Command>) {
        let positions = 0..self.steps[i].spec.inputs.len();
        let keyless: BTreeSet<usize> =
            positions.clone().filter(|position| self.alternatives(i, *position, true).is_empty()).collect();
        let doomed = if self.steps[i].spec.ignore_cache {
            Some(Why::NoCache)
        } else if keyless.iter().any(|position| !self.may_hash(i, *position)) {
            self.steps[i].new_key = true;
            Some(Why::NotInCache)
        } else {
            None
        };
        self.steps[i].doomed = doomed;
        match doomed {
            None if keyless.is_empty() => self.probe(i, out),
            None => self.hash(i, keyless),
            Some(why) => {
                let contents: BTreeSet<usize> =
                    positions.filter(|position| self.may_hash(i, *position)).collect();
                if contents.is_empty() {
                    self.set(i, StepState::NeedInputs(why));
                } else {
                    self.hash(i, contents);
                }
            }
        }
    }

    fn advance_hashing(&mut self, i: usize, out: &mut Vec<Command>) {
        if self.steps[i].doomed.is_some() {
            for input in self.input_steps(i) {
                self.need(input);
            }
        }
        let wanted: Vec<usize> =
            self.steps[i].hashing.iter().copied().filter(|p| !self.steps[i].asked.contains_key(p)).collect();
        for position in wanted {
            let Some(input) = self.input(i, position) else { continue };
            self.need(input);
            if self.steps[input].state.has_result() {
                self.steps[i].asked.insert(position, self.losses);
                out.push(Command::Hash {
                    step: self.steps[i].spec.node,
                    input: position,
                    losses: self.losses,
                });
            }
        }
        if self.steps[i].hashing.is_empty() {
            match self.steps[i].doomed {
                Some(why) => self.set(i, StepState::NeedInputs(why)),
                None => self.probe(i, out),
            }
        }
    }

    fn hash(&mut self, i: usize, positions: BTreeSet<usize>) {
        self.steps[i].hashing = positions;
        self.set(i, StepState::Hashing);
    }

    /// Positions of inputs that were lost since they were hashed. What is hashed now may be another content.
    fn stale(&self, i: usize) -> Vec<usize> {
        let stale = |position: &usize| {
            let (content, input) = (&self.steps[i].content[*position], self.input(i, *position));
            content
                .as_ref()
                .zip(input)
                .is_some_and(|(content, input)| self.steps[input].lost > content.losses)
        };
        (0..self.steps[i].content.len()).filter(stale).collect()
    }

    fn may_hash(&self, i: usize, position: usize) -> bool {
        let step = &self.steps[i];
        step.spec.deps.get(position).is_some_and(|dep| dep.content)
            && step.content.get(position).is_some_and(Option::is_none)
    }

    fn probe(&mut self, i: usize, out: &mut Vec<Command>) {
        let queries = self.queries(i, true);
        let both =
            |(p, key): (usize, &Option<Content>)| key.is_some() && !self.definition_keys(i, p).is_empty();
        let learn =
            if self.steps[i].content.iter().enumerate().any(both) { self.queries(i, false) } else { vec![] };
        self.set(i, StepState::Probing);
        out.push(Command::Probe { step: self.steps[i].spec.node, queries, learn, losses: self.losses });
    }

    /// The query of each wanted output. For probing, keys that cannot lead on or must not be trusted are left out.
    fn queries(&self, i: usize, probing: bool) -> Vec<KeyQuery> {
        let step = &self.steps[i];
        let StepKind::Op(op) = step.spec.kind else { return Vec::new() };
        let inputs: Vec<Vec<Alternative>> =
            (0..step.spec.inputs.len()).map(|p| self.alternatives(i, p, probing)).collect();
        step.spec
            .outputs
            .iter()
            .map(|output| KeyQuery { op, output: *output, inputs: inputs.clone() })
            .collect()
    }

    fn definition_keys(&self, i: usize, position: usize) -> &[KeyId] {
        let Some(input) = self.input(i, position) else { return &[] };
        let output = self.steps[i].spec.inputs[position].output;
        let input = &self.steps[input];
        match input.spec.outputs.iter().position(|wanted| *wanted == output) {
            Some(index) => input.keys.get(index).map_or(&[], Vec::as_slice),
            None => &[],
        }
    }

    fn alternatives(&self, i: usize, position: usize, probing: bool) -> Vec<Alternative> {
        let step = &self.steps[i];
        let selector = step.spec.deps.get(position).and_then(|dep| dep.selector);
        let distrust =
            self.input(i, position).is_some_and(|input| self.steps[input].fresh || self.steps[input].new_key);
        let mut out = Vec::new();
        if !(probing && distrust) {
            out.extend(
                self.definition_keys(i, position)
                    .iter()
                    .map(|key| Alternative { key: key.clone(), selector }),
            );
        }
        if let Some(Some(content)) = step.content.get(position) {
            out.push(Alternative { key: content.key.clone(), selector: None });
        }
        out
    }

    fn need(&mut self, i: usize) {
        if !std::mem::replace(&mut self.steps[i].needed, true) {
            self.dirty.push_back(i);
        }
    }

    fn start(&mut self, i: usize, out: &mut Vec<Command>) {
        let StepState::Ready(why) = self.steps[i].state else { return };
        let there = self.input_steps(i).iter().all(|input| self.steps[*input].state.has_result());
        if !there || !self.stale(i).is_empty() {
            // One was lost meanwhile.
            return self.set(i, StepState::NeedInputs(why));
        }
        if self.steps[i].spec.heavy {
            self.busy += 1;
        }
        let queries = self.queries(i, false);
        let join = !self.fresh_inputs(i);
        self.set(i, StepState::Running(why));
        self.steps[i].started = self.losses;
        out.push(Command::Run { step: self.steps[i].spec.node, queries, why, join, losses: self.losses });
    }

    /// Whether it must not trust the cache, or stands on such a step that ran anew.
    fn fresh_inputs(&self, i: usize) -> bool {
        self.steps[i].spec.ignore_cache || self.input_steps(i).iter().any(|input| self.steps[*input].fresh)
    }

    fn leave_running(&mut self, i: usize) {
        if matches!(self.steps[i].state, StepState::Running(_)) && self.steps[i].spec.heavy {
            self.busy = self.busy.saturating_sub(1);
        }
    }

    fn on_probed(&mut self, i: usize, keys: Vec<Vec<KeyId>>, hit: bool) {
        if self.steps[i].state != StepState::Probing {
            return;
        }
        let known = !keys.is_empty() && keys.iter().all(|keys| !keys.is_empty());
        if hit {
            self.steps[i].keys = keys;
            return self.set(i, StepState::Hit);
        }
        if known {
            self.steps[i].keys = keys;
            return self.set(i, StepState::Known);
        }
        let more: BTreeSet<usize> =
            (0..self.steps[i].spec.inputs.len()).filter(|position| self.may_hash(i, *position)).collect();
        if more.is_empty() {
            self.steps[i].new_key = true;
            self.set(i, StepState::NeedInputs(Why::NotInCache));
        } else {
            self.hash(i, more);
        }
    }

    fn on_hashed(&mut self, i: usize, input: usize, key: KeyId) {
        let Some(losses) = self.steps[i].asked.remove(&input) else { return };
        self.dirty.push_back(i);
        if let Some(content) = self.steps[i].content.get_mut(input) {
            *content = Some(Content { key, losses });
        }
        self.steps[i].hashing.remove(&input);
    }

    fn on_ran(&mut self, i: usize, keys: Vec<Vec<KeyId>>) {
        self.leave_running(i);
        self.steps[i].keys = keys;
        // Users of a step that was pruned or lost have looked at it already: its key was found and stays trusted.
        if matches!(self.steps[i].state, StepState::Running(Why::NoCache | Why::NotInCache | Why::Source)) {
            self.steps[i].fresh = self.fresh_inputs(i);
        }
        self.set(i, StepState::Done);
    }

    fn on_joined(&mut self, i: usize, keys: Vec<Vec<KeyId>>) {
        self.leave_running(i);
        self.steps[i].keys = keys;
        // Others may have gone on from it.
        self.steps[i].new_key = false;
        self.set(i, StepState::Done);
    }

    fn on_lost(&mut self, i: usize, hashed: Option<usize>, lost: NodeId) {
        let asked = match (self.steps[i].state, hashed) {
            (StepState::Hashing, Some(input)) => {
                self.dirty.push_back(i);
                self.steps[i].asked.remove(&input)
            }
            (StepState::Running(why), _) => {
                self.leave_running(i);
                self.set(i, StepState::NeedInputs(why));
                Some(self.steps[i].started)
            }
            _ => None,
        };
        self.with(lost, |this, lost| {
            // Others may have said so before, and it may be there again.
            let known = asked.is_none_or(|losses| this.steps[lost].lost > losses);
            if !known && this.steps[lost].state.has_result() {
                this.losses += 1;
                this.steps[lost].lost = this.losses;
                this.steps[lost].needed = true;
                this.set(lost, StepState::NeedInputs(Why::Lost));
            }
        });
    }
}
