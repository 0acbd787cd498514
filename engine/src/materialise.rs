//! Brings layers to the disk when somebody needs them: fetches, verifies, decompresses and unpacks, all layers of a snapshot at once, and
//! each layer's stages overlapped: receive and hash, decompress and hash, unpack.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use rbuild_digest::{Digest, Hasher};
use rbuild_oci::media_type::Compression;
use rbuild_ports::{
    CancelToken, CommittedLayer, ErrorKind, LayerBlob, LayerId, LayerRow, PortError, Progress, RemoteBlob,
    ResolvedImage, Result, Snapshot,
};

use crate::Ports;

/// How many layers are fetched at a time.
const PARALLEL_LAYERS: usize = 4;
/// Bytes handed from stage to stage.
const CHUNK: usize = 512 * 1024;
/// Chunks under way between two stages.
const CHUNKS: usize = 4;

/// Makes layers present.
pub struct Materialiser {
    ports: Arc<Ports>,
    present: Mutex<HashSet<LayerId>>,
    /// One lock a layer, so that two steps that need it fetch it once.
    busy: Mutex<HashMap<LayerId, Arc<Mutex<()>>>>,
}

/// Stores where the layers of a resolved image can be fetched.
///
/// # Errors
/// If the index cannot be read or written.
pub fn record_image(ports: &Ports, image: &ResolvedImage) -> Result<()> {
    for layer in &image.layers {
        let id = LayerId::of_diff_id(&layer.diff_id);
        let known = ports.index.layer(&id)?;
        if known.is_some_and(|row| row.remotes.contains(&layer.remote)) {
            continue;
        }
        ports.index.put_layer(&LayerRow {
            layer: CommittedLayer::unseen(id),
            diff_id: Some(layer.diff_id),
            blobs: vec![],
            remotes: vec![layer.remote.clone()],
            created: ports.clock.now(),
        })?;
    }
    Ok(())
}

impl Materialiser {
    /// Fetches through `ports`.
    #[must_use]
    pub fn new(ports: Arc<Ports>) -> Self {
        Self { ports, present: Mutex::default(), busy: Mutex::default() }
    }

    /// Makes all layers of `snapshot` present.
    ///
    /// # Errors
    /// `NotFound` for a layer that is neither on the disk nor anywhere else; otherwise what went wrong fetching it.
    pub fn ensure(&self, snapshot: &Snapshot, progress: &dyn Progress, cancel: &CancelToken) -> Result<()> {
        let missing: Vec<usize> =
            (0..snapshot.layers.len()).filter(|i| !self.is_present(&snapshot.layers[*i])).collect();
        let queue = Mutex::new(missing.iter().copied());
        let retry = Mutex::new(Vec::new());
        let failure = Mutex::new(None);
        let work = || {
            while let Some(i) = { queue.lock().unwrap_or_else(PoisonError::into_inner).next() } {
                match self.ensure_layer(snapshot, i, progress, cancel) {
                    Ok(()) => {}
                    // It refers to a layer below it that is on its way: once more when that is there.
                    Err(error) if error.kind == ErrorKind::NotFound && i > 0 && missing.len() > 1 => {
                        retry.lock().unwrap_or_else(PoisonError::into_inner).push(i);
                    }
                    Err(error) => {
                        failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
                        return;
                    }
                }
            }
        };
        match missing.len() {
            0 => return Ok(()),
            1 => work(),
            n => thread::scope(|scope| {
                for _ in 0..n.min(PARALLEL_LAYERS) {
                    scope.spawn(work);
                }
            }),
        }
        if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut retry = retry.into_inner().unwrap_or_else(PoisonError::into_inner);
        retry.sort_unstable();
        retry.into_iter().try_for_each(|i| self.ensure_layer(snapshot, i, progress, cancel))
    }

    /// Whether some layer is not on the disk.
    #[must_use]
    pub fn is_missing(&self, snapshot: &Snapshot) -> bool {
        snapshot.layers.iter().any(|layer| !self.is_present(layer))
    }

