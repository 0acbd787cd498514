//! What this machine offers to a sandbox, for messages and for `rbuild info`. Reads only; changes nothing.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::net::{find, translates};
use crate::sandbox::is_initial;

/// What this machine offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Machine {
    /// Release of the kernel.
    pub kernel: String,
    /// Whether the kernel is recent enough (5.12, or 5.13 in a user namespace).
    pub kernel_suffices: bool,
    /// Whether the process is root, be it in a user namespace.
    pub root: bool,
    /// Whether the process is in a user namespace already.
    pub in_user_namespace: bool,
    /// Why an ordinary user could not make a user namespace; `None` when nothing speaks against it.
    pub no_user_namespaces: Option<String>,
    /// Whether the kernel knows overlayfs, or may load it.
    pub overlay: bool,
    /// How steps reach the outside: `nat`, `pasta`, `slirp4netns`; `None` when they cannot.
    pub network: Option<&'static str>,
    /// Whether only version 2 of control groups is mounted.
    pub only_cgroup_2: bool,
}

/// Looks at this machine.
#[must_use]
pub fn probe() -> Machine {
    let kernel = rustix::system::uname().release().to_string_lossy().into_owned();
    let in_user_namespace = !is_initial(&read("/proc/self/uid_map"));
    let root = rustix::process::geteuid().is_root();
    let needed = if root && !in_user_namespace { (5, 12) } else { (5, 13) };
    let filesystems = read("/proc/filesystems");
    Machine {
        kernel_suffices: version(&kernel).is_some_and(|version| version >= needed),
        root,
        in_user_namespace,
        no_user_namespaces: no_user_namespaces(),
        // A module is loaded when it is first asked for.
        overlay: filesystems.lines().any(|line| line.trim_start_matches("nodev").trim() == "overlay")
            || Path::new("/lib/modules").join(&kernel).join("kernel/fs/overlayfs").exists(),
        network: network(),
        only_cgroup_2: crate::cgroup::only_version_2(),
        kernel,
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |value: bool| if value { "yes" } else { "no" };
        writeln!(f, "kernel: {}{}", self.kernel, if self.kernel_suffices { "" } else { " (too old)" })?;
        writeln!(f, "root: {}", yes(self.root))?;
        writeln!(f, "in a user namespace: {}", yes(self.in_user_namespace))?;
        writeln!(f, "user namespaces: {}", self.no_user_namespaces.as_deref().unwrap_or("yes"))?;
        writeln!(f, "overlayfs: {}", yes(self.overlay))?;
        writeln!(f, "network of steps: {}", self.network.unwrap_or("loopback only"))?;
        write!(
            f,
            "control groups: {}",
            if self.only_cgroup_2 { "version 2" } else { "version 1, hybrid or none" }
        )
    }
}

fn network() -> Option<&'static str> {
    if translates() {
        return Some("nat");
    }
    let writable = rustix::fs::access("/dev/net/tun", rustix::fs::Access::WRITE_OK).is_ok();
    ["pasta", "slirp4netns"].into_iter().find(|program| writable && find(program).is_some())
}

fn no_user_namespaces() -> Option<String> {
    let forbidden = [
        ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1"),
        ("/proc/sys/kernel/unprivileged_userns_clone", "0"),
        ("/proc/sys/user/max_user_namespaces", "0"),
    ];
    if !Path::new("/proc/self/ns/user").exists() {
        return Some("the kernel has none (CONFIG_USER_NS)".to_owned());
    }
    let (path, value) = forbidden.into_iter().find(|(path, value)| read(path).trim() == *value)?;
    Some(format!("forbidden to ordinary users: {path} is {value}"))
}

/// Major and minor number.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases() {
        assert_eq!(version("6.18.44-x"), Some((6, 18)));
        assert_eq!(version("5.15"), Some((5, 15)));
        assert_eq!(version("unknown"), None);
        let machine = probe();
        assert!(machine.kernel_suffices && machine.to_string().contains(&machine.kernel));
    }
}
