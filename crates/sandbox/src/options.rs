//! What the owner of a sandbox decides once.

use std::net::IpAddr;

/// How steps with the default network reach the outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NetBackend {
    /// The best this machine offers: address translation by the kernel as root, otherwise `pasta`, otherwise
    /// `slirp4netns`. When there is none, steps have only a loopback device and the user is told so.
    Auto,
    /// Address translation by the kernel (veth pairs and `nft` or `iptables`); needs root.
    Nat,
    /// One `pasta` process for every network.
    Pasta,
    /// One `slirp4netns` process for every network.
    Slirp,
    /// Loopback only.
    Loopback,
}

/// What the owner of a sandbox decides once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SandboxOptions {
    /// How steps with the default network reach the outside.
    pub network: NetBackend,
    /// Name servers for steps instead of the host's.
    pub nameservers: Vec<IpAddr>,
    /// How many unused networks of each kind are kept for the next steps.
    pub idle_networks: usize,
    /// Whether 32-bit x86 programs may call `socketcall`, which many 32-bit C libraries need for any network
    /// connection. A seccomp filter cannot see its arguments, so this also opens socket families that are closed
    /// for good reason.
    pub i386_sockets: bool,
}

impl SandboxOptions {
    /// What suits nearly everybody.
    #[must_use]
    pub fn recommended() -> Self {
        Self { network: NetBackend::Auto, nameservers: Vec::new(), idle_networks: 8, i386_sockets: false }
    }
}
