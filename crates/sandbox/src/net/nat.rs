//! Address translation by the kernel, as root. One set of rules a process, set with `iptables` (which also gets past a
//! forwarding policy such as Docker's) or `nft`; rules carry the number of the block of addresses that the process holds, and
//! those of blocks that nobody holds are removed by the next one. A block is held by a socket whose name belongs to the network
//! namespace, as the rules do: the kernel frees it when the process dies, and processes that see each other's rules see each
//! other's sockets, whatever else separates them. `net.ipv4.ip_forward` is turned on when it is off, and left on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_ports::{ErrorKind, PortError, Result};

/// Blocks of 4096 addresses in 10.64.0.0/10: one a process.
const BLOCKS: u32 = 1024;
const BASE: u32 = 0x0a40_0000;
/// Networks of four addresses in a block.
const NETWORKS: u32 = 1024;

/// The rules of this process; dropping removes them.
#[derive(Debug)]
pub(super) struct Nat {
    block: Block,
    tool: Tool,
    /// Numbers of networks in use, and the next one to try: one that was just given back may still have devices.
    used: Mutex<(BTreeSet<u32>, u32)>,
}

/// A number of a network, free again when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    nat: Arc<Nat>,
    number: u32,
}

impl Slot {
    /// The next free one; `None` when there are too many networks.
    pub(super) fn take(nat: &Arc<Nat>) -> Option<Self> {
        let mut used = nat.used.lock().unwrap_or_else(PoisonError::into_inner);
        let number = (0..NETWORKS).map(|n| (used.1 + n) % NETWORKS).find(|n| !used.0.contains(n))?;
        used.0.insert(number);
        used.1 = (number + 1) % NETWORKS;
        Some(Self { nat: nat.clone(), number })
    }

    /// Host's and step's address.
    pub(super) fn addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let base = BASE + self.nat.block.number * 4096 + self.number * 4;
        (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2))
    }

    /// The name of the host's device.
    pub(super) fn device(&self) -> String {
        format!("rb{:x}.{:x}", self.nat.block.number, self.number)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.nat.used.lock().unwrap_or_else(PoisonError::into_inner).0.remove(&self.number);
    }
}

#[derive(Debug)]
enum Tool {
    Iptables { restore: PathBuf, save: PathBuf },
    Nft(PathBuf),
}

impl Tool {
    fn find() -> Option<Self> {
        match (find("iptables-restore"), find("iptables-save"), find("nft")) {
            (Some(restore), Some(save), _) => Some(Self::Iptables { restore, save }),
            (_, _, Some(nft)) => Some(Self::Nft(nft)),
            _ => None,
        }
    }
}

/// Whether a tool is there.
pub(super) fn available() -> bool {
    Tool::find().is_some()
}

impl Nat {
    /// Sets the rules, and removes those of dead processes.
    pub(super) fn start() -> Result<Self> {
        let tool = Tool::find().ok_or_else(|| {
            PortError::new(ErrorKind::Unsupported, "neither iptables nor nft is installed")
                .help("install the package iptables")
        })?;
        let forward = Path::new("/proc/sys/net/ipv4/ip_forward");
        if fs::read_to_string(forward).unwrap_or_default().trim() == "0" {
            fs::write(forward, "1").map_err(|e| PortError::io("turn on forwarding in", forward, e))?;
        }
        let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
        let Some(block) = free_blocks(std::process::id(), &routes).find_map(Block::hold) else {
            let message = "all address blocks for networks of steps are in use";
            return Err(PortError::new(ErrorKind::Unsupported, message).help("wait for other builds to end"));
        };
        let nat = Self { block, tool, used: Mutex::default() };
        // While they are held here, nobody else takes them.
        let mut swept = BTreeMap::new();
        match &nat.tool {
            Tool::Iptables { restore, save } => {
                let old = Command::new(save)
                    .stderr(Stdio::null())
                    .output()
                    .map(|out| out.stdout)
                    .unwrap_or_default();
                let dead =
                    dead_rules(&String::from_utf8_lossy(&old), |block| nat.may_sweep(block, &mut swept));
                if !dead.is_empty() {
                    feed(restore, &["-w", "-n"], &dead)?;
                }
                feed(restore, &["-w", "-n"], &nat.iptables("-A", "-I"))?;
            }
            Tool::Nft(nft) => {
                let old = Command::new(nft).args(["list", "tables"]).stderr(Stdio::null()).output();
                let old =
                    old.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default();
                let dead = old
                    .lines()
                    .filter_map(|line| line.strip_prefix("table ip "))
                    .filter(|name| owner(name).is_some_and(|block| nat.may_sweep(block, &mut swept)));
                let removal: String = dead.map(|name| format!("delete table ip {name}\n")).collect();
                feed(nft, &["-f", "-"], &format!("{removal}{}", nat.nft()))?;
            }
        }
        Ok(nat)
    }

