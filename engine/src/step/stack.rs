//! Merge and diff: arithmetic on stacks of layers; no file is touched.

use rbuild_graph::{DiffOp, MergeOp, Node};
use rbuild_ports::{ErrorKind, PortError, Snapshot};

use crate::StepOutput;
use crate::progress::StepProgress;
use crate::step::Made;
use crate::worker::{Shared, Trouble};

/// The inputs' layers on each other. A layer that is there already is not repeated at the top of its own stack.
pub(crate) fn merge(
    shared: &Shared,
    node: &Node,
    op: &MergeOp,
    progress: &StepProgress,
) -> Result<Made, Trouble> {
    let mut out = Snapshot::default();
    for input in &op.inputs {
        out.layers.extend(input_layers(shared, node, Some(*input), progress)?.layers);
    }
    Ok(Made { outputs: vec![(0, StepOutput::Snapshot(out))], keys: None })
}

/// The layers that the upper has on top of the lower.
pub(crate) fn diff(
    shared: &Shared,
    node: &Node,
    op: &DiffOp,
    progress: &StepProgress,
) -> Result<Made, Trouble> {
    let lower = input_layers(shared, node, op.lower, progress)?;
    let upper = input_layers(shared, node, op.upper, progress)?;
    let Some(rest) = upper.layers.strip_prefix(lower.layers.as_slice()) else {
        return Err(PortError::new(
            ErrorKind::Unsupported,
            "the difference of two trees that do not build on each other is not supported yet",
        )
        .into());
    };
    Ok(Made { outputs: vec![(0, StepOutput::Snapshot(Snapshot { layers: rest.to_vec() }))], keys: None })
}

/// The input's layers; none is scratch.
fn input_layers(
    shared: &Shared,
    node: &Node,
    input: Option<u32>,
    progress: &StepProgress,
) -> Result<Snapshot, Trouble> {
    match input.and_then(|input| node.inputs.get(input as usize)) {
        None => Ok(Snapshot::default()),
        Some(edge) => {
            if shared.was_lost_again(progress.step()) {
                // A layer of some input is lost; the input that brought it runs again.
                shared.present(*edge, progress)?;
            }
            shared.layers(*edge, progress)
        }
    }
}
