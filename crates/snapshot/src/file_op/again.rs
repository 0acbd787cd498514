//! Copying a local context again. When the same COPY of the same directory runs once more because some files changed, the
//! files that did not change are linked from the layer that it made last time, so they are neither read nor written. A
//! file is taken only at the very path it had, so that no tree ever shows one inode under two names that were
//! two files; only with the same digest, size, owner, mode and time; and only if it had one name. What is remembered
//! (`copies/` in the store, one file for each COPY) may be lost at any time.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rbuild_digest::Digest;
use rbuild_graph::{FileKind, FileOp};
use rbuild_ports::{FileInput, LayerId, View};
use rbuild_store::replace_file;
use rbuild_tree::{Entry, Kind, RelPath};
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use crate::active::open_layer;
use crate::meta::Meta;
use crate::store::Shared;
use crate::sys;

const MAGIC: &[u8] = b"rbuild copies 1\n";
/// Of larger copies nothing is remembered: it is held in memory.
const MAX_FILES: usize = 200_000;
/// A file larger than this is none of ours.
const MAX_BYTES: u64 = 64 << 20;
/// Fewer files are copied faster than they are remembered.
const MIN_FILES: usize = 8;
/// So many copies are remembered in a store, the last ones.
const KEPT: usize = 64;
const SUM: usize = 32;

/// Files by the path they have in the layer, with the digests of what they were copied from.
type Files = HashMap<RelPath, Digest>;

/// What the last run of a file operation made, and what this one makes.
pub(crate) struct Again {
    file: PathBuf,
    last: Option<(OwnedFd, Files)>,
    /// `None` once there are too many.
    made: Mutex<Option<Files>>,
}

impl Again {
    /// For operations that only copy from local contexts to one output, what is remembered of their last run.
    pub(crate) fn of(shared: &Shared, op: &FileOp, inputs: &[FileInput]) -> Option<Self> {
        let mut identity = String::new();
        for action in &op.actions {
            let FileKind::Copy(copy) = &action.kind else { return None };
            let Some(FileInput::View(from)) = inputs.get(action.secondary_input? as usize) else {
                return None;
            };
            if copy.attempt_unpack {
                return None;
            }
            write!(identity, "{:?}\0{action:?}\0", from.origin()?).ok()?;
        }
        if op.actions.iter().filter(|action| action.output.is_some()).count() != 1 {
            return None;
        }
        let file = shared.copies.join(Digest::of(identity).hex());
        let last =
            read(&file).and_then(|(layer, files)| Some((open_layer(shared, layer.as_str()).ok()?, files)));
        Some(Self { file, last, made: Mutex::new(Some(Files::new())) })
    }

    /// The digest by which a file of `from` may be taken again, if it was copied before or is to be remembered.
    pub(crate) fn digest(from: &dyn View, entry: &Entry) -> Option<Digest> {
        matches!(entry.kind, Kind::File { .. }).then(|| from.known_digest(&entry.path)).flatten()
    }

    /// The directory at `path` in the layer of the last run.
    pub(crate) fn open_dir(&self, path: &RelPath) -> Option<OwnedFd> {
        let (root, _) = self.last.as_ref()?;
        sys::open_beneath(root, path, sys::DIR).ok()
    }

    /// Links `name` from the directory `last` of the last run's layer to the directory `to`, if it is the file that
    /// a copy to `target` would make. Says whether it did; `EXIST` is for the caller.
    pub(crate) fn link(
        &self,
        last: &OwnedFd,
        to: &OwnedFd,
        name: &[u8],
        wanted: &Wanted<'_>,
    ) -> Result<bool, Errno> {
        let Some((_, files)) = &self.last else { return Ok(false) };
        if files.get(wanted.target) != Some(&wanted.digest) {
            return Ok(false);
        }
        let Ok(Some(stat)) = sys::stat_at(last, name) else { return Ok(false) };
        let meta = wanted.meta;
        let same = sys::file_type(&stat) == FileType::RegularFile
            && u64::try_from(stat.st_size) == Ok(wanted.size)
            && sys::mode_of(&stat) == meta.mode
            && (stat.st_uid, stat.st_gid) == (meta.uid, meta.gid)
            && sys::mtime_of(&stat) == meta.mtime;
        if !same {
            return Ok(false);
        }
        match fs::linkat(last.as_fd(), name, to, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Err(Errno::EXIST),
            // Too many names already, or gone meanwhile.
            Err(_) => Ok(false),
        }
    }

