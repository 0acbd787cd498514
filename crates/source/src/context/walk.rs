//! Reading directories: names, what the file system says of them, and the digests of files, in parallel. Digests that
//! are remembered are not computed again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Result};
use rbuild_tree::Xattrs;
use rustix::fs::{AtFlags, FileType, RawDir, statat};

use super::cache_file::{CacheFile, DirRecords, HAS_XATTRS};
use super::filter::{DirState, Filter, Verdict};
use super::hash::{Hashed, hash_node};
use super::pool::in_pool;
use super::root::{Root, is_gone, link_target, read_xattrs};
use super::stat::Stat;

/// Entries of one directory that one task takes.
const CHUNK: usize = 64;

/// One directory as read.
#[derive(Default)]
pub(crate) struct Dir {
    names: Vec<u8>,
    /// By name.
    pub(crate) nodes: Vec<Node>,
    /// Of the directory itself.
    pub(crate) xattrs: Xattrs,
}

/// One entry of a directory.
pub(crate) struct Node {
    name: (u32, u32),
    pub(crate) stat: Stat,
    /// A directory that is only shown if something in it is.
    through: bool,
    /// A file with more than one name.
    pub(crate) has_other_names: bool,
    special: Option<Box<Special>>,
    pub(crate) hashed: OnceLock<Hashed>,
}

/// What few entries have.
enum Special {
    /// Where a link points.
    Target(Vec<u8>),
    /// Which device.
    Device(u64),
}

impl Dir {
    pub(crate) fn name(&self, node: &Node) -> &[u8] {
        let start = node.name.0 as usize;
        self.names.get(start..start + node.name.1 as usize).unwrap_or_default()
    }

    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        self.nodes.binary_search_by(|node| self.name(node).cmp(name)).ok()
    }
}

/// A directory with its path.
pub(crate) struct Loaded {
    pub(crate) path: Vec<u8>,
    pub(crate) dir: Dir,
}

/// What a walk needs to know.
pub(crate) struct Walker<'a> {
    pub(crate) root: &'a Root,
    pub(crate) filter: &'a Filter,
    pub(crate) cache: &'a CacheFile,
    pub(crate) cancel: &'a CancelToken,
    /// Compute digests that are not remembered.
    pub(crate) hash: bool,
}

/// What the tasks of a walk share.
#[derive(Default)]
struct Findings {
    dirs: Mutex<Vec<Loaded>>,
    /// The first in walk order, so that the message does not depend on chance.
    failure: Mutex<Option<(Vec<u8>, PortError)>>,
}

impl Findings {
    fn fail(&self, path: &[u8], error: PortError) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref().is_none_or(|(first, _)| path < first.as_slice()) {
            *failure = Some((path.to_vec(), error));
        }
    }

    fn failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }
}

/// A name in a directory that is to be looked at.
struct Candidate {
    name: (u32, u32),
    is_dir: bool,
    through: bool,
    state: Option<DirState>,
}

