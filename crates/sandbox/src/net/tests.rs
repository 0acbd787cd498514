//! Real namespaces, as root: what is reachable, and that nothing is left.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use rbuild_ports::{CancelToken, Progress, SilentProgress, Stream};

use super::Pool;
use crate::fence::Fence;
use crate::{NetBackend, SandboxOptions};

/// Whether the test can run; says why not, and fails when it must.
fn root() -> bool {
    if rustix::process::geteuid().is_root() {
        return true;
    }
    assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "networks of steps need root here");
    eprintln!("skipped: needs root");
    false
}

fn pool(network: NetBackend) -> std::sync::Arc<Pool> {
    Pool::new(&SandboxOptions { network, ..SandboxOptions::recommended() })
}

fn fence() -> std::sync::Arc<Fence> {
    std::sync::Arc::new(Fence::new().unwrap())
}

/// Does `work` inside the namespace.
fn inside<T: Send>(namespace: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            rustix::thread::move_into_link_name_space(
                namespace,
                Some(rustix::thread::LinkNameSpaceType::Network),
            )
            .unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

fn connects(to: SocketAddr) -> bool {
    TcpStream::connect_timeout(&to, Duration::from_secs(3)).is_ok_and(|mut stream| {
        let mut byte = [0];
        stream.set_read_timeout(Some(Duration::from_secs(3))).is_ok() && stream.read_exact(&mut byte).is_ok()
    })
}

/// A server on `address` that greets whoever comes.
fn greeter(address: IpAddr) -> SocketAddr {
    use std::io::Write;
    let listener = TcpListener::bind((address, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _greeted = stream.write_all(b"x");
        }
    });
    at
}

/// The host's own address on its way out, if it has one.
fn host_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.99:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

fn links(prefix: &str) -> Vec<String> {
    let names = std::fs::read_to_string("/proc/net/dev").unwrap();
    names
        .lines()
        .filter_map(|line| line.trim().split(':').next())
        .filter(|name| name.starts_with(prefix))
        .map(str::to_owned)
        .collect()
}

#[test]
fn loopback_networks_reach_only_themselves() {
    if !root() {
        return;
    }
    let pool = pool(NetBackend::Loopback);
    let lease = pool.lease(&fence(), &SilentProgress, &CancelToken::new()).unwrap();
    let host = greeter(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (own, others) = inside(lease.namespace().unwrap(), || {
        (connects(greeter(IpAddr::V4(Ipv4Addr::LOCALHOST))), connects(host))
    });
    assert!(own && !others);
}

#[test]
fn translated_networks_reach_the_host_but_not_its_loopback_and_leave_nothing() {
    if !root() {
        return;
    }
    let pool = pool(NetBackend::Nat);
    let (rules_of, prefix) = pool.nat().unwrap().names();
    let links = || links(&prefix);
    let lease = pool.lease(&fence(), &SilentProgress, &CancelToken::new()).unwrap();
    let loopback = greeter(IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert!(!inside(lease.namespace().unwrap(), || connects(loopback)));
    match host_address() {
        Some(address) => {
            let server = greeter(address);
            assert!(inside(lease.namespace().unwrap(), || connects(server)));
        }
        None => eprintln!("skipped in part: this host has no address of its own"),
    }
    assert_eq!(links().len(), 1);
    drop(lease);
    // The next step gets the same network.
    let again = pool.lease(&fence(), &SilentProgress, &CancelToken::new()).unwrap();
    assert_eq!(links().len(), 1);
    drop((again, pool));
    for _ in 0..200 {
        if links().is_empty() {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(links().is_empty(), "devices are left: {:?}", links());
    if let Some(save) = super::nat::find("iptables-save") {
        let rules = std::process::Command::new(save).output().unwrap().stdout;
        let rules = String::from_utf8_lossy(&rules).into_owned();
        assert!(!rules.split([' ', '"']).any(|word| word == rules_of), "rules are left");
    }
}

/// As when several containers with process numbers of their own use the host's network.
#[test]
fn rules_of_builders_whose_processes_are_not_seen_stay() {
    let Some(save) = super::nat::find("iptables-save").filter(|_| root()) else { return };
    let living = pool(NetBackend::Nat);
    let (tag, _) = living.nat().unwrap().names();
    // A pool that starts sweeps; it lies in this process here, so that only the holder tells it that it lives.
    let other = pool(NetBackend::Nat);
    assert_ne!(other.nat().unwrap().names().0, tag);
    let rules = std::process::Command::new(save).output().unwrap().stdout;
    let rules = String::from_utf8_lossy(&rules).into_owned();
    assert_eq!(rules.split([' ', '"']).filter(|word| *word == tag).count(), 5, "{rules}");
}

/// Warnings are failures.
struct Loud;

impl Progress for Loud {
    fn log(&self, _stream: Stream, _data: &[u8]) {}
    fn status(&self, _id: &str, _current: u64, _total: Option<u64>, _done: bool) {}
    fn warn(&self, message: &str) {
        panic!("{message}");
    }
}

/// Whether a child of this process is called so.
fn has_child(name: &str) -> bool {
    let own = std::process::id().to_string();
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok()).any(|stat| {
        let (head, rest) = stat.rsplit_once(')').unwrap_or_default();
        head.contains(name) && rest.split(' ').nth(2) == Some(&own)
    })
}

#[test]
fn user_mode_stacks_give_a_way_out_and_end_with_the_pool() {
    if !root() {
        return;
    }
    for (backend, program, name) in
        [(NetBackend::Pasta, "pasta", "passt"), (NetBackend::Slirp, "slirp4netns", "slirp4netns")]
    {
        if super::nat::find(program).is_none() {
            assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "{program} is not installed");
            eprintln!("skipped: {program} is not installed");
            continue;
        }
        let (pool, fence) = (pool(backend), fence());
        let lease = pool.lease(&fence, &Loud, &CancelToken::new()).unwrap();
        assert!(has_child(name) && lease.leads_out(), "{program}");
        let routes = inside(lease.namespace().unwrap(), || {
            std::fs::read_to_string("/proc/thread-self/net/route").unwrap()
        });
        if host_address().is_some() {
            let default = |line: &str| line.split_whitespace().nth(1) == Some("00000000");
            assert!(routes.lines().skip(1).any(default), "{program}: {routes}");
        }
        let loopback = greeter(IpAddr::V4(Ipv4Addr::LOCALHOST));
        assert!(!inside(lease.namespace().unwrap(), || connects(loopback)), "{program}");
        drop((lease, pool));
        assert!(!has_child(name), "{program} is left");
    }
}
