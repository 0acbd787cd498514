//! A snapshot read without mounting it: layer directories merged in userspace by the kernel's overlay rules.
//! The first layer from the top that has a name decides; whiteouts, non-directories and opaque directories hide
//! what is below them. No link is ever followed.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;
use rbuild_digest::Digest;
use rbuild_ports::{ErrorKind, PortError, Result, View};
use rbuild_tree::{Entry, Kind, RelPath, entry_hasher};
use rustix::fs::{self, FileType, Stat};
use rustix::io::Errno;

use crate::meta::{Maker, Meta, failed};
use crate::pool::Pool;
use crate::sys::{self, Place};

/// So many descriptors of directories below the roots are kept open in a view.
const KEPT: usize = 64;

/// Layers, merged.
pub(crate) struct LayerView {
    root: Arc<Merged>,
    maker: Maker,
    pool: Arc<Pool>,
    cache: Mutex<Cache>,
}

/// A directory as layers have it, from the top down to the last that is visible. Empty only for scratch.
struct Merged {
    parts: Vec<OwnedFd>,
}

#[derive(Default)]
struct Cache {
    dirs: HashMap<RelPath, Arc<Merged>>,
    order: VecDeque<RelPath>,
    descriptors: usize,
}

/// One name as the topmost layer has it.
struct Found<'a> {
    dir: BorrowedFd<'a>,
    stat: Stat,
}

impl LayerView {
    /// Of open layer directories from the top down.
    pub(crate) fn new(parts: Vec<OwnedFd>, maker: Maker, pool: Arc<Pool>) -> Self {
        Self { root: Arc::new(Merged { parts }), maker, pool, cache: Mutex::default() }
    }

    /// Kind and metadata at `path`; for callers that need no attributes of files.
    pub(crate) fn kind(&self, path: &RelPath) -> Result<Option<Kind>> {
        let Some((parent, name)) = split(path) else { return Ok(Some(Kind::Dir)) };
        let Some(dir) = self.dir(&parent)? else { return Ok(None) };
        let Some(found) = find(&dir, name).map_err(|e| failed("read", path, e))? else { return Ok(None) };
        kind_of(&found, name).map_err(|e| failed("read", path, e))
    }

    /// The merged directory at `path`, or `None` when it is none.
    fn dir(&self, path: &RelPath) -> Result<Option<Arc<Merged>>> {
        if path.is_root() {
            return Ok(Some(self.root.clone()));
        }
        let (mut from, mut dir) = self.nearest(path);
        for component in path.strip_prefix(&from).unwrap_or_default().components() {
            let here =
                from.child(component).map_err(|e| PortError::new(ErrorKind::Internal, e.to_string()))?;
            let Some(next) = self.descend(&dir, component).map_err(|e| failed("open", &here, e))? else {
                return Ok(None);
            };
            dir = Arc::new(next);
            self.remember(&here, &dir);
            from = here;
        }
        Ok(Some(dir))
    }

    /// The nearest directory at or above `path` that is open already.
    fn nearest(&self, path: &RelPath) -> (RelPath, Arc<Merged>) {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = cache.dirs.get(path) {
            return (path.clone(), dir.clone());
        }
        path.ancestors()
            .find_map(|above| cache.dirs.get(&above).map(|dir| (above.clone(), dir.clone())))
            .unwrap_or_else(|| (RelPath::root(), self.root.clone()))
    }

    fn remember(&self, path: &RelPath, dir: &Arc<Merged>) {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if cache.dirs.insert(path.clone(), dir.clone()).is_none() {
            cache.order.push_back(path.clone());
            cache.descriptors += dir.parts.len();
        }
        while cache.descriptors > KEPT && cache.order.len() > 1 {
            let Some(old) = cache.order.pop_front() else { break };
            if let Some(dir) = cache.dirs.remove(&old) {
                cache.descriptors = cache.descriptors.saturating_sub(dir.parts.len());
            }
        }
    }

