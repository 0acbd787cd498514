//! File operations: the snapshots adapter does them; this fetches what they read.

use rbuild_graph::{FileOp, Node};
use rbuild_ports::FileInput;

use crate::StepOutput;
use crate::progress::StepProgress;
use crate::step::Made;
use crate::worker::{Shared, Trouble};

/// Performs the actions.
pub(crate) fn run(
    shared: &Shared,
    node: &Node,
    op: &FileOp,
    progress: &StepProgress,
) -> Result<Made, Trouble> {
    let mut inputs = Vec::with_capacity(node.inputs.len());
    for edge in &node.inputs {
        inputs.push(match shared.present(*edge, progress)? {
            StepOutput::Snapshot(snapshot) => FileInput::Snapshot(snapshot),
            StepOutput::View(view) => FileInput::View(view),
        });
    }
    let made = shared.ports.snapshots.run_file_op(op, &inputs, progress, &shared.cancel)?;
    let mut outputs: Vec<u32> = op.actions.iter().filter_map(|action| action.output).collect();
    outputs.sort_unstable();
    outputs.dedup();
    let mut out = Vec::with_capacity(made.len());
    for (output, (snapshot, committed)) in outputs.into_iter().zip(made) {
        shared.materialiser.record_made(committed)?;
        out.push((output, StepOutput::Snapshot(snapshot)));
    }
    Ok(Made { outputs: out, keys: None })
}
