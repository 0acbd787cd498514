//! The graph while it is made. Nodes refer to each other by number as in the finished graph, equal definitions are
//! one node already here (a step's mounts of one thing share an input), and local sources do not know their paths
//! yet: those are read off the operations that use them, at the end, when only what the target needs is kept.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashMap};
use std::hash::{Hash, Hasher};

use rbuild_graph::{
    Edge, FileKind, FileOp, Graph, GraphError, MountKind, Node, NodeId, Op, SourceOp, UserRef,
};

use crate::paths;

/// Nodes in the order they were made.
#[derive(Debug, Default)]
pub(crate) struct Draft {
    nodes: Vec<Node>,
    known: HashMap<u64, Vec<u32>>,
}

/// The paths of a local source that are used.
#[derive(Debug, Default)]
struct Used {
    everything: bool,
    paths: BTreeSet<String>,
}

impl Draft {
    /// Adds a node, or finds the equal one; its first output.
    pub(crate) fn add(&mut self, node: Node) -> Edge {
        let mut hasher = DefaultHasher::new();
        (&node.op, &node.inputs, &node.platform, node.meta.ignore_cache).hash(&mut hasher);
        let same = self.known.entry(hasher.finish()).or_default();
        let equal = |known: &Node| {
            known.op == node.op
                && known.inputs == node.inputs
                && known.platform == node.platform
                && known.meta.ignore_cache == node.meta.ignore_cache
        };
        for id in same.iter() {
            if self.nodes.get(*id as usize).is_some_and(equal) {
                return Edge { node: NodeId(*id), output: 0 };
            }
        }
        let id = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        same.push(id);
        self.nodes.push(node);
        Edge { node: NodeId(id), output: 0 }
    }

    /// The finished graph with what `targets` need, and where they are in it; after them `aside`, which is kept
    /// too, but whose being kept does not mean that all of it is used.
    pub(crate) fn finish(
        self,
        targets: &[Option<Edge>],
        aside: Option<Edge>,
    ) -> Result<(Graph, Vec<Option<Edge>>), GraphError> {
        let kept: Vec<Option<Edge>> = targets.iter().copied().chain([aside]).collect();
        let needed = self.needed(&kept);
        let used = self.used_paths(&needed, targets);
        let mut graph = Graph::new();
        let mut places: Vec<Option<NodeId>> = vec![None; self.nodes.len()];
        let place = |places: &[Option<NodeId>], edge: Edge| {
            places.get(edge.node.index()).copied().flatten().map(|node| Edge { node, output: edge.output })
        };
        for (index, mut node) in self.nodes.into_iter().enumerate() {
            if !needed.get(index).copied().unwrap_or(false) {
                continue;
            }
            for (position, input) in node.inputs.iter_mut().enumerate() {
                *input =
                    place(&places, *input).ok_or(GraphError::NoSuchNode { position, node: input.node.0 })?;
            }
            if let Op::Source(SourceOp::Local(local)) = &mut node.op
                && let Some(used) = used.get(&index)
                && !used.everything
            {
                local.follow_paths = used.paths.iter().cloned().collect();
            }
            let id = graph.add(node)?;
            if let Some(slot) = places.get_mut(index) {
                *slot = Some(id);
            }
        }
        let kept = kept.iter().map(|target| target.and_then(|edge| place(&places, edge))).collect();
        Ok((graph, kept))
    }

    /// Whether `targets` need `edge`.
    pub(crate) fn needs(&self, targets: &[Option<Edge>], edge: Edge) -> bool {
        self.needed(targets).get(edge.node.index()).copied().unwrap_or(false)
    }

    fn needed(&self, targets: &[Option<Edge>]) -> Vec<bool> {
        let mut needed = vec![false; self.nodes.len()];
        let mut stack: Vec<usize> = targets.iter().flatten().map(|edge| edge.node.index()).collect();
        while let Some(index) = stack.pop() {
            let (Some(mark), Some(node)) = (needed.get_mut(index), self.nodes.get(index)) else { continue };
            if !std::mem::replace(mark, true) {
                stack.extend(node.inputs.iter().map(|edge| edge.node.index()));
            }
        }
        needed
    }

    fn used_paths(&self, needed: &[bool], targets: &[Option<Edge>]) -> HashMap<usize, Used> {
        let mut used: HashMap<usize, Used> = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| matches!(node.op, Op::Source(SourceOp::Local(_))))
            .map(|(index, _)| (index, Used::default()))
            .collect();
        if used.is_empty() {
            return used;
        }
        for target in targets.iter().flatten() {
            if let Some(used) = used.get_mut(&target.node.index()) {
                used.everything = true;
            }
        }
        for (node, _) in self.nodes.iter().zip(needed).filter(|(_, needed)| **needed) {
            let mut visit = |input: Option<u32>, path: &str| {
                let edge = input.and_then(|i| node.inputs.get(i as usize));
                if let Some(used) = edge.and_then(|edge| used.get_mut(&edge.node.index())) {
                    used.add(path);
                }
            };
            match &node.op {
                Op::Source(_) => {}
                Op::File(file) => file_paths(file, &mut visit),
                Op::Exec(exec) => {
                    for mount in &exec.spec.mounts {
                        if matches!(mount.kind, MountKind::Bind | MountKind::Cache { .. }) {
                            visit(mount.input, &mount.selector);
                        }
                    }
                }
                Op::Merge(merge) => merge.inputs.iter().for_each(|input| visit(Some(*input), "/")),
                Op::Diff(diff) => [diff.lower, diff.upper].into_iter().for_each(|input| visit(input, "/")),
            }
        }
        used
    }
}

impl Used {
    fn add(&mut self, path: &str) {
        let path = paths::join("/", path);
        // A pattern that reaches over directories is followed from the directory above it.
        let above = path.split('/').take_while(|part| !part.contains("**"));
        let path = above.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
        if path.is_empty() {
            self.everything = true;
        } else {
            self.paths.insert(path);
        }
    }
}

fn file_paths(file: &FileOp, visit: &mut impl FnMut(Option<u32>, &str)) {
    for action in &file.actions {
        visit(action.input, "/");
        let owner = match &action.kind {
            FileKind::Copy(copy) => {
                if copy.include.is_empty() {
                    visit(action.secondary_input, &copy.src);
                }
                for pattern in &copy.include {
                    visit(action.secondary_input, &paths::join(&copy.src, pattern));
                }
                &copy.owner
            }
            FileKind::Mkfile(file) => &file.owner,
            FileKind::Mkdir(dir) => &dir.owner,
            FileKind::Symlink(link) => &link.owner,
            FileKind::Rm(_) => &None,
        };
        let Some(owner) = owner else { continue };
        for (by, path) in [(&owner.user, "/etc/passwd"), (&owner.group, "/etc/group")] {
            if let Some(UserRef::Name { input, .. }) = by {
                visit(*input, path);
            }
        }
    }
}
