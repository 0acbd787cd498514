//! Copying files and whole trees into a layer, many at once. Directories are made before what is in them is copied,
//! each by the task that reads it; files with several names are copied last, in the order of their names, so that
//! the result does not depend on who was faster.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use rayon::prelude::*;
use rbuild_ports::{CancelToken, Result, View};
use rbuild_tree::{Entry, Kind, MatchInfo, PatternMatcher, RelPath, Time};
use rustix::fs::{self, AtFlags};

use super::again::{Again, Wanted};
use super::dest::{Dest, Handle};
use super::mode::ModeChange;
use super::owner::Owner;
use crate::content::copy_content;
use crate::meta::{Meta, failed};
use crate::unpack::invalid;

/// Names of a directory that one task takes.
const BATCH: usize = 64;

/// What becomes of metadata.
#[derive(Clone, Debug)]
pub(crate) struct Stamp {
    /// Everything belongs to root.
    pub(crate) local: bool,
    pub(crate) owner: Option<Owner>,
    pub(crate) mode: ModeChange,
    pub(crate) time: Option<Time>,
}

impl Stamp {
    /// The metadata of the copy of `entry`.
    pub(crate) fn meta(&self, entry: &Entry) -> Meta {
        let mut meta = Meta::of_entry(entry);
        if self.local {
            (meta.uid, meta.gid) = (0, 0);
        }
        if let Some(Owner { uid, gid }) = self.owner {
            (meta.uid, meta.gid) = (uid, gid);
        }
        meta.mode = self.mode.apply(meta.mode, entry.is_dir());
        meta.mtime = self.time.unwrap_or(meta.mtime);
        meta
    }
}

/// A copy of trees and files from a view to a layer.
pub(crate) struct TreeCopy<'a> {
    pub(crate) dest: &'a Dest,
    pub(crate) from: &'a dyn View,
    pub(crate) include: Option<PatternMatcher>,
    pub(crate) exclude: Option<PatternMatcher>,
    pub(crate) stamp: Stamp,
    /// What is in the way is removed.
    pub(crate) replace: bool,
    pub(crate) required: Required,
    pub(crate) cancel: &'a CancelToken,
    /// What was copied in an earlier build.
    pub(crate) again: Option<&'a Again>,
}

/// One file, link or node to copy.
#[derive(Clone, Debug)]
pub(crate) struct FileJob {
    pub(crate) entry: Entry,
    pub(crate) target: RelPath,
}

/// Paths below the source of which each must be the start of something that is copied.
pub(crate) struct Required {
    /// Below the source, as the user named it, and whether it was met.
    paths: Vec<(RelPath, RelPath, AtomicBool)>,
}

impl Required {
    /// `source` is what the paths begin with.
    pub(crate) fn new(source: &RelPath, paths: Vec<RelPath>) -> Self {
        let below = |path: &RelPath| path.strip_prefix(source).unwrap_or_else(|| path.clone());
        Self { paths: paths.into_iter().map(|path| (below(&path), path, AtomicBool::new(false))).collect() }
    }

    fn met(&self, path: &[u8]) {
        for (_, _, met) in self.paths.iter().filter(|(below, ..)| path.starts_with(below.as_bytes())) {
            met.store(true, Ordering::Relaxed);
        }
    }

    /// One that nothing started with.
    pub(crate) fn missing(&self) -> Option<RelPath> {
        let missing = self.paths.iter().find(|(.., met)| !met.load(Ordering::Relaxed));
        missing.map(|(_, path, _)| path.clone())
    }
}

/// A directory of the source on its way.
struct Node {
    entry: Entry,
    target: RelPath,
    /// Path below the source, for patterns.
    rest: RelPath,
    include: MatchInfo,
    exclude: MatchInfo,
    parent: Option<Arc<Node>>,
    /// Whether the target is there; made late if only something in it is included.
    made: Mutex<bool>,
}

/// A directory that is being read, and its target once something is made in it.
struct Reading {
    node: Arc<Node>,
    handle: OnceLock<Target>,
}

