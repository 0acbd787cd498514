//! System calls on directory descriptors: opening without following links, extended attributes, times. Nothing
//! here takes a path that could lead out of the directory it is given.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rbuild_tree::{RelPath, Time, Xattrs};
use rustix::fs::{
    self, AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

/// For directories that are read or written in.
pub(crate) const DIR: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// For files that are read: never waits, never follows.
pub(crate) const READ: OFlags = OFlags::RDONLY
    .union(OFlags::NOFOLLOW)
    .union(OFlags::NONBLOCK)
    .union(OFlags::CLOEXEC)
    .union(OFlags::NOCTTY);

/// The kernel takes paths shorter than 4096 bytes; longer ones are walked in pieces.
const PIECE: usize = 3500;

/// Opens the entry `name` of `dir`.
pub(crate) fn open_at(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    retry(|| fs::openat(dir.as_fd(), name, flags, Mode::empty()))
}

/// Opens `path` below `root` without following any link on the way or at its end. Paths of any length.
pub(crate) fn open_beneath(root: impl AsFd, path: &RelPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let bytes = path.as_bytes();
    if bytes.is_empty() {
        return open_at(root, b".", flags);
    }
    if bytes.len() <= PIECE {
        return open_piece(root.as_fd(), bytes, flags);
    }
    let mut dir: Option<OwnedFd> = None;
    let mut rest = bytes;
    while rest.len() > PIECE {
        let head = rest.get(..PIECE).unwrap_or(rest);
        let cut = head.iter().rposition(|c| *c == b'/').ok_or(Errno::NAMETOOLONG)?;
        let (piece, tail) = rest.split_at(cut);
        let from = dir.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        dir = Some(open_piece(
            from,
            piece,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        )?);
        rest = tail.get(1..).unwrap_or_default();
    }
    let from = dir.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    open_piece(from, rest, flags)
}

fn open_piece(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    const STAY: ResolveFlags =
        ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
    match retry(|| fs::openat2(dir, path, flags, Mode::empty(), STAY)) {
        Err(Errno::NOSYS) => open_steps(dir, path, flags),
        other => other,
    }
}

/// For kernels and filters without `openat2`: one component at a time.
fn open_steps(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut current: Option<OwnedFd> = None;
    let mut components = path.split(|c| *c == b'/').peekable();
    while let Some(component) = components.next() {
        let from = current.as_ref().map_or(dir, AsFd::as_fd);
        let how = if components.peek().is_some() {
            OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC
        } else {
            flags
        };
        current = Some(open_at(from, component, how)?);
    }
    current.ok_or(Errno::NOENT)
}

/// Repeats a call that a signal interrupted.
pub(crate) fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// What `name` in `dir` is; `None` if it is not there. Links are not followed.
pub(crate) fn stat_at(dir: impl AsFd, name: &[u8]) -> Result<Option<Stat>, Errno> {
    match fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The type of a file that was looked at.
pub(crate) fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// An overlay whiteout: a character device 0:0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    file_type(stat) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Permission, setuid, setgid and sticky bits.
pub(crate) fn mode_of(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

/// The time of the last change of content.
pub(crate) fn mtime_of(stat: &Stat) -> Time {
    Time { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

/// An owner as the kernel takes it: its highest id means "as it is".
pub(crate) fn owner(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    let set = |id: &u32| *id != u32::MAX;
    (Some(uid).filter(set).map(Uid::from_raw), Some(gid).filter(set).map(Gid::from_raw))
}

/// The same time twice, as the kernel wants it.
pub(crate) fn both(time: Time) -> Timestamps {
    let spec = Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) };
    Timestamps { last_access: spec, last_modification: spec }
}

/// The names in an open directory with their types, sorted by bytes. Moves the descriptor's position: it must not
/// be listed by two threads at once.
pub(crate) fn list(dir: impl AsFd) -> Result<Vec<(Vec<u8>, FileType)>, Errno> {
    let dir = dir.as_fd();
    let mut buffer: Vec<u8> = Vec::with_capacity(32 * 1024);
    let mut out = Vec::new();
    fs::seek(dir, fs::SeekFrom::Start(0))?;
    let mut reader = fs::RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = reader.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                match stat_at(dir, name)? {
                    Some(stat) => kind = file_type(&stat),
                    None => continue,
                }
            }
            out.push((name.to_vec(), kind));
        }
    }
    out.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    Ok(out)
}

/// Reads a link's target.
pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>, Errno> {
    Ok(fs::readlinkat(dir, name, Vec::with_capacity(128))?.into_bytes())
}

/// Where extended attributes are read from and written to.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// An open file or directory.
    Fd(BorrowedFd<'a>),
    /// An entry of a directory, which is not opened (links and devices cannot be).
    At(BorrowedFd<'a>, &'a [u8]),
}

