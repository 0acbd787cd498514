//! The index: keys, links between them, records, layers, images. BuildKit's algebra: a key is a root, or is reached from
//! the keys of its inputs: an AND over inputs of an OR over alternatives.

use std::fmt;
use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_oci::Descriptor;

use crate::{CommittedLayer, LayerId, Result, Snapshot, Timestamp};

/// A key's name in the index: `sha256:…` for roots (`sha256(<digest>@<output>)`), otherwise random.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub Arc<str>);

impl KeyId {
    /// A root key.
    #[must_use]
    pub fn root(digest: &Digest) -> Self {
        Self(digest.to_string().into())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One key of an input, and the selector of the link that leads on from it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Alternative {
    /// A definition key or a content key of the input.
    pub key: KeyId,
    /// The dependency's selector for definition keys; none for content keys.
    pub selector: Option<Digest>,
}

/// A key by its definition.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct KeyQuery {
    /// The operation's cache-map digest, without inputs and output.
    pub op: Digest,
    /// Which output.
    pub output: u32,
    /// For each input its alternatives; no inputs means a root.
    pub inputs: Vec<Vec<Alternative>>,
}

/// Who made a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// A step of a build here.
    Local,
    /// It came from an imported cache.
    Imported,
}

/// A result under a key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Number in the index.
    pub id: i64,
    /// Its key.
    pub key: KeyId,
    /// The result.
    pub snapshot: Snapshot,
    /// When it was made.
    pub created: Timestamp,
    /// What it is for: the step's name.
    pub description: String,
    /// Milliseconds it took to make.
    pub cost_ms: u64,
    /// Who made it.
    pub kind: RecordKind,
}

/// A result to store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRecord {
    /// The result.
    pub snapshot: Snapshot,
    /// When it was made.
    pub created: Timestamp,
    /// What it is for: the step's name.
    pub description: String,
    /// Milliseconds it took to make.
    pub cost_ms: u64,
    /// Who made it.
    pub kind: RecordKind,
    /// The key's preimage as text, for explanations.
    pub preimage: String,
}

/// What is known of a layer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerRow {
    /// Name, entries and bytes as committed; zero entries and bytes when it was never on the disk.
    pub layer: CommittedLayer,
    /// Digest of its tar, once computed.
    pub diff_id: Option<Digest>,
    /// Blobs of it in the blob store.
    pub blobs: Vec<LayerBlob>,
    /// Where it can be fetched.
    pub remotes: Vec<RemoteBlob>,
    /// When it was made.
    pub created: Timestamp,
}

/// A layer's blob in the blob store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LayerBlob {
    /// Media type, digest, size.
    pub descriptor: Descriptor,
    /// What made it: `gzip:2:1mib:32kib`, or `pulled`. A blob is reused for a request of the same maker.
    pub maker: String,
}

/// A layer's blob elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RemoteBlob {
    /// `registry/repository` without tag, or `oci-layout:<directory>`.
    pub location: String,
    /// Media type, digest, size.
    pub descriptor: Descriptor,
}

/// An image of the own store, by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageRecord {
    /// `docker.io/library/app:latest`.
    pub name: String,
    /// The image config as JSON without `rootfs` and with history as lowered; layers are computed when wanted.
    pub config: String,
    /// The file system.
    pub snapshot: Snapshot,
    /// Which of the history's non-empty entries made which layers is by order.
    pub platform: String,
    /// When it was tagged.
    pub created: Timestamp,
    /// The manifest's digest, once it was assembled.
    pub manifest: Option<Digest>,
}

/// Keys, records, layers and images, shared by processes. What a lookup returns is protected from garbage
/// collection until the index is dropped by this process.
pub trait CacheIndex: Send + Sync {
    /// The keys that match: for every input at least one alternative links to it. For a root the root key itself,
    /// when it exists.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn probe(&self, query: &KeyQuery) -> Result<Vec<KeyId>>;

    /// Records of any of `keys`, the newest first. Records whose layers are lost or doubtful are left out.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn records(&self, keys: &[KeyId]) -> Result<Vec<Record>>;

    /// Finds the key of `query` or makes it, adds links from all alternatives, and stores `record` under it if given. In one
    /// transaction. Alternatives whose key is not in the index yet are made roots.
    ///
    /// # Errors
    /// If the index cannot be written.
    fn save(&self, query: &KeyQuery, record: Option<&NewRecord>) -> Result<KeyId>;

    /// Forgets a record whose result turned out to be gone or damaged.
    ///
    /// # Errors
    /// If the index cannot be written.
    fn forget(&self, record: i64) -> Result<()>;

    /// What is known of a layer.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn layer(&self, layer: &LayerId) -> Result<Option<LayerRow>>;

    /// Adds what is known of a layer to what was known: diff id, blobs and remotes are joined.
    ///
    /// # Errors
    /// If the index cannot be written.
    fn put_layer(&self, row: &LayerRow) -> Result<()>;

    /// The image of this full name.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn image(&self, name: &str) -> Result<Option<ImageRecord>>;

    /// All images by name.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn images(&self) -> Result<Vec<ImageRecord>>;

    /// Stores or moves a name.
    ///
    /// # Errors
    /// If the index cannot be written.
    fn put_image(&self, image: &ImageRecord) -> Result<()>;

    /// A small value under a name: remembered tags, and the like.
    ///
    /// # Errors
    /// If the index cannot be read.
    fn note(&self, name: &str) -> Result<Option<String>>;

    /// Stores a small value.
    ///
    /// # Errors
    /// If the index cannot be written.
    fn put_note(&self, name: &str, value: &str) -> Result<()>;
}