impl Walker<'_> {
    /// Reads the directory at `path` and all in it that is shown.
    pub(crate) fn load(&self, path: &[u8], state: DirState) -> Result<Vec<Loaded>> {
        let findings = Findings::default();
        // One directory is not worth waking other threads.
        let below = self.visit(path, &state, true, &findings);
        if !below.is_empty() {
            in_pool(|| rayon::scope(|scope| self.spawn(scope, below, &findings)));
        }
        self.cancel.check()?;
        if let Some((_, error)) = findings.failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let mut dirs = findings.dirs.into_inner().unwrap_or_else(PoisonError::into_inner);
        prune(&mut dirs);
        Ok(dirs)
    }

    fn spawn<'s>(&'s self, scope: &rayon::Scope<'s>, below: Vec<Below>, findings: &'s Findings) {
        for dir in below {
            scope.spawn(move |scope| {
                let below = self.visit(&dir.path, &dir.state, !dir.through, findings);
                self.spawn(scope, below, findings);
            });
        }
    }

    /// Reads one directory; gives those in it.
    fn visit(&self, path: &[u8], state: &DirState, shown: bool, findings: &Findings) -> Vec<Below> {
        if self.cancel.is_cancelled() || findings.failed() {
            return vec![];
        }
        let fd = match self.root.open_dir(path) {
            Ok(fd) => fd,
            // It went away, or what is not shown cannot be read either.
            Err(error) if is_gone(&error) => return vec![],
            Err(error) if !shown && error.kind() == std::io::ErrorKind::PermissionDenied => return vec![],
            Err(error) => {
                findings.fail(path, self.error("read the directory", path, error));
                return vec![];
            }
        };
        match self.read(&fd, path, state) {
            Ok((dir, below)) => {
                findings
                    .dirs
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .push(Loaded { path: path.to_vec(), dir });
                below
            }
            Err(error) => {
                findings.fail(path, error);
                vec![]
            }
        }
    }

    fn read(&self, fd: &OwnedFd, path: &[u8], state: &DirState) -> Result<(Dir, Vec<Below>)> {
        let (names, mut candidates) = self.candidates(fd, path, state)?;
        let name_of =
            |name: (u32, u32)| names.get(name.0 as usize..(name.0 + name.1) as usize).unwrap_or_default();
        candidates.sort_unstable_by(|a, b| name_of(a.name).cmp(name_of(b.name)));
        let records = self.cache.dir(path);
        let look_at = |chunk: &[Candidate]| -> Result<Vec<Node>> {
            let first = chunk.first().map(|candidate| name_of(candidate.name)).unwrap_or_default();
            let mut hint = records.map_or(0, |records| records.lower_bound(first));
            let mut nodes = Vec::with_capacity(chunk.len());
            for candidate in chunk {
                nodes.extend(self.look(
                    fd.as_fd(),
                    path,
                    candidate,
                    name_of(candidate.name),
                    records,
                    &mut hint,
                )?);
            }
            Ok(nodes)
        };
        let nodes = if candidates.len() > 2 * CHUNK {
            let chunks: Vec<Vec<Node>> =
                in_pool(|| candidates.par_chunks(CHUNK).map(look_at).collect::<Result<_>>())?;
            chunks.into_iter().flatten().collect()
        } else {
            look_at(&candidates)?
        };
        let mut states =
            candidates.into_iter().filter_map(|candidate| Some((candidate.name, candidate.state?)));
        let mut below = Vec::new();
        for node in nodes.iter().filter(|node| node.stat.is_dir()) {
            // Both are by name; what went away meanwhile is passed over.
            if let Some((name, state)) = states.by_ref().find(|(name, _)| *name == node.name) {
                below.push(Below { path: child(path, name_of(name)), state, through: node.through });
            }
        }
        Ok((Dir { nodes, xattrs: read_xattrs(fd.as_fd()), names }, below))
    }

    /// The names in a directory that are shown, or may lead to something that is.
    fn candidates(&self, fd: &OwnedFd, path: &[u8], state: &DirState) -> Result<(Vec<u8>, Vec<Candidate>)> {
        let mut names: Vec<u8> = Vec::new();
        let mut out = Vec::new();
        let mut full = path.to_vec();
        if !full.is_empty() {
            full.push(b'/');
        }
        let prefix = full.len();
        let mut buffer = Vec::with_capacity(32 << 10);
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| self.error("read the directory", path, error.into()))?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                match statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(stat) => kind = FileType::from_raw_mode(stat.st_mode),
                    Err(_) => continue,
                }
            }
            // No archive can hold a socket.
            if kind == FileType::Socket {
                continue;
            }
            full.truncate(prefix);
            full.extend_from_slice(name);
            let is_dir = kind == FileType::Directory;
            let (through, state) = match self.filter.judge(&full, state, is_dir) {
                Verdict::Show(state) => (false, state),
                Verdict::Through(state) => (true, state),
                Verdict::Hide => continue,
            };
            let start = u32::try_from(names.len()).map_err(|_| too_large(path))?;
            let length = u32::try_from(name.len()).map_err(|_| too_large(path))?;
            names.extend_from_slice(name);
            out.push(Candidate { name: (start, length), is_dir, through, state: is_dir.then_some(state) });
        }
        Ok((names, out))
    }

    /// What the file system says of an entry; `None` when it went away, or became something else.
    fn look(
        &self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        candidate: &Candidate,
        name: &[u8],
        records: Option<DirRecords<'_>>,
        hint: &mut usize,
    ) -> Result<Option<Node>> {
        let error = |error: std::io::Error| self.error("look at", &child(path, name), error);
        let stat = match statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(problem) if is_gone(&problem.into()) => return Ok(None),
            Err(problem) => return Err(error(problem.into())),
        };
        let mut node = Node::new(&stat, candidate.name, candidate.through);
        let kind = node.stat.file_type();
        if (kind == FileType::Directory) != candidate.is_dir || kind == FileType::Socket {
            return Ok(None);
        }
        if kind == FileType::Symlink {
            match link_target(dir, name).map_err(error)? {
                Some(target) => node.set_target(target),
                None => return Ok(None),
            }
        }
        if kind == FileType::RegularFile {
            self.recall_or_hash(&mut node, dir, path, name, records, hint)?;
        }
        Ok(Some(node))
    }

    fn recall_or_hash(
        &self,
        node: &mut Node,
        dir: BorrowedFd<'_>,
        path: &[u8],
        name: &[u8],
        records: Option<DirRecords<'_>>,
        hint: &mut usize,
    ) -> Result<()> {
        if let Some(record) = records.and_then(|records| records.find(name, hint))
            && record.stat == node.stat
        {
            let _ = node.hashed.set(Hashed::remembered(record.digest, record.flags & HAS_XATTRS != 0));
        } else if self.hash {
            self.cancel.check()?;
            let open = || super::root::open_file_in(dir, name);
            let hashed = hash_node(&self.root.join(&child(path, name)), &mut node.stat, open, self.cancel);
            let _ = node.hashed.set(hashed);
        }
        Ok(())
    }

    fn error(&self, what: &str, path: &[u8], error: std::io::Error) -> PortError {
        PortError::io(what, self.root.join(path), error)
    }
}

