//! A context that comes as an archive (`build -` with a tar on standard input) becomes a directory. Every entry is made
//! below the directory without following a link, so no archive reaches out of it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_tree::{Entry, Kind, Limits, RelPath, TarReadError, TarReader, Time};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags, fchmod, fsetxattr, futimens, linkat,
    makedev, mkdirat, mknodat, open, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

/// What unpacking xz may take, in KiB: `xz -9` asks for 65 MiB.
const XZ_KIB: u32 = 256 << 10;

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// Whether `head`, the first 512 bytes of a stream, begins an archive (perhaps compressed) rather than a text.
#[must_use]
pub fn is_archive(head: &[u8]) -> bool {
    compression(head).is_some() || head.get(257..262) == Some(b"ustar")
}

enum Compressed {
    Gzip,
    Bzip2,
    Zstd,
    Xz,
}

fn compression(head: &[u8]) -> Option<Compressed> {
    match head {
        [0x1f, 0x8b, ..] => Some(Compressed::Gzip),
        [b'B', b'Z', b'h', ..] => Some(Compressed::Bzip2),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Compressed::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Compressed::Xz),
        _ => None,
    }
}

/// Unpacks a tar, plain or compressed by gzip, bzip2, xz or zstd, into the empty directory `dir`. At most `max_bytes` of
/// file content. Owners are not taken over: contexts are owned by root. Gives the number of entries.
///
/// # Errors
/// `Invalid` when it is no archive, is cut off, reaches out of the directory or is larger; otherwise if the directory
/// cannot be written. What was unpacked until then is left for the caller to remove.
pub fn unpack_context_tar(
    input: &mut dyn Read,
    dir: &Path,
    max_bytes: u64,
    cancel: &CancelToken,
) -> Result<u64> {
    let mut input = BufReader::with_capacity(256 << 10, input);
    let head = input.fill_buf().map_err(|error| PortError::io("read", "the archive", error))?;
    let unusable = |error| PortError::io("decompress", "the archive", error);
    let mut input: Box<dyn Read + '_> = match compression(head) {
        None => Box::new(input),
        Some(Compressed::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Some(Compressed::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Some(Compressed::Zstd) => {
            let mut decoder = zstd::Decoder::with_buffer(input).map_err(unusable)?;
            decoder.window_log_max(27).map_err(unusable)?;
            Box::new(decoder)
        }
        Some(Compressed::Xz) => Box::new(lzma_rust2::XzReader::new_mem_limit(input, true, XZ_KIB)),
    };
    let root = open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| PortError::io("open", dir, error))?;
    let mut unpack = Unpack { dir, root, left: max_bytes, max_bytes, dirs: BTreeMap::new(), last: None };
    let mut reader = TarReader::new(&mut input, Limits::default());
    let mut count = 0;
    while let Some(entry) = reader.next_entry().map_err(|error| malformed(&error))? {
        cancel.check()?;
        unpack.add(&entry, &mut reader)?;
        count += 1;
    }
    if count == 0 {
        return Err(PortError::new(ErrorKind::Invalid, "the context archive is empty"));
    }
    unpack.finish()?;
    Ok(count)
}

fn malformed(error: &TarReadError) -> PortError {
    PortError::new(ErrorKind::Invalid, format!("cannot read the context: {error}"))
}

struct Unpack<'a> {
    dir: &'a Path,
    root: OwnedFd,
    left: u64,
    max_bytes: u64,
    /// What directories get in the end: entries made in them would change their times.
    dirs: BTreeMap<RelPath, (u32, Time)>,
    /// Archives list a directory's files one after the other.
    last: Option<(RelPath, OwnedFd)>,
}

