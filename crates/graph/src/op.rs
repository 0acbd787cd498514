//! The closed set of operations.

use crate::{ExecOp, FileOp, SourceOp};

/// What a node does. Inputs are the node's edges, by position.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Op {
    /// Brings something in; has no inputs.
    Source(SourceOp),
    /// Runs a command.
    Exec(Box<ExecOp>),
    /// Copies, makes and removes files.
    File(FileOp),
    /// Lays the inputs over each other.
    Merge(MergeOp),
    /// What the upper input adds to the lower.
    Diff(DiffOp),
}

/// All inputs in order, later over earlier.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct MergeOp {
    /// Positions of inputs.
    pub inputs: Vec<u32>,
}

/// Positions of inputs; `None` is scratch.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct DiffOp {
    /// What is taken away.
    pub lower: Option<u32>,
    /// What it is taken from.
    pub upper: Option<u32>,
}

impl Op {
    /// How many outputs it has.
    #[must_use]
    pub fn outputs(&self) -> u32 {
        let most = match self {
            Self::Source(_) | Self::Merge(_) | Self::Diff(_) => return 1,
            Self::Exec(exec) => exec.spec.mounts.iter().filter_map(|mount| mount.output).max(),
            Self::File(file) => file.actions.iter().filter_map(|action| action.output).max(),
        };
        most.map_or(0, |n| n + 1)
    }
}