    fn descend(&self, dir: &Merged, name: &[u8]) -> std::result::Result<Option<Merged>, Errno> {
        let mut parts = Vec::new();
        let mut left = dir.parts.len();
        for part in &dir.parts {
            left -= 1;
            match sys::open_at(part, name, sys::DIR) {
                Ok(fd) => {
                    let opaque = left > 0 && self.maker.is_opaque(&fd)?;
                    parts.push(fd);
                    if opaque {
                        break;
                    }
                }
                Err(Errno::NOENT) => {}
                // A whiteout, link or file: it hides what is below.
                Err(Errno::NOTDIR | Errno::LOOP | Errno::NXIO) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(if parts.is_empty() { None } else { Some(Merged { parts }) })
    }

    fn root_entry(&self) -> Result<Entry> {
        let Some(top) = self.root.parts.first() else {
            return Ok(Meta::default_dir().into_entry(RelPath::root(), Kind::Dir));
        };
        let read = || Meta::read(&fs::fstat(top)?, Place::At(top.as_fd(), b"."));
        let meta = read().map_err(|e| failed("read", &RelPath::root(), e))?;
        Ok(meta.into_entry(RelPath::root(), Kind::Dir))
    }

    fn names(&self, dir: &Merged) -> std::result::Result<Vec<Vec<u8>>, Errno> {
        let mut seen: HashSet<Vec<u8>> = HashSet::new();
        let mut names = Vec::new();
        let single = dir.parts.len() == 1;
        for part in &dir.parts {
            for (name, kind) in sys::list(sys::open_at(part, b".", sys::DIR)?)? {
                if !single && !seen.insert(name.clone()) {
                    continue;
                }
                let gone = kind == FileType::CharacterDevice
                    && sys::stat_at(part, &name)?.is_none_or(|stat| sys::is_whiteout(&stat));
                if !gone && kind != FileType::Socket {
                    names.push(name);
                }
            }
        }
        if !single {
            names.sort_unstable();
        }
        Ok(names)
    }
}

fn split(path: &RelPath) -> Option<(RelPath, &[u8])> {
    Some((path.parent()?, path.file_name()?))
}

fn find<'a>(dir: &'a Merged, name: &[u8]) -> std::result::Result<Option<Found<'a>>, Errno> {
    for part in &dir.parts {
        if let Some(stat) = sys::stat_at(part, name)? {
            return Ok((!sys::is_whiteout(&stat)).then_some(Found { dir: part.as_fd(), stat }));
        }
    }
    Ok(None)
}

fn kind_of(found: &Found<'_>, name: &[u8]) -> std::result::Result<Option<Kind>, Errno> {
    kind_at(found.dir, &found.stat, name)
}

/// What was looked at as `name` in `dir`; `None` for sockets, which no layer can hold.
pub(crate) fn kind_at(
    dir: BorrowedFd<'_>,
    stat: &Stat,
    name: &[u8],
) -> std::result::Result<Option<Kind>, Errno> {
    let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
    Ok(Some(match sys::file_type(stat) {
        FileType::RegularFile => Kind::File { size: u64::try_from(stat.st_size).unwrap_or(0) },
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink { target: sys::read_link(dir, name)? },
        FileType::CharacterDevice => Kind::CharDevice { major, minor },
        FileType::BlockDevice => Kind::BlockDevice { major, minor },
        FileType::Fifo => Kind::Fifo,
        _ => return Ok(None),
    }))
}

impl View for LayerView {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        let Some((parent, name)) = split(path) else { return self.root_entry().map(Some) };
        let Some(dir) = self.dir(&parent)? else { return Ok(None) };
        let read = || {
            let Some(found) = find(&dir, name)? else { return Ok(None) };
            let Some(kind) = kind_of(&found, name)? else { return Ok(None) };
            Ok(Some((Meta::read(&found.stat, Place::At(found.dir, name))?, kind)))
        };
        let found = read().map_err(|e: Errno| failed("read", path, e))?;
        Ok(found.map(|(meta, kind)| meta.into_entry(path.clone(), kind)))
    }

    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        let dir = self
            .dir(path)?
            .ok_or_else(|| PortError::new(ErrorKind::NotFound, format!("{path} is no directory")))?;
        self.names(&dir).map_err(|e| failed("list", path, e))
    }

    fn open(&self, path: &RelPath) -> Result<File> {
        let none = || PortError::new(ErrorKind::NotFound, format!("{path} is no regular file"));
        let (parent, name) = split(path).ok_or_else(none)?;
        let dir = self.dir(&parent)?.ok_or_else(none)?;
        let found = find(&dir, name).map_err(|e| failed("open", path, e))?.ok_or_else(none)?;
        if sys::file_type(&found.stat) != FileType::RegularFile {
            return Err(none());
        }
        let file = sys::open_at(found.dir, name, sys::READ).map_err(|e| failed("open", path, e))?;
        Ok(File::from(file))
    }

    fn entry_digest(&self, path: &RelPath) -> Result<Digest> {
        let entry = self
            .lookup(path)?
            .ok_or_else(|| PortError::new(ErrorKind::NotFound, format!("{path} is not there")))?;
        digest(self, &entry)
    }

    fn entry_digests(&self, paths: &[RelPath]) -> Result<Vec<Digest>> {
        self.pool.run(|| paths.par_iter().map(|path| self.entry_digest(path)).collect())
    }
}

/// BuildKit's digest of one entry, its content read through `view`.
pub(crate) fn digest(view: &dyn View, entry: &Entry) -> Result<Digest> {
    use std::io::Read;
    let mut hasher = entry_hasher(entry);
    if entry.content_size() > 0 {
        let mut file = view.open(&entry.path)?;
        let most = usize::try_from(entry.content_size()).unwrap_or(usize::MAX);
        let mut buffer = vec![0; most.clamp(512, 128 * 1024)];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &entry.path, error)),
            }
        }
    }
    Ok(hasher.finish())
}
