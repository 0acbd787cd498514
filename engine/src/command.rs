//! What the scheduler asks for, and what it is told.

use rbuild_graph::NodeId;
use rbuild_ports::{KeyId, KeyQuery};

use crate::Why;

/// Something to do. Each is answered by exactly one reply of the same step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// Ask the index for each of the step's outputs: `Probed`.
    Probe {
        /// The step.
        step: NodeId,
        /// One query a wanted output.
        queries: Vec<KeyQuery>,
        /// On a hit, what to store too: that definition keys and content keys of the inputs are equivalent.
        learn: Vec<KeyQuery>,
        /// How many results had been lost when this was asked for.
        losses: u64,
    },
    /// Hash the content of an input as the step's operation selects it: `Hashed`, or `Lost`.
    Hash {
        /// The step.
        step: NodeId,
        /// Position of the input.
        input: usize,
        /// How many results had been lost when this was asked for. A result that was made anew after that must not be taken.
        losses: u64,
    },
    /// Run the step and save its results: `Ran`, `Joined`, or `Lost`.
    Run {
        /// The step.
        step: NodeId,
        /// One query a wanted output: what to save the results under.
        queries: Vec<KeyQuery>,
        /// Why it runs.
        why: Why,
        /// The result of another build that does the same at the same time would do.
        join: bool,
        /// How many results had been lost when this was asked for. A result that was made anew after that must not be taken.
        losses: u64,
    },
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// What the index knows.
    Probed {
        /// The step.
        step: NodeId,
        /// Matching keys of each wanted output.
        keys: Vec<Vec<KeyId>>,
        /// Whether each wanted output has a record.
        hit: bool,
    },
    /// An input's content key.
    Hashed {
        /// The step.
        step: NodeId,
        /// Position of the input.
        input: usize,
        /// Its content key.
        key: KeyId,
    },
    /// It ran, and its results are saved.
    Ran {
        /// The step.
        step: NodeId,
        /// The key of each wanted output (several for sources).
        keys: Vec<Vec<KeyId>>,
    },
    /// Another build ran it meanwhile, and its result is taken.
    Joined {
        /// The step.
        step: NodeId,
        /// The keys of each wanted output.
        keys: Vec<Vec<KeyId>>,
    },
    /// The command could not be performed, since the result of another step is not there any more.
    Lost {
        /// The step whose command it was.
        step: NodeId,
        /// The position of the input whose content was to be hashed, if it was that.
        input: Option<usize>,
        /// The step whose result is lost.
        lost: NodeId,
    },
    /// It cannot be done; the build fails.
    Failed {
        /// The step.
        step: NodeId,
    },
}
