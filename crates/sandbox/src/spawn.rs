//! Making children that share memory with their parent: nothing is copied however large the process is, and what
//! a child finds out is simply there for the parent to read. Children run on stacks of their own and make system
//! calls through `sys` only.
#![expect(unsafe_code, reason = "clone3 has no safe form")]

use std::arch::asm;
use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};

use crate::sys::{self, Errno, sys};

/// What a child executes; it never returns.
pub(crate) type Entry = extern "C" fn(*const c_void) -> !;

/// Flags of `clone3` beyond those of libc's type.
pub(crate) const CLONE_VM: u64 = libc::CLONE_VM as u64;
pub(crate) const CLONE_VFORK: u64 = libc::CLONE_VFORK as u64;
const CLONE_PIDFD: u64 = libc::CLONE_PIDFD as u64;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A stack with a guard page at its low end.
pub(crate) struct Stack {
    base: *mut c_void,
    size: usize,
}

// SAFETY: the mapping belongs to this value alone and is only ever written by the child that runs on it.
unsafe impl Send for Stack {}
// SAFETY: sharing a reference gives no access to the memory.
unsafe impl Sync for Stack {}

impl Stack {
    /// A stack of `size` bytes, a multiple of the page size.
    pub(crate) fn new(size: usize) -> io::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK | libc::MAP_NORESERVE;
        // SAFETY: a fresh anonymous mapping; its lowest page is then made inaccessible.
        unsafe {
            let base = libc::mmap(ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            let stack = Self { base, size };
            if libc::mprotect(base, 4096, libc::PROT_NONE) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(stack)
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: made by `mmap` with this size; whoever ran on it has ended.
        unsafe { libc::munmap(self.base, self.size) };
    }
}

/// What to make.
pub(crate) struct Clone<'a> {
    /// `CLONE_*`; `CLONE_VM` and `CLONE_PIDFD` are added.
    pub(crate) flags: u64,
    /// Sent to the parent when the child ends before it executes anything.
    pub(crate) exit_signal: i32,
    /// The control group to start in.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    /// Where it runs. With `CLONE_VFORK` it is free again when this returns.
    pub(crate) stack: &'a Stack,
    /// Filled in by the kernel before the child runs.
    pub(crate) pidfd: &'a AtomicI32,
}

/// Makes a child that runs `entry(arg)`, with all signals blocked.
///
/// # Safety
/// `arg` must stay valid for as long as the child uses it: with `CLONE_VFORK` until this returns. `entry` must not
/// allocate, panic, or use anything thread-local.
pub(crate) unsafe fn spawn(clone: &Clone<'_>, entry: Entry, arg: *const c_void) -> Result<(), Errno> {
    let mut args = CloneArgs {
        flags: clone.flags | CLONE_VM | CLONE_PIDFD,
        pidfd: clone.pidfd.as_ptr() as u64,
        exit_signal: clone.exit_signal as u64,
        stack: clone.stack.base as u64,
        stack_size: clone.stack.size as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = clone.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // No handler of the parent may run in the child, where it would work on the parent's memory.
    let all = u64::MAX;
    let mut old = 0u64;
    // SAFETY: both masks are eight bytes, as the last argument says.
    unsafe {
        sys!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const all, &raw mut old, 8)?;
        let result = clone3(&args, entry, arg);
        let _ = sys!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const old, 0, 8);
        if result < 0 { Err(-result as Errno) } else { Ok(()) }
    }
}

/// As `spawn`, in the PID namespace that children of the calling thread are to start in: from there only can a
/// namespace below be made. A helper goes there, makes the child, and hands it to its own parent.
///
/// # Safety
/// As `spawn`, with `CLONE_VFORK`.
pub(crate) unsafe fn spawn_beyond(clone: &Clone<'_>, entry: Entry, arg: *const c_void) -> Result<(), Errno> {
    struct Relay<'a> {
        clone: &'a Clone<'a>,
        entry: Entry,
        arg: *const c_void,
        errno: AtomicI32,
    }
    extern "C" fn relay(arg: *const c_void) -> ! {
        // SAFETY: `arg` is the relay below, whose owner waits.
        let relay = unsafe { &*arg.cast::<Relay<'_>>() };
        // SAFETY: the promise of the caller of `spawn_beyond`.
        if let Err(errno) = unsafe { spawn(relay.clone, relay.entry, relay.arg) } {
            relay.errno.store(errno, Ordering::SeqCst);
        }
        sys::exit(0)
    }
    let clone =
        Clone { flags: clone.flags | CLONE_VFORK | libc::CLONE_PARENT as u64, exit_signal: 0, ..*clone };
    let relay_job = Relay { clone: &clone, entry, arg, errno: AtomicI32::new(0) };
    let stack = Stack::new(16 << 10).map_err(|error| error.raw_os_error().unwrap_or(libc::ENOMEM))?;
    let pidfd = AtomicI32::new(-1);
    // Descriptors are shared, so that the child's is made here.
    let flags = CLONE_VFORK | libc::CLONE_FILES as u64;
    let helper = Clone { flags, exit_signal: libc::SIGCHLD, cgroup: None, stack: &stack, pidfd: &pidfd };
    // SAFETY: with CLONE_VFORK the helper is gone when this returns, and with it every use of the relay.
    unsafe { spawn(&helper, relay, (&raw const relay_job).cast()) }?;
    if let Some(helper) = Child::adopt(&pidfd) {
        helper.wait()?;
    }
    match relay_job.errno.load(Ordering::SeqCst) {
        0 => Ok(()),
        errno => Err(errno),
    }
}

