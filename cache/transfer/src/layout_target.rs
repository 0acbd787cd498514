//! `type=local`: a cache in an OCI layout, under a tag. Whoever writes it holds the directory's lock; others are read meanwhile,
//! since the index changes in one step. Blobs that no name leads to any more are removed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rbuild_cache_remote::{RemoteDocument, read_document};
use rbuild_digest::{Digest, Hasher};
use rbuild_export::write_file;
use rbuild_oci::{Descriptor, Document, Index, media_type, parse_document};
use rbuild_ports::{CancelToken, ErrorKind, PortError, RemoteBlob, Result};
use rbuild_source::{Layout, MAX_MANIFEST};
use rustix::fs::{FlockOperation, flock};

use crate::import::{read_cache_config, read_mounts};
use crate::target::{CacheTarget, ExistingCache, OpenBlob};

const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Between two attempts at the lock.
const PAUSE: Duration = Duration::from_millis(20);
/// Indexes in indexes.
const MAX_DEPTH: usize = 4;
/// What blobs are called while they are written.
const PARTIAL: &str = ".partial-";

/// A tag in a layout, locked.
pub struct LayoutTarget {
    dir: PathBuf,
    tag: String,
    layout: Layout,
    /// Holds the lock as long as it is open.
    _lock: File,
}

