//! Writing a blob: into a scratch file, hashed on the way, renamed to its digest when it is whole.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_digest::{Digest, HashingWriter};
use rbuild_ports::{BlobWriter, ErrorKind, PortError, ReadAt, Result};

use crate::Scratch;
use crate::blobs::Shelf;
use crate::fs::remove_file;

const BUFFER: usize = 128 << 10;

/// A blob that nobody sees yet.
pub(crate) struct Writer {
    shelf: Arc<Shelf>,
    temporary: Temporary,
    out: BufWriter<HashingWriter<File>>,
}

/// The scratch file, which stays what it is under any name.
struct Written(File);

impl ReadAt for Written {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// The scratch file; removed when dropped, unless it was renamed.
struct Temporary {
    path: PathBuf,
    kept: bool,
    _scratch: Arc<Scratch>,
}

impl Writer {
    pub(crate) fn create(shelf: &Arc<Shelf>) -> Result<Self> {
        let scratch = shelf.root.scratch()?;
        let path = scratch.fresh();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o400)
            .open(&path)
            .map_err(|error| PortError::io("create", &path, error))?;
        let temporary = Temporary { path, kept: false, _scratch: scratch };
        Ok(Self {
            shelf: shelf.clone(),
            temporary,
            out: BufWriter::with_capacity(BUFFER, HashingWriter::new(file)),
        })
    }
}

impl Write for Writer {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.out.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl BlobWriter for Writer {
    fn written(&self) -> Option<Arc<dyn ReadAt>> {
        let file = self.out.get_ref().get_ref().try_clone().ok()?;
        Some(Arc::new(Written(file)))
    }

    fn commit(self: Box<Self>, expected: Option<&Digest>) -> Result<(Digest, u64)> {
        let Self { shelf, mut temporary, out } = *self;
        let out =
            out.into_inner().map_err(|error| PortError::io("write", &temporary.path, error.into_error()))?;
        let (_, digest, size) = out.finish();
        if let Some(expected) = expected.filter(|expected| **expected != digest) {
            return Err(PortError::new(
                ErrorKind::Corrupt,
                format!("a blob that should be {expected} is {digest} ({size} bytes)"),
            ));
        }
        shelf.put(&temporary.path, &digest)?;
        temporary.kept = true;
        Ok((digest, size))
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.kept {
            let _ = remove_file(&self.path);
        }
    }
}
