//! Which blobs a power cut may have damaged. Before a blob becomes visible an empty file of its name is made in
//! `unsynced/<boot>/`; both are metadata, which journals keep in order, so no blob can survive without its mark.
//! After a sync of the file system the marks go. Marks of another boot name blobs to be verified before use.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rbuild_digest::Digest;
use rbuild_ports::{PortError, Result};

use crate::Root;
use crate::fs::{make_dir, names, random_name, remove_file};
use crate::gate::{Exclusive, Shared};

/// Marks taken aside: dropped when what they mark was synced.
#[must_use]
pub struct SyncMark {
    dirs: Vec<PathBuf>,
}

/// Marks `digest` as not synced in this boot. Called with the gate held shared, before the blob is visible.
pub(crate) fn mark(root: &Root, _shared: &Shared<'_>, digest: &Digest) -> Result<()> {
    let dir = root.path().join("unsynced").join(root.boot().as_str());
    let path = dir.join(digest.hex());
    let create = || OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
    match create() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_dir(&dir)?;
            create().map(drop).map_err(|error| PortError::io("create", &path, error))
        }
        other => other.map(drop).map_err(|error| PortError::io("create", &path, error)),
    }
}

/// The directories of marks that other boots left.
pub(crate) fn other_boots(root: &Root) -> Result<Vec<PathBuf>> {
    let parent = root.path().join("unsynced");
    let own = |name: &str| name.split('~').next() == Some(root.boot().as_str());
    Ok(names(&parent)?.iter().filter(|name| !own(name)).map(|name| parent.join(name)).collect())
}

/// The blobs that other boots left unsynced.
pub(crate) fn doubtful(root: &Root) -> Result<HashSet<Digest>> {
    let mut out = HashSet::new();
    for dir in other_boots(root)? {
        let found = names(&dir)?;
        if found.is_empty() {
            let _ = std::fs::remove_dir(&dir);
        }
        out.extend(found.iter().filter_map(|name| Digest::from_hex(name).ok()));
    }
    Ok(out)
}

/// Whether a mark of another boot is still there; another process may have settled it.
pub(crate) fn is_marked(root: &Root, digest: &Digest) -> Result<bool> {
    let hex = digest.hex();
    Ok(other_boots(root)?.iter().any(|dir| dir.join(&hex).exists()))
}

/// Removes the marks of other boots: the blob was verified, replaced or removed.
pub(crate) fn settle(root: &Root, digest: &Digest) -> Result<()> {
    let hex = digest.hex();
    other_boots(root)?.iter().try_for_each(|dir| remove_file(&dir.join(&hex)))
}

/// Takes the marks of this boot aside, so that what comes after the sync gets new ones.
pub(crate) fn take(root: &Root, _alone: &Exclusive) -> Result<SyncMark> {
    let parent = root.path().join("unsynced");
    let own = parent.join(root.boot().as_str());
    let aside = parent.join(format!("{}~{}", root.boot(), random_name()));
    match std::fs::rename(&own, &aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(PortError::io("rename", &own, error));
        }
        _ => {}
    }
    let prefix = format!("{}~", root.boot());
    let dirs = names(&parent)?
        .iter()
        .filter(|name| name.starts_with(&prefix))
        .map(|name| parent.join(name))
        .collect();
    Ok(SyncMark { dirs })
}

impl SyncMark {
    /// The file system was synced: the marks go. One who is killed meanwhile leaves marks that only cost time.
    ///
    /// # Errors
    /// If they cannot be removed.
    pub fn synced(self) -> Result<()> {
        for dir in &self.dirs {
            match std::fs::remove_dir_all(dir) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(PortError::io("remove", dir, error));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
