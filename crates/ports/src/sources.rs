//! Bringing things in: images, local directories, files from the web, secrets, the time.

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_graph::{CdiDevice, GitSource, HttpSource, LocalSource};
use rbuild_oci::{Descriptor, ImageConfig, Platform, Reference};

use crate::{CancelToken, DeviceEdits, Progress, RemoteBlob, Result, SecretBytes, View};

/// Nanoseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Timestamp(pub i64);

/// The time.
pub trait Clock: Send + Sync {
    /// Now.
    fn now(&self) -> Timestamp;
}

/// Which image.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum ImageSelector {
    /// From a registry.
    Registry(Reference),
    /// From an OCI layout directory: a tag of its index, or a digest.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// `org.opencontainers.image.ref.name`; none is `latest`, or the only one.
        tag: Option<String>,
        /// A manifest or index by digest.
        digest: Option<Digest>,
    },
}

/// Which image for which platform.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ImageRequest {
    /// Which.
    pub image: ImageSelector,
    /// For which platform.
    pub platform: Platform,
}

/// Whether to ask the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ResolveMode {
    /// Ask; blobs already here are not fetched again. An image of this name in the own store comes first.
    Default,
    /// Always ask the registry (`--pull`).
    Pull,
}

/// An image's documents; its layers stay where they are.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// What the reference resolved to: the index for multi-platform images.
    pub digest: Digest,
    /// The platform's manifest.
    pub manifest: Digest,
    /// The platform that was found.
    pub platform: Platform,
    /// The image config.
    pub config: ImageConfig,
    /// Layers from the bottom up.
    pub layers: Vec<ResolvedLayer>,
}

/// A layer of a resolved image.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedLayer {
    /// Of the uncompressed tar.
    pub diff_id: Digest,
    /// Where to fetch it.
    pub remote: RemoteBlob,
}

/// What a git reference means now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ResolvedGit {
    /// The whole name of the reference: `refs/heads/main`; empty for a commit.
    pub name: String,
    /// The commit; of an annotated tag, the one that it points to.
    pub commit: String,
    /// The tag's own object, where the reference is an annotated tag.
    pub tag_object: Option<String>,
}

/// Where things come from.
pub trait Sources: Send + Sync {
    /// Reads an image's documents.
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network` with host and cause, `Invalid` when it has no such platform, `Corrupt`.
    fn resolve_image(
        &self,
        request: &ImageRequest,
        mode: ResolveMode,
        cancel: &CancelToken,
    ) -> Result<ResolvedImage>;

    /// Opens a blob where it lies. The caller verifies size and digest. Broken transfers are resumed inside.
    ///
    /// # Errors
    /// `NotFound`, `Auth`, `Network`.
    fn fetch_blob(&self, blob: &RemoteBlob, cancel: &CancelToken) -> Result<Box<dyn Read + Send>>;

    /// The local directory of `source.name`, filtered as it says, read in place.
    ///
    /// # Errors
    /// `NotFound` when there is no such directory.
    fn local(&self, source: &LocalSource, cancel: &CancelToken) -> Result<Arc<dyn View>>;

    /// A downloaded file as a tree that holds just it, and the digest of its content.
    ///
    /// # Errors
    /// `NotFound`, `Network`, `Corrupt` when it is not what was pinned.
    fn http(
        &self,
        source: &HttpSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<(Arc<dyn View>, Digest)>;

    /// What `reference` of the repository at `url` means: a branch, a tag, a full name below `refs/`, or a commit; empty is
    /// the default branch. The answer stays the same for the whole build.
    ///
    /// # Errors
    /// `NotFound` when the repository has no such reference, `Auth`, `Network`, `Unsupported` without a git program.
    fn resolve_git(&self, url: &str, reference: &str, cancel: &CancelToken) -> Result<ResolvedGit>;

    /// The files of `source.commit`, owned by root, with modes 0644 and 0755.
    ///
    /// # Errors
    /// `NotFound` when there is no such commit or directory, `Auth`, `Network`, `Unsupported` without a git program.
    fn git(&self, source: &GitSource, progress: &dyn Progress, cancel: &CancelToken)
    -> Result<Arc<dyn View>>;

    /// When the commit was made, in seconds since 1970; it is fetched for that.
    ///
    /// # Errors
    /// As `git`.
    fn git_commit_time(
        &self,
        source: &GitSource,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<i64>;
}

/// What the user lends to steps. Values never leave this port but into the sandbox.
pub trait Secrets: Send + Sync {
    /// The secret `id`, or `None` when the user gave none.
    ///
    /// # Errors
    /// If it cannot be read.
    fn secret(&self, id: &str) -> Result<Option<SecretBytes>>;

    /// The socket of the ssh agent `id`, or `None` when the user gave none.
    ///
    /// # Errors
    /// If it cannot be used.
    fn ssh_agent(&self, id: &str) -> Result<Option<PathBuf>>;
}

/// Devices of the machine.
pub trait Devices: Send + Sync {
    /// What they add to a step. An optional device that is not there adds nothing.
    ///
    /// # Errors
    /// If a device that is not optional is not there, or steps cannot have one.
    fn edits(&self, devices: &[CdiDevice]) -> Result<DeviceEdits>;
}

/// For descriptors of layers whose diff id is known.
impl ResolvedImage {
    /// Descriptors of the layers, from the bottom up.
    #[must_use]
    pub fn descriptors(&self) -> Vec<&Descriptor> {
        self.layers.iter().map(|layer| &layer.remote.descriptor).collect()
    }
}