impl Unpack<'_> {
    fn add<R: Read>(&mut self, entry: &Entry, reader: &mut TarReader<R>) -> Result<()> {
        let path = &entry.path;
        if entry.is_dir() {
            drop(self.open_dir(path)?);
            self.dirs.insert(path.clone(), (entry.mode, entry.mtime));
            return Ok(());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(PortError::new(ErrorKind::Invalid, "the archive's root is no directory"));
        };
        self.enter(&parent)?;
        let result = match self.last.take() {
            Some((at, fd)) => {
                let result = self.make(entry, fd.as_fd(), name, reader);
                self.last = Some((at, fd));
                result
            }
            None => Ok(()),
        };
        result.map_err(|error| self.error(path, error))
    }

    fn make<R: Read>(
        &mut self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
        reader: &mut TarReader<R>,
    ) -> io::Result<()> {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR | Errno::PERM) => unlinkat(dir, name, AtFlags::REMOVEDIR)?,
            Err(error) => return Err(error.into()),
        }
        let times = times(entry.mtime);
        let node = |kind, device| mknodat(dir, name, kind, Mode::from_raw_mode(entry.mode), device);
        match &entry.kind {
            Kind::File { size } => return self.file(entry, *size, dir, name, reader),
            Kind::Hardlink { target } => {
                let (parent, name_there) =
                    (target.parent().unwrap_or_default(), target.file_name().unwrap_or_default());
                let there = self.walk_to(&parent, false)?;
                return Ok(linkat(there, name_there, dir, name, AtFlags::empty())?);
            }
            Kind::Symlink { target } => symlinkat(target.as_slice(), dir, name)?,
            Kind::CharDevice { major, minor } => node(FileType::CharacterDevice, makedev(*major, *minor))?,
            Kind::BlockDevice { major, minor } => node(FileType::BlockDevice, makedev(*major, *minor))?,
            Kind::Fifo => node(FileType::Fifo, 0)?,
            Kind::Dir => {}
        }
        Ok(utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn file<R: Read>(
        &mut self,
        entry: &Entry,
        size: u64,
        dir: BorrowedFd<'_>,
        name: &[u8],
        reader: &mut TarReader<R>,
    ) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut file = File::from(openat(dir, name, flags, Mode::from_raw_mode(0o600))?);
        let regions = reader.sparse_regions().map(<[_]>::to_vec);
        match regions {
            None => self.copy(&mut reader.content(), &mut file, size)?,
            Some(regions) => {
                for region in regions {
                    file.seek(SeekFrom::Start(region.offset))?;
                    self.copy(&mut reader.data(), &mut file, region.length)?;
                }
                file.set_len(size)?;
            }
        }
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| name.starts_with(b"user.")) {
            // Not every file system has them, and none is owed.
            let _ = fsetxattr(&file, name.as_slice(), value, XattrFlags::empty());
        }
        fchmod(&file, Mode::from_raw_mode(entry.mode))?;
        Ok(futimens(&file, &times(entry.mtime))?)
    }

    /// Copies `size` bytes, which must be there and allowed.
    fn copy(&mut self, from: &mut dyn Read, to: &mut File, size: u64) -> io::Result<()> {
        let Some(left) = self.left.checked_sub(size) else {
            let text = format!("the archive has more than the {} bytes allowed", self.max_bytes);
            return Err(io::Error::other(PortError::new(ErrorKind::Invalid, text)));
        };
        self.left = left;
        let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(256 << 10)];
        let mut rest = size;
        while rest > 0 {
            let most = usize::try_from(rest).unwrap_or(usize::MAX).min(buffer.len());
            let n = from.read(&mut buffer[..most])?;
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut off"));
            }
            to.write_all(&buffer[..n])?;
            rest -= n as u64;
        }
        Ok(())
    }

    /// Makes `last` the directory at `path`.
    fn enter(&mut self, path: &RelPath) -> Result<()> {
        if self.last.as_ref().is_none_or(|(last, _)| last != path) {
            self.last = Some((path.clone(), self.open_dir(path)?));
        }
        Ok(())
    }

    /// The directory at `path`, made if it is not there.
    fn open_dir(&self, path: &RelPath) -> Result<OwnedFd> {
        self.walk_to(path, true).map_err(|error| self.error(path, error))
    }

    /// Step by step, following no link.
    fn walk_to(&self, path: &RelPath, create: bool) -> io::Result<OwnedFd> {
        let mut dir = openat(&self.root, ".", DIRECTORY, Mode::empty())?;
        for name in path.components() {
            dir = match openat(&dir, name, DIRECTORY, Mode::empty()) {
                Err(Errno::NOENT) if create => {
                    mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
                    openat(&dir, name, DIRECTORY, Mode::empty())?
                }
                outcome => outcome?,
            };
        }
        Ok(dir)
    }

    fn finish(self) -> Result<()> {
        // Children before parents.
        for (path, (mode, mtime)) in self.dirs.iter().rev() {
            let set = || -> io::Result<()> {
                let dir = self.walk_to(path, false)?;
                fchmod(&dir, Mode::from_raw_mode(*mode))?;
                Ok(futimens(&dir, &times(*mtime))?)
            };
            match set() {
                // Something else took its place later in the archive.
                Err(error) if super::root::is_gone(&error) => {}
                outcome => outcome.map_err(|error| self.error(path, error))?,
            }
        }
        Ok(())
    }

    fn error(&self, path: &RelPath, error: io::Error) -> PortError {
        if super::root::is_gone(&error) {
            let message = format!("the archive's entry {path} leads through a link or a file");
            return PortError::new(ErrorKind::Invalid, message);
        }
        match error.downcast::<PortError>() {
            Ok(error) => error,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                PortError::new(ErrorKind::Invalid, format!("the archive is cut off in {path}"))
            }
            Err(error) => PortError::io("unpack", self.dir.join(path.as_path()), error),
        }
    }
}

