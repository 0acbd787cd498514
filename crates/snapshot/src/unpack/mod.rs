//! An image layer's tar into a layer directory. Entries are made below the directory's descriptor and no link is
//! followed by the kernel; later entries win over earlier ones. What needs the layers below (directories that the
//! tar implies, links into them) waits until the stream is at its end, in `late`, so that the layers of an image
//! unpack side by side.

mod lanes;
mod late;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_tree::{Entry, Kind, Limits, RelPath, TarItem, TarReadError, TarReader};
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use crate::meta::{Maker, Meta, failed};
use crate::remove::remove_tree;
use crate::resolve::resolve;
use crate::sys;

use self::lanes::{Job, Lanes, Outcome};

pub(crate) use late::Below;

/// Bytes that are read and written at once.
const CHUNK: usize = 128 * 1024;

/// A tar stream, read with few calls.
pub(crate) type Stream<'a> = TarReader<BufReader<&'a mut dyn Read>>;

/// A reader of `tar` for this crate.
pub(crate) fn stream(tar: &mut dyn Read) -> Stream<'_> {
    TarReader::new(BufReader::with_capacity(CHUNK, tar), Limits::default())
}

/// Unpacks `tar` to its end into the empty directory `root`, which gets its metadata too.
pub(crate) fn unpack(
    root: OwnedFd,
    maker: &Maker,
    tar: &mut dyn Read,
    below: &dyn Below,
    cancel: &CancelToken,
) -> Result<()> {
    let outcome = Outcome::default();
    std::thread::scope(|scope| {
        let mut unpacker = Unpacker::new(root, maker, Lanes::start(scope, maker, &outcome));
        let mut reader = stream(tar);
        while let Some(item) = reader.next_item().map_err(tar_error)? {
            cancel.check()?;
            unpacker.item(item, &mut reader, cancel)?;
        }
        // To the very end: whoever gave the stream may be hashing it, and tells at its end whether it was right.
        reader.finish().map_err(stream_error)?;
        unpacker.lanes.settle()?;
        unpacker.finish(below)
    })
}

struct Unpacker<'a> {
    root: OwnedFd,
    maker: &'a Maker,
    /// Every directory of the layer, by its real path.
    dirs: HashMap<RelPath, Dir>,
    /// Threads that make files and symbolic links.
    lanes: Lanes<'a>,
    /// The directory that was worked in last.
    current: Option<Current>,
    /// Hard links whose target is not in this layer so far: target and name.
    links: Vec<(RelPath, RelPath)>,
}

/// An open directory.
struct Current {
    /// As the tar calls it.
    asked: RelPath,
    /// Where it is.
    real: RelPath,
    dir: Arc<OwnedFd>,
    /// Who makes files in it.
    lane: usize,
}

/// A directory that exists on the disk without its metadata, which it gets at the end.
#[derive(Clone, Debug)]
struct Dir {
    meta: Meta,
    /// The tar has an entry for it.
    stated: bool,
    opaque: bool,
    /// The directory of the same name below is deleted: its metadata does not count.
    reborn: bool,
}

impl<'a> Unpacker<'a> {
    fn new(root: OwnedFd, maker: &'a Maker, lanes: Lanes<'a>) -> Self {
        let top = Dir { meta: Meta::default_dir(), stated: true, opaque: false, reborn: false };
        let dirs = HashMap::from([(RelPath::root(), top)]);
        Self { root, maker, dirs, lanes, current: None, links: Vec::new() }
    }

    fn item(&mut self, item: TarItem, reader: &mut Stream<'_>, cancel: &CancelToken) -> Result<()> {
        match item {
            TarItem::Entry(entry) => self.entry(entry, reader, cancel),
            TarItem::Whiteout { dir, name } => {
                let dir = self.enter(&dir)?;
                self.whiteout(&dir, &name)
            }
            TarItem::Opaque { dir } => {
                let dir = self.enter(&dir)?;
                if let Some(dir) = self.dirs.get_mut(&dir) {
                    dir.opaque = true;
                }
                Ok(())
            }
        }
    }

