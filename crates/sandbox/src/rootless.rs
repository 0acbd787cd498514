//! Becoming root in a user namespace, for ordinary users. Done once, at the start of the process; afterwards files of any owner in
//! the user's range can be made, and overlays mounted, as root does.
#![expect(unsafe_code, reason = "fork has no safe form")]

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use rbuild_ports::{ErrorKind, PortError, Result};
use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

/// What `enter_user_namespace` found or did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rootless {
    /// The process is root; nothing was done.
    Root,
    /// The process is root in a user namespace that somebody else made; nothing was done.
    Inherited,
    /// The process is now root in a user namespace with this many more user ids.
    Mapped {
        /// From `/etc/subuid`.
        uids: u32,
        /// From `/etc/subgid`.
        gids: u32,
    },
    /// The process is now root in a user namespace with no other user. Steps that change owners fail; the user
    /// must be told.
    SingleUser {
        /// Why there are no more, and what to do about it.
        reason: String,
    },
}

/// Makes the process root in a user namespace when it is not root. Must be called while the process has one thread:
/// first thing in `main`.
///
/// # Errors
/// If this machine forbids it, with what to change.
pub fn enter_user_namespace() -> Result<Rootless> {
    if rustix::process::geteuid().is_root() {
        return Ok(if is_identity(&read("/proc/self/uid_map")) {
            Rootless::Root
        } else {
            Rootless::Inherited
        });
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let name = user_name(&read("/etc/passwd"), uid);
    let uids = ranges(&read("/etc/subuid"), &name, uid);
    let gids = ranges(&read("/etc/subgid"), &name, uid);
    let tools = find("newuidmap").zip(find("newgidmap"));
    let reason = match (&tools, uids.is_empty() || gids.is_empty()) {
        (None, _) => Some("newuidmap and newgidmap are missing; install the package uidmap".to_owned()),
        (_, true) => Some(format!(
            "the user {name:?} has no subordinate ids; add them with: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
        )),
        _ => None,
    };
    let plan = match (tools, reason) {
        (Some((newuidmap, newgidmap)), None) => Plan::Mapped {
            uids: map_args(&newuidmap, uid, &uids),
            gids: map_args(&newgidmap, gid, &gids),
            counts: (count(&uids), count(&gids)),
        },
        (_, reason) => Plan::Single { reason: reason.unwrap_or_default(), uid, gid },
    };
    enter(plan)
}

enum Plan {
    Mapped { uids: Vec<String>, gids: Vec<String>, counts: (u32, u32) },
    Single { reason: String, uid: u32, gid: u32 },
}

fn enter(plan: Plan) -> Result<Rootless> {
    match plan {
        Plan::Single { reason, uid, gid } => {
            unshare()?;
            let write =
                |file: &str, text: &str| fs::write(file, text).map_err(|e| PortError::io("write", file, e));
            write("/proc/self/setgroups", "deny")?;
            write("/proc/self/uid_map", &format!("0 {uid} 1\n"))?;
            write("/proc/self/gid_map", &format!("0 {gid} 1\n"))?;
            private_mounts()?;
            Ok(Rootless::SingleUser { reason })
        }
        Plan::Mapped { uids, gids, counts } => {
            // Ids can only be mapped from outside the namespace: a child stays there, waits for this process to enter, and maps.
            let helper = Helper::start()?;
            unshare()?;
            helper.map(&uids, &gids)?;
            become_root()?;
            private_mounts()?;
            Ok(Rootless::Mapped { uids: counts.0, gids: counts.1 })
        }
    }
}

fn unshare() -> Result<()> {
    // SAFETY: of these flags none affects memory or files of the process; it has one thread, as the caller promises.
    let result = unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) };
    result.map_err(|error| {
        let error = io::Error::from(error);
        let mut out =
            PortError::new(ErrorKind::Unsupported, format!("cannot make a user namespace: {error}"));
        for (knob, bad, help) in [
            (
                "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
                "1",
                "run: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0",
            ),
            (
                "/proc/sys/kernel/unprivileged_userns_clone",
                "0",
                "run: sysctl -w kernel.unprivileged_userns_clone=1",
            ),
            ("/proc/sys/user/max_user_namespaces", "0", "run: sysctl -w user.max_user_namespaces=15000"),
        ] {
            if read(knob).trim() == bad {
                out.help = Some(format!(
                    "this system forbids it to ordinary users; as root {help}, or run rbuild as root"
                ));
            }
        }
        if out.help.is_none() {
            out.help = Some("allow user namespaces to ordinary users, or run rbuild as root".to_owned());
        }
        out
    })
}

/// Mounts made later stay here, and what is unmounted outside goes away here too.
fn private_mounts() -> Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_change};
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(|e| PortError::io("make mounts private below", "/", e))
}

fn become_root() -> Result<()> {
    use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_res_gid, set_thread_res_uid};
    let change = || -> rustix::io::Result<()> {
        let (uid, gid) = (rustix::process::Uid::ROOT, rustix::process::Gid::ROOT);
        set_thread_groups(&[])?;
        set_thread_gid(gid)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)
    };
    change().map_err(|error| {
        PortError::new(
            ErrorKind::Io,
            format!("cannot become root in the user namespace: {}", io::Error::from(error)),
        )
    })
}

/// A process outside the namespace that runs newuidmap and newgidmap when told to.
struct Helper {
    pid: Pid,
    /// Commands go there, NUL between words, newline between commands; closing it starts them.
    commands: OwnedFd,
    /// What went wrong comes back.
    answer: OwnedFd,
}

