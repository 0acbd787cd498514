//! One file a command.

pub(crate) mod build;
pub(crate) mod call;
pub(crate) mod check;
pub(crate) mod explain_code;
pub(crate) mod plan;
pub(crate) mod store;
pub(crate) mod why;
