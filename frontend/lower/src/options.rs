//! What a build is asked for: everything beside the Dockerfile that changes what is lowered. Plain data, made by
//! the façade; nothing here is read from a file, the environment or the clock.

use std::sync::Arc;

use rbuild_diag::SourceFile;
use rbuild_graph::{HostIp, NetMode, Ulimit};
use rbuild_oci::{Platform, Reference};

use crate::Lowered;

/// One request for one target platform.
#[derive(Clone, Debug)]
pub struct LowerOptions {
    /// `--target`: a stage's name (any case); `None` is the last stage.
    pub target: Option<String>,
    /// `--build-arg`, in order; the last of a name wins.
    pub build_args: Vec<(String, String)>,
    /// `--label`, put over the Dockerfile's labels.
    pub labels: Vec<(String, String)>,
    /// What is built for.
    pub platform: Platform,
    /// What the builder itself runs on.
    pub build_platform: Platform,
    /// Nobody asked for `platform`: it is the builder's own, and a base image of another platform decides the
    /// image's. BuildKit's `implicitTarget`.
    pub implicit_platform: bool,
    /// Several platforms are built: step names carry the platform.
    pub multi_platform: bool,
    /// `--no-cache`, `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `force-network-mode`.
    pub network: NetMode,
    /// `--add-host`.
    pub extra_hosts: Vec<HostIp>,
    /// `hostname`; empty is the sandbox's default.
    pub hostname: String,
    /// `--shm-size` in bytes; 0 is the default.
    pub shm_size: i64,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: String,
    /// `--build-context`.
    pub named_contexts: Vec<NamedContext>,
    /// Where `COPY` and `ADD` without `--from` take files from.
    pub context: MainContext,
    /// Lower every stage and not only what the target needs (`--check` without a target).
    pub all_stages: bool,
}

impl LowerOptions {
    /// The plainest request: the last stage for one platform from a local context.
    #[must_use]
    pub fn new(platform: Platform) -> Self {
        Self {
            target: None,
            build_args: vec![],
            labels: vec![],
            build_platform: platform.clone(),
            platform,
            implicit_platform: false,
            multi_platform: false,
            no_cache: NoCache::None,
            network: NetMode::Sandbox,
            extra_hosts: vec![],
            hostname: String::new(),
            shm_size: 0,
            ulimits: vec![],
            cgroup_parent: String::new(),
            named_contexts: vec![],
            context: MainContext::Local(IgnoreFile::default()),
            all_stages: false,
        }
    }
}

/// What must not be answered from the cache.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NoCache {
    /// Everything may be.
    #[default]
    None,
    /// Nothing may be.
    All,
    /// Not these stages, by name (any case).
    Stages(Vec<String>),
}

/// The patterns of a `.dockerignore`.
#[derive(Clone, Debug, Default)]
pub struct IgnoreFile {
    /// Cleaned patterns in order, comments and blank lines gone.
    pub patterns: Vec<String>,
    /// The file they came from, so that a message can show the line.
    pub file: Option<SourceFile>,
}

/// The main build context.
#[derive(Clone, Debug)]
pub enum MainContext {
    /// A directory, known to the engine as local source `context`.
    Local(IgnoreFile),
    /// A git URL with `#ref:subdir` or `?ref=…`.
    Git(String),
    /// The URL of an archive.
    Http(String),
    /// There is none (the Dockerfile came from standard input): using it is an error.
    None,
}

/// `--build-context NAME[::PLATFORM]=VALUE`.
#[derive(Clone, Debug)]
pub struct NamedContext {
    /// The name; stages and images of this name are replaced.
    pub name: String,
    /// Only for this platform; a context with a platform goes before one without.
    pub platform: Option<Platform>,
    /// What it stands for.
    pub value: NamedContextValue,
}

/// What a named context stands for.
#[derive(Clone, Debug)]
pub enum NamedContextValue {
    /// `docker-image://`.
    Image(Reference),
    /// `oci-layout://`: a layout directory and a tag or digest in it.
    OciLayout {
        /// Directory of the layout.
        path: String,
        /// `latest`, `sha256:…`; empty is the only image in it.
        reference: String,
    },
    /// A directory, known to the engine as the local source of the context's name.
    Local(IgnoreFile),
    /// A git URL with `#ref:subdir`.
    Git(String),
    /// The URL of an archive.
    Http(String),
    /// Another target that was lowered before (`target:`).
    Target(Arc<Lowered>),
}
