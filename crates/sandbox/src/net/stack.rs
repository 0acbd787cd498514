//! User-mode network stacks: one process a namespace, which ends with it.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};

use super::nat::find;
use crate::fence::Fence;

/// How long a stack may take to set up the device.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program that is such a stack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Program {
    /// `pasta`.
    Pasta(PathBuf),
    /// `slirp4netns`.
    Slirp(PathBuf),
}

impl Program {
    pub(super) fn pasta() -> Option<Self> {
        find("pasta").map(Self::Pasta)
    }

    pub(super) fn slirp() -> Option<Self> {
        find("slirp4netns").map(Self::Slirp)
    }

    /// Where it answers questions about names, asking the host's servers wherever they are.
    pub(super) fn forwarder(&self) -> IpAddr {
        IpAddr::V4(match self {
            // Of a range for benchmarks, which nobody routes.
            Self::Pasta(_) => Ipv4Addr::new(198, 18, 0, 53),
            Self::Slirp(_) => Ipv4Addr::new(10, 0, 2, 3),
        })
    }

    fn command(&self, forward: bool) -> Command {
        // The namespace comes as standard input: stacks close other inherited descriptors, and may not look into other processes.
        match self {
            Self::Pasta(path) => {
                let mut command = Command::new(path);
                command.args([
                    "--config-net",
                    "-f",
                    "-q",
                    "--runas",
                    "0",
                    "--netns-only",
                    "--netns",
                    "/proc/self/fd/0",
                ]);
                command.args(["--no-map-gw", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]);
                if forward {
                    // Not otherwise: answers of the host's first server then seem to come from there.
                    command.arg("--dns-forward").arg(self.forwarder().to_string());
                }
                command
            }
            Self::Slirp(path) => {
                let mut command = Command::new(path);
                command.args([
                    "--configure",
                    "--mtu=65520",
                    "--disable-host-loopback",
                    "--netns-type=path",
                    "/proc/self/fd/0",
                    "eth0",
                ]);
                command
            }
        }
    }
}

/// A running stack; it is killed when dropped.
pub(super) struct Stack {
    child: Child,
    /// Goes after the stack: a fence comes down only when everything behind it has been reaped.
    _fence: Arc<Fence>,
}

impl Stack {
    /// Starts `program` for `namespace` behind the fence, where it ends with this process, and waits until `ready`. With
    /// `forward` the forwarder answers.
    pub(super) fn start(
        program: &Program,
        forward: bool,
        namespace: BorrowedFd<'_>,
        fence: &Arc<Fence>,
        cancel: &CancelToken,
        ready: impl Fn() -> bool,
    ) -> Result<Self> {
        let failed = |why: &str| {
            PortError::new(ErrorKind::Unsupported, format!("{program:?} gives no network: {why}"))
        };
        let input = namespace.as_fd().try_clone_to_owned().map_err(|e| failed(&e.to_string()))?;
        let mut command = program.command(forward);
        command
            .stdin(Stdio::from(input))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .env_clear();
        // On a thread of its own, as there is no way back from behind the fence.
        let spawned = std::thread::scope(|scope| {
            let thread = scope.spawn(|| fence.enter().and_then(|()| command.spawn()));
            thread.join().map_err(|_| failed("starting it panicked"))
        })?;
        let child = spawned.map_err(|e| failed(&e.to_string()))?;
        let mut stack = Self { child, _fence: fence.clone() };
        let begun = Instant::now();
        let mut pause = Duration::from_millis(1);
        while !ready() {
            cancel.check()?;
            if let Ok(Some(status)) = stack.child.try_wait() {
                let mut said = String::new();
                if let Some(stderr) = stack.child.stderr.as_mut() {
                    let _read = stderr.take(4096).read_to_string(&mut said);
                }
                return Err(failed(&format!("{status}: {}", said.trim())));
            }
            if begun.elapsed() > PATIENCE {
                return Err(failed("it does not get ready"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
        Ok(stack)
    }
}

impl std::fmt::Debug for Stack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Stack").field(&self.child.id()).finish()
    }
}

impl Stack {
    /// Whether it is still there.
    pub(super) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _reaped = self.child.wait();
    }
}
