//! Opens a store and wires the adapters together: the only place that knows them all.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rbuild_cache_explain::Trace;
use rbuild_cache_index::{
    CheckOptions, GcPolicy, Index, Options as IndexOptions, PruneOptions, PruneReport, StoreReport, UsageRow,
};
use rbuild_engine::Ports;
use rbuild_export::EngineAccess;
use rbuild_ports::{Clock, ImageRecord, Result, Timestamp};
use rbuild_sandbox::{Rootless, Sandbox, SandboxOptions};
use rbuild_snapshot::{LayerStore, LayerStoreOptions};
use rbuild_source::{DockerConfig, HostSources, ProxyOptions, Registry, RegistryOptions, SourceOptions};
use rbuild_store::{BootId, FileFlights, History, Root, Store as Blobs, Sums};

use crate::check::{Inspector, Sealing};
use crate::collect::Collecting;
use crate::devices::SpecDirs;
use crate::history::Historian;
use crate::secrets::Lent;
use crate::vertices::Vertices;
use crate::{BuildRequest, Context, DockerfileSource, NamedContextSource};

/// Rows this old are made to survive a power cut when the next build starts.
const PROMOTE_AGE: Duration = Duration::from_secs(60);

/// How to open a store. The library reads no environment; the caller says what it says.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// The store's directory; made when it is missing.
    pub root: PathBuf,
    /// What `enter_user_namespace` returned; `Rootless::Root` for root.
    pub rootless: Rootless,
    /// Files with registry credentials (`~/.docker/config.json`, podman's `auth.json`); the first that knows a host decides.
    pub credential_files: Vec<PathBuf>,
    /// Proxies for registries and downloads.
    pub proxy: ProxyOptions,
    /// Further bundles of certificate authorities (`SSL_CERT_FILE`).
    pub certificate_files: Vec<PathBuf>,
    /// Further directories of them (`SSL_CERT_DIR`).
    pub certificate_dirs: Vec<PathBuf>,
    /// Registries that speak plain HTTP, besides those on loopback addresses.
    pub plain_http: Vec<String>,
    /// Engines that `--load` reaches.
    pub engine: EngineAccess,
}

impl StoreOptions {
    /// A store at `root` without credentials, proxies and engines.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            rootless: Rootless::Root,
            credential_files: vec![],
            proxy: ProxyOptions::default(),
            certificate_files: vec![],
            certificate_dirs: vec![],
            plain_http: vec![],
            engine: EngineAccess::default(),
        }
    }
}

/// An open store. What it was asked for is protected from garbage collection until it is dropped.
pub struct Store {
    root: Arc<Root>,
    index: Arc<Index>,
    blobs: Arc<Blobs>,
    snapshots: Arc<LayerStore>,
    sandbox: Arc<Sandbox>,
    registry: Registry,
    registry_options: RegistryOptions,
    clock: Arc<dyn Clock>,
    pub(crate) engine_access: EngineAccess,
    warnings: Mutex<Vec<String>>,
}

/// The system's time.
struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
    }
}

