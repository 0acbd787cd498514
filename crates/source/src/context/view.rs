//! A local directory as a tree for reading, in place: filtered, owned by root, read when asked. Directories are read
//! with all that is in them, in parallel, when somebody lists one; a single path is looked at alone.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use rayon::prelude::*;
use rbuild_digest::Digest;
use rbuild_graph::LocalSource;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result, View};
use rbuild_tree::{Entry, Kind, NodeKind, RelPath, Time, Xattrs, context_root_digest, header_digest};
use rustix::fs::{AtFlags, FileType, fstat, major, minor, statat};

use super::cache_file::{CacheFile, HAS_XATTRS, Record};
use super::filter::{DirState, Filter, Verdict};
use super::follow::follow;
use super::hash::{FileXattrs, Hashed, hash_node};
use super::pool::in_pool;
use super::root::{Root, is_gone, link_target, read_xattrs, split};
use super::stat::Stat;
use super::stat_cache::{Fresh, StatCache};
use super::walk::{Dir, Loaded, Node, Walker};

/// A local directory, filtered.
pub(crate) struct LocalView {
    root: Root,
    filter: Filter,
    cache: Arc<StatCache>,
    known: Arc<CacheFile>,
    /// Files that changed later than this are not remembered.
    horizon: i128,
    dirs: RwLock<HashMap<Vec<u8>, Arc<Dir>>>,
    /// Entries that were looked at alone.
    singles: RwLock<HashMap<Vec<u8>, Option<Arc<Node>>>>,
    /// Files whose digests were computed and not yet written to the stat cache, and their bytes.
    fresh_files: AtomicU64,
    fresh_bytes: AtomicU64,
    /// Directories are loaded one after the other: a second caller finds the work done.
    loading: Mutex<()>,
    cancel: CancelToken,
}

/// An entry in memory.
enum Found {
    Root,
    In(Arc<Dir>, usize),
    Single(Arc<Node>),
}

impl Found {
    fn node(&self) -> Option<&Node> {
        match self {
            Self::Root => None,
            Self::In(dir, at) => dir.nodes.get(*at),
            Self::Single(node) => Some(node),
        }
    }
}

impl LocalView {
    pub(crate) fn new(
        root: Root,
        cache: Arc<StatCache>,
        source: &LocalSource,
        cancel: &CancelToken,
    ) -> Result<Self> {
        let mut include = source.include.clone();
        if !source.follow_paths.is_empty() {
            let followed = follow(&root, &source.follow_paths)
                .map_err(|error| PortError::io("follow links in", root.path(), error))?;
            include.extend(followed.into_iter().flatten());
        }
        let filter = Filter::new(&include, &source.exclude)?;
        Ok(Self {
            root,
            filter,
            horizon: cache.horizon(),
            known: cache.known(),
            cache,
            dirs: RwLock::default(),
            singles: RwLock::default(),
            fresh_files: AtomicU64::new(0),
            fresh_bytes: AtomicU64::new(0),
            loading: Mutex::new(()),
            cancel: cancel.clone(),
        })
    }

