//! Reading a tree that somebody else stores: a snapshot, or the local context in place.

use std::fs::File;

use rbuild_digest::Digest;
use rbuild_tree::{Entry, Kind, NodeKind, RelPath};

use crate::Result;

/// A file tree for reading. Symbolic links are never followed here: callers resolve them inside the tree.
/// Only what the tree is meant to show is visible (ignore patterns, whiteouts are applied).
pub trait View: Send + Sync {
    /// The entry at `path`; the empty path is the root. `None` when there is none.
    ///
    /// # Errors
    /// If the tree cannot be read.
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>>;

    /// The names in the directory at `path`, sorted by bytes.
    ///
    /// # Errors
    /// `NotFound` when it is no directory; otherwise if the tree cannot be read.
    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>>;

    /// The names in the directory at `path` with their kinds, sorted by bytes. Implementations that learn kinds while reading a
    /// directory save a look-up an entry.
    ///
    /// # Errors
    /// As `children`.
    fn list(&self, path: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>> {
        let mut out = Vec::new();
        for name in self.children(path)? {
            let Ok(child) = path.child(&name) else { continue };
            if let Some(entry) = self.lookup(&child)? {
                out.push((name, node_kind(&entry)));
            }
        }
        Ok(out)
    }

    /// Opens the regular file at `path`.
    ///
    /// # Errors
    /// `NotFound` when it is no regular file; otherwise if it cannot be opened.
    fn open(&self, path: &RelPath) -> Result<File>;

    /// BuildKit's content digest of one entry: of files with their content, of all else only what `contenthash` calls the
    /// header. As stored or computed now. Views of a local context remember it, use owner 0:0, and give their root
    /// the digest of nothing, as BuildKit does.
    ///
    /// # Errors
    /// If it cannot be read.
    fn entry_digest(&self, path: &RelPath) -> Result<Digest>;

    /// Digests of many entries, in order; implementations read in parallel.
    ///
    /// # Errors
    /// If one cannot be read.
    fn entry_digests(&self, paths: &[RelPath]) -> Result<Vec<Digest>> {
        paths.iter().map(|path| self.entry_digest(path)).collect()
    }

    /// Of a local context: what tells it from others in all builds. None for other trees.
    fn origin(&self) -> Option<&[u8]> {
        None
    }

    /// What `entry_digest` gives for the regular file at `path`, where that is known without reading it and the file
    /// has no other name.
    fn known_digest(&self, path: &RelPath) -> Option<Digest> {
        let _ = path;
        None
    }

    /// Whether it is a local context, whose root header BuildKit hashes as the empty string.
    fn is_local(&self) -> bool {
        false
    }

    /// Called after the file at `path` was copied: `size` bytes were read, and the open file's mtime afterwards was
    /// `mtime_nanos` since 1970. An error when that is not what `entry_digest` was computed from: the file changed
    /// under the build.
    ///
    /// # Errors
    /// `Invalid` when the file changed meanwhile.
    fn verify_copied(&self, path: &RelPath, size: u64, mtime_nanos: i128) -> Result<()> {
        let _ = (path, size, mtime_nanos);
        Ok(())
    }
}

/// As much of an entry's kind as selecting needs.
#[must_use]
pub fn node_kind(entry: &Entry) -> NodeKind {
    match &entry.kind {
        Kind::Dir => NodeKind::Dir,
        Kind::Symlink { target } => NodeKind::Symlink(target.clone()),
        Kind::File { .. }
        | Kind::Hardlink { .. }
        | Kind::CharDevice { .. }
        | Kind::BlockDevice { .. }
        | Kind::Fifo => NodeKind::File,
    }
}
