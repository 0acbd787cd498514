//! Namespaces ready for steps. A step has one for itself; afterwards, when all its processes are gone, the next step may
//! have it.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_ports::{CancelToken, ErrorKind, PortError, Progress, Result};
use rustix::thread::UnshareFlags;

use super::nat::{self, Nat, Slot};
use super::netlink::Netlink;
use super::stack::{Program, Stack};
use crate::etc_files::{self, Reach};
use crate::fence::Fence;
use crate::mnt::plain;
use crate::sandbox::is_initial;
use crate::{NetBackend, SandboxOptions};

/// Networks with and without a way out.
#[derive(Debug)]
pub(crate) struct Pool {
    backend: NetBackend,
    keep: usize,
    idle: Mutex<Vec<Network>>,
    idle_loopback: Mutex<Vec<Network>>,
    /// Set at first use; rules end with the pool.
    nat: Mutex<Option<Arc<Nat>>>,
    warned: AtomicBool,
}

/// A namespace and what makes it work, in the order it is taken down.
#[derive(Debug)]
struct Network {
    stack: Option<Stack>,
    namespace: OwnedFd,
    reach: Reach,
    /// Free again when the namespace is gone.
    _slot: Option<Slot>,
}

impl Network {
    /// Whether it still works.
    fn works(&mut self) -> bool {
        self.stack.as_mut().is_none_or(Stack::runs)
    }
}

/// A step's network; it goes back to the pool when dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    network: Option<Network>,
    pool: Arc<Pool>,
    loopback: bool,
}

impl Lease {
    /// The namespace.
    pub(crate) fn namespace(&self) -> Option<BorrowedFd<'_>> {
        self.network.as_ref().map(|network| network.namespace.as_fd())
    }

    /// What name servers can be reached.
    pub(crate) fn reach(&self) -> Reach {
        self.network.as_ref().map_or(Reach::Outside, |network| network.reach)
    }

    /// Whether there is a way out at all.
    pub(crate) fn leads_out(&self) -> bool {
        !self.loopback
    }

    /// Takes it down: nobody else shall have it.
    pub(crate) fn discard(mut self) {
        self.network = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let idle = if self.loopback { &self.pool.idle_loopback } else { &self.pool.idle };
        let mut idle = idle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(network) = self.network.take()
            && idle.len() < self.pool.keep
        {
            idle.push(network);
        }
    }
}

impl Pool {
    /// Nothing happens until the first lease.
    pub(crate) fn new(options: &SandboxOptions) -> Arc<Self> {
        Arc::new(Self {
            backend: options.network,
            keep: options.idle_networks,
            idle: Mutex::default(),
            idle_loopback: Mutex::default(),
            nat: Mutex::default(),
            warned: AtomicBool::new(false),
        })
    }

    /// A network with a way out, or with only a loopback device after a warning.
    pub(crate) fn lease(
        self: &Arc<Self>,
        fence: &Arc<Fence>,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Lease> {
        while let Some(mut network) = pop(&self.idle) {
            if network.works() {
                return Ok(Lease { network: Some(network), pool: self.clone(), loopback: false });
            }
        }
        let mut reasons = Vec::new();
        for way in self.ways() {
            match self.make(&way, fence, cancel) {
                Ok(network) => {
                    return Ok(Lease { network: Some(network), pool: self.clone(), loopback: false });
                }
                Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                Err(error) => reasons.push(error.message),
            }
        }
        if !self.warned.swap(true, Ordering::Relaxed) {
            let why = if reasons.is_empty() {
                "no tool for it is installed".to_owned()
            } else {
                reasons.join("; ")
            };
            progress.warn(&format!(
                "steps have no network but loopback: {why}. Install iptables (as root) or passt (as a user), or build with \
                 --network=host"
            ));
        }
        self.lease_loopback()
    }

    /// A network with only a loopback device.
    pub(crate) fn lease_loopback(self: &Arc<Self>) -> Result<Lease> {
        let network = match pop(&self.idle_loopback) {
            Some(network) => network,
            None => bare(None)?,
        };
        Ok(Lease { network: Some(network), pool: self.clone(), loopback: true })
    }

    /// Makes a network in the background.
    pub(crate) fn prewarm(self: &Arc<Self>, fence: Arc<Fence>) {
        let pool = self.clone();
        std::thread::spawn(move || {
            if let Some(way) = pool.ways().into_iter().next()
                && let Ok(network) = pool.make(&way, &fence, &CancelToken::new())
            {
                pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(network);
            }
        });
    }

    /// What to try, the best first.
    fn ways(&self) -> Vec<Way> {
        let stacks = || Program::pasta().into_iter().chain(Program::slirp()).map(Way::Stack);
        match self.backend {
            NetBackend::Auto if translates() => std::iter::once(Way::Nat).chain(stacks()).collect(),
            NetBackend::Auto => stacks().collect(),
            NetBackend::Nat => vec![Way::Nat],
            NetBackend::Pasta => Program::pasta().map(Way::Stack).into_iter().collect(),
            NetBackend::Slirp => Program::slirp().map(Way::Stack).into_iter().collect(),
            NetBackend::Loopback => vec![],
        }
    }

    fn make(&self, way: &Way, fence: &Arc<Fence>, cancel: &CancelToken) -> Result<Network> {
        match way {
            Way::Nat => {
                let slot = Slot::take(&self.nat()?).ok_or_else(|| {
                    PortError::new(ErrorKind::Unsupported, "too many networks of steps at the same time")
                })?;
                bare(Some(slot))
            }
            Way::Stack(program) => {
                let mut network = bare(None)?;
                let namespace = network.namespace.as_fd();
                let forward = etc_files::needs_forwarder(&host_resolv_conf(Reach::Outside));
                let stack =
                    Stack::start(program, forward, namespace, fence, cancel, || has_route(namespace))?;
                network.stack = Some(stack);
                if forward {
                    network.reach = Reach::Forwarder(program.forwarder());
                }
                Ok(network)
            }
        }
    }

    pub(super) fn nat(&self) -> Result<Arc<Nat>> {
        let mut nat = self.nat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nat) = &*nat {
            return Ok(nat.clone());
        }
        let started = Arc::new(Nat::start()?);
        *nat = Some(started.clone());
        Ok(started)
    }
}

