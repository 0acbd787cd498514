//! What happens during a solve, as plain data: the progress interface, and what tests assert on.

use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_graph::NodeId;
use rbuild_ports::{KeyId, RecordKind, Stream, Timestamp, View};
use rbuild_tree::RelPath;

use crate::Why;

/// Something that happened to a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// It was found in the cache.
    Cached {
        /// The step.
        step: NodeId,
        /// Since when its record is there; 0 for images, which have none, and for steps that only led on to one that is
        /// in the cache.
        created: Timestamp,
        /// Who made the record, if there is one.
        kind: Option<RecordKind>,
        /// How long that took, in milliseconds.
        cost_ms: u64,
    },
    /// It runs.
    Started {
        /// The step.
        step: NodeId,
        /// Why it runs.
        why: Why,
        /// When.
        at: Timestamp,
    },
    /// It ended well.
    Finished {
        /// The step.
        step: NodeId,
        /// When.
        at: Timestamp,
    },
    /// It failed; the solve's error says how.
    Failed {
        /// The step.
        step: NodeId,
        /// When.
        at: Timestamp,
        /// What happened.
        message: String,
    },
    /// It was stopped, since the build was cancelled or failed elsewhere.
    Cancelled {
        /// The step.
        step: NodeId,
        /// When.
        at: Timestamp,
    },
    /// Output of its command.
    Log {
        /// The step.
        step: NodeId,
        /// Which stream.
        stream: Stream,
        /// Bytes as they came.
        data: Vec<u8>,
    },
    /// How far a part of it is.
    Status {
        /// The step.
        step: NodeId,
        /// The part, such as a layer's digest.
        id: String,
        /// Bytes so far.
        current: u64,
        /// Of how many.
        total: Option<u64>,
        /// That was all of it.
        done: bool,
    },
    /// The user must be told.
    Warning {
        /// The step.
        step: NodeId,
        /// What.
        message: String,
    },
}

/// The content of a step's input, as it was hashed.
pub struct Hashed {
    /// The step.
    pub step: NodeId,
    /// Position of the input.
    pub input: usize,
    /// The content key.
    pub key: KeyId,
    /// What was read.
    pub view: Arc<dyn View>,
    /// The entries that count, and the digest of each.
    pub entries: Vec<(RelPath, Digest)>,
}

/// Takes events; called from several threads.
pub trait EventSink: Send + Sync {
    /// Takes one.
    fn event(&self, event: Event);

    /// Takes what was hashed. It delays the build, so slow work is for another thread.
    fn hashed(&self, hashed: Hashed) {
        drop(hashed);
    }
}

impl<F: Fn(Event) + Send + Sync> EventSink for F {
    fn event(&self, event: Event) {
        self(event);
    }
}
