//! What exports get of the ports of a build.

use rbuild_engine::Ports;
use rbuild_export::{EngineAccess, ExportContext};
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result, SilentProgress, Snapshot};

/// For work on layers that tells nobody: it reaches no registry to push to, no engine and no standard output.
pub(crate) fn layers_only<'a>(ports: &'a Ports, cancel: &'a CancelToken) -> ExportContext<'a> {
    static NO_ENGINE: EngineAccess = EngineAccess { docker_socket: None, podman: None };
    ExportContext {
        blobs: &*ports.blobs,
        snapshots: &*ports.snapshots,
        index: &*ports.index,
        sources: &*ports.sources,
        materialise: &not_materialised,
        registry: None,
        clock: &*ports.clock,
        progress: &SilentProgress,
        cancel,
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        stdout: None,
        engine: &NO_ENGINE,
    }
}

fn not_materialised(_: &Snapshot) -> Result<()> {
    Err(PortError::new(ErrorKind::Internal, "layers are exported as they are"))
}
