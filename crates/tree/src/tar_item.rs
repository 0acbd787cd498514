//! What a layer's entries mean, and why an archive is refused: the values around the tar reader.

use std::io;

use crate::{Entry, PathError, RelPath};

/// Bounds on what one entry may make the reader hold in memory.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one extended header (PAX records, GNU long name).
    pub header_bytes: u64,
    /// Regions of one sparse file.
    pub sparse_regions: usize,
    /// Size of one sparse file with its holes.
    pub sparse_size: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 1 << 20, sparse_regions: 1 << 18, sparse_size: 1 << 40 }
    }
}

/// What a layer says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TarItem {
    /// Something is there; its content is to be read now.
    Entry(Entry),
    /// `name` in `dir` of the layers below is gone.
    Whiteout {
        /// The directory.
        dir: RelPath,
        /// One file name, never `.` or `..`.
        name: Vec<u8>,
    },
    /// Everything in `dir` of the layers below is gone.
    Opaque {
        /// The directory.
        dir: RelPath,
    },
}

/// Why an archive is refused.
#[derive(Debug, thiserror::Error)]
pub enum TarReadError {
    /// Reading failed.
    #[error("reading the archive failed at byte {offset}: {source}")]
    Io {
        /// How far the archive was read.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// The archive ends inside an entry.
    #[error("the archive is cut off at byte {offset}{}", in_entry(.entry))]
    Truncated {
        /// How far it goes.
        offset: u64,
        /// In which entry, where known.
        entry: String,
    },
    /// The archive is malformed, ambiguous or unsafe.
    #[error("the archive is malformed at byte {offset}{}: {problem}", in_entry(.entry))]
    Invalid {
        /// Where the header starts.
        offset: u64,
        /// Which entry, where known.
        entry: String,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The header's checksum is wrong: this is no tar header.
    #[error("wrong header checksum (not a tar archive, or damaged)")]
    Checksum,
    /// A numeric field is no number or out of range.
    #[error("the {0} field is no valid number")]
    Number(&'static str),
    /// A name that cannot be used.
    #[error("{0}")]
    Path(#[from] PathError),
    /// Extended headers are wrong.
    #[error("{0}")]
    Extended(String),
    /// More than the limits allow.
    #[error("{what} is larger than the limit of {limit}")]
    Limit {
        /// What.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// A kind of entry that is not supported.
    #[error("entries of type {0:?} are not supported")]
    Type(char),
    /// The sparse map is wrong.
    #[error("the sparse map is invalid: {0}")]
    Sparse(&'static str),
    /// Anything else.
    #[error("{0}")]
    Other(&'static str),
}

fn in_entry(entry: &str) -> String {
    if entry.is_empty() { String::new() } else { format!(" in entry {entry}") }
}

/// What the entry means in a layer.
pub(crate) fn classify(entry: Entry) -> Result<TarItem, &'static str> {
    const PREFIX: &[u8] = b".wh.";
    let (Some(dir), Some(name)) = (entry.path.parent(), entry.path.file_name()) else {
        return Ok(TarItem::Entry(entry));
    };
    if dir.components().any(|component| component.starts_with(PREFIX)) {
        return Err("a directory is named like a whiteout");
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(TarItem::Entry(entry)),
        Some(b".wh..opq") => Ok(TarItem::Opaque { dir }),
        Some(b"" | b"." | b"..") => Err("a whiteout that names no file"),
        Some(deleted) if deleted.starts_with(PREFIX) => Err("a reserved whiteout name (.wh..wh.)"),
        Some(deleted) => Ok(TarItem::Whiteout { dir, name: deleted.to_vec() }),
    }
}
