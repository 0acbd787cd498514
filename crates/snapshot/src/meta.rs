//! What a file has besides its content, and the hand that makes files, directories, links and nodes in a layer
//! directory with it: as few calls as the case allows, owner before mode before capabilities before time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbuild_tree::{Entry, Kind, RelPath, Time, Xattrs};
use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::sys::{self, Place};

/// Mode, owner, time and attributes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Xattrs,
}

impl Meta {
    /// A directory of root's that nobody described.
    pub(crate) fn default_dir() -> Self {
        Self { mode: 0o755, uid: 0, gid: 0, mtime: Time::default(), xattrs: Xattrs::new() }
    }

    pub(crate) fn of_entry(entry: &Entry) -> Self {
        Self {
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.clone(),
        }
    }

    /// The entry at `path` with it.
    pub(crate) fn into_entry(self, path: RelPath, kind: Kind) -> Entry {
        let Self { mode, uid, gid, mtime, xattrs } = self;
        Entry { path, kind, mode, uid, gid, mtime, xattrs }
    }

    /// Of something that was looked at; attributes are read from `place`.
    pub(crate) fn read(stat: &Stat, place: Place<'_>) -> Result<Self, Errno> {
        Ok(Self {
            mode: sys::mode_of(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: sys::mtime_of(stat),
            xattrs: place.read(sys::is_visible)?,
        })
    }
}

/// Makes things in layer directories.
#[derive(Clone, Debug)]
pub(crate) struct Maker {
    uid: u32,
    gid: u32,
    umask: u32,
    /// Owners that this user namespace does not have become the own one.
    squash: bool,
    /// In a user namespace: devices and some attributes cannot be made.
    pub(crate) userns: bool,
}

impl Maker {
    pub(crate) fn new(userns: bool, squash: bool) -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            umask: umask(),
            squash,
            userns,
        }
    }

    /// The attribute that makes a directory opaque.
    pub(crate) fn opaque_name(&self) -> &'static [u8] {
        if self.userns { b"user.overlay.opaque" } else { b"trusted.overlay.opaque" }
    }

    /// Whether an open directory hides what is below it in lower layers.
    pub(crate) fn is_opaque(&self, dir: impl AsFd) -> Result<bool, Errno> {
        Ok(Place::Fd(dir.as_fd()).get(self.opaque_name())?.as_deref() == Some(b"y"))
    }

    /// A new regular file for writing; fails where there is something already.
    pub(crate) fn file(&self, dir: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        sys::retry(|| fs::openat(dir.as_fd(), name, flags, Mode::from_raw_mode(mode & 0o777)))
    }

    /// Gives a file its metadata after its content was written.
    pub(crate) fn finish_file(&self, file: impl AsFd, meta: &Meta) -> Result<(), Errno> {
        let file = file.as_fd();
        if self.must_chown(meta) {
            let (uid, gid) = sys::owner(meta.uid, meta.gid);
            self.tolerate(fs::fchown(file, uid, gid))?;
        }
        if meta.mode & (0o7000 | self.umask) != 0 {
            fs::fchmod(file, Mode::from_raw_mode(meta.mode))?;
        }
        self.xattrs(Place::Fd(file), meta)?;
        fs::futimens(file, &sys::both(meta.mtime))
    }

    /// A new directory, usable by the owner; its metadata follows with `finish_dir`.
    pub(crate) fn dir(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        fs::mkdirat(dir, name, Mode::RWXU)
    }

    /// Gives a directory its metadata after everything in it was made.
    pub(crate) fn finish_dir(&self, dir: impl AsFd, meta: &Meta, opaque: bool) -> Result<(), Errno> {
        let dir = dir.as_fd();
        if opaque {
            Place::Fd(dir).set(self.opaque_name(), b"y")?;
        }
        if self.must_chown(meta) {
            let (uid, gid) = sys::owner(meta.uid, meta.gid);
            self.tolerate(fs::fchown(dir, uid, gid))?;
        }
        fs::fchmod(dir, Mode::from_raw_mode(meta.mode))?;
        self.xattrs(Place::Fd(dir), meta)?;
        fs::futimens(dir, &sys::both(meta.mtime))
    }

    /// A new symbolic link.
    pub(crate) fn symlink(
        &self,
        dir: impl AsFd,
        name: &[u8],
        target: &[u8],
        meta: &Meta,
    ) -> Result<(), Errno> {
        fs::symlinkat(target, dir.as_fd(), name)?;
        self.finish_at(dir.as_fd(), name, meta)
    }

    /// A new device or pipe. False where a user namespace may not make it.
    pub(crate) fn node(&self, dir: impl AsFd, name: &[u8], kind: &Kind, meta: &Meta) -> Result<bool, Errno> {
        let (file_type, dev) = match kind {
            Kind::CharDevice { major, minor } => (FileType::CharacterDevice, fs::makedev(*major, *minor)),
            Kind::BlockDevice { major, minor } => (FileType::BlockDevice, fs::makedev(*major, *minor)),
            _ => (FileType::Fifo, 0),
        };
        match fs::mknodat(dir.as_fd(), name, file_type, Mode::from_raw_mode(meta.mode & 0o777), dev) {
            Err(Errno::PERM) if self.userns && file_type != FileType::Fifo => return Ok(false),
            other => other?,
        }
        if self.must_chown(meta) {
            self.chown_at(dir.as_fd(), name, meta)?;
        }
        if meta.mode & (0o7000 | self.umask) != 0 {
            // The node was made just now in a directory that only this process writes: it is no link.
            fs::chmodat(dir.as_fd(), name, Mode::from_raw_mode(meta.mode), AtFlags::empty())?;
        }
        self.xattrs(Place::At(dir.as_fd(), name), meta)?;
        fs::utimensat(dir.as_fd(), name, &sys::both(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(true)
    }

    /// Hides `name` of the layers below.
    pub(crate) fn whiteout(&self, dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
        fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0)
    }

    fn finish_at(&self, dir: BorrowedFd<'_>, name: &[u8], meta: &Meta) -> Result<(), Errno> {
        if self.must_chown(meta) {
            self.chown_at(dir, name, meta)?;
        }
        self.xattrs(Place::At(dir, name), meta)?;
        fs::utimensat(dir, name, &sys::both(meta.mtime), AtFlags::SYMLINK_NOFOLLOW)
    }

    fn must_chown(&self, meta: &Meta) -> bool {
        (meta.uid, meta.gid) != (self.uid, self.gid)
    }

    fn chown_at(&self, dir: BorrowedFd<'_>, name: &[u8], meta: &Meta) -> Result<(), Errno> {
        let (uid, gid) = sys::owner(meta.uid, meta.gid);
        self.tolerate(fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW))
    }

    fn tolerate(&self, result: Result<(), Errno>) -> Result<(), Errno> {
        match result {
            Err(Errno::PERM | Errno::INVAL) if self.squash => Ok(()),
            other => other,
        }
    }

    fn xattrs(&self, place: Place<'_>, meta: &Meta) -> Result<(), Errno> {
        for (name, value) in &meta.xattrs {
            match place.set(name, value) {
                // File systems without attributes, and attributes that this kind of file or this user cannot have.
                Ok(()) | Err(Errno::NOTSUP | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// This process's file mode mask. Reading it by setting it would race with other threads.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let value = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    value.and_then(|text| u32::from_str_radix(text.trim(), 8).ok()).unwrap_or(0o777)
}

/// An error that says what was done to which path of a layer.
pub(crate) fn failed(what: &str, path: &RelPath, error: impl Into<io::Error>) -> rbuild_ports::PortError {
    use std::os::unix::ffi::OsStringExt;
    rbuild_ports::PortError::io(what, std::ffi::OsString::from_vec(path.absolute()), error)
}
