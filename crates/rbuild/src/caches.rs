//! The caches of a build: which imports are read beside it, and what they are called in its progress.

use std::sync::Arc;

use rbuild_cache_transfer::{
    CacheFrom, CacheSource, CombinedIndex, ImportedCache, Imports, LayoutSource, RegistrySource,
};
use rbuild_engine::Ports;
use rbuild_ports::CancelToken;

use crate::vertices::Vertices;
use crate::{BuildRequest, Store};

/// A source that shows up in the progress when it is read.
struct Shown<S> {
    source: S,
    vertices: Arc<Vertices>,
}

impl<S: CacheSource> CacheSource for Shown<S> {
    fn name(&self) -> String {
        self.source.name()
    }

    fn read(&self, cancel: &CancelToken) -> rbuild_ports::Result<Vec<ImportedCache>> {
        let task = self.vertices.task(&format!("importing cache manifest from {}", self.name()));
        task.finish(self.source.read(cancel))
    }
}

/// Starts to read the imports of `request`, and makes them part of the index of `ports`.
pub(crate) fn import(
    request: &BuildRequest,
    store: &Store,
    ports: &mut Ports,
    vertices: &Arc<Vertices>,
    cancel: &CancelToken,
) -> Option<Arc<CombinedIndex>> {
    if request.cache_from.is_empty() {
        return None;
    }
    let sources = request.cache_from.iter().map(|from| -> Arc<dyn CacheSource> {
        let vertices = vertices.clone();
        match from.clone() {
            CacheFrom::Registry { reference, .. } => {
                let registry = store.registry().clone();
                Arc::new(Shown { source: RegistrySource { registry, reference }, vertices })
            }
            CacheFrom::Local { src: dir, tag, digest } => {
                Arc::new(Shown { source: LayoutSource { dir, tag, digest }, vertices })
            }
        }
    });
    let imports = Imports::start(sources.collect(), cancel);
    let combined = Arc::new(CombinedIndex::new(ports.index.clone(), imports, ports.clock.clone()));
    ports.index = combined.clone();
    Some(combined)
}
