//! The local context, in place: nothing is copied first. Files are hashed where they lie, in parallel, and what was
//! hashed once is remembered by what the file system says of it.

mod cache_file;
mod filter;
mod follow;
mod hash;
mod pool;
mod root;
mod stat;
mod stat_cache;
mod unpack;
mod view;
mod walk;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rbuild_graph::LocalSource;
use rbuild_ports::{CancelToken, Result, View};

use root::Root;
use stat_cache::StatCache;
use view::LocalView;

pub use unpack::{is_archive, unpack_context_tar};

/// Views of local directories of one build. Asked for the same thing again, it gives the same view, so a build sees
/// one state of its context.
pub(crate) struct Contexts {
    state: Option<PathBuf>,
    caches: Mutex<HashMap<PathBuf, Arc<StatCache>>>,
    views: Mutex<HashMap<(PathBuf, LocalSource), Arc<LocalView>>>,
}

impl Contexts {
    pub(crate) fn new(state: Option<PathBuf>) -> Self {
        Self { state, caches: Mutex::default(), views: Mutex::default() }
    }

    /// The directory `dir`, filtered as `source` says.
    pub(crate) fn view(
        &self,
        dir: &Path,
        source: &LocalSource,
        cancel: &CancelToken,
    ) -> Result<Arc<dyn View>> {
        let key = (dir.to_owned(), source.clone());
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(view) = views.get(&key) {
            return Ok(view.clone());
        }
        let root = Root::open(dir)?;
        let cache = self.cache(root.path());
        let view = Arc::new(LocalView::new(root, cache, source, cancel)?);
        views.insert(key, view.clone());
        Ok(view)
    }

    fn cache(&self, root: &Path) -> Arc<StatCache> {
        let mut caches = self.caches.lock().unwrap_or_else(PoisonError::into_inner);
        let load = || Arc::new(StatCache::load(self.state.as_deref(), root));
        caches.entry(root.to_owned()).or_insert_with(load).clone()
    }
}
