//! The actions that touch one path: mkfile, mkdir, symlink, rm.

use rbuild_graph::{MkdirAction, MkfileAction, RmAction, SymlinkAction};
use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{Kind, RelPath, Time, Xattrs};

use super::copy::matches;
use super::dest::Dest;
use super::owner::Owner;
use crate::meta::{Meta, failed};
use crate::unpack::{invalid, write_all};

fn meta(mode: u32, owner: Option<Owner>, mtime: Time) -> Meta {
    let Owner { uid, gid } = owner.unwrap_or(Owner { uid: 0, gid: 0 });
    Meta { mode: mode & 0o777, uid, gid, mtime, xattrs: Xattrs::new() }
}

fn time(dest: &Dest, timestamp: Option<i64>) -> Time {
    timestamp.map_or(dest.now(), Time::from_nanos)
}

/// Writes a file. One that is there keeps its mode, and its owner unless one is asked for.
pub(super) fn mkfile(dest: &Dest, action: &MkfileAction, owner: Option<Owner>) -> Result<()> {
    let path = dest.resolve(action.path.as_bytes(), true)?;
    let (parent, name) = split(dest, &path)?;
    let mut meta = meta(action.mode, owner, time(dest, action.timestamp));
    match dest.kind(&path)? {
        None => {}
        Some(Kind::File { .. } | Kind::Hardlink { .. }) => {
            if let Some(old) = dest.lookup(&path)? {
                meta.mode = old.mode;
                if owner.is_none() {
                    (meta.uid, meta.gid) = (old.uid, old.gid);
                }
            }
        }
        Some(_) => return Err(invalid(format!("cannot write {path}: it is no regular file"))),
    }
    let handle = dest.enter(&parent)?;
    dest.file(&handle, name, false, &meta, |file| {
        write_all(file, &action.data).map_err(|e| failed("write", &path, e))
    })
}

/// Makes a directory. One that is there stays as it is.
pub(super) fn mkdir(dest: &Dest, action: &MkdirAction, owner: Option<Owner>) -> Result<()> {
    let path = dest.resolve(action.path.as_bytes(), true)?;
    let meta = meta(action.mode, owner, time(dest, action.timestamp));
    if action.make_parents {
        return dest.make_all(&path, &meta);
    }
    if dest.kind(&path)?.is_some() {
        return Ok(());
    }
    split(dest, &path)?;
    dest.make_dir(&path, meta)
}

/// Makes a symbolic link where nothing is.
pub(super) fn symlink(dest: &Dest, action: &SymlinkAction, owner: Option<Owner>) -> Result<()> {
    let path = dest.resolve(action.newpath.as_bytes(), true)?;
    let (parent, name) = split(dest, &path)?;
    if dest.kind(&path)?.is_some() {
        return Err(invalid(format!("cannot make the symbolic link {path}: there is something already")));
    }
    let target = action.oldpath.as_bytes();
    if target.is_empty() || target.contains(&0) {
        return Err(invalid(format!(
            "cannot make the symbolic link {path}: its target is empty or has a NUL byte"
        )));
    }
    let meta = meta(0o777, owner, time(dest, action.timestamp));
    let handle = dest.enter(&parent)?;
    dest.other(&handle, name, false, &Kind::Symlink { target: target.to_vec() }, &meta)
}

/// Removes a path, or what matches a pattern.
pub(super) fn rm(dest: &Dest, action: &RmAction) -> Result<()> {
    let found = if action.allow_wildcard {
        matches(&action.path, false, &|path| dest.kind(path), &|path| dest.children(path))?
    } else {
        None
    };
    match found {
        Some(found) => found.iter().try_for_each(|path| dest.remove(path)),
        None => {
            let path = RelPath::clean(&action.path).map_err(|e| invalid(e.to_string()))?;
            if path.is_root() {
                return Err(invalid("the root directory cannot be removed"));
            }
            let path = dest.resolve(path.as_bytes(), false)?;
            if !action.allow_not_found && dest.kind(&path)?.is_none() {
                return Err(PortError::new(ErrorKind::NotFound, format!("cannot remove {path}: not found")));
            }
            dest.remove(&path)
        }
    }
}

/// Parent and name of a path in a directory that exists.
fn split<'p>(dest: &Dest, path: &'p RelPath) -> Result<(RelPath, &'p [u8])> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(invalid("the root directory cannot be replaced"));
    };
    match dest.kind(&parent)? {
        Some(Kind::Dir) => Ok((parent, name)),
        Some(_) => Err(invalid(format!("cannot make {path}: {parent} is no directory"))),
        None => {
            Err(PortError::new(ErrorKind::NotFound, format!("cannot make {path}: {parent} does not exist")))
        }
    }
}
