//! Performs the scheduler's commands: the only caller of ports. Blocking; one call a command.

use std::collections::{HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_cache_key::CacheMap;
use rbuild_digest::Digest;
use rbuild_graph::{Edge, Graph, NodeId, Op, SourceOp};
use rbuild_ports::{
    BlobStore, CacheIndex, CancelToken, Clock, Devices, ErrorKind, Executor, Flight, Flights, KeyId,
    KeyQuery, LayerId, NewRecord, PortError, Record, RecordKind, Secrets, Snapshot, Snapshots, Sources,
    Stream, Timestamp, View,
};

use crate::materialise::Materialiser;
use crate::progress::StepProgress;
use crate::run::{failed_event, panicked};
use crate::{Cause, Command, Event, EventSink, Reply, SolveError, Why, step};

/// The world.
#[derive(Clone)]
pub struct Ports {
    /// Keys and records.
    pub index: Arc<dyn CacheIndex>,
    /// Layer directories.
    pub snapshots: Arc<dyn Snapshots>,
    /// Blobs.
    pub blobs: Arc<dyn BlobStore>,
    /// Commands.
    pub executor: Arc<dyn Executor>,
    /// Images, contexts, downloads.
    pub sources: Arc<dyn Sources>,
    /// What the user lends.
    pub secrets: Arc<dyn Secrets>,
    /// Devices of the machine.
    pub devices: Arc<dyn Devices>,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Who else does the same.
    pub flights: Arc<dyn Flights>,
}

/// A step's result.
#[derive(Clone)]
pub enum StepOutput {
    /// A file system in the store; its layers may not be on the disk yet.
    Snapshot(Snapshot),
    /// A tree that is only read.
    View(Arc<dyn View>),
}

/// What all workers of a solve share.
pub(crate) struct Shared {
    pub(crate) graph: Arc<Graph>,
    pub(crate) maps: Vec<Option<CacheMap>>,
    pub(crate) ports: Arc<Ports>,
    pub(crate) events: Arc<dyn EventSink>,
    pub(crate) cancel: CancelToken,
    pub(crate) materialiser: Materialiser,
    results: Mutex<Vec<Option<StepResult>>>,
    /// Held while a local context is opened.
    opening: Vec<Mutex<()>>,
    /// Directories that had to become snapshots.
    copied: Mutex<HashMap<NodeId, Snapshot>>,
    /// Sources of which something was fetched.
    fetched: Mutex<HashSet<NodeId>>,
    /// Steps that ran in this build, and whose result was lost nevertheless.
    lost_again: Mutex<HashSet<NodeId>>,
}

#[derive(Clone)]
pub(crate) struct StepResult {
    /// Output number and what it is.
    pub(crate) outputs: Vec<(u32, StepOutput)>,
    /// Records it came from, to be forgotten when they turn out wrong.
    pub(crate) records: Vec<i64>,
    /// The losses when it was asked for.
    pub(crate) losses: u64,
}

/// What a worker has to say.
pub(crate) struct Answer {
    pub(crate) reply: Option<Reply>,
    pub(crate) events: Vec<Event>,
    pub(crate) failure: Option<SolveError>,
}

impl Answer {
    pub(crate) fn wake() -> Self {
        Self { reply: None, events: vec![], failure: None }
    }
}

/// Why a command could not be performed.
pub(crate) enum Trouble {
    /// The result of this step is gone.
    Lost(NodeId),
    /// The build fails.
    Failed(SolveError),
}

impl From<PortError> for Trouble {
    fn from(error: PortError) -> Self {
        Self::Failed(SolveError::from(Cause::Port(error)))
    }
}

impl Shared {
    pub(crate) fn new(
        graph: Arc<Graph>,
        maps: Vec<Option<CacheMap>>,
        ports: Arc<Ports>,
        events: Arc<dyn EventSink>,
        aliases: &HashMap<LayerId, LayerId>,
        cancel: CancelToken,
    ) -> Self {
        let results = graph.nodes().map(|(_, node)| step::known(&node.op, aliases)).collect();
        let results: Vec<Option<StepResult>> = results;
        let opening = results.iter().map(|_| Mutex::new(())).collect();
        let results = Mutex::new(results);
        let materialiser = Materialiser::new(ports.clone());
        Self {
            graph,
            maps,
            ports,
            events,
            cancel,
            materialiser,
            results,
            opening,
            copied: Mutex::default(),
            fetched: Mutex::default(),
            lost_again: Mutex::default(),
        }
    }

    /// An output, for a command that was given after `losses`. Lost if it is not there any more, or is another one since.
    fn output(&self, edge: Edge, losses: u64) -> Result<StepOutput, Trouble> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let result = results.get(edge.node.index()).and_then(Option::as_ref);
        let Some(result) = result.filter(|result| result.losses <= losses) else {
            return Err(Trouble::Lost(edge.node));
        };
        let output = result.outputs.iter().find(|(output, _)| *output == edge.output);
        Ok(output.map_or_else(|| StepOutput::Snapshot(Snapshot::default()), |(_, output)| output.clone()))
    }

    /// The records that a step's result came from.
    pub(crate) fn records(&self, node: NodeId) -> Vec<i64> {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.get(node.index()).and_then(Option::as_ref).map(|it| it.records.clone()).unwrap_or_default()
    }

    /// An output with all its layers on the disk; directories are opened, and repositories fetched, by the first who asks.
    pub(crate) fn present(&self, edge: Edge, progress: &StepProgress) -> Result<StepOutput, Trouble> {
        match &self.graph.node(edge.node).op {
            Op::Source(SourceOp::Local(local)) => {
                self.open(edge.node, |_| self.ports.sources.local(local, &self.cancel))?;
            }
            Op::Source(SourceOp::Git(git)) => {
                self.open(edge.node, |progress| self.ports.sources.git(git, progress, &self.cancel))?;
            }
            _ => {}
        }
        let output = self.output(edge, progress.losses())?;
        let StepOutput::Snapshot(snapshot) = &output else { return Ok(output) };
        if !self.materialiser.is_missing(snapshot) {
            return Ok(output);
        }
        let source = matches!(self.graph.node(edge.node).op, Op::Source(_));
        let first = source && self.fetched.lock().unwrap_or_else(PoisonError::into_inner).insert(edge.node);
        let ensured = if first {
            self.shown(edge.node, |progress| self.materialiser.ensure(snapshot, progress, &self.cancel))
        } else {
            self.materialiser.ensure(snapshot, progress, &self.cancel)
        };
        match ensured {
            Ok(()) => Ok(output),
            Err(error) => Err(self
                .lost(edge.node, progress.losses())
                .map_or_else(|| Trouble::from(error), Trouble::Lost)),
        }
    }

    /// The same as a snapshot: a local directory is copied, once, as its filters let it through.
    pub(crate) fn snapshot(&self, edge: Edge, progress: &StepProgress) -> Result<Snapshot, Trouble> {
        let view = match self.present(edge, progress)? {
            StepOutput::Snapshot(snapshot) => return Ok(snapshot),
            StepOutput::View(view) => view,
        };
        let _one = self.only(edge.node);
        let known = self.copied.lock().unwrap_or_else(PoisonError::into_inner).get(&edge.node).cloned();
        if let Some(snapshot) = known {
            return Ok(snapshot);
        }
        let (snapshot, committed) = step::copy_of(self, view, "/", progress)?;
        self.materialiser.record_made(committed)?;
        self.copied.lock().unwrap_or_else(PoisonError::into_inner).insert(edge.node, snapshot.clone());
        Ok(snapshot)
    }

    /// The layers of an output, wherever they are; directories are copied.
    pub(crate) fn layers(&self, edge: Edge, progress: &StepProgress) -> Result<Snapshot, Trouble> {
        let directory = matches!(
            self.graph.node(edge.node).op,
            Op::Source(SourceOp::Local(_) | SourceOp::Http(_) | SourceOp::Git(_))
        );
        if directory {
            return self.snapshot(edge, progress);
        }
        match self.output(edge, progress.losses())? {
            StepOutput::View(_) => self.snapshot(edge, progress),
            StepOutput::Snapshot(snapshot) => Ok(snapshot),
        }
    }

    /// The targets' results, once everything has run.
    pub(crate) fn targets(&self, targets: &[Edge]) -> Result<Vec<Snapshot>, SolveError> {
        let one = |edge: &Edge| {
            let progress = StepProgress::new(edge.node, u64::MAX, self.events.clone());
            self.layers(*edge, &progress).map_err(|trouble| match trouble {
                Trouble::Failed(mut error) => {
                    error.step.get_or_insert(edge.node);
                    error
                }
                Trouble::Lost(_) => {
                    SolveError::from(Cause::Port(PortError::new(ErrorKind::Internal, "a source was lost")))
                }
            })
        };
        targets.iter().map(one).collect()
    }

    /// While it lives, nobody else opens or copies this source.
    fn only(&self, node: NodeId) -> Option<std::sync::MutexGuard<'_, ()>> {
        self.opening.get(node.index()).map(|lock| lock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes a directory the result of `node`, unless it is that already.
    fn open(
        &self,
        node: NodeId,
        open: impl FnOnce(&StepProgress) -> rbuild_ports::Result<Arc<dyn View>>,
    ) -> Result<(), PortError> {
        let _one = self.only(node);
        if self.results.lock().unwrap_or_else(PoisonError::into_inner)[node.index()].is_none() {
            let view = self.shown(node, open)?;
            self.fetched.lock().unwrap_or_else(PoisonError::into_inner).insert(node);
            let outputs = vec![(0, StepOutput::View(view))];
            self.keep(node, StepResult { outputs, records: vec![], losses: 0 });
        }
        Ok(())
    }

    /// Does `work` for a source, and tells that it starts and ends.
    fn shown<T>(
        &self,
        node: NodeId,
        work: impl FnOnce(&StepProgress) -> Result<T, PortError>,
    ) -> Result<T, PortError> {
        self.events.event(Event::Started { step: node, why: Why::Source, at: self.ports.clock.now() });
        let result = work(&StepProgress::new(node, 0, self.events.clone()));
        let at = self.ports.clock.now();
        self.events.event(match &result {
            Ok(_) => Event::Finished { step: node, at },
            Err(error) if error.kind == ErrorKind::Cancelled => Event::Cancelled { step: node, at },
            Err(error) => Event::Failed { step: node, at, message: error.to_string() },
        });
        result
    }

    /// Images and repositories among `nodes` of which nothing had to be fetched.
    pub(crate) fn untouched_sources(&self, nodes: &[NodeId]) -> Vec<NodeId> {
        let fetched = self.fetched.lock().unwrap_or_else(PoisonError::into_inner);
        let remote = |node: &NodeId| {
            matches!(
                self.graph.node(*node).op,
                Op::Source(SourceOp::Image(_) | SourceOp::OciLayout(_) | SourceOp::Git(_))
            )
        };
        nodes.iter().copied().filter(|node| remote(node) && !fetched.contains(node)).collect()
    }

    /// Drops `node`'s result, as a command that was given after `losses` found it, and forgets the records that it came from; `None`
    /// when it cannot be made again.
    fn lost(&self, node: NodeId, losses: u64) -> Option<NodeId> {
        if self.cancel.is_cancelled() {
            return None;
        }
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = results.get_mut(node.index())?;
        let Some(result) = slot.as_ref().filter(|result| result.losses <= losses) else {
            // Somebody else said so already.
            return Some(node);
        };
        let records = result.records.clone();
        // What was put together from layers of inputs is as lost as they are: it runs once more, and looks for them first.
        if records.is_empty()
            && (matches!(self.graph.node(node).op, Op::Source(_)) || !self.note_lost_again(node))
        {
            return None;
        }
        *slot = None;
        drop(results);
        for record in records {
            // Should that fail too, the next look-up finds the same damage again.
            drop(self.ports.index.forget(record));
        }
        Some(node)
    }

    /// Whether this is the first time.
    fn note_lost_again(&self, node: NodeId) -> bool {
        self.lost_again.lock().unwrap_or_else(PoisonError::into_inner).insert(node)
    }

    /// Whether `node` ran in this build already, and some layer of its result was lost.
    pub(crate) fn was_lost_again(&self, node: NodeId) -> bool {
        self.lost_again.lock().unwrap_or_else(PoisonError::into_inner).contains(&node)
    }

    fn keep(&self, node: NodeId, result: StepResult) {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = results.get_mut(node.index()) {
            *slot = Some(result);
        }
    }
}

/// Performs a command. A panic in it is a failure like others, so nobody waits for its answer.
pub(crate) fn perform_guarded(shared: &Shared, command: Command) -> Answer {
    let (Command::Probe { step, .. } | Command::Hash { step, .. } | Command::Run { step, .. }) = command;
    caught(|| perform(shared, command))
        .unwrap_or_else(|error| answer(shared, step, None, |_| Err(Trouble::Failed(error))))
}

fn caught<T>(work: impl FnOnce() -> T) -> Result<T, SolveError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|_| panicked("a step"))
}

