//! Looks for what a build must not leave behind: mounts, processes, temporary files, leases, control groups.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Directories of a store that are empty when nobody uses it.
const TRANSIENT: [&str; 3] = ["tmp", "work", "leases"];

/// Mounts of this process's namespace at or below `dir`, outermost first.
#[must_use]
pub fn own_mounts(dir: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let prefix = dir.to_string_lossy().into_owned();
    let points = text.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(&prefix)).map(PathBuf::from).collect()
}

/// What is left of builds whose files lie in `dir` and whose store is `store`: one line a find.
#[must_use]
pub fn find(dir: &Path, store: &Path) -> Vec<String> {
    let mut found: Vec<String> =
        own_mounts(dir).iter().map(|mount| format!("mount {}", mount.display())).collect();
    found.extend(processes(&dir.to_string_lossy()));
    for name in TRANSIENT {
        let entries = fs::read_dir(store.join(name)).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| format!("file {}", entry.path().display())));
    }
    found
}

/// Fails when something is left. What the kernel takes a moment to end is waited for.
///
/// # Panics
/// When there is a leak.
pub fn assert_none(dir: &Path, store: &Path) {
    let patience = Instant::now() + Duration::from_secs(3);
    loop {
        let found = find(dir, store);
        if found.is_empty() {
            return;
        }
        assert!(Instant::now() < patience, "the build left:\n{}", found.join("\n"));
        std::thread::yield_now();
    }
}

/// Processes other than this one that live below `prefix`, or in a mount namespace that knows it.
fn processes(prefix: &str) -> Vec<String> {
    let own = std::process::id();
    let own_mounts = fs::read_link("/proc/self/ns/mnt").ok();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let path = entry.path();
        if pid == own {
            continue;
        }
        let inside = ["cwd", "root"].iter().any(|link| {
            fs::read_link(path.join(link)).is_ok_and(|to| to.to_string_lossy().starts_with(prefix))
        });
        let elsewhere = fs::read_link(path.join("ns/mnt")).ok() != own_mounts;
        let mounted =
            elsewhere && fs::read_to_string(path.join("mountinfo")).is_ok_and(|text| text.contains(prefix));
        if inside || mounted {
            let command = fs::read(path.join("cmdline")).unwrap_or_default();
            found.push(format!("process {pid} {}", String::from_utf8_lossy(&command).replace('\0', " ")));
        }
    }
    found
}

/// Control groups whose path contains `name`.
#[must_use]
pub fn cgroups(name: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy().contains(name) {
                found.push(entry.path());
            }
            stack.push(entry.path());
        }
    }
    found.sort();
    found
}
