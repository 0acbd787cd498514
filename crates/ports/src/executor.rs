//! Running one command in a sandbox.

use std::fmt;
use std::path::PathBuf;

use rbuild_graph::{HostIp, NetMode, ProxyEnv, SecurityMode, Ulimit};

use crate::{CancelToken, Result};

/// Runs commands.
pub trait Executor: Send + Sync {
    /// Runs `request` to its end; its output goes to `progress`. When it returns, no process of it is left, and no
    /// mount, control group or network namespace.
    ///
    /// # Errors
    /// If the sandbox cannot be made (with what is missing and how to get it), `Cancelled`, or `Denied`. A command
    /// that fails is no error but an outcome.
    fn run(
        &self,
        request: &ExecRequest,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<ExecOutcome>;
}

/// One command, fully resolved.
#[derive(Debug)]
pub struct ExecRequest {
    /// For names of control groups and the like: `a-z0-9`, unique in the process.
    pub id: String,
    /// Command and arguments; not empty.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Secrets as variables: name and value. Never logged.
    pub secret_env: Vec<(String, SecretBytes)>,
    /// Proxy variables, set in both cases of letters where not set already.
    pub proxy_env: ProxyEnv,
    /// Absolute; made if missing.
    pub cwd: String,
    /// `USER` verbatim, looked up in the root file system; empty is root.
    pub user: String,
    /// Empty is `buildkitsandbox`.
    pub hostname: String,
    /// More lines for `/etc/hosts`.
    pub extra_hosts: Vec<HostIp>,
    /// Network.
    pub network: NetMode,
    /// Sandbox or not.
    pub security: SecurityMode,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Parent control group; empty is the default.
    pub cgroup_parent: String,
    /// The root file system.
    pub root: OverlayDirs,
    /// No writing to the root file system.
    pub root_readonly: bool,
    /// In order, parents before children.
    pub mounts: Vec<ExecMount>,
    /// What devices of the machine add.
    pub devices: DeviceEdits,
}

/// One mount besides the root.
#[derive(Debug)]
pub struct ExecMount {
    /// Absolute; made if missing and removed again afterwards.
    pub dest: String,
    /// No writing.
    pub readonly: bool,
    /// Path inside the source, links resolved inside it; empty is its root. May be a file.
    pub selector: String,
    /// What is mounted.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Debug)]
pub enum MountSource {
    /// Layers; without an upper directory it is read-only.
    Layers(OverlayDirs),
    /// A directory of the store as it is (cache mounts).
    Dir(PathBuf),
    /// Memory; 0 bytes is no limit of its own.
    Tmpfs {
        /// Bytes.
        size: u64,
    },
    /// A file in memory.
    Secret {
        /// Content.
        data: SecretBytes,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
    },
    /// A socket that leads to an ssh agent.
    SshAgent {
        /// The agent's socket on the host.
        socket: PathBuf,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
    },
}

/// What devices of the machine add to a step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DeviceEdits {
    /// `NAME=value`, in place of what the step has.
    pub env: Vec<String>,
    /// Each path once.
    pub nodes: Vec<DeviceNode>,
    /// Each path once; like other mounts they come after what the sandbox brings.
    pub mounts: Vec<HostMount>,
    /// More groups of the step's user.
    pub groups: Vec<u32>,
}

/// A device node. What is `None` is as on the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceNode {
    /// Absolute path in the step.
    pub path: String,
    /// Absolute path on the machine.
    pub host_path: PathBuf,
    /// Its type.
    pub kind: Option<DeviceKind>,
    /// Major and minor number.
    pub number: Option<(u32, u32)>,
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner; otherwise the step's user.
    pub uid: Option<u32>,
    /// Group; otherwise that of the step's user.
    pub gid: Option<u32>,
    /// Of `rwm`; empty is all.
    pub permissions: String,
}

/// Types of device nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DeviceKind {
    /// Block device.
    Block,
    /// Character device.
    Character,
    /// Named pipe.
    Pipe,
}

/// A path of the machine in a step.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostMount {
    /// Absolute path on the machine.
    pub source: PathBuf,
    /// Absolute path in the step.
    pub dest: String,
    /// With what is mounted below.
    pub recursive: bool,
    /// No writing.
    pub readonly: bool,
    /// Programs do not get the ids of their owners.
    pub nosuid: bool,
    /// Devices cannot be opened.
    pub nodev: bool,
    /// Programs cannot be run.
    pub noexec: bool,
}

/// Directories of an overlay mount.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OverlayDirs {
    /// Directory that holds the layers: mounts are made relative to it, so that many fit.
    pub base: PathBuf,
    /// Relative to `base`, from the bottom up; empty for scratch.
    pub lower: Vec<String>,
    /// Absolute; `None` is read-only.
    pub upper: Option<PathBuf>,
    /// Absolute, on the same file system as `upper`, empty.
    pub work: Option<PathBuf>,
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ExecOutcome {
    /// With this exit code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// By the kernel for want of memory.
    OutOfMemory,
}

/// Bytes that are never printed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct SecretBytes(pub Vec<u8>);

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretBytes({} bytes)", self.0.len())
    }
}

/// A stream of output.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a running step tells how far it is.
pub trait Progress: Send + Sync {
    /// Output of the command.
    fn log(&self, stream: Stream, data: &[u8]);

    /// `current` of `total` bytes (or things) of the part `id`; the same `id` again updates it, and it is complete
    /// when `done`.
    fn status(&self, id: &str, current: u64, total: Option<u64>, done: bool);

    /// Something the user must be told aloud: a weaker sandbox, no network.
    fn warn(&self, message: &str);
}

/// Says nothing.
pub struct SilentProgress;

impl Progress for SilentProgress {
    fn log(&self, _stream: Stream, _data: &[u8]) {}
    fn status(&self, _id: &str, _current: u64, _total: Option<u64>, _done: bool) {}
    fn warn(&self, _message: &str) {}
}