#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &CloneArgs, entry: Entry, arg: *const c_void) -> isize {
    let mut result = libc::SYS_clone3 as isize;
    // SAFETY: the parent goes on at label 2 with its registers intact; the child starts with an empty, aligned
    // stack of its own and never comes back here.
    unsafe {
        asm!(
            "syscall", "test rax, rax", "jnz 2f",
            "xor ebp, ebp", "mov rdi, r13", "call r12", "ud2",
            "2:",
            inlateout("rax") result, in("rdi") ptr::from_ref(args), in("rsi") size_of::<CloneArgs>(),
            in("r12") entry, in("r13") arg, lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: &CloneArgs, entry: Entry, arg: *const c_void) -> isize {
    let mut result = ptr::from_ref(args) as isize;
    // SAFETY: the parent goes on at label 2 with its registers intact; the child starts with an empty, aligned
    // stack of its own and never comes back here.
    unsafe {
        asm!(
            "svc 0", "cbnz x0, 2f",
            "mov x29, xzr", "mov x0, x10", "blr x9", "brk #1",
            "2:",
            inlateout("x0") result, in("x1") size_of::<CloneArgs>(), in("x8") libc::SYS_clone3,
            in("x9") entry, in("x10") arg,
        );
    }
    result
}

/// How a child ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ended {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
}

/// A child.
pub(crate) struct Child {
    pidfd: OwnedFd,
}

impl Child {
    /// Takes over the descriptor that the kernel stored; none was stored when there is no child.
    pub(crate) fn adopt(pidfd: &AtomicI32) -> Option<Self> {
        let fd: RawFd = pidfd.load(Ordering::SeqCst);
        // SAFETY: the kernel gave us this descriptor; nobody else owns it.
        (fd >= 0).then(|| Self { pidfd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// Readable when the child has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        use std::os::fd::AsFd;
        self.pidfd.as_fd()
    }

    /// Ends it, and with it everything in the PID namespace it is the first process of.
    pub(crate) fn kill(&self) {
        kill(self.pidfd.as_raw_fd());
    }

    /// Waits for its end and reaps it.
    pub(crate) fn wait(&self) -> Result<Ended, Errno> {
        const P_PIDFD: i32 = 3;
        loop {
            // SAFETY: an all-zero `siginfo_t` is valid; the kernel fills it in.
            let (result, info) = unsafe {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                let flags = libc::WEXITED | libc::__WALL;
                (sys!(SYS_waitid, P_PIDFD, self.pidfd.as_raw_fd(), &raw mut info, flags, 0), info)
            };
            match result {
                Err(libc::EINTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => {
                    // SAFETY: after a successful `waitid` the status field is the valid one.
                    let status = unsafe { info.si_status() };
                    return Ok(if info.si_code == libc::CLD_EXITED {
                        Ended::Exited(status)
                    } else {
                        Ended::Signaled(status)
                    });
                }
            }
        }
    }
}

/// Sends SIGKILL through a descriptor of a process.
pub(crate) fn kill(pidfd: RawFd) {
    // SAFETY: takes no pointers but null.
    let _ = unsafe { sys!(SYS_pidfd_send_signal, pidfd, libc::SIGKILL, 0, 0) };
}

/// What a helper found: a descriptor, or an error number.
#[repr(C)]
pub(crate) struct Found {
    fd: AtomicI32,
    errno: AtomicI32,
}

impl Found {
    pub(crate) fn new() -> Self {
        Self { fd: AtomicI32::new(-1), errno: AtomicI32::new(0) }
    }

    /// Stores the result and ends the helper.
    pub(crate) fn finish(&self, result: Result<RawFd, Errno>) -> ! {
        match result {
            Ok(fd) => self.fd.store(fd, Ordering::SeqCst),
            Err(errno) => self.errno.store(errno, Ordering::SeqCst),
        }
        sys::exit(0)
    }
}

/// Runs `entry` in a mount namespace of its own that shares this process's descriptors, and returns the descriptor
/// it made. For what only works on attached mounts.
///
/// # Safety
/// As `spawn`; `entry` ends by `finish` of the `Found` it reaches through `arg`.
pub(crate) unsafe fn in_mount_namespace(
    entry: Entry,
    arg: *const c_void,
    found: &Found,
) -> io::Result<OwnedFd> {
    let stack = Stack::new(64 << 10)?;
    let pidfd = AtomicI32::new(-1);
    let flags = CLONE_VFORK | libc::CLONE_NEWNS as u64 | libc::CLONE_FILES as u64;
    let clone = Clone { flags, exit_signal: libc::SIGCHLD, cgroup: None, stack: &stack, pidfd: &pidfd };
    // SAFETY: the caller's promise; with CLONE_VFORK the child is gone when this returns.
    unsafe { spawn(&clone, entry, arg) }.map_err(io::Error::from_raw_os_error)?;
    if let Some(child) = Child::adopt(&pidfd) {
        let _ = child.wait();
    }
    match (found.fd.load(Ordering::SeqCst), found.errno.load(Ordering::SeqCst)) {
        // SAFETY: the child opened it for us in the table that we share.
        (fd, 0) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        (_, 0) => Err(io::Error::from_raw_os_error(libc::ECHILD)),
        (_, errno) => Err(io::Error::from_raw_os_error(errno)),
    }
}