    /// Whether the rules of `block` are left from a dead process; then it is held in `swept`.
    fn may_sweep(&self, block: u32, swept: &mut BTreeMap<u32, Option<Block>>) -> bool {
        block == self.block.number || swept.entry(block).or_insert_with(|| Block::hold(block)).is_some()
    }

    /// What its rules and, before a number, its devices are called.
    #[cfg(test)]
    pub(super) fn names(&self) -> (String, String) {
        (self.block.tag('-'), format!("rb{:x}.", self.block.number))
    }

    fn range(&self) -> String {
        format!("{}/20", Ipv4Addr::from(BASE + self.block.number * 4096))
    }

    fn iptables(&self, append: &str, insert: &str) -> String {
        let (range, comment) = (self.range(), format!("-m comment --comment {}", self.block.tag('-')));
        let at = if insert == "-I" { " 1" } else { "" };
        format!(
            "*nat\n{append} POSTROUTING -s {range} ! -d {range} {comment} -j MASQUERADE\nCOMMIT\n*filter\n\
             {insert} FORWARD{at} -s {range} {comment} -j ACCEPT\n{insert} FORWARD{at} -d {range} {comment} -j ACCEPT\n\
             {insert} FORWARD{at} -s {range} -d {range} {comment} -j DROP\n\
             {insert} FORWARD{at} -s {range} -d 169.254.0.0/16 {comment} -j DROP\nCOMMIT\n"
        )
    }

    fn nft(&self) -> String {
        let (range, table) = (self.range(), self.block.tag('_'));
        format!(
            "table ip {table} {{\n chain post {{ type nat hook postrouting priority srcnat; ip saddr {range} ip daddr != {range} masquerade; }}\n \
             chain fwd {{ type filter hook forward priority filter; ip saddr {range} ip daddr 169.254.0.0/16 drop; ip saddr {range} ip daddr {range} drop; }}\n}}\n"
        )
    }
}

impl Drop for Nat {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next process.
        let _removed = match &self.tool {
            Tool::Iptables { restore, .. } => feed(restore, &["-w", "-n"], &self.iptables("-D", "-D")),
            Tool::Nft(nft) => feed(nft, &["-f", "-"], &format!("delete table ip {}\n", self.block.tag('_'))),
        };
    }
}

fn feed(program: &Path, args: &[&str], text: &str) -> Result<()> {
    let failed = |why: String| {
        PortError::new(
            ErrorKind::Unsupported,
            format!("cannot set up address translation: {}: {why}", program.display()),
        )
    };
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A tool that does not read says why itself.
        let _written = stdin.write_all(text.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}

/// Programs are looked for where only root writes.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let dirs = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin", "/usr/local/bin"];
    dirs.iter().map(|dir| Path::new(dir).join(program)).find(|path| path.is_file())
}

/// A block of addresses that this process holds until it is dropped.
#[derive(Debug)]
struct Block {
    number: u32,
    _held: UnixListener,
}

impl Block {
    /// `None` when another process holds it.
    fn hold(number: u32) -> Option<Self> {
        let bind = || -> io::Result<UnixListener> {
            UnixListener::bind_addr(&SocketAddr::from_abstract_name(tag(number, '-'))?)
        };
        Some(Self { number, _held: bind().ok()? })
    }

