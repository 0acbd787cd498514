//! BuildKit's cache keys, byte for byte (profile 0.26 and newer), computed from graph nodes: what an operation is
//! without its inputs, which part of each input counts, and how keys are combined. Every key keeps what it was
//! made from, so that two can be compared field by field. Pure: knows no store, no session and no engine.

mod doc;
mod explain;
mod key;
mod map;
mod op;

#[cfg(test)]
mod tests;

pub use doc::{Field, Preimage};
pub use explain::{Difference, explain};
pub use key::{OpDigest, combine_content, content_key, record_key};
pub use map::{CacheMap, ContentSelector, ContentSpec, Dep, Facts, HttpFacts, KeyError};
pub use op::cache_map;
