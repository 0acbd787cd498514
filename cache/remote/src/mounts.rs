//! Contents of cache mounts beside a cache: a document that lists, for each mount and platform, the pieces of its tar. BuildKit
//! sees layers that nothing refers to, and leaves them alone.

use rbuild_digest::Digest;
use rbuild_oci::Descriptor;
use serde::{Deserialize, Serialize};

use crate::chunker::MAX_CHUNK;

/// The list's media type.
pub const MOUNTS_TYPE: &str = "application/vnd.rbuild.cachemounts.v1+json";
/// A piece's media type.
pub const CHUNK_TYPE: &str = "application/vnd.rbuild.cachemount.chunk.v1+zstd";
/// The media type of what a cache tells of the build that exported it.
pub const NOTES_TYPE: &str = "application/vnd.rbuild.cachenotes.v1+zstd";
/// Compressed pieces may be that much larger than plain ones.
const SLACK: u64 = 64 << 10;

/// What a cache has of cache mounts.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct MountIndex {
    /// One a mount and platform.
    pub mounts: Vec<MountContent>,
}

/// The content of a cache mount.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MountContent {
    /// Its id.
    pub id: String,
    /// For which platform it was used.
    pub platform: String,
    /// The day of its last export.
    pub exported: String,
    /// The pieces of its tar, in order.
    pub chunks: Vec<Chunk>,
}

/// A piece of a tar.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    /// Of the plain bytes: `sha256:…`.
    pub digest: String,
    /// How many they are.
    pub length: u64,
    /// The compressed bytes.
    pub blob: Descriptor,
}

impl MountIndex {
    /// Reads a list. What makes no sense is left out; what is no list is empty.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        let mut out: Self = serde_json::from_slice(bytes).unwrap_or_default();
        let sound = |chunk: &Chunk| {
            chunk.digest.parse::<Digest>().is_ok()
                && chunk.length <= MAX_CHUNK as u64
                && chunk.blob.size <= chunk.length.saturating_add(SLACK)
        };
        out.mounts.retain(|mount| mount.chunks.iter().all(sound));
        out
    }

    /// The list's bytes, in one order, and its descriptor.
    #[must_use]
    pub fn document(&self) -> (Descriptor, Vec<u8>) {
        let mut sorted = self.clone();
        sorted.mounts.sort_by(|a, b| (&a.platform, &a.id).cmp(&(&b.platform, &b.id)));
        let bytes = serde_json::to_vec(&sorted).unwrap_or_default();
        (Descriptor::new(MOUNTS_TYPE, Digest::of(&bytes), bytes.len() as u64), bytes)
    }

    /// The content of a mount.
    #[must_use]
    pub fn find(&self, id: &str, platforms: &[String]) -> Option<&MountContent> {
        self.mounts.iter().find(|mount| mount.id == id && platforms.contains(&mount.platform))
    }

    /// All pieces.
    pub fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.mounts.iter().flat_map(|mount| &mount.chunks)
    }
}

impl MountContent {
    /// Bytes of its compressed pieces.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.blob.size).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back_and_nonsense() {
        let chunk = |length| Chunk {
            digest: Digest::of("plain").to_string(),
            length,
            blob: Descriptor::new(CHUNK_TYPE, Digest::of("packed"), 7),
        };
        let mount = |id: &str, chunks| MountContent {
            id: id.to_owned(),
            platform: "linux/amd64".to_owned(),
            exported: "2026-11-24T00:00:00Z".to_owned(),
            chunks,
        };
        let index = MountIndex { mounts: vec![mount("a", vec![chunk(9)]), mount("b", vec![])] };
        assert_eq!(MountIndex::parse(&index.document().1), index);
        assert_eq!(index.find("a", &["linux/amd64".to_owned()]).map(MountContent::size), Some(7));
        assert_eq!(index.find("a", &["linux/arm64".to_owned()]), None);
        let mut bad = index.clone();
        bad.mounts[0].chunks[0].length = u64::MAX;
        assert_eq!(MountIndex::parse(&bad.document().1).mounts.len(), 1);
        assert_eq!(MountIndex::parse(b"nothing"), MountIndex::default());
    }
}