    /// Stores what a step made.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub fn record_made(&self, layer: CommittedLayer) -> Result<()> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.layer.clone());
        let row = LayerRow {
            layer,
            diff_id: None,
            blobs: vec![],
            remotes: vec![],
            created: self.ports.clock.now(),
        };
        self.ports.index.put_layer(&row)
    }

    fn is_present(&self, layer: &LayerId) -> bool {
        if self.present.lock().unwrap_or_else(PoisonError::into_inner).contains(layer) {
            return true;
        }
        let present = self.ports.snapshots.present(layer);
        if present {
            self.present.lock().unwrap_or_else(PoisonError::into_inner).insert(layer.clone());
        }
        present
    }

    fn ensure_layer(
        &self,
        snapshot: &Snapshot,
        i: usize,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<()> {
        let id = &snapshot.layers[i];
        let lock =
            self.busy.lock().unwrap_or_else(PoisonError::into_inner).entry(id.clone()).or_default().clone();
        let _one = lock.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_present(id) {
            return Ok(());
        }
        cancel.check()?;
        let row = self.ports.index.layer(id)?.ok_or_else(|| gone(id))?;
        let diff_id = row.diff_id.ok_or_else(|| gone(id))?;
        let mut last = gone(id);
        for blob in &row.blobs {
            if self.ports.blobs.size(&blob.descriptor.digest)?.is_none() {
                continue;
            }
            let source = Source { id, diff_id, descriptor: &blob.descriptor, remote: None };
            match self.fetch(&source, &snapshot.layers[..i], progress, cancel) {
                Err(error) if error.kind == ErrorKind::Corrupt => {
                    self.ports.blobs.remove(&blob.descriptor.digest)?;
                    last = error;
                }
                other => return other,
            }
        }
        for remote in &row.remotes {
            let source = Source { id, diff_id, descriptor: &remote.descriptor, remote: Some(remote) };
            match self.fetch(&source, &snapshot.layers[..i], progress, cancel) {
                Ok(()) => return Ok(()),
                Err(error) if error.kind == ErrorKind::Cancelled => return Err(error),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn fetch(
        &self,
        source: &Source<'_>,
        parents: &[LayerId],
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<()> {
        let descriptor = source.descriptor;
        let compression = Compression::of_layer(&descriptor.media_type).ok_or_else(|| {
            PortError::new(
                ErrorKind::Unsupported,
                format!(
                    "layer {} has the media type {:?}, which is not a layer that can be unpacked",
                    descriptor.digest, descriptor.media_type
                ),
            )
        })?;
        let (raw_send, raw_receive) = sync_channel::<io::Result<Vec<u8>>>(CHUNKS);
        let (tar_send, tar_receive) = sync_channel::<io::Result<Vec<u8>>>(CHUNKS);
        let received: Mutex<Option<Result<()>>> = Mutex::new(None);
        let unpacked = thread::scope(|scope| {
            scope.spawn(|| {
                let result = self.receive(source, &raw_send, progress, cancel);
                if let Err(error) = &result {
                    drop(raw_send.send(Err(io::Error::other(error.message.clone()))));
                }
                *received.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
                drop(raw_send);
            });
            scope.spawn(move || {
                decode(compression, ChannelReader::new(raw_receive), source.diff_id, &tar_send)
            });
            self.ports.snapshots.unpack(source.id, parents, &mut ChannelReader::new(tar_receive), cancel)
        });
        // What went wrong first explains the rest.
        if let Some(Err(error)) = received.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if unpacked.is_ok() {
                self.ports.snapshots.remove(source.id)?;
            }
            if error.kind != ErrorKind::Io || unpacked.is_ok() {
                return Err(error);
            }
        }
        let committed = unpacked.map_err(|error| error.context(format!("layer {}", descriptor.digest)))?;
        let blob = LayerBlob { descriptor: descriptor.clone(), maker: "pulled".to_owned() };
        let row = LayerRow {
            layer: committed,
            diff_id: Some(source.diff_id),
            blobs: vec![blob],
            remotes: source.remote.cloned().into_iter().collect(),
            created: self.ports.clock.now(),
        };
        self.ports.index.put_layer(&row)?;
        self.present.lock().unwrap_or_else(PoisonError::into_inner).insert(source.id.clone());
        Ok(())
    }

    /// First stage: reads the blob where it lies, keeps what comes from elsewhere, verifies it.
    fn receive(
        &self,
        source: &Source<'_>,
        out: &SyncSender<io::Result<Vec<u8>>>,
        progress: &dyn Progress,
        cancel: &CancelToken,
    ) -> Result<()> {
        let descriptor = source.descriptor;
        let name = descriptor.digest.to_string();
        let mut reader: Box<dyn Read + Send> = match source.remote {
            Some(remote) => self.ports.sources.fetch_blob(remote, cancel)?,
            None => Box::new(self.ports.blobs.open(&descriptor.digest)?),
        };
        let mut keep = match source.remote {
            Some(_) => Some(self.ports.blobs.writer()?),
            None => None,
        };
        let mut hasher = Hasher::new();
        let mut count = 0u64;
        loop {
            cancel.check()?;
            let mut chunk = vec![0; CHUNK];
            let n = read_full(&mut *reader, &mut chunk)
                .map_err(|e| PortError::new(ErrorKind::Network, format!("cannot read layer {name}: {e}")))?;
            if n == 0 {
                break;
            }
            chunk.truncate(n);
            count += n as u64;
            if count > descriptor.size {
                return Err(corrupt(
                    &name,
                    &format!("it is longer than the {} bytes its manifest says", descriptor.size),
                ));
            }
            match &mut keep {
                Some(writer) => {
                    writer.write_all(&chunk).map_err(|e| PortError::io("write", "the blob store", e))?
                }
                None => hasher.update(&chunk),
            }
            progress.status(&name, count, Some(descriptor.size), false);
            if out.send(Ok(chunk)).is_err() {
                // The next stage gave up; it knows why.
                return Err(PortError::new(ErrorKind::Io, format!("layer {name} could not be unpacked")));
            }
        }
        if count != descriptor.size {
            return Err(corrupt(
                &name,
                &format!("it has {count} bytes, but its manifest says {}", descriptor.size),
            ));
        }
        match keep {
            Some(writer) => {
                writer.commit(Some(&descriptor.digest))?;
            }
            None => {
                let found = hasher.finish();
                if found != descriptor.digest {
                    return Err(corrupt(&name, &format!("the stored copy has the digest {found}")));
                }
            }
        }
        progress.status(&name, count, Some(descriptor.size), true);
        Ok(())
    }
}

struct Source<'a> {
    id: &'a LayerId,
    diff_id: Digest,
    descriptor: &'a rbuild_oci::Descriptor,
    /// `None` reads the blob store.
    remote: Option<&'a RemoteBlob>,
}

fn gone(id: &LayerId) -> PortError {
    PortError::new(
        ErrorKind::NotFound,
        format!("layer {id} is not in the store, and nothing says where to fetch it"),
    )
}

fn corrupt(name: &str, how: &str) -> PortError {
    PortError::new(ErrorKind::Corrupt, format!("layer {name} is damaged: {how}"))
}

fn read_full(reader: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut n = 0;
    while n < buffer.len() {
        match reader.read(&mut buffer[n..]) {
            Ok(0) => break,
            Ok(more) => n += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(n)
}

/// Second stage: decompresses, and ends with an error instead of the end when the diff id is wrong, so that
/// what was unpacked is thrown away.
fn decode(
    compression: Compression,
    raw: ChannelReader,
    diff_id: Digest,
    out: &SyncSender<io::Result<Vec<u8>>>,
) {
    let result = (|| {
        let mut reader: Box<dyn Read> = match compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(CHUNK, raw)))
            }
            Compression::Zstd => Box::new(zstd::Decoder::new(raw)?),
        };
        let mut hasher = Hasher::new();
        loop {
            let mut chunk = vec![0; CHUNK];
            let n = read_full(&mut *reader, &mut chunk)?;
            if n == 0 {
                break;
            }
            chunk.truncate(n);
            hasher.update(&chunk);
            if out.send(Ok(chunk)).is_err() {
                return Ok(());
            }
        }
        // Whatever follows the compressed data is still received and verified by the first stage.
        io::copy(&mut reader, &mut io::sink())?;
        let found = hasher.finish();
        if found == diff_id {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("its content has the diff id {found}, but the image config says {diff_id}"),
        ))
    })();
    if let Err(error) = result {
        drop(out.send(Err(error)));
    }
}

/// Reads what a stage sends.
struct ChannelReader {
    receive: Receiver<io::Result<Vec<u8>>>,
    chunk: Vec<u8>,
    at: usize,
    failed: bool,
}

impl ChannelReader {
    fn new(receive: Receiver<io::Result<Vec<u8>>>) -> Self {
        Self { receive, chunk: vec![], at: 0, failed: false }
    }
}

impl Read for ChannelReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            if self.failed {
                return Err(io::Error::other("the stage before failed"));
            }
            match self.receive.recv() {
                Ok(Ok(chunk)) => (self.chunk, self.at) = (chunk, 0),
                Ok(Err(error)) => {
                    self.failed = true;
                    return Err(error);
                }
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.chunk.len() - self.at);
        buf[..n].copy_from_slice(&self.chunk[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}