impl Place<'_> {
    /// The names of all attributes; none where the file system has no attributes.
    fn names(self) -> Result<Vec<Vec<u8>>, Errno> {
        let mut small = [0u8; 512];
        let mut large = Vec::new();
        let mut result = self.list_into(&mut small);
        let mut data: &[u8] = &small;
        let mut size = 64 * 1024;
        while result == Err(Errno::RANGE) && size <= 1 << 20 {
            large.resize(size, 0);
            result = self.list_into(&mut large);
            data = &large;
            size *= 4;
        }
        match result {
            Ok(length) => Ok(data
                .get(..length)
                .unwrap_or_default()
                .split(|c| *c == 0)
                .filter(|name| !name.is_empty())
                .map(<[u8]>::to_vec)
                .collect()),
            Err(Errno::NOTSUP | Errno::PERM) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }

    fn list_into(self, buffer: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::Fd(fd) => fs::flistxattr(fd, buffer),
            Self::At(dir, name) => fs::llistxattr(proc_path(dir, name).as_slice(), buffer),
        }
    }

    /// One attribute; `None` if it is not there.
    pub(crate) fn get(self, name: &[u8]) -> Result<Option<Vec<u8>>, Errno> {
        let mut value = vec![0u8; 256];
        loop {
            let result = match self {
                Self::Fd(fd) => fs::fgetxattr(fd, name, value.as_mut_slice()),
                Self::At(dir, entry) => {
                    fs::lgetxattr(proc_path(dir, entry).as_slice(), name, value.as_mut_slice())
                }
            };
            match result {
                Ok(length) => {
                    value.truncate(length);
                    return Ok(Some(value));
                }
                Err(Errno::RANGE) if value.len() < 1 << 20 => value.resize(value.len() * 16, 0),
                Err(Errno::NODATA | Errno::NOTSUP | Errno::PERM) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets one attribute.
    pub(crate) fn set(self, name: &[u8], value: &[u8]) -> Result<(), Errno> {
        match self {
            Self::Fd(fd) => fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::At(dir, entry) => {
                fs::lsetxattr(proc_path(dir, entry).as_slice(), name, value, XattrFlags::empty())
            }
        }
    }

    /// Removes one attribute; one that is not there is no error.
    pub(crate) fn remove(self, name: &[u8]) -> Result<(), Errno> {
        let result = match self {
            Self::Fd(fd) => fs::fremovexattr(fd, name),
            Self::At(dir, entry) => fs::lremovexattr(proc_path(dir, entry).as_slice(), name),
        };
        match result {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        }
    }

    /// All attributes whose name `keep` takes.
    pub(crate) fn read(self, keep: fn(&[u8]) -> bool) -> Result<Xattrs, Errno> {
        let mut out = Xattrs::new();
        for name in self.names()? {
            if keep(&name)
                && let Some(value) = self.get(&name)?
            {
                out.insert(name, value);
            }
        }
        Ok(out)
    }
}

/// A path to `name` in the open directory `dir`. The part before the name is a magic link to the open directory
/// itself, and calls that do not follow links stop at the name.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd;
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Attributes that belong to the file and not to the overlay or to a security module.
pub(crate) fn is_visible(name: &[u8]) -> bool {
    if name.starts_with(b"security.") {
        return name == b"security.capability";
    }
    !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay.")
}

/// Attributes that go into layers and come out of them.
pub(crate) fn is_portable(name: &[u8]) -> bool {
    is_visible(name)
        && (name.starts_with(b"user.")
            || name == b"security.capability"
            || name == b"system.posix_acl_access"
            || name == b"system.posix_acl_default")
}

/// Sixteen random bytes.
pub(crate) fn random() -> io::Result<[u8; 16]> {
    use std::io::Read;
    let mut out = [0; 16];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut out)?;
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_and_security_attributes_are_not_portable() {
        for (name, visible, portable) in [
            ("user.a", true, true),
            ("security.capability", true, true),
            ("system.posix_acl_access", true, true),
            ("security.selinux", false, false),
            ("trusted.overlay.opaque", false, false),
            ("user.overlay.redirect", false, false),
            ("trusted.x", true, false),
        ] {
            assert_eq!(
                (is_visible(name.as_bytes()), is_portable(name.as_bytes())),
                (visible, portable),
                "{name}"
            );
        }
    }

    #[test]
    fn long_paths_open_in_pieces_and_links_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = open_at(rustix::fs::CWD, dir.path().as_os_str().as_encoded_bytes(), DIR).unwrap();
        let name = "n".repeat(200);
        let mut path = RelPath::root();
        let mut fd = open_at(&root, b".", DIR).unwrap();
        for _ in 0..40 {
            fs::mkdirat(&fd, name.as_str(), Mode::RWXU).unwrap();
            fd = open_at(&fd, name.as_bytes(), DIR).unwrap();
            path = path.child(&name).unwrap();
        }
        assert!(path.as_bytes().len() > 8000);
        let there = open_beneath(&root, &path, DIR).unwrap();
        assert_eq!(fs::fstat(&there).unwrap().st_ino, fs::fstat(&fd).unwrap().st_ino);
        fs::symlinkat("/", &root, "out").unwrap();
        for path in ["out", "out/etc"] {
            let path = RelPath::parse(path).unwrap();
            assert!(open_beneath(&root, &path, DIR).is_err());
            assert!(open_steps(root.as_fd(), path.as_bytes(), DIR).is_err());
        }
        crate::remove::remove_tree(&root, name.as_bytes()).unwrap();
    }
}