    fn entry(&mut self, entry: Entry, reader: &mut Stream<'_>, cancel: &CancelToken) -> Result<()> {
        let (Some(parent), Some(name)) = (entry.path.parent(), entry.path.file_name()) else {
            if let (Kind::Dir, Some(top)) = (&entry.kind, self.dirs.get_mut(&RelPath::root())) {
                top.meta = portable(&entry);
            }
            return Ok(());
        };
        let parent = self.enter(&parent)?;
        let name = name.to_vec();
        let path = parent.child(&name).map_err(|e| invalid(e.to_string()))?;
        let meta = portable(&entry);
        match entry.kind {
            Kind::Dir => self.dir(&path, &name, meta),
            Kind::File { size } => self.file(path, size, meta, reader, cancel),
            Kind::Symlink { target } => {
                let (dir, lane) = self.lane_for(&path)?;
                self.lanes.send(lane, Job::Symlink { dir, path, meta, target })
            }
            Kind::Hardlink { target } => self.hardlink(target, &path, &name),
            Kind::CharDevice { major: 0, minor: 0 } => self.whiteout(&parent, &name),
            kind @ (Kind::CharDevice { .. } | Kind::BlockDevice { .. } | Kind::Fifo) => {
                self.make(&path, &name, |maker, dir| maker.node(dir, &name, &kind, &meta).map(drop))
            }
        }
    }

    fn dir(&mut self, path: &RelPath, name: &[u8], meta: Meta) -> Result<()> {
        if let Some(dir) = self.dirs.get_mut(path) {
            dir.meta = meta;
            dir.stated = true;
            return Ok(());
        }
        let mut opaque = false;
        let made = match self.maker.dir(self.here()?, name) {
            Err(Errno::EXIST) => {
                self.lanes.settle()?;
                opaque = self.whited_out(path, name)?;
                self.clear(path, name)?;
                self.maker.dir(self.here()?, name)
            }
            other => other,
        };
        made.map_err(|e| failed("create", path, e))?;
        self.dirs.insert(path.clone(), Dir { meta, stated: true, opaque, reborn: opaque });
        Ok(())
    }

    /// Whether this layer deletes what is below it under this name.
    fn whited_out(&self, path: &RelPath, name: &[u8]) -> Result<bool> {
        let stat = sys::stat_at(self.here()?, name).map_err(|e| failed("read", path, e))?;
        Ok(stat.is_some_and(|stat| sys::is_whiteout(&stat)))
    }

