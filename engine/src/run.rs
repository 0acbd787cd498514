//! The loop: owns the scheduler and the results, gives commands to blocking threads, takes their replies.

use std::collections::HashMap;
use std::sync::Arc;

use rbuild_cache_key::{CacheMap, Facts, OpDigest, cache_map, record_key};
use rbuild_graph::{Edge, Graph, NodeId, Op, SourceOp};
use rbuild_ports::{CancelToken, ErrorKind, KeyId, LayerId, PortError};
use tokio::sync::mpsc;

use crate::worker::{Answer, Shared, perform_guarded};
use crate::{Cause, DepSpec, Event, EventSink, Ports, Scheduler, SolveError, Solved, StepKind, StepSpec};

/// How to solve.
#[derive(Clone, Copy, Debug)]
pub struct SolveOptions {
    /// How many commands and file operations run at a time.
    pub jobs: usize,
}

/// Solves `targets` of `graph`. Must be called on a tokio runtime; work is done on its blocking threads. On failure and
/// on cancellation everything that runs is stopped and awaited before it returns. `aliases` says which layers of images
/// are on the disk under another name than their diff id's (images that were built here).
///
/// # Errors
/// The first step that failed, or cancellation.
pub async fn solve(
    graph: Arc<Graph>,
    targets: &[Edge],
    options: SolveOptions,
    ports: Arc<Ports>,
    events: Arc<dyn EventSink>,
    aliases: Arc<HashMap<LayerId, LayerId>>,
    cancel: &CancelToken,
) -> Result<Solved, SolveError> {
    let (specs, maps) = specs(&graph, targets)?;
    let nodes: Vec<NodeId> = targets.iter().map(|edge| edge.node).collect();
    let mut scheduler = Scheduler::new(specs, &nodes, options.jobs);
    let inner = CancelToken::new();
    let (send, mut receive) = mpsc::unbounded_channel::<Answer>();
    let wake = send.clone();
    let to_inner = inner.clone();
    let _guard = cancel.on_cancel(move || {
        to_inner.cancel();
        // A reply for no step: wakes the loop.
        drop(wake.send(Answer::wake()));
    });
    let shared = Arc::new(Shared::new(graph, maps, ports, events.clone(), &aliases, inner.clone()));
    let mut failure: Option<SolveError> = None;
    loop {
        if inner.is_cancelled() {
            scheduler.stop();
        }
        for command in scheduler.poll() {
            let (shared, send) = (shared.clone(), send.clone());
            tokio::task::spawn_blocking(move || drop(send.send(perform_guarded(&shared, command))));
        }
        if scheduler.finished() {
            break;
        }
        let Some(answer) = receive.recv().await else { break };
        for event in answer.events {
            events.event(event);
        }
        if let Some(error) = answer.failure {
            // What fails while everything is being stopped did not cause it.
            if failure.is_none() && !(inner.is_cancelled() && error.is_cancelled()) {
                failure = Some(error);
            }
            inner.cancel();
        }
        if let Some(reply) = answer.reply {
            scheduler.on(reply);
        }
    }
    match failure {
        Some(error) => Err(error),
        None if !scheduler.succeeded() => {
            Err(SolveError { step: None, cause: Cause::Cancelled, log_tail: vec![] })
        }
        None => {
            let nodes: Vec<NodeId> = targets.iter().map(|edge| edge.node).collect();
            let sources = shared.untouched_sources(&shared.graph.needed(&nodes));
            for step in scheduler.passed_over().into_iter().chain(sources) {
                let created = rbuild_ports::Timestamp(0);
                events.event(Event::Cached { step, created, kind: None, cost_ms: 0 });
            }
            let (all, asked) = (shared.clone(), targets.to_vec());
            let outputs = tokio::task::spawn_blocking(move || all.targets(&asked)).await;
            Ok(Solved {
                outputs: outputs.map_err(|_| panicked("copying a directory"))??,
                records: nodes.iter().map(|node| shared.records(*node)).collect(),
                steps: scheduler.solved(),
            })
        }
    }
}

/// What the scheduler must know, for every node that the targets need.
type Specs = (Vec<StepSpec>, Vec<Option<CacheMap>>);

fn specs(graph: &Graph, targets: &[Edge]) -> Result<Specs, SolveError> {
    let nodes: Vec<NodeId> = targets.iter().map(|edge| edge.node).collect();
    let needed = graph.needed(&nodes);
    let mut outputs: Vec<Vec<u32>> = vec![Vec::new(); graph.len()];
    for edge in targets.iter().chain(needed.iter().flat_map(|id| &graph.node(*id).inputs)) {
        outputs[edge.node.index()].push(edge.output);
    }
    let mut maps: Vec<Option<CacheMap>> = vec![None; graph.len()];
    let mut specs = Vec::with_capacity(needed.len());
    for id in needed {
        let node = graph.node(id);
        let mut wanted = std::mem::take(&mut outputs[id.index()]);
        wanted.sort_unstable();
        wanted.dedup();
        let map = match &node.op {
            // What it is is known only after it was fetched.
            Op::Source(SourceOp::Http(_)) => None,
            _ => Some(cache_map(node, &Facts::default()).map_err(|error| SolveError {
                step: Some(id),
                cause: Cause::Port(PortError::new(ErrorKind::Invalid, error.to_string())),
                log_tail: vec![],
            })?),
        };
        let kind = match (&node.op, map.as_ref().map(|map| (map.digest, &map.extra_roots))) {
            (_, None) => StepKind::Fetch,
            (Op::Source(_), Some((OpDigest::Fixed(digest), more))) => {
                let roots =
                    std::iter::once(&digest).chain(more).map(|root| KeyId::root(&record_key(root, 0)));
                StepKind::Known(roots.collect())
            }
            (_, Some((OpDigest::Random(_), _))) => StepKind::Known(vec![]),
            (_, Some((OpDigest::Fixed(digest), _))) => StepKind::Op(digest),
        };
        let deps = map.iter().flat_map(|map| &map.deps);
        specs.push(StepSpec {
            node: id,
            inputs: node.inputs.clone(),
            deps: deps
                .map(|dep| DepSpec { selector: dep.selector, content: dep.content.is_some() })
                .collect(),
            kind,
            ignore_cache: node.meta.ignore_cache,
            outputs: wanted,
            heavy: matches!(node.op, Op::Exec(_) | Op::File(_)),
        });
        maps[id.index()] = map;
    }
    Ok((specs, maps))
}

/// That `what` panicked.
pub(crate) fn panicked(what: &str) -> SolveError {
    SolveError::from(Cause::Port(PortError::new(ErrorKind::Internal, format!("{what} panicked"))))
}

impl From<Cause> for SolveError {
    fn from(cause: Cause) -> Self {
        Self { step: None, cause, log_tail: vec![] }
    }
}

/// Events of a failed step.
pub(crate) fn failed_event(error: &SolveError, at: rbuild_ports::Timestamp) -> Option<Event> {
    let step = error.step?;
    Some(if error.is_cancelled() {
        Event::Cancelled { step, at }
    } else {
        Event::Failed { step, at, message: error.to_string() }
    })
}
