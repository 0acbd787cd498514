//! Contents of cache mounts, out: each mount's tar is cut into pieces, and only pieces that the target has not are
//! compressed and sent. A mount that somebody uses alone, that changes meanwhile, or that is too large is left out.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use rbuild_cache_remote::{CHUNK_TYPE, Chunk, Chunker, MountContent, MountIndex};
use rbuild_digest::Digest;
use rbuild_export::ExportContext;
use rbuild_oci::Descriptor;
use rbuild_ports::{ErrorKind, PortError, Result};

use crate::export::in_parallel;
use crate::merge::{is_recent, today};
use crate::steps::ExportGraph;
use crate::target::CacheTarget;

/// How hard pieces are compressed.
const LEVEL: i32 = 3;
/// Pieces that are worked on together.
const BATCH: usize = 8;

/// What an export of mounts works with.
pub(crate) struct MountExport<'a> {
    pub(crate) cx: &'a ExportContext<'a>,
    pub(crate) target: &'a dyn CacheTarget,
    /// Bytes of all pieces together.
    pub(crate) budget: u64,
}

impl MountExport<'_> {
    /// Sends the contents of the mounts of `graphs`. Pieces of `old` need not be compressed again.
    pub(crate) fn send(&self, graphs: &[ExportGraph], old: &MountIndex) -> Result<MountIndex> {
        let wanted: BTreeSet<(&str, &str)> = graphs
            .iter()
            .flat_map(|graph| graph.mounts.iter().map(|id| (graph.platform.as_str(), id.as_str())))
            .collect();
        let known: HashMap<&str, &Chunk> = old.chunks().map(|chunk| (chunk.digest.as_str(), chunk)).collect();
        let mut left = self.budget;
        let mut done: BTreeMap<&str, Vec<Chunk>> = BTreeMap::new();
        let mut out = MountIndex::default();
        for (platform, id) in wanted {
            self.cx.cancel.check()?;
            let chunks = match done.get(id) {
                // The same directory serves all platforms.
                Some(chunks) => Some(chunks.clone()),
                None => self.one(id, &known, left)?,
            };
            let Some(chunks) = chunks else { continue };
            if done.insert(id, chunks.clone()).is_none() {
                left = left.saturating_sub(chunks.iter().map(|chunk| chunk.blob.size).sum());
            }
            let exported = today(self.cx.clock.now());
            out.mounts.push(MountContent {
                id: id.to_owned(),
                platform: platform.to_owned(),
                exported,
                chunks,
            });
        }
        Ok(out)
    }

    /// The pieces of one mount, all of them sent; `None` when it is left out.
    fn one(&self, id: &str, known: &HashMap<&str, &Chunk>, budget: u64) -> Result<Option<Vec<Chunk>>> {
        let label = format!("exporting cache mount {id}");
        self.cx.progress.status(&label, 0, None, false);
        let over = Cell::new(false);
        let mut sink = Sink {
            export: self,
            known,
            chunker: Chunker::default(),
            pieces: vec![],
            chunks: vec![],
            left: budget,
            over: &over,
            label: &label,
            passed: 0,
            failure: None,
        };
        let written = match self.cx.snapshots.write_cache_mount(id, &mut sink) {
            Ok(true) => sink.end(),
            Ok(false) => return Ok(None),
            // What the sink said is told by nobody else.
            Err(error) => Err(sink.failure.take().unwrap_or(error)),
        };
        match written {
            Ok(chunks) => {
                let size = chunks.iter().map(|chunk| chunk.length).sum();
                self.cx.progress.status(&label, size, Some(size), true);
                Ok(Some(chunks))
            }
            Err(error) if over.get() || matches!(error.kind, ErrorKind::Corrupt | ErrorKind::NotFound) => {
                self.cx.progress.warn(&format!("cache mount {id} is left out: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Joins what others exported with what this build has: recent contents of other mounts stay, as far as they fit and are
    /// still there.
    pub(crate) fn join(&self, mut own: MountIndex, old: &MountIndex) -> Result<MountIndex> {
        let mut left = self.budget.saturating_sub(own.mounts.iter().map(MountContent::size).sum());
        let now = self.cx.clock.now();
        let mut others: Vec<&MountContent> =
            old.mounts.iter().filter(|it| is_recent(&it.exported, now)).collect();
        others.sort_by(|a, b| b.exported.cmp(&a.exported));
        for other in others {
            let ours = own.find(&other.id, std::slice::from_ref(&other.platform)).is_some();
            if !ours && other.size() <= left && self.has_all(other)? {
                left -= other.size();
                own.mounts.push(other.clone());
            }
        }
        Ok(own)
    }

    fn has_all(&self, content: &MountContent) -> Result<bool> {
        let all = AtomicBool::new(true);
        in_parallel(&content.chunks, |chunk| {
            if !self.target.has_blob(&chunk.blob, &[], self.cx.cancel)? {
                all.store(false, Ordering::Relaxed);
            }
            Ok(())
        })?;
        Ok(all.into_inner())
    }

    /// A piece as a blob of the target.
    fn piece(&self, bytes: &[u8], known: &HashMap<&str, &Chunk>) -> Result<Chunk> {
        let digest = Digest::of(bytes).to_string();
        if let Some(chunk) = known.get(digest.as_str())
            && self.target.has_blob(&chunk.blob, &[], self.cx.cancel)?
        {
            return Ok((*chunk).clone());
        }
        let packed = zstd::bulk::compress(bytes, LEVEL).map_err(|error| {
            PortError::new(ErrorKind::Io, format!("cannot compress a cache mount: {error}"))
        })?;
        let blob = Descriptor::new(CHUNK_TYPE, Digest::of(&packed), packed.len() as u64);
        if !self.target.has_blob(&blob, &[], self.cx.cancel)? {
            self.target.put_blob(&blob, &|| Ok(Box::new(packed.as_slice())), self.cx.cancel)?;
        }
        Ok(Chunk { digest, length: bytes.len() as u64, blob })
    }
}

/// Takes a mount's tar.
struct Sink<'a> {
    export: &'a MountExport<'a>,
    known: &'a HashMap<&'a str, &'a Chunk>,
    chunker: Chunker,
    pieces: Vec<Vec<u8>>,
    chunks: Vec<Chunk>,
    left: u64,
    /// Whether there is nothing left.
    over: &'a Cell<bool>,
    label: &'a str,
    passed: u64,
    failure: Option<PortError>,
}

impl Sink<'_> {
    fn flush_pieces(&mut self) -> Result<()> {
        let pieces: Vec<(usize, Vec<u8>)> =
            std::mem::take(&mut self.pieces).into_iter().enumerate().collect();
        let made = Mutex::new(BTreeMap::new());
        in_parallel(&pieces, |(at, piece)| {
            self.export.cx.cancel.check()?;
            let chunk = self.export.piece(piece, self.known)?;
            made.lock().unwrap_or_else(PoisonError::into_inner).insert(*at, chunk);
            Ok(())
        })?;
        for chunk in made.into_inner().unwrap_or_else(PoisonError::into_inner).into_values() {
            let Some(left) = self.left.checked_sub(chunk.blob.size) else {
                self.over.set(true);
                return Err(PortError::new(ErrorKind::NoSpace, "it does not fit into mounts-size"));
            };
            self.left = left;
            self.chunks.push(chunk);
        }
        Ok(())
    }

    fn end(mut self) -> Result<Vec<Chunk>> {
        let last = std::mem::take(&mut self.chunker).finish();
        if !last.is_empty() {
            self.pieces.push(last);
        }
        self.flush_pieces()?;
        Ok(self.chunks)
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.passed += bytes.len() as u64;
        self.pieces.extend(self.chunker.push(bytes));
        if self.pieces.len() >= BATCH {
            self.export.cx.progress.status(self.label, self.passed, None, false);
            if let Err(error) = self.flush_pieces() {
                self.failure = Some(error);
                return Err(io::Error::other("the cache mount's export failed"));
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
