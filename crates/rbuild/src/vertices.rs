//! Numbers vertices, and turns the engine's events about nodes into events about vertices.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_engine::{Event, EventSink, Hashed, Why};
use rbuild_graph::{Graph, NodeId, Op};
use rbuild_ports::{Clock, Progress, Stream};

use crate::trace::GraphNotes;
use crate::{BuildEvent, BuildEvents, VertexId};

/// All vertices of a build.
pub(crate) struct Vertices {
    sink: Arc<dyn BuildEvents>,
    clock: Arc<dyn Clock>,
    count: Mutex<u32>,
    pub(crate) cached: AtomicUsize,
    pub(crate) ran: AtomicUsize,
}

/// Something the builder itself does; a progress for ports too.
pub(crate) struct Task {
    vertices: Arc<Vertices>,
    vertex: VertexId,
}

impl Vertices {
    pub(crate) fn new(sink: Arc<dyn BuildEvents>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            sink,
            clock,
            count: Mutex::new(0),
            cached: AtomicUsize::new(0),
            ran: AtomicUsize::new(0),
        })
    }

    fn number(&self) -> VertexId {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count += 1;
        VertexId(*count)
    }

    pub(crate) fn send(&self, event: BuildEvent) {
        self.sink.event(event);
    }

    pub(crate) fn warn(&self, message: impl Into<String>) {
        self.send(BuildEvent::Warning { vertex: None, message: message.into() });
    }

    /// Starts a task of the builder's own.
    pub(crate) fn task(self: &Arc<Self>, name: &str) -> Task {
        let vertex = self.number();
        self.send(BuildEvent::Started { vertex, name: name.into(), why: None, at: self.clock.now() });
        Task { vertices: self.clone(), vertex }
    }
}

impl Task {
    /// Ends it as `result` says, which is handed through.
    pub(crate) fn finish<T, E: std::fmt::Display>(self, result: Result<T, E>) -> Result<T, E> {
        let error = result.as_ref().err().map(ToString::to_string);
        let (vertex, at) = (self.vertex, self.vertices.clock.now());
        // Every error of a cancelled call says just this.
        if error.as_deref() == Some("cancelled") {
            self.vertices.send(BuildEvent::Cancelled { vertex, at });
        } else {
            self.vertices.send(BuildEvent::Finished { vertex, at, error });
        }
        result
    }
}

impl Progress for Task {
    fn log(&self, stream: Stream, data: &[u8]) {
        self.vertices.send(BuildEvent::Log { vertex: self.vertex, stream, data: data.to_vec() });
    }

    fn status(&self, id: &str, current: u64, total: Option<u64>, done: bool) {
        self.vertices.send(BuildEvent::Status {
            vertex: self.vertex,
            id: id.to_owned(),
            current,
            total,
            done,
        });
    }

    fn warn(&self, message: &str) {
        self.vertices.send(BuildEvent::Warning { vertex: Some(self.vertex), message: message.to_owned() });
    }
}

/// The engine's events of one graph.
pub(crate) struct GraphEvents {
    vertices: Arc<Vertices>,
    graph: Arc<Graph>,
    notes: Arc<GraphNotes>,
    known: Mutex<HashMap<NodeId, VertexId>>,
}

impl GraphEvents {
    pub(crate) fn new(vertices: Arc<Vertices>, graph: Arc<Graph>, notes: Arc<GraphNotes>) -> Self {
        Self { vertices, graph, notes, known: Mutex::default() }
    }

    /// The vertex of a step that failed or reports before it runs, which people have not heard of yet.
    fn introduced(&self, step: NodeId) -> VertexId {
        if let Some(vertex) = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&step) {
            return *vertex;
        }
        let (vertex, name, at) = (self.vertex(step), self.name(step), self.vertices.clock.now());
        self.vertices.send(BuildEvent::Started { vertex, name, why: None, at });
        vertex
    }

    fn vertex(&self, step: NodeId) -> VertexId {
        *self
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(step)
            .or_insert_with(|| self.vertices.number())
    }

    fn name(&self, step: NodeId) -> Arc<str> {
        self.graph.node(step).meta.name.as_str().into()
    }

    fn counts(&self, step: NodeId) -> bool {
        !matches!(self.graph.node(step).op, Op::Source(_))
    }
}

impl EventSink for GraphEvents {
    fn hashed(&self, hashed: Hashed) {
        self.notes.hashed(hashed);
    }

    fn event(&self, event: Event) {
        self.notes.event(&event);
        let out = match event {
            Event::Cached { step, .. } => {
                if self.counts(step) {
                    self.vertices.cached.fetch_add(1, Ordering::Relaxed);
                }
                BuildEvent::Cached { vertex: self.vertex(step), name: self.name(step) }
            }
            Event::Started { step, why, at } => {
                if self.counts(step) {
                    self.vertices.ran.fetch_add(1, Ordering::Relaxed);
                }
                let why = (why != Why::Source).then_some(why);
                BuildEvent::Started { vertex: self.vertex(step), name: self.name(step), why, at }
            }
            Event::Finished { step, at } => {
                BuildEvent::Finished { vertex: self.vertex(step), at, error: None }
            }
            Event::Failed { step, at, message } => {
                BuildEvent::Finished { vertex: self.introduced(step), at, error: Some(message) }
            }
            Event::Cancelled { step, at } => BuildEvent::Cancelled { vertex: self.introduced(step), at },
            Event::Log { step, stream, data } => {
                BuildEvent::Log { vertex: self.introduced(step), stream, data }
            }
            Event::Status { step, id, current, total, done } => {
                BuildEvent::Status { vertex: self.introduced(step), id, current, total, done }
            }
            Event::Warning { step, message } => {
                BuildEvent::Warning { vertex: Some(self.introduced(step)), message }
            }
        };
        self.vertices.send(out);
    }
}
