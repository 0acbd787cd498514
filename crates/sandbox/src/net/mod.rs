//! Networks of steps: namespaces with a way out, kept between steps. As root a veth pair and address translation by the
//! kernel; in a user namespace a user-mode stack (`pasta`, `slirp4netns`); without either only a loopback device, and the
//! user is told. Nothing is left behind: namespaces live by file descriptors, rules carry their maker's name.

mod nat;
mod netlink;
mod pool;
mod stack;

pub(crate) use nat::find;
pub(crate) use pool::{Lease, Pool, host_resolv_conf, translates};

#[cfg(test)]
mod tests;
