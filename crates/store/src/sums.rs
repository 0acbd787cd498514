//! What layers held when they were known to be whole: a file for each, by which a check finds bytes that changed. Each tells
//! which directory it was made of, so that one that was made anew is not compared with the old. Not synced, checked by who
//! reads them, and worth no more than a check.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;

use rbuild_ports::{LayerId, PortError, Result};

use crate::Root;
use crate::fs::{names, remove_file};
use crate::replace::replace_file;

/// Bytes in front that name the directory: inode, and seconds and nanoseconds of its change.
const HEAD: usize = 24;

/// The directory `sums` of a store.
pub struct Sums {
    root: Arc<Root>,
    dir: PathBuf,
}

impl Sums {
    /// Those of `root`.
    #[must_use]
    pub fn of(root: &Arc<Root>) -> Self {
        Self { root: root.clone(), dir: root.path().join("sums") }
    }

    /// Keeps what a layer holds.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn keep(&self, layer: &LayerId, content: &[u8]) -> Result<()> {
        let Some(head) = self.head(layer) else { return Ok(()) };
        let to = self.dir.join(layer.as_str());
        replace_file(&to, &[&head[..], content].concat()).map_err(|error| PortError::io("write", &to, error))
    }

    /// Whether something is kept of a layer, or of an earlier one of its name.
    #[must_use]
    pub fn has(&self, layer: &LayerId) -> bool {
        self.dir.join(layer.as_str()).exists()
    }

    /// What the layer that is there now held; `None` when that was not kept.
    #[must_use]
    pub fn get(&self, layer: &LayerId) -> Option<Vec<u8>> {
        let bytes = fs::read(self.dir.join(layer.as_str())).ok()?;
        let (head, content) = bytes.split_at_checked(HEAD)?;
        (head == self.head(layer)?).then(|| content.to_vec())
    }

    /// Removes those of layers that are not there any more.
    ///
    /// # Errors
    /// If they cannot be read or removed.
    pub fn tidy(&self) -> Result<()> {
        for name in names(&self.dir)? {
            if name.parse::<LayerId>().map_or(true, |layer| !self.root.layer_dir(&layer).exists()) {
                remove_file(&self.dir.join(&name))?;
            }
        }
        Ok(())
    }

    fn head(&self, layer: &LayerId) -> Option<[u8; HEAD]> {
        let meta = fs::symlink_metadata(self.root.layer_dir(layer)).ok()?;
        let mut out = [0; HEAD];
        let parts = [meta.ino().to_le_bytes(), meta.ctime().to_le_bytes(), meta.ctime_nsec().to_le_bytes()];
        out.iter_mut().zip(parts.iter().flatten()).for_each(|(to, from)| *to = *from);
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_of_one_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), crate::BootId::new("boot-1").unwrap()).unwrap();
        let sums = Sums::of(&root);
        let layer: LayerId = "l1".parse().unwrap();
        sums.keep(&layer, b"x").unwrap();
        assert_eq!(sums.get(&layer), None, "there is no such layer");
        fs::create_dir(root.layer_dir(&layer)).unwrap();
        sums.keep(&layer, b"x").unwrap();
        assert_eq!(sums.get(&layer).as_deref(), Some(&b"x"[..]));
        // Another directory of this name is made before the old one goes, so that it cannot have its number.
        fs::create_dir(dir.path().join("layers/new")).unwrap();
        fs::remove_dir(root.layer_dir(&layer)).unwrap();
        fs::rename(dir.path().join("layers/new"), root.layer_dir(&layer)).unwrap();
        assert_eq!(sums.get(&layer), None);
        fs::remove_dir(root.layer_dir(&layer)).unwrap();
        sums.tidy().unwrap();
        assert_eq!(names(&dir.path().join("sums")).unwrap(), Vec::<String>::new());
    }
}
