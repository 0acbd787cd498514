//! The end of unpacking a layer: what could not be known from its tar alone. Directories that the tar implied get
//! the metadata of the layers below, or move to where a link below leads; links into lower layers are copied up;
//! then every directory gets its metadata.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rbuild_ports::{Result, View};
use rbuild_tree::{Entry, Kind, RelPath};
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::{Dir, Unpacker, invalid};
use crate::content::copy_content;
use crate::meta::{Meta, failed};
use crate::remove::remove_tree;
use crate::resolve::resolve;
use crate::sys;
use crate::view::LayerView;

/// The layers below the one that is unpacked. Asking may wait until they are there.
pub(crate) trait Below {
    /// What they show together.
    fn view(&self) -> Result<Arc<LayerView>>;
}

/// Where directories wait while they move.
const ASIDE: &[u8] = b".wh..wh.moving";

impl Unpacker<'_> {
    pub(super) fn finish(mut self, below: &dyn Below) -> Result<()> {
        self.current = None;
        let implied: BTreeSet<RelPath> =
            self.dirs.iter().filter(|(_, dir)| !dir.stated).map(|(path, _)| path.clone()).collect();
        let hides_all = self.dirs.get(&RelPath::root()).is_some_and(|top| top.opaque);
        if !implied.is_empty() || !self.links.is_empty() || hides_all {
            let below = below.view()?;
            if hides_all {
                self.hide_all(&below)?;
            }
            self.settle(implied, &below)?;
            self.link_late(&below)?;
        }
        self.finish_dirs()
    }

    /// An opaque root: the overlay file system knows none, so everything below is deleted by name.
    fn hide_all(&mut self, below: &LayerView) -> Result<()> {
        if let Some(top) = self.dirs.get_mut(&RelPath::root()) {
            top.opaque = false;
        }
        self.enter(&RelPath::root())?;
        for name in below.children(&RelPath::root())? {
            let own = sys::stat_at(self.here()?, &name).map_err(|e| failed("read", &RelPath::root(), e))?;
            if own.is_none_or(|stat| sys::file_type(&stat) == FileType::Directory) {
                self.whiteout(&RelPath::root(), &name)?;
            }
        }
        Ok(())
    }

    /// Gives directories without an entry what the layers below say about them, from the top down.
    fn settle(&mut self, mut implied: BTreeSet<RelPath>, below: &LayerView) -> Result<()> {
        while let Some(path) = implied.pop_first() {
            if self.dirs.get(&path).is_none_or(|dir| dir.stated) || self.is_hidden(&path) {
                continue;
            }
            match below.lookup(&path)? {
                Some(entry) if entry.is_dir() => {
                    if let Some(dir) = self.dirs.get_mut(&path) {
                        dir.meta = Meta::of_entry(&entry);
                    }
                }
                Some(Entry { kind: Kind::Symlink { .. }, .. }) => self.follow(&path, &mut implied, below)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether this layer hides what the layers below have at `path`.
    fn is_hidden(&self, path: &RelPath) -> bool {
        let reborn = self.dirs.get(path).is_some_and(|dir| dir.reborn);
        reborn || path.ancestors().any(|above| self.dirs.get(&above).is_some_and(|dir| dir.opaque))
    }

    /// `path` is a link below: what this layer put there belongs where the link leads.
    fn follow(&mut self, path: &RelPath, implied: &mut BTreeSet<RelPath>, below: &LayerView) -> Result<()> {
        let (parent, name) = (path.parent().unwrap_or_default(), path.file_name().unwrap_or_default());
        let from = self.open(&parent)?;
        remove_tree(&self.root, ASIDE).map_err(|e| failed("move", path, e))?;
        fs::renameat(&from, name, &self.root, ASIDE).map_err(|e| failed("move", path, e))?;
        let moved: Vec<(RelPath, Dir)> = self.dirs.extract_if(|dir, _| dir.starts_with(path)).collect();
        implied.retain(|dir| !dir.starts_with(path));
        let target = resolve(path.as_bytes(), true, &|path| self.merged(path, below))?;
        self.imply(&target)?;
        let aside = sys::open_at(&self.root, ASIDE, sys::DIR).map_err(|e| failed("move", path, e))?;
        for above in target.ancestors().chain([target.clone()]) {
            implied.insert(above);
        }
        for (dir, state) in moved {
            let rest = dir.strip_prefix(path).unwrap_or_default();
            if rest.is_root() {
                if let Some(dir) = self.dirs.get_mut(&target) {
                    dir.opaque |= state.opaque;
                }
                continue;
            }
            let here = target.join(&rest);
            if !state.stated {
                implied.insert(here.clone());
            }
            match self.dirs.get_mut(&here) {
                None => {
                    self.dirs.insert(here, state);
                }
                // Both say something about one directory: what has an entry says what it is.
                Some(there) => {
                    let (opaque, reborn) = (there.opaque || state.opaque, there.reborn || state.reborn);
                    if state.stated {
                        *there = state;
                    }
                    (there.opaque, there.reborn) = (opaque, reborn);
                }
            }
        }
        self.merge(&aside, &target)?;
        remove_tree(&self.root, ASIDE).map_err(|e| failed("move", path, e))
    }

    /// Moves everything in the open directory `from` into `to`; what is moved wins.
    fn merge(&mut self, from: &OwnedFd, to: &RelPath) -> Result<()> {
        let into = self.open(to)?;
        for (name, kind) in sys::list(from).map_err(|e| failed("list", to, e))? {
            let path = to.child(&name).map_err(|e| invalid(e.to_string()))?;
            let old = sys::stat_at(&into, &name).map_err(|e| failed("read", &path, e))?;
            let old_dir = old.is_some_and(|stat| sys::file_type(&stat) == FileType::Directory);
            if kind == FileType::Directory && old_dir {
                let inner = sys::open_at(from, &name, sys::DIR).map_err(|e| failed("open", &path, e))?;
                self.merge(&inner, &path)?;
                continue;
            }
            let moved = sys::stat_at(from, &name).map_err(|e| failed("read", &path, e))?;
            if moved.is_some_and(|stat| sys::is_whiteout(&stat)) && old.is_some() {
                // A deletion counts for the layers below only.
                self.rebear(&path);
                continue;
            }
            if old.is_some_and(|stat| sys::is_whiteout(&stat)) {
                self.rebear(&path);
            }
            if old_dir {
                self.dirs.retain(|dir, _| !dir.starts_with(&path));
            }
            remove_tree(&into, &name).map_err(|e| failed("replace", &path, e))?;
            fs::renameat(from, name.as_slice(), &into, name.as_slice())
                .map_err(|e| failed("move", &path, e))?;
        }
        Ok(())
    }

    /// A directory of this layer in whose place the layers below have something that is deleted.
    fn rebear(&mut self, path: &RelPath) {
        if let Some(dir) = self.dirs.get_mut(path) {
            dir.opaque = true;
            dir.reborn = true;
        }
    }

    /// What is at `path` when this layer lies on those below.
    fn merged(&self, path: &RelPath, below: &LayerView) -> Result<Option<Kind>> {
        match self.kind(path)? {
            Some(Kind::CharDevice { major: 0, minor: 0 }) => return Ok(None),
            Some(kind) => return Ok(Some(kind)),
            None => {}
        }
        let above: Vec<RelPath> = path.ancestors().collect();
        for dir in above.iter().rev() {
            match self.kind(dir)? {
                Some(Kind::Dir) if self.dirs.get(dir).is_some_and(|dir| dir.opaque) => return Ok(None),
                Some(Kind::Dir) | None => {}
                Some(_) => return Ok(None),
            }
        }
        below.kind(path)
    }

    /// Links whose target came later in the tar, or lies in the layers below.
    fn link_late(&mut self, below: &LayerView) -> Result<()> {
        for (target, name) in std::mem::take(&mut self.links) {
            let place = self.leaf(&name, below)?;
            let parent = self.enter(&place.parent().unwrap_or_default())?;
            let leaf = place.file_name().unwrap_or_default().to_vec();
            let path = parent.child(&leaf).map_err(|e| invalid(e.to_string()))?;
            if self.kind(&path)?.is_some() {
                // A later entry of the same name.
                continue;
            }
            let real = self.leaf(&target, below)?;
            self.bring_up(&real, &target, &name, below)?;
            self.enter(&parent)?;
            let dir = self.open(&real.parent().unwrap_or_default())?;
            let old = real.file_name().unwrap_or_default();
            match fs::linkat(&dir, old, self.here()?, leaf.as_slice(), AtFlags::empty()) {
                Err(Errno::EXIST) => {
                    return Err(invalid(format!("{name} is a hard link to {target}, which it replaces")));
                }
                other => other.map_err(|e| failed("link", &path, e))?,
            }
        }
        Ok(())
    }

    /// Where `path` really is: links on the way are followed, itself not.
    fn leaf(&self, path: &RelPath, below: &LayerView) -> Result<RelPath> {
        resolve(path.as_bytes(), false, &|path| self.merged(path, below))
    }

    /// Makes sure that this layer has the file at `path`, copied from the layers below if need be.
    fn bring_up(
        &mut self,
        path: &RelPath,
        target: &RelPath,
        name: &RelPath,
        below: &LayerView,
    ) -> Result<()> {
        match self.kind(path)? {
            Some(Kind::Dir) => {
                return Err(invalid(format!("{name} is a hard link to the directory {target}")));
            }
            Some(Kind::CharDevice { major: 0, minor: 0 }) | None => {}
            Some(_) => return Ok(()),
        }
        let missing = || invalid(format!("{name} is a hard link to {target}, which does not exist"));
        self.merged(path, below)?.ok_or_else(missing)?;
        let entry = below.lookup(path)?.ok_or_else(missing)?;
        let parent = path.parent().unwrap_or_default();
        let implied: BTreeSet<RelPath> =
            path.ancestors().filter(|dir| !self.dirs.contains_key(dir)).collect();
        self.imply(&parent)?;
        self.settle(implied, below)?;
        let dir = self.open(&parent)?;
        copy_up(self, &dir, &entry, below)
    }

    fn open(&self, path: &RelPath) -> Result<OwnedFd> {
        sys::open_beneath(&self.root, path, sys::DIR).map_err(|e| failed("open", path, e))
    }

    /// Gives all directories their metadata. Nothing is made in them any more, so that times stay.
    fn finish_dirs(&self) -> Result<()> {
        let mut dirs: Vec<_> = self.dirs.iter().collect();
        dirs.sort_unstable_by(|a, b| b.0.cmp(a.0));
        for (path, state) in dirs {
            let dir = self.open(path)?;
            self.maker
                .finish_dir(&dir, &state.meta, state.opaque)
                .map_err(|e| failed("set the owner, mode or attributes of", path, e))?;
        }
        Ok(())
    }
}

fn copy_up(unpacker: &Unpacker<'_>, dir: &OwnedFd, entry: &Entry, below: &LayerView) -> Result<()> {
    let name = entry.path.file_name().unwrap_or_default();
    let meta = Meta::of_entry(entry);
    let maker = unpacker.maker;
    let fail = |error| failed("copy up", &entry.path, error);
    match &entry.kind {
        Kind::File { .. } => {
            let source: File = below.open(&entry.path)?;
            let file = maker.file(dir, name, meta.mode).map_err(fail)?;
            copy_content(source.as_fd(), file.as_fd()).map_err(fail)?;
            maker.finish_file(&file, &meta).map_err(fail)
        }
        Kind::Symlink { target } => maker.symlink(dir, name, target, &meta).map_err(fail),
        Kind::Dir | Kind::Hardlink { .. } => {
            Err(invalid(format!("a hard link to the directory {}", entry.path)))
        }
        node => maker.node(dir, name, node, &meta).map(drop).map_err(fail),
    }
}
