//! What happens during a build, as plain data: the progress interface, and what tests assert on. A vertex is what
//! people see as one step: a node of the graph, or something the builder itself does.

use std::sync::Arc;

use rbuild_diag::Diagnostic;
use rbuild_engine::Why;
use rbuild_ports::{Stream, Timestamp};

/// A vertex's number, from 1 in the order in which they first appear.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct VertexId(pub u32);

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub enum BuildEvent {
    /// A vertex started.
    Started {
        /// Its number.
        vertex: VertexId,
        /// Its name: `[build 2/4] RUN make`.
        name: Arc<str>,
        /// Why it runs, for steps of the graph.
        why: Option<Why>,
        /// When.
        at: Timestamp,
    },
    /// A vertex was found in the cache.
    Cached {
        /// Its number.
        vertex: VertexId,
        /// Its name.
        name: Arc<str>,
    },
    /// A vertex ended.
    Finished {
        /// Its number.
        vertex: VertexId,
        /// When.
        at: Timestamp,
        /// What went wrong.
        error: Option<String>,
    },
    /// A vertex was stopped.
    Cancelled {
        /// Its number.
        vertex: VertexId,
        /// When.
        at: Timestamp,
    },
    /// Output of a vertex's command.
    Log {
        /// Its number.
        vertex: VertexId,
        /// Which stream.
        stream: Stream,
        /// Bytes as they came.
        data: Vec<u8>,
    },
    /// How far a part of a vertex is.
    Status {
        /// Its number.
        vertex: VertexId,
        /// The part, such as a layer's digest or `transferring context`.
        id: String,
        /// Bytes so far.
        current: u64,
        /// Of how many.
        total: Option<u64>,
        /// That was all of it.
        done: bool,
    },
    /// The user must be told: a weaker sandbox, no network, a registry that could not be asked.
    Warning {
        /// The vertex it is about.
        vertex: Option<VertexId>,
        /// What.
        message: String,
    },
    /// A finding about the Dockerfile that does not stop the build.
    Finding(Diagnostic),
}

/// Takes events; called from several threads.
pub trait BuildEvents: Send + Sync {
    /// Takes one.
    fn event(&self, event: BuildEvent);
}

impl<F: Fn(BuildEvent) + Send + Sync> BuildEvents for F {
    fn event(&self, event: BuildEvent) {
        self(event);
    }
}
