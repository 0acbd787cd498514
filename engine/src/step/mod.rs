//! One file an operation: how it is performed through the ports.

mod content;
mod exec;
mod file;
mod stack;

use std::collections::HashMap;

use rbuild_graph::{NodeId, Op, SourceOp};
use rbuild_ports::{KeyId, LayerId, Snapshot};

pub(crate) use content::content_key;
pub(crate) use file::copy_of;

use crate::StepOutput;
use crate::progress::StepProgress;
use crate::worker::{Shared, StepResult, Trouble};

/// What running a step made.
pub(crate) struct Made {
    /// Output number and what it is.
    pub(crate) outputs: Vec<(u32, StepOutput)>,
    /// For sources: the keys it turned out to have. Others are saved under their queries.
    pub(crate) keys: Option<Vec<KeyId>>,
}

/// The result of sources that need no work.
pub(crate) fn known(op: &Op, aliases: &HashMap<LayerId, LayerId>) -> Option<StepResult> {
    let diff_ids = match op {
        Op::Source(SourceOp::Image(image)) => &image.diff_ids,
        Op::Source(SourceOp::OciLayout(layout)) => &layout.diff_ids,
        Op::Source(_) | Op::Exec(_) | Op::File(_) | Op::Merge(_) | Op::Diff(_) => return None,
    };
    let layers =
        diff_ids.iter().map(LayerId::of_diff_id).map(|layer| aliases.get(&layer).cloned().unwrap_or(layer));
    let snapshot = Snapshot { layers: layers.collect() };
    Some(StepResult { outputs: vec![(0, StepOutput::Snapshot(snapshot))], records: vec![], losses: 0 })
}

/// Whether running it is worth telling people.
pub(crate) fn visible(op: &Op) -> bool {
    !matches!(op, Op::Diff(_))
}

/// Runs a step.
pub(crate) fn run(shared: &Shared, id: NodeId, progress: &StepProgress) -> Result<Made, Trouble> {
    let node = shared.graph.node(id);
    match &node.op {
        Op::Source(source) => content::fetch(shared, node, source, progress),
        Op::Exec(op) => exec::run(shared, id, node, op, progress),
        Op::File(op) => file::run(shared, node, op, progress),
        Op::Merge(op) => stack::merge(shared, node, op, progress),
        Op::Diff(op) => stack::diff(shared, node, op, progress),
    }
}
