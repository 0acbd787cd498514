//! The child: from the clone to the command, with system calls only. It shares its parent's memory, so it allocates
//! nothing, panics nowhere and calls nothing of libc. Everything was decided before; here it is carried out in order,
//! and the first failure is written where the parent reads it.
#![expect(unsafe_code, reason = "system calls on plain data")]

use std::ffi::{CStr, c_char, c_void};
use std::os::fd::RawFd;
use std::ptr;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use crate::mnt;
use crate::seccomp::Instruction;
use crate::sys::{self, Errno, MountAttr, attr, sys};

/// What the child was doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub(crate) enum Stage {
    Session,
    Network,
    Private,
    Root,
    Mount,
    Proc,
    Sys,
    Mask,
    Pivot,
    Hostname,
    Cwd,
    CwdOutside,
    Limit,
    Output,
    Bounding,
    Filter,
    Groups,
    Group,
    User,
    Capabilities,
    Descriptors,
    Interpreter,
    Exec,
}

impl Stage {
    const ALL: [Self; 23] = [
        Self::Session,
        Self::Network,
        Self::Private,
        Self::Root,
        Self::Mount,
        Self::Proc,
        Self::Sys,
        Self::Mask,
        Self::Pivot,
        Self::Hostname,
        Self::Cwd,
        Self::CwdOutside,
        Self::Limit,
        Self::Output,
        Self::Bounding,
        Self::Filter,
        Self::Groups,
        Self::Group,
        Self::User,
        Self::Capabilities,
        Self::Descriptors,
        Self::Interpreter,
        Self::Exec,
    ];
}

/// Where the child says what failed.
pub(crate) struct Report {
    stage: AtomicU32,
    errno: AtomicI32,
    index: AtomicU32,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self { stage: AtomicU32::new(0), errno: AtomicI32::new(0), index: AtomicU32::new(0) }
    }

    /// Stage, error number, and number of the thing in question.
    pub(crate) fn get(&self) -> Option<(Stage, Errno, usize)> {
        let errno = self.errno.load(Ordering::SeqCst);
        let stage = self.stage.load(Ordering::SeqCst);
        let stage = Stage::ALL.into_iter().find(|it| *it as u32 == stage)?;
        (errno != 0).then(|| (stage, errno, self.index.load(Ordering::SeqCst) as usize))
    }
}

/// Something to attach, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Op {
    /// A detached mount.
    Attach { mount: RawFd, to: RawFd },
    /// A file of the scratch file system.
    File { source: RawFd, to: RawFd },
    /// The namespace's `/proc`.
    Proc { to: RawFd },
    /// `/sys` of the network namespace.
    Sys { to: RawFd },
    /// POSIX message queues, if the kernel has them.
    Queues { to: RawFd },
}

/// The working directory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Cwd<'a> {
    /// Open already.
    Open(RawFd),
    /// Inside a file system that the child makes.
    Path(&'a CStr),
}

/// All that a child needs.
pub(crate) struct Job<'a> {
    /// This process, readable when it has ended.
    pub(crate) parent: RawFd,
    /// The network namespace to join.
    pub(crate) network: Option<RawFd>,
    /// Detached: files that are lent to the step.
    pub(crate) scratch: RawFd,
    /// Detached: the step's root.
    pub(crate) root: RawFd,
    pub(crate) ops: &'a [Op],
    /// An empty file and an empty directory in `scratch`; `None` masks nothing.
    pub(crate) masks: Option<(RawFd, RawFd)>,
    /// Whether `/sys/fs/cgroup` shall show the one tree of control groups.
    pub(crate) cgroups: bool,
    pub(crate) hostname: &'a CStr,
    pub(crate) cwd: Cwd<'a>,
    pub(crate) limits: &'a [(u32, libc::rlimit64)],
    pub(crate) input: RawFd,
    pub(crate) output: RawFd,
    pub(crate) error: RawFd,
    pub(crate) user: (u32, u32),
    /// `None` where the user namespace forbids to set them.
    pub(crate) groups: Option<&'a [u32]>,
    /// At most these.
    pub(crate) capabilities: u64,
    pub(crate) filter: &'a [Instruction],
    /// Where the command may be, each ending with NUL.
    pub(crate) candidates: &'a [*const c_char],
    /// Ends with null.
    pub(crate) args: &'a [*const c_char],
    /// Ends with null.
    pub(crate) env: &'a [*const c_char],
    pub(crate) report: &'a Report,
}

type Failure = (Stage, Errno, u32);
type Step = Result<(), Failure>;

