//! Merge and diff: arithmetic on stacks of layers; no file is touched.

use rbuild_graph::{DiffOp, MergeOp, Node};
use rbuild_ports::{ErrorKind, PortError, Snapshot};

use crate::StepOutput;
use crate::step::Made;
use crate::worker::{Shared, Trouble};

/// The inputs' layers on each other. A layer that is there already is not repeated at the top of its own stack.
pub(crate) fn merge(shared: &Shared, node: &Node, op: &MergeOp) -> Result<Made, Trouble> {
    let mut out = Snapshot::default();
    for input in &op.inputs {
        out.layers.extend(input_snapshot(shared, node, Some(*input))?.layers);
    }
    Ok(Made { outputs: vec![(0, StepOutput::Snapshot(out))], keys: None })
}

/// The layers that the upper has on top of the lower.
pub(crate) fn diff(shared: &Shared, node: &Node, op: &DiffOp) -> Result<Made, Trouble> {
    let lower = input_snapshot(shared, node, op.lower)?;
    let upper = input_snapshot(shared, node, op.upper)?;
    let Some(rest) = upper.layers.strip_prefix(lower.layers.as_slice()) else {
        return Err(PortError::new(
            ErrorKind::Unsupported,
            "the difference of two trees that do not build on each other is not supported yet",
        )
        .into());
    };
    Ok(Made { outputs: vec![(0, StepOutput::Snapshot(Snapshot { layers: rest.to_vec() }))], keys: None })
}

/// The input as a snapshot; none is scratch.
pub(crate) fn input_snapshot(shared: &Shared, node: &Node, input: Option<u32>) -> Result<Snapshot, Trouble> {
    let Some(edge) = input.and_then(|input| node.inputs.get(input as usize)) else {
        return Ok(Snapshot::default());
    };
    match shared.output(*edge) {
        StepOutput::Snapshot(snapshot) => Ok(snapshot),
        StepOutput::View(_) => Err(PortError::new(
            ErrorKind::Unsupported,
            "a local directory cannot be merged or compared; copy it first",
        )
        .into()),
    }
}