    fn loaded(&self, path: &[u8]) -> Option<Arc<Dir>> {
        self.dirs.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// Reads the directory at `path` and all in it.
    fn load(&self, path: &[u8], state: DirState, hash: bool) -> Result<Option<Arc<Dir>>> {
        let _one = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(dir) = self.loaded(path) {
            return Ok(Some(dir));
        }
        let walker =
            Walker { root: &self.root, filter: &self.filter, cache: &self.known, cancel: &self.cancel, hash };
        let loaded = walker.load(path, state)?;
        let mut dirs = self.dirs.write().unwrap_or_else(PoisonError::into_inner);
        for Loaded { path, dir } in loaded {
            let fresh = dir.nodes.iter().filter(|node| self.to_remember(node).is_some());
            fresh.for_each(|node| self.note_fresh(&node.stat));
            dirs.entry(path).or_insert_with(|| Arc::new(dir));
        }
        let dir = dirs.get(path).cloned();
        drop(dirs);
        self.save();
        Ok(dir)
    }

    /// The entry at `path`, if it is shown.
    fn find(&self, path: &[u8]) -> Result<Option<Found>> {
        if path.is_empty() {
            return Ok(Some(Found::Root));
        }
        let (parent, name) = split(path);
        if let Some(dir) = self.loaded(parent) {
            return Ok(dir.find(name).map(|at| Found::In(dir, at)));
        }
        if let Some(single) = self.singles.read().unwrap_or_else(PoisonError::into_inner).get(path) {
            return Ok(single.clone().map(Found::Single));
        }
        let single = self.look(path)?.map(Arc::new);
        let mut singles = self.singles.write().unwrap_or_else(PoisonError::into_inner);
        Ok(singles.entry(path.to_vec()).or_insert(single).clone().map(Found::Single))
    }

    /// Looks at one entry without reading its directory.
    fn look(&self, path: &[u8]) -> Result<Option<Node>> {
        let (parent, name) = split(path);
        let error = |error| PortError::io("look at", self.root.join(path), error);
        let dir = match self.root.open_dir(parent) {
            Ok(dir) => dir,
            Err(problem) if is_gone(&problem) => return Ok(None),
            Err(problem) => return Err(error(problem)),
        };
        let stat = match statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(problem) if is_gone(&problem.into()) => return Ok(None),
            Err(problem) => return Err(error(problem.into())),
        };
        let mut node = Node::new(&stat, (0, 0), false);
        match self.filter.judge_from_root(path, node.stat.is_dir()) {
            Verdict::Show(_) => {}
            Verdict::Hide => return Ok(None),
            Verdict::Through(state) => {
                if self.load(path, state, false)?.is_none_or(|dir| dir.nodes.is_empty()) {
                    return Ok(None);
                }
            }
        }
        match node.stat.file_type() {
            FileType::Socket => return Ok(None),
            FileType::Symlink => match link_target(dir.as_fd(), name).map_err(error)? {
                Some(target) => node.set_target(target),
                None => return Ok(None),
            },
            FileType::RegularFile => {
                let records = self.known.dir(parent);
                let record = records.and_then(|records| records.find(name, &mut records.lower_bound(name)));
                if let Some(record) = record.filter(|record| record.stat == node.stat) {
                    let _ =
                        node.hashed.set(Hashed::remembered(record.digest, record.flags & HAS_XATTRS != 0));
                }
            }
            _ => {}
        }
        Ok(Some(node))
    }