    /// What is at `target` now: a copy of a file with this digest, or something else.
    pub(crate) fn note(&self, target: &RelPath, digest: Option<Digest>) {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(files) = made.as_mut() else { return };
        match digest {
            Some(_) if files.len() >= MAX_FILES => *made = None,
            Some(digest) => drop(files.insert(target.clone(), digest)),
            None => drop(files.remove(target)),
        }
    }

    /// Remembers this run, which made `layer`. If that fails the next one copies.
    pub(crate) fn save(self, layer: &LayerId) {
        let made = self.made.into_inner().unwrap_or_else(PoisonError::into_inner).unwrap_or_default();
        if made.len() < MIN_FILES {
            return;
        }
        if replace_file(&self.file, &format(layer, &made)).is_ok()
            && let Some(dir) = self.file.parent()
        {
            forget_old(dir);
        }
    }
}

/// The file that a copy would make.
pub(crate) struct Wanted<'a> {
    pub(crate) target: &'a RelPath,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) meta: &'a Meta,
}

fn format(layer: &LayerId, files: &Files) -> Vec<u8> {
    let mut sorted: Vec<(&RelPath, &Digest)> = files.iter().collect();
    sorted.sort_unstable_by(|a, b| a.0.cmp(b.0));
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(layer.as_str().as_bytes());
    out.push(b'\n');
    for (path, digest) in sorted {
        let bytes = path.as_bytes();
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(bytes);
        out.extend_from_slice(digest.as_bytes());
    }
    let sum = Digest::of(&out);
    out.extend_from_slice(sum.as_bytes());
    out
}

fn parse(bytes: &[u8]) -> Option<(LayerId, Files)> {
    let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(SUM)?)?;
    if Digest::of(body).as_bytes() != sum {
        return None;
    }
    let rest = body.strip_prefix(MAGIC)?;
    let (layer, mut rest) = rest.split_at_checked(rest.iter().position(|c| *c == b'\n')?)?;
    rest = rest.get(1..)?;
    let mut files = Files::new();
    while !rest.is_empty() {
        let (length, more) = rest.split_first_chunk::<4>()?;
        let (path, more) = more.split_at_checked(usize::try_from(u32::from_le_bytes(*length)).ok()?)?;
        let (digest, more) = more.split_first_chunk::<SUM>()?;
        files.insert(RelPath::clean(path).ok()?, Digest::from_bytes(*digest));
        rest = more;
    }
    Some((std::str::from_utf8(layer).ok()?.parse().ok()?, files))
}

fn read(file: &Path) -> Option<(LayerId, Files)> {
    if std::fs::metadata(file).ok()?.len() > MAX_BYTES {
        return None;
    }
    parse(&std::fs::read(file).ok()?)
}

/// Removes all but the newest files in `dir`.
fn forget_old(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let mut all: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter_map(|entry| {
            let entry = entry.ok()?;
            Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
        })
        .collect();
    if all.len() <= KEPT {
        return;
    }
    all.sort_unstable();
    for (_, path) in all.iter().rev().skip(KEPT) {
        // One that stays is removed next time.
        let _ = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_is_believed_only_whole() {
        let layer: LayerId = LayerId::named('l', &[7; 16]);
        let path = |text: &str| RelPath::clean(text).unwrap();
        let files = Files::from([(path("a/b"), Digest::of("x")), (path("c"), Digest::of("y"))]);
        let bytes = format(&layer, &files);
        assert_eq!(parse(&bytes), Some((layer.clone(), files)));
        for cut in 0..bytes.len() {
            assert_eq!(parse(&bytes[..cut]), None, "cut at {cut}");
            let mut flipped = bytes.clone();
            flipped[cut] ^= 1;
            assert_eq!(parse(&flipped), None, "flipped at {cut}");
        }
        assert_eq!(parse(&format(&layer, &Files::new())), Some((layer, Files::new())));
    }
}
