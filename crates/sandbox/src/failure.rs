//! What a child could not do, in words: what failed, why that may be, what to do.

use std::io;

use rbuild_ports::{ErrorKind, ExecRequest, PortError, Progress, Result, Stream};

use crate::child::Stage;
use crate::spawn::Ended;
use crate::sys::{Errno, describe};
use crate::user::User;

/// What the words are about.
pub(crate) struct Context<'a> {
    pub(crate) request: &'a ExecRequest,
    pub(crate) user: &'a User,
    /// Where each mount goes.
    pub(crate) dests: &'a [String],
}

/// A command that cannot be executed ends as shells say it; everything else is an error.
pub(crate) fn outcome(
    stage: Stage,
    errno: Errno,
    index: usize,
    context: &Context<'_>,
    progress: &dyn Progress,
) -> Result<Ended> {
    match exec_words(stage, errno, context) {
        Some((code, text)) => {
            progress.log(Stream::Stderr, format!("{text}\n").as_bytes());
            Ok(Ended::Exited(code))
        }
        None => Err(error(stage, errno, index, context)),
    }
}

/// Exit code and message for a command that cannot be executed.
fn exec_words(stage: Stage, errno: Errno, context: &Context<'_>) -> Option<(i32, String)> {
    let name = context.request.args.first().map(String::as_str).unwrap_or_default();
    let why = describe(errno);
    Some(match (stage, errno) {
        (Stage::Interpreter, _) => {
            let text = format!(
                "exec: {name:?}: {why}: the file is there, but not the interpreter in its first line, or the dynamic loader it needs"
            );
            (127, text)
        }
        (Stage::Exec, libc::ENOENT | libc::ENOTDIR) if name.contains('/') => {
            (127, format!("exec: {name:?}: {why}"))
        }
        (Stage::Exec, libc::ENOENT | libc::ENOTDIR) => {
            (127, format!("exec: {name:?}: executable file not found in $PATH"))
        }
        (Stage::Exec, libc::ENOEXEC) => {
            let text = format!(
                "exec: {name:?}: exec format error: the file is no program for this machine; to run programs of other \
                 architectures, register an emulator (qemu-user-static) with binfmt_misc"
            );
            (126, text)
        }
        (Stage::Exec, libc::E2BIG) => {
            let request = context.request;
            let bytes = request.args.iter().chain(&request.env).map(|text| text.len() + 1).sum::<usize>();
            let text = format!(
                "exec: {name:?}: {why}: arguments and environment have {bytes} bytes, and no single one may have more than \
                 131071; put long texts into a file"
            );
            (126, text)
        }
        (Stage::Exec, _) => (126, format!("exec: {name:?}: {why}")),
        _ => return None,
    })
}

fn error(stage: Stage, errno: Errno, index: usize, context: &Context<'_>) -> PortError {
    let why = describe(errno);
    let request = context.request;
    let dest = context.dests.get(index).map(String::as_str).unwrap_or_default();
    let user = context.user;
    let new = |kind, text: String| PortError::new(kind, text);
    match stage {
        Stage::Cwd => {
            let text = format!("cannot use the working directory {}: {why}", request.cwd);
            new(ErrorKind::Invalid, text)
        }
        Stage::CwdOutside => {
            let text = format!("the working directory {} is outside the root of the step", request.cwd);
            new(ErrorKind::Denied, text)
        }
        Stage::Limit => {
            let name = request.ulimits.get(index).map(|limit| limit.name.as_str()).unwrap_or_default();
            new(ErrorKind::Denied, format!("cannot set the resource limit {name}: {why}"))
                .help("it is above the limit of this process, which only a privileged process may raise")
        }
        Stage::User | Stage::Group | Stage::Groups if errno == libc::EINVAL => {
            let text = format!("user {}:{} does not exist in this user namespace", user.uid, user.gid);
            new(ErrorKind::Unsupported, text).help(
                "give yourself more ids: install the package uidmap, and run as root \
                 `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 <you>`",
            )
        }
        Stage::Proc | Stage::Sys if errno == libc::EPERM => {
            new(ErrorKind::Unsupported, format!("cannot mount {dest} for the step: {why}")).help(
                "a container that hides parts of its own /proc or /sys may not mount them anew: start the container that \
                 rbuild runs in with `--security-opt systempaths=unconfined`, or privileged",
            )
        }
        Stage::Mount | Stage::Proc | Stage::Sys => new(ErrorKind::Io, format!("cannot mount {dest} for the step: {why}")),
        Stage::Filter => new(ErrorKind::Unsupported, format!("cannot install the system call filter: {why}"))
            .help("rbuild needs a kernel with seccomp filters (CONFIG_SECCOMP_FILTER)"),
        Stage::Pivot => new(ErrorKind::Unsupported, format!("cannot change the root of the step: {why}"))
            .help("the root file system must be a real one, not the initial RAM disk: mount one and chroot there"),
        other => new(ErrorKind::Io, format!("cannot set up the step ({other:?}): {why}")),
    }
}

/// Why no child could be made.
pub(crate) fn explain_clone(error: &io::Error) -> PortError {
    let text = format!("cannot make namespaces for the step: {}", crate::mnt::plain(error));
    let help = match error.raw_os_error() {
        Some(libc::EPERM) => {
            "run rbuild as root with all capabilities, or as an ordinary user on a system that allows user namespaces"
        }
        Some(libc::ENOSYS) => {
            "rbuild needs Linux 5.12 or later, and a system call filter around it that lets `clone3` through"
        }
        Some(libc::ENOSPC) => "a limit in /proc/sys/user/max_*_namespaces is reached; raise it",
        Some(libc::EAGAIN) => {
            "the limit of processes is reached (ulimit -u, or pids.max of the control group)"
        }
        _ => "the kernel needs PID, IPC, UTS, control group and mount namespaces",
    };
    PortError::new(ErrorKind::Unsupported, text).help(help)
}