    /// The digest of a regular file, computed if it is not known.
    fn hashed<'a>(&self, path: &[u8], node: &'a Node) -> &'a Hashed {
        node.hashed.get_or_init(|| {
            let mut stat = node.stat;
            let hashed =
                hash_node(&self.root.join(path), &mut stat, || self.root.open_file(path), &self.cancel);
            if stat == node.stat {
                if stat.changed_nanos() < self.horizon {
                    self.note_fresh(&stat);
                }
                return hashed;
            }
            // It changed since it was looked at. Its digest is then one of a file that nobody sees.
            Hashed::changed(&self.root.join(path))
        })
    }

    /// What the stat cache should know of a node.
    fn to_remember(&self, node: &Node) -> Option<Record> {
        let hashed = node.hashed.get().filter(|hashed| hashed.fresh && hashed.is_ok())?;
        let digest = hashed.digest().ok()?;
        let flags = if matches!(hashed.xattrs, FileXattrs::None) { 0 } else { HAS_XATTRS };
        (node.stat.changed_nanos() < self.horizon).then_some(Record { stat: node.stat, digest, flags })
    }

    fn note_fresh(&self, stat: &Stat) {
        self.fresh_files.fetch_add(1, Ordering::Relaxed);
        self.fresh_bytes.fetch_add(stat.size, Ordering::Relaxed);
    }

    /// Hands new digests to the stat cache, when there are enough of them.
    fn save(&self) {
        let (files, bytes) =
            (self.fresh_files.load(Ordering::Relaxed), self.fresh_bytes.load(Ordering::Relaxed));
        if files == 0 || !self.cache.is_worth_writing(files, bytes) {
            return;
        }
        self.fresh_files.store(0, Ordering::Relaxed);
        self.fresh_bytes.store(0, Ordering::Relaxed);
        let mut fresh: Fresh = BTreeMap::new();
        for (path, dir) in &*self.dirs.read().unwrap_or_else(PoisonError::into_inner) {
            let records =
                dir.nodes.iter().filter_map(|node| Some((dir.name(node).to_vec(), self.to_remember(node)?)));
            let records: BTreeMap<_, _> = records.collect();
            if !records.is_empty() {
                fresh.insert(path.clone(), records);
            }
        }
        for (path, node) in &*self.singles.read().unwrap_or_else(PoisonError::into_inner) {
            if let Some(record) = node.as_ref().and_then(|node| self.to_remember(node)) {
                let (parent, name) = split(path);
                fresh.entry(parent.to_vec()).or_default().insert(name.to_vec(), record);
            }
        }
        self.cache.save(fresh);
    }

    fn entry(&self, path: &RelPath, found: &Found) -> Result<Entry> {
        let Some(node) = found.node() else {
            let stat =
                fstat(self.root.fd()).map_err(|error| PortError::io("look at", self.root.path(), error))?;
            return Ok(entry(RelPath::root(), Kind::Dir, &Stat::new(&stat), read_xattrs(self.root.fd())));
        };
        let kind = kind(node);
        let xattrs = match kind {
            Kind::File { .. } => self.file_xattrs(path, node)?,
            Kind::Dir => match self.loaded(path.as_bytes()) {
                Some(dir) => dir.xattrs.clone(),
                None => self.read_xattrs_at(path, true)?,
            },
            _ => Xattrs::new(),
        };
        Ok(entry(path.clone(), kind, &node.stat, xattrs))
    }

    fn file_xattrs(&self, path: &RelPath, node: &Node) -> Result<Xattrs> {
        match node.hashed.get().map(|hashed| &hashed.xattrs) {
            Some(FileXattrs::None) => Ok(Xattrs::new()),
            Some(FileXattrs::Known(xattrs)) => Ok((**xattrs).clone()),
            Some(FileXattrs::Some) | None => self.read_xattrs_at(path, false),
        }
    }

    fn read_xattrs_at(&self, path: &RelPath, dir: bool) -> Result<Xattrs> {
        let bytes = path.as_bytes();
        let opened = if dir { self.root.open_dir(bytes) } else { self.root.open_file(bytes) };
        match opened {
            Ok(fd) => Ok(read_xattrs(fd.as_fd())),
            // Whoever reads it will be told.
            Err(error) if is_gone(&error) || error.kind() == std::io::ErrorKind::PermissionDenied => {
                Ok(Xattrs::new())
            }
            Err(error) => Err(PortError::io("read", self.root.join(bytes), error)),
        }
    }

    fn not_found(&self, what: &str, path: &RelPath) -> PortError {
        PortError::new(ErrorKind::NotFound, format!("{path} of {} {what}", self.root.path().display()))
    }

    fn digest_of(&self, path: &RelPath, found: &Found) -> Result<Digest> {
        match found.node() {
            None => Ok(context_root_digest()),
            Some(node) if node.stat.is_file() => self.hashed(path.as_bytes(), node).digest(),
            Some(_) => Ok(header_digest(&self.entry(path, found)?)),
        }
    }
}

