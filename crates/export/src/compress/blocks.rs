//! A stream as numbered blocks: cut here, compressed elsewhere by several threads, written here in their order.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use libdeflater::crc32;
use rbuild_digest::Digest;
use rbuild_ports::{BlobWriter, ReadAt};
use rbuild_tree::TarScan;

use super::repeats::{Member, Repeats};
use crate::gzip;

/// Bytes written after which the blob's file has what was written.
const FLUSH: u64 = 256 << 10;

/// A block of the stream and what it is compressed to.
#[derive(Default)]
pub(super) struct Block {
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// Whether it is content of a large file and nothing else.
    pub(super) content: bool,
    /// What it holds, if that may come again.
    pub(super) digest: Option<Digest>,
}

/// The blocks that exist: who wants one more waits until one was written.
pub(super) struct Blocks {
    pub(super) free: Mutex<Vec<Block>>,
    returned: Condvar,
}

impl Blocks {
    pub(super) fn new(count: usize) -> Self {
        let free = std::iter::repeat_with(Block::default).take(count).collect();
        Self { free: Mutex::new(free), returned: Condvar::new() }
    }

    fn take(&self) -> Block {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(block) => return block,
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn give_back(&self, mut block: Block) {
        block.input.clear();
        block.content = false;
        block.digest = None;
        self.free.lock().unwrap_or_else(PoisonError::into_inner).push(block);
        self.returned.notify_one();
    }
}

/// Cuts a stream into blocks: contents of large files by themselves, nothing over the fixed size.
pub(super) struct Cutter<'a, F: FnMut(u64, Block)> {
    block: Option<Block>,
    next: u64,
    scan: TarScan,
    sink: &'a Sink<'a>,
    emit: F,
}

impl<'a, F: FnMut(u64, Block)> Cutter<'a, F> {
    pub(super) fn new(sink: &'a Sink<'a>, emit: F) -> Self {
        Self { block: None, next: 0, scan: TarScan::new(gzip::LARGE), sink, emit }
    }

    fn send(&mut self) {
        if let Some(block) = self.block.take() {
            (self.emit)(self.next, block);
            self.next += 1;
        }
    }

    pub(super) fn finish(mut self) {
        if self.next == 0 && self.block.is_none() {
            // An empty stream is one empty member: no bytes at all would be no gzip file.
            self.block = Some(self.sink.blocks.take());
        }
        self.send();
    }

    pub(super) fn abandon(mut self) {
        if let Some(block) = self.block.take() {
            self.sink.blocks.give_back(block);
        }
    }

    /// Adds bytes that are content of a large file, or are not.
    fn add(&mut self, mut bytes: &[u8], content: bool) {
        if self.block.as_ref().is_some_and(|block| block.content != content) {
            self.send();
        }
        while !bytes.is_empty() {
            let block = self.block.get_or_insert_with(|| self.sink.blocks.take());
            block.content = content;
            block.input.reserve_exact(gzip::BLOCK - block.input.len());
            let (now, later) = bytes.split_at(bytes.len().min(gzip::BLOCK - block.input.len()));
            block.input.extend_from_slice(now);
            bytes = later;
            if block.input.len() == gzip::BLOCK {
                self.send();
            }
        }
    }
}

impl<F: FnMut(u64, Block)> Write for Cutter<'_, F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.sink.failed.load(Ordering::Relaxed) {
            return Err(io::Error::other("the blob cannot be written"));
        }
        let (n, content) = self.scan.next(bytes);
        self.add(bytes.get(..n).unwrap_or_default(), content);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Puts finished blocks into their order and writes them. Whoever finishes the next one writes it, and those that
/// waited for it.
pub(super) struct Sink<'a> {
    blocks: &'a Blocks,
    repeats: &'a Repeats,
    level: i32,
    /// Whether there is an error, for those who do not want to wait for the lock.
    failed: AtomicBool,
    state: Mutex<SinkState>,
}

struct SinkState {
    next: u64,
    waiting: BTreeMap<u64, Block>,
    out: Box<dyn BlobWriter>,
    /// Reads what was written, if the store can.
    written: Option<Arc<dyn ReadAt>>,
    /// Bytes of the blob until now.
    length: u64,
    /// How many of them are in its file.
    flushed: u64,
    /// Members of contents that are not all in the file yet.
    fresh: Vec<(Digest, Member)>,
    error: Option<io::Error>,
}

impl<'a> Sink<'a> {
    pub(super) fn new(
        out: Box<dyn BlobWriter>,
        level: i32,
        blocks: &'a Blocks,
        repeats: &'a Repeats,
    ) -> Self {
        let state = SinkState {
            next: 0,
            waiting: BTreeMap::new(),
            written: out.written(),
            out,
            length: 0,
            flushed: 0,
            fresh: vec![],
            error: None,
        };
        Self { blocks, repeats, level, failed: AtomicBool::new(false), state: Mutex::new(state) }
    }

    pub(super) fn deliver(&self, seq: u64, block: Block, result: io::Result<()>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = result {
            state.error.get_or_insert(error);
        }
        state.waiting.insert(seq, block);
        loop {
            let next = state.next;
            let Some(block) = state.waiting.remove(&next) else { break };
            if state.error.is_none()
                && let Err(error) = self.write(&mut state, &block)
            {
                state.error = Some(error);
            }
            self.blocks.give_back(block);
            state.next += 1;
        }
        if state.error.is_some() {
            self.failed.store(true, Ordering::Relaxed);
        }
    }

    fn write(&self, state: &mut SinkState, block: &Block) -> io::Result<()> {
        state.out.write_all(&block.output)?;
        if let (Some(digest), Some(blob)) = (block.digest, &state.written) {
            let length = block.output.len();
            let member = Member { blob: blob.clone(), at: state.length, length, crc: crc32(&block.output) };
            state.fresh.push((digest, member));
        }
        state.length += block.output.len() as u64;
        if !state.fresh.is_empty() && state.length - state.flushed >= FLUSH {
            state.out.flush()?;
            state.flushed = state.length;
            for (digest, member) in state.fresh.drain(..) {
                self.repeats.add(self.level, digest, member);
            }
        }
        Ok(())
    }

    /// The writer of the blob, all of which is in its file.
    pub(super) fn finish(self) -> io::Result<Box<dyn BlobWriter>> {
        let mut state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = state.error {
            return Err(error);
        }
        if !state.fresh.is_empty() {
            state.out.flush()?;
            for (digest, member) in state.fresh {
                self.repeats.add(self.level, digest, member);
            }
        }
        Ok(state.out)
    }
}
