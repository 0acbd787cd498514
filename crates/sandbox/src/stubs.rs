//! What was made in a root only to mount something on it: remembered by inode, and removed when the step is over, so
//! that it is in no layer. Works on the upper directory, when no overlay uses it any more.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat};

use crate::mnt;
use crate::walk::restore_times;

/// What was made in a root, and in which directories.
#[derive(Default, Debug)]
pub(crate) struct Stubs {
    /// Parents before children.
    pub(crate) made: Vec<Stub>,
    /// The directories on the way that were there before.
    pub(crate) dirs: BTreeMap<Vec<u8>, DirState>,
}

/// A file or directory that was made.
#[derive(Debug)]
pub(crate) struct Stub {
    /// In the root, without links.
    pub(crate) path: Vec<u8>,
    device: u64,
    inode: u64,
    dir: bool,
}

/// What a directory looked like.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct DirState {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, u64),
}

impl DirState {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }
}

impl Stub {
    /// Remembers what is now at `path` in the upper directory.
    pub(crate) fn look(upper: BorrowedFd<'_>, path: Vec<u8>, dir: bool) -> io::Result<Self> {
        let stat = mnt::stat(open(upper, &path, OFlags::PATH)?.as_fd())?;
        Ok(Self { path, device: stat.st_dev, inode: stat.st_ino, dir })
    }

    fn is(&self, stat: &Stat) -> bool {
        (stat.st_dev, stat.st_ino) == (self.device, self.inode)
    }
}

/// Removes from the upper directory what was made and is still as it was made, then the directories that hold nothing
/// and say nothing that the layers below do not say.
pub(crate) fn remove(upper: BorrowedFd<'_>, stubs: &Stubs, merged: bool) -> io::Result<()> {
    for stub in stubs.made.iter().rev() {
        let (parent, name) = split(&stub.path);
        let Some(dir) = existing(open(upper, parent, OFlags::RDONLY | OFlags::DIRECTORY))? else { continue };
        let Some(stat) = existing(stat_in(dir.as_fd(), name))? else { continue };
        if !stub.is(&stat) || !stub.dir && stat.st_size != 0 {
            continue;
        }
        let flags = if stub.dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        keeping_times(dir.as_fd(), |dir| match rustix::fs::unlinkat(dir, name, flags) {
            // The step put something in there: now it is the step's directory.
            Err(rustix::io::Errno::NOTEMPTY) => Ok(()),
            other => Ok(other?),
        })?;
    }
    if !merged {
        return Ok(());
    }
    for (path, state) in stubs.dirs.iter().rev().filter(|(path, _)| !path.is_empty()) {
        let Some(dir) = existing(open(upper, path, OFlags::RDONLY | OFlags::DIRECTORY))? else { continue };
        if DirState::of(&mnt::stat(dir.as_fd())?) != *state || !is_plain_and_empty(&dir)? {
            continue;
        }
        let (parent, name) = split(path);
        let parent = open(upper, parent, OFlags::RDONLY | OFlags::DIRECTORY)?;
        keeping_times(parent.as_fd(), |parent| Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?))?;
    }
    Ok(())
}

/// Does `work` on a directory and puts its times back.
fn keeping_times(dir: BorrowedFd<'_>, work: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>) -> io::Result<()> {
    let before = mnt::stat(dir)?;
    work(dir)?;
    restore_times(dir, &before)
}

/// Whether a directory has no entries, hides nothing below it, and has no attributes of its own.
fn is_plain_and_empty(dir: &OwnedFd) -> io::Result<bool> {
    for entry in Dir::read_from(dir)? {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    let mut names = vec![0u8; 4096];
    let length = match rustix::fs::flistxattr(dir, names.as_mut_slice()) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        Err(rustix::io::Errno::RANGE) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let mut names =
        names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|name| !name.is_empty());
    Ok(names.all(|name| {
        let overlay = name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
        (overlay && !name.ends_with(b".opaque")) || name == b"security.selinux"
    }))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()),
        None => (b"", path),
    }
}

/// Opens below `upper` without following any link.
fn open(upper: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat2(upper, path, flags, Mode::empty(), resolve)?)
}

fn stat_in(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    Ok(rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// `None` when the step removed or replaced it.
fn existing<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR | libc::ELOOP | libc::EXDEV) => Ok(None),
            _ => Err(error),
        },
    }
}
