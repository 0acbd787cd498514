//! What turns one tree into another, as an image layer says it: entries that are put, names that are deleted,
//! directories that become opaque. Differences, applying them, and their way through tar.

use std::io::{Read, Write};
use std::sync::Arc;

use crate::{
    Entry, Kind, Limits, RelPath, TarItem, TarReadError, TarReader, TarWriteError, TarWriter, Time, Tree,
    TreeError,
};

/// One thing that a layer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// The entry is there, whatever was.
    Put(Entry, Arc<[u8]>),
    /// What was there is gone.
    Delete(RelPath),
    /// What was in the directory is gone.
    Opaque(RelPath),
}

/// Why a layer cannot be read into memory.
#[derive(Debug, thiserror::Error)]
pub enum ReadChangesError {
    /// The archive is refused.
    #[error(transparent)]
    Tar(#[from] TarReadError),
    /// A content could not be read.
    #[error("reading the content of {path} failed: {source}")]
    Content {
        /// Whose.
        path: RelPath,
        /// Why.
        source: std::io::Error,
    },
    /// More content than asked for.
    #[error("the layer has more than {0} bytes of content")]
    TooLarge(u64),
}

/// The changes from `old` to `new` in the order of a walk, without what is the same. Files with several names are
/// put with all their names or not at all, since writing one name of a lower file would split it from the others.
#[must_use]
pub fn diff(old: &Tree, new: &Tree) -> Vec<Change> {
    let mut out = Vec::new();
    for (entry, content) in new.entries() {
        if changed(old, new, &entry) {
            out.push(Change::Put(entry, content));
        }
    }
    for path in old.paths() {
        let inside = path.parent().is_some_and(|parent| new.kind(&parent) == Some(&Kind::Dir));
        if inside && new.kind(path).is_none() {
            out.push(Change::Delete(path.clone()));
        }
    }
    out.sort_by(|a, b| a.path().cmp(b.path()));
    out
}

fn changed(old: &Tree, new: &Tree, entry: &Entry) -> bool {
    let path = &entry.path;
    let names = new.names_of(path);
    let before: Vec<&RelPath> =
        old.names_of(path).into_iter().filter(|name| new.kind(name).is_some()).collect();
    before != names || names.iter().any(|name| !old.same_at(new, name))
}

/// Applies the changes of one layer. Deletions concern only what was there before: their place among the entries
/// does not matter, and entries of the layer itself survive them.
///
/// # Errors
/// If an entry cannot be put (see `Tree::put`).
pub fn apply(tree: &mut Tree, changes: &[Change]) -> Result<(), TreeError> {
    for change in changes {
        match change {
            Change::Put(..) => {}
            Change::Delete(path) if path.is_root() => return Err(TreeError::Root),
            Change::Delete(path) => tree.remove(path),
            Change::Opaque(dir) => tree.clear(dir),
        }
    }
    for change in changes {
        if let Change::Put(entry, content) = change {
            tree.put(entry, Arc::clone(content))?;
        }
    }
    Ok(())
}

/// Writes the changes as a layer. Deletions get the time `marker`.
///
/// # Errors
/// If writing fails, or a name would be read as a deletion.
pub fn write_changes<W: Write>(changes: &[Change], out: W, marker: Time) -> Result<W, TarWriteError> {
    let mut writer = TarWriter::layer(out);
    for change in changes {
        match change {
            Change::Put(entry, content) => writer.entry(entry, &content[..])?,
            Change::Delete(path) => writer.whiteout(path, marker)?,
            Change::Opaque(dir) => writer.opaque(dir, marker)?,
        }
    }
    writer.finish()
}

/// Reads a layer into memory; at most `most` bytes of content.
///
/// # Errors
/// If the archive is refused, cannot be read, or is larger.
pub fn read_changes(layer: impl Read, most: u64) -> Result<Vec<Change>, ReadChangesError> {
    let mut reader = TarReader::new(layer, Limits::default());
    let mut out = Vec::new();
    let mut left = most;
    while let Some(item) = reader.next_item()? {
        out.push(match item {
            TarItem::Whiteout { dir, name } => match dir.child(&name) {
                Ok(path) => Change::Delete(path),
                Err(_) => continue,
            },
            TarItem::Opaque { dir } => Change::Opaque(dir),
            TarItem::Entry(entry) => {
                left = left.checked_sub(entry.content_size()).ok_or(ReadChangesError::TooLarge(most))?;
                let mut content = Vec::new();
                let read = reader.content().read_to_end(&mut content);
                read.map_err(|source| ReadChangesError::Content { path: entry.path.clone(), source })?;
                Change::Put(entry, content.into())
            }
        });
    }
    Ok(out)
}

impl Change {
    /// What it concerns.
    #[must_use]
    pub fn path(&self) -> &RelPath {
        match self {
            Self::Put(entry, _) => &entry.path,
            Self::Delete(path) | Self::Opaque(path) => path,
        }
    }
}