    fn file(
        &mut self,
        path: RelPath,
        size: u64,
        meta: Meta,
        reader: &mut Stream<'_>,
        cancel: &CancelToken,
    ) -> Result<()> {
        if reader.sparse_regions().is_some() {
            return self.sparse_file(&path, size, &meta, reader, cancel);
        }
        let (dir, lane) = self.lane_for(&path)?;
        let next = |left: u64, reader: &mut Stream<'_>| {
            let mut data = vec![0; usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)];
            fill(&mut reader.content(), &mut data)?;
            let left = left.saturating_sub(data.len() as u64);
            Ok::<_, PortError>((data, left))
        };
        let (data, mut left) = next(size, reader)?;
        self.lanes.send(lane, Job::File { dir, path, meta, data, more: left > 0 })?;
        while left > 0 {
            cancel.check()?;
            let (data, rest) = next(left, reader)?;
            left = rest;
            self.lanes.send(lane, Job::Chunk { data, more: left > 0 })?;
        }
        Ok(())
    }

    /// A file with holes, written at once.
    fn sparse_file(
        &mut self,
        path: &RelPath,
        size: u64,
        meta: &Meta,
        reader: &mut Stream<'_>,
        cancel: &CancelToken,
    ) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        self.clear(path, name)?;
        let file = self.maker.file(self.here()?, name, meta.mode).map_err(|e| failed("create", path, e))?;
        write_content(&file, path, size, reader, &mut vec![0; CHUNK], cancel)?;
        self.maker
            .finish_file(&file, meta)
            .map_err(|e| failed("set the owner, mode or attributes of", path, e))
    }

    /// Where to make `path`, which is in the current directory, and by whom. A directory that is there goes.
    fn lane_for(&mut self, path: &RelPath) -> Result<(Arc<OwnedFd>, usize)> {
        if self.dirs.contains_key(path) {
            self.clear(path, path.file_name().unwrap_or_default())?;
        }
        let current = self.current.as_ref().ok_or_else(nowhere)?;
        Ok((current.dir.clone(), current.lane))
    }

    fn hardlink(&mut self, target: RelPath, path: &RelPath, name: &[u8]) -> Result<()> {
        if target != *path && target.starts_with(path) {
            return Err(invalid(format!("{path} is a hard link to {target}, which it replaces")));
        }
        self.lanes.settle()?;
        // A directory without an entry may turn out to be a link of the layers below.
        let unclear = self.dirs.get(&target).is_some_and(|dir| !dir.stated);
        let there = if !unclear && self.dirs.contains_key(&target.parent().unwrap_or_default()) {
            let parent = target.parent().unwrap_or_default();
            let dir =
                sys::open_beneath(&self.root, &parent, sys::DIR).map_err(|e| failed("open", &parent, e))?;
            let stat = sys::stat_at(&dir, target.file_name().unwrap_or_default());
            stat.map_err(|e| failed("read", &target, e))?
                .filter(|stat| !sys::is_whiteout(stat))
                .map(|s| (dir, s))
        } else {
            None
        };
        match there {
            Some(_) if target == *path => Ok(()),
            Some((_, stat)) if sys::file_type(&stat) == FileType::Directory => {
                Err(invalid(format!("{path} is a hard link to the directory {target}")))
            }
            Some((dir, _)) => {
                let old = target.file_name().unwrap_or_default();
                self.make(path, name, |_, new| fs::linkat(&dir, old, new, name, AtFlags::empty()))
            }
            None => {
                self.clear(path, name)?;
                self.links.push((target, path.clone()));
                Ok(())
            }
        }
    }

    /// Deletes `name` in `dir` of the layers below. What this layer itself has there stays; a directory hides
    /// what is below it from now on.
    fn whiteout(&mut self, dir: &RelPath, name: &[u8]) -> Result<()> {
        let path = dir.child(name).map_err(|e| invalid(e.to_string()))?;
        if let Some(dir) = self.dirs.get_mut(&path) {
            dir.opaque = true;
            dir.reborn = true;
            return Ok(());
        }
        self.lanes.settle()?;
        match self.maker.whiteout(self.here()?, name) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(failed("delete", &path, error)),
        }
    }

    /// Makes something in the current directory, in the place of what is there.
    fn make(
        &mut self,
        path: &RelPath,
        name: &[u8],
        make: impl Fn(&Maker, &OwnedFd) -> std::result::Result<(), Errno>,
    ) -> Result<()> {
        self.lanes.settle()?;
        let result = match make(self.maker, self.here()?) {
            Err(Errno::EXIST) => {
                self.clear(path, name)?;
                make(self.maker, self.here()?)
            }
            other => other,
        };
        result.map_err(|e| failed("create", path, e))
    }

    /// Removes what this layer has at `path`, `name` in the current directory.
    fn clear(&mut self, path: &RelPath, name: &[u8]) -> Result<()> {
        self.lanes.settle()?;
        remove_tree(self.here()?, name).map_err(|e| failed("replace", path, e))?;
        if self.dirs.contains_key(path) {
            self.dirs.retain(|dir, _| !dir.starts_with(path));
        }
        Ok(())
    }

    fn here(&self) -> Result<&OwnedFd> {
        self.current.as_ref().map(|current| &*current.dir).ok_or_else(nowhere)
    }

    /// Makes the directory that the tar calls `asked` the current one, and says where it really is: links of this
    /// layer are followed inside it, and what is missing is made.
    fn enter(&mut self, asked: &RelPath) -> Result<RelPath> {
        if let Some(current) = &self.current
            && current.asked == *asked
            && self.dirs.contains_key(&current.real)
        {
            return Ok(current.real.clone());
        }
        let real = if self.dirs.contains_key(asked) {
            asked.clone()
        } else {
            self.lanes.settle()?;
            self.imply(asked)?
        };
        let dir = sys::open_beneath(&self.root, &real, sys::DIR).map_err(|e| failed("open", &real, e))?;
        let lane = self.lanes.of(&real);
        self.current = Some(Current { asked: asked.clone(), real: real.clone(), dir: Arc::new(dir), lane });
        Ok(real)
    }

    /// Makes the directory `asked` and those above it where they are missing.
    fn imply(&mut self, asked: &RelPath) -> Result<RelPath> {
        let real = resolve(asked.as_bytes(), true, &|path| self.kind(path))?;
        let mut here = RelPath::root();
        for component in real.components() {
            let path = here.child(component).map_err(|e| invalid(e.to_string()))?;
            if !self.dirs.contains_key(&path) {
                self.imply_one(&here, &path, component)?;
            }
            here = path;
        }
        Ok(real)
    }

    fn imply_one(&mut self, parent: &RelPath, path: &RelPath, name: &[u8]) -> Result<()> {
        let dir = sys::open_beneath(&self.root, parent, sys::DIR).map_err(|e| failed("open", parent, e))?;
        let mut opaque = false;
        match sys::stat_at(&dir, name).map_err(|e| failed("read", path, e))? {
            None => {}
            Some(stat) if sys::is_whiteout(&stat) => {
                fs::unlinkat(&dir, name, AtFlags::empty()).map_err(|e| failed("replace", path, e))?;
                opaque = true;
            }
            Some(_) => return Err(invalid(format!("{path} is used as a directory and is none"))),
        }
        self.maker.dir(&dir, name).map_err(|e| failed("create", path, e))?;
        self.dirs
            .insert(path.clone(), Dir { meta: Meta::default_dir(), stated: false, opaque, reborn: opaque });
        Ok(())
    }

    /// What this layer has at `path`.
    fn kind(&self, path: &RelPath) -> Result<Option<Kind>> {
        if self.dirs.contains_key(path) {
            return Ok(Some(Kind::Dir));
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(Some(Kind::Dir));
        };
        if !self.dirs.contains_key(&parent) {
            return Ok(None);
        }
        let read = || {
            let dir = sys::open_beneath(&self.root, &parent, sys::DIR)?;
            let Some(stat) = sys::stat_at(&dir, name)? else { return Ok(None) };
            Ok(Some(match sys::file_type(&stat) {
                FileType::Symlink => Kind::Symlink { target: sys::read_link(&dir, name)? },
                FileType::CharacterDevice => {
                    Kind::CharDevice { major: fs::major(stat.st_rdev), minor: fs::minor(stat.st_rdev) }
                }
                _ => Kind::File { size: 0 },
            }))
        };
        read().map_err(|e: Errno| failed("read", path, e))
    }
}