/// The entry of the child; `arg` is a `Job`.
pub(crate) extern "C" fn main(arg: *const c_void) -> ! {
    // SAFETY: the parent passes a job and waits until this child has executed something else or ended.
    let job = unsafe { &*arg.cast::<Job<'_>>() };
    if let Err((stage, errno, index)) = run(job) {
        job.report.stage.store(stage as u32, Ordering::SeqCst);
        job.report.index.store(index, Ordering::SeqCst);
        job.report.errno.store(errno, Ordering::SeqCst);
    }
    sys::exit(127)
}

fn at<T>(stage: Stage, result: Result<T, Errno>) -> Result<T, Failure> {
    result.map_err(|errno| (stage, errno, 0))
}

fn run(job: &Job<'_>) -> Step {
    session(job)?;
    if let Some(network) = job.network {
        // SAFETY: takes no pointers.
        at(Stage::Network, unsafe { sys!(SYS_setns, network, libc::CLONE_NEWNET) })?;
    }
    at(Stage::Private, mnt::make_private())?;
    let host_root = at(Stage::Root, sys::open_path(libc::AT_FDCWD, c"/", libc::O_DIRECTORY))?;
    // Files can be copied only out of an attached mount. This place goes with the host's root.
    let hidden = at(Stage::Root, sys::open_path(libc::AT_FDCWD, c"/proc", libc::O_DIRECTORY))?;
    at(Stage::Root, sys::move_mount(job.scratch, hidden))?;
    at(Stage::Root, sys::move_mount(job.root, host_root))?;
    for (index, op) in job.ops.iter().enumerate() {
        attach(job, *op).map_err(|(stage, errno)| (stage, errno, index as u32))?;
    }
    at(Stage::Pivot, pivot(job.root, host_root))?;
    // SAFETY: the name is as long as it says.
    at(Stage::Hostname, unsafe { sys!(SYS_sethostname, job.hostname.as_ptr(), job.hostname.count_bytes()) })?;
    enter_cwd(job)?;
    for (index, (resource, limit)) in job.limits.iter().enumerate() {
        // SAFETY: the limit outlives the call.
        unsafe { sys!(SYS_prlimit64, 0, *resource, ptr::from_ref(limit), 0) }
            .map_err(|errno| (Stage::Limit, errno, index as u32))?;
    }
    // SAFETY: takes no pointers.
    at(Stage::Session, unsafe { sys!(SYS_umask, 0o022) })?;
    for (to, from) in [job.input, job.output, job.error].into_iter().enumerate() {
        // SAFETY: takes no pointers. The descriptors are above 2, so none is overwritten before it is used.
        at(Stage::Output, unsafe { sys!(SYS_dup3, from, to, 0) })?;
    }
    reset_signals();
    become_user(job)?;
    const CLOSE_RANGE_CLOEXEC: u32 = 4;
    // SAFETY: takes no pointers.
    at(Stage::Descriptors, unsafe { sys!(SYS_close_range, 3, u32::MAX, CLOSE_RANGE_CLOEXEC) })?;
    Err(execute(job))
}

/// A session of its own, which ends with the thread that made it.
fn session(job: &Job<'_>) -> Step {
    // SAFETY: takes no pointers.
    unsafe {
        at(Stage::Session, sys!(SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
        at(Stage::Session, sys!(SYS_setsid))?;
    }
    // The signal comes only for a parent that ends from now on.
    let mut event = libc::pollfd { fd: job.parent, events: libc::POLLIN, revents: 0 };
    let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both structures outlive the call.
    match unsafe { sys!(SYS_ppoll, &raw mut event, 1, &raw const now, 0, 0) } {
        Ok(0) => Ok(()),
        _ => sys::exit(127),
    }
}

fn attach(job: &Job<'_>, op: Op) -> Result<(), (Stage, Errno)> {
    match op {
        Op::Attach { mount, to } => sys::move_mount(mount, to).map_err(|errno| (Stage::Mount, errno)),
        Op::File { source, to } => copy_to(source, to, attr::LENT).map_err(|errno| (Stage::Mount, errno)),
        Op::Proc { to } => proc(job, to),
        Op::Sys { to } => sysfs(job, to),
        Op::Queues { to } => match sys::new_mount(c"mqueue", attr::NOSUID | attr::NODEV | attr::NOEXEC) {
            Ok(mount) => sys::move_mount(mount, to).map_err(|errno| (Stage::Mount, errno)),
            Err(_) => Ok(()),
        },
    }
}

/// Mounts a copy of what `source` is open at, which is attached, on `to`.
fn copy_to(source: RawFd, to: RawFd, attrs: u64) -> Result<(), Errno> {
    let copy = sys::open_tree(source, c"", sys::AT_RECURSIVE)?;
    let change = MountAttr { set: attrs, clear: 0, propagation: 0, userns: 0 };
    let done =
        sys::mount_setattr(copy, c"", sys::AT_RECURSIVE, &change).and_then(|()| sys::move_mount(copy, to));
    sys::close(copy);
    done
}

/// What would show or change the host: files and directories below `/proc`.
const PROC_FILES: [&CStr; 8] = [
    c"interrupts",
    c"kallsyms",
    c"kcore",
    c"keys",
    c"latency_stats",
    c"sched_debug",
    c"timer_list",
    c"timer_stats",
];
const PROC_DIRS: [&CStr; 3] = [c"acpi", c"asound", c"scsi"];
const PROC_READONLY: [&CStr; 5] = [c"bus", c"fs", c"irq", c"sys", c"sysrq-trigger"];
const SYS_DIRS: [&CStr; 3] = [c"firmware", c"devices/virtual/powercap", c"fs/selinux"];

fn proc(job: &Job<'_>, to: RawFd) -> Result<(), (Stage, Errno)> {
    let failed = |errno| (Stage::Proc, errno);
    let proc = sys::new_mount(c"proc", attr::NOSUID | attr::NODEV | attr::NOEXEC).map_err(failed)?;
    sys::move_mount(proc, to).map_err(failed)?;
    // Steps go before their builder when memory runs out. It may be forbidden to lower one's own value.
    if let Ok(file) = sys::open_beneath(proc, c"self/oom_score_adj", libc::O_WRONLY) {
        // SAFETY: the text is as long as it says.
        let _ = unsafe { sys!(SYS_write, file, c"500".as_ptr(), 3) };
        sys::close(file);
    }
    if let Some((file, dir)) = job.masks {
        let masked = |errno| (Stage::Mask, errno);
        PROC_FILES.iter().try_for_each(|name| mask(proc, name, file)).map_err(masked)?;
        PROC_DIRS.iter().try_for_each(|name| mask(proc, name, dir)).map_err(masked)?;
        PROC_READONLY.iter().try_for_each(|name| readonly(proc, name)).map_err(masked)?;
    }
    sys::close(proc);
    Ok(())
}

fn sysfs(job: &Job<'_>, to: RawFd) -> Result<(), (Stage, Errno)> {
    let failed = |errno| (Stage::Sys, errno);
    let attrs = if job.masks.is_some() { attr::LENT } else { attr::LENT & !attr::RDONLY };
    let sys = match sys::new_mount(c"sysfs", attrs) {
        // Only the owner of the network namespace may; the host's is the same then.
        Err(libc::EPERM) => {
            let copy = sys::open_tree(libc::AT_FDCWD, c"/sys", sys::AT_RECURSIVE).map_err(failed)?;
            let change = MountAttr { set: attr::LENT, clear: 0, propagation: 0, userns: 0 };
            sys::mount_setattr(copy, c"", sys::AT_RECURSIVE, &change).map_err(failed)?;
            copy
        }
        other => other.map_err(failed)?,
    };
    sys::move_mount(sys, to).map_err(failed)?;
    if let Some((_, dir)) = job.masks {
        SYS_DIRS.iter().try_for_each(|name| mask(sys, name, dir)).map_err(|errno| (Stage::Mask, errno))?;
    }
    if job.cgroups
        && let Ok(target) = sys::open_path(sys, c"fs/cgroup", 0)
    {
        // Programs look there for their limits; none of them needs it.
        if let Ok(cgroups) = sys::new_mount(c"cgroup2", attrs) {
            let _ = sys::move_mount(cgroups, target);
            sys::close(cgroups);
        }
        sys::close(target);
    }
    sys::close(sys);
    Ok(())
}

/// Hides `name`, which may be missing, below a directory that the kernel made. Never silently not.
fn mask(dir: RawFd, name: &CStr, by: RawFd) -> Result<(), Errno> {
    let target = match sys::open_path(dir, name, 0) {
        Err(libc::ENOENT) => return Ok(()),
        other => other?,
    };
    let result = copy_to(by, target, attr::LENT);
    sys::close(target);
    result
}

/// Makes `name`, which may be missing, unchangeable below a directory that the kernel made.
fn readonly(dir: RawFd, name: &CStr) -> Result<(), Errno> {
    let target = match sys::open_path(dir, name, 0) {
        Err(libc::ENOENT) => return Ok(()),
        other => other?,
    };
    let result = copy_to(target, target, attr::LENT);
    sys::close(target);
    result
}

/// Makes the step's root the root, and detaches everything of the host.
fn pivot(root: RawFd, host_root: RawFd) -> Result<(), Errno> {
    let dot = c".".as_ptr();
    // SAFETY: all paths end with NUL.
    unsafe {
        sys!(SYS_fchdir, root)?;
        sys!(SYS_pivot_root, dot, dot)?;
        sys!(SYS_fchdir, host_root)?;
        sys!(SYS_umount2, dot, libc::MNT_DETACH)?;
        sys!(SYS_chdir, c"/".as_ptr())?;
    }
    Ok(())
}

fn enter_cwd(job: &Job<'_>) -> Step {
    let dir = match job.cwd {
        Cwd::Open(dir) => dir,
        Cwd::Path(path) => {
            at(Stage::Cwd, sys::open_beneath(libc::AT_FDCWD, path, libc::O_PATH | libc::O_DIRECTORY))?
        }
    };
    let mut path = [0u8; 4096];
    // SAFETY: the buffer is as long as it says.
    unsafe {
        at(Stage::Cwd, sys!(SYS_fchdir, dir))?;
        // A directory outside the root has no path that begins with a slash.
        at(Stage::CwdOutside, sys!(SYS_getcwd, path.as_mut_ptr(), path.len()))?;
    }
    if path.first() == Some(&b'/') { Ok(()) } else { Err((Stage::CwdOutside, libc::ENOENT, 0)) }
}

/// Default actions and no blocked signals, whatever the parent does with them.
fn reset_signals() {
    let default = [0usize; 4];
    for signal in 1..=64 {
        // SAFETY: an all-zero action is the default one; the kernel reads no more than this.
        let _ = unsafe { sys!(SYS_rt_sigaction, signal, default.as_ptr(), 0, 8) };
    }
    let none = 0u64;
    // SAFETY: the mask is eight bytes.
    let _ = unsafe { sys!(SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, 0, 8) };
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The filter first, as it needs privileges; the user last.
fn become_user(job: &Job<'_>) -> Step {
    for cap in 0..64u64 {
        if job.capabilities >> cap & 1 == 1 {
            continue;
        }
        // SAFETY: takes no pointers.
        match unsafe { sys!(SYS_prctl, libc::PR_CAPBSET_DROP, cap, 0, 0, 0) } {
            Ok(_) => {}
            // The kernel has no more.
            Err(libc::EINVAL) => break,
            Err(errno) => return Err((Stage::Bounding, errno, cap as u32)),
        }
    }
    if !job.filter.is_empty() {
        let program =
            libc::sock_fprog { len: job.filter.len() as u16, filter: job.filter.as_ptr().cast_mut() };
        const SET_MODE_FILTER: u32 = 1;
        // SAFETY: the program outlives the call; the kernel only reads it.
        at(Stage::Filter, unsafe { sys!(SYS_seccomp, SET_MODE_FILTER, 0, &raw const program) })?;
    }
    let (uid, gid) = job.user;
    // SAFETY: the list is as long as it says; the others take no pointers.
    unsafe {
        if let Some(groups) = job.groups {
            at(Stage::Groups, sys!(SYS_setgroups, groups.len(), groups.as_ptr()))?;
        }
        at(Stage::Group, sys!(SYS_setresgid, gid, gid, gid))?;
        at(Stage::User, sys!(SYS_setresuid, uid, uid, uid))?;
        const AMBIENT_CLEAR: i32 = 4;
        at(Stage::Capabilities, sys!(SYS_prctl, libc::PR_CAP_AMBIENT, AMBIENT_CLEAR, 0, 0, 0))?;
        // Changing the user cleared it.
        at(Stage::Session, sys!(SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0))?;
    }
    at(Stage::Capabilities, limit_capabilities(job.capabilities))
}

/// Nothing inheritable, and of the others only what is allowed.
fn limit_capabilities(allowed: u64) -> Result<(), Errno> {
    const VERSION_3: u32 = 0x2008_0522;
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: header and data are what version 3 expects.
    unsafe {
        sys!(SYS_capget, &raw const header, data.as_mut_ptr())?;
        for (half, shift) in data.iter_mut().zip([0, 32]) {
            let allowed = (allowed >> shift) as u32;
            *half = CapData {
                effective: half.effective & allowed,
                permitted: half.permitted & allowed,
                inheritable: 0,
            };
        }
        sys!(SYS_capset, &raw const header, data.as_ptr()).map(drop)
    }
}

/// Tries the candidates in order; returns what went wrong with all of them.
fn execute(job: &Job<'_>) -> Failure {
    let mut failure = (Stage::Exec, libc::ENOENT, 0);
    for (index, candidate) in job.candidates.iter().enumerate() {
        // SAFETY: the path ends with NUL, the lists end with null.
        let result = unsafe { sys!(SYS_execve, *candidate, job.args.as_ptr(), job.env.as_ptr()) };
        let Err(errno) = result else { continue };
        match errno {
            libc::ENOENT | libc::ENOTDIR => {
                // SAFETY: the path ends with NUL.
                if unsafe { sys!(SYS_faccessat, libc::AT_FDCWD, *candidate, libc::F_OK) }.is_ok() {
                    return (Stage::Interpreter, errno, index as u32);
                }
                if failure.1 != libc::EACCES {
                    failure.1 = errno;
                }
            }
            libc::EACCES => failure = (Stage::Exec, errno, index as u32),
            _ => return (Stage::Exec, errno, index as u32),
        }
    }
    failure
}
