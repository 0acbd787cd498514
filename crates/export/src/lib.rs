//! Images out: layers to blobs, image assembly, and one file an exporter: OCI and Docker archives, directories, root
//! file systems as tar, the own store, registries, engines. Reads layers through the ports and knows nothing of
//! Dockerfiles, graphs or cache keys. Every output is complete or absent; the same inputs give the same bytes on any
//! number of cores. Reads no environment, clock or current directory.

mod annotation;
mod assemble;
mod compress;
mod context;
mod gzip;
mod json;
mod layers;
mod registry;
mod spec;
mod spec_attrs;
mod time;

#[cfg(test)]
mod testing;

pub use annotation::{Annotation, AnnotationTarget};
pub use context::{
    BuiltImage, EngineAccess, ExportContext, ExportRequest, Exported, InlineCache, LayerDescriptor,
    OutputReport, Stdout,
};
pub use layers::{LayerMaker, Place, PreparedLayer};
pub use registry::{OpenBlob, Registry};
pub use spec::{
    ArchiveOutput, CompressionSpec, Dest, ImageOptions, ImageOutput, LoadOutput, LocalMode, LocalOutput,
    OutputError, OutputSpec, TarOutput,
};

use rbuild_ports::Result;

/// Writes `request.images` to all of `request.outputs`. Layers are made into blobs once and shared by the outputs.
///
/// # Errors
/// If an output cannot be written, a layer cannot be read or fetched, a registry or engine refuses, or `Cancelled`.
/// What was not finished is not visible.
pub fn export(cx: &ExportContext<'_>, request: &ExportRequest<'_>) -> Result<Exported> {
    cx.cancel.check()?;
    let _ = request;
    Err(rbuild_ports::PortError::new(
        rbuild_ports::ErrorKind::Unsupported,
        "exporting is not complete in this revision",
    ))
}
