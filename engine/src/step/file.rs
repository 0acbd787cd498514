//! File operations: the snapshots adapter does them; this fetches what they read.

use std::sync::Arc;

use rbuild_graph::{CopyAction, FileAction, FileKind, FileOp, Node};
use rbuild_ports::{CommittedLayer, ErrorKind, FileInput, PortError, Snapshot, View};

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

/// A layer with what `view` has at `src`, under the same name. Nothing names it yet.
pub(crate) fn copy_of(
    shared: &Shared,
    view: Arc<dyn View>,
    src: &str,
    progress: &StepProgress,
) -> Result<(Snapshot, CommittedLayer), Trouble> {
    let trimmed = src.trim_matches('/');
    let copy = CopyAction {
        src: src.to_owned(),
        dest: if trimmed.is_empty() { "/".to_owned() } else { format!("/{trimmed}") },
        dir_copy_contents: true,
        create_dest_path: true,
        follow_symlink: true,
        ..CopyAction::default()
    };
    let action =
        FileAction { input: None, secondary_input: Some(0), output: Some(0), kind: FileKind::Copy(copy) };
    let made = shared.ports.snapshots.run_file_op(
        &FileOp { actions: vec![action], epoch: None },
        &[FileInput::View(view)],
        progress,
        &shared.cancel,
    )?;
    let made = made.into_iter().next();
    Ok(made.ok_or_else(|| PortError::new(ErrorKind::Internal, "copying a directory made nothing"))?)
}
