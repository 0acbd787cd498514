//! One step from the request to its outcome: prepare, make the child, pass its output on, wait, clean up. On a thread
//! of its own.
#![expect(unsafe_code, reason = "the child is made with clone3")]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_graph::{NetMode, SecurityMode};
use rbuild_ports::{CancelToken, ErrorKind, ExecOutcome, ExecRequest, PortError, Progress, Result, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::Group;
use crate::child::{self, Job, Report};
use crate::etc_files::{self, Reach};
use crate::failure::{self, Context};
use crate::net::{Lease, host_resolv_conf};
use crate::plan::{self, Command};
use crate::rootfs::{Base, Cwd, Rootfs, Style};
use crate::sandbox::Sandbox;
use crate::spawn::{self, Child, Clone, Ended, Stack};
use crate::user::User;
use crate::{caps, fence::Fence};

pub(crate) use failure::explain_clone;

/// Enough for a child: its largest frame holds a path.
const STACK: usize = 128 << 10;
/// What is read from a pipe at once.
const CHUNK: usize = 64 << 10;

/// Runs a step to its end.
pub(crate) fn run(
    sandbox: &Sandbox,
    request: &ExecRequest,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<ExecOutcome> {
    let facts = sandbox.facts();
    let style = Style {
        insecure: request.security == SecurityMode::Insecure,
        user_namespace: facts.user_namespace,
        tty_group: facts.tty_group,
    };
    // What cannot work is said before anything is done.
    let limits = plan::limits(request)?;
    let hostname = plan::hostname(request)?;
    let fence = sandbox.fence()?;
    let group = group(sandbox, request, progress)?;
    let base = Base::mount(request, style)?;
    let mut user = base.user(&request.user)?;
    user.groups.extend(&request.devices.groups);
    let command = plan::command(request, &user.home)?;
    for node in request.devices.nodes.iter().filter(|node| !allows_all(&node.permissions)) {
        let (path, permissions) = (&node.path, &node.permissions);
        progress.warn(&format!(
            "{path}: the step may do more with this device than its permissions {permissions:?} say"
        ));
    }
    let network = network(sandbox, &fence, request, progress, cancel)?;
    let hosts = etc_files::hosts(hostname, &request.extra_hosts);
    let resolv_conf = resolv_conf(sandbox, network.as_ref(), request.network, progress);
    let rootfs = base.furnish(request, &user, &hosts, &resolv_conf)?;

    let killed_before = facts.oom.as_ref().and_then(|count| count.get());
    let step = Step { sandbox, request, user: &user, command: &command, limits: &limits, hostname, style };
    let ended = step.spawn_and_wait(&fence, &rootfs, network.as_ref(), group.as_ref(), progress, cancel);
    if style.insecure
        && let Some(network) = network
    {
        // The step could change it: nobody else shall have it.
        network.discard();
    }
    let finished = rootfs.finish();
    cancel.check()?;
    let ended = ended?;
    finished?;
    let killed = facts.oom.as_ref().and_then(|count| count.get()) != killed_before;
    Ok(match ended {
        Ended::Signaled(libc::SIGKILL) | Ended::Exited(137) if killed => ExecOutcome::OutOfMemory,
        Ended::Exited(code) => ExecOutcome::Exited(code),
        Ended::Signaled(signal) => ExecOutcome::Signaled(signal),
    })
}

/// Whether a device may be read and written. (Steps cannot make nodes anyway.)
fn allows_all(permissions: &str) -> bool {
    permissions.is_empty() || (permissions.contains('r') && permissions.contains('w'))
}

fn group(sandbox: &Sandbox, request: &ExecRequest, progress: &dyn Progress) -> Result<Option<Group>> {
    if request.cgroup_parent.is_empty() {
        return Ok(None);
    }
    let group = Group::new(&request.cgroup_parent, &request.id)?;
    if group.is_none() {
        let text = "the parent control group is ignored: this machine has no version 2 of control groups";
        sandbox.warn_once(progress, text);
    }
    Ok(group)
}

fn network(
    sandbox: &Sandbox,
    fence: &Arc<Fence>,
    request: &ExecRequest,
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Option<Lease>> {
    match request.network {
        NetMode::Host => Ok(None),
        NetMode::None => sandbox.pool().lease_loopback().map(Some),
        NetMode::Sandbox => sandbox.pool().lease(fence, progress, cancel).map(Some),
    }
}

/// The host's resolver configuration, as the step can use it.
fn resolv_conf(sandbox: &Sandbox, network: Option<&Lease>, mode: NetMode, progress: &dyn Progress) -> String {
    let reach = network.map_or(Reach::Host, Lease::reach);
    let host = host_resolv_conf(reach);
    let conf = etc_files::resolv_conf(&host, &sandbox.options().nameservers, reach);
    if conf.public && mode == NetMode::Sandbox && network.is_some_and(Lease::leads_out) {
        let text =
            "the host's name servers cannot be reached from steps; public ones (8.8.8.8) are used instead";
        sandbox.warn_once(progress, text);
    }
    conf.text
}

struct Step<'a> {
    sandbox: &'a Sandbox,
    request: &'a ExecRequest,
    user: &'a User,
    command: &'a Command,
    limits: &'a [(u32, libc::rlimit64)],
    hostname: &'a str,
    style: Style,
}

impl Step<'_> {
    fn spawn_and_wait(
        &self,
        fence: &Fence,
        rootfs: &Rootfs,
        network: Option<&Lease>,
        group: Option<&Group>,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Ended> {
        let failed = |what: &str, error: io::Error| {
            PortError::new(
                ErrorKind::Io,
                format!("cannot {what} for the step: {}", crate::mnt::plain(&error)),
            )
        };
        fence.enter().map_err(|error| failed("enter the process namespace", error))?;
        let [output, error] = [pipe(), pipe()];
        let (output, error) =
            (output.map_err(|e| failed("make a pipe", e))?, error.map_err(|e| failed("make a pipe", e))?);
        let input = above_standard(rootfs.null.as_fd()).map_err(|e| failed("open the null device", e))?;
        let hostname = CString::new(self.hostname).map_err(|e| failed("set the host name", e.into()))?;
        let facts = self.sandbox.facts();
        let (candidates, args, env) =
            (pointers(&self.command.candidates), pointers(&self.command.args), pointers(&self.command.env));
        let report = Report::new();
        let job = Job {
            parent: fence.own_pidfd(),
            network: network.and_then(Lease::namespace).map(|namespace| namespace.as_raw_fd()),
            scratch: rootfs.scratch.as_raw_fd(),
            root: rootfs.root.as_raw_fd(),
            ops: &rootfs.ops,
            masks: (!self.style.insecure).then(|| (rootfs.masks.0.as_raw_fd(), rootfs.masks.1.as_raw_fd())),
            cgroups: facts.only_cgroup_2,
            hostname: &hostname,
            cwd: match &rootfs.cwd {
                Cwd::Open(dir) => child::Cwd::Open(dir.as_raw_fd()),
                Cwd::Path(path) => child::Cwd::Path(path),
            },
            limits: self.limits,
            input: input.as_raw_fd(),
            output: output.1.as_raw_fd(),
            error: error.1.as_raw_fd(),
            user: (self.user.uid, self.user.gid),
            groups: facts.set_groups.then_some(self.user.groups.as_slice()),
            capabilities: caps::allowed(self.style.insecure, self.style.user_namespace),
            filter: if self.style.insecure { &[] } else { self.sandbox.filter() },
            // Without the null pointer that ends it.
            candidates: candidates.split_last().map_or(&[], |(_, candidates)| candidates),
            args: &args,
            env: &env,
            report: &report,
        };
        let leash = Arc::new(Leash { pidfd: AtomicI32::new(-1), held: Mutex::new(true) });
        let end = leash.clone();
        let guard = cancel.on_cancel(move || end.pull());
        let child = make(&job, &leash.pidfd, group)?;
        if cancel.is_cancelled() {
            child.kill();
        }
        drop((output.1, error.1));
        let ended = match report.get() {
            None => supervise(&child, output.0, error.0, progress).map_err(|e| failed("wait", e)),
            Some((stage, errno, index)) => {
                let _reaped = child.wait();
                let context = Context { request: self.request, user: self.user, dests: &rootfs.dests };
                failure::outcome(stage, errno, index, &context, progress)
            }
        };
        leash.let_go();
        drop(guard);
        ended
    }
}

/// Makes the child and returns when it has become the command, or failed.
fn make(job: &Job<'_>, pidfd: &AtomicI32, group: Option<&Group>) -> Result<Child> {
    let stack = Stack::new(STACK).map_err(|error| explain_clone(&error))?;
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
    let clone = Clone {
        flags: namespaces as u64 | spawn::CLONE_VFORK,
        exit_signal: libc::SIGCHLD,
        cgroup: group.map(Group::dir),
        stack: &stack,
        pidfd,
    };
    // SAFETY: the job outlives the call, which ends only when the child has left this memory; the child's code is made
    // for it.
    let result = unsafe { spawn::spawn_beyond(&clone, child::main, ptr::from_ref(job).cast()) };
    result.map_err(|errno| explain_clone(&io::Error::from_raw_os_error(errno)))?;
    Child::adopt(pidfd)
        .ok_or_else(|| PortError::new(ErrorKind::Internal, "the kernel gave no descriptor of the child"))
}

/// Kills the child when pulled, as long as its descriptor is the child's.
struct Leash {
    pidfd: AtomicI32,
    held: Mutex<bool>,
}

impl Leash {
    fn pull(&self) {
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let pidfd = self.pidfd.load(Ordering::SeqCst);
        if *held && pidfd >= 0 {
            spawn::kill(pidfd);
        }
    }

    fn let_go(&self) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = false;
    }
}

/// Passes output on until the first process has ended, and with it, by the rules of PID namespaces, all others.
fn supervise(child: &Child, output: OwnedFd, error: OwnedFd, progress: &dyn Progress) -> io::Result<Ended> {
    let mut streams = [Some((Stream::Stdout, output)), Some((Stream::Stderr, error))];
    let mut buffer = vec![0u8; CHUNK];
    loop {
        let mut fds = vec![PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN)];
        fds.extend(
            streams.iter().flatten().map(|(_, pipe)| PollFd::from_borrowed_fd(pipe.as_fd(), PollFlags::IN)),
        );
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let over = fds.first().is_some_and(|fd| !fd.revents().is_empty());
        for slot in &mut streams {
            if let Some((stream, pipe)) = slot
                && read_once(pipe, &mut buffer, *stream, progress) == Read::End
            {
                *slot = None;
            }
        }
        if over {
            break;
        }
    }
    let ended = child.wait().map_err(io::Error::from_raw_os_error)?;
    // What is still in the pipes; nobody but a process outside the step could write more.
    for (stream, pipe) in streams.iter().flatten() {
        for _ in 0..64 {
            if read_once(pipe, &mut buffer, *stream, progress) != Read::Some {
                break;
            }
        }
    }
    Ok(ended)
}

#[derive(PartialEq, Eq)]
enum Read {
    Some,
    Nothing,
    End,
}

fn read_once(pipe: &OwnedFd, buffer: &mut [u8], stream: Stream, progress: &dyn Progress) -> Read {
    match rustix::io::read(pipe, &mut *buffer) {
        Ok(0) => Read::End,
        Ok(n) => {
            progress.log(stream, buffer.get(..n).unwrap_or_default());
            Read::Some
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Read::Nothing,
        Err(_) => Read::End,
    }
}

/// A pipe whose end for reading does not block.
fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&read, true)?;
    Ok((read, above_standard(write.as_fd())?))
}

/// A copy whose number is none of the standard ones.
fn above_standard(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, 3)?)
}

/// Pointers to strings, and a null pointer.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|text| text.as_ptr()).chain([ptr::null()]).collect()
}