impl View for LocalView {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        match self.find(path.as_bytes())? {
            None => Ok(None),
            Some(found) => self.entry(path, &found).map(Some),
        }
    }

    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        let dir = self.directory(path)?;
        Ok(dir.nodes.iter().map(|node| dir.name(node).to_vec()).collect())
    }

    fn list(&self, path: &RelPath) -> Result<Vec<(Vec<u8>, NodeKind)>> {
        let dir = self.directory(path)?;
        let kind = |node: &Node| match node.stat.file_type() {
            FileType::Directory => NodeKind::Dir,
            FileType::Symlink => NodeKind::Symlink(node.target().to_vec()),
            _ => NodeKind::File,
        };
        Ok(dir.nodes.iter().map(|node| (dir.name(node).to_vec(), kind(node))).collect())
    }

    fn open(&self, path: &RelPath) -> Result<File> {
        let found = self.find(path.as_bytes())?;
        let node = found.as_ref().and_then(Found::node).filter(|node| node.stat.is_file());
        let node = node.ok_or_else(|| self.not_found("is no regular file", path))?;
        let full = self.root.join(path.as_bytes());
        let fd = self.root.open_file(path.as_bytes()).map_err(|error| {
            if is_gone(&error) { changed(&full) } else { PortError::io("open", &full, error) }
        })?;
        let now = Stat::new(&fstat(&fd).map_err(|error| PortError::io("look at", &full, error))?);
        // A digest that was given away must be that of what is read now.
        if !now.is_file() || (node.hashed.get().is_some() && now != node.stat) {
            return Err(changed(&full));
        }
        Ok(File::from(fd))
    }

    fn entry_digest(&self, path: &RelPath) -> Result<Digest> {
        self.cancel.check()?;
        let found = self.find(path.as_bytes())?.ok_or_else(|| self.not_found("is not there", path))?;
        self.digest_of(path, &found)
    }

    fn entry_digests(&self, paths: &[RelPath]) -> Result<Vec<Digest>> {
        let mut found = Vec::with_capacity(paths.len());
        let mut unknown = Vec::new();
        for (n, path) in paths.iter().enumerate() {
            let one = self.find(path.as_bytes())?.ok_or_else(|| self.not_found("is not there", path))?;
            if one.node().is_some_and(|node| node.stat.is_file() && node.hashed.get().is_none()) {
                unknown.push(n);
            }
            found.push(one);
        }
        if unknown.len() > 1 {
            let hash = |n: &usize| {
                if let (Some(path), Some(node)) = (paths.get(*n), found.get(*n).and_then(Found::node)) {
                    let _ = self.hashed(path.as_bytes(), node);
                }
            };
            in_pool(|| unknown.par_iter().for_each(hash));
        }
        self.cancel.check()?;
        let digests = paths.iter().zip(&found).map(|(path, found)| self.digest_of(path, found)).collect();
        self.save();
        digests
    }

    fn origin(&self) -> Option<&[u8]> {
        Some(self.root.path().as_os_str().as_bytes())
    }

    fn known_digest(&self, path: &RelPath) -> Option<Digest> {
        let found = self.find(path.as_bytes()).ok()??;
        let node = found.node().filter(|node| node.stat.is_file() && !node.has_other_names)?;
        node.hashed.get()?.digest().ok()
    }

    fn is_local(&self) -> bool {
        true
    }

    fn verify_copied(&self, path: &RelPath, size: u64, mtime_nanos: i128) -> Result<()> {
        let found = self.find(path.as_bytes())?;
        let same = found
            .as_ref()
            .and_then(Found::node)
            .is_some_and(|node| node.stat.size == size && node.stat.mtime_nanos() == mtime_nanos);
        if same { Ok(()) } else { Err(changed(&self.root.join(path.as_bytes()))) }
    }
}

impl LocalView {
    /// The directory at `path`, read with all that is in it.
    fn directory(&self, path: &RelPath) -> Result<Arc<Dir>> {
        let bytes = path.as_bytes();
        let dir = match self.loaded(bytes) {
            Some(dir) => Some(dir),
            None => match self.filter.judge_from_root(bytes, true) {
                Verdict::Show(state) | Verdict::Through(state) if self.is_dir(bytes)? => {
                    self.load(bytes, state, true)?
                }
                _ => None,
            },
        };
        dir.ok_or_else(|| self.not_found("is no directory", path))
    }

    fn is_dir(&self, path: &[u8]) -> Result<bool> {
        Ok(self.find(path)?.is_some_and(|found| found.node().is_none_or(|node| node.stat.is_dir())))
    }
}

impl Drop for LocalView {
    fn drop(&mut self) {
        self.save();
    }
}

fn kind(node: &Node) -> Kind {
    match node.stat.file_type() {
        FileType::Directory => Kind::Dir,
        FileType::Symlink => Kind::Symlink { target: node.target().to_vec() },
        FileType::CharacterDevice => {
            Kind::CharDevice { major: major(node.rdev()), minor: minor(node.rdev()) }
        }
        FileType::BlockDevice => Kind::BlockDevice { major: major(node.rdev()), minor: minor(node.rdev()) },
        FileType::Fifo => Kind::Fifo,
        _ => Kind::File { size: node.stat.size },
    }
}

/// As BuildKit's client sends it: owned by root.
fn entry(path: RelPath, kind: Kind, stat: &Stat, xattrs: Xattrs) -> Entry {
    let mtime = Time { secs: stat.mtime.0, nanos: stat.mtime.1 };
    // A link has no permissions of its own.
    let mode = if matches!(kind, Kind::Symlink { .. }) { 0o777 } else { stat.mode & 0o7777 };
    Entry { path, kind, mode, uid: 0, gid: 0, mtime, xattrs }
}

fn changed(path: &std::path::Path) -> PortError {
    PortError::new(ErrorKind::Invalid, format!("{} changed during the build", path.display()))
        .help("nothing of it was stored; build again when it is not being written")
}