/// Writes the content of the current entry; holes stay holes.
pub(crate) fn write_content(
    file: &OwnedFd,
    path: &RelPath,
    size: u64,
    reader: &mut Stream<'_>,
    buffer: &mut [u8],
    cancel: &CancelToken,
) -> Result<()> {
    let regions = reader.sparse_regions().map(<[_]>::to_vec);
    let Some(regions) = regions else {
        let mut left = size;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = fill(&mut reader.content(), buffer.get_mut(..most).unwrap_or_default())?;
            write_all(file, chunk).map_err(|e| failed("write", path, e))?;
            left = left.saturating_sub(chunk.len() as u64);
            if left > 0 {
                cancel.check()?;
            }
        }
        return Ok(());
    };
    for region in regions {
        let (mut at, mut left) = (region.offset, region.length);
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let chunk = fill(&mut reader.data(), buffer.get_mut(..most).unwrap_or_default())?;
            fs::seek(file, fs::SeekFrom::Start(at)).map_err(|e| failed("write", path, e))?;
            write_all(file, chunk).map_err(|e| failed("write", path, e))?;
            at += chunk.len() as u64;
            left = left.saturating_sub(chunk.len() as u64);
            cancel.check()?;
        }
    }
    fs::ftruncate(file, size).map_err(|e| failed("write", path, e))
}

/// Fills `buffer`; the tar reader has checked that so much is there.
fn fill<'b>(reader: &mut dyn Read, buffer: &'b mut [u8]) -> Result<&'b [u8]> {
    let mut got = 0;
    while let Some(rest) = buffer.get_mut(got..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => return Err(PortError::new(ErrorKind::Corrupt, "the archive ends inside a file")),
            Ok(n) => got += n,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(stream_error(error)),
        }
    }
    Ok(buffer)
}

/// Writes everything.
pub(crate) fn write_all(file: &OwnedFd, mut data: &[u8]) -> std::result::Result<(), Errno> {
    while !data.is_empty() {
        match rustix::io::write(file, data) {
            Ok(0) => return Err(Errno::IO),
            Ok(n) => data = data.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Metadata without what a layer must not bring along.
pub(crate) fn portable(entry: &Entry) -> Meta {
    let mut meta = Meta::of_entry(entry);
    meta.xattrs.retain(|name, _| sys::is_portable(name));
    meta
}

fn nowhere() -> PortError {
    PortError::new(ErrorKind::Internal, "no directory is open while unpacking")
}

pub(crate) fn invalid(message: impl Into<String>) -> PortError {
    PortError::new(ErrorKind::Invalid, message)
}

/// A refusal of the tar reader.
pub(crate) fn tar_error(error: TarReadError) -> PortError {
    match error {
        TarReadError::Io { source, .. } => stream_error(source),
        TarReadError::Truncated { .. } => PortError::new(ErrorKind::Corrupt, error.to_string()),
        TarReadError::Invalid { .. } => invalid(error.to_string()),
    }
}

/// An error of the stream; one that is an error of a port already stays what it is.
pub(crate) fn stream_error(error: std::io::Error) -> PortError {
    if let Some(inner) = error.get_ref() {
        if inner.is::<PortError>() {
            let inner = error.into_inner().and_then(|inner| inner.downcast::<PortError>().ok());
            return inner
                .map_or_else(|| PortError::new(ErrorKind::Io, "reading the archive failed"), |inner| *inner);
        }
        if inner.is::<TarReadError>() {
            return PortError::new(ErrorKind::Corrupt, inner.to_string());
        }
    }
    let kind = match error.kind() {
        std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        _ => ErrorKind::Io,
    };
    PortError::new(kind, format!("reading the archive failed: {error}")).because(error)
}
