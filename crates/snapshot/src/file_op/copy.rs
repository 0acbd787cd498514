//! COPY and ADD: which sources, where to, and by which rules what is there is replaced. These follow BuildKit's
//! copier: the destination's own links are followed inside its tree, the contents of a directory go into a
//! destination that is made if missing, a file goes into a destination that is a directory.

use std::collections::HashSet;
use std::sync::Arc;

use rbuild_diag::nearest;
use rbuild_graph::CopyAction;
use rbuild_ports::{CancelToken, ErrorKind, PortError, Progress, Result, View};
use rbuild_tree::{Entry, Glob, Kind, PatternMatcher, RelPath, Time, Xattrs, split_wildcards};

use super::again::Again;
use super::archive;
use super::dest::Dest;
use super::mode::ModeChange;
use super::owner::Owner;
use super::tree::{FileJob, Stamp, TreeCopy};
use crate::meta::Meta;
use crate::resolve::resolve;
use crate::unpack::invalid;

/// What a copy reads and how.
pub(crate) struct Copy<'a> {
    pub(crate) action: &'a CopyAction,
    pub(crate) from: &'a Arc<dyn View>,
    pub(crate) owner: Option<Owner>,
    pub(crate) progress: &'a dyn Progress,
    pub(crate) cancel: &'a CancelToken,
    /// What was copied in an earlier build.
    pub(crate) again: Option<&'a Again>,
}

/// Performs a copy action on `dest`.
pub(crate) fn copy(dest: &Dest, copy: &Copy<'_>) -> Result<()> {
    let Copy { action, from, owner, progress, cancel, again } = copy;
    if !action.create_dest_path {
        let place = dest.resolve(action.dest.as_bytes(), true)?;
        if dest.kind(&place.parent().unwrap_or_default())? != Some(Kind::Dir) {
            let message = format!("the directory of {:?} does not exist", action.dest);
            return Err(PortError::new(ErrorKind::NotFound, message));
        }
    }
    let sources = sources(from.as_ref(), action)?;
    let stamp = Stamp {
        local: from.is_local(),
        owner: *owner,
        mode: ModeChange::new(action.mode, &action.mode_str)?,
        time: action.timestamp.map(Time::from_nanos),
    };
    let patterns = |list: &[String]| -> Result<Option<PatternMatcher>> {
        let matcher = PatternMatcher::new(list).map_err(|e| invalid(e.to_string()))?;
        Ok(if list.is_empty() { None } else { Some(matcher) })
    };
    let tree = TreeCopy {
        dest,
        from: from.as_ref(),
        include: patterns(&action.include)?,
        exclude: patterns(&action.exclude)?,
        stamp,
        replace: action.always_replace_existing,
        required: required(action)?,
        cancel,
        again: *again,
    };
    // Archives are unpacked in their turn; without them what does not collide is copied together.
    for together in sources.chunk_by(|_, _| !action.attempt_unpack) {
        copy_sources(copy, &tree, together)?;
    }
    match dest.take_left_out() {
        0 => {}
        count => progress.warn(&format!("{count} device nodes were left out: only root can make them")),
    }
    if let Some(missing) = tree.required.missing() {
        return Err(not_found(from.as_ref(), missing.as_bytes()));
    }
    Ok(())
}

/// Copies sources one after the other; files that do not get in each other's way together.
fn copy_sources(copy: &Copy<'_>, tree: &TreeCopy<'_>, sources: &[RelPath]) -> Result<()> {
    let action = copy.action;
    let mut jobs: Vec<FileJob> = Vec::new();
    let mut targets: HashSet<RelPath> = HashSet::new();
    for source in sources {
        copy.cancel.check()?;
        if action.attempt_unpack && archive::unpack_into(copy, tree.dest, source)? {
            continue;
        }
        let (entry, target) = prepare(copy, tree, source)?;
        if entry.is_dir() {
            tree.files(std::mem::take(&mut jobs))?;
            targets.clear();
            tree.directory(&entry, &target)?;
            continue;
        }
        if !targets.insert(target.clone()) {
            tree.files(std::mem::take(&mut jobs))?;
            targets = HashSet::from([target.clone()]);
        }
        jobs.push(FileJob { entry, target });
    }
    tree.files(jobs)
}

/// The source's entry, links followed as asked, and the path it is copied to. Directories up to there are made.
fn prepare(copy: &Copy<'_>, tree: &TreeCopy<'_>, source: &RelPath) -> Result<(Entry, RelPath)> {
    let Copy { action, from, owner, .. } = copy;
    let dest = tree.dest;
    let wanted = action.dest.as_bytes();
    let parents = Meta {
        mode: tree.stamp.mode.made_dirs(),
        uid: owner.map_or(0, |owner| owner.uid),
        gid: owner.map_or(0, |owner| owner.gid),
        mtime: tree.stamp.time.unwrap_or(dest.now()),
        xattrs: Xattrs::new(),
    };
    let into_directory = wanted.ends_with(b"/") || wanted.ends_with(b"/.") || matches!(wanted, b"" | b".");
    let ensured = dest.resolve(if into_directory { wanted } else { directory_of(wanted) }, true)?;
    dest.make_all(&ensured, &parents)?;
    let mut target = dest.resolve(wanted, true)?;

    let place = resolve(source.as_bytes(), action.follow_symlink, &|path| kind(from.as_ref(), path))?;
    let entry = from.lookup(&place)?.ok_or_else(|| not_found(from.as_ref(), source.as_bytes()))?;
    let there = dest.kind(&target)?;
    let beside =
        if entry.is_dir() { !action.dir_copy_contents && there.is_some() } else { there == Some(Kind::Dir) };
    if beside && let Some(name) = source.file_name() {
        target = target.child(name).map_err(|e| invalid(e.to_string()))?;
    }
    let contents = action.dir_copy_contents && entry.is_dir() && there.is_none();
    let holder = if contents { target.clone() } else { target.parent().unwrap_or_default() };
    dest.make_all(&holder, &parents)?;
    Ok((entry, target))
}

