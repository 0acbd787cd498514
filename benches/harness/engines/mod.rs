//! The engines that are compared, behind one trait: which commands build, what the engine says is cached, how its store
//! is emptied. An engine measures nothing.

mod buildah;
mod buildctl;
mod docker;
mod log;
mod rbuild;

use std::path::{Path, PathBuf};

use crate::error::{BenchError, Result};
use crate::measure::{Invocation, Runner};

pub(crate) use log::{Dialect, cached_steps};

/// Names of all engines, in the order they are shown; the first is what others are compared to.
pub(crate) const NAMES: [&str; 4] = ["rbuild", "buildah", "docker", "buildctl"];

/// Network of RUN steps. No workload uses it; setting it up costs time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Network {
    /// An own network namespace with nothing in it: what every engine can do everywhere.
    None,
    /// The host's.
    Host,
    /// What the engine does when it is told nothing.
    Default,
}

impl Network {
    /// As a flag's value; nothing for the default.
    fn mode(self) -> Option<&'static str> {
        match self {
            Self::None => Some("none"),
            Self::Host => Some("host"),
            Self::Default => None,
        }
    }
}

/// One build.
#[derive(Clone, Debug)]
pub(crate) struct Build<'a> {
    /// Name of the image.
    pub(crate) tag: &'a str,
    /// The Dockerfile.
    pub(crate) dockerfile: &'a Path,
    /// The context.
    pub(crate) context: &'a Path,
    /// Do not use the cache.
    pub(crate) no_cache: bool,
    /// Write the result here, as an OCI archive.
    pub(crate) archive: Option<PathBuf>,
    /// Import a cache from this directory.
    pub(crate) cache_from: Option<PathBuf>,
    /// Export the cache of all steps (`mode=max`) into this directory.
    pub(crate) cache_to: Option<PathBuf>,
    /// Network of RUN steps.
    pub(crate) network: Network,
}

impl Build<'_> {
    /// Flags of buildx and rbuild for caches in directories.
    fn cache_flags(&self) -> Vec<String> {
        let from = self.cache_from.iter().map(|dir| format!("--cache-from=type=local,src={}", dir.display()));
        let to =
            self.cache_to.iter().map(|dir| format!("--cache-to=type=local,dest={},mode=max", dir.display()));
        from.chain(to).collect()
    }
}

/// An engine, ready to build.
pub(crate) trait Engine {
    /// One of `NAMES`.
    fn name(&self) -> &'static str;

    /// Version and how it is used, for the head of the report.
    fn about(&self) -> &str;

    /// How its output is read.
    fn dialect(&self) -> Dialect;

    /// The commands of one build; an error says why this engine cannot do it.
    fn commands(&self, build: &Build<'_>) -> std::result::Result<Vec<Invocation>, String>;

    /// The daemon that does the work, if there is one and it can be known.
    fn daemon(&self) -> Option<u32> {
        None
    }

    /// Whether the command itself does the work.
    fn standalone(&self) -> bool {
        true
    }

    /// Whether `tag` is among its images; `None` where it keeps none.
    fn has_image(&self, tag: &str, runner: &Runner) -> Result<Option<bool>>;

    /// Empties its store: images, layers, cache.
    fn reset(&mut self, runner: &Runner) -> Result<()>;

    /// Removes what the harness made.
    fn close(&mut self, runner: &Runner) -> Result<()>;
}

/// What engines are told on the command line.
#[derive(Clone, Debug, Default)]
pub(crate) struct EngineOptions {
    /// The rbuild to measure.
    pub(crate) rbuild: Option<PathBuf>,
    /// Address of a buildkitd.
    pub(crate) buildctl_addr: Option<String>,
    /// Address of a dockerd that runs; otherwise one is started.
    pub(crate) docker_host: Option<String>,
    /// Daemons that were given may be emptied.
    pub(crate) allow_prune: bool,
}

/// Makes an engine ready. `None` means that it is not there and nobody asked for it by an option.
pub(crate) fn open(
    name: &str,
    options: &EngineOptions,
    scratch: &Path,
    runner: &Runner,
    probe: &Build<'_>,
) -> Result<Option<Box<dyn Engine>>> {
    let dir = scratch.join("engines").join(name);
    crate::system::remove_tree(&dir, runner)?;
    std::fs::create_dir_all(&dir)
        .map_err(|source| BenchError::Io { doing: format!("cannot create {}", dir.display()), source })?;
    match name {
        "rbuild" => rbuild::open(options, &dir, runner),
        "buildah" => buildah::open(&dir, runner, probe),
        "docker" => docker::open(options, &dir, runner),
        "buildctl" => buildctl::open(options, runner),
        _ => Err(BenchError::Other(format!("there is no engine {name:?}; there are {}", NAMES.join(", ")))),
    }
}

/// The process that listens at a unix socket's other end.
fn listener(address: &str) -> Option<u32> {
    let path = address.strip_prefix("unix://")?;
    let stream = std::os::unix::net::UnixStream::connect(path).ok()?;
    let pid = rustix::net::sockopt::socket_peercred(&stream).ok()?.pid;
    u32::try_from(pid.as_raw_nonzero().get()).ok()
}