#[derive(Debug)]
enum Way {
    Nat,
    Stack(Program),
}

/// The host's resolver configuration, with the servers behind systemd's stub for those who cannot reach it.
pub(crate) fn host_resolv_conf(reach: Reach) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let host = read("/etc/resolv.conf");
    if reach != Reach::Host && etc_files::only_systemd_stub(&host) {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    host
}

fn pop(idle: &Mutex<Vec<Network>>) -> Option<Network> {
    idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
}

/// Whether the kernel translates addresses for this process: root outside of any user namespace, with the tools.
pub(crate) fn translates() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && is_initial(&map) && nat::available()
}

/// A namespace without a stack: with a pair of devices if there is a slot for it.
fn bare(slot: Option<Slot>) -> Result<Network> {
    // Made by a thread that ends at once: nobody else ever sees the change of its namespace.
    let made = std::thread::scope(|scope| scope.spawn(|| fresh(slot.as_ref())).join());
    let namespace = made
        .map_err(|_| PortError::new(ErrorKind::Internal, "making a network panicked"))?
        .map_err(|error| {
            PortError::new(
                ErrorKind::Unsupported,
                format!("cannot make a network namespace: {}", plain(&error)),
            )
        })?;
    Ok(Network { stack: None, namespace, reach: Reach::Outside, _slot: slot })
}

/// Makes a namespace with a loopback device, and a pair of devices if there is a slot for it. The calling thread stays
/// in it.
fn fresh(slot: Option<&Slot>) -> io::Result<OwnedFd> {
    // Belongs to the namespace that the thread is in now.
    let mut outside = Netlink::open()?;
    unshare_network()?;
    let namespace: OwnedFd = fs::File::open("/proc/thread-self/ns/net")?.into();
    let mut inside = Netlink::open()?;
    let lo = inside.index("lo")?;
    inside.up(lo)?;
    // Clouds tell secrets there to whoever asks.
    inside.unreachable(Ipv4Addr::new(169, 254, 0, 0), 16)?;
    // So that ping works without a raw socket. Only groups that exist can be named; a kernel without it has no such file.
    for range in ["0 2147483647", "0 65535", "0 0"] {
        if fs::write("/proc/sys/net/ipv4/ping_group_range", range).is_ok() {
            break;
        }
    }
    if let Some(slot) = slot {
        let (host, step) = slot.addresses();
        outside.veth(&slot.device(), namespace.as_fd())?;
        let index = outside.index(&slot.device())?;
        outside.address(index, host, 30)?;
        outside.up(index)?;
        let eth0 = inside.index("eth0")?;
        inside.address(eth0, step, 30)?;
        inside.up(eth0)?;
        inside.default_route(eth0, host)?;
    }
    Ok(namespace)
}

#[expect(unsafe_code, reason = "unshare is unsafe for other flags")]
fn unshare_network() -> io::Result<()> {
    // SAFETY: only the network namespace of this thread changes.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// Whether anything leads out of the namespace yet.
fn has_route(namespace: BorrowedFd<'_>) -> bool {
    let look = || {
        rustix::thread::move_into_link_name_space(
            namespace,
            Some(rustix::thread::LinkNameSpaceType::Network),
        )
        .ok()?;
        let routes = fs::read_to_string("/proc/thread-self/net/route").ok()?;
        Some(routes.lines().skip(1).any(|line| line.split_whitespace().nth(1) == Some("00000000")))
    };
    std::thread::scope(|scope| scope.spawn(look).join()).ok().flatten().unwrap_or(false)
}
