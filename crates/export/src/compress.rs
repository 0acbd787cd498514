//! A tar stream into a compressed blob in one pass: whoever makes the stream hashes it for the diff id, a pool of
//! threads compresses blocks of it, and finished blocks go to the blob in order. Memory is bounded by the number of
//! blocks under way, and the bytes do not depend on the number of threads. Knows nothing of layers or the index.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use rbuild_digest::{Digest, Hasher};
use rbuild_oci::media_type::Compression;
use rbuild_ports::{BlobStore, BlobWriter, CancelToken, ErrorKind, PortError, Result};
use zstd::zstd_safe::CParameter;

use crate::{CompressionSpec, gzip};

mod blocks;
mod repeats;

use blocks::{Block, Blocks, Cutter, Sink};
use repeats::Repeats;

/// zstd's level when nobody asks for another.
const ZSTD_LEVEL: i32 = 3;
/// Uncompressed bytes a thread of zstd takes at a time. It enters the bytes, so it is fixed.
const ZSTD_JOB: u32 = 4 << 20;

/// Threads and buffers shared by all layers that are compressed at the same time.
pub(crate) struct Pool {
    threads: usize,
    workers: rayon::ThreadPool,
    blocks: Blocks,
    repeats: Repeats,
    idle: Mutex<Vec<(i32, libdeflater::Compressor)>>,
}

/// What was learned of a stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct TarFacts {
    pub(crate) diff_id: Digest,
    pub(crate) size: u64,
}

/// A stream as a blob.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Compressed {
    pub(crate) tar: TarFacts,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// Writes a tar stream to what it is given.
pub(crate) type Produce<'a> = dyn FnMut(&mut dyn Write) -> Result<()> + 'a;

/// Told how many bytes of the stream went by.
pub(crate) type Passed<'a> = dyn Fn(u64) + Sync + 'a;

impl CompressionSpec {
    /// The level that is used.
    #[must_use]
    pub fn effective_level(&self) -> i32 {
        match (self.kind, self.level) {
            (Compression::None, _) => 0,
            (Compression::Gzip, level) => level.unwrap_or(gzip::DEFAULT_LEVEL),
            (Compression::Zstd, level) => level.filter(|level| *level != 0).unwrap_or(ZSTD_LEVEL),
        }
    }

    /// The name under which the index knows blobs that were made so.
    #[must_use]
    pub fn maker(&self) -> String {
        match self.kind {
            Compression::None => "tar".to_owned(),
            Compression::Gzip => format!("gzip:{}:1mib:32kib", self.effective_level()),
            Compression::Zstd => format!("zstd:{}:4mib", self.effective_level()),
        }
    }
}

