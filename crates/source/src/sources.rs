//! The `Sources` port on this machine. One value serves one build: what a tag resolved to is remembered for its life,
//! so a build never sees two answers. The registry client behind it may be shared by many builds.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_graph::{GitSource, HttpSource, LocalSource};
use rbuild_ports::{
    CancelToken, ErrorKind, ImageRequest, PortError, Progress, RemoteBlob, ResolveMode, ResolvedGit,
    ResolvedImage, Result, Secrets, Sources, View,
};

use crate::context::Contexts;
use crate::git::Repositories;
use crate::http::Downloads;
use crate::image::Images;
use crate::layout::Layout;
use crate::registry::{Registry, Repository};

/// What a build's sources are made from.
#[derive(Clone)]
pub struct SourceOptions {
    /// A directory of rbuild's own for what is remembered between builds: `statcache/`, `images-meta/`, `http/`. All of it
    /// may be deleted at any time. `None` remembers nothing.
    pub state: Option<PathBuf>,
    /// Local directories by context name: `context`, and named contexts.
    pub contexts: BTreeMap<String, PathBuf>,
    /// The registry client.
    pub registry: Registry,
    /// When a registry cannot be reached, go on with what its tag was when it was last asked (never for `--pull`).
    pub offline_ok: bool,
    /// The largest file that is downloaded from the web.
    pub max_download: u64,
    /// Credentials for git servers and agents for ssh.
    pub secrets: Option<Arc<dyn Secrets>>,
    /// Told what the user should know: a registry that could not be reached.
    pub warn: Arc<dyn Fn(&str) + Send + Sync>,
}

impl SourceOptions {
    /// Remembers in `state`, asks registries with `registry`, says nothing.
    #[must_use]
    pub fn new(state: Option<PathBuf>, registry: Registry) -> Self {
        Self {
            state,
            contexts: BTreeMap::new(),
            registry,
            offline_ok: true,
            max_download: 64 << 30,
            secrets: None,
            warn: Arc::new(|_| {}),
        }
    }
}

/// The sources of one build.
pub struct HostSources {
    contexts: BTreeMap<String, PathBuf>,
    registry: Registry,
    images: Images,
    views: Contexts,
    downloads: Downloads,
    repositories: Repositories,
}

impl HostSources {
    /// Sources for one build. Nothing is read or connected yet.
    #[must_use]
    pub fn new(options: SourceOptions) -> Self {
        let SourceOptions { state, contexts, registry, offline_ok, max_download, secrets, warn } = options;
        let images = Images::new(registry.clone(), state.as_deref(), offline_ok, warn);
        let downloads = Downloads::new(registry.clone(), state.as_deref(), max_download);
        let repositories = Repositories::new(state.as_deref(), secrets);
        Self { contexts, registry, images, views: Contexts::new(state), downloads, repositories }
    }
}

impl Sources for HostSources {
    fn resolve_image(
        &self,
        request: &ImageRequest,
        mode: ResolveMode,
        cancel: &CancelToken,
    ) -> Result<ResolvedImage> {
        self.images.resolve(request, mode, cancel)
    }

    fn fetch_blob(&self, blob: &RemoteBlob, cancel: &CancelToken) -> Result<Box<dyn Read + Send>> {
        if let Some(layout) = Layout::of_location(&blob.location) {
            return Ok(Box::new(layout.open_blob(&blob.descriptor)?));
        }
        let repository = Repository::parse(&blob.location)?;
        Ok(Box::new(self.registry.fetch_blob(&repository, &blob.descriptor, cancel)?))
    }

    fn local(&self, source: &LocalSource, cancel: &CancelToken) -> Result<Arc<dyn View>> {
        let dir = self.contexts.get(&source.name).ok_or_else(|| {
            PortError::new(ErrorKind::NotFound, format!("there is no local context {:?}", source.name))
        })?;
        self.views.view(dir, source, cancel)
    }

    fn http(
        &self,
        source: &HttpSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<(Arc<dyn View>, Digest)> {
        self.downloads.fetch(source, progress, cancel)
    }

    fn resolve_git(&self, url: &str, reference: &str, cancel: &CancelToken) -> Result<ResolvedGit> {
        self.repositories.resolve(url, reference, cancel)
    }

    fn git(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Arc<dyn View>> {
        self.repositories.view(source, progress, cancel)
    }

    fn git_commit_time(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<i64> {
        self.repositories.commit_time(source, progress, cancel)
    }
}
