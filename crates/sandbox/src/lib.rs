//! Runs one step in namespaces of its own: overlay root, devices, network, capabilities, seccomp filter, user.
//! Everything is prepared as plain data and file descriptors by the caller's process; a child made with `clone3`
//! attaches it and becomes the command. Knows nothing of graphs, caches or images.

mod net;
mod options;
mod probe;
mod rootless;
mod sandbox;

pub use options::{NetBackend, SandboxOptions};
pub use probe::{Machine, probe};
pub use rootless::{Rootless, enter_user_namespace};
pub use sandbox::Sandbox;
