//! What makes steps end with the process that runs them, whatever happens to it. A guard, first process of a PID
//! namespace, waits for that process to end and ends too; every step lives in a namespace below, so the kernel
//! then kills all of it. (A parent-death signal alone is not enough: programs like `sudo` clear it.)
#![expect(unsafe_code, reason = "the guard shares memory with the process it watches")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, getpid, pidfd_open};

use crate::spawn::{Child, Clone, Stack, spawn};
use crate::sys::{self, sys};

/// The guard and its PID namespace. Dropping it ends everything in there.
pub(crate) struct Fence {
    guard: Option<Child>,
    /// The way into its namespace. Its pidfd is none: once a step of another user was started in this process's memory, the
    /// kernel counts this process as one that must not be looked at, and the guard shares that memory.
    namespace: OwnedFd,
    /// Where the guard reads what it needs, and its stack: both live as long as it does.
    watched: Arc<AtomicI32>,
    own: OwnedFd,
    _stack: Stack,
}

impl Fence {
    /// Starts a guard.
    pub(crate) fn new() -> io::Result<Self> {
        let own = pidfd_open(getpid(), PidfdFlags::empty())?;
        let watched = Arc::new(AtomicI32::new(own.as_raw_fd()));
        let stack = Stack::new(32 << 10)?;
        let pidfd = AtomicI32::new(-1);
        // What is unshared stays so: a thread of its own.
        let start = || -> io::Result<OwnedFd> {
            // SAFETY: takes no pointers.
            unsafe { sys!(SYS_unshare, libc::CLONE_NEWPID) }.map_err(io::Error::from_raw_os_error)?;
            let clone = Clone { flags: 0, exit_signal: 0, cgroup: None, stack: &stack, pidfd: &pidfd };
            // SAFETY: `watched` is kept by the fence, which outlives the guard.
            unsafe { spawn(&clone, watch, Arc::as_ptr(&watched).cast::<c_void>()) }
                .map_err(io::Error::from_raw_os_error)?;
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            Ok(rustix::fs::open("/proc/thread-self/ns/pid_for_children", flags, Mode::empty())?)
        };
        let namespace = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("fence".to_owned()).spawn_scoped(scope, start)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that starts the guard died")))
        });
        let guard = Child::adopt(&pidfd);
        match namespace {
            Ok(namespace) => Ok(Self { guard, namespace, watched, own, _stack: stack }),
            Err(error) => {
                if let Some(guard) = guard {
                    guard.kill();
                    let _ = guard.wait();
                }
                Err(error)
            }
        }
    }

    /// Whether the guard still stands.
    pub(crate) fn stands(&self) -> bool {
        let Some(guard) = &self.guard else { return false };
        let mut fds = [PollFd::from_borrowed_fd(guard.pidfd(), PollFlags::IN)];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&now)), Ok(0))
    }

    /// Makes children of the calling thread start inside the fence. The thread cannot go back: it should end soon.
    pub(crate) fn enter(&self) -> io::Result<()> {
        // SAFETY: takes no pointers.
        unsafe { sys!(SYS_setns, self.namespace.as_raw_fd(), libc::CLONE_NEWPID) }
            .map(drop)
            .map_err(io::Error::from_raw_os_error)
    }

    /// A descriptor of this very process, readable when it has ended.
    pub(crate) fn own_pidfd(&self) -> RawFd {
        self.own.as_raw_fd()
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        if let Some(guard) = self.guard.take() {
            guard.kill();
            let _ = guard.wait();
        }
        self.watched.store(-1, Ordering::SeqCst);
    }
}

/// The guard: keeps one descriptor, waits on it, ends.
extern "C" fn watch(arg: *const c_void) -> ! {
    // SAFETY: `arg` is the number that `Fence` keeps.
    let fd = unsafe { &*arg.cast::<AtomicI32>() }.load(Ordering::SeqCst);
    let mut event = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the name and the structure outlive the calls; the others take no pointers.
    unsafe {
        let _ = sys!(SYS_prctl, libc::PR_SET_NAME, c"rbuild-guard".as_ptr(), 0, 0, 0);
        let _ = sys!(SYS_close_range, fd.wrapping_add(1), u32::MAX, 0);
        if fd > 0 {
            let _ = sys!(SYS_close_range, 0, fd.wrapping_sub(1), 0);
        }
        let _ = sys!(SYS_setsid);
        while let Err(libc::EINTR) = sys!(SYS_ppoll, &raw mut event, 1, 0, 0, 0) {}
    }
    sys::exit(0)
}
