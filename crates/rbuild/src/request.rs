//! What a build is asked for. Everything is in here: the library reads no environment and no current directory.

use std::path::{Path, PathBuf};

use rbuild_cache_transfer::{CacheFrom, CacheTo};
use rbuild_export::{Annotation, Digests, OutputSpec};
use rbuild_graph::{HostIp, NetMode, Ulimit};
use rbuild_lower::NoCache;
use rbuild_oci::{Platform, Reference};
use rbuild_ports::SecretBytes;

/// Where specs of devices are by convention.
pub(crate) const CDI_SPEC_DIRS: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// One build.
#[derive(Clone, Debug)]
pub struct BuildRequest {
    /// Where `COPY` takes files from.
    pub context: Context,
    /// The Dockerfile.
    pub dockerfile: DockerfileSource,
    /// Its stage to build; `None` is the last.
    pub target: Option<String>,
    /// `--build-arg`.
    pub build_args: Vec<(String, String)>,
    /// `--label`.
    pub labels: Vec<(String, String)>,
    /// `--platform`; empty is the machine's own.
    pub platforms: Vec<Platform>,
    /// `--build-context`.
    pub named_contexts: Vec<NamedContext>,
    /// `--no-cache`, `--no-cache-filter`.
    pub no_cache: NoCache,
    /// `--pull`: ask registries even for images that are in the own store.
    pub pull: bool,
    /// `--network`.
    pub network: NetMode,
    /// `--add-host`.
    pub extra_hosts: Vec<HostIp>,
    /// `--shm-size` in bytes; 0 is the default.
    pub shm_size: i64,
    /// `--ulimit`.
    pub ulimits: Vec<Ulimit>,
    /// `--cgroup-parent`.
    pub cgroup_parent: String,
    /// `--secret`.
    pub secrets: Vec<Secret>,
    /// `--ssh`.
    pub ssh: Vec<SshAgent>,
    /// `--allow`.
    pub allow: Vec<Entitlement>,
    /// `--cdi-spec-dir`: where specs of devices are; later directories win.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// `--jobs`: steps at a time; `None` is no limit.
    pub jobs: Option<usize>,
    /// `-t`.
    pub tags: Vec<Reference>,
    /// `-o`, `--push`, `--load`. With tags and no output the image is kept in the own store.
    pub outputs: Vec<OutputSpec>,
    /// `--cache-from`.
    pub cache_from: Vec<CacheFrom>,
    /// `--cache-to`.
    pub cache_to: Vec<CacheTo>,
    /// `--annotation`.
    pub annotations: Vec<Annotation>,
    /// The digests that the report must have (`--iidfile`, `--metadata-file`).
    pub want: Digests,
}

impl BuildRequest {
    /// The plainest build: the last stage of `DIR/Dockerfile` with `DIR` as its context.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            context: Context::Dir(dir.into()),
            dockerfile: DockerfileSource::Default,
            target: None,
            build_args: vec![],
            labels: vec![],
            platforms: vec![],
            named_contexts: vec![],
            no_cache: NoCache::None,
            pull: false,
            network: NetMode::Sandbox,
            extra_hosts: vec![],
            shm_size: 0,
            ulimits: vec![],
            cgroup_parent: String::new(),
            secrets: vec![],
            ssh: vec![],
            allow: vec![],
            cdi_spec_dirs: CDI_SPEC_DIRS.map(PathBuf::from).into(),
            jobs: None,
            tags: vec![],
            outputs: vec![],
            cache_from: vec![],
            cache_to: vec![],
            annotations: vec![],
            want: Digests::None,
        }
    }
}

