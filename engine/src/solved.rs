//! What a solve learned of each step's keys: what leads to its results, for whoever exports the cache.

use rbuild_digest::Digest;
use rbuild_graph::{Edge, NodeId};
use rbuild_ports::{KeyId, Snapshot};

/// Results, in the order of the targets, and the steps behind them.
pub struct Solved {
    /// One a target.
    pub outputs: Vec<Snapshot>,
    /// The records that each target's result came from; none for what ran.
    pub records: Vec<Vec<i64>>,
    /// All steps, those that others read before these.
    pub steps: Vec<SolvedStep>,
}

/// A step's keys.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SolvedStep {
    /// Its node.
    pub node: NodeId,
    /// The operation's digest; `None` for sources, whose keys are roots.
    pub op: Option<Digest>,
    /// Its inputs, by position.
    pub inputs: Vec<SolvedInput>,
    /// The outputs that somebody uses, and their keys.
    pub outputs: Vec<(u32, Vec<KeyId>)>,
}

/// How an input leads to a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SolvedInput {
    /// Which output of which step it is.
    pub edge: Edge,
    /// The selector of the links from its keys.
    pub selector: Option<Digest>,
    /// Whether the content of what is read of it may stand for it.
    pub by_content: bool,
    /// Its content key, if it was hashed.
    pub content: Option<KeyId>,
}
