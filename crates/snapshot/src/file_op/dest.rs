//! The layer that a file operation writes, seen together with what it is written over. Directories of the base are
//! copied up (without content) when something changes in them, deletions become whiteouts, and metadata of
//! directories is applied at the end, so that what is made in them does not disturb their times.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;
use rbuild_ports::{CommittedLayer, ErrorKind, PortError, Result, Snapshot, View};
use rbuild_tree::{Entry, Kind, RelPath, Time};
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use crate::meta::{Meta, failed};
use crate::remove::remove_tree;
use crate::resolve::resolve;
use crate::seal::{committed, count, publish, refuse_whiteout_name};
use crate::store::Shared;
use crate::sys::{self, Place};
use crate::unpack::invalid;
use crate::view::LayerView;
use crate::work::Scratch;

const UPPER: &str = "fs";

/// A layer in the making over a base.
pub(crate) struct Dest {
    shared: Arc<Shared>,
    base: Arc<LayerView>,
    snapshot: Snapshot,
    scratch: Scratch,
    root: OwnedFd,
    dirs: Mutex<Dirs>,
    /// The time of what has no other.
    now: Time,
    /// Devices that a user namespace may not make.
    left_out: AtomicUsize,
}

type Dirs = HashMap<RelPath, Dir>;

/// A directory of the layer.
#[derive(Clone, Debug)]
struct Dir {
    meta: Meta,
    /// The base has this directory too, and what is in it shows.
    lower: bool,
    opaque: bool,
}

/// An open directory of the layer to make things in.
pub(crate) struct Handle {
    pub(crate) path: RelPath,
    pub(crate) fd: OwnedFd,
    /// What the base has in it shows.
    lower: bool,
}

/// Where something at a path comes from.
enum Source {
    Layer(FileType),
    Base,
    Nowhere,
}

impl Dest {
    pub(crate) fn new(shared: &Arc<Shared>, snapshot: Snapshot) -> Result<Self> {
        let base = shared.view(&snapshot.layers)?;
        let scratch = shared.space.scratch()?;
        let root = scratch.subdir(UPPER)?;
        let top =
            base.lookup(&RelPath::root())?.map_or_else(Meta::default_dir, |entry| Meta::of_entry(&entry));
        let top = Dir { meta: top, lower: !snapshot.layers.is_empty(), opaque: false };
        let dirs = Mutex::new(HashMap::from([(RelPath::root(), top)]));
        Ok(Self {
            shared: shared.clone(),
            base,
            snapshot,
            scratch,
            root,
            dirs,
            now: shared.now(),
            left_out: AtomicUsize::new(0),
        })
    }

    /// The same again, to be changed independently.
    pub(crate) fn duplicate(&self) -> Result<Self> {
        self.settle()?;
        let copy = Self::new(&self.shared, self.snapshot.clone())?;
        let tar_path = copy.scratch.path().join("tar");
        let fail = |error: std::io::Error| PortError::io("write", &tar_path, error);
        let mut tar =
            std::fs::File::options().create_new(true).read(true).write(true).open(&tar_path).map_err(fail)?;
        let own =
            sys::open_at(&self.root, b".", sys::DIR).map_err(|e| failed("open", &RelPath::root(), e))?;
        crate::write_tar::write_tar(own, &self.shared.maker, None, &mut tar)?;
        std::io::Seek::rewind(&mut tar).map_err(fail)?;
        let root =
            sys::open_at(&copy.root, b".", sys::DIR).map_err(|e| failed("open", &RelPath::root(), e))?;
        let cancel = rbuild_ports::CancelToken::new();
        crate::unpack::unpack(root, &self.shared.maker, &mut tar, &Nothing, &cancel)?;
        *copy.lock() = self.lock().clone();
        Ok(copy)
    }

    /// What is there now, to be read while nothing changes it.
    pub(crate) fn freeze(&self) -> Result<Arc<LayerView>> {
        self.settle()?;
        let top =
            sys::open_at(&self.root, b".", sys::DIR).map_err(|e| failed("open", &RelPath::root(), e))?;
        self.shared.view_with(Some(top), &self.snapshot.layers)
    }

    /// Makes the layer visible.
    pub(crate) fn seal(self) -> Result<(Snapshot, CommittedLayer)> {
        self.settle()?;
        let Self { shared, snapshot, scratch, root, .. } = self;
        let count = count(root)?;
        let layer = shared.new_layer_id()?;
        (shared.pin)(&layer)?;
        if !publish(scratch.dir(), UPPER, &shared.layers, &layer)? {
            return Err(PortError::new(ErrorKind::Internal, format!("two layers are called {layer}")));
        }
        Ok((snapshot.with(layer.clone()), committed(layer, count)))
    }