/// Performs a command.
fn perform(shared: &Shared, command: Command) -> Answer {
    match command {
        Command::Probe { step, queries, learn, losses } => answer(shared, step, None, |events| {
            let (keys, found) = probe(shared, &queries)?;
            let hit = found.is_some();
            if let Some(records) = found {
                for query in &learn {
                    shared.ports.index.save(query, None)?;
                }
                events.extend(adopt(shared, step, &queries, records, losses));
            }
            Ok(Reply::Probed { step, keys, hit })
        }),
        Command::Hash { step, input, losses } => answer(shared, step, Some(input), |_| {
            let progress = StepProgress::new(step, losses, shared.events.clone());
            Ok(Reply::Hashed { step, input, key: step::content_key(shared, step, input, &progress)? })
        }),
        Command::Run { step, queries, why, join, losses } => {
            let progress = StepProgress::new(step, losses, shared.events.clone());
            run(shared, step, &queries, why, join, &progress)
        }
    }
}

fn answer(
    shared: &Shared,
    step: NodeId,
    input: Option<usize>,
    work: impl FnOnce(&mut Vec<Event>) -> Result<Reply, Trouble>,
) -> Answer {
    let mut events = Vec::new();
    match work(&mut events) {
        Ok(reply) => Answer { reply: Some(reply), events, failure: None },
        Err(Trouble::Lost(lost)) => {
            Answer { reply: Some(Reply::Lost { step, input, lost }), events, failure: None }
        }
        Err(Trouble::Failed(mut error)) => {
            error.step.get_or_insert(step);
            events.extend(failed_event(&error, shared.ports.clock.now()));
            Answer { reply: Some(Reply::Failed { step }), events, failure: Some(error) }
        }
    }
}

