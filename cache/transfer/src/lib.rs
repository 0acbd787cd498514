//! Caches in and out of the store. Imports are read beside the build and answer as part of its index: what is hit becomes
//! a local record whose layers stay where they are. Exports go to registries, directories and image configs, merged with
//! what is there. One more backend is one more `CacheSource` or `CacheTarget`. Knows nothing of Dockerfiles and graphs.

mod combined;
mod export;
mod import;
mod layout_target;
mod merge;
mod mounts;
mod notes;
mod registry_target;
mod restore;
mod source;
mod spec;
mod steps;
mod target;

#[cfg(test)]
mod tests;

pub use combined::CombinedIndex;
pub use export::{CacheExported, export_cache, inline_cache, send_ahead};
pub use import::{ImportedCache, Imports};
pub use layout_target::LayoutTarget;
pub use notes::CacheNotes;
pub use registry_target::RegistryTarget;
pub use restore::RestoringSnapshots;
pub use source::{CacheSource, LayoutSource, RegistrySource};
pub use spec::{CacheFrom, CacheMode, CacheOptions, CacheSpecError, CacheTo};
pub use steps::{ExportGraph, ExportInput, ExportOutput, ExportStep};
pub use target::{CacheTarget, ExistingCache, OpenBlob};
