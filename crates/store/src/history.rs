//! What is remembered of earlier builds to explain later ones: traces of builds, and the files of content keys. Small files
//! that nothing depends on: made by rename, not synced, checked by who reads them, bounded in number and bytes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rbuild_ports::{PortError, Result};

use crate::Root;
use crate::fs::{names, random_name, remove_file};
use crate::replace::replace_file;

/// Traces kept of one Dockerfile and context, and of all.
const TRACES_OF_ONE: usize = 10;
const TRACES: usize = 500;

/// Manifests kept: how many, and how many bytes.
const MANIFESTS: usize = 4000;
const MANIFEST_BYTES: u64 = 128 << 20;

/// No file of it is larger.
const LARGEST: u64 = 64 << 20;

/// The directory `history` of a store.
pub struct History {
    builds: PathBuf,
    contents: PathBuf,
}

impl History {
    /// The history of a store. It is made when something is written.
    #[must_use]
    pub fn of(root: &Root) -> Self {
        let dir = root.path().join("history");
        Self { builds: dir.join("builds"), contents: dir.join("contents") }
    }

    /// Keeps a trace of the build of `what` (letters and digits); older ones of it go when there are many.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep_trace(&self, what: &str, at: i64, trace: &[u8]) -> Result<()> {
        let dir = self.builds.join(what);
        write(&dir.join(format!("{at:020}-{}", random_name())), trace)?;
        let mut all = names(&dir)?;
        all.sort();
        let surplus = all.len().saturating_sub(TRACES_OF_ONE);
        all.iter().take(surplus).try_for_each(|name| remove_file(&dir.join(name)))
    }

    /// The traces of `what`, the newest first.
    #[must_use]
    pub fn traces(&self, what: &str) -> Vec<Vec<u8>> {
        let dir = self.builds.join(what);
        let mut all = names(&dir).unwrap_or_default();
        all.sort();
        all.iter().rev().filter_map(|name| read(&dir.join(name))).collect()
    }

    /// The newest trace of each `what`, the newest first, at most `limit`.
    #[must_use]
    pub fn latest(&self, limit: usize) -> Vec<Vec<u8>> {
        let mut all: Vec<(String, PathBuf)> = vec![];
        for what in names(&self.builds).unwrap_or_default() {
            let dir = self.builds.join(what);
            let newest = names(&dir).unwrap_or_default().into_iter().max();
            all.extend(newest.map(|name| (name.clone(), dir.join(name))));
        }
        all.sort();
        all.iter().rev().take(limit).filter_map(|(_, path)| read(path)).collect()
    }

    /// Whether the files of a content key are kept; they count as used then.
    #[must_use]
    pub fn has_manifest(&self, content: &str) -> bool {
        let path = self.contents.join(file_name(content));
        let Ok(file) = fs::File::open(&path) else { return false };
        // Its time is when it was used last; once a day is exact enough.
        let day = std::time::Duration::from_secs(24 * 3600);
        let age = file.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
        if age.is_some_and(|age| age > day) {
            drop(file.set_modified(SystemTime::now()));
        }
        true
    }

    /// Keeps the files of a content key.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keep_manifest(&self, content: &str, manifest: &[u8]) -> Result<()> {
        write(&self.contents.join(file_name(content)), manifest)
    }

    /// The files of a content key.
    #[must_use]
    pub fn manifest(&self, content: &str) -> Option<Vec<u8>> {
        read(&self.contents.join(file_name(content)))
    }

    /// Removes what is too much: traces of Dockerfiles that nobody builds any more, the manifests that were used longest ago.
    ///
    /// # Errors
    /// If it cannot be read or removed.
    pub fn tidy(&self) -> Result<()> {
        let mut builds: Vec<(String, PathBuf)> = vec![];
        for what in names(&self.builds).unwrap_or_default() {
            let dir = self.builds.join(what);
            builds.push((names(&dir)?.into_iter().max().unwrap_or_default(), dir));
        }
        builds.sort();
        let surplus = builds.len().saturating_sub(TRACES);
        for (_, dir) in builds.iter().take(surplus) {
            fs::remove_dir_all(dir).map_err(|error| PortError::io("remove", dir, error))?;
        }
        let mut manifests: Vec<(SystemTime, u64, PathBuf)> = vec![];
        for name in names(&self.contents).unwrap_or_default() {
            let path = self.contents.join(name);
            if let Ok(meta) = fs::metadata(&path) {
                manifests.push((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len(), path));
            }
        }
        manifests.sort();
        let mut bytes: u64 = manifests.iter().map(|(_, size, _)| size).sum();
        let mut count = manifests.len();
        for (_, size, path) in manifests {
            if count <= MANIFESTS && bytes <= MANIFEST_BYTES {
                break;
            }
            remove_file(&path)?;
            (count, bytes) = (count - 1, bytes.saturating_sub(size));
        }
        Ok(())
    }
}

fn write(file: &Path, bytes: &[u8]) -> Result<()> {
    replace_file(file, bytes).map_err(|error| PortError::io("write", file, error))
}

/// Keys are `sha256:…`; whatever else comes must not leave the directory.
fn file_name(content: &str) -> String {
    content.chars().filter(char::is_ascii_alphanumeric).take(80).collect()
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let size = fs::metadata(path).ok()?.len();
    if size > LARGEST { None } else { fs::read(path).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        let history = History::of(&Root::open(root.path(), crate::BootId::new("boot-1").unwrap()).unwrap());
        assert!(history.traces("a").is_empty() && history.latest(5).is_empty());
        for at in 0..15u8 {
            history.keep_trace("a", at.into(), &[at]).unwrap();
        }
        history.keep_trace("b", 7, b"x").unwrap();
        let traces = history.traces("a");
        assert_eq!((traces.len(), traces.first()), (10, Some(&vec![14])));
        assert_eq!(history.latest(5), [vec![14], b"x".to_vec()]);
        assert_eq!(history.latest(1), [vec![14]]);
    }

    #[test]
    fn manifests_are_found_by_key_and_stay_inside() {
        let root = tempfile::tempdir().unwrap();
        let history = History::of(&Root::open(root.path(), crate::BootId::new("boot-1").unwrap()).unwrap());
        assert!(!history.has_manifest("sha256:ab") && history.manifest("sha256:ab").is_none());
        history.keep_manifest("sha256:ab", b"1").unwrap();
        history.keep_manifest("../../x", b"2").unwrap();
        assert!(history.has_manifest("sha256:ab"));
        assert_eq!(history.manifest("sha256:ab").as_deref(), Some(&b"1"[..]));
        assert!(!root.path().join("x").exists());
        history.tidy().unwrap();
        assert!(history.has_manifest("sha256:ab"));
    }
}