    fn tag(&self, separator: char) -> String {
        tag(self.number, separator)
    }
}

/// What its rules are called: `rbuild-nat-7`, or `rbuild_nat_7` where names are words.
fn tag(block: u32, separator: char) -> String {
    format!("rbuild{separator}nat{separator}{block}")
}

/// The block in such a name.
fn owner(tag: &str) -> Option<u32> {
    let number = tag.strip_prefix("rbuild-nat-").or_else(|| tag.strip_prefix("rbuild_nat_"))?;
    number.parse().ok().filter(|block| *block < BLOCKS)
}

/// `iptables-restore` input that removes the rules of blocks that are `dead`, from `iptables-save` output.
fn dead_rules(saved: &str, mut dead: impl FnMut(u32) -> bool) -> String {
    let mut out = String::new();
    let (mut table, mut any) = (String::new(), false);
    for line in saved.lines() {
        if line.starts_with('*') {
            (table, any) = (line.to_owned(), false);
        } else if line == "COMMIT" && any {
            out.push_str("COMMIT\n");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let tag = rule.split_whitespace().map(|word| word.trim_matches('"')).find_map(owner);
            if tag.is_some_and(&mut dead) {
                if !any {
                    out.push_str(&format!("{table}\n"));
                    any = true;
                }
                out.push_str(&format!("-D {rule}\n"));
            }
        }
    }
    out
}

/// The blocks that no route uses, beginning with one of this process.
fn free_blocks(pid: u32, routes: &str) -> impl Iterator<Item = u32> {
    let used: Vec<(u32, u32)> = routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| Some(u32::from_str_radix(fields.get(at)?, 16).ok()?.swap_bytes());
            Some((number(1)?, number(7)?))
        })
        .filter(|(_, mask)| *mask != 0)
        .collect();
    let free = move |block: &u32| {
        let network = BASE + block * 4096;
        used.iter().all(|(route, mask)| {
            let common = mask & 0xffff_f000;
            network & common != route & common
        })
    };
    (0..BLOCKS).map(move |n| (pid % BLOCKS + n) % BLOCKS).filter(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_avoid_routes() {
        let first = |pid, routes: &str| free_blocks(pid, routes).next();
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
        assert_eq!(first(5, head), Some(5));
        // 10.64.80.0/30 lies in block 5.
        let taken = format!("{head}rb0\t0050400A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\n");
        assert_eq!(first(5, &taken), Some(6));
        let default = format!("{head}eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n");
        assert_eq!(first(1029, &default), Some(5));
        assert_eq!(free_blocks(u32::MAX, head).count(), 1024);
    }

    #[test]
    fn a_block_has_one_holder_and_is_free_when_that_is_gone() {
        // Far from those of processes with small numbers, which other tests use.
        let held = (0..BLOCKS).rev().find_map(Block::hold).unwrap();
        assert!(Block::hold(held.number).is_none());
        let number = held.number;
        drop(held);
        assert!(Block::hold(number).is_some());
    }

    #[test]
    fn rules_of_the_dead_are_found() {
        let saved = "# x\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.64.0.0/20 -m comment --comment \"rbuild-nat-0\" -j ACCEPT\n\
                     -A FORWARD -s 10.64.16.0/20 -m comment --comment rbuild-nat-1 -j ACCEPT\n-A FORWARD -j DOCKER\nCOMMIT\n*nat\nCOMMIT\n";
        assert_eq!(
            dead_rules(saved, |block| block == 0),
            "*filter\n-D FORWARD -s 10.64.0.0/20 -m comment --comment \"rbuild-nat-0\" -j ACCEPT\nCOMMIT\n"
        );
        assert_eq!(dead_rules(saved, |_| false), "");
        assert_eq!(
            [owner(&tag(7, '-')), owner(&tag(7, '_')), owner("rbuild-nat-9999")],
            [Some(7), Some(7), None]
        );
    }
}
