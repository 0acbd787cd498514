//! Digests of files where they lie, and whether a file stayed the same while it was read.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rbuild_digest::Digest;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_tree::{Entry, Kind, RelPath, Xattrs, entry_hasher};
use rustix::fs::fstat;
use rustix::io::{Errno, read};

use super::root::read_xattrs;
use super::stat::Stat;

const BUFFER: usize = 256 << 10;
/// A file that changes under every reading is given up on.
const ATTEMPTS: usize = 3;

thread_local! {
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What reading a file brought.
pub(crate) struct Hashed {
    digest: std::result::Result<Digest, (ErrorKind, String)>,
    pub(crate) xattrs: FileXattrs,
    /// It was computed now.
    pub(crate) fresh: bool,
}

/// Extended attributes of a file.
pub(crate) enum FileXattrs {
    None,
    Known(Box<Xattrs>),
    /// It has some; they were not read.
    Some,
}

impl Hashed {
    pub(crate) fn remembered(digest: Digest, has_xattrs: bool) -> Self {
        let xattrs = if has_xattrs { FileXattrs::Some } else { FileXattrs::None };
        Self { digest: Ok(digest), xattrs, fresh: false }
    }

    /// It is no longer what it was when the walk saw it.
    pub(crate) fn changed(path: &Path) -> Self {
        let message = format!("{} changed during the build", path.display());
        Self { digest: Err((ErrorKind::Invalid, message)), xattrs: FileXattrs::None, fresh: true }
    }

    pub(crate) fn digest(&self) -> Result<Digest> {
        self.digest.as_ref().copied().map_err(|(kind, message)| PortError::new(*kind, message.clone()))
    }

    pub(crate) fn is_ok(&self) -> bool {
        self.digest.is_ok()
    }
}

/// Reads and hashes a regular file. `stat` is what was known of it, and becomes what it was when it was read.
pub(crate) fn hash_node(
    path: &Path,
    stat: &mut Stat,
    open: impl Fn() -> io::Result<OwnedFd>,
    cancel: &CancelToken,
) -> Hashed {
    match try_hash(stat, open, cancel) {
        Ok(hashed) => hashed,
        Err(error) => {
            let error = PortError::io("read", path, error);
            Hashed { digest: Err((error.kind, error.message)), xattrs: FileXattrs::None, fresh: true }
        }
    }
}

fn try_hash(
    stat: &mut Stat,
    open: impl Fn() -> io::Result<OwnedFd>,
    cancel: &CancelToken,
) -> io::Result<Hashed> {
    let mut attempt = 1;
    loop {
        let fd = open()?;
        let xattrs = read_xattrs(fd.as_fd());
        let digest =
            READ_BUFFER.with_borrow_mut(|buffer| hash_content(&fd, stat, &xattrs, buffer, cancel))?;
        let after = Stat::new(&fstat(&fd)?);
        if after == *stat || attempt == ATTEMPTS {
            *stat = after;
            let xattrs =
                if xattrs.is_empty() { FileXattrs::None } else { FileXattrs::Known(Box::new(xattrs)) };
            return Ok(Hashed { digest: Ok(digest), xattrs, fresh: true });
        }
        if !after.is_file() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "it is no longer a regular file"));
        }
        *stat = after;
        attempt += 1;
    }
}

/// The digest of the file's metadata and of as much content as its size says.
fn hash_content(
    fd: &OwnedFd,
    stat: &Stat,
    xattrs: &Xattrs,
    buffer: &mut Vec<u8>,
    cancel: &CancelToken,
) -> io::Result<Digest> {
    buffer.resize(BUFFER, 0);
    let mut entry = Entry::new(RelPath::root(), Kind::File { size: stat.size }, stat.mode & 0o7777);
    entry.xattrs.clone_from(xattrs);
    let mut hasher = entry_hasher(&entry);
    let mut left = stat.size;
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(BUFFER).min(BUFFER);
        match read(fd, &mut buffer[..most]) {
            // Shorter than it was: the caller sees it by its size.
            Ok(0) => break,
            Ok(n) => {
                hasher.update(&buffer[..n]);
                left -= n as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if cancel.is_cancelled() {
            return Err(io::Error::new(io::ErrorKind::Interrupted, "cancelled"));
        }
    }
    Ok(hasher.finish())
}
