//! The crate's tests through its public surface.

mod changes;
mod content_hash;
mod pattern;
mod tar;
