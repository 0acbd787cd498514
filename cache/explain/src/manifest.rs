//! The files that a content key was made from: path, kind, permissions, size and a part of the digest of each. Compact, so
//! that many can be kept: each path is written as what differs from the one before.

use std::cmp::Ordering;

use rbuild_digest::Digest;

use crate::{FileChange, FileChangeKind};

const MAGIC: &[u8; 8] = b"rbfiles\x01";

/// Paths longer than any file system's make a manifest damaged.
const LONGEST: usize = 64 << 10;

/// A file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Its path, without a slash in front.
    pub path: Vec<u8>,
    /// `f`ile, `d`irectory, `l`ink, or another letter.
    pub kind: u8,
    /// Permissions.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// The first bytes of its content digest.
    pub digest: [u8; 8],
}

/// Files, sorted by path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Manifest {
    entries: Vec<ManifestEntry>,
}

impl Manifest {
    /// Of these files, in any order; the same path counts once.
    #[must_use]
    pub fn new(mut entries: Vec<ManifestEntry>) -> Self {
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries.dedup_by(|a, b| a.path == b.path);
        Self { entries }
    }

    /// The files.
    #[must_use]
    pub fn entries(&self) -> &[ManifestEntry] {
        &self.entries
    }

    /// As it is kept.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + self.entries.len() * 32);
        out.extend_from_slice(MAGIC);
        push(&mut out, self.entries.len() as u64);
        let mut before: &[u8] = &[];
        for entry in &self.entries {
            let shared = before.iter().zip(&entry.path).take_while(|(a, b)| a == b).count();
            let rest = entry.path.get(shared..).unwrap_or_default();
            push(&mut out, shared as u64);
            push(&mut out, rest.len() as u64);
            out.extend_from_slice(rest);
            out.push(entry.kind);
            push(&mut out, u64::from(entry.mode));
            push(&mut out, entry.size);
            out.extend_from_slice(&entry.digest);
            before = &entry.path;
        }
        let sum = Digest::of(&out);
        out.extend_from_slice(sum.as_bytes().get(..8).unwrap_or_default());
        out
    }

    /// As it was kept; `None` when it is damaged.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_at_checked(bytes.len().checked_sub(8)?)?;
        if Digest::of(body).as_bytes().get(..8)? != sum {
            return None;
        }
        let mut rest = body.strip_prefix(MAGIC)?;
        let count = usize::try_from(pull(&mut rest)?).ok()?;
        // Each entry takes twelve bytes at least.
        let mut entries: Vec<ManifestEntry> = Vec::with_capacity(count.min(rest.len() / 12));
        for _ in 0..count {
            let shared = usize::try_from(pull(&mut rest)?).ok()?;
            let length = usize::try_from(pull(&mut rest)?).ok().filter(|it| *it <= LONGEST)?;
            let mut path = match entries.last() {
                Some(before) => before.path.get(..shared)?.to_vec(),
                None if shared == 0 => vec![],
                None => return None,
            };
            path.extend_from_slice(take(&mut rest, length)?);
            let kind = *take(&mut rest, 1)?.first()?;
            let mode = u32::try_from(pull(&mut rest)?).ok()?;
            let size = pull(&mut rest)?;
            let digest = take(&mut rest, 8)?.try_into().ok()?;
            entries.push(ManifestEntry { path, kind, mode, size, digest });
        }
        Some(Self { entries })
    }

    /// What differs, sorted by path. `only_mode` says of a file whether it would have its old digest with its old permissions.
    #[must_use]
    pub fn changes_to(
        &self,
        new: &Self,
        mut only_mode: impl FnMut(&ManifestEntry, &ManifestEntry) -> bool,
    ) -> Vec<FileChange> {
        let mut out = vec![];
        let (mut old, mut new) = (self.entries.iter().peekable(), new.entries.iter().peekable());
        loop {
            let order = match (old.peek(), new.peek()) {
                (None, None) => return out,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.path.cmp(&b.path),
            };
            let was = old.next_if(|_| order != Ordering::Greater);
            let is = new.next_if(|_| order != Ordering::Less);
            let kind = match (was, is) {
                (Some(_), None) => FileChangeKind::Removed,
                (None, Some(_)) => FileChangeKind::Added,
                (Some(was), Some(is)) if was.kind != is.kind => FileChangeKind::Kind,
                (Some(was), Some(is)) if was.digest != is.digest => {
                    if was.mode != is.mode && was.size == is.size && only_mode(was, is) {
                        FileChangeKind::Mode { from: was.mode, to: is.mode }
                    } else {
                        FileChangeKind::Modified
                    }
                }
                _ => continue,
            };
            let path = was.or(is).map(|it| String::from_utf8_lossy(&it.path).into_owned());
            out.push(FileChange { path: path.unwrap_or_default(), kind });
        }
    }
}

pub(crate) fn push(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

pub(crate) fn pull(from: &mut &[u8]) -> Option<u64> {
    let mut out = 0u64;
    for shift in (0..64).step_by(7) {
        let byte = *take(from, 1)?.first()?;
        out |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(out);
        }
    }
    None
}

pub(crate) fn take<'a>(from: &mut &'a [u8], count: usize) -> Option<&'a [u8]> {
    let (head, rest) = from.split_at_checked(count)?;
    *from = rest;
    Some(head)
}
