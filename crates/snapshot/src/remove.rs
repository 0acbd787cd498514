//! Removing trees whatever their modes, flags and depth. Links are removed, never followed; one descriptor is open
//! at a time for each of a bounded number of levels.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, IFlags, Mode};
use rustix::io::Errno;

use crate::sys;

/// Deeper directories are moved up before they are emptied.
const LEVELS: usize = 64;

/// Removes `name` in `dir` and all that is in it. One that is not there is no error.
pub(crate) fn remove_tree(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let dir = dir.as_fd();
    match remove_plain(dir, name) {
        Ok(()) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM | Errno::NOTEMPTY) => {}
        Err(error) => return Err(error),
    }
    let mut deep = Deep { top: dir, parked: Vec::new(), count: 0 };
    empty_and_remove(dir, name, 0, &mut deep)?;
    while let Some(parked) = deep.parked.pop() {
        empty_and_remove(dir, &parked, 0, &mut deep)?;
    }
    Ok(())
}

/// Directories that were too deep, now children of `top`.
struct Deep<'a> {
    top: BorrowedFd<'a>,
    parked: Vec<Vec<u8>>,
    count: u64,
}

fn empty_and_remove(
    parent: BorrowedFd<'_>,
    name: &[u8],
    level: usize,
    deep: &mut Deep<'_>,
) -> Result<(), Errno> {
    let Some(dir) = open_writable(parent, name)? else {
        return remove_plain(parent, name);
    };
    for (child, kind) in sys::list(&dir)? {
        if kind != FileType::Directory {
            remove_plain(dir.as_fd(), &child)?;
        } else if level < LEVELS {
            empty_and_remove(dir.as_fd(), &child, level + 1, deep)?;
        } else {
            park(dir.as_fd(), &child, deep)?;
        }
    }
    drop(dir);
    ignore_missing(fs::unlinkat(parent, name, AtFlags::REMOVEDIR))
}

fn park(dir: BorrowedFd<'_>, child: &[u8], deep: &mut Deep<'_>) -> Result<(), Errno> {
    // A directory that is moved changes its `..` and so must be writable itself.
    drop(open_writable(dir, child)?);
    loop {
        let name =
            format!(".deep-{}-{}", rustix::process::getpid().as_raw_nonzero(), deep.count).into_bytes();
        deep.count += 1;
        match fs::renameat_with(dir, child, deep.top, name.as_slice(), fs::RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => {
                other?;
                deep.parked.push(name);
                return Ok(());
            }
        }
    }
}

/// Opens a directory so that entries can be removed from it; `None` when it is none, or gone.
fn open_writable(parent: BorrowedFd<'_>, name: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let opened = match sys::open_at(parent, name, sys::DIR) {
        Err(Errno::ACCESS) => {
            // Nobody else writes here: the name is still the directory that could not be opened.
            fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            sys::open_at(parent, name, sys::DIR)
        }
        other => other,
    };
    let dir = match opened {
        Ok(dir) => dir,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error),
    };
    if sys::mode_of(&fs::fstat(&dir)?) & 0o700 != 0o700 {
        fs::fchmod(&dir, Mode::RWXU)?;
    }
    thaw(dir.as_fd());
    Ok(Some(dir))
}

fn remove_plain(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match ignore_missing(fs::unlinkat(dir, name, AtFlags::empty())) {
        Err(Errno::PERM) => {
            // Immutable or append-only files; directories give the same error on some file systems.
            let Some(stat) = sys::stat_at(dir, name)? else { return Ok(()) };
            if sys::file_type(&stat) != FileType::RegularFile {
                return Err(Errno::PERM);
            }
            thaw(sys::open_at(dir, name, sys::READ)?.as_fd());
            ignore_missing(fs::unlinkat(dir, name, AtFlags::empty()))
        }
        other => other,
    }
}

/// Takes the immutable and append-only flags away, where there are any and it is allowed.
fn thaw(file: BorrowedFd<'_>) {
    let frozen = IFlags::IMMUTABLE | IFlags::APPEND;
    if let Ok(flags) = fs::ioctl_getflags(file)
        && flags.intersects(frozen)
    {
        // What it does not allow shows when the file is removed.
        let _ = fs::ioctl_setflags(file, flags.difference(frozen));
    }
}

fn ignore_missing(result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::DIR;

    #[test]
    fn any_tree_goes_and_nothing_outside() {
        let base = tempfile::tempdir().unwrap();
        let top = sys::open_at(fs::CWD, base.path().as_os_str().as_encoded_bytes(), DIR).unwrap();
        std::fs::write(base.path().join("canary"), "x").unwrap();
        fs::mkdirat(&top, "t", Mode::RWXU).unwrap();
        let mut fd = sys::open_at(&top, b"t", DIR).unwrap();
        fs::symlinkat("../canary", &fd, "link").unwrap();
        fs::symlinkat("..", &fd, "up").unwrap();
        std::fs::write(base.path().join("t/frozen"), "x").unwrap();
        let frozen = sys::open_at(&fd, b"frozen", sys::READ).unwrap();
        let _ = fs::ioctl_setflags(&frozen, IFlags::IMMUTABLE);
        for _ in 0..3000 {
            fs::mkdirat(&fd, "dddddddddd", Mode::RWXU).unwrap();
            let next = sys::open_at(&fd, b"dddddddddd", DIR).unwrap();
            fs::mkdirat(&next, "shut", Mode::empty()).unwrap();
            fd = next;
        }
        remove_tree(&top, b"t").unwrap();
        remove_tree(&top, b"t").unwrap();
        let left: Vec<_> = sys::list(&top).unwrap();
        assert_eq!(left.len(), 1, "{left:?}");
        assert!(base.path().join("canary").exists());
    }
}