fn directory_of(path: &[u8]) -> &[u8] {
    let end = path.iter().rposition(|c| *c == b'/').map_or(0, |i| i + 1);
    path.get(..end).unwrap_or_default()
}

pub(crate) fn kind(view: &dyn View, path: &RelPath) -> Result<Option<Kind>> {
    Ok(view.lookup(path)?.map(|entry| entry.kind))
}

fn required(action: &CopyAction) -> Result<super::tree::Required> {
    let clean = |path: &String| RelPath::clean(path).map_err(|e| invalid(e.to_string()));
    let paths = action.required_paths.iter().map(clean).collect::<Result<_>>()?;
    Ok(super::tree::Required::new(&clean(&action.src)?, paths))
}

/// The paths that `src` names, in order.
fn sources(from: &dyn View, action: &CopyAction) -> Result<Vec<RelPath>> {
    let clean = |path: &str| RelPath::clean(path).map_err(|e| invalid(e.to_string()));
    if !action.allow_wildcard {
        return Ok(vec![clean(&action.src)?]);
    }
    let children = |path: &RelPath| from.children(path);
    let fixed = split_wildcards(&action.src).0;
    let place = resolve(fixed.as_bytes(), action.follow_symlink, &|path| kind(from, path))?;
    if from.lookup(&place)?.is_none() {
        return Err(not_found(from, fixed.as_bytes()));
    }
    let found = matches(&action.src, action.follow_symlink, &|path| kind(from, path), &children)?;
    match found {
        None => Ok(vec![clean(&fixed)?]),
        Some(found) if found.is_empty() && !action.allow_empty_wildcard => {
            let message = format!("{:?}: no such file or directory matches", action.src);
            Err(PortError::new(ErrorKind::NotFound, message))
        }
        Some(found) => Ok(found),
    }
}

/// What a pattern matches, in the order of a walk; `None` if it has no wildcard. What is in a directory that matches
/// is not looked at.
pub(crate) fn matches(
    pattern: &str,
    follow: bool,
    kind: &dyn Fn(&RelPath) -> Result<Option<Kind>>,
    children: &dyn Fn(&RelPath) -> Result<Vec<Vec<u8>>>,
) -> Result<Option<Vec<RelPath>>> {
    let (fixed, wild) = split_wildcards(pattern);
    if wild.is_empty() {
        return Ok(None);
    }
    let bad = |e: rbuild_tree::BadPattern| invalid(e.to_string());
    let parts: Vec<&str> = wild.split('/').collect();
    let mut globs = Vec::new();
    for count in 1..=parts.len() {
        globs.push(Glob::new(&parts.get(..count).unwrap_or_default().join("/")).map_err(bad)?);
    }
    let base = resolve(fixed.as_bytes(), follow, kind)?;
    if kind(&base)? != Some(Kind::Dir) {
        return Ok(Some(Vec::new()));
    }
    let mut found = Vec::new();
    let mut open = vec![base.clone()];
    while let Some(dir) = open.pop() {
        let depth = dir.depth() - base.depth();
        let mut below = Vec::new();
        for name in children(&dir)? {
            let path = dir.child(&name).map_err(|e| invalid(e.to_string()))?;
            let rest = path.strip_prefix(&base).unwrap_or_default();
            if !globs.get(depth).is_some_and(|glob| glob.matches(rest.as_bytes())) {
                continue;
            }
            if depth + 1 == globs.len() {
                found.push(path);
            } else if kind(&path)? == Some(Kind::Dir) {
                below.push(path);
            }
        }
        open.extend(below.into_iter().rev());
    }
    found.sort_unstable();
    Ok(Some(found))
}

/// A source that is not there, and what is there under a similar name.
pub(crate) fn not_found(from: &dyn View, path: &[u8]) -> PortError {
    let shown =
        RelPath::clean(path).map_or_else(|_| String::from_utf8_lossy(path).into_owned(), |p| p.to_string());
    let error = PortError::new(ErrorKind::NotFound, format!("{shown:?}: not found"));
    match similar(from, path) {
        Some(similar) => error.help(format!("did you mean {:?}?", similar.to_string())),
        None => error,
    }
}

fn similar(from: &dyn View, path: &[u8]) -> Option<RelPath> {
    let wanted = RelPath::clean(path).ok()?;
    let mut here = RelPath::root();
    for component in wanted.components() {
        let next = here.child(component).ok()?;
        let place = resolve(next.as_bytes(), true, &|path| kind(from, path)).ok()?;
        if from.lookup(&place).ok()?.is_some() {
            here = place;
            continue;
        }
        let names = from.children(&here).ok()?;
        let names: Vec<&str> = names.iter().filter_map(|name| std::str::from_utf8(name).ok()).collect();
        let name = nearest(std::str::from_utf8(component).ok()?, names)?;
        return here.child(name).ok();
    }
    None
}
