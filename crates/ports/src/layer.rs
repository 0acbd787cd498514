//! Layers and snapshots: directories in overlay form, stacked.

use std::fmt;
use std::io::{Read, Write};
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use rbuild_digest::Digest;
use rbuild_graph::FileOp;

use crate::{CancelToken, OverlayDirs, Progress, Result, Timestamp, View};

/// A layer directory's name in the store: 1 to 32 of `a-z0-9`. Layers of images are named after their diff id
/// (`LayerId::of_diff_id`), so equal layers are one; layers that steps made have random names.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayerId(Arc<str>);

/// A text that is no layer id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid layer id {0:?}")]
pub struct ParseLayerIdError(pub String);

impl LayerId {
    /// The name of the image layer with this diff id: `d` and 80 bits in base 32. Its directory is only ever
    /// filled from bytes whose full diff id was verified.
    #[must_use]
    pub fn of_diff_id(diff_id: &Digest) -> Self {
        Self::named('d', &diff_id.as_bytes()[..10])
    }

    /// `prefix` and up to 16 `bytes` in base 32 (`a-z2-7`).
    #[must_use]
    pub fn named(prefix: char, bytes: &[u8]) -> Self {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut out = String::from(prefix);
        let (mut acc, mut bits) = (0u32, 0u32);
        for byte in bytes.iter().take(16) {
            acc = acc << 8 | u32::from(*byte);
            bits += 8;
            while bits >= 5 {
                bits -= 5;
                out.push(char::from(ALPHABET[(acc >> bits & 31) as usize]));
            }
        }
        if bits > 0 {
            out.push(char::from(ALPHABET[(acc << (5 - bits) & 31) as usize]));
        }
        Self(out.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for LayerId {
    type Err = ParseLayerIdError;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        let ok = (1..=32).contains(&text.len())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if ok { Ok(Self(text.into())) } else { Err(ParseLayerIdError(text.chars().take(64).collect())) }
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An immutable file system: layers from the bottom up; none is scratch. Layers may be absent from the disk
/// until something reads them.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Snapshot {
    /// From the bottom up.
    pub layers: Vec<LayerId>,
}

impl Snapshot {
    /// This with one more layer on top.
    #[must_use]
    pub fn with(&self, layer: LayerId) -> Self {
        let mut layers = self.layers.clone();
        layers.push(layer);
        Self { layers }
    }
}

/// A layer that became visible.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommittedLayer {
    /// Its name.
    pub layer: LayerId,
    /// Entries in it (files, directories, links, whiteouts).
    pub entries: u64,
    /// Bytes of its regular files.
    pub bytes: u64,
    /// A sum over path, size, mode and time of each of its regular files; 0 when it is not known. It tells that a file was
    /// written to without reading any.
    pub stamp: u64,
}

impl CommittedLayer {
    /// A layer that nobody has seen full.
    #[must_use]
    pub fn unseen(layer: LayerId) -> Self {
        Self { layer, entries: 0, bytes: 0, stamp: 0 }
    }

    /// Whether `found`, as it is counted now, is still what this says.
    #[must_use]
    pub fn is_still(&self, found: &Self) -> bool {
        let Self { layer, entries, bytes, stamp } = self;
        *layer == found.layer
            && *entries == found.entries
            && *bytes == found.bytes
            && (*stamp == 0 || *stamp == found.stamp)
    }
}

/// What a file operation reads or changes.
#[derive(Clone)]
pub enum FileInput {
    /// A snapshot; all its layers are on the disk.
    Snapshot(Snapshot),
    /// A tree that is only read: the local context, a downloaded file.
    View(Arc<dyn View>),
}

/// Layer directories on the disk.
pub trait Snapshots: Send + Sync {
    /// Whether the layer's directory is complete on the disk.
    fn present(&self, layer: &LayerId) -> bool;

    /// Opens a snapshot for reading. All its layers must be present.
    ///
    /// # Errors
    /// `NotFound` when a layer is missing.
    fn view(&self, snapshot: &Snapshot) -> Result<Arc<dyn View>>;

    /// Opens a new layer over `parent` for a step to write.
    ///
    /// # Errors
    /// `NotFound` when a layer is missing; otherwise if the store cannot be written.
    fn prepare(&self, parent: &Snapshot) -> Result<Box<dyn ActiveLayer>>;

    /// The directories of `snapshot` without a writable one, for read-only mounts.
    ///
    /// # Errors
    /// `NotFound` when a layer is missing.
    fn lower_dirs(&self, snapshot: &Snapshot) -> Result<OverlayDirs>;

    /// Performs a file operation: each output is the snapshot it became. Actions on a common base make one layer.
    /// Links are resolved inside the tree they are in.
    ///
    /// # Errors
    /// `NotFound` with the path for a missing source, `Invalid` for what makes no sense (a directory onto a file).
    fn run_file_op(
        &self,
        op: &FileOp,
        inputs: &[FileInput],
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<Vec<(Snapshot, CommittedLayer)>>;

    /// Unpacks an uncompressed tar as the layer `id`. `parents` is what lies below it, for hard links into lower
    /// layers and for directories that the tar does not mention. One that is present already is left as it is.
    ///
    /// # Errors
    /// `Invalid` for a hostile or malformed tar; otherwise if the store cannot be written. Nothing becomes visible.
    fn unpack(
        &self,
        id: &LayerId,
        parents: &[LayerId],
        tar: &mut dyn Read,
        cancel: &CancelToken,
    ) -> Result<CommittedLayer>;

    /// Writes the layer as a deterministic tar with OCI whiteouts. Times after `latest` (seconds since 1970)
    /// become `latest`.
    ///
    /// # Errors
    /// If it cannot be read, or `out` cannot be written.
    fn write_tar(&self, layer: &LayerId, latest: Option<i64>, out: &mut dyn Write) -> Result<()>;

    /// Opens the cache mount `id`, waiting for it as its sharing asks. `init` is its first content when it is new.
    ///
    /// # Errors
    /// `Cancelled`, or if the store cannot be written.
    fn cache_mount(
        &self,
        id: &str,
        sharing: rbuild_graph::CacheSharing,
        init: Option<&Snapshot>,
        cancel: &CancelToken,
    ) -> Result<Box<dyn CacheMount>>;

    /// Removes a layer's directory. One that is not there is no error.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove(&self, layer: &LayerId) -> Result<()>;

    /// Whether the layer on the disk still has this many entries and bytes, and nothing wrote to its files: how damage
    /// after a power cut is found.
    ///
    /// # Errors
    /// If it cannot be read.
    fn matches(&self, committed: &CommittedLayer) -> Result<bool>;

    /// All cache mounts on the disk, sorted by id.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn cache_mounts(&self) -> Result<Vec<CacheMountInfo>> {
        Ok(vec![])
    }

    /// Whether the cache mount has content already.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn has_cache_mount(&self, id: &str) -> Result<bool> {
        let _ = id;
        Ok(true)
    }

    /// Writes the content of a cache mount as a tar. False when there is none, or somebody uses it alone.
    ///
    /// # Errors
    /// `Corrupt` when it changes meanwhile; otherwise if it cannot be read, or `out` cannot be written.
    fn write_cache_mount(&self, id: &str, out: &mut dyn Write) -> Result<bool> {
        let _ = (id, out);
        Ok(false)
    }

    /// Removes a cache mount, unless it is in use: whether it is gone.
    ///
    /// # Errors
    /// If it cannot be removed.
    fn remove_cache_mount(&self, id: &str) -> Result<bool> {
        let _ = id;
        Ok(false)
    }
}

/// A cache mount on the disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheMountInfo {
    /// What `cache_mount` was asked for, or as much of it as the disk tells.
    pub id: String,
    /// Bytes of its files.
    pub bytes: u64,
    /// When a step last had it.
    pub last_used: Timestamp,
    /// Whether a step has it now.
    pub in_use: bool,
}

/// A layer being written. Dropping it removes what was written.
pub trait ActiveLayer: Send {
    /// Where to write: the upper directory is empty at first.
    fn dirs(&self) -> OverlayDirs;

    /// Makes it immutable and visible.
    ///
    /// # Errors
    /// If it cannot be read or renamed; then nothing is visible.
    fn commit(self: Box<Self>) -> Result<CommittedLayer>;
}

/// A cache mount in use; it is released when dropped.
pub trait CacheMount: Send {
    /// Its directory.
    fn path(&self) -> &Path;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_ids_are_short_and_safe() {
        let id = LayerId::of_diff_id(&Digest::of("x"));
        assert_eq!(id.as_str().len(), 17);
        assert_eq!(id.as_str().parse::<LayerId>(), Ok(id));
        for bad in ["", "..", "a/b", "A", &"a".repeat(33)] {
            assert!(bad.parse::<LayerId>().is_err(), "{bad}");
        }
    }
}
