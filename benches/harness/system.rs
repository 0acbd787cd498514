//! The machine: facts for the head of a report, and cleaning up directories that engines filled (mounts first).

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{UnmountFlags, unmount};

use crate::error::{BenchError, Doing as _, Result};
use crate::measure::{Invocation, Runner, find};

/// Facts that a measurement depends on, as (name, value).
pub(crate) fn facts(scratch: &Path) -> Vec<(&'static str, String)> {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let memory = first_field("/proc/meminfo", "MemTotal:")
        .and_then(|text| text.trim_end_matches(" kB").parse::<u64>().ok());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    vec![
        (
            "cpu",
            first_field("/proc/cpuinfo", "model name")
                .map_or_else(String::new, |text| text.trim_start_matches(": ").to_owned()),
        ),
        ("cores", cores.to_string()),
        ("memory", memory.map_or_else(String::new, |kib| format!("{:.1} GiB", kib_to_gib(kib)))),
        ("kernel", read("/proc/sys/kernel/osrelease")),
        ("filesystem", filesystem(scratch).unwrap_or_default()),
        ("root", rustix::process::geteuid().is_root().to_string()),
        ("load at start", read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" ")),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn kib_to_gib(kib: u64) -> f64 {
    kib as f64 / f64::from(1u32 << 20)
}

fn first_field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

/// A line of `/proc/self/mountinfo`.
struct MountLine {
    target: PathBuf,
    kind: String,
}

fn mounts() -> Vec<MountLine> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

fn parse_mounts(text: &str) -> Vec<MountLine> {
    let line = |line: &str| {
        let (left, right) = line.split_once(" - ")?;
        let target = left.split(' ').nth(4)?.replace("\\040", " ");
        Some(MountLine { target: target.into(), kind: right.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(line).collect()
}

fn filesystem(path: &Path) -> Option<String> {
    let path = fs::canonicalize(path).ok()?;
    let all = mounts();
    let best = all
        .iter()
        .filter(|mount| path.starts_with(&mount.target))
        .max_by_key(|mount| mount.target.as_os_str().len())?;
    Some(best.kind.clone())
}

/// Unmounts everything below `dir`, innermost first.
pub(crate) fn unmount_below(dir: &Path) {
    let mut targets: Vec<PathBuf> =
        mounts().into_iter().map(|mount| mount.target).filter(|target| target.starts_with(dir)).collect();
    targets.sort();
    for target in targets.iter().rev() {
        let _gone = unmount(target, UnmountFlags::DETACH);
    }
}

/// Removes what an engine left in `dir`, whoever owns it in a user namespace. A directory that is not there is fine.
pub(crate) fn remove_tree(dir: &Path, runner: &Runner) -> Result<()> {
    unmount_below(dir);
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => match find("buildah") {
            // Files of a rootless store belong to ids that only its user namespace has.
            Some(buildah) => {
                runner.run(&Invocation::new(&buildah).args(["unshare", "rm", "-rf", "--"]).arg(dir)).map(drop)
            }
            None => Err(BenchError::Io { doing: format!("cannot remove {}", dir.display()), source: error }),
        },
        other => other.doing("remove", dir),
    }
}

/// Writes everything to the disk, so that earlier writes do not disturb what is measured next.
pub(crate) fn settle() {
    rustix::fs::sync();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_lines_are_read() {
        let text = "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
                    30 22 0:3 / /a\\040b/c rw - overlay overlay rw,lowerdir=x\nnonsense\n";
        let found: Vec<(String, String)> = parse_mounts(text)
            .into_iter()
            .map(|mount| (mount.target.display().to_string(), mount.kind))
            .collect();
        assert_eq!(found, [("/".into(), "ext4".into()), ("/a b/c".into(), "overlay".into())]);
    }

    #[test]
    fn facts_are_complete() {
        let facts = facts(Path::new("/"));
        for name in ["cores", "memory", "kernel", "filesystem"] {
            let value = facts.iter().find(|fact| fact.0 == name).map(|fact| fact.1.as_str());
            assert!(value.is_some_and(|value| !value.is_empty()), "{name}");
        }
    }

    #[test]
    fn a_tree_goes_and_a_missing_one_is_fine() {
        let dir = tempfile::tempdir().unwrap();
        let runner = Runner::new(&dir.path().join("s"), std::time::Duration::from_secs(5)).unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("a/b")).unwrap();
        remove_tree(&tree, &runner).unwrap();
        assert!(!tree.exists());
        remove_tree(&tree, &runner).unwrap();
    }
}
