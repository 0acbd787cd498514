//! Running a command. `ExecSpec` is what the key is made from; `ExecHints` never enters it.

/// Runs a command on its mounts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ExecOp {
    /// In the key.
    pub spec: ExecSpec,
    /// Not in the key.
    pub hints: ExecHints,
}

/// LLB's `ExecOp` with its `Meta`, field for field.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ExecSpec {
    /// Command and arguments.
    pub args: Vec<String>,
    /// `NAME=value`, in the order of the last assignment.
    pub env: Vec<String>,
    /// Absolute working directory.
    pub cwd: String,
    /// `USER` verbatim; empty is root.
    pub user: String,
    /// More lines for `/etc/hosts`; only the names are in the key.
    pub extra_hosts: Vec<HostIp>,
    /// Host name; empty is `buildkitsandbox`.
    pub hostname: String,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Parent control group.
    pub cgroup_parent: String,
    /// LLB's `removeMountStubsRecursive`; Dockerfile frontends set it.
    pub remove_mount_stubs_recursive: bool,
    /// Exit codes that count as success; empty is only 0.
    pub valid_exit_codes: Vec<i32>,
    /// Sorted by target, then secrets, then ssh.
    pub mounts: Vec<Mount>,
    /// Network.
    pub network: NetMode,
    /// Sandbox or not.
    pub security: SecurityMode,
    /// Secrets as variables.
    pub secret_env: Vec<SecretEnv>,
    /// Devices of the machine, as asked for or as granted.
    pub cdi_devices: Vec<CdiDevice>,
}

/// What must not change the key.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ExecHints {
    /// Predefined proxy build arguments.
    pub proxy_env: ProxyEnv,
}

/// Proxy variables, each empty when unset. They are set in both cases of letters.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`
    pub http_proxy: String,
    /// `HTTPS_PROXY`
    pub https_proxy: String,
    /// `FTP_PROXY`
    pub ftp_proxy: String,
    /// `NO_PROXY`
    pub no_proxy: String,
    /// `ALL_PROXY`
    pub all_proxy: String,
}

/// A line for `/etc/hosts`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HostIp {
    /// Name.
    pub host: String,
    /// Address.
    pub ip: String,
}

/// A resource limit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Ulimit {
    /// `nofile`, …
    pub name: String,
    /// -1 is unlimited.
    pub soft: i64,
    /// -1 is unlimited.
    pub hard: i64,
}

/// A secret as a variable.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SecretEnv {
    /// The secret's id.
    pub id: String,
    /// The variable.
    pub name: String,
    /// Absent secrets are no error.
    pub optional: bool,
}

/// A device by its name in the Container Device Interface.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct CdiDevice {
    /// `vendor/class=name`, `vendor/class=*` or `vendor/class`.
    pub name: String,
    /// An unknown device is no error.
    pub optional: bool,
}

/// One mount.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Mount {
    /// Position of the input; `None` is an empty directory (LLB's -1).
    pub input: Option<u32>,
    /// Path inside the input; empty is its root.
    pub selector: String,
    /// Where it appears.
    pub dest: String,
    /// The output its changes become; `None` drops them (LLB's -1).
    pub output: Option<u32>,
    /// No writing.
    pub readonly: bool,
    /// What it is.
    pub kind: MountKind,
    /// Whether its content may stand for its key.
    pub content_cache: ContentCache,
}

/// Kinds of mounts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum MountKind {
    /// An input.
    Bind,
    /// A directory that outlives the step.
    Cache {
        /// `<namespace>/<id>`.
        id: String,
        /// Who may use it at the same time.
        sharing: CacheSharing,
    },
    /// Memory.
    Tmpfs {
        /// Bytes; 0 is no limit of its own.
        size: i64,
    },
    /// A file with a secret.
    Secret {
        /// The secret's id.
        id: String,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
        /// Absent secrets are no error.
        optional: bool,
    },
    /// A socket of an ssh agent.
    Ssh {
        /// The agent's id; empty is `default`.
        id: String,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Permission bits.
        mode: u32,
        /// An absent agent is no error.
        optional: bool,
    },
}

/// Sharing of a cache mount.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum CacheSharing {
    /// All at once.
    #[default]
    Shared,
    /// Each its own.
    Private,
    /// One after the other.
    Locked,
}

/// LLB's `MountContentCache`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum ContentCache {
    /// Decided by the mount.
    #[default]
    Default,
    /// Yes.
    On,
    /// No.
    Off,
}

/// Network of a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum NetMode {
    /// A namespace of its own with outbound connections.
    #[default]
    Sandbox,
    /// The host's.
    Host,
    /// Loopback only.
    None,
}

/// Security of a step.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum SecurityMode {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities, no filters.
    Insecure,
}
