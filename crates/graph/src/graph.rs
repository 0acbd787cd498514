//! The graph. Edges are added only towards nodes that exist, so it is acyclic by construction; equal
//! definitions are one node.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;
use rbuild_diag::{SourceFile, Span};
use rbuild_oci::Platform;

use crate::Op;

/// A node's number: dense, from 0, inputs always lower than users.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct NodeId(pub u32);

impl NodeId {
    /// As an index into side tables.
    #[must_use]
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// One output of a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Edge {
    /// The node.
    pub node: NodeId,
    /// Which of its outputs.
    pub output: u32,
}

/// An operation, its inputs and what people see of it.
#[derive(Clone, Debug)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// By position.
    pub inputs: Vec<Edge>,
    /// Normalised.
    pub platform: Platform,
    /// Not part of its identity.
    pub meta: NodeMeta,
}

/// For people and policies; never part of a node's identity or key.
#[derive(Clone, Debug, Default)]
pub struct NodeMeta {
    /// Progress text: `[build 2/4] RUN make`.
    pub name: String,
    /// Where it was written.
    pub place: Option<Place>,
    /// The stage it belongs to, as named or `stage-0`.
    pub stage: String,
    /// `--no-cache`: never looked up, still recorded.
    pub ignore_cache: bool,
    /// Nodes of one group are shown as one step.
    pub progress_group: Option<String>,
}

/// A place in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: SourceFile,
    /// Where.
    pub span: Span,
}

/// Why a node was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GraphError {
    /// An edge to a node that does not exist (yet).
    #[error("input {position} of the new node refers to node {node}, which does not exist")]
    NoSuchNode {
        /// Position of the input.
        position: usize,
        /// What it refers to.
        node: u32,
    },
    /// An edge to an output that its node does not have.
    #[error("input {position} of the new node refers to output {output} of node {node}, which has {outputs}")]
    NoSuchOutput {
        /// Position of the input.
        position: usize,
        /// What it refers to.
        node: u32,
        /// What it refers to.
        output: u32,
        /// How many there are.
        outputs: u32,
    },
    /// An operation refers to an input that its node does not have.
    #[error("the operation refers to input {input}, but its node has {inputs}")]
    NoSuchInput {
        /// What it refers to.
        input: u32,
        /// How many there are.
        inputs: usize,
    },
    /// An action refers to a later action, or to itself.
    #[error("file action {action} refers to index {index}, which is not made yet")]
    ForwardAction {
        /// Position of the action.
        action: usize,
        /// What it refers to.
        index: u32,
    },
}

/// What makes two nodes one.
fn identity(node: &Node) -> (&Op, &[Edge], &Platform, bool) {
    (&node.op, &node.inputs, &node.platform, node.meta.ignore_cache)
}

/// A directed acyclic graph of operations; petgraph edges point from input to user.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    dag: DiGraph<Node, ()>,
    /// Nodes by the hash of what makes them equal.
    identity: HashMap<u64, Vec<NodeId>>,
}

impl Graph {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a node, or finds the equal one (same operation, inputs, platform and cache use).
    ///
    /// # Errors
    /// If an edge or an index inside the operation refers to something that does not exist.
    pub fn add(&mut self, node: Node) -> Result<NodeId, GraphError> {
        self.check(&node)?;
        let mut hasher = DefaultHasher::new();
        identity(&node).hash(&mut hasher);
        let hash = hasher.finish();
        let equal = self.identity.get(&hash).into_iter().flatten();
        if let Some(id) = equal.copied().find(|id| identity(self.node(*id)) == identity(&node)) {
            return Ok(id);
        }
        let inputs: Vec<NodeIndex> =
            node.inputs.iter().map(|edge| NodeIndex::new(edge.node.index())).collect();
        let index = self.dag.add_node(node);
        for input in inputs {
            self.dag.add_edge(input, index, ());
        }
        let id = NodeId(u32::try_from(index.index()).unwrap_or(u32::MAX));
        self.identity.entry(hash).or_default().push(id);
        Ok(id)
    }

    fn check(&self, node: &Node) -> Result<(), GraphError> {
        for (position, edge) in node.inputs.iter().enumerate() {
            let Some(input) = self.dag.node_weight(NodeIndex::new(edge.node.index())) else {
                return Err(GraphError::NoSuchNode { position, node: edge.node.0 });
            };
            let outputs = input.op.outputs();
            if edge.output >= outputs {
                return Err(GraphError::NoSuchOutput {
                    position,
                    node: edge.node.0,
                    output: edge.output,
                    outputs,
                });
            }
        }
        let inputs = node.inputs.len();
        let known = |input: Option<u32>| match input {
            Some(input) if input as usize >= inputs => Err(GraphError::NoSuchInput { input, inputs }),
            _ => Ok(()),
        };
        match &node.op {
            Op::Source(_) => Ok(()),
            Op::Exec(exec) => exec.spec.mounts.iter().try_for_each(|mount| known(mount.input)),
            Op::Merge(merge) => merge.inputs.iter().try_for_each(|input| known(Some(*input))),
            Op::Diff(diff) => known(diff.lower).and_then(|()| known(diff.upper)),
            Op::File(file) => file.actions.iter().enumerate().try_for_each(|(action, it)| {
                [it.input, it.secondary_input].into_iter().flatten().try_for_each(|index| {
                    if index as usize >= inputs + action {
                        Err(GraphError::ForwardAction { action, index })
                    } else {
                        Ok(())
                    }
                })
            }),
        }
    }

    /// The same graph with changed operations: the new edges of the old nodes. Nodes that became equal are one.
    ///
    /// # Errors
    /// If a changed operation refers to an input that its node does not have.
    pub fn map(&self, mut change: impl FnMut(&mut Op)) -> Result<(Self, Vec<NodeId>), GraphError> {
        let mut out = Self::new();
        let mut places: Vec<NodeId> = Vec::with_capacity(self.len());
        for (_, node) in self.nodes() {
            let mut node = node.clone();
            change(&mut node.op);
            for edge in &mut node.inputs {
                // Inputs stand before their users.
                if let Some(place) = places.get(edge.node.index()) {
                    edge.node = *place;
                }
            }
            places.push(out.add(node)?);
        }
        Ok((out, places))
    }

    /// The node.
    ///
    /// # Panics
    /// If `id` is not of this graph.
    #[must_use]
    pub fn node(&self, id: NodeId) -> &Node {
        &self.dag[NodeIndex::new(id.index())]
    }

    /// All nodes, inputs before users.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.dag
            .node_indices()
            .map(|index| (NodeId(u32::try_from(index.index()).unwrap_or(u32::MAX)), &self.dag[index]))
    }

    /// How many nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.dag.node_count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The nodes that use `id`, ascending, each once.
    #[must_use]
    pub fn users(&self, id: NodeId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self
            .dag
            .edges(NodeIndex::new(id.index()))
            .map(|edge| NodeId(u32::try_from(edge.target().index()).unwrap_or(u32::MAX)))
            .collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The nodes that `targets` need, themselves included, ascending.
    #[must_use]
    pub fn needed(&self, targets: &[NodeId]) -> Vec<NodeId> {
        let mut marked = vec![false; self.len()];
        let mut stack: Vec<NodeId> = targets.to_vec();
        while let Some(id) = stack.pop() {
            if !std::mem::replace(&mut marked[id.index()], true) {
                stack.extend(self.node(id).inputs.iter().map(|edge| edge.node));
            }
        }
        self.nodes().map(|(id, _)| id).filter(|id| marked[id.index()]).collect()
    }
}