    /// Moves the layer's directory to `name` in `dir`, which must not exist.
    pub(crate) fn move_to(self, dir: impl AsFd, name: &str) -> Result<()> {
        self.settle()?;
        fs::renameat(self.scratch.dir(), UPPER, dir, name).map_err(|e| PortError::io("create", name, e))
    }

    /// Gives what has no other time this one.
    pub(crate) fn set_now(&mut self, now: Time) {
        self.now = now;
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// What is at `path`, links not followed.
    pub(crate) fn kind(&self, path: &RelPath) -> Result<Option<Kind>> {
        let source = self.locate(&self.lock(), path)?;
        match source {
            Source::Nowhere => Ok(None),
            Source::Base => self.base.kind(path),
            Source::Layer(FileType::Directory) => Ok(Some(Kind::Dir)),
            Source::Layer(FileType::Symlink) => {
                let dir = self.open_dir(&path.parent().unwrap_or_default())?;
                let target = sys::read_link(&dir, path.file_name().unwrap_or_default());
                Ok(Some(Kind::Symlink { target: target.map_err(|e| failed("read", path, e))? }))
            }
            Source::Layer(FileType::RegularFile) => Ok(Some(Kind::File { size: 0 })),
            Source::Layer(_) => Ok(Some(Kind::Fifo)),
        }
    }

    /// What is at `path` with its metadata.
    pub(crate) fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        if let Some(dir) = self.lock().get(path) {
            return Ok(Some(dir.meta.clone().into_entry(path.clone(), Kind::Dir)));
        }
        let Some(kind) = self.kind(path)? else { return Ok(None) };
        if let Source::Base = self.locate(&self.lock(), path)? {
            return self.base.lookup(path);
        }
        let dir = self.open_dir(&path.parent().unwrap_or_default())?;
        let name = path.file_name().unwrap_or_default();
        let read = || {
            let stat = sys::stat_at(&dir, name)?.ok_or(Errno::NOENT)?;
            Meta::read(&stat, Place::At(dir.as_fd(), name))
        };
        Ok(Some(read().map_err(|e: Errno| failed("read", path, e))?.into_entry(path.clone(), kind)))
    }

    /// The place `path` leads to, links followed inside the tree, the last component too if `follow_last`.
    pub(crate) fn resolve(&self, path: &[u8], follow_last: bool) -> Result<RelPath> {
        resolve(path, follow_last, &|path| self.kind(path))
    }

