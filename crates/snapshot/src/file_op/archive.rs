//! ADD of a local archive: recognised by its content, unpacked into the destination as tar does. Links are followed
//! inside the destination directory only.

use std::fs::File;
use std::io::{BufReader, Read, Seek};

use rbuild_ports::Result;
use rbuild_tree::{Entry, Kind, Limits, RelPath, TarReader, Xattrs};
use rustix::fs::{self, AtFlags};

use super::copy::{Copy, kind};
use super::dest::{Dest, Handle};
use crate::meta::{Meta, failed};
use crate::resolve::resolve;
use crate::unpack::{Stream, invalid, portable, stream, tar_error, write_content};

/// What unpacking xz may take, in KiB: `xz -9` asks for 65 MiB.
const XZ_KIB: u32 = 256 << 10;
/// Bytes that tell the compressions apart.
const MAGIC: usize = 6;

/// Unpacks `source` into the destination if it is an archive; false if it is not.
pub(crate) fn unpack_into(copy: &Copy<'_>, dest: &Dest, source: &RelPath) -> Result<bool> {
    let from = copy.from.as_ref();
    let place = resolve(source.as_bytes(), true, &|path| kind(from, path))?;
    let Some(Entry { kind: Kind::File { size }, .. }) = from.lookup(&place)? else { return Ok(false) };
    if size == 0 {
        return Ok(false);
    }
    let mut file = from.open(&place)?;
    let mut data = decompress(&mut file, &place)?;
    let mut probe = TarReader::new(BufReader::new(&mut data), Limits::default()).clamped();
    if !matches!(probe.next_entry(), Ok(Some(_))) {
        return Ok(false);
    }
    drop(probe);
    drop(data);
    file.rewind().map_err(|e| failed("read", &place, e))?;
    let mut data = decompress(&mut file, &place)?;
    let result = unpack(copy, dest, &mut data);
    drop(data);
    result.map_err(|error| error.context(format!("cannot unpack {place}")))?;
    let after = fs::fstat(&file).map_err(|e| failed("read", &place, e))?;
    let mtime = i128::from(after.st_mtime) * 1_000_000_000 + i128::from(after.st_mtime_nsec);
    from.verify_copied(&place, u64::try_from(after.st_size).unwrap_or(0), mtime)?;
    Ok(true)
}

/// The content of `file`, decompressed if it is compressed.
fn decompress<'f>(file: &'f mut File, path: &RelPath) -> Result<Box<dyn Read + 'f>> {
    let fail = |e: std::io::Error| failed("read", path, e);
    let mut magic = [0; MAGIC];
    let mut got = 0;
    while got < MAGIC {
        match file.read(magic.get_mut(got..).unwrap_or_default()) {
            Ok(0) => break,
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(fail(error)),
        }
    }
    file.rewind().map_err(fail)?;
    Ok(match magic {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::read::MultiBzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(zstd::stream::read::Decoder::new(file).map_err(fail)?),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            Box::new(lzma_rust2::XzReader::new_mem_limit(BufReader::new(file), true, XZ_KIB))
        }
        _ => Box::new(file),
    })
}

/// Where the archive goes, and how.
struct Target<'a> {
    dest: &'a Dest,
    root: RelPath,
    copy: &'a Copy<'a>,
    /// The directory that was worked in last, as the archive calls it.
    current: Option<(RelPath, Handle)>,
    buffer: Vec<u8>,
}

fn unpack(copy: &Copy<'_>, dest: &Dest, data: &mut dyn Read) -> Result<()> {
    let root = dest.resolve(copy.action.dest.as_bytes(), true)?;
    let (uid, gid) = copy.owner.map_or((0, 0), |owner| (owner.uid, owner.gid));
    let mtime = copy.action.timestamp.map_or(dest.now(), rbuild_tree::Time::from_nanos);
    dest.make_all(&root, &Meta { mode: 0o755, uid, gid, mtime, xattrs: Xattrs::new() })?;
    let mut target = Target { dest, root, copy, current: None, buffer: vec![0; 256 * 1024] };
    let mut reader = stream(data).clamped();
    while let Some(entry) = reader.next_entry().map_err(tar_error)? {
        copy.cancel.check()?;
        target.entry(entry, &mut reader)?;
    }
    Ok(())
}

impl Target<'_> {
    fn entry(&mut self, entry: Entry, reader: &mut Stream<'_>) -> Result<()> {
        if entry.path.is_root() {
            return Ok(());
        }
        let mut meta = portable(&entry);
        if let Some(owner) = self.copy.owner {
            (meta.uid, meta.gid) = (owner.uid, owner.gid);
        }
        if entry.is_dir() {
            let place = self.resolve(&entry.path, true)?;
            self.current = None;
            return self.directory(&place, meta);
        }
        let parent = entry.path.parent().unwrap_or_default();
        let name = entry.path.file_name().unwrap_or_default();
        self.enter(&parent)?;
        let Some((_, handle)) = &self.current else { return Ok(()) };
        let dest = self.dest;
        match &entry.kind {
            Kind::File { size } => {
                let (buffer, cancel) = (&mut self.buffer, self.copy.cancel);
                dest.file(handle, name, true, &meta, |file| {
                    write_content(file, &entry.path, *size, reader, buffer, cancel)
                })
            }
            Kind::Hardlink { target } => {
                let real = resolve(target.as_bytes(), false, &|path| dest.kind(&self.root.join(path)))?;
                let real = self.root.join(&real);
                if !matches!(dest.kind(&real)?, Some(kind) if kind != Kind::Dir) {
                    let message = format!("{} is a hard link to {target}, which is no file", entry.path);
                    return Err(invalid(message));
                }
                let from = dest.bring_up(&real)?;
                let old = real.file_name().unwrap_or_default();
                if from.path.child(old).ok() == handle.path.child(name).ok() {
                    return Ok(());
                }
                dest.place(handle, name, true, |dir| fs::linkat(&from.fd, old, dir, name, AtFlags::empty()))
            }
            kind => dest.other(handle, name, true, kind, &meta),
        }
    }

    fn directory(&self, place: &RelPath, meta: Meta) -> Result<()> {
        match self.dest.kind(place)? {
            Some(Kind::Dir) => self.dest.change_dir(place, |there| *there = meta),
            other => {
                if other.is_some() {
                    self.dest.remove(place)?;
                }
                self.implied(&place.parent().unwrap_or_default())?;
                self.dest.make_dir(place, meta)
            }
        }
    }

    /// Opens the directory that the archive calls `asked`; makes it if the archive has no entry for it.
    fn enter(&mut self, asked: &RelPath) -> Result<()> {
        if self.current.as_ref().is_some_and(|(name, _)| name == asked) {
            return Ok(());
        }
        let place = self.resolve(asked, true)?;
        self.implied(&place)?;
        self.current = Some((asked.clone(), self.dest.enter(&place)?));
        Ok(())
    }

    fn implied(&self, place: &RelPath) -> Result<()> {
        let meta = Meta { mtime: self.dest.now(), ..Meta::default_dir() };
        self.dest.make_all(place, &meta)
    }

    /// Where a name of the archive is, links followed inside the destination.
    fn resolve(&self, path: &RelPath, follow_last: bool) -> Result<RelPath> {
        let inside = resolve(path.as_bytes(), follow_last, &|path| self.dest.kind(&self.root.join(path)))?;
        Ok(self.root.join(&inside))
    }
}