impl Pool {
    /// A pool of `threads` threads.
    pub(crate) fn new(threads: usize) -> Result<Self> {
        let threads = threads.max(1);
        let workers = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("compress-{i}"))
            .build()
            .map_err(|error| PortError::new(ErrorKind::Io, format!("cannot start threads: {error}")))?;
        let blocks = Blocks::new(2 * threads + 2);
        Ok(Self { threads, workers, blocks, repeats: Repeats::default(), idle: Mutex::default() })
    }

    /// Stores what `produce` writes as a blob.
    ///
    /// # Errors
    /// What `produce` says, if the store cannot be written, or `Cancelled`. Then there is no blob.
    pub(crate) fn store(
        &self,
        spec: &CompressionSpec,
        blobs: &dyn BlobStore,
        cancel: &CancelToken,
        passed: &Passed<'_>,
        produce: &mut Produce<'_>,
    ) -> Result<Compressed> {
        let level = spec.effective_level();
        let mut blob = blobs.writer()?;
        let tar = match spec.kind {
            Compression::None => {
                // The blob is the stream, and the writer hashes it already.
                let mut tap = Tap { hasher: None, count: 0, cancel, passed, out: &mut *blob };
                produce(&mut tap).map_err(|error| or_cancelled(error, cancel))?;
                let size = tap.count;
                cancel.check()?;
                let (digest, _) = blob.commit(None)?;
                return Ok(Compressed { tar: TarFacts { diff_id: digest, size }, digest, size });
            }
            Compression::Gzip => {
                let (facts, writer) = self.gzip(level, blob, cancel, passed, produce)?;
                blob = writer;
                facts
            }
            Compression::Zstd => self.zstd(level, &mut *blob, cancel, passed, produce)?,
        };
        cancel.check()?;
        let (digest, size) = blob.commit(None)?;
        Ok(Compressed { tar, digest, size })
    }

    fn gzip(
        &self,
        level: i32,
        blob: Box<dyn BlobWriter>,
        cancel: &CancelToken,
        passed: &Passed<'_>,
        produce: &mut Produce<'_>,
    ) -> Result<(TarFacts, Box<dyn BlobWriter>)> {
        let sink = Sink::new(blob, level, &self.blocks, &self.repeats);
        let ordered = &sink;
        let produced = self.workers.in_place_scope(|scope| {
            let emit = |seq, mut block: Block| {
                scope.spawn(move |_| {
                    let result = self.compress(level, &mut block);
                    ordered.deliver(seq, block, result);
                });
            };
            let mut cutter = Cutter::new(ordered, emit);
            let mut tap = Tap { hasher: Some(Hasher::new()), count: 0, cancel, passed, out: &mut cutter };
            let result = produce(&mut tap);
            let facts = tap.facts();
            match result {
                Ok(()) => cutter.finish(),
                Err(_) => cutter.abandon(),
            }
            result.map(|()| facts)
        });
        // A full disk shows itself as a failure to write the stream: say what was behind it.
        let blob = sink
            .finish()
            .map_err(|error| or_cancelled(PortError::io("write", "the blob store", error), cancel))?;
        let facts = produced.map_err(|error| or_cancelled(error, cancel))?;
        Ok((facts, blob))
    }

    fn compress(&self, level: i32, block: &mut Block) -> io::Result<()> {
        if block.content {
            let digest = Digest::of(&block.input);
            if self.repeats.copy(level, &digest, &mut block.output) {
                return Ok(());
            }
            block.digest = Some(digest);
        }
        let idle = {
            let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
            idle.iter().position(|(of, _)| *of == level).map(|at| idle.swap_remove(at).1)
        };
        let mut compressor = match idle {
            Some(compressor) => compressor,
            None => gzip::compressor(level)?,
        };
        let result = gzip::member(&mut compressor, &block.input, &mut block.output);
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((level, compressor));
        result
    }

    fn zstd(
        &self,
        level: i32,
        blob: &mut dyn BlobWriter,
        cancel: &CancelToken,
        passed: &Passed<'_>,
        produce: &mut Produce<'_>,
    ) -> Result<TarFacts> {
        let broken = |error: io::Error| or_cancelled(PortError::io("write", "the blob store", error), cancel);
        let mut encoder = zstd::Encoder::new(blob, level).map_err(broken)?;
        // Always with workers: without any, zstd writes other bytes.
        encoder.multithread(u32::try_from(self.threads).unwrap_or(1)).map_err(broken)?;
        encoder.set_parameter(CParameter::JobSize(ZSTD_JOB)).map_err(broken)?;
        encoder.include_checksum(true).map_err(broken)?;
        let mut tap = Tap { hasher: Some(Hasher::new()), count: 0, cancel, passed, out: &mut encoder };
        produce(&mut tap).map_err(|error| or_cancelled(error, cancel))?;
        let facts = tap.facts();
        encoder.finish().map_err(broken)?;
        Ok(facts)
    }
}

/// Learns the diff id and size of what `produce` writes, and keeps nothing.
pub(crate) fn measure(
    cancel: &CancelToken,
    passed: &Passed<'_>,
    produce: &mut Produce<'_>,
) -> Result<TarFacts> {
    let mut tap = Tap { hasher: Some(Hasher::new()), count: 0, cancel, passed, out: &mut io::sink() };
    produce(&mut tap).map_err(|error| or_cancelled(error, cancel))?;
    Ok(tap.facts())
}

fn or_cancelled(error: PortError, cancel: &CancelToken) -> PortError {
    if cancel.is_cancelled() { PortError::cancelled() } else { error }
}

/// Hashes and counts what passes, and stops when cancelled.
struct Tap<'a> {
    hasher: Option<Hasher>,
    count: u64,
    cancel: &'a CancelToken,
    passed: &'a Passed<'a>,
    out: &'a mut dyn Write,
}

impl Tap<'_> {
    fn facts(&mut self) -> TarFacts {
        TarFacts { diff_id: self.hasher.take().unwrap_or_default().finish(), size: self.count }
    }
}

impl Write for Tap<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            // Not `Interrupted`: that would be tried again.
            return Err(io::Error::other("cancelled"));
        }
        let n = self.out.write(bytes)?;
        let bytes = bytes.get(..n).unwrap_or_default();
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        let before = self.count;
        self.count += n as u64;
        if before / (4 << 20) != self.count / (4 << 20) {
            (self.passed)(self.count);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
