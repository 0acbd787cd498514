//! Caches as BuildKit exports them, as data: the config of records and layers (`application/vnd.buildkit.cacheconfig.v0`),
//! the manifests around it, the records inside an image config; read from foreign bytes without trust, merged, looked up by
//! BuildKit's algebra, and written in one order only. Pure: knows no registry, no directory and no store.

mod chains;
mod chunker;
mod config;
mod imported;
mod inline;
mod manifest;
mod mounts;

#[cfg(test)]
mod tests;

pub use chains::{Chains, RecordId};
pub use chunker::Chunker;
pub use config::{CacheConfig, ConfigError, Layer, Link, MAX_CONFIG, Record, RecordResult, ResultLayers};
pub use imported::{Found, Imported, ImportedLayer, ImportedResult, Way};
pub use inline::{inline_config, inline_records};
pub use manifest::{
    CREATED_AT, CacheManifest, Form, ManifestError, RemoteDocument, UNCOMPRESSED, read_document,
    write_manifest,
};
pub use mounts::{CHUNK_TYPE, Chunk, MOUNTS_TYPE, MountContent, MountIndex, NOTES_TYPE};
