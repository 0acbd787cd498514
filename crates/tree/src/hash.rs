//! BuildKit's content hash of one entry, and of a selection of entries: exact bytes, since cache keys rest on
//! them. What belongs to a selection is decided in `select`; file digests are the caller's to compute (in
//! parallel, from a cache), so nothing here reads a file.

use rbuild_digest::{Digest, Hasher};

use crate::{Entry, Kind, RelPath};

/// A hash that already holds the entry's metadata. For regular files with content, add the content, then finish:
/// that is the entry's digest. Time and name are not part of it. A hard link has the digest of the file it is a
/// link to: pass that file's entry.
#[must_use]
pub fn entry_hasher(entry: &Entry) -> Hasher {
    let Entry { path: _, kind, mode, uid, gid, mtime: _, xattrs } = entry;
    let (typeflag, link, major, minor) = match kind {
        Kind::File { .. } | Kind::Hardlink { .. } => ("0", &b""[..], 0, 0),
        Kind::Symlink { target } => ("2", target.as_slice(), 0, 0),
        Kind::CharDevice { major, minor } => ("3", &b""[..], *major, *minor),
        Kind::BlockDevice { major, minor } => ("4", &b""[..], *major, *minor),
        Kind::Dir => ("5", &b""[..], 0, 0),
        Kind::Fifo => ("6", &b""[..], 0, 0),
    };
    let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { mode & 0o7777 };
    let size = entry.content_size();
    let mut hasher = Hasher::new();
    let head = format!("namemode{mode}uid{uid}gid{gid}size{size}typeflag{typeflag}linkname");
    hasher.update(head.as_bytes());
    hasher.update(link);
    hasher.update(format!("unamegnamedevmajor{major}devminor{minor}").as_bytes());
    for (name, value) in xattrs {
        let private = name.starts_with(b"security.") || name.starts_with(b"system.");
        if !private || name == b"security.capability" {
            hasher.update(name);
            hasher.update(value);
        }
    }
    hasher
}

/// The digest of an entry that has no content: a directory's own header, a link, a node, an empty file.
#[must_use]
pub fn header_digest(entry: &Entry) -> Digest {
    entry_hasher(entry).finish()
}

/// The digest that stands for the header of a context's root, whatever its mode: BuildKit never sends it.
#[must_use]
pub fn context_root_digest() -> Digest {
    Digest::of(b"")
}

/// The entries that one content hash is made from, in its order.
#[derive(Clone, Debug)]
pub struct Selection {
    pub(crate) shape: Shape,
    pub(crate) steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// The hash is the digest of the only record.
    One,
    /// The hash is that of a list of records.
    List,
}

/// A tree in the order of a walk, flat, so that depth costs no stack.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// A directory with all that follows up to its `End`.
    Dir {
        key: Vec<u8>,
        path: RelPath,
    },
    /// One entry; a directory counts only with its header.
    Leaf {
        key: Vec<u8>,
        path: RelPath,
    },
    End,
}

impl Selection {
    /// The entries whose digests `digest` will ask for: files with content, and headers of the rest. In the order
    /// of asking; a path may occur twice.
    pub fn needed(&self) -> impl Iterator<Item = &RelPath> {
        self.steps.iter().filter_map(|step| match step {
            Step::Dir { path, .. } | Step::Leaf { path, .. } => Some(path),
            Step::End => None,
        })
    }

    /// Whether nothing was selected.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// The content hash. `entry_digest` gives the digest of an entry (see `entry_hasher`); of a directory, that of
    /// its header. For a context's root give `context_root_digest`.
    ///
    /// # Errors
    /// The first error of `entry_digest`.
    pub fn digest<E>(
        &self,
        mut entry_digest: impl FnMut(&RelPath) -> Result<Digest, E>,
    ) -> Result<Digest, E> {
        let mut list = Hasher::new();
        let mut only = None;
        let mut open: Vec<(&[u8], Hasher)> = Vec::new();
        for step in &self.steps {
            let (key, digest) = match step {
                Step::Dir { key, path } => {
                    let mut hasher = Hasher::new();
                    record(&mut hasher, b"\0", entry_digest(path)?);
                    open.push((key, hasher));
                    continue;
                }
                Step::Leaf { key, path } => (key.as_slice(), entry_digest(path)?),
                Step::End => match open.pop() {
                    Some((key, hasher)) => (key, hasher.finish()),
                    None => continue,
                },
            };
            match open.last_mut() {
                Some((_, parent)) => record(parent, key, digest),
                None => {
                    record(&mut list, key, digest);
                    only = Some(digest);
                }
            }
        }
        Ok(match (self.shape, only) {
            (Shape::One, Some(digest)) => digest,
            _ => list.finish(),
        })
    }
}

fn record(hasher: &mut Hasher, key: &[u8], digest: Digest) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let mut text = *b"sha256:0000000000000000000000000000000000000000000000000000000000000000";
    let (_, hex) = text.split_at_mut(7);
    for (pair, byte) in hex.chunks_exact_mut(2).zip(digest.as_bytes()) {
        pair[0] = HEX[usize::from(byte >> 4)];
        pair[1] = HEX[usize::from(byte & 15)];
    }
    hasher.update(key);
    hasher.update(&text);
}
