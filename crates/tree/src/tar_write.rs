//! Deterministic tar streams: ustar headers, PAX records for what ustar cannot hold (as Go's `archive/tar` in PAX
//! format writes them), no user or group names, two zero blocks at the end. The same entries give the same bytes.
//! Knows nothing of compression; whiteouts are ordinary empty files with OCI's names.

use std::io::{self, Read, Write};

use crate::tar_format::{self as format, BLOCK, Field};
use crate::{Entry, Kind, RelPath, Time};

/// Writes entries as a tar stream.
pub struct TarWriter<W: Write> {
    out: W,
    buffer: Vec<u8>,
    names: Names,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Names {
    Any,
    Layer,
}

/// Why an entry could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TarWriteError {
    /// Writing failed.
    #[error("writing the archive failed: {0}")]
    Write(#[source] io::Error),
    /// Reading the content failed.
    #[error("reading the content of {path} failed: {source}")]
    Read {
        /// Whose content.
        path: RelPath,
        /// Why.
        source: io::Error,
    },
    /// The content ended early.
    #[error("{path} has {got} bytes instead of {expected}: it changed while it was read")]
    Short {
        /// Whose content.
        path: RelPath,
        /// The entry's size.
        expected: u64,
        /// What came.
        got: u64,
    },
    /// The content did not end.
    #[error("{path} has more than {expected} bytes: it changed while it was read")]
    Long {
        /// Whose content.
        path: RelPath,
        /// The entry's size.
        expected: u64,
    },
    /// In a layer the name would delete another file.
    #[error("{path} cannot be stored in an image layer: names that start with \".wh.\" mean deletion there")]
    WhiteoutName {
        /// The path.
        path: RelPath,
    },
    /// The entry cannot be written as tar.
    #[error("{path} cannot be stored in a tar archive: {reason}")]
    Unsupported {
        /// The path.
        path: RelPath,
        /// Why.
        reason: &'static str,
    },
}

impl<W: Write> TarWriter<W> {
    /// A plain archive: every name is allowed.
    pub fn new(out: W) -> Self {
        Self { out, buffer: Vec::new(), names: Names::Any }
    }

    /// An image layer: entries whose name would be read as a whiteout are refused, and times are whole seconds, as in
    /// the layers that containerd and so BuildKit writes.
    pub fn layer(out: W) -> Self {
        Self { out, buffer: Vec::new(), names: Names::Layer }
    }

    /// Writes one entry; `content` is read only for regular files and must have exactly their size.
    ///
    /// # Errors
    /// If writing or reading fails, the content has another size, or tar (or a layer) cannot hold the entry.
    pub fn entry(&mut self, entry: &Entry, content: impl Read) -> Result<(), TarWriteError> {
        if self.names == Names::Layer && entry.path.components().any(|name| name.starts_with(b".wh.")) {
            return Err(TarWriteError::WhiteoutName { path: entry.path.clone() });
        }
        self.header(entry)?;
        match entry.kind {
            Kind::File { size } => self.content(&entry.path, size, content),
            _ => Ok(()),
        }
    }

    /// Writes an entry that has no content: anything but a non-empty regular file.
    ///
    /// # Errors
    /// As `entry`.
    pub fn bare(&mut self, entry: &Entry) -> Result<(), TarWriteError> {
        self.entry(entry, io::empty())
    }

    /// Deletes `path` of the layers below.
    ///
    /// # Errors
    /// If writing fails, or `path` is the root or is itself named like a whiteout.
    pub fn whiteout(&mut self, path: &RelPath, mtime: Time) -> Result<(), TarWriteError> {
        let unsupported = |reason| TarWriteError::Unsupported { path: path.clone(), reason };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(unsupported("the root cannot be deleted"));
        };
        if name.starts_with(b".wh.") {
            return Err(TarWriteError::WhiteoutName { path: path.clone() });
        }
        let marker = [b".wh.", name].concat();
        self.marker(&parent, &marker, mtime)
    }

    /// Hides everything the layers below have in `dir`.
    ///
    /// # Errors
    /// If writing fails.
    pub fn opaque(&mut self, dir: &RelPath, mtime: Time) -> Result<(), TarWriteError> {
        self.marker(dir, b".wh..wh..opq", mtime)
    }

