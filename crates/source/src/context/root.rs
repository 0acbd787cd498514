//! A directory whose inside can be opened without ever leaving it: every path is resolved by the kernel beneath the
//! directory and without following a link, so a process that swaps entries for links meanwhile gains nothing.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::Xattrs;
use rustix::fs::{Mode, OFlags, ResolveFlags, fgetxattr, flistxattr, open, openat, openat2, readlinkat};
use rustix::io::Errno;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Not blocking: a file may be swapped for a pipe.
const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
const MAX_XATTRS: usize = 64 << 10;

/// An open directory.
pub(crate) struct Root {
    fd: OwnedFd,
    path: PathBuf,
    /// The kernel (or a filter before it) has no `openat2`.
    old_kernel: AtomicBool,
}

impl Root {
    /// Opens a directory; links on the way to it are followed.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let path =
            std::fs::canonicalize(path).map_err(|error| PortError::io("open the directory", path, error))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(&path, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR => {
                PortError::new(ErrorKind::NotFound, format!("{} is not a directory", path.display()))
            }
            error => PortError::io("open the directory", &path, error),
        })?;
        Ok(Self { fd, path, old_kernel: AtomicBool::new(false) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// For messages.
    pub(crate) fn join(&self, path: &[u8]) -> PathBuf {
        self.path.join(OsStr::from_bytes(path))
    }

    /// Opens the directory at `path`; empty is the root.
    pub(crate) fn open_dir(&self, path: &[u8]) -> io::Result<OwnedFd> {
        if path.is_empty() {
            return Ok(openat(&self.fd, ".", DIRECTORY, Mode::empty())?);
        }
        self.open_at(path, DIRECTORY)
    }

    /// Opens the file at `path` for reading.
    pub(crate) fn open_file(&self, path: &[u8]) -> io::Result<OwnedFd> {
        self.open_at(path, FILE)
    }

    /// The target of the link at `path`; `None` when it is no link.
    pub(crate) fn read_link(&self, path: &[u8]) -> io::Result<Option<Vec<u8>>> {
        let (parent, name) = split(path);
        match self.open_dir(parent) {
            Ok(dir) => link_target(dir.as_fd(), name),
            Err(error) if is_gone(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_at(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        if !self.old_kernel.load(Ordering::Relaxed) {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            for _ in 0..16 {
                match openat2(&self.fd, path, flags, Mode::empty(), resolve) {
                    Ok(fd) => return Ok(fd),
                    // A rename elsewhere was in the way.
                    Err(Errno::AGAIN) => {}
                    Err(Errno::NOSYS | Errno::PERM) => {
                        self.old_kernel.store(true, Ordering::Relaxed);
                        break;
                    }
                    Err(Errno::NAMETOOLONG) => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        self.open_by_steps(path, flags)
    }

    /// The same, one component after the other.
    fn open_by_steps(&self, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
        let mut components = path.split(|c| *c == b'/').peekable();
        let mut dir: Option<OwnedFd> = None;
        while let Some(component) = components.next() {
            if matches!(component, b"" | b"." | b"..") {
                return Err(Errno::INVAL.into());
            }
            let at = dir.as_ref().map_or(self.fd.as_fd(), OwnedFd::as_fd);
            let flags = if components.peek().is_some() { DIRECTORY } else { flags };
            dir = Some(openat(at, component, flags, Mode::empty())?);
        }
        dir.ok_or_else(|| Errno::INVAL.into())
    }
}

/// Directory and name of a path.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
}

/// Whether an error says that there is nothing at a path (any more).
pub(crate) fn is_gone(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::NOENT, Errno::NOTDIR, Errno::LOOP].iter().any(|gone| code == Some(gone.raw_os_error()))
}

/// Opens `name` in `dir` for reading, not through a link.
pub(crate) fn open_file_in(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    Ok(openat(dir, name, FILE, Mode::empty())?)
}

/// The target of the link `name`; `None` when it is no link or not there.
pub(crate) fn link_target(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    match readlinkat(dir, name, Vec::with_capacity(256)) {
        Ok(target) => Ok(Some(target.into_bytes())),
        Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The extended attributes that go with a file into an image. Those that describe this machine stay behind.
pub(crate) fn read_xattrs(fd: BorrowedFd<'_>) -> Xattrs {
    let mut out = Xattrs::new();
    let mut names = [0_u8; 1024];
    let names = match flistxattr(fd, &mut names) {
        Ok(0) => return out,
        Ok(n) => names[..n].to_vec(),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; MAX_XATTRS];
            let n = flistxattr(fd, large.as_mut_slice()).unwrap_or(0);
            large.truncate(n);
            large
        }
        Err(_) => return out,
    };
    for name in names.split(|c| *c == 0).filter(|name| goes_along(name)) {
        let mut value = vec![0_u8; MAX_XATTRS];
        if let Ok(n) = fgetxattr(fd, name, value.as_mut_slice()) {
            value.truncate(n);
            out.insert(name.to_vec(), value);
        }
    }
    out
}

fn goes_along(name: &[u8]) -> bool {
    let foreign = [&b"com.apple."[..], b"trusted.overlay.", b"user.overlay.", b"system.nfs4_"];
    if name.is_empty() || foreign.iter().any(|prefix| name.starts_with(prefix)) {
        return false;
    }
    name == b"security.capability" || !name.starts_with(b"security.")
}
