//! Caches in and out of the store. Imports are read beside the build and answer as part of its index: what is hit becomes
//! a local record whose layers stay where they are. Exports go to registries, directories and image configs, merged with
//! what is there. One more backend is one more `CacheSource` or `CacheTarget`. Knows nothing of Dockerfiles and graphs.

mod combined;
mod import;
mod source;
mod spec;

pub use combined::CombinedIndex;
pub use import::{ImportedCache, Imports};
pub use source::{CacheSource, LayoutSource, RegistrySource};
pub use spec::{CacheFrom, CacheMode, CacheOptions, CacheSpecError, CacheTo};