fn times(mtime: Time) -> Timestamps {
    let time = Timespec { tv_sec: mtime.secs, tv_nsec: mtime.nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn header(name: &str, kind: u8, link: &str, mode: u32, size: usize) -> Vec<u8> {
        let mut block = vec![0; 512];
        let mut put = |at: usize, text: &str| block[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{size:011o}"));
        put(136, "00000000144");
        put(148, "        ");
        put(157, link);
        put(257, "ustar\x0000");
        block[156] = kind;
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        block
    }

    fn entry(name: &str, kind: u8, link: &str, content: &str) -> Vec<u8> {
        let mut out = header(name, kind, link, if kind == b'5' { 0o750 } else { 0o640 }, content.len());
        out.extend(content.as_bytes());
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }

    fn archive(entries: &[(&str, u8, &str, &str)]) -> Vec<u8> {
        let mut out: Vec<u8> = entries.iter().flat_map(|(n, k, l, c)| entry(n, *k, l, c)).collect();
        out.resize(out.len() + 1024, 0);
        out
    }

    fn unpack(bytes: &[u8]) -> (tempfile::TempDir, Result<u64>) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("in")).unwrap();
        fs::write(dir.path().join("victim"), "safe").unwrap();
        let outcome = unpack_context_tar(&mut &bytes[..], &dir.path().join("in"), 1000, &CancelToken::new());
        assert_eq!(fs::read(dir.path().join("victim")).unwrap(), b"safe");
        (dir, outcome)
    }

    #[test]
    fn unpacks_what_is_in_it() {
        let bytes = archive(&[
            ("d/", b'5', "", ""),
            ("d/a", b'0', "", "content"),
            ("no/parent/b", b'0', "", "b"),
            ("d/link", b'2', "../../x", ""),
            ("hard", b'1', "d/a", ""),
            ("d/a", b'0', "", "again"),
            (".wh.data", b'0', "", "kept"),
        ]);
        let mut gzip = flate2::write::GzEncoder::new(vec![], flate2::Compression::fast());
        gzip.write_all(&bytes).unwrap();
        for bytes in [bytes.clone(), gzip.finish().unwrap(), zstd::encode_all(&bytes[..], 1).unwrap()] {
            assert!(is_archive(&bytes));
            let (dir, outcome) = unpack(&bytes);
            assert_eq!(outcome.unwrap(), 7);
            let path = |name: &str| dir.path().join("in").join(name);
            assert_eq!(fs::read(path("d/a")).unwrap(), b"again");
            assert_eq!(fs::read(path("hard")).unwrap(), b"content");
            assert_eq!(fs::read(path(".wh.data")).unwrap(), b"kept");
            assert_eq!(fs::read_link(path("d/link")).unwrap(), Path::new("../../x"));
            let metadata = fs::metadata(path("d")).unwrap();
            assert_eq!((metadata.permissions().mode() & 0o7777, metadata.mtime()), (0o750, 100));
            assert_eq!(fs::metadata(path("d/a")).unwrap().permissions().mode() & 0o7777, 0o640);
        }
    }

    #[test]
    fn nothing_gets_out() {
        for entries in [
            &[("../victim", b'0', "", "evil")][..],
            &[("a/../../victim", b'0', "", "evil")],
            &[("l", b'2', "..", ""), ("l/victim", b'0', "", "evil")],
            &[("l", b'2', "/", ""), ("l/victim", b'5', "", "")],
            &[("l", b'2', "../victim", ""), ("h", b'1', "l/x", "")],
            &[("h", b'1', "../victim", "")],
            &[("h", b'1', "nothing", "")],
            &[("big", b'0', "", &"x".repeat(1001))],
        ] {
            let (_dir, outcome) = unpack(&archive(entries));
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::Invalid, "{entries:?}");
        }
        // A link is replaced and not written through.
        let (dir, outcome) = unpack(&archive(&[("l", b'2', "../victim", ""), ("l", b'0', "", "evil")]));
        outcome.unwrap();
        assert!(fs::symlink_metadata(dir.path().join("in/l")).unwrap().is_file());
    }

    #[test]
    fn broken_archives_are_errors() {
        let whole = archive(&[("a", b'0', "", "content")]);
        for bytes in [&whole[..515], &b""[..], b"FROM scratch\n", &[0; 1024], &[0x1f, 0x8b, 8, 0, 0]] {
            let (_dir, outcome) = unpack(bytes);
            assert!(outcome.is_err());
        }
        assert!(!is_archive(b"FROM scratch"));
        let (_dir, xz) = unpack(&[0xfd, b'7', b'z', b'X', b'Z', 0, 0]);
        assert!(xz.is_err());
    }
}