impl LayoutTarget {
    /// Makes the directory if need be, and waits for its lock.
    ///
    /// # Errors
    /// If it cannot be made or locked, or holds something else than a layout.
    pub fn open(dir: &Path, tag: &str, cancel: &CancelToken) -> Result<Self> {
        let failed = |error: std::io::Error| PortError::io("write to", dir, error);
        fs::create_dir_all(dir.join("blobs/sha256")).map_err(failed)?;
        let dir = fs::canonicalize(dir).map_err(failed)?;
        let lock = File::open(&dir).map_err(failed)?;
        loop {
            cancel.check()?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(PAUSE),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(PortError::io("lock", &dir, error)),
            }
        }
        if !dir.join("oci-layout").exists() {
            write_file(&dir.join("oci-layout"), MARKER)?;
        }
        let layout = Layout::open(&dir)?;
        let target = Self { dir, tag: tag.to_owned(), layout, _lock: lock };
        target.index()?;
        Ok(target)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }

    /// `index.json`; empty when there is none.
    fn index(&self) -> Result<Index> {
        let path = self.dir.join("index.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let media_type = media_type::OCI_INDEX.to_owned();
                let (manifests, annotations) = Default::default();
                return Ok(Index { schema_version: 2, media_type, manifests, annotations });
            }
            Err(error) => return Err(PortError::io("read", &path, error)),
        };
        match parse_document(&bytes, None) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Manifest(_)) | Err(_) => {
                let message = format!("{} is not the index of an OCI layout", path.display());
                Err(PortError::new(ErrorKind::Invalid, message)
                    .help("remove it, or choose another directory"))
            }
        }
    }

    /// Removes what no entry of `index` leads to; nothing while it is not certain what an entry leads to.
    fn sweep(&self, index: &Index) -> Result<()> {
        let mut needed = BTreeSet::new();
        for entry in &index.manifests {
            if !self.collect(entry, &mut needed, MAX_DEPTH) {
                return Ok(());
            }
        }
        let dir = self.dir.join("blobs/sha256");
        let failed = |error: std::io::Error| PortError::io("clean", &dir, error);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let unneeded = match Digest::from_hex(name) {
                Ok(digest) => !needed.contains(&digest),
                // Nobody else writes: the lock is held.
                Err(_) => name.starts_with(PARTIAL),
            };
            if unneeded {
                fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Adds what `entry` leads to. False when that cannot be told.
    fn collect(&self, entry: &Descriptor, needed: &mut BTreeSet<Digest>, depth: usize) -> bool {
        needed.insert(entry.digest);
        let document = media_type::is_index(&entry.media_type) || media_type::is_manifest(&entry.media_type);
        if !document {
            return true;
        }
        let bytes = match self.layout.document(&entry.digest, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            // A name that leads nowhere needs nothing.
            Err(error) => return error.kind == ErrorKind::NotFound,
        };
        match parse_document(&bytes, None) {
            Ok(Document::Manifest(manifest)) => {
                needed.insert(manifest.config.digest);
                needed.extend(manifest.layers.iter().map(|layer| layer.digest));
                true
            }
            Ok(Document::Index(index)) => {
                depth > 0 && index.manifests.iter().all(|entry| self.collect(entry, needed, depth - 1))
            }
            Err(_) => false,
        }
    }
}

impl CacheTarget for LayoutTarget {
    fn name(&self) -> String {
        self.dir.display().to_string()
    }

    fn existing(&self, cancel: &CancelToken) -> Result<Option<ExistingCache>> {
        cancel.check()?;
        let named = |entry: &&Descriptor| entry.annotations.get(REF_NAME) == Some(&self.tag);
        let index = self.index()?;
        let Some(entry) = index.manifests.iter().find(named) else { return Ok(None) };
        let read = || -> Result<Option<ExistingCache>> {
            let bytes = self.layout.document(&entry.digest, MAX_MANIFEST)?;
            let Ok(RemoteDocument::Cache(cache)) = read_document(&bytes, &entry.media_type) else {
                return Ok(None);
            };
            let config = read_cache_config(&self.layout, &self.name(), &cache)?;
            let mounts = read_mounts(&self.layout, &cache.layers);
            Ok(Some(ExistingCache { digest: entry.digest, config, layers: cache.layers, mounts }))
        };
        // What nobody can read is no loss.
        Ok(read().unwrap_or(None))
    }

    fn has_blob(&self, blob: &Descriptor, _remotes: &[RemoteBlob], _cancel: &CancelToken) -> Result<bool> {
        match fs::symlink_metadata(self.blob_path(&blob.digest)) {
            Ok(found) => Ok(found.is_file() && found.len() == blob.size),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(PortError::io("look at", self.blob_path(&blob.digest), error)),
        }
    }

    fn put_blob(&self, blob: &Descriptor, open: &OpenBlob<'_>, cancel: &CancelToken) -> Result<()> {
        let path = self.blob_path(&blob.digest);
        let partial = path.with_file_name(format!("{PARTIAL}{}", blob.digest.hex()));
        let failed = |error: std::io::Error| PortError::io("write", &path, error);
        let write = || -> Result<()> {
            let mut reader = open()?;
            let mut file = File::create(&partial).map_err(failed)?;
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 256 * 1024];
            loop {
                cancel.check()?;
                let n = match reader.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => n,
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(PortError::io("read", blob.digest.to_string(), error)),
                };
                let piece = buffer.get(..n).unwrap_or_default();
                hasher.update(piece);
                file.write_all(piece).map_err(failed)?;
            }
            let found = hasher.finish();
            if found != blob.digest {
                let message =
                    format!("the stored copy of {} is damaged: it has the digest {found}", blob.digest);
                return Err(PortError::new(ErrorKind::Corrupt, message));
            }
            fs::rename(&partial, &path).map_err(failed)
        };
        write().inspect_err(|_| drop(fs::remove_file(&partial)))
    }

    fn put_manifest(
        &self,
        manifest: &Descriptor,
        bytes: &[u8],
        _replaces: Option<&ExistingCache>,
        cancel: &CancelToken,
    ) -> Result<bool> {
        self.put_blob(manifest, &|| Ok(Box::new(std::io::Cursor::new(bytes.to_vec()))), cancel)?;
        let mut index = self.index()?;
        let mut entry = manifest.clone();
        entry.annotations.insert(REF_NAME.to_owned(), self.tag.clone());
        index.manifests.retain(|old| old.annotations.get(REF_NAME) != Some(&self.tag));
        index.manifests.push(entry);
        let bytes = serde_json::to_vec(&index)
            .map_err(|error| PortError::new(ErrorKind::Internal, error.to_string()))?;
        write_file(&self.dir.join("index.json"), &bytes)?;
        self.sweep(&index)?;
        Ok(true)
    }
}
