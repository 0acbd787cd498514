//! Runs one step in namespaces of its own: overlay root, devices, network, capabilities, seccomp filter, user.
//! Everything is prepared as plain data and file descriptors by the caller's process; a child made with `clone3`
//! attaches it and becomes the command. Knows nothing of graphs, caches or images.

mod caps;
mod cgroup;
mod child;
mod descriptors;
mod devices;
mod etc_files;
mod failure;
mod fence;
mod mnt;
mod net;
mod options;
mod overlay;
mod plan;
mod probe;
mod rootfs;
mod rootless;
mod run;
mod sandbox;
mod seccomp;
mod spawn;
mod ssh;
mod stubs;
mod sys;
mod user;
mod walk;

pub use descriptors::raise_descriptor_limit;
pub use options::{NetBackend, SandboxOptions};
pub use probe::{Machine, probe};
pub use rootless::{Rootless, enter_user_namespace};
pub use sandbox::Sandbox;
