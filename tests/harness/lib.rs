//! What tests of whole builds share.

pub mod registry;
