//! The index: keys, the links between them, records, layers, images and notes in one SQLite database that several
//! processes share; what it costs on the disk, and garbage collection. Knows nothing of how keys are computed, of
//! what is in a layer, or of any network. Tables, rules and the crash argument: `FORMAT.md` beside this crate.

mod check;
mod db;
mod facts;
mod fault;
mod filter;
mod format;
mod images;
mod index;
mod keys;
mod layers;
mod plan;
mod policy;
mod prune;
mod records;
mod sync;
mod usage;

#[cfg(test)]
mod tests;

pub use check::{CheckOptions, Inspect, Problem, ProblemKind, StoreReport};
pub use filter::{FilterError, Filters};
pub use index::{Index, OpenReport, Options};
pub use keys::LinkRow;
pub use plan::{PruneOptions, Reason};
pub use policy::{GcPolicy, Share};
pub use prune::{PruneReport, PrunedRow};
pub use records::Preimage;
pub use usage::{UsageKind, UsageRow};
