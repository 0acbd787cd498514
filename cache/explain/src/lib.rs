//! Tells why a step of a build ran, or what was matched when it did not: a build is written down as a `Trace`, and
//! compared with an earlier one field by field and file by file. Pure: where traces and manifests lie, and what was pruned,
//! the caller says through `World`.

mod align;
mod cause;
mod compare;
mod manifest;
mod notes;
mod report;
mod trace;
mod words;

pub use cause::{Cause, FileChange, FileChangeKind, Place};
pub use compare::{Removed, World, explain};
pub use manifest::{Manifest, ManifestEntry};
pub use notes::Notes;
pub use report::{Explanation, Root, explanation, to_json};
pub use trace::{Found, Input, Outcome, Step, StepKind, Trace, Variable};

#[cfg(test)]
mod tests;