impl Node {
    pub(crate) fn new(stat: &rustix::fs::Stat, name: (u32, u32), through: bool) -> Self {
        let kind = FileType::from_raw_mode(stat.st_mode);
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        #[expect(clippy::unnecessary_cast, reason = "the field's type differs between architectures")]
        let special = is_device.then(|| Box::new(Special::Device(stat.st_rdev as u64)));
        let has_other_names = stat.st_nlink > 1;
        Self { name, stat: Stat::new(stat), through, has_other_names, special, hashed: OnceLock::new() }
    }

    pub(crate) fn set_target(&mut self, target: Vec<u8>) {
        self.special = Some(Box::new(Special::Target(target)));
    }

    /// Where a link points; empty for others.
    pub(crate) fn target(&self) -> &[u8] {
        match self.special.as_deref() {
            Some(Special::Target(target)) => target,
            _ => &[],
        }
    }

    /// Which device; 0 for others.
    pub(crate) fn rdev(&self) -> u64 {
        match self.special.as_deref() {
            Some(Special::Device(rdev)) => *rdev,
            _ => 0,
        }
    }
}

/// A directory that is still to be read.
struct Below {
    path: Vec<u8>,
    state: DirState,
    through: bool,
}

/// Takes out directories that went away, and those that were only entered for what might be in them.
fn prune(dirs: &mut [Loaded]) {
    let depth =
        |path: &[u8]| if path.is_empty() { 0 } else { path.iter().filter(|c| **c == b'/').count() + 1 };
    // The deepest first: whether something is left in a directory is known before its parent asks.
    dirs.sort_by_cached_key(|loaded| std::cmp::Reverse(depth(&loaded.path)));
    let mut left = std::collections::HashMap::with_capacity(dirs.len());
    for loaded in dirs {
        let Loaded { path, dir } = loaded;
        let Dir { names, nodes, .. } = dir;
        nodes.retain(|node| {
            if !node.stat.is_dir() {
                return true;
            }
            let name =
                names.get(node.name.0 as usize..(node.name.0 + node.name.1) as usize).unwrap_or_default();
            match left.get(child(path, name).as_slice()) {
                None => false,
                Some(empty) => !(node.through && *empty),
            }
        });
        left.insert(path.clone(), nodes.is_empty());
    }
}

/// `dir/name`.
pub(crate) fn child(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(dir.len() + 1 + name.len());
    out.extend_from_slice(dir);
    if !dir.is_empty() {
        out.push(b'/');
    }
    out.extend_from_slice(name);
    out
}

fn too_large(path: &[u8]) -> PortError {
    let path = String::from_utf8_lossy(path).into_owned();
    PortError::new(ErrorKind::Unsupported, format!("the directory {path} has too many entries"))
}
