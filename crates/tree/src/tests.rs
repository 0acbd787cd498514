//! The crate's tests through its public surface.

mod pattern;
mod tar;