/// Matching keys of each query, and a record for each if all have one.
type Probed = (Vec<Vec<KeyId>>, Option<Vec<Record>>);

fn probe(shared: &Shared, queries: &[KeyQuery]) -> Result<Probed, Trouble> {
    let index = &shared.ports.index;
    let keys = queries.iter().map(|query| index.probe(query)).collect::<Result<Vec<_>, _>>()?;
    if keys.iter().any(Vec::is_empty) {
        return Ok((keys, None));
    }
    let newest = keys
        .iter()
        .map(|keys| Ok(index.records(keys)?.into_iter().next()))
        .collect::<Result<Option<Vec<_>>, PortError>>()?;
    Ok((keys, newest))
}

/// Takes records as the step's results.
fn adopt(
    shared: &Shared,
    step: NodeId,
    queries: &[KeyQuery],
    records: Vec<Record>,
    losses: u64,
) -> Option<Event> {
    let event = records.first().map(|record| {
        let Record { created, kind, cost_ms, .. } = record;
        Event::Cached { step, created: *created, kind: Some(*kind), cost_ms: *cost_ms }
    });
    let ids: Vec<i64> = records.iter().map(|record| record.id).collect();
    let outputs = queries
        .iter()
        .zip(records)
        .map(|(query, record)| (query.output, StepOutput::Snapshot(record.snapshot)))
        .collect();
    shared.keep(step, StepResult { outputs, records: ids, losses });
    event
}

