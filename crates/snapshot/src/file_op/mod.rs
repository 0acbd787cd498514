//! File operations: chains of copy, mkfile, mkdir, rm and symlink on snapshots, written straight into new layers.
//! Actions that follow each other on one base make one layer; an action's result that is needed twice is
//! duplicated.

mod again;
#[cfg(test)]
mod again_tests;
mod archive;
mod copy;
mod dest;
mod mode;
mod owner;
mod small;
#[cfg(test)]
mod tests;
mod tree;

use std::path::Path;
use std::sync::Arc;

use rbuild_graph::{Chown, CopyAction, FileAction, FileKind, FileOp, UserRef};
use rbuild_ports::{
    CancelToken, CommittedLayer, FileInput, PortError, Progress, Result, SilentProgress, Snapshot, View,
};
use rbuild_tree::Time;
use rustix::fs;

use self::again::Again;
use self::copy::Copy;
use self::dest::Dest;
use crate::meta::Meta;
use crate::store::Shared;
use crate::sys;
use crate::unpack::invalid;

/// Runs `op`; the results are in the order of its outputs.
pub(crate) fn run(
    shared: &Arc<Shared>,
    op: &FileOp,
    inputs: &[FileInput],
    progress: &dyn Progress,
    cancel: &CancelToken,
) -> Result<Vec<(Snapshot, CommittedLayer)>> {
    let outputs = outputs(op)?;
    let again = Again::of(shared, op, inputs);
    let mut chain = Chain { shared, op, inputs, progress, cancel, again, results: Vec::new() };
    for index in 0..op.actions.len() {
        chain.step(index)?;
    }
    let Chain { mut results, again, .. } = chain;
    let mut out = Vec::new();
    for index in outputs {
        let dest = results.get_mut(index).and_then(Option::take);
        out.push(
            dest.ok_or_else(|| invalid("an output of a file operation is used up by a later action"))?
                .seal()?,
        );
    }
    if let (Some(again), [(_, made)]) = (again, out.as_slice()) {
        again.save(&made.layer);
    }
    Ok(out)
}

/// The action behind each output.
fn outputs(op: &FileOp) -> Result<Vec<usize>> {
    let count = op.actions.iter().filter(|action| action.output.is_some()).count();
    if count == 0 {
        return Err(invalid("a file operation without outputs"));
    }
    (0..count)
        .map(|output| {
            let mut makers = (0..op.actions.len()).filter(|index| {
                op.actions.get(*index).and_then(|a| a.output).is_some_and(|o| o as usize == output)
            });
            match (makers.next(), makers.next()) {
                (Some(index), None) => Ok(index),
                _ => Err(invalid(format!("output {output} of a file operation is missing or there twice"))),
            }
        })
        .collect()
}

/// Actions in order, with what they made so far.
struct Chain<'a> {
    shared: &'a Arc<Shared>,
    op: &'a FileOp,
    inputs: &'a [FileInput],
    progress: &'a dyn Progress,
    cancel: &'a CancelToken,
    again: Option<Again>,
    results: Vec<Option<Dest>>,
}

