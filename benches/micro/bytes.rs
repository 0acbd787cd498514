//! What every byte of a layer or a context goes through: tar out and in, SHA-256, the content hash of a tree.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::io;

use rbuild_digest::Digest;
use rbuild_tree::{
    Children, Entry, Kind, Limits, NodeKind, RelPath, SelectOptions, TarReader, TarWriter, TreeSource,
    header_digest, select,
};

use super::{Micro, Size};
use crate::workload::{Texture, fill};

const FILES: usize = 10_000;
const FILE: usize = 4096;

fn text(length: usize) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(length);
    fill(&mut out, Texture::Text, 1, length as u64).map_err(|error| error.to_string())?;
    Ok(out)
}

fn entries(size: Size) -> Result<Vec<Entry>, String> {
    let file = |n: usize| {
        let path = RelPath::clean(format!("usr/share/doc/{:03}/file-{n:05}.txt", n / 100))
            .map_err(|error| error.to_string())?;
        Ok(Entry::new(path, Kind::File { size: FILE as u64 }, 0o644))
    };
    (0..(FILES / size.shrink).max(10)).map(file).collect()
}

fn archive(entries: &[Entry], content: &[u8], out: impl io::Write) -> Result<u64, String> {
    let mut tar = TarWriter::layer(out);
    for entry in entries {
        tar.entry(entry, content).map_err(|error| error.to_string())?;
    }
    tar.finish().map_err(|error| error.to_string())?;
    Ok(0)
}

/// Entries of 4 KiB → tar.
pub(super) fn tar_write(size: Size) -> Result<Micro, String> {
    let (entries, content) = (entries(size)?, text(FILE)?);
    let amount = entries.len() * FILE;
    Ok(Micro {
        run: Box::new(move || {
            drop(black_box(archive(&entries, &content, io::sink())));
        }),
        amount,
        unit: "B",
    })
}

/// Tar → entries of 4 KiB.
pub(super) fn tar_read(size: Size) -> Result<Micro, String> {
    let (entries, content) = (entries(size)?, text(FILE)?);
    let mut bytes = Vec::new();
    archive(&entries, &content, &mut bytes)?;
    if read(&bytes) != Ok(entries.len()) {
        return Err("the archive does not hold what was written".into());
    }
    let amount = entries.len() * FILE;
    Ok(Micro {
        run: Box::new(move || {
            drop(black_box(read(&bytes)));
        }),
        amount,
        unit: "B",
    })
}

fn read(bytes: &[u8]) -> Result<usize, String> {
    let mut reader = TarReader::new(bytes, Limits::default());
    let mut count = 0;
    while reader.next_entry().map_err(|error| error.to_string())?.is_some() {
        reader.copy_to(&mut io::sink()).map_err(|error| error.to_string())?;
        count += 1;
    }
    Ok(count)
}

/// SHA-256 of a large buffer.
pub(super) fn hash(size: Size) -> Result<Micro, String> {
    let bytes = text((64 << 20) / size.shrink)?;
    let amount = bytes.len();
    Ok(Micro {
        run: Box::new(move || {
            black_box(Digest::of(&bytes));
        }),
        amount,
        unit: "B",
    })
}

/// Directories and what is in them.
struct Memory(BTreeMap<RelPath, Children>);

impl TreeSource for Memory {
    type Error = Infallible;

    fn lookup(&self, path: &RelPath) -> Result<Option<NodeKind>, Infallible> {
        if self.0.contains_key(path) {
            return Ok(Some(NodeKind::Dir));
        }
        let name = path.file_name().unwrap_or_default();
        let siblings = path.parent().and_then(|parent| self.0.get(&parent));
        Ok(siblings.into_iter().flatten().find(|child| child.0 == name).map(|child| child.1.clone()))
    }

    fn children(&self, dir: &RelPath) -> Result<Children, Infallible> {
        Ok(self.0.get(dir).cloned().unwrap_or_default())
    }
}

/// BuildKit's content hash of a tree whose file digests are known.
pub(super) fn content_hash(size: Size) -> Result<Micro, String> {
    let entries = entries(size)?;
    let mut tree = Memory(BTreeMap::from([(RelPath::root(), Children::new())]));
    for entry in &entries {
        tree.add(&entry.path, NodeKind::File);
    }
    let amount = entries.len();
    let header = header_digest(&Entry::new(RelPath::root(), Kind::Dir, 0o755));
    let options = SelectOptions::default();
    let once = move || {
        let selection = select(&tree, "/", &options).map_err(|error| error.to_string())?;
        selection.digest(|_| Ok::<_, Infallible>(header)).map_err(|error| error.to_string())
    };
    once()?;
    Ok(Micro {
        run: Box::new(move || {
            drop(black_box(once()));
        }),
        amount,
        unit: "file",
    })
}

impl Memory {
    fn add(&mut self, path: &RelPath, kind: NodeKind) {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return };
        if !self.0.contains_key(&parent) {
            self.0.insert(parent.clone(), Children::new());
            self.add(&parent, NodeKind::Dir);
        }
        self.0.entry(parent).or_default().push((name.to_vec(), kind));
    }
}
