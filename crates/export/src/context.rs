//! What an export is given and what it gives back, as plain data.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Mutex;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, ImageConfig, Platform, Reference};
use rbuild_ports::{
    BlobStore, CacheIndex, CancelToken, Clock, LayerId, Progress, Result, Snapshot, Snapshots, Sources,
};

use crate::registry::Registry;
use crate::{Annotation, OutputSpec};

/// Where archives to `-` go.
pub type Stdout = Mutex<dyn Write + Send>;

/// The ports an export uses.
#[derive(Clone, Copy)]
pub struct ExportContext<'a> {
    /// Blobs.
    pub blobs: &'a dyn BlobStore,
    /// Layers on the disk.
    pub snapshots: &'a dyn Snapshots,
    /// What is known of layers, and the own store's images.
    pub index: &'a dyn CacheIndex,
    /// Fetches layers that are not here.
    pub sources: &'a dyn Sources,
    /// Brings all layers of a snapshot onto the disk, for exports of files.
    pub materialise: &'a Materialise<'a>,
    /// For pushing.
    pub registry: Option<&'a dyn Registry>,
    /// For `ImageRecord::created`, and for what exported caches say of their age: no byte of an image depends on it.
    pub clock: &'a dyn Clock,
    /// Told how far it is.
    pub progress: &'a dyn Progress,
    /// Asked often.
    pub cancel: &'a CancelToken,
    /// Threads for compression; at least 1.
    pub threads: usize,
    /// For outputs to `-`; `None` refuses them (a terminal).
    pub stdout: Option<&'a Stdout>,
    /// Engines for `--load`.
    pub engine: &'a EngineAccess,
}

/// Makes all layers of a snapshot present.
pub type Materialise<'a> = dyn Fn(&Snapshot) -> Result<()> + Sync + 'a;

/// How other engines on this machine are reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EngineAccess {
    /// Docker's socket (`/var/run/docker.sock`, or what `DOCKER_HOST` names).
    pub docker_socket: Option<PathBuf>,
    /// The podman program, used when there is no socket.
    pub podman: Option<PathBuf>,
}

/// The result for one platform.
#[derive(Clone, PartialEq, Debug)]
pub struct BuiltImage {
    /// The platform.
    pub platform: Platform,
    /// The file system.
    pub snapshot: Snapshot,
    /// The image config as lowered: history with its `empty_layer` flags, no `rootfs`.
    pub config: ImageConfig,
    /// How many of the first history entries came with the base image; a clamp leaves them alone.
    pub base_history: usize,
}

/// A layer of an assembled image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerDescriptor {
    /// The layer.
    pub layer: LayerId,
    /// Digest of its tar.
    pub diff_id: Digest,
    /// The blob: media type, digest, size.
    pub descriptor: Descriptor,
}

/// Makes `moby.buildkit.cache.v0` (base64) for an image from its layers; `None` is no inline cache.
pub type InlineCache<'a> = dyn Fn(&BuiltImage, &[LayerDescriptor]) -> Result<Option<String>> + Sync + 'a;

/// What to export and whereto.
#[derive(Clone, Copy)]
pub struct ExportRequest<'a> {
    /// One a platform, in order.
    pub images: &'a [BuiltImage],
    /// An index, and a directory for each platform: usual for several, possible for one.
    pub indexed: bool,
    /// All outputs.
    pub outputs: &'a [OutputSpec],
    /// `-t`; replaces the outputs' own `name=` when not empty.
    pub names: &'a [Reference],
    /// `--annotation`, for every image output.
    pub annotations: &'a [Annotation],
    /// Seconds since 1970; later times are clamped to it. An output's own `source-date-epoch` comes first.
    pub source_date_epoch: Option<i64>,
    /// Adds the inline cache to image configs.
    pub inline_cache: Option<&'a InlineCache<'a>>,
    /// The digests that are wanted even when the image only goes to the own store.
    pub want: Digests,
}

/// Digests that a caller wants to know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Digests {
    /// Those that come by themselves.
    #[default]
    None,
    /// The image id (`--iidfile`), which needs diff ids.
    Id,
    /// The manifest's too (`--metadata-file`), for which layers are compressed.
    Manifest,
}

/// What was exported.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Exported {
    /// The manifest, or the index of several platforms, as the last image output wrote it; `None` when nothing was assembled.
    pub descriptor: Option<Descriptor>,
    /// The image id, when there is one platform.
    pub config_digest: Option<Digest>,
    /// Full names.
    pub names: Vec<String>,
    /// One an output, in order.
    pub outputs: Vec<OutputReport>,
}

/// What one output did, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputReport {
    /// `oci`, `local`, `registry`, …
    pub kind: &'static str,
    /// Where it went: a path, `-`, names.
    pub target: String,
    /// Bytes that were written or sent.
    pub bytes: u64,
    /// Bytes that were there already.
    pub skipped: u64,
}
