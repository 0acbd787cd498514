//! What can go wrong in the harness, with what was being done. A sample that fails is no error of the harness but a
//! result; see `report`.

use std::io;
use std::path::Path;

/// An error of the harness.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    /// The file system or a process could not be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was tried.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A program that had to succeed did not.
    #[error("{command} failed ({status}):\n{tail}")]
    Tool {
        /// What was run.
        command: String,
        /// How it ended.
        status: String,
        /// The last lines it printed.
        tail: String,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
    /// Somebody asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// With an error of the harness.
pub(crate) type Result<T> = std::result::Result<T, BenchError>;

/// Says what was being done when an IO error came.
pub(crate) trait Doing<T> {
    /// `what` with the path it concerned.
    fn doing(self, what: &str, path: &Path) -> Result<T>;
}

impl<T> Doing<T> for io::Result<T> {
    fn doing(self, what: &str, path: &Path) -> Result<T> {
        self.map_err(|source| BenchError::Io { doing: format!("cannot {what} {}", path.display()), source })
    }
}

/// The last `count` lines of `text`.
pub(crate) fn tail(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
