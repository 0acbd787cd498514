//! System calls by hand: no `errno`, no thread-local storage, no allocation. They are what a child may use that
//! shares its parent's memory until it executes something else. Knows nothing of steps.
#![expect(
    unsafe_code,
    reason = "system calls are made in assembly, so that the child touches nothing of libc"
)]

use std::arch::asm;
use std::ffi::CStr;
use std::os::fd::RawFd;

/// A system call's error number.
pub(crate) type Errno = i32;

/// What the kernel said: a value, or an error number.
pub(crate) type SysResult = Result<usize, Errno>;

/// `mount_attr` of `mount_setattr`.
#[repr(C)]
pub(crate) struct MountAttr {
    pub(crate) set: u64,
    pub(crate) clear: u64,
    pub(crate) propagation: u64,
    pub(crate) userns: u64,
}

/// Attributes of mounts (`MOUNT_ATTR_*`).
pub(crate) mod attr {
    pub(crate) const RDONLY: u64 = 0x1;
    pub(crate) const NOSUID: u64 = 0x2;
    pub(crate) const NODEV: u64 = 0x4;
    pub(crate) const NOEXEC: u64 = 0x8;
    /// Nothing but reading: what the sandbox lends.
    pub(crate) const LENT: u64 = RDONLY | NOSUID | NODEV | NOEXEC;
}

pub(crate) const AT_EMPTY_PATH: usize = 0x1000;
pub(crate) const AT_RECURSIVE: usize = 0x8000;
pub(crate) const OPEN_TREE_CLONE: usize = 1;
pub(crate) const CLOEXEC: usize = 0o2000000;
const MOVE_MOUNT_EMPTY_PATHS: usize = 0x4 | 0x40;
const FSCONFIG_CMD_CREATE: usize = 6;

/// Makes a system call.
///
/// # Safety
/// As the call itself: pointers must be what the kernel expects.
#[cfg(target_arch = "x86_64")]
pub(crate) unsafe fn call(nr: libc::c_long, args: [usize; 6]) -> SysResult {
    let [a, b, c, d, e, f] = args;
    let mut result = nr as isize;
    // SAFETY: the calling convention of the kernel: it changes rax, rcx and r11 only.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e,
            in("r9") f, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    decode(result)
}

/// Makes a system call.
///
/// # Safety
/// As the call itself: pointers must be what the kernel expects.
#[cfg(target_arch = "aarch64")]
pub(crate) unsafe fn call(nr: libc::c_long, args: [usize; 6]) -> SysResult {
    let [a, b, c, d, e, f] = args;
    let mut result = a as isize;
    // SAFETY: the calling convention of the kernel: it changes x0 only.
    unsafe {
        asm!("svc 0", in("x8") nr, inlateout("x0") result, in("x1") b, in("x2") c, in("x3") d, in("x4") e,
            in("x5") f, options(nostack));
    }
    decode(result)
}

fn decode(result: isize) -> SysResult {
    if (-4095..0).contains(&result) { Err(-result as Errno) } else { Ok(result as usize) }
}

/// Registers that a call does not use are zero.
pub(crate) fn registers<const N: usize>(args: [usize; N]) -> [usize; 6] {
    let mut out = [0; 6];
    for (slot, arg) in out.iter_mut().zip(args) {
        *slot = arg;
    }
    out
}

/// Calls with fewer arguments, each cast to a register.
macro_rules! sys {
    ($nr:ident $(, $arg:expr)* $(,)?) => {
        $crate::sys::call(libc::$nr, $crate::sys::registers([$($arg as usize),*]))
    };
}
pub(crate) use sys;

/// A descriptor out of a result.
fn fd(result: SysResult) -> Result<RawFd, Errno> {
    result.map(|value| value as RawFd)
}

/// Leaves, without any clean-up of the memory that is shared.
pub(crate) fn exit(code: i32) -> ! {
    loop {
        // SAFETY: takes no pointers.
        let _ = unsafe { sys!(SYS_exit_group, code) };
    }
}

pub(crate) fn close(fd: RawFd) {
    // SAFETY: takes no pointers; the caller owns the number.
    let _ = unsafe { sys!(SYS_close, fd) };
}

/// `openat(dir, path, O_PATH | O_NOFOLLOW | O_CLOEXEC | flags)`
pub(crate) fn open_path(dir: RawFd, path: &CStr, flags: i32) -> Result<RawFd, Errno> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC | flags;
    // SAFETY: the path ends with NUL.
    fd(unsafe { sys!(SYS_openat, dir, path.as_ptr(), flags, 0) })
}

/// Opens something inside the directory without magic links and without leaving it.
pub(crate) fn open_beneath(dir: RawFd, path: &CStr, flags: i32) -> Result<RawFd, Errno> {
    const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
    const RESOLVE_IN_ROOT: u64 = 0x10;
    let how = [(flags | libc::O_CLOEXEC) as u64, 0, RESOLVE_NO_MAGICLINKS | RESOLVE_IN_ROOT];
    // SAFETY: the path ends with NUL; `how` is `struct open_how`.
    fd(unsafe { sys!(SYS_openat2, dir, path.as_ptr(), how.as_ptr(), size_of_val(&how)) })
}

/// A detached copy of the mount at `path` below `dir`, or of `dir` itself when the path is empty.
pub(crate) fn open_tree(dir: RawFd, path: &CStr, flags: usize) -> Result<RawFd, Errno> {
    let flags = OPEN_TREE_CLONE | CLOEXEC | flags | if path.is_empty() { AT_EMPTY_PATH } else { 0 };
    // SAFETY: the path ends with NUL.
    fd(unsafe { sys!(SYS_open_tree, dir, path.as_ptr(), flags) })
}

/// Attaches the detached mount `from` at what `to` is open at.
pub(crate) fn move_mount(from: RawFd, to: RawFd) -> Result<(), Errno> {
    let empty = c"".as_ptr();
    // SAFETY: both paths are empty.
    unsafe { sys!(SYS_move_mount, from, empty, to, empty, MOVE_MOUNT_EMPTY_PATHS) }.map(drop)
}

/// Sets and clears attributes of a mount.
pub(crate) fn mount_setattr(fd: RawFd, path: &CStr, flags: usize, attr: &MountAttr) -> Result<(), Errno> {
    let flags = flags | if path.is_empty() { AT_EMPTY_PATH } else { 0 };
    // SAFETY: path and structure outlive the call.
    unsafe {
        sys!(SYS_mount_setattr, fd, path.as_ptr(), flags, std::ptr::from_ref(attr), size_of::<MountAttr>())
    }
    .map(drop)
}

/// A new file system of this type without options, as a detached mount.
pub(crate) fn new_mount(kind: &CStr, attrs: u64) -> Result<RawFd, Errno> {
    // SAFETY: the name ends with NUL; the other calls take no pointers but null.
    unsafe {
        let context = sys!(SYS_fsopen, kind.as_ptr(), 1)?;
        let made = sys!(SYS_fsconfig, context, FSCONFIG_CMD_CREATE, 0, 0, 0)
            .and_then(|_| sys!(SYS_fsmount, context, 1, attrs));
        close(context as RawFd);
        fd(made)
    }
}

/// The words for an error number.
pub(crate) fn describe(errno: Errno) -> String {
    let text = std::io::Error::from_raw_os_error(errno).to_string();
    match text.find(" (os error") {
        Some(end) => text.get(..end).unwrap_or_default().to_lowercase(),
        None => text,
    }
}
