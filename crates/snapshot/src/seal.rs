//! From a directory that was written to a layer: what it holds is counted, names and attributes that would mean
//! something else in a layer are refused or removed, and one rename makes it visible.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbuild_digest::Digest;
use rbuild_ports::{CommittedLayer, ErrorKind, LayerId, PortError, Result};
use rbuild_tree::{Kind, RelPath};
use rustix::fs::{self, FileType, RenameFlags};
use rustix::io::Errno;

use crate::meta::{Maker, failed};
use crate::sys::{self, Place};
use crate::unchanged::Unchanged;
use crate::view::LayerView;
use crate::walk::{Step, walk};

/// Entries and bytes of a layer directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Count {
    /// Files, directories, links, nodes and whiteouts.
    pub(crate) entries: u64,
    /// Bytes of regular files; one with several names counts once.
    pub(crate) bytes: u64,
    /// Over path, size, mode and time of each regular file, in any order.
    pub(crate) stamp: u64,
}

/// Counts what is below `root`.
pub(crate) fn count(root: OwnedFd) -> Result<Count> {
    count_with(root, &mut |_| Ok(Verdict::Stays))
}

/// What becomes of an entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Stays,
    Gone,
}

fn count_with(root: OwnedFd, check: &mut dyn FnMut(&Step<'_>) -> Result<Verdict>) -> Result<Count> {
    let mut count = Count::default();
    let mut linked: HashSet<u64> = HashSet::new();
    let mut line = vec![];
    walk(root, &mut |step| {
        if check(&step)? == Verdict::Gone {
            return Ok(());
        }
        count.entries += 1;
        if step.kind == FileType::RegularFile {
            let stat = sys::stat_at(step.dir, step.name).map_err(|e| failed("read", step.path, e))?;
            let Some(stat) = stat else { return Ok(()) };
            count.stamp = count.stamp.wrapping_add(mark(step.path, &stat, &mut line));
            if stat.st_nlink < 2 || linked.insert(stat.st_ino) {
                count.bytes += u64::try_from(stat.st_size).unwrap_or(0);
            }
        }
        Ok(())
    })?;
    Ok(count)
}

/// What a file adds to the stamp: writing to it changes its size or its time. `line` is scratch space.
fn mark(path: &RelPath, stat: &fs::Stat, line: &mut Vec<u8>) -> u64 {
    let numbers = [
        i128::from(stat.st_size),
        i128::from(stat.st_mtime),
        i128::from(stat.st_mtime_nsec),
        i128::from(stat.st_mode),
    ];
    line.clear();
    numbers.iter().for_each(|number| line.extend_from_slice(&number.to_le_bytes()));
    line.extend_from_slice(path.as_bytes());
    let mut out = [0; 8];
    out.iter_mut().zip(Digest::of(&line).as_bytes()).for_each(|(to, from)| *to = *from);
    u64::from_le_bytes(out)
}

/// Prepares what the overlay file system wrote: what is the same `below`, which it was written over, and opaque marks that hide
/// nothing are removed, so that the layer does not depend on how it was made.
pub(crate) fn tidy_upper(root: OwnedFd, below: &LayerView, maker: &Maker) -> Result<Count> {
    let mut unchanged = Unchanged::new(&root, below)?;
    // The last directory that shows nothing of what is below; the walk leaves it before it meets another outside.
    let mut apart: Option<RelPath> = None;
    let mut count = count_with(root, &mut |step| {
        let path = step.path;
        refuse_whiteout_name(path)?;
        let covered = apart.as_ref().is_some_and(|above| path.starts_with(above));
        let Some(dir) = step.opened else {
            let gone = !covered && unchanged.leave_out(step)?;
            return Ok(if gone { Verdict::Gone } else { Verdict::Stays });
        };
        refuse_redirect(path, dir)?;
        let opaque = maker.is_opaque(dir).map_err(|e| failed("read", path, e))?;
        let over = !covered && below.kind(path)? == Some(Kind::Dir);
        if opaque && !over {
            Place::Fd(dir).remove(maker.opaque_name()).map_err(|e| failed("clean", path, e))?;
        }
        match (over, opaque) {
            (true, false) => unchanged.dir(step)?,
            _ if covered => {}
            _ => apart = Some(path.clone()),
        }
        Ok(Verdict::Stays)
    })?;
    count.entries = count.entries.saturating_sub(unchanged.finish()?);
    Ok(count)
}

/// A name that means a deletion when the layer is read as a tar.
pub(crate) fn refuse_whiteout_name(path: &RelPath) -> Result<()> {
    if !path.file_name().is_some_and(|name| name.starts_with(b".wh.")) {
        return Ok(());
    }
    let message = format!(
        "{path} cannot be part of an image: names that start with \".wh.\" mean a deleted file there"
    );
    Err(PortError::new(ErrorKind::Invalid, message)
        .help("use another name, or remove the file in the same step"))
}

fn refuse_redirect(path: &RelPath, dir: BorrowedFd<'_>) -> Result<()> {
    for name in [b"trusted.overlay.redirect".as_slice(), b"user.overlay.redirect"] {
        if Place::Fd(dir).get(name).map_err(|e| failed("read", path, e))?.is_some() {
            let message =
                format!("{path} was renamed by an overlay mount with redirects, which layers cannot hold");
            return Err(PortError::new(ErrorKind::Unsupported, message));
        }
    }
    Ok(())
}

/// Gives `name` in `from` its place among the layers. One that is there already is kept, and `false` returned.
pub(crate) fn publish(from: impl AsFd, name: &str, layers: impl AsFd, layer: &LayerId) -> Result<bool> {
    let (from, layers) = (from.as_fd(), layers.as_fd());
    let result = match fs::renameat_with(from, name, layers, layer.as_str(), RenameFlags::NOREPLACE) {
        // File systems without the flag: a directory never replaces one that is not empty.
        Err(Errno::INVAL | Errno::NOSYS) => fs::renameat(from, name, layers, layer.as_str()),
        other => other,
    };
    match result {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(PortError::io("rename", format!("layers/{layer}"), error)),
    }
}

/// The layer as counted.
pub(crate) fn committed(layer: LayerId, count: Count) -> CommittedLayer {
    CommittedLayer { layer, entries: count.entries, bytes: count.bytes, stamp: count.stamp }
}