impl Chain<'_> {
    fn step(&mut self, index: usize) -> Result<()> {
        self.cancel.check()?;
        let Some(action) = self.op.actions.get(index) else { return Ok(()) };
        let owner = owner::owner(chown(&action.kind), &|input| match input {
            None => Err(invalid("invalid user index: -1")
                .help("a name needs a base image with /etc/passwd; use numbers")),
            input => self.tree(input),
        })?;
        let from = match action.kind {
            FileKind::Copy(_) => Some(self.tree(action.secondary_input)?),
            _ => None,
        };
        let mut dest = self.dest(index, action)?;
        if let Some(epoch) = self.op.epoch {
            dest.set_now(Time::from_secs(epoch));
        }
        match (&action.kind, &from) {
            (FileKind::Copy(copy), Some(from)) => {
                let (progress, cancel, again) = (self.progress, self.cancel, self.again.as_ref());
                copy::copy(&dest, &Copy { action: copy, from, owner, progress, cancel, again })?;
            }
            (FileKind::Mkfile(mkfile), _) => small::mkfile(&dest, mkfile, owner)?,
            (FileKind::Mkdir(mkdir), _) => small::mkdir(&dest, mkdir, owner)?,
            (FileKind::Symlink(symlink), _) => small::symlink(&dest, symlink, owner)?,
            (FileKind::Rm(rm), _) => small::rm(&dest, rm)?,
            (FileKind::Copy(_), None) => {}
        }
        self.results.push(Some(dest));
        Ok(())
    }

    /// The tree at an index, to be read.
    fn tree(&self, index: Option<u32>) -> Result<Arc<dyn View>> {
        let Some(index) = index.map(|index| index as usize) else {
            return Ok(self.shared.view(&[])?);
        };
        match self.inputs.get(index) {
            Some(FileInput::Snapshot(snapshot)) => Ok(self.shared.view(&snapshot.layers)?),
            Some(FileInput::View(view)) => Ok(view.clone()),
            None => Ok(self.earlier(index)?.freeze()?),
        }
    }

    fn earlier(&self, index: usize) -> Result<&Dest> {
        let result = self.results.get(index - self.inputs.len()).and_then(Option::as_ref);
        result.ok_or_else(|| {
            invalid(format!("index {index} of a file operation is no input and no earlier action"))
        })
    }

    /// What action `index` changes.
    fn dest(&mut self, index: usize, action: &FileAction) -> Result<Dest> {
        let Some(input) = action.input.map(|input| input as usize) else {
            return Dest::new(self.shared, Snapshot::default());
        };
        match self.inputs.get(input) {
            Some(FileInput::Snapshot(snapshot)) => Dest::new(self.shared, snapshot.clone()),
            Some(FileInput::View(view)) => {
                let dest = Dest::new(self.shared, Snapshot::default())?;
                copy_all(&dest, view, self.progress, self.cancel)?;
                Ok(dest)
            }
            None => {
                let needed = self.is_needed(input, index, action);
                let earlier = self.earlier(input)?;
                if needed {
                    return earlier.duplicate();
                }
                let slot = self.results.get_mut(input - self.inputs.len()).and_then(Option::take);
                slot.ok_or_else(|| invalid(format!("index {input} of a file operation is used up")))
            }
        }
    }

    /// Whether what is at `input` is needed as it is: as an output, by a later action, or as the source of this one.
    fn is_needed(&self, input: usize, index: usize, action: &FileAction) -> bool {
        let is = |other: Option<u32>| other.is_some_and(|other| other as usize == input);
        let maker = self.op.actions.get(input - self.inputs.len());
        let later = self.op.actions.iter().skip(index + 1).any(|action| {
            let names = chown(&action.kind).is_some_and(|Chown { user, group }| {
                let by_name =
                    |user: &Option<UserRef>| matches!(user, Some(UserRef::Name { input, .. }) if is(*input));
                by_name(user) || by_name(group)
            });
            is(action.input) || is(action.secondary_input) || names
        });
        maker.is_some_and(|maker| maker.output.is_some()) || is(action.secondary_input) || later
    }
}

fn chown(kind: &FileKind) -> Option<&Chown> {
    match kind {
        FileKind::Copy(action) => action.owner.as_ref(),
        FileKind::Mkfile(action) => action.owner.as_ref(),
        FileKind::Mkdir(action) => action.owner.as_ref(),
        FileKind::Symlink(action) => action.owner.as_ref(),
        FileKind::Rm(_) => None,
    }
}

/// Copies everything in `from` to the root.
fn copy_all(dest: &Dest, from: &Arc<dyn View>, progress: &dyn Progress, cancel: &CancelToken) -> Result<()> {
    let action = CopyAction {
        src: "/".to_owned(),
        dest: "/".to_owned(),
        dir_copy_contents: true,
        create_dest_path: true,
        ..CopyAction::default()
    };
    copy::copy(dest, &Copy { action: &action, from, owner: None, progress, cancel, again: None })
}

/// Makes the directory `path`, which does not exist, with the content of `init`.
pub(crate) fn fill_directory(
    shared: &Arc<Shared>,
    init: Option<&Snapshot>,
    path: &Path,
    cancel: &CancelToken,
) -> Result<()> {
    let dest = Dest::new(shared, Snapshot::default())?;
    if let Some(init) = init {
        let from: Arc<dyn View> = shared.view(&init.layers)?;
        if let Some(root) = from.lookup(&rbuild_tree::RelPath::root())? {
            dest.change_dir(&root.path, |there| *there = Meta::of_entry(&root))?;
        }
        copy_all(&dest, &from, &SilentProgress, cancel)?;
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name().and_then(|name| name.to_str())) else {
        return Err(invalid(format!("{} is no place for a directory", path.display())));
    };
    let parent = sys::open_at(fs::CWD, parent.as_os_str().as_encoded_bytes(), sys::DIR)
        .map_err(|e| PortError::io("open", parent, e))?;
    dest.move_to(parent, name)
}