impl Helper {
    fn start() -> Result<Self> {
        let pipe = || {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
                .map_err(|e| PortError::io("make", "a pipe", e))
        };
        let (command_read, commands) = pipe()?;
        let (answer, answer_write) = pipe()?;
        // SAFETY: the process has one thread, so the child may do what it likes; it never returns from here.
        match unsafe { libc::fork() } {
            -1 => Err(PortError::io("start", "a process", io::Error::last_os_error())),
            0 => {
                drop((commands, answer));
                let message = serve(command_read);
                let _sent = fs::File::from(answer_write).write_all(message.as_bytes());
                // SAFETY: ends the child without running what the parent registered.
                unsafe { libc::_exit(0) }
            }
            pid => {
                let pid = Pid::from_raw(pid)
                    .ok_or_else(|| PortError::new(ErrorKind::Internal, "a process without number"))?;
                Ok(Self { pid, commands, answer })
            }
        }
    }

    fn map(self, uids: &[String], gids: &[String]) -> Result<()> {
        let me = std::process::id().to_string();
        let line = |args: &[String]| {
            let mut words = vec![args.first().cloned().unwrap_or_default(), me.clone()];
            words.extend(args.iter().skip(1).cloned());
            words.join("\0")
        };
        let text = format!("{}\n{}", line(uids), line(gids));
        let mut commands = fs::File::from(self.commands);
        let sent = commands.write_all(text.as_bytes());
        drop(commands);
        let mut message = String::new();
        let received = fs::File::from(self.answer).read_to_string(&mut message);
        let _reaped = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
        sent.and(received.map(drop)).map_err(|e| PortError::io("map", "user ids", e))?;
        if message.is_empty() {
            return Ok(());
        }
        Err(PortError::new(ErrorKind::Unsupported, format!("cannot map user ids: {}", message.trim()))
            .help("check /etc/subuid and /etc/subgid, and that newuidmap is set-uid root or has its file capability"))
    }
}

/// In the child: waits for the commands, runs them, says what failed.
fn serve(commands: OwnedFd) -> String {
    let mut text = String::new();
    if let Err(error) = fs::File::from(commands).read_to_string(&mut text) {
        return error.to_string();
    }
    for line in text.lines() {
        let mut words = line.split('\0');
        let Some(program) = words.next() else { continue };
        let output = Command::new(program).args(words).stdin(Stdio::null()).output();
        match output {
            Ok(output) if output.status.success() => {}
            Ok(output) => return format!("{program}: {}", String::from_utf8_lossy(&output.stderr)),
            Err(error) => return format!("{program}: {error}"),
        }
    }
    String::new()
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether the map is that of no user namespace at all.
fn is_identity(map: &str) -> bool {
    let words: Vec<&str> = map.split_whitespace().collect();
    words == ["0", "0", "4294967295"]
}

fn user_name(passwd: &str, uid: u32) -> String {
    let entry =
        passwd.lines().find(|line| line.split(':').nth(2).and_then(|id| id.parse().ok()) == Some(uid));
    entry.and_then(|line| line.split(':').next()).map_or_else(|| uid.to_string(), str::to_owned)
}

/// The user's ranges in `/etc/subuid` or `/etc/subgid`: first id and count.
fn ranges(text: &str, name: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    let parse = |line: &str| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let range = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (owner == name || owner == number).then_some(range)
    };
    text.lines().filter_map(parse).filter(|(_, count)| *count > 0).collect()
}

fn count(ranges: &[(u32, u32)]) -> u32 {
    ranges.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// Program and its arguments but for the process: `0 uid 1`, then the ranges one after the other from 1.
fn map_args(program: &str, own: u32, ranges: &[(u32, u32)]) -> Vec<String> {
    let mut out = vec![program.to_owned(), "0".to_owned(), own.to_string(), "1".to_owned()];
    let mut inside = 1u32;
    for (outside, count) in ranges {
        out.extend([inside.to_string(), outside.to_string(), count.to_string()]);
        inside = inside.saturating_add(*count);
    }
    out
}

/// These programs have privileges, so they are looked for where only root writes.
fn find(program: &str) -> Option<String> {
    let path = ["/usr/bin", "/usr/local/bin", "/bin", "/usr/sbin", "/sbin", "/run/wrappers/bin"]
        .iter()
        .map(|dir| format!("{dir}/{program}"))
        .find(|path| Path::new(path).is_file())?;
    CString::new(path.clone()).ok().map(|_| path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_name_and_number_are_mapped_one_after_the_other() {
        let text = "bob:100000:65536\nalice:200000:10\n1000:300000:5\nbroken\nalice:x:1\n";
        let found = ranges(text, "alice", 1000);
        assert_eq!(found, [(200_000, 10), (300_000, 5)]);
        assert_eq!(
            map_args("m", 1000, &found),
            ["m", "0", "1000", "1", "1", "200000", "10", "11", "300000", "5"]
        );
        assert_eq!((count(&found), ranges(text, "eve", 7)), (15, vec![]));
    }

    #[test]
    fn the_initial_map_is_told_from_others() {
        assert!(is_identity("         0          0 4294967295\n"));
        assert!(!is_identity("0 1000 1\n") && !is_identity("0 1000 1\n1 100000 65536\n") && !is_identity(""));
        assert_eq!(user_name("root:x:0:0::/:/bin/sh\nbob:x:1000:1000::/:/bin/sh\n", 1000), "bob");
        assert_eq!(user_name("", 5), "5");
    }
}