impl BuildRequest {
    /// Registries that the request says to be spoken to without TLS.
    pub(crate) fn insecure_hosts(&self) -> Vec<String> {
        let mut hosts = vec![];
        for output in &self.outputs {
            if let OutputSpec::Image(image) = output
                && image.insecure
            {
                let names = if self.tags.is_empty() { &image.image.names } else { &self.tags };
                hosts.extend(names.iter().map(|name| name.domain.clone()));
            }
        }
        for from in &self.cache_from {
            if let CacheFrom::Registry { reference, insecure: true } = from {
                hosts.push(reference.domain.clone());
            }
        }
        for to in &self.cache_to {
            if let CacheTo::Registry { reference, insecure: true, .. } = to {
                hosts.push(reference.domain.clone());
            }
        }
        hosts
    }
}

/// Where `COPY` takes files from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Context {
    /// A directory, read in place.
    Dir(PathBuf),
    /// A git repository: its address, with `#REF:DIRECTORY` or `?ref=…` behind it.
    Git(String),
    /// The address of an archive, or of just a Dockerfile.
    Http(String),
    /// There is none; using it is an error.
    None,
}

impl Context {
    /// What tells it from others: a path or an address.
    #[must_use]
    pub fn label(&self) -> Option<&Path> {
        match self {
            Self::Dir(dir) => Some(dir),
            Self::Git(address) | Self::Http(address) => Some(Path::new(address)),
            Self::None => None,
        }
    }
}

/// The Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DockerfileSource {
    /// `Dockerfile` in the context directory, or `dockerfile`.
    Default,
    /// This file.
    File(PathBuf),
    /// This text, known to people as `name`.
    Text {
        /// Its name.
        name: String,
        /// Its bytes.
        text: Vec<u8>,
    },
}

/// `--build-context NAME[::PLATFORM]=VALUE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedContext {
    /// The name.
    pub name: String,
    /// Only for this platform.
    pub platform: Option<Platform>,
    /// What it stands for.
    pub value: NamedContextSource,
}

/// What a named context stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContextSource {
    /// `docker-image://`.
    Image(Reference),
    /// `oci-layout://DIR[:tag][@digest]`.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// Tag or digest; empty is the only image.
        reference: String,
    },
    /// A directory.
    Dir(PathBuf),
    /// A git URL.
    Git(String),
    /// The URL of an archive.
    Http(String),
}

/// `--secret`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Secret {
    /// Its id.
    pub id: String,
    /// Where it is.
    pub source: SecretSource,
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file, read when a step needs it.
    File(PathBuf),
    /// Here.
    Bytes(SecretBytes),
}

/// `--ssh`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshAgent {
    /// Its id.
    pub id: String,
    /// The agent's socket.
    pub socket: PathBuf,
}

/// `--allow`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entitlement {
    /// `network.host`.
    NetworkHost,
    /// `security.insecure`.
    SecurityInsecure,
    /// `device`: every device of the machine.
    Devices,
    /// `device=NAME[,alias=ALIAS]`: this device, or those that the name means.
    Device {
        /// Its name, as `RUN --device` takes it.
        name: String,
        /// What the Dockerfile calls it.
        alias: Option<String>,
    },
}

impl Entitlement {
    /// As `--allow` takes it.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once('=').unwrap_or((text, ""));
        match (kind, rest) {
            ("network.host", "") => Ok(Self::NetworkHost),
            ("security.insecure", "") => Ok(Self::SecurityInsecure),
            ("device", "") => Ok(Self::Devices),
            ("device", fields) => {
                let mut fields = fields.split(',');
                let name = fields.next().unwrap_or_default().to_owned();
                let mut alias = None;
                for field in fields {
                    match field.split_once('=') {
                        Some(("alias", value)) => alias = Some(value.to_owned()).filter(|it| !it.is_empty()),
                        Some((key, _)) => return Err(format!("unknown device config key {key:?}")),
                        None => return Err(format!("invalid device config {field:?}")),
                    }
                }
                Ok(Self::Device { name, alias })
            }
            _ => Err(format!(
                "unknown entitlement {text:?}; choose network.host, security.insecure or device[=NAME]"
            )),
        }
    }
}