/// What came of asking who else runs a step.
enum Joining {
    /// It is this build's to run; others wait until the flight ends.
    Run(Option<Box<dyn Flight>>),
    /// Somebody ran it: its keys, and what to tell.
    Took(Vec<Vec<KeyId>>, Option<Event>),
}

/// Waits until no other build, in this process or another, does the same. If one did, its result is as good.
fn join(shared: &Shared, step: NodeId, queries: &[KeyQuery], losses: u64) -> Result<Joining, Trouble> {
    let apart = |query: &KeyQuery| query.inputs.iter().any(Vec::is_empty);
    if queries.is_empty() || queries.iter().any(apart) {
        return Ok(Joining::Run(None));
    }
    let waiting = || {
        let data = b"waiting for another build that runs this step\n".to_vec();
        shared.events.event(Event::Log { step, stream: Stream::Stderr, data });
    };
    let entered = shared.ports.flights.enter(&flight_name(queries), &waiting, &shared.cancel);
    let flight = match entered {
        Ok(flight) => flight,
        Err(error) if error.kind == ErrorKind::Cancelled => return Err(error.into()),
        // Without a lock it runs, at worst twice.
        Err(_) => return Ok(Joining::Run(None)),
    };
    let (keys, found) = probe(shared, queries)?;
    Ok(match found {
        Some(records) => Joining::Took(keys, adopt(shared, step, queries, records, losses)),
        None => Joining::Run(Some(flight)),
    })
}

