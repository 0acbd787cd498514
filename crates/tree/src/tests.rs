//! The crate's tests through its public surface.

mod content_hash;
mod pattern;
mod tar;
