//! The documents around a cache config: an image manifest whose config it is, or an index that lists it after the layers.

use std::collections::BTreeMap;

use rbuild_digest::Digest;
use rbuild_oci::media_type::{
    self, BUILDKIT_CACHE_CONFIG, Compression, DOCKER_INDEX, DOCKER_LAYER, DOCKER_LAYER_GZIP, OCI_INDEX,
    OCI_MANIFEST,
};
use rbuild_oci::{Descriptor, Document, DocumentError, Index, Manifest, parse_document};

/// Annotation of a layer: the digest of its tar.
pub const UNCOMPRESSED: &str = "containerd.io/uncompressed";
/// Annotation of a layer: when it was made.
pub const CREATED_AT: &str = "buildkit/createdat";

/// Why a document is no cache.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Neither a manifest nor an index.
    #[error(transparent)]
    Document(#[from] DocumentError),
}

/// What a name points to.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(clippy::large_enum_variant, reason = "one at a time is alive, and only for a moment")]
pub enum RemoteDocument {
    /// A cache.
    Cache(CacheManifest),
    /// An image, which may have records in its config.
    Image(Manifest),
    /// Images of several platforms.
    Images(Index),
}

/// A cache's manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheManifest {
    /// The config.
    pub config: Descriptor,
    /// The layers, in no order that matters.
    pub layers: Vec<Descriptor>,
}

/// How a cache's manifest is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Form {
    /// As an image manifest, otherwise as an index.
    pub image_manifest: bool,
    /// With OCI's media types, otherwise Docker's.
    pub oci: bool,
}

/// Tells what a document is.
///
/// # Errors
/// If it is neither a manifest nor an index, or both.
pub fn read_document(bytes: &[u8], declared: &str) -> Result<RemoteDocument, ManifestError> {
    let is_config = |descriptor: &Descriptor| descriptor.media_type == BUILDKIT_CACHE_CONFIG;
    Ok(match parse_document(bytes, Some(declared).filter(|declared| !declared.is_empty()))? {
        Document::Manifest(manifest) if is_config(&manifest.config) => {
            RemoteDocument::Cache(CacheManifest { config: manifest.config, layers: manifest.layers })
        }
        Document::Manifest(manifest) => RemoteDocument::Image(manifest),
        Document::Index(mut index) => match index.manifests.iter().position(is_config) {
            Some(at) => {
                let config = index.manifests.remove(at);
                RemoteDocument::Cache(CacheManifest { config, layers: index.manifests })
            }
            None => RemoteDocument::Images(index),
        },
    })
}

/// The manifest of a cache, and its descriptor. Layers are sorted, and each is there once.
#[must_use]
pub fn write_manifest(cache: &CacheManifest, form: Form) -> (Descriptor, Vec<u8>) {
    let layers: BTreeMap<Digest, &Descriptor> =
        cache.layers.iter().map(|layer| (layer.digest, layer)).collect();
    let layers = layers.into_values().map(|layer| layer_entry(layer, form.oci));
    let (media_type, bytes) = if form.image_manifest {
        let manifest = Manifest {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            artifact_type: None,
            config: cache.config.clone(),
            layers: layers.collect(),
            subject: None,
            annotations: BTreeMap::new(),
        };
        (OCI_MANIFEST, serde_json::to_vec(&manifest))
    } else {
        let media_type = if form.oci { OCI_INDEX } else { DOCKER_INDEX };
        let index = Index {
            schema_version: 2,
            media_type: media_type.to_owned(),
            manifests: layers.chain([cache.config.clone()]).collect(),
            annotations: BTreeMap::new(),
        };
        (media_type, serde_json::to_vec(&index))
    };
    let bytes = bytes.unwrap_or_default();
    (Descriptor::new(media_type, Digest::of(&bytes), bytes.len() as u64), bytes)
}

fn layer_entry(layer: &Descriptor, oci: bool) -> Descriptor {
    let media_type = match (Compression::of_layer(&layer.media_type), oci) {
        (Some(Compression::None), false) => DOCKER_LAYER,
        (Some(Compression::Gzip), false) => DOCKER_LAYER_GZIP,
        (Some(kind), _) => kind.oci_layer(),
        (None, _) => &layer.media_type,
    };
    let mut out = Descriptor::new(media_type, layer.digest, layer.size);
    out.annotations.clone_from(&layer.annotations);
    out
}

/// The digest of a layer's tar, where its descriptor says.
pub(crate) fn diff_id(layer: &Descriptor) -> Option<Digest> {
    match layer.annotations.get(UNCOMPRESSED) {
        Some(text) => text.parse().ok(),
        None if Compression::of_layer(&layer.media_type) == Some(Compression::None) => Some(layer.digest),
        None => None,
    }
}

/// Whether it is a layer that can be unpacked.
pub(crate) fn is_layer(layer: &Descriptor) -> bool {
    media_type::Compression::of_layer(&layer.media_type).is_some()
}
