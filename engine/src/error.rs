//! Why a solve failed.

use rbuild_graph::NodeId;
use rbuild_ports::{ErrorKind, PortError};

/// Why a solve failed.
#[derive(Debug, thiserror::Error)]
#[error("{cause}")]
pub struct SolveError {
    /// The step that failed; `None` when the solve itself was cancelled.
    pub step: Option<NodeId>,
    /// What happened.
    pub cause: Cause,
    /// The last lines of the step's output.
    pub log_tail: Vec<String>,
}

/// What happened.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The step's command failed.
    #[error("process {command:?} did not complete successfully: {how}")]
    Command {
        /// The command as the shell got it.
        command: String,
        /// `exit code: 1`, `killed by signal 9`, …
        how: String,
        /// The exit code, if it exited.
        code: Option<i32>,
    },
    /// The step could not be performed.
    #[error("{0}")]
    Port(#[from] PortError),
    /// Somebody cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl SolveError {
    /// Whether somebody cancelled.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        match &self.cause {
            Cause::Cancelled => true,
            Cause::Port(error) => error.kind == ErrorKind::Cancelled,
            Cause::Command { .. } => false,
        }
    }
}
