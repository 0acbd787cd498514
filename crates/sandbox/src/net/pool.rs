//! Namespaces ready for steps. A step has one for itself; afterwards, when all its processes are gone, the next step may have it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_ports::{CancelToken, ErrorKind, PortError, Progress, Result};
use rustix::thread::UnshareFlags;

use super::nat::{self, Nat};
use super::netlink::Netlink;
use super::stack::{Program, Stack};
use crate::etc_files::Reach;
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
    count: AtomicU32,
    warned: AtomicBool,
}

/// A namespace and what makes it work. The stack goes before the namespace.
#[derive(Debug)]
struct Network {
    #[expect(dead_code, reason = "it works until it is dropped")]
    stack: Option<Stack>,
    namespace: OwnedFd,
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
        Reach::Outside
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
            count: AtomicU32::new(0),
            warned: AtomicBool::new(false),
        })
    }

    /// A network with a way out, or with only a loopback device after a warning.
    pub(crate) fn lease(self: &Arc<Self>, progress: &dyn Progress, cancel: &CancelToken) -> Result<Lease> {
        if let Some(network) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(Lease { network: Some(network), pool: self.clone(), loopback: false });
        }
        let mut reasons = Vec::new();
        for way in self.ways() {
            match self.make(&way, cancel) {
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
                "steps have no network but loopback: {why}. Install iptables (as root) or passt (as a user), or build with --network=host"
            ));
        }
        self.lease_loopback()
    }

    /// A network with only a loopback device.
    pub(crate) fn lease_loopback(self: &Arc<Self>) -> Result<Lease> {
        let ready = self.idle_loopback.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let network = match ready {
            Some(network) => network,
            None => self.make(&Way::Loopback, &CancelToken::new())?,
        };
        Ok(Lease { network: Some(network), pool: self.clone(), loopback: true })
    }

    /// Makes a network in the background.
    pub(crate) fn prewarm(self: &Arc<Self>) {
        let pool = self.clone();
        std::thread::spawn(move || {
            if let Some(way) = pool.ways().into_iter().next()
                && let Ok(network) = pool.make(&way, &CancelToken::new())
            {
                pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(network);
            }
        });
    }

    /// What to try, the best first.
    fn ways(&self) -> Vec<Way> {
        let stacks = || Program::pasta().into_iter().chain(Program::slirp()).map(Way::Stack);
        match self.backend {
            NetBackend::Auto if real_root() && nat::available() => {
                std::iter::once(Way::Nat).chain(stacks()).collect()
            }
            NetBackend::Auto => stacks().collect(),
            NetBackend::Nat => vec![Way::Nat],
            NetBackend::Pasta => Program::pasta().map(Way::Stack).into_iter().collect(),
            NetBackend::Slirp => Program::slirp().map(Way::Stack).into_iter().collect(),
            NetBackend::Loopback => vec![],
        }
    }

    fn make(&self, way: &Way, cancel: &CancelToken) -> Result<Network> {
        let nat = match way {
            Way::Nat => Some(self.nat()?),
            Way::Stack(_) | Way::Loopback => None,
        };
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        // The namespace of a thread that ends at once: nobody else ever sees the caller's change.
        let made = std::thread::scope(|scope| scope.spawn(|| fresh(nat.as_deref(), number)).join());
        let namespace = made
            .map_err(|_| PortError::new(ErrorKind::Internal, "making a network panicked"))?
            .map_err(|error| {
            PortError::new(ErrorKind::Unsupported, format!("cannot make a network namespace: {error}"))
        })?;
        let Way::Stack(program) = way else { return Ok(Network { stack: None, namespace }) };
        let stack = Stack::start(program, namespace.as_fd(), cancel, || has_route(namespace.as_fd()))?;
        Ok(Network { stack: Some(stack), namespace })
    }

    fn nat(&self) -> Result<Arc<Nat>> {
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
    Loopback,
}

/// Root outside of any user namespace.
fn real_root() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && map.split_whitespace().eq(["0", "0", "4294967295"])
}

/// Makes a namespace with a loopback device, and a pair of devices when there is address translation. The calling thread stays in it.
fn fresh(nat: Option<&Nat>, number: u32) -> io::Result<OwnedFd> {
    // Belongs to the namespace that the thread is in now.
    let mut outside = Netlink::open()?;
    unshare_network()?;
    let namespace: OwnedFd = fs::File::open("/proc/thread-self/ns/net")?.into();
    let mut inside = Netlink::open()?;
    let lo = inside.index("lo")?;
    inside.up(lo)?;
    // So that ping works without a raw socket; a kernel without it has no such file.
    let _allowed = fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    if let Some(nat) = nat {
        let (host, step) = nat.addresses(number);
        let name = format!("rb{:x}.{:x}", std::process::id(), number % 4096);
        outside.veth(&name, namespace.as_fd())?;
        let index = outside.index(&name)?;
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