/// An open directory to copy to, and the same one in the layer that an earlier build made.
struct Target {
    handle: Handle,
    last: Option<OwnedFd>,
}

/// A file with several names.
struct Linked {
    job: FileJob,
    inode: (u64, u64),
}

/// What the tasks of one copy share.
#[derive(Default)]
struct Progressing {
    stopped: AtomicBool,
    error: Mutex<Option<(RelPath, rbuild_ports::PortError)>>,
    linked: Mutex<Vec<Linked>>,
}

impl Progressing {
    /// Remembers an error; of several, that of the first path.
    fn note(&self, path: &RelPath, result: Result<()>) {
        if let Err(error) = result {
            self.stopped.store(true, Ordering::Relaxed);
            let mut slot = self.error.lock().unwrap_or_else(PoisonError::into_inner);
            if slot.as_ref().is_none_or(|(first, _)| path < first) {
                *slot = Some((path.clone(), error));
            }
        }
    }
}

impl TreeCopy<'_> {
    /// Copies files to targets that do not get in each other's way.
    pub(crate) fn files(&self, jobs: Vec<FileJob>) -> Result<()> {
        let state = Progressing::default();
        let run = |job: &FileJob| {
            if !state.stopped.load(Ordering::Relaxed) {
                state.note(&job.target, self.one(job, &state));
            }
        };
        if jobs.len() < 4 {
            jobs.iter().for_each(run);
        } else {
            self.dest.shared().pool.run(|| jobs.par_iter().for_each(run));
        }
        self.finish(state)
    }

    /// Copies the directory `entry` to `target`: into it when it is there.
    pub(crate) fn directory(&self, entry: &Entry, target: &RelPath) -> Result<()> {
        let meta = self.stamp.meta(entry);
        match self.dest.kind(target)? {
            None => self.dest.make_dir(target, meta)?,
            Some(Kind::Dir) => self.dest.change_dir(target, |there| there.mtime = meta.mtime)?,
            Some(_) if self.replace => {
                self.dest.remove(target)?;
                self.dest.make_dir(target, meta)?;
            }
            Some(_) => return Err(invalid(format!("cannot copy to non-directory: {target}"))),
        }
        self.required.met(b"");
        let root = Arc::new(Node {
            entry: entry.clone(),
            target: target.clone(),
            rest: RelPath::root(),
            include: MatchInfo::default(),
            exclude: MatchInfo::default(),
            parent: None,
            made: Mutex::new(true),
        });
        let state = Progressing::default();
        self.dest.shared().pool.run(|| rayon::scope(|scope| self.read(scope, root, &state)));
        self.finish(state)
    }

    fn finish(&self, state: Progressing) -> Result<()> {
        if let Some((_, error)) = state.error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            return Err(error);
        }
        let linked = state.linked.into_inner().unwrap_or_else(PoisonError::into_inner);
        if linked.is_empty() { Ok(()) } else { self.linked(linked) }
    }

    fn read<'s>(&'s self, scope: &rayon::Scope<'s>, node: Arc<Node>, state: &'s Progressing) {
        if state.stopped.load(Ordering::Relaxed) {
            return;
        }
        let names = match self.from.children(&node.entry.path) {
            Ok(names) => names,
            Err(error) => return state.note(&node.target, Err(error)),
        };
        let reading = Arc::new(Reading { node, handle: OnceLock::new() });
        if names.len() <= BATCH {
            return self.batch(scope, &reading, &names, state);
        }
        for batch in names.chunks(BATCH) {
            let (reading, batch) = (reading.clone(), batch.to_vec());
            scope.spawn(move |scope| self.batch(scope, &reading, &batch, state));
        }
    }

    fn batch<'s>(
        &'s self,
        scope: &rayon::Scope<'s>,
        reading: &Reading,
        names: &[Vec<u8>],
        state: &'s Progressing,
    ) {
        for name in names {
            if state.stopped.load(Ordering::Relaxed) {
                return;
            }
            match self.child(reading, name, state) {
                Ok(None) => {}
                Ok(Some(node)) => scope.spawn(move |scope| self.read(scope, node, state)),
                Err(error) => {
                    let path = reading.node.target.child(name).unwrap_or_default();
                    return state.note(&path, Err(error));
                }
            }
        }
    }

    /// Copies one name of a directory; a directory that must be read comes back.
    fn child(&self, reading: &Reading, name: &[u8], state: &Progressing) -> Result<Option<Arc<Node>>> {
        self.cancel.check()?;
        let node = &reading.node;
        let child = |dir: &RelPath| dir.child(name).map_err(|e| invalid(e.to_string()));
        let source = child(&node.entry.path)?;
        let Some(entry) = self.from.lookup(&source)? else { return Ok(None) };
        let rest = child(&node.rest)?;
        let (included, include) = match &self.include {
            None => (true, MatchInfo::default()),
            Some(patterns) => patterns.matches_in(rest.as_bytes(), &node.include),
        };
        let (excluded, exclude) = match &self.exclude {
            None => (false, MatchInfo::default()),
            Some(patterns) => patterns.matches_in(rest.as_bytes(), &node.exclude),
        };
        let take = included && !excluded;
        let target = child(&node.target)?;
        if take {
            self.ensure(node)?;
            self.required.met(rest.as_bytes());
        }
        if !entry.is_dir() {
            if take {
                self.copy_in(reading, name, FileJob { entry, target }, state)?;
            }
            return Ok(None);
        }
        if take {
            self.make_dir(&entry, &target)?;
        } else if self.is_empty_below(&rest, included, excluded, &exclude) {
            return Ok(None);
        }
        let (parent, made) = (Some(node.clone()), Mutex::new(take));
        Ok(Some(Arc::new(Node { entry, target, rest, include, exclude, parent, made })))
    }

    /// Whether nothing below a directory that is not taken itself can be taken.
    fn is_empty_below(&self, rest: &RelPath, included: bool, excluded: bool, exclude: &MatchInfo) -> bool {
        let rest = rest.as_bytes();
        let nothing_back = |patterns: &PatternMatcher| !patterns.may_take_back_below(rest, exclude);
        let nothing_matches = |patterns: &PatternMatcher| !patterns.may_match_below(rest);
        (excluded && self.exclude.as_ref().is_some_and(nothing_back))
            || (!included && self.include.as_ref().is_some_and(nothing_matches))
    }

    /// Makes the target of a directory that is copied, or gives one that is there the source's metadata.
    fn make_dir(&self, entry: &Entry, target: &RelPath) -> Result<()> {
        let meta = self.stamp.meta(entry);
        match self.dest.kind(target)? {
            None => self.dest.make_dir(target, meta),
            Some(Kind::Dir) => self.dest.change_dir(target, |there| {
                let mut xattrs = std::mem::take(&mut there.xattrs);
                *there = meta;
                xattrs.append(&mut there.xattrs);
                there.xattrs = xattrs;
            }),
            Some(_) if self.replace => {
                self.dest.remove(target)?;
                self.dest.make_dir(target, meta)
            }
            Some(_) => Err(invalid(format!("cannot copy to non-directory: {target}"))),
        }
    }

    /// Makes the targets of directories that are there only for what is in them.
    fn ensure(&self, node: &Node) -> Result<()> {
        let mut made = node.made.lock().unwrap_or_else(PoisonError::into_inner);
        if *made {
            return Ok(());
        }
        if let Some(parent) = &node.parent {
            self.ensure(parent)?;
        }
        match self.dest.kind(&node.target)? {
            Some(Kind::Dir) => self.dest.change_dir(&node.target, |there| there.mode = node.entry.mode)?,
            _ => self.make_dir(&node.entry, &node.target)?,
        }
        *made = true;
        Ok(())
    }

    fn copy_in(&self, reading: &Reading, name: &[u8], job: FileJob, state: &Progressing) -> Result<()> {
        let target = match reading.handle.get() {
            Some(target) => target,
            None => {
                let opened = self.enter(&reading.node.target)?;
                reading.handle.get_or_init(|| opened)
            }
        };
        self.copy(target, name, job, Some(state))
    }

    fn enter(&self, path: &RelPath) -> Result<Target> {
        let handle = self.dest.enter(path)?;
        Ok(Target { handle, last: self.again.and_then(|again| again.open_dir(path)) })
    }

    fn one(&self, job: &FileJob, state: &Progressing) -> Result<()> {
        self.cancel.check()?;
        let target = self.enter(&job.target.parent().unwrap_or_default())?;
        let name = job.target.file_name().unwrap_or_default();
        self.copy(&target, name, job.clone(), Some(state))
    }

    /// Copies one file, link or node. Files with several names are put off while there is a `state` to note them in.
    fn copy(&self, target: &Target, name: &[u8], job: FileJob, state: Option<&Progressing>) -> Result<()> {
        let Target { handle, last } = target;
        let meta = self.stamp.meta(&job.entry);
        let digest = self.again.and_then(|_| Again::digest(self.from, &job.entry));
        if let Some(again) = self.again {
            again.note(&job.target, digest);
            if let (Some(last), Some(digest), Kind::File { size }) = (last, digest, &job.entry.kind) {
                let wanted = Wanted { target: &job.target, digest, size: *size, meta: &meta };
                let link = |dir: &OwnedFd| again.link(last, dir, name, &wanted);
                if self.dest.place(handle, name, self.replace, link)? {
                    return Ok(());
                }
            }
        }
        if !matches!(job.entry.kind, Kind::File { .. } | Kind::Hardlink { .. }) {
            return self.dest.other(handle, name, self.replace, &job.entry.kind, &meta);
        }
        let path = &job.entry.path;
        let file = self.from.open(path)?;
        let before = file.metadata().map_err(|e| failed("read", path, e))?;
        if before.nlink() > 1
            && let Some(state) = state
        {
            let inode = (before.dev(), before.ino());
            state.linked.lock().unwrap_or_else(PoisonError::into_inner).push(Linked { job, inode });
            return Ok(());
        }
        let copied = self.dest.file(handle, name, self.replace, &meta, |to| {
            copy_content(file.as_fd(), to.as_fd()).map_err(|e| failed("copy", path, e))
        })?;
        let after = fs::fstat(&file).map_err(|e| failed("read", path, e))?;
        let mtime = i128::from(after.st_mtime) * 1_000_000_000 + i128::from(after.st_mtime_nsec);
        self.from.verify_copied(path, copied.size, mtime)
    }

    /// Files with several names: the first name is copied, the others are linked to it.
    fn linked(&self, mut linked: Vec<Linked>) -> Result<()> {
        linked.sort_unstable_by(|a, b| a.job.target.cmp(&b.job.target));
        let mut order: HashMap<(u64, u64), usize> = HashMap::new();
        let mut groups: Vec<Vec<FileJob>> = Vec::new();
        for Linked { job, inode } in linked {
            let index = *order.entry(inode).or_insert(groups.len());
            match groups.get_mut(index) {
                Some(group) => group.push(job),
                None => groups.push(vec![job]),
            }
        }
        self.dest.shared().pool.run(|| groups.par_iter().try_for_each(|group| self.group(group)))
    }

    fn group(&self, group: &[FileJob]) -> Result<()> {
        let mut first: Option<(Target, Vec<u8>)> = None;
        for job in group {
            self.cancel.check()?;
            let target = self.enter(&job.target.parent().unwrap_or_default())?;
            let name = job.target.file_name().unwrap_or_default();
            match &first {
                None => {
                    self.copy(&target, name, job.clone(), None)?;
                    first = Some((target, name.to_vec()));
                }
                Some((from, old)) => self.dest.place(&target.handle, name, self.replace, |dir| {
                    fs::linkat(&from.handle.fd, old.as_slice(), dir, name, AtFlags::empty())
                })?,
            }
        }
        Ok(())
    }
}
