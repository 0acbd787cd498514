//! Moves a staged tree over a directory that exists, name by name. Works on open directories and never follows a
//! link, so nothing outside the directory is touched whatever it holds.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rbuild_ports::{PortError, Result};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Statx, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::atomic::remove_tree;

/// Moves everything in `staged`, which is inside `dest`, to `dest`. With `delete`, what is in no staged directory of
/// the same name goes.
pub(crate) fn merge(staged: &Path, dest: &Path, delete: bool) -> Result<()> {
    let failed = |error: Errno| PortError::io("write to", dest, error);
    let from = open_dir(CWD, &c_string(staged.as_os_str().as_bytes())?).map_err(failed)?;
    // The destination itself may be named through a link: that is the user's word.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let to = rustix::fs::openat(CWD, dest, flags, Mode::empty()).map_err(failed)?;
    let keep = staged.file_name().map(|name| name.as_bytes().to_vec());
    let merger = Merger { root: rustix::process::geteuid().is_root(), delete, keep };
    merger.dir(from.as_fd(), to.as_fd(), dest, true)
}

struct Merger {
    root: bool,
    delete: bool,
    /// The staged directory's name in the destination.
    keep: Option<Vec<u8>>,
}

impl Merger {
    fn dir(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, at: &Path, top: bool) -> Result<()> {
        let failed = |error: Errno| PortError::io("write to", at, error);
        let staged = names(from).map_err(failed)?;
        if self.delete {
            for name in names(to).map_err(failed)? {
                let keep = top && self.keep.as_deref() == Some(name.to_bytes());
                if !keep && !staged.contains(&name) {
                    remove(to, &name).map_err(failed)?;
                }
            }
        }
        for name in &staged {
            let path = at.join(OsStr::from_bytes(name.to_bytes()));
            self.entry(from, to, name, &path)?;
        }
        Ok(())
    }

    fn entry(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<()> {
        let failed = |error: Errno| PortError::io("write", path, error);
        let new = stat(from, name).map_err(failed)?;
        let old = match stat(to, name) {
            Ok(old) => Some(old),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(failed(error)),
        };
        match (is_dir(&new), old.as_ref().map(is_dir)) {
            (true, Some(true)) => self.both_dirs(from, to, name, path, &new),
            (true, None) => self.rename_dir(from, to, name, &new).map_err(failed),
            (true, Some(false)) => {
                remove(to, name).map_err(failed)?;
                self.rename_dir(from, to, name, &new).map_err(failed)
            }
            (false, Some(true)) => {
                remove(to, name).map_err(failed)?;
                rustix::fs::renameat(from, name, to, name).map_err(failed)
            }
            (false, _) => rustix::fs::renameat(from, name, to, name).map_err(failed),
        }
    }

    fn both_dirs(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
        new: &Statx,
    ) -> Result<()> {
        let failed = |error: Errno| PortError::io("write to", path, error);
        let open = |parent: BorrowedFd<'_>| -> std::result::Result<OwnedFd, Errno> {
            if !self.root {
                // Directories that forbid reading or writing get their permissions below.
                rustix::fs::chmodat(parent, name, Mode::from(0o700), AtFlags::empty())?;
            }
            open_dir(parent, name)
        };
        let (from, to) = (open(from).map_err(failed)?, open(to).map_err(failed)?);
        self.dir(from.as_fd(), to.as_fd(), path, false)?;
        rustix::fs::fchmod(&to, Mode::from(mode(new) & 0o7777)).map_err(failed)?;
        rustix::fs::futimens(&to, &times(new)).map_err(failed)
    }

    /// A directory that forbids writing cannot be moved: its `..` changes.
    fn rename_dir(
        &self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        new: &Statx,
    ) -> std::result::Result<(), Errno> {
        let locked = !self.root && mode(new) & 0o200 == 0;
        if locked {
            rustix::fs::chmodat(from, name, Mode::from(0o700), AtFlags::empty())?;
        }
        rustix::fs::renameat(from, name, to, name)?;
        if locked {
            rustix::fs::chmodat(to, name, Mode::from(mode(new) & 0o7777), AtFlags::empty())?;
        }
        Ok(())
    }
}

fn c_string(bytes: &[u8]) -> Result<CString> {
    CString::new(bytes).map_err(|error| PortError::io("open", OsStr::from_bytes(bytes), error))
}

fn open_dir(parent: impl AsFd, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

fn names(dir: BorrowedFd<'_>) -> std::result::Result<BTreeSet<CString>, Errno> {
    let mut out = BTreeSet::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            out.insert(entry.file_name().to_owned());
        }
    }
    Ok(out)
}

fn stat(dir: BorrowedFd<'_>, name: &CStr) -> std::result::Result<Statx, Errno> {
    rustix::fs::statx(dir, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS)
}

fn is_dir(stat: &Statx) -> bool {
    FileType::from_raw_mode(mode(stat)) == FileType::Directory
}

fn times(stat: &Statx) -> Timestamps {
    let time = Timespec { tv_sec: stat.stx_mtime.tv_sec, tv_nsec: stat.stx_mtime.tv_nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn mode(stat: &Statx) -> u32 {
    u32::from(stat.stx_mode)
}

/// Removes a file, or a directory with all that is in it.
fn remove(dir: BorrowedFd<'_>, name: &CStr) -> std::result::Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        result => return result,
    }
    // Through the open directory: whatever its path means by now.
    let path =
        PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name.to_bytes()));
    remove_tree(&path);
    match fs::symlink_metadata(&path) {
        Err(_) => Ok(()),
        Ok(_) => Err(Errno::NOTEMPTY),
    }
}
