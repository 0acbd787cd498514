//! Reading a prepared layer's bytes for an output: verified while they pass, so that a damaged blob is found out and
//! made again, with cancellation and progress.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rbuild_digest::{Digest, Hasher};
use rbuild_oci::Descriptor;
use rbuild_ports::{BlobReader, CancelToken, ErrorKind, LayerId, PortError, Progress, Result};

use crate::ExportContext;
use crate::layers::{LayerMaker, Place, PreparedLayer};

/// What an output found wrong and the maker of layers can put right.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// A blob of the store is damaged.
    Damaged(Digest),
    /// A layer's blob cannot be fetched; the maker knows which, and has its files.
    Lost,
}

/// Notes faults during one attempt at an output.
#[derive(Default)]
pub(crate) struct Faults(Mutex<Vec<Fault>>);

impl Faults {
    pub(crate) fn add(&self, fault: Fault) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    pub(crate) fn take(&self) -> Vec<Fault> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Bytes that were sent, over all layers of an output.
pub(crate) struct Meter<'a> {
    progress: &'a dyn Progress,
    name: String,
    total: u64,
    sent: AtomicU64,
    done: AtomicBool,
}

impl<'a> Meter<'a> {
    pub(crate) fn new(progress: &'a dyn Progress, name: impl Into<String>, total: u64) -> Self {
        let out = Self {
            progress,
            name: name.into(),
            total,
            sent: AtomicU64::new(0),
            done: AtomicBool::new(false),
        };
        out.progress.status(&out.name, 0, Some(total), false);
        out
    }

    pub(crate) fn add(&self, bytes: u64) {
        let now = self.sent.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.progress.status(&self.name, now.min(self.total), Some(self.total), false);
    }

    pub(crate) fn done(&self) {
        if !self.done.swap(true, Ordering::Relaxed) {
            self.progress.status(&self.name, self.total, Some(self.total), true);
        }
    }
}

/// What an attempt at an output works with.
pub(crate) struct Attempt<'a> {
    pub(crate) cx: &'a ExportContext<'a>,
    pub(crate) maker: &'a LayerMaker<'a>,
    pub(crate) faults: &'a Faults,
}

impl Attempt<'_> {
    /// Makes sure that the bytes of all `layers` are on this machine.
    pub(crate) fn fetch(&self, layers: &[PreparedLayer]) -> Result<()> {
        self.maker.fetch_all(layers, &|layer, error| {
            let gone = matches!(
                error.kind,
                ErrorKind::NotFound | ErrorKind::Auth | ErrorKind::Network | ErrorKind::Corrupt
            );
            if gone && self.maker.give_up_remote(layer, error) {
                self.faults.add(Fault::Lost);
            }
        })
    }

    /// Opens a stored layer; the reader fails at its end when the bytes were not the right ones.
    pub(crate) fn open(&self, descriptor: &Descriptor) -> Result<VerifyingReader<'_>> {
        let reader = self.cx.blobs.open(&descriptor.digest).inspect_err(|error| {
            if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Corrupt) {
                self.faults.add(Fault::Damaged(descriptor.digest));
            }
        })?;
        Ok(VerifyingReader {
            reader,
            hasher: Some(Hasher::new()),
            expected: descriptor.digest,
            left: descriptor.size,
            faults: self.faults,
            cancel: self.cx.cancel,
        })
    }

    /// Calls `use_it` with a reader of the layer's bytes, wherever they are.
    pub(crate) fn with_reader<T>(
        &self,
        layer: &PreparedLayer,
        use_it: impl FnOnce(&mut dyn Read) -> Result<T>,
    ) -> Result<T> {
        match layer.place {
            Place::Store | Place::Remote => use_it(&mut self.open(&layer.descriptor.descriptor)?),
            Place::Tar => self.with_tar(&layer.descriptor.layer, use_it),
        }
    }

    /// The layer's tar is written by another thread while `use_it` reads it.
    fn with_tar<T>(&self, layer: &LayerId, use_it: impl FnOnce(&mut dyn Read) -> Result<T>) -> Result<T> {
        let (send, receive) = sync_channel(8);
        let closed = AtomicBool::new(false);
        thread::scope(|scope| {
            let closed = &closed;
            let writer = scope.spawn(move || {
                let mut out = io::BufWriter::with_capacity(256 * 1024, PipeWriter { send, closed });
                self.maker.tar(layer, &mut out)?;
                out.flush().map_err(|error| PortError::io("write", "the layer's tar", error))
            });
            let mut reader = PipeReader { receive, chunk: vec![], at: 0, cancel: self.cx.cancel };
            let result = use_it(&mut reader);
            drop(reader);
            let written = writer.join();
            match written {
                // What went wrong with the layer explains what went wrong with its reader.
                Ok(Err(cause)) if !closed.load(Ordering::Relaxed) => Err(cause),
                _ => result,
            }
        })
    }
}

/// Hashes what it reads, and says so when it was not what the digest promised.
pub(crate) struct VerifyingReader<'a> {
    reader: Box<dyn BlobReader>,
    hasher: Option<Hasher>,
    expected: Digest,
    left: u64,
    faults: &'a Faults,
    cancel: &'a CancelToken,
}

impl VerifyingReader<'_> {
    fn damaged(&self) -> io::Error {
        self.faults.add(Fault::Damaged(self.expected));
        io::Error::new(io::ErrorKind::InvalidData, format!("the stored blob {} is damaged", self.expected))
    }
}

impl Read for VerifyingReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        // The last byte is given only after all were verified: who gets the whole blob gets the right one.
        let n = self.reader.read(buf)?;
        let Some(hasher) = &mut self.hasher else { return Ok(n) };
        hasher.update(buf.get(..n).unwrap_or_default());
        match self.left.checked_sub(n as u64) {
            None => return Err(self.damaged()),
            Some(left) if n == 0 && left > 0 => return Err(self.damaged()),
            Some(left) => self.left = left,
        }
        if self.left == 0 && self.hasher.take().is_some_and(|hasher| hasher.finish() != self.expected) {
            return Err(self.damaged());
        }
        Ok(n)
    }
}

struct PipeWriter<'a> {
    send: SyncSender<Vec<u8>>,
    /// The reader wants no more.
    closed: &'a AtomicBool,
}

impl Write for PipeWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.send.send(bytes.to_vec()).map_err(|_| {
            self.closed.store(true, Ordering::Relaxed);
            io::Error::from(io::ErrorKind::BrokenPipe)
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct PipeReader<'a> {
    receive: Receiver<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    cancel: &'a CancelToken,
}

impl Read for PipeReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        while self.at == self.chunk.len() {
            match self.receive.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk, 0),
                Err(_) => return Ok(0),
            }
        }
        let rest = self.chunk.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf.get_mut(..n).unwrap_or_default().copy_from_slice(rest.get(..n).unwrap_or_default());
        self.at += n;
        Ok(n)
    }
}
