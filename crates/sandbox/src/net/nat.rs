//! Address translation by the kernel, as root. One set of rules a process, set with `iptables` (which also gets past a
//! forwarding policy such as Docker's) or `nft`; rules carry the process's number and start time, and those of dead
//! processes are removed by the next one. `net.ipv4.ip_forward` is turned on when it is off, and left on.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
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
    block: u32,
    tool: Tool,
    tag: String,
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
        let base = BASE + self.nat.block * 4096 + self.number * 4;
        (Ipv4Addr::from(base + 1), Ipv4Addr::from(base + 2))
    }

    /// The name of the host's device.
    pub(super) fn device(&self) -> String {
        format!("rb{:x}.{:x}", std::process::id(), self.number)
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
        let pid = std::process::id();
        let tag = format!("rbuild-{pid}-{}", start_time(pid).unwrap_or_default());
        let nat = Self {
            block: free_block(pid, &fs::read_to_string("/proc/net/route").unwrap_or_default()),
            tool,
            tag,
            used: Mutex::default(),
        };
        match &nat.tool {
            Tool::Iptables { restore, save } => {
                let old = Command::new(save)
                    .stderr(Stdio::null())
                    .output()
                    .map(|out| out.stdout)
                    .unwrap_or_default();
                let dead = dead_rules(&String::from_utf8_lossy(&old), alive);
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
                    .filter(|name| owner(name).is_some_and(|it| !alive(it)));
                let removal: String = dead.map(|name| format!("delete table ip {name}\n")).collect();
                feed(nft, &["-f", "-"], &format!("{removal}{}", nat.nft()))?;
            }
        }
        Ok(nat)
    }

    fn range(&self) -> String {
        format!("{}/20", Ipv4Addr::from(BASE + self.block * 4096))
    }

    fn iptables(&self, append: &str, insert: &str) -> String {
        let (range, comment) = (self.range(), format!("-m comment --comment {}", self.tag));
        let at = if insert == "-I" { " 1" } else { "" };
        format!(
            "*nat\n{append} POSTROUTING -s {range} ! -d {range} {comment} -j MASQUERADE\nCOMMIT\n*filter\n\
             {insert} FORWARD{at} -s {range} {comment} -j ACCEPT\n{insert} FORWARD{at} -d {range} {comment} -j ACCEPT\n\
             {insert} FORWARD{at} -s {range} -d {range} {comment} -j DROP\n\
             {insert} FORWARD{at} -s {range} -d 169.254.0.0/16 {comment} -j DROP\nCOMMIT\n"
        )
    }

    fn nft(&self) -> String {
        let (range, table) = (self.range(), self.tag.replace('-', "_"));
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
            Tool::Nft(nft) => {
                feed(nft, &["-f", "-"], &format!("delete table ip {}\n", self.tag.replace('-', "_")))
            }
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

/// When a process started, in clock ticks since boot: tells it from a later one of the same number.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

fn alive((pid, started): (u32, u64)) -> bool {
    start_time(pid) == Some(started)
}

/// Process and start time in `rbuild-7-99` or `rbuild_7_99`.
fn owner(tag: &str) -> Option<(u32, u64)> {
    let mut words = tag.trim().split(['-', '_']);
    if words.next() != Some("rbuild") {
        return None;
    }
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// `iptables-restore` input that removes the rules of processes that are not alive, from `iptables-save` output.
fn dead_rules(saved: &str, alive: impl Fn((u32, u64)) -> bool) -> String {
    let mut out = String::new();
    let (mut table, mut any) = (String::new(), false);
    for line in saved.lines() {
        if line.starts_with('*') {
            (table, any) = (line.to_owned(), false);
        } else if line == "COMMIT" && any {
            out.push_str("COMMIT\n");
        } else if let Some(rule) = line.strip_prefix("-A ") {
            let tag = rule.split_whitespace().map(|word| word.trim_matches('"')).find_map(owner);
            if tag.is_some_and(|tag| !alive(tag)) {
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

/// A block that no route uses, beginning with the one of this process.
fn free_block(pid: u32, routes: &str) -> u32 {
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
    let free = |block: &u32| {
        let network = BASE + block * 4096;
        used.iter().all(|(route, mask)| {
            let common = mask & 0xffff_f000;
            network & common != route & common
        })
    };
    (0..BLOCKS).map(|n| (pid + n) % BLOCKS).find(free).unwrap_or(pid % BLOCKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_avoid_routes() {
        let head = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n";
        assert_eq!(free_block(5, head), 5);
        // 10.64.80.0/30 lies in block 5.
        let taken = format!("{head}rb0\t0050400A\t00000000\t0001\t0\t0\t0\tFCFFFFFF\n");
        assert_eq!(free_block(5, &taken), 6);
        let default = format!("{head}eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\n");
        assert_eq!(free_block(1029, &default), 5);
    }

    #[test]
    fn rules_of_the_dead_are_found() {
        let saved = "# x\n*filter\n:FORWARD ACCEPT [0:0]\n-A FORWARD -s 10.64.0.0/20 -m comment --comment \"rbuild-1-2\" -j ACCEPT\n\
                     -A FORWARD -s 10.64.16.0/20 -m comment --comment rbuild-3-4 -j ACCEPT\n-A FORWARD -j DOCKER\nCOMMIT\n*nat\nCOMMIT\n";
        let dead = dead_rules(saved, |owner| owner == (3, 4));
        assert_eq!(
            dead,
            "*filter\n-D FORWARD -s 10.64.0.0/20 -m comment --comment \"rbuild-1-2\" -j ACCEPT\nCOMMIT\n"
        );
        assert_eq!(dead_rules(saved, |_| true), "");
        assert!(alive((std::process::id(), start_time(std::process::id()).unwrap())));
    }
}
