//! What a step touched and left as it was. The overlay file system copies up whatever is opened for writing, chowned or
//! linked; as in BuildKit, a layer does not have what is the same below. The times of directories stay what the step left.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use rbuild_ports::{Result, View};
use rbuild_tree::{Kind, RelPath, Time};
use rustix::fs::{self, AtFlags};
use rustix::io::Errno;

use crate::meta::{Meta, failed};
use crate::sys::{self, Place};
use crate::view::{LayerView, kind_at};
use crate::walk::Step;

/// Removes from a directory that was written over `below` what is the same there.
pub(crate) struct Unchanged<'a> {
    below: &'a LayerView,
    root: OwnedFd,
    /// Directories that are the same, those above first; they go if nothing is left in them.
    dirs: Vec<RelPath>,
    /// The times of directories in which something was removed, before that.
    times: BTreeMap<RelPath, Time>,
}

impl<'a> Unchanged<'a> {
    /// Of the directory `root`.
    pub(crate) fn new(root: impl AsFd, below: &'a LayerView) -> Result<Self> {
        let root = sys::open_at(root, b".", sys::DIR).map_err(|e| failed("open", &RelPath::root(), e))?;
        Ok(Self { below, root, dirs: vec![], times: BTreeMap::new() })
    }

    /// Looks at something that is no directory, in a directory that shows what is below; says whether it was removed.
    pub(crate) fn leave_out(&mut self, step: &Step<'_>) -> Result<bool> {
        let fail = |error: Errno| failed("compare", step.path, error);
        let Some(stat) = sys::stat_at(step.dir, step.name).map_err(fail)? else { return Ok(false) };
        if sys::is_whiteout(&stat) {
            return Ok(false);
        }
        let Some(old) = self.below.lookup(step.path)? else { return Ok(false) };
        if old.mtime != sys::mtime_of(&stat)
            || kind_at(step.dir, &stat, step.name).map_err(fail)?.as_ref() != Some(&old.kind)
            || Meta::read(&stat, Place::At(step.dir, step.name)).map_err(fail)? != Meta::of_entry(&old)
            || !self.same_content(step, &old.kind)?
        {
            return Ok(false);
        }
        let parent = step.path.parent().unwrap_or_default();
        self.keep_time(parent)?;
        fs::unlinkat(step.dir, step.name, AtFlags::empty()).map_err(fail)?;
        Ok(true)
    }

    /// Looks at a directory that shows what is below.
    pub(crate) fn dir(&mut self, step: &Step<'_>) -> Result<()> {
        let fail = |error: Errno| failed("compare", step.path, error);
        let (Some(stat), Some(old)) =
            (sys::stat_at(step.dir, step.name).map_err(fail)?, self.below.lookup(step.path)?)
        else {
            return Ok(());
        };
        let new = Meta::read(&stat, Place::At(step.dir, step.name)).map_err(fail)?;
        if (Meta { mtime: old.mtime, ..new }) == Meta::of_entry(&old) {
            self.dirs.push(step.path.clone());
        }
        Ok(())
    }

    /// Removes the directories in which nothing is left, and gives the others their times back; says how many went.
    pub(crate) fn finish(mut self) -> Result<u64> {
        let mut removed = 0;
        while let Some(path) = self.dirs.pop() {
            let (parent, name) = (path.parent().unwrap_or_default(), path.file_name().unwrap_or_default());
            let fail = |error: Errno| failed("remove", &path, error);
            if !sys::list(sys::open_beneath(&self.root, &path, sys::DIR).map_err(fail)?)
                .map_err(fail)?
                .is_empty()
            {
                continue;
            }
            self.keep_time(parent.clone())?;
            let dir = sys::open_beneath(&self.root, &parent, sys::DIR).map_err(fail)?;
            fs::unlinkat(&dir, name, AtFlags::REMOVEDIR).map_err(fail)?;
            self.times.remove(&path);
            removed += 1;
        }
        for (path, time) in &self.times {
            sys::open_beneath(&self.root, path, sys::DIR)
                .and_then(|dir| fs::futimens(&dir, &sys::both(*time)))
                .map_err(|e| failed("set the time of", path, e))?;
        }
        Ok(removed)
    }

    fn keep_time(&mut self, dir: RelPath) -> Result<()> {
        if self.times.contains_key(&dir) {
            return Ok(());
        }
        let time = sys::open_beneath(&self.root, &dir, sys::DIR)
            .and_then(|fd| fs::fstat(&fd))
            .map(|stat| sys::mtime_of(&stat))
            .map_err(|e| failed("read", &dir, e))?;
        self.times.insert(dir, time);
        Ok(())
    }

    fn same_content(&self, step: &Step<'_>, kind: &Kind) -> Result<bool> {
        if !matches!(kind, Kind::File { size } if *size > 0) {
            return Ok(true);
        }
        let new = sys::open_at(step.dir, step.name, sys::READ).map_err(|e| failed("open", step.path, e))?;
        equal(File::from(new), self.below.open(step.path)?).map_err(|e| failed("read", step.path, e))
    }
}

/// Whether two files that are equally long have the same bytes.
fn equal(mut a: File, mut b: File) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = a.read(&mut left)?;
        let (Some(left), Some(right)) = (left.get(..n), right.get_mut(..n)) else { return Ok(false) };
        match b.read_exact(right) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            other => other?,
        }
        if left != right || n == 0 {
            return Ok(left == right);
        }
    }
}
