//! The store's directory and its blobs: layout, format number, leases, the lock that garbage collection takes,
//! scratch directories of processes, and blobs by content. Knows nothing of layers' content, of keys or of records.
//! Layout, rules and the crash argument: `FORMAT.md` beside this crate.

mod blobs;
mod boot;
mod flight;
mod fs;
mod gate;
mod history;
mod lease;
mod reader;
mod replace;
mod root;
mod scratch;
mod sums;
mod unsynced;
mod writer;

#[cfg(test)]
mod tests;

pub use blobs::{BlobInfo, Store};
pub use boot::BootId;
pub use flight::FileFlights;
pub use gate::{Exclusive, Shared};
pub use history::History;
pub use lease::{Pin, Pins};
pub use replace::replace_file;
pub use root::{FORMAT, Root};
pub use scratch::Scratch;
pub use sums::Sums;
pub use unsynced::SyncMark;
