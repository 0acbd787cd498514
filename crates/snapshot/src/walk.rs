//! Walking a layer directory in a layer's order: a directory before what is in it, names by bytes. Any depth with
//! few descriptors and without recursion; nothing is followed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::vec::IntoIter;

use rbuild_ports::{PortError, Result};
use rbuild_tree::RelPath;
use rustix::fs::{FileType, OFlags};

use crate::meta::failed;
use crate::sys;

/// So many levels keep their descriptor; deeper ones come back through `..`.
const KEPT: usize = 48;

/// One entry on the way.
pub(crate) struct Step<'a> {
    /// The directory it is in.
    pub(crate) dir: BorrowedFd<'a>,
    /// Its name there.
    pub(crate) name: &'a [u8],
    /// Its path from the root of the walk.
    pub(crate) path: &'a RelPath,
    /// What the directory says it is.
    pub(crate) kind: FileType,
    /// The open directory, if it is one.
    pub(crate) opened: Option<BorrowedFd<'a>>,
}

struct Level {
    names: IntoIter<(Vec<u8>, FileType)>,
    path: RelPath,
    fd: Option<OwnedFd>,
}

/// Visits everything below `root`, which must be a descriptor of its own (it is listed).
pub(crate) fn walk(root: OwnedFd, visit: &mut dyn FnMut(Step<'_>) -> Result<()>) -> Result<()> {
    let names = list(&root, &RelPath::root())?;
    let mut stack = vec![Level { names, path: RelPath::root(), fd: Some(root) }];
    while let Some(level) = stack.last_mut() {
        let Some(fd) = &level.fd else { return Err(lost(&level.path)) };
        let Some((name, kind)) = level.names.next() else {
            ascend(&mut stack)?;
            continue;
        };
        let path = level.path.child(&name).map_err(|_| lost(&level.path))?;
        if kind != FileType::Directory {
            visit(Step { dir: fd.as_fd(), name: &name, path: &path, kind, opened: None })?;
            continue;
        }
        let child = sys::open_at(fd, &name, sys::DIR).map_err(|e| failed("open", &path, e))?;
        visit(Step { dir: fd.as_fd(), name: &name, path: &path, kind, opened: Some(child.as_fd()) })?;
        let names = list(&child, &path)?;
        stack.push(Level { names, path, fd: Some(child) });
        let deep = stack.len().checked_sub(2).filter(|index| *index >= KEPT);
        if let Some(parent) = deep.and_then(|index| stack.get_mut(index)) {
            parent.fd = None;
        }
    }
    Ok(())
}

fn ascend(stack: &mut Vec<Level>) -> Result<()> {
    let Some(done) = stack.pop() else { return Ok(()) };
    if let (Some(parent), Some(fd)) = (stack.last_mut(), done.fd)
        && parent.fd.is_none()
    {
        // The tree does not change while it is walked: the parent is the directory this one was opened in.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        parent.fd = Some(sys::open_at(&fd, b"..", flags).map_err(|e| failed("open", &parent.path, e))?);
    }
    Ok(())
}

fn list(dir: &OwnedFd, path: &RelPath) -> Result<IntoIter<(Vec<u8>, FileType)>> {
    Ok(sys::list(dir).map_err(|e| failed("list", path, e))?.into_iter())
}

fn lost(path: &RelPath) -> PortError {
    PortError::new(rbuild_ports::ErrorKind::Internal, format!("lost the way while reading {path}"))
}
