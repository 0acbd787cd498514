//! Detached mounts: file systems that hang nowhere until somebody attaches them, and vanish with their last
//! descriptor.
#![expect(unsafe_code, reason = "children that need a mount namespace for a moment")]

use std::ffi::{CStr, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use crate::spawn::{Found, in_mount_namespace};
use crate::sys::{self, Errno, MountAttr, sys};

/// A new file system with options, before it is mounted.
pub(crate) struct Context(OwnedFd);

impl Context {
    pub(crate) fn new(kind: &str) -> io::Result<Self> {
        Ok(Self(rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?))
    }

    pub(crate) fn set(&self, key: &str, value: &str) -> io::Result<()> {
        Ok(rustix::mount::fsconfig_set_string(&self.0, key, value)?)
    }

    pub(crate) fn flag(&self, key: &str) -> io::Result<()> {
        Ok(rustix::mount::fsconfig_set_flag(&self.0, key)?)
    }

    /// The mount. On failure the error carries what the file system says about it.
    pub(crate) fn mount(&self, attrs: u64) -> io::Result<OwnedFd> {
        let attrs = MountAttrFlags::from_bits_retain(attrs as u32);
        rustix::mount::fsconfig_create(&self.0)
            .and_then(|()| rustix::mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, attrs))
            .map_err(|error| self.explain(error.into()))
    }

    /// Adds the messages of the kernel.
    pub(crate) fn explain(&self, error: io::Error) -> io::Error {
        let mut text = [0u8; 512];
        match rustix::io::read(&self.0, &mut text) {
            Ok(n) if n > 2 => {
                let said = String::from_utf8_lossy(text.get(2..n).unwrap_or_default()).trim().to_owned();
                io::Error::new(error.kind(), format!("{} ({said})", plain(&error)))
            }
            _ => error,
        }
    }
}

/// Words of an error without the number.
pub(crate) fn plain(error: &io::Error) -> String {
    error.raw_os_error().map_or_else(|| error.to_string(), sys::describe)
}

/// A new `tmpfs`. `size` 0 is the kernel's default.
pub(crate) fn tmpfs(size: u64, mode: u32, attrs: u64) -> io::Result<OwnedFd> {
    let context = Context::new("tmpfs")?;
    if size > 0 {
        context.set("size", &size.to_string())?;
    }
    context.set("mode", &format!("{mode:o}"))?;
    context.mount(attrs)
}

/// A new `tmpfs` that is never swapped out, where the kernel allows that.
pub(crate) fn unswapped_tmpfs() -> io::Result<OwnedFd> {
    let context = Context::new("tmpfs")?;
    context.set("mode", "700")?;
    // Kernels before 6.4 and user namespaces refuse it; it is then like any other memory.
    let _ = context.flag("noswap");
    context.mount(0)
}

/// Sets attributes of a mount, also of those below it if `recursive`.
pub(crate) fn set_attributes(mount: BorrowedFd<'_>, set: u64, recursive: bool) -> io::Result<()> {
    let attr = MountAttr { set, clear: 0, propagation: 0, userns: 0 };
    let flags = if recursive { sys::AT_RECURSIVE } else { 0 };
    sys::mount_setattr(mount.as_raw_fd(), c"", flags, &attr).map_err(io::Error::from_raw_os_error)
}

/// A detached mount of the directory or file that `at` is open at, which is attached in this mount namespace.
pub(crate) fn bind(at: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    bind_with(at, false)
}

/// The same, with what is mounted below if `recursive`.
pub(crate) fn bind_with(at: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(at, c"", flags)?)
}

/// A detached mount of what `at` is open at inside the detached mount `whole`.
pub(crate) fn bind_inside(whole: OwnedFd, at: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    match bind(at) {
        // Kernels before 6.15 copy attached mounts only.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => bind_attached(whole, at),
        other => other,
    }
}

