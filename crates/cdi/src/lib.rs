//! The Container Device Interface: specs as data, devices looked up by name, and what they add to a step. Pure: whoever
//! calls reads the files. Knows nothing of how a step is run.

mod edits;
mod names;
mod registry;
mod spec;
mod yaml;

pub use edits::EditsError;
pub use names::{NameError, split};
pub use registry::{Grants, Registry, RegistryError};
pub use spec::{Spec, SpecError, parse};

#[cfg(test)]
mod tests;
