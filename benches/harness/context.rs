//! Writes projects to the disk and changes files in them.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Doing as _, Result};
use crate::workload::{FileSpec, Project};

/// A project on the disk.
#[derive(Clone, Debug)]
pub(crate) struct OnDisk {
    /// The context.
    pub(crate) context: PathBuf,
    /// The Dockerfile, beside the context and not in it.
    pub(crate) dockerfile: PathBuf,
}

/// Writes `project` into the new directory `dir`.
pub(crate) fn write(project: &Project, dir: &Path) -> Result<OnDisk> {
    let out = OnDisk { context: dir.join("context"), dockerfile: dir.join("Dockerfile") };
    fs::create_dir_all(&out.context).doing("create", &out.context)?;
    fs::write(&out.dockerfile, &project.dockerfile).doing("write", &out.dockerfile)?;
    let mut parent = PathBuf::new();
    for file in &project.files {
        let path = out.context.join(&file.path);
        if let Some(folder) = path.parent().filter(|folder| *folder != parent) {
            fs::create_dir_all(folder).doing("create", folder)?;
            parent = folder.to_owned();
        }
        put(file, &path)?;
    }
    Ok(out)
}

/// Writes one file anew, in place.
pub(crate) fn replace(on_disk: &OnDisk, file: &FileSpec) -> Result<()> {
    put(file, &on_disk.context.join(&file.path))
}

fn put(file: &FileSpec, path: &Path) -> Result<()> {
    let mut out = BufWriter::new(File::create(path).doing("create", path)?);
    file.write(&mut out).and_then(|()| out.flush()).doing("write", path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::{Bases, Scale, Workload, edited, project};

    #[test]
    fn a_project_is_written_and_edited() {
        let bases = Bases { busybox: "b".into(), debian: "d".into(), debian_bytes: 1, large: "l".into() };
        let project = project(Workload::Edit, &Scale::QUICK, 1, 0, &bases);
        let dir = tempfile::tempdir().unwrap();
        let on_disk = write(&project, dir.path()).unwrap();
        for file in &project.files {
            assert_eq!(fs::metadata(on_disk.context.join(&file.path)).unwrap().len(), file.length);
        }
        let new = edited(&project, 0).unwrap();
        let before = fs::read(on_disk.context.join(&new.path)).unwrap();
        replace(&on_disk, &new).unwrap();
        let after = fs::read(on_disk.context.join(&new.path)).unwrap();
        assert_ne!(before, after);
        assert_eq!(before.len(), after.len());
    }
}
