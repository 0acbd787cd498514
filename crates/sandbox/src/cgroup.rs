//! Control groups, as far as steps need them: a group below the parent that a request names, the count of processes
//! that the kernel killed for want of memory, and which trees this machine has. Without a named parent a step stays in
//! the group of its builder, and nothing is made.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rbuild_ports::{ErrorKind, PortError, Result};
use rustix::fs::{Mode, OFlags};

const ROOT: &str = "/sys/fs/cgroup";
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Where the tree of version 2 is mounted.
fn version_2() -> Option<PathBuf> {
    let found = [ROOT.to_owned(), format!("{ROOT}/unified")];
    found.into_iter().map(PathBuf::from).find(|path| is_version_2(path))
}

fn is_version_2(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 == CGROUP2_MAGIC)
}

/// Whether version 2 is all there is.
pub(crate) fn only_version_2() -> bool {
    is_version_2(Path::new(ROOT))
}

/// A group for one step, removed when dropped.
pub(crate) struct Group {
    dir: OwnedFd,
    /// What was made for it, parents first.
    made: Vec<PathBuf>,
}

impl Group {
    /// Makes one below `parent`. `None` when this machine has no version 2 of control groups.
    pub(crate) fn new(parent: &str, id: &str) -> Result<Option<Self>> {
        let Some(root) = version_2() else { return Ok(None) };
        let relative = Path::new(parent.trim_start_matches('/'));
        if !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            let text = format!("{parent:?} is no control group: it must be a path without `..`");
            return Err(PortError::new(ErrorKind::Invalid, text));
        }
        let mut path = root;
        let mut made = Vec::new();
        let own =
            format!("rbuild-{}-{}-{id}", std::process::id(), start_time(std::process::id()).unwrap_or(0));
        for part in relative.iter().chain([std::ffi::OsStr::new(&own)]) {
            if part == own.as_str() {
                sweep(&path);
            }
            path.push(part);
            match fs::create_dir(&path) {
                Ok(()) => made.push(path.clone()),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    remove(&made);
                    return Err(PortError::io("make the control group", &path, error)
                        .help("only root, or the owner of a delegated subtree, may make control groups; leave the parent out"));
                }
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(&path, flags, Mode::empty()) {
            Ok(dir) => Ok(Some(Self { dir, made })),
            Err(error) => {
                remove(&made);
                Err(PortError::io("open the control group", &path, error))
            }
        }
    }

    /// To start in.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        remove(&self.made);
    }
}

fn remove(made: &[PathBuf]) {
    for (n, path) in made.iter().rev().enumerate() {
        // The last process may take a moment to leave. Parents may be in use by others.
        for _ in 0..if n == 0 { 100 } else { 1 } {
            match fs::remove_dir(path) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                _ => break,
            }
        }
    }
}

/// Removes groups that killed processes left behind.
fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if owner(&name.to_string_lossy()).is_some_and(|(pid, started)| start_time(pid) != Some(started)) {
            let _gone = fs::remove_dir(entry.path());
        }
    }
}

/// Process and start time in `rbuild-7-99-id`.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix("rbuild-")?.split('-');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// When a process started, in clock ticks since boot.
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

/// The kernel's count of processes of this group that it killed for want of memory.
pub(crate) struct OomCount(File);

impl OomCount {
    /// For the group of this process; `None` where nobody counts.
    pub(crate) fn open() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        candidates(&groups).into_iter().find_map(|path| {
            let file = File::open(path).ok()?;
            let count = Self(file);
            count.get().map(|_| count)
        })
    }

    pub(crate) fn get(&self) -> Option<u64> {
        let mut text = [0u8; 512];
        let length = self.0.read_at(&mut text, 0).ok()?;
        let text = String::from_utf8_lossy(text.get(..length)?).into_owned();
        text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok())
    }
}

/// Files that may have the count, by `/proc/self/cgroup`.
fn candidates(groups: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (_, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        match controllers {
            "" => Some(PathBuf::from(format!("{ROOT}{path}/memory.events"))),
            "memory" => Some(PathBuf::from(format!("{ROOT}/memory{path}/memory.oom_control"))),
            _ => None,
        }
    };
    groups.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_places() {
        assert_eq!(owner("rbuild-7-99-abc"), Some((7, 99)));
        assert_eq!(owner("rbuild-x-99"), None);
        assert_eq!(owner("other"), None);
        let files = candidates("9:name=systemd:/\n4:memory:/a/b\n0::/c\n");
        let names: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        assert_eq!(names, ["/sys/fs/cgroup/memory/a/b/memory.oom_control", "/sys/fs/cgroup/c/memory.events"]);
    }

    #[test]
    fn strange_parents_are_refused() {
        if version_2().is_some() {
            for bad in ["..", "a/../b", "/../x"] {
                assert!(Group::new(bad, "x").is_err_and(|error| error.kind == ErrorKind::Invalid), "{bad}");
            }
        }
    }
}