/// The same for builds that would save under the same key.
fn flight_name(queries: &[KeyQuery]) -> Digest {
    let mut text = String::new();
    for query in queries {
        text.push_str(&format!("{}@{}\n", query.op, query.output));
        for alternatives in &query.inputs {
            // A content key comes last, and is the same wherever the content is.
            let last = alternatives.last();
            let selector = last.and_then(|it| it.selector);
            text.push_str(&format!("{} {}\n", last.map_or("", |it| &it.key.0), selector.is_some()));
        }
    }
    Digest::of(text)
}

fn run(
    shared: &Shared,
    step: NodeId,
    queries: &[KeyQuery],
    why: Why,
    may_join: bool,
    progress: &StepProgress,
) -> Answer {
    let mut flight = None;
    if may_join && why != Why::Lost {
        let mut took = false;
        let answer = answer(shared, step, None, |events| {
            let keys = match join(shared, step, queries, progress.losses())? {
                Joining::Run(entered) => {
                    flight = entered;
                    vec![]
                }
                Joining::Took(keys, event) => {
                    took = true;
                    events.extend(event);
                    keys
                }
            };
            Ok(Reply::Joined { step, keys })
        });
        if took || answer.failure.is_some() {
            return answer;
        }
    }
    let answer = perform_run(shared, step, queries, why, progress);
    // Only now that its record is there.
    drop(flight);
    answer
}

fn perform_run(
    shared: &Shared,
    step: NodeId,
    queries: &[KeyQuery],
    why: Why,
    progress: &StepProgress,
) -> Answer {
    let started = shared.ports.clock.now();
    if step::visible(&shared.graph.node(step).op) {
        shared.events.event(Event::Started { step, why, at: started });
    }
    let mut out = answer(shared, step, None, |events| {
        shared.cancel.check()?;
        let made = step::run(shared, step, progress)?;
        let at = shared.ports.clock.now();
        let keys = match made.keys {
            Some(keys) => vec![keys; shared_outputs(queries, &made.outputs)],
            None => save(shared, step, queries, &made.outputs, millis(started, at))?,
        };
        let losses = progress.losses();
        shared.keep(step, StepResult { outputs: made.outputs, records: vec![], losses });
        if step::visible(&shared.graph.node(step).op) {
            events.push(Event::Finished { step, at });
        }
        Ok(Reply::Ran { step, keys })
    });
    if let Some(failure) = &mut out.failure {
        failure.log_tail = progress.tail();
    }
    out
}

fn shared_outputs(queries: &[KeyQuery], outputs: &[(u32, StepOutput)]) -> usize {
    queries.len().max(outputs.len()).max(1)
}

fn millis(from: Timestamp, to: Timestamp) -> u64 {
    u64::try_from(to.0.saturating_sub(from.0) / 1_000_000).unwrap_or(0)
}

fn save(
    shared: &Shared,
    step: NodeId,
    queries: &[KeyQuery],
    outputs: &[(u32, StepOutput)],
    cost_ms: u64,
) -> Result<Vec<Vec<KeyId>>, Trouble> {
    let node = shared.graph.node(step);
    let preimage = shared
        .maps
        .get(step.index())
        .and_then(Option::as_ref)
        .map(|map| map.preimage.text.clone())
        .unwrap_or_default();
    let mut keys = Vec::with_capacity(queries.len());
    for query in queries {
        if query.inputs.iter().any(Vec::is_empty) {
            // An input that has neither a key nor a content key: nothing could lead to this result again.
            keys.push(vec![]);
            continue;
        }
        let snapshot = outputs.iter().find_map(|(output, made)| match made {
            StepOutput::Snapshot(snapshot) if *output == query.output => Some(snapshot.clone()),
            _ => None,
        });
        let record = snapshot.map(|snapshot| NewRecord {
            snapshot,
            created: shared.ports.clock.now(),
            description: node.meta.name.clone(),
            cost_ms,
            kind: RecordKind::Local,
            preimage: preimage.clone(),
        });
        keys.push(vec![shared.ports.index.save(query, record.as_ref())?]);
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_failure() {
        assert_eq!(caught(|| 1).unwrap(), 1);
        let error = caught(|| panic!("a bug")).map(|(): ()| ()).unwrap_err();
        assert!(matches!(&error.cause, Cause::Port(e) if e.kind == ErrorKind::Internal), "{error:?}");
    }
}