/// Attaches `whole` in a mount namespace of its own for as long as it takes to copy from it.
pub(crate) fn bind_attached(whole: OwnedFd, at: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    struct Job {
        whole: RawFd,
        at: RawFd,
        found: Found,
    }
    extern "C" fn entry(arg: *const c_void) -> ! {
        // SAFETY: `arg` is the job below, whose owner waits.
        let job = unsafe { &*arg.cast::<Job>() };
        job.found.finish(attach_and_copy(job.whole, job.at))
    }
    fn attach_and_copy(whole: RawFd, at: RawFd) -> Result<RawFd, Errno> {
        make_private()?;
        let root = sys::open_path(libc::AT_FDCWD, c"/", libc::O_DIRECTORY)?;
        let copy = sys::move_mount(whole, root).and_then(|()| sys::open_tree(at, c"", 0));
        sys::close(root);
        copy
    }
    let job = Job { whole: whole.as_raw_fd(), at: at.as_raw_fd(), found: Found::new() };
    // SAFETY: `entry` only makes system calls and ends by `finish`; the job outlives the call.
    unsafe { in_mount_namespace(entry, (&raw const job).cast(), &job.found) }
}

/// Cuts this mount namespace off from the one it was copied from.
pub(crate) fn make_private() -> Result<(), Errno> {
    const MS_PRIVATE: u64 = 1 << 18;
    let attr = MountAttr { set: 0, clear: 0, propagation: MS_PRIVATE, userns: 0 };
    sys::mount_setattr(libc::AT_FDCWD, c"/", sys::AT_RECURSIVE, &attr)
}

/// Mounts an overlay the old way, for kernels whose new way takes no long lists: relative to `base`.
pub(crate) fn classic_overlay(base: &CStr, options: &CStr, attrs: u64) -> io::Result<OwnedFd> {
    struct Job<'a> {
        base: &'a CStr,
        options: &'a CStr,
        found: Found,
    }
    extern "C" fn entry(arg: *const c_void) -> ! {
        // SAFETY: `arg` is the job below, whose owner waits.
        let job = unsafe { &*arg.cast::<Job<'_>>() };
        let result = make_private().and_then(|()| {
            // SAFETY: all strings end with NUL and outlive the calls.
            unsafe {
                sys!(SYS_chdir, job.base.as_ptr())?;
                let kind = c"overlay".as_ptr();
                sys!(SYS_mount, kind, job.base.as_ptr(), kind, 0, job.options.as_ptr())?;
            }
            sys::open_tree(libc::AT_FDCWD, job.base, 0)
        });
        job.found.finish(result)
    }
    let job = Job { base, options, found: Found::new() };
    // SAFETY: `entry` only makes system calls and ends by `finish`; the job outlives the call.
    let mount = unsafe { in_mount_namespace(entry, (&raw const job).cast(), &job.found) }?;
    set_attributes(mount.as_fd(), attrs, false)?;
    Ok(mount)
}

/// Opens `path` as a place inside the tree at `root`: links are resolved in there, magic links and mounts below
/// are refused.
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &str) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let path = if path.is_empty() { "." } else { path };
    Ok(rustix::fs::openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?)
}

/// Makes a file with this content in a directory of ours; returns it as a place.
pub(crate) fn put_file(
    dir: BorrowedFd<'_>,
    name: &str,
    data: &[u8],
    mode: u32,
    owner: (u32, u32),
) -> io::Result<OwnedFd> {
    use std::io::Write;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(data)?;
    give(file.as_fd(), owner)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    place(dir, name)
}

/// Changes the owner unless it is root, who owns it already.
pub(crate) fn give(file: BorrowedFd<'_>, (uid, gid): (u32, u32)) -> io::Result<()> {
    if (uid, gid) == (0, 0) {
        return Ok(());
    }
    let (uid, gid) = owner(uid, gid);
    Ok(rustix::fs::fchown(file, uid, gid)?)
}

/// An owner as the kernel takes it: its highest id means "as it is".
pub(crate) fn owner(uid: u32, gid: u32) -> (Option<Uid>, Option<Gid>) {
    let set = |id: &u32| *id != u32::MAX;
    (Some(uid).filter(set).map(Uid::from_raw), Some(gid).filter(set).map(Gid::from_raw))
}

/// Opens `name` in a directory of ours as a place.
pub(crate) fn place(dir: BorrowedFd<'_>, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// What an open place is.
pub(crate) fn stat(at: BorrowedFd<'_>) -> io::Result<rustix::fs::Stat> {
    Ok(rustix::fs::statat(at, c"", AtFlags::EMPTY_PATH)?)
}
