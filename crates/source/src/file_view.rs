//! A downloaded file as a tree that holds just it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rbuild_digest::{Digest, Hasher};
use rbuild_ports::{ErrorKind, PortError, Result, View};
use rbuild_tree::{Entry, Kind, RelPath, entry_hasher};

/// A tree of one file.
pub(crate) struct FileView {
    entry: Entry,
    /// Open, so that it stays whole whatever becomes of its name.
    file: File,
    digest: OnceLock<Digest>,
}

impl FileView {
    pub(crate) fn new(entry: Entry, file: File) -> Self {
        Self { entry, file, digest: OnceLock::new() }
    }

    fn reopen(&self) -> Result<File> {
        let path = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        File::open(&path).map_err(|error| PortError::io("open", path, error))
    }
}

impl View for FileView {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        if path.is_root() {
            return Ok(Some(Entry::new(RelPath::root(), Kind::Dir, 0o755)));
        }
        Ok((*path == self.entry.path).then(|| self.entry.clone()))
    }

    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        if path.is_root() {
            return Ok(vec![self.entry.path.as_bytes().to_vec()]);
        }
        Err(PortError::new(ErrorKind::NotFound, format!("{path} is no directory")))
    }

    fn open(&self, path: &RelPath) -> Result<File> {
        if *path == self.entry.path {
            return self.reopen();
        }
        Err(PortError::new(ErrorKind::NotFound, format!("{path} is no regular file")))
    }

    fn entry_digest(&self, path: &RelPath) -> Result<Digest> {
        let entry = self.lookup(path)?;
        let entry =
            entry.ok_or_else(|| PortError::new(ErrorKind::NotFound, format!("{path} is not there")))?;
        let mut hasher = entry_hasher(&entry);
        if entry.is_dir() {
            return Ok(hasher.finish());
        }
        if let Some(digest) = self.digest.get() {
            return Ok(*digest);
        }
        copy_into(&mut self.reopen()?, &mut hasher)
            .map_err(|error| PortError::io("read", path.to_string(), error))?;
        Ok(*self.digest.get_or_init(|| hasher.finish()))
    }
}

/// Adds the whole file to `hasher`; gives its size.
pub(crate) fn copy_into(file: &mut File, hasher: &mut Hasher) -> io::Result<u64> {
    file.seek(SeekFrom::Start(0))?;
    let mut buffer = vec![0; 256 << 10];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(size);
        }
        hasher.update(&buffer[..n]);
        size += n as u64;
    }
}
