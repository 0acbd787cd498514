//! Images out: layers to blobs, image assembly, and one file an exporter: OCI and Docker archives, directories, root
//! file systems as tar, the own store, registries, engines. Reads layers through the ports and knows nothing of
//! Dockerfiles, graphs or cache keys. Every output is complete or absent; the same inputs give the same bytes on any
//! number of cores. Reads no environment, clock or current directory.

mod annotation;
mod archive;
mod assemble;
mod atomic;
mod compress;
mod content;
mod context;
mod gzip;
mod http;
mod image;
mod json;
mod layers;
mod load;
mod local;
mod merge;
mod push;
mod registry;
mod report;
mod rootfs_tar;
mod run;
mod spec;
mod spec_attrs;
mod store;
mod walk;

#[cfg(test)]
mod testing;

pub use annotation::{Annotation, AnnotationTarget};
pub use atomic::write_file;
pub use context::{
    BuiltImage, Digests, EngineAccess, ExportContext, ExportRequest, Exported, InlineCache, LayerDescriptor,
    Materialise, OutputReport, Stdout,
};
pub use layers::{LayerMaker, Place, PreparedLayer};
pub use registry::{OpenBlob, Registry};
pub use report::{iidfile, metadata_file};
pub use run::export;
pub use spec::{
    ArchiveOutput, CompressionSpec, Dest, ImageOptions, ImageOutput, LoadOutput, LocalMode, LocalOutput,
    OutputError, OutputSpec, TarOutput,
};
pub use spec_attrs::{Attributes, csv_fields};