    /// Writes the end of the archive and gives the inner writer back, not flushed.
    ///
    /// # Errors
    /// If writing fails.
    pub fn finish(mut self) -> Result<W, TarWriteError> {
        self.write(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }

    fn marker(&mut self, dir: &RelPath, name: &[u8], mtime: Time) -> Result<(), TarWriteError> {
        let path = dir.child(name).map_err(|_| TarWriteError::Unsupported {
            path: dir.clone(),
            reason: "its name cannot be part of a whiteout",
        })?;
        let mut entry = Entry::new(path, Kind::File { size: 0 }, 0);
        entry.mtime = mtime;
        self.header(&entry)
    }

    fn header(&mut self, entry: &Entry) -> Result<(), TarWriteError> {
        let name = tar_name(entry);
        let mut records = Records::default();
        let mtime = match self.names {
            Names::Any => entry.mtime,
            Names::Layer => Time { nanos: 0, ..entry.mtime },
        };
        let mut block = header_block(entry, &name, mtime, &mut records)?;
        for (key, value) in &entry.xattrs {
            if key.is_empty() || key.iter().any(|c| matches!(c, b'=' | 0)) {
                return Err(TarWriteError::Unsupported {
                    path: entry.path.clone(),
                    reason: "an extended attribute's name has \"=\" or is empty",
                });
            }
            records.add([b"SCHILY.xattr.", key.as_slice()].concat(), value.clone());
        }
        if let Some(data) = records.finish() {
            let mut pax = [0; BLOCK];
            format::set_name(&mut pax, &ascii(&pax_name(&name)));
            format::set_octal(&mut pax, Field::Mode, 0);
            format::set_octal(&mut pax, Field::Uid, 0);
            format::set_octal(&mut pax, Field::Gid, 0);
            format::set_octal(&mut pax, Field::Size, data.len() as u64);
            format::set_octal(&mut pax, Field::Mtime, 0);
            format::seal(&mut pax, b'x');
            self.write(&pax)?;
            self.write(&data)?;
            self.pad(data.len() as u64)?;
        }
        format::seal(&mut block, typeflag(&entry.kind));
        self.write(&block)
    }

    fn content(&mut self, path: &RelPath, size: u64, mut content: impl Read) -> Result<(), TarWriteError> {
        const BUFFER: usize = 128 * 1024;
        let failed = |source| TarWriteError::Read { path: path.clone(), source };
        let mut left = size;
        if left > 0 && self.buffer.is_empty() {
            self.buffer.resize(BUFFER, 0);
        }
        while left > 0 {
            let most = self.buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = self.buffer.get_mut(..most).unwrap_or_default();
            let got = read_some(&mut content, chunk).map_err(failed)?;
            if got == 0 {
                return Err(TarWriteError::Short { path: path.clone(), expected: size, got: size - left });
            }
            let chunk = chunk.get(..got).unwrap_or_default();
            self.out.write_all(chunk).map_err(TarWriteError::Write)?;
            left = left.saturating_sub(got as u64);
        }
        if read_some(&mut content, &mut [0]).map_err(failed)? != 0 {
            return Err(TarWriteError::Long { path: path.clone(), expected: size });
        }
        self.pad(size)
    }

    fn pad(&mut self, size: u64) -> Result<(), TarWriteError> {
        let zeros = [0; BLOCK];
        self.write(zeros.get(..format::padding(size)).unwrap_or_default())
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), TarWriteError> {
        self.out.write_all(bytes).map_err(TarWriteError::Write)
    }
}

fn read_some(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// PAX records, written sorted by key.
#[derive(Default)]
struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    fn add(&mut self, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push((key.into(), value.into()));
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        if self.0.is_empty() {
            return None;
        }
        self.0.sort();
        let mut out = Vec::new();
        for (key, value) in self.0 {
            // The length counts its own digits: grow it until it is stable.
            let rest = key.len() + value.len() + 3;
            let mut length = rest + rest.to_string().len();
            if rest + length.to_string().len() > length {
                length += 1;
            }
            out.extend_from_slice(length.to_string().as_bytes());
            out.push(b' ');
            out.extend_from_slice(&key);
            out.push(b'=');
            out.extend_from_slice(&value);
            out.push(b'\n');
        }
        Some(out)
    }
}

fn tar_name(entry: &Entry) -> Vec<u8> {
    let mut name = entry.path.as_bytes().to_vec();
    if name.is_empty() {
        name.push(b'.');
    }
    if entry.is_dir() {
        name.push(b'/');
    }
    name
}

/// `dir/PaxHeaders.0/base`, as Go names the header that carries the records.
fn pax_name(name: &[u8]) -> Vec<u8> {
    let split = name.iter().rposition(|c| *c == b'/').map_or(0, |i| i + 1);
    let (dir, base) = name.split_at_checked(split).unwrap_or((name, b""));
    let mut out = dir.strip_prefix(b"./").unwrap_or(dir).to_vec();
    out.extend_from_slice(b"PaxHeaders.0");
    if !base.is_empty() {
        out.push(b'/');
        out.extend_from_slice(base);
    }
    out
}

fn ascii(bytes: &[u8]) -> Vec<u8> {
    bytes.iter().copied().filter(|c| c.is_ascii() && *c != 0).collect()
}

const fn typeflag(kind: &Kind) -> u8 {
    match kind {
        Kind::File { .. } => b'0',
        Kind::Hardlink { .. } => b'1',
        Kind::Symlink { .. } => b'2',
        Kind::CharDevice { .. } => b'3',
        Kind::BlockDevice { .. } => b'4',
        Kind::Dir => b'5',
        Kind::Fifo => b'6',
    }
}

fn header_block(
    entry: &Entry,
    name: &[u8],
    mtime: Time,
    records: &mut Records,
) -> Result<[u8; BLOCK], TarWriteError> {
    let unsupported = |reason| TarWriteError::Unsupported { path: entry.path.clone(), reason };
    let Entry { path: _, kind, mode, uid, gid, mtime: _, xattrs: _ } = entry;
    let mut block = [0; BLOCK];
    if name.len() > 100 || !name.is_ascii() {
        records.add("path", name);
    }
    format::set_name(&mut block, &ascii(name));
    let target = match kind {
        Kind::Symlink { target } => target.as_slice(),
        Kind::Hardlink { target } => target.as_bytes(),
        Kind::File { .. } | Kind::Dir | Kind::Fifo | Kind::CharDevice { .. } | Kind::BlockDevice { .. } => {
            b""
        }
    };
    if matches!(kind, Kind::Symlink { .. } | Kind::Hardlink { .. })
        && (target.is_empty() || target.contains(&0))
    {
        return Err(unsupported("its link target is empty or has a NUL byte"));
    }
    if target.len() > 100 || !target.is_ascii() {
        records.add("linkpath", target);
    }
    format::set_link(&mut block, &ascii(target));
    format::set_octal(&mut block, Field::Mode, u64::from(mode & 0o7777));
    for (field, key, value) in [
        (Field::Uid, "uid", u64::from(*uid)),
        (Field::Gid, "gid", u64::from(*gid)),
        (Field::Size, "size", entry.content_size()),
    ] {
        if !format::set_octal(&mut block, field, value) {
            records.add(key, value.to_string());
        }
    }
    let whole = u64::try_from(mtime.secs).ok();
    let fits = whole.is_some_and(|secs| format::set_octal(&mut block, Field::Mtime, secs));
    if !fits || mtime.nanos != 0 {
        records.add("mtime", pax_time(mtime));
    }
    if !fits {
        format::set_octal(&mut block, Field::Mtime, 0);
    }
    let (major, minor) = match kind {
        Kind::CharDevice { major, minor } | Kind::BlockDevice { major, minor } => (*major, *minor),
        _ => (0, 0),
    };
    if !format::set_octal(&mut block, Field::DevMajor, u64::from(major))
        || !format::set_octal(&mut block, Field::DevMinor, u64::from(minor))
    {
        return Err(unsupported("its device number is too large"));
    }
    Ok(block)
}

/// Decimal seconds, the fraction without trailing zeros: `-0.5`, `1700000000.25`.
fn pax_time(time: Time) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let (sign, nanos) = if nanos < 0 { ("-", -nanos) } else { ("", nanos) };
    let text = format!("{sign}{}.{:09}", nanos / 1_000_000_000, nanos % 1_000_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