    /// The names in the directory at `path`, sorted.
    pub(crate) fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        self.freeze()?.children(path)
    }

    /// Opens a directory that exists, copied up if need be.
    pub(crate) fn enter(&self, path: &RelPath) -> Result<Handle> {
        let lower = {
            let mut dirs = self.lock();
            self.copy_up(&mut dirs, path)?;
            dirs.get(path).is_some_and(|dir| dir.lower)
        };
        Ok(Handle { path: path.clone(), fd: self.open_dir(path)?, lower })
    }

    /// Makes a directory where nothing is, in a directory that exists.
    pub(crate) fn make_dir(&self, path: &RelPath, meta: Meta) -> Result<()> {
        refuse_whiteout_name(path)?;
        let mut dirs = self.lock();
        let parent = path.parent().unwrap_or_default();
        self.copy_up(&mut dirs, &parent)?;
        self.make_dir_in(&mut dirs, &parent, path, meta)
    }

    /// Changes the metadata of a directory that exists.
    pub(crate) fn change_dir(&self, path: &RelPath, change: impl FnOnce(&mut Meta)) -> Result<()> {
        let mut dirs = self.lock();
        self.copy_up(&mut dirs, path)?;
        if let Some(dir) = dirs.get_mut(path) {
            change(&mut dir.meta);
        }
        Ok(())
    }

    /// Makes the directory at `path` and those above it where they are missing; says which it made.
    pub(crate) fn make_all(&self, path: &RelPath, meta: &Meta) -> Result<()> {
        let mut above: Vec<RelPath> = path.ancestors().collect();
        above.reverse();
        for dir in above.iter().chain([path]) {
            match self.kind(dir)? {
                Some(Kind::Dir) => {}
                None => self.make_dir(dir, meta.clone())?,
                Some(_) => {
                    let error = invalid(format!("cannot make the directory {dir}: not a directory"));
                    return Err(
                        error.help(format!("{dir} is there and no directory: is the destination right?"))
                    );
                }
            }
        }
        Ok(())
    }

    /// Makes something that is no directory in an open directory with `make`, in the place of what is there.
    /// A directory in the way is an error, or replaced if `replace`.
    pub(crate) fn place<T>(
        &self,
        handle: &Handle,
        name: &[u8],
        replace: bool,
        make: impl Fn(&OwnedFd) -> std::result::Result<T, Errno>,
    ) -> Result<T> {
        let path = handle.path.child(name).map_err(|e| invalid(e.to_string()))?;
        refuse_whiteout_name(&path)?;
        let fail = |error: Errno| failed("create", &path, error);
        let mut hidden = false;
        let made = match make(&handle.fd) {
            Err(Errno::EXIST) => {
                let stat = sys::stat_at(&handle.fd, name).map_err(fail)?;
                hidden = stat.as_ref().is_some_and(sys::is_whiteout);
                if stat.is_some_and(|stat| sys::file_type(&stat) == FileType::Directory) {
                    if !replace {
                        return Err(replaces_dir(&path));
                    }
                    self.lock().retain(|dir, _| !dir.starts_with(&path));
                }
                remove_tree(&handle.fd, name).map_err(fail)?;
                make(&handle.fd).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
        if handle.lower && !hidden && !replace && self.base.kind(&path)? == Some(Kind::Dir) {
            remove_tree(&handle.fd, name).map_err(fail)?;
            return Err(replaces_dir(&path));
        }
        Ok(made)
    }

    /// Makes a regular file with metadata; `write` gives it content.
    pub(crate) fn file<T>(
        &self,
        handle: &Handle,
        name: &[u8],
        replace: bool,
        meta: &Meta,
        write: impl FnOnce(&OwnedFd) -> Result<T>,
    ) -> Result<T> {
        let maker = &self.shared.maker;
        let file = self.place(handle, name, replace, |dir| maker.file(dir, name, meta.mode))?;
        let out = write(&file)?;
        maker.finish_file(&file, meta).map_err(|e| {
            let path = handle.path.child(name).unwrap_or_default();
            failed("set the owner, mode or attributes of", &path, e)
        })?;
        Ok(out)
    }

    /// Makes a link or node with metadata.
    pub(crate) fn other(
        &self,
        handle: &Handle,
        name: &[u8],
        replace: bool,
        kind: &Kind,
        meta: &Meta,
    ) -> Result<()> {
        let maker = &self.shared.maker;
        if let Kind::Symlink { target } = kind {
            return self.place(handle, name, replace, |dir| maker.symlink(dir, name, target, meta));
        }
        if let Kind::CharDevice { major: 0, minor: 0 } = kind {
            let path = handle.path.child(name).unwrap_or_default();
            let message = format!("{path} is a character device 0:0, which means a deleted file in a layer");
            return Err(PortError::new(ErrorKind::Unsupported, message));
        }
        if !self.place(handle, name, replace, |dir| maker.node(dir, name, kind, meta))? {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// How many devices could not be made since this was asked last.
    pub(crate) fn take_left_out(&self) -> usize {
        self.left_out.swap(0, Ordering::Relaxed)
    }

    /// Removes what is at `path`. Nothing there is no error.
    pub(crate) fn remove(&self, path: &RelPath) -> Result<()> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(invalid("the root directory cannot be removed"));
        };
        let source = self.locate(&self.lock(), path)?;
        if let Source::Nowhere = source {
            return Ok(());
        }
        let handle = self.enter(&parent)?;
        if let Source::Layer(_) = source {
            self.lock().retain(|dir, _| !dir.starts_with(path));
            remove_tree(&handle.fd, name).map_err(|e| failed("remove", path, e))?;
        }
        if handle.lower && self.base.kind(path)?.is_some() {
            self.shared.maker.whiteout(&handle.fd, name).map_err(|e| failed("remove", path, e))?;
        }
        Ok(())
    }

    /// Brings a file or link of the base into the layer as it is; one that is there already stays.
    pub(crate) fn bring_up(&self, path: &RelPath) -> Result<Handle> {
        let handle = self.enter(&path.parent().unwrap_or_default())?;
        let name = path.file_name().unwrap_or_default();
        if let Source::Base = self.locate(&self.lock(), path)?
            && let Some(entry) = self.base.lookup(path)?
        {
            let meta = Meta::of_entry(&entry);
            match &entry.kind {
                Kind::File { .. } => {
                    let source = self.base.open(path)?;
                    self.file(&handle, name, false, &meta, |file| {
                        crate::content::copy_content(source.as_fd(), file.as_fd())
                            .map_err(|e| failed("copy up", path, e))
                    })?;
                }
                Kind::Dir => {}
                kind => self.other(&handle, name, false, kind, &meta)?,
            }
        }
        Ok(handle)
    }

    fn lock(&self) -> MutexGuard<'_, Dirs> {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open_dir(&self, path: &RelPath) -> Result<OwnedFd> {
        sys::open_beneath(&self.root, path, sys::DIR).map_err(|e| failed("open", path, e))
    }

    fn locate(&self, dirs: &Dirs, path: &RelPath) -> Result<Source> {
        if dirs.contains_key(path) {
            return Ok(Source::Layer(FileType::Directory));
        }
        // The deepest directory of the layer above it, and the name in there that leads on.
        let Some(above) = path.ancestors().find(|dir| dirs.contains_key(dir)) else {
            return Ok(Source::Nowhere);
        };
        let rest = path.strip_prefix(&above).unwrap_or_default();
        let name = rest.components().next().unwrap_or_default();
        let dir = self.open_dir(&above)?;
        let stat = sys::stat_at(&dir, name).map_err(|e| failed("read", path, e))?;
        Ok(match stat {
            Some(stat) if rest.depth() == 1 && !sys::is_whiteout(&stat) => {
                Source::Layer(sys::file_type(&stat))
            }
            None if dirs.get(&above).is_some_and(|dir| dir.lower) && self.base.kind(path)?.is_some() => {
                Source::Base
            }
            _ => Source::Nowhere,
        })
    }

    /// Makes sure that the layer has the directory at `path`, which exists in the layer or in the base.
    fn copy_up(&self, dirs: &mut Dirs, path: &RelPath) -> Result<()> {
        if dirs.contains_key(path) {
            return Ok(());
        }
        let mut here = RelPath::root();
        for component in path.components() {
            let dir = here.child(component).map_err(|e| invalid(e.to_string()))?;
            if !dirs.contains_key(&dir) {
                let shows = dirs.get(&here).is_some_and(|dir| dir.lower);
                let entry = if shows { self.base.lookup(&dir)? } else { None };
                let Some(entry) = entry.filter(Entry::is_dir) else {
                    return Err(PortError::new(ErrorKind::NotFound, format!("{dir} is no directory")));
                };
                let parent = self.open_dir(&here)?;
                self.shared.maker.dir(&parent, component).map_err(|e| failed("copy up", &dir, e))?;
                let state = Dir { meta: Meta::of_entry(&entry), lower: true, opaque: false };
                dirs.insert(dir.clone(), state);
            }
            here = dir;
        }
        Ok(())
    }

    fn make_dir_in(&self, dirs: &mut Dirs, parent: &RelPath, path: &RelPath, meta: Meta) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let fd = self.open_dir(parent)?;
        let fail = |error: Errno| failed("create", path, error);
        let mut opaque = false;
        match self.shared.maker.dir(&fd, name) {
            Err(Errno::EXIST) => {
                let stat = sys::stat_at(&fd, name).map_err(fail)?;
                if !stat.is_some_and(|stat| sys::is_whiteout(&stat)) {
                    return Err(fail(Errno::EXIST));
                }
                fs::unlinkat(&fd, name, AtFlags::empty()).map_err(fail)?;
                let shows = dirs.get(parent).is_some_and(|dir| dir.lower);
                opaque = shows && self.base.kind(path)? == Some(Kind::Dir);
                self.shared.maker.dir(&fd, name).map_err(fail)?;
            }
            other => other.map_err(fail)?,
        }
        dirs.insert(path.clone(), Dir { meta, lower: false, opaque });
        Ok(())
    }

    /// Gives all directories their metadata.
    fn settle(&self) -> Result<()> {
        let dirs = self.lock();
        let mut all: Vec<(&RelPath, &Dir)> = dirs.iter().collect();
        all.sort_unstable_by(|a, b| b.0.cmp(a.0));
        let finish = |(path, state): &(&RelPath, &Dir)| {
            let dir = self.open_dir(path)?;
            let done = self.shared.maker.finish_dir(&dir, &state.meta, state.opaque);
            done.map_err(|e| failed("set the owner, mode or attributes of", path, e))
        };
        if all.len() < 64 {
            return all.iter().try_for_each(finish);
        }
        self.shared.pool.run(|| all.par_iter().try_for_each(finish))
    }
}

fn replaces_dir(path: &RelPath) -> PortError {
    invalid(format!("cannot replace the directory {path} with a file"))
}

/// A layer that is complete in itself needs nothing below it.
struct Nothing;

impl crate::unpack::Below for Nothing {
    fn view(&self) -> Result<Arc<LayerView>> {
        Err(PortError::new(ErrorKind::Internal, "a layer that was just written lacks directories"))
    }
}