impl Store {
    /// Opens the store.
    ///
    /// # Errors
    /// If its directory cannot be used, or another version made it.
    pub fn open(options: StoreOptions) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let root = Root::open(&options.root, BootId::current())?;
        let pin_root = root.clone();
        let snapshots = Arc::new(LayerStore::open(
            root.path(),
            LayerStoreOptions {
                userns: options.rootless != Rootless::Root,
                squash_owners: matches!(options.rootless, Rootless::SingleUser { .. }),
                clock: clock.clone(),
                pin: Arc::new(move |layer| pin_root.pin_layer(layer)),
            },
        )?);
        let blobs = Arc::new(Blobs::open(&root)?);
        let (index, report) = Index::open(
            &root,
            IndexOptions { snapshots: snapshots.clone(), blobs: blobs.clone(), clock: clock.clone() },
        )?;
        let registry_options = registry_options(&options);
        let mut warnings = Vec::new();
        if let Some(moved) = report.damaged {
            warnings.push(format!(
                "the cache index was damaged and begins anew; the old one is {}",
                moved.display()
            ));
        }
        Ok(Self {
            root,
            index: Arc::new(index),
            blobs,
            snapshots,
            sandbox: Arc::new(Sandbox::new(SandboxOptions::recommended())),
            registry: Registry::new(registry_options.clone()),
            registry_options,
            clock,
            engine_access: options.engine,
            warnings: Mutex::new(warnings),
        })
    }

    /// Its directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The images that have names.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub fn images(&self) -> Result<Vec<ImageRecord>> {
        use rbuild_ports::CacheIndex as _;
        self.index.images()
    }

    /// The time, as the store has it.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// All that takes space.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn usage(&self) -> Result<Vec<UsageRow>> {
        self.index.usage()
    }

    /// Removes cache. Builds may go on meanwhile; what they use stays.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn prune(&self, options: &PruneOptions) -> Result<PruneReport> {
        let report = self.index.prune(options)?;
        if !options.dry_run {
            self.index.promote()?;
        }
        Ok(report)
    }

    /// Starts to remove what `policy` says is too much; see `Collecting`.
    #[must_use]
    pub fn start_collecting(&self, policy: GcPolicy) -> Collecting {
        Collecting::start(self.root.path(), self.index.clone(), policy)
    }

    /// Looks the whole store over; see `CheckOptions`. Builds may go on meanwhile.
    ///
    /// # Errors
    /// If the store cannot be read, or written for a repair. Damage is in the report.
    pub fn check(&self, options: CheckOptions) -> Result<StoreReport> {
        let inspector =
            Inspector { snapshots: &*self.snapshots, index: &*self.index, sums: Sums::of(&self.root) };
        let report = self.index.check(options, &|layer| inspector.inspect(layer))?;
        inspector.sums.tidy()?;
        Ok(report)
    }

    /// Its directory.
    pub(crate) fn path(&self) -> &Path {
        self.root.path()
    }

    /// What opening the store found, once.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        self.take_warnings()
    }

    /// The ports of one build.
    pub(crate) fn session(&self, request: &BuildRequest, vertices: &Arc<Vertices>) -> Ports {
        let mut sources = SourceOptions::new(Some(self.root.path().to_owned()), self.registry(request));
        let mut contexts = BTreeMap::new();
        if let Context::Dir(dir) = &request.context {
            contexts.insert("context".to_owned(), dir.clone());
        }
        for named in &request.named_contexts {
            if let NamedContextSource::Dir(dir) = &named.value {
                contexts.insert(named.name.clone(), dir.clone());
            }
        }
        sources.contexts = contexts;
        let secrets = Arc::new(Lent { secrets: request.secrets.clone(), ssh: request.ssh.clone() });
        sources.secrets = Some(secrets.clone());
        let warn = vertices.clone();
        sources.warn = Arc::new(move |message| warn.warn(message));
        Ports {
            index: self.index.clone(),
            snapshots: self.snapshots.clone(),
            blobs: self.blobs.clone(),
            executor: self.sandbox.clone(),
            sources: Arc::new(HostSources::new(sources)),
            secrets,
            devices: Arc::new(SpecDirs(request.cdi_spec_dirs.clone())),
            clock: self.clock.clone(),
            flights: Arc::new(FileFlights::of(&self.root)),
        }
    }

    /// The newest explained build of this Dockerfile (`None` is the context's own) and context; without either, of any.
    #[must_use]
    pub fn last_trace(&self, dockerfile: Option<&Path>, context: Option<&Path>) -> Option<Trace> {
        let history = History::of(&self.root);
        let found = match (dockerfile, context) {
            (None, None) => history.latest(1),
            (file, context) => {
                let own = context.map(|dir| dir.join("Dockerfile"));
                let file = file.map(Path::to_owned).or(own).unwrap_or_default();
                history.traces(&crate::history::what(&file, context))
            }
        };
        found.iter().find_map(|bytes| Trace::from_bytes(bytes))
    }

    /// The newest build of what `request` asks for, if it began at `since` or later.
    #[must_use]
    pub fn trace_of(&self, request: &BuildRequest, since: Timestamp) -> Option<Trace> {
        let file = match &request.dockerfile {
            DockerfileSource::Default => None,
            DockerfileSource::File(file) => Some(file.as_path()),
            DockerfileSource::Text { name, .. } => Some(Path::new(name)),
        };
        self.last_trace(file, request.context.label()).filter(|trace| trace.at >= since.0)
    }

    pub(crate) fn start_sealing(&self) -> Option<Sealing> {
        Sealing::start(self.snapshots.clone(), self.index.clone(), Sums::of(&self.root))
    }

    pub(crate) fn historian(&self, build: (String, Timestamp)) -> Arc<Historian> {
        Historian::start(Arc::new(History::of(&self.root)), self.index.clone(), build)
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        self.clock.clone()
    }

    /// The registry client of one build: `registry.insecure=true` counts for all that it does with that host.
    pub(crate) fn registry(&self, request: &BuildRequest) -> Registry {
        let hosts = request.insecure_hosts();
        if hosts.is_empty() {
            return self.registry.clone();
        }
        let mut options = self.registry_options.clone();
        for host in hosts {
            options.hosts.entry(host).or_default().plain_http = Some(true);
        }
        Registry::new(options)
    }

    /// The content keys by which one input of an operation was found to lead to `key`.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub(crate) fn content_links(
        &self,
        key: &rbuild_ports::KeyId,
        op: &rbuild_digest::Digest,
        input: u32,
    ) -> Result<Vec<rbuild_digest::Digest>> {
        let links = self.index.links_to(key)?;
        let here =
            links.iter().filter(|link| link.input == input && link.op == *op && link.selector.is_none());
        Ok(here.filter_map(|link| link.source.0.parse().ok()).collect())
    }

    pub(crate) fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// In the background: what earlier builds made is synced, once it is old enough for that to be cheap.
    pub(crate) fn begin_build(&self) {
        let index = self.index.clone();
        if index.needs_promote(PROMOTE_AGE).unwrap_or(false) {
            // Failing only means that a power cut may cost some cache.
            std::thread::spawn(move || drop(index.promote()));
        }
    }

    /// Counts what was used; failing only makes garbage collection guess worse.
    pub(crate) fn finish_build(&self) {
        drop(self.index.touch_used());
    }
}

fn registry_options(options: &StoreOptions) -> RegistryOptions {
    let mut out = RegistryOptions::anonymous();
    if !options.credential_files.is_empty() {
        out.credentials = Arc::new(DockerConfig::new(options.credential_files.clone()));
    }
    out.proxy = options.proxy.clone();
    out.trust.bundles.splice(0..0, options.certificate_files.iter().cloned());
    out.trust.directories.extend(options.certificate_dirs.iter().cloned());
    for host in &options.plain_http {
        out.hosts.entry(host.clone()).or_default().plain_http = Some(true);
    }
    out
}
