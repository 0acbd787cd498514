//! The crate's tests through its public surface.

mod tar;
