//! Files and directories that appear complete or not at all: written under another name and renamed. What is not
//! finished is removed when dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_ports::{ErrorKind, PortError, Result};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Writes a small file: the old one or the new one is there, never a part.
///
/// # Errors
/// If it cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = StagedFile::create(path)?;
    file.write_all(bytes).map_err(|error| PortError::io("write", path, error))?;
    file.commit()
}

/// A name beside `path`, or in it, that nobody has.
fn temporary_name() -> String {
    format!(".rbuild-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A file under way to `path`.
pub(crate) struct StagedFile {
    file: Option<File>,
    path: PathBuf,
    state: Staging,
}

enum Staging {
    /// It has no name, and vanishes with the process.
    Nameless,
    /// It has this name.
    Named(PathBuf),
    /// The target is a device or pipe: there is nothing to stage.
    Direct,
    /// It is where it belongs.
    Done,
}

impl StagedFile {
    /// Starts a file for `path`. A link is followed, as a shell does; a device or pipe is written as it is.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| PortError::io("write", path, error);
        let mut target = path.to_owned();
        let mut mode = None;
        match fs::metadata(path) {
            Ok(meta) if meta.is_dir() => {
                let message = format!("cannot write {}: it is a directory", path.display());
                return Err(PortError::new(ErrorKind::Invalid, message).help("name a file in it"));
            }
            Ok(meta) if !meta.is_file() => {
                let file = OpenOptions::new().write(true).open(path).map_err(failed)?;
                return Ok(Self { file: Some(file), path: target, state: Staging::Direct });
            }
            Ok(meta) => {
                target = fs::canonicalize(path).map_err(failed)?;
                mode = Some(meta.mode() & 0o777);
            }
            Err(_) => {}
        }
        let dir = parent(&target);
        // Giving it a name later goes through /proc.
        let can_name = Path::new("/proc/self/fd").exists();
        let nameless = rustix::fs::openat(
            CWD,
            dir,
            OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from(0o666),
        );
        let (file, state) = match nameless {
            Ok(fd) if can_name => (File::from(fd), Staging::Nameless),
            _ => {
                let name = dir.join(temporary_name());
                let file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o666)
                    .open(&name)
                    .map_err(failed)?;
                (file, Staging::Named(name))
            }
        };
        if let Some(mode) = mode {
            // An existing file keeps its permissions, where the file system knows any.
            drop(file.set_permissions(fs::Permissions::from_mode(mode)));
        }
        Ok(Self { file: Some(file), path: target, state })
    }

    /// Makes it visible in place of what was there.
    pub(crate) fn commit(mut self) -> Result<()> {
        let failed = |error: io::Error| PortError::io("write", &self.path, error);
        let Some(file) = &self.file else { return Ok(()) };
        let name = match &self.state {
            Staging::Direct | Staging::Done => return Ok(()),
            Staging::Named(name) => name.clone(),
            Staging::Nameless => {
                let name = parent(&self.path).join(temporary_name());
                let from = format!("/proc/self/fd/{}", file.as_raw_fd());
                rustix::fs::linkat(CWD, from, CWD, &name, AtFlags::SYMLINK_FOLLOW)
                    .map_err(|e| failed(e.into()))?;
                self.state = Staging::Named(name.clone());
                name
            }
        };
        fs::rename(&name, &self.path).map_err(|error| PortError::io("write", &self.path, error))?;
        self.state = Staging::Done;
        Ok(())
    }
}

impl Write for StagedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        self.file = None;
        if let Staging::Named(name) = &self.state {
            drop(fs::remove_file(name));
        }
    }
}

/// A directory under way to `dest`: beside it when there is none yet, otherwise in it, so that both are on one
/// file system. Nobody else may enter it.
pub(crate) struct StagedDir {
    path: PathBuf,
    dest: PathBuf,
    /// There was a directory already.
    merging: bool,
    /// Parents of `dest` that were made, the deepest last.
    made: Vec<PathBuf>,
    done: bool,
}

impl StagedDir {
    /// Starts a directory for `dest`; missing parents are made.
    pub(crate) fn create(dest: &Path) -> Result<Self> {
        let merging = match fs::metadata(dest) {
            Ok(meta) if meta.is_dir() => true,
            Ok(_) => {
                let message = format!("cannot write to {}: it is a file, not a directory", dest.display());
                return Err(PortError::new(ErrorKind::Invalid, message)
                    .help("remove it, or choose another directory"));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound && dest.symlink_metadata().is_err() => {
                false
            }
            Err(error) => return Err(PortError::io("write to", dest, error)),
        };
        let mut made = vec![];
        let base = if merging { dest } else { parent(dest) };
        if !merging {
            make_parents(base, &mut made)?;
        }
        let path = base.join(temporary_name());
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        let mut out = Self { path, dest: dest.to_owned(), merging, made, done: true };
        builder.create(&out.path).map_err(|error| PortError::io("write to", base, error))?;
        out.done = false;
        Ok(out)
    }

    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `dest` exists: then `commit` cannot do it, and the content is to be moved.
    pub(crate) fn merging(&self) -> bool {
        self.merging
    }

    /// Renames it to `dest`, with the permissions of an ordinary new directory.
    pub(crate) fn commit(mut self) -> Result<()> {
        let failed = |error: io::Error| PortError::io("write to", &self.dest, error);
        // The umask can only be seen at work.
        let probe = self.path.join(temporary_name());
        fs::create_dir(&probe).map_err(failed)?;
        let mode = fs::metadata(&probe).map_err(failed)?.permissions();
        fs::remove_dir(&probe).map_err(failed)?;
        fs::set_permissions(&self.path, mode).map_err(failed)?;
        fs::rename(&self.path, &self.dest).map_err(failed)?;
        self.done = true;
        self.made.clear();
        Ok(())
    }
}

impl Drop for StagedDir {
    fn drop(&mut self) {
        if !self.done {
            remove_tree(&self.path);
        }
        for dir in self.made.iter().rev() {
            drop(fs::remove_dir(dir));
        }
    }
}

fn make_parents(dir: &Path, made: &mut Vec<PathBuf>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    make_parents(parent(dir), made)?;
    match fs::create_dir(dir) {
        Ok(()) => made.push(dir.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(PortError::io("create", dir, error)),
    }
    Ok(())
}

/// Removes what was written, as far as possible; directories that forbid it are opened first.
pub(crate) fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    let mut open = vec![path.to_owned()];
    while let Some(dir) = open.pop() {
        drop(fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)));
        let Ok(entries) = fs::read_dir(&dir) else { continue };
        open.extend(entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()));
    }
    drop(fs::remove_dir_all(path));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn files_appear_when_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.tar");
        let mut file = StagedFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        assert!(!path.exists());
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["out.tar"]);
        // Given up: the old one stays.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let mut file = StagedFile::create(&path).unwrap();
        file.write_all(b"half").unwrap();
        drop(file);
        assert_eq!(fs::read(&path).unwrap(), b"new");
        write_file(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(names(dir.path()), ["out.tar"]);
    }

    #[test]
    fn links_are_followed_and_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        fs::write(&real, "old").unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        write_file(&link, b"new").unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"new");
        assert!(link.symlink_metadata().unwrap().is_symlink());
        let error = write_file(dir.path(), b"x").unwrap_err();
        assert!(error.message.contains("it is a directory"), "{error}");
        let error = write_file(&dir.path().join("none/x"), b"x").unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound);
        write_file(Path::new("/dev/null"), b"x").unwrap();
        assert!(!Path::new("/dev/null").symlink_metadata().unwrap().is_file());
    }

    #[test]
    fn directories_leave_nothing_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a/b/out");
        let staged = StagedDir::create(&dest).unwrap();
        fs::create_dir(staged.path().join("locked")).unwrap();
        fs::write(staged.path().join("locked/x"), "x").unwrap();
        fs::set_permissions(staged.path().join("locked"), fs::Permissions::from_mode(0o000)).unwrap();
        drop(staged);
        assert_eq!(names(dir.path()), [""; 0]);
        let staged = StagedDir::create(&dest).unwrap();
        assert!(!staged.merging());
        fs::write(staged.path().join("x"), "x").unwrap();
        staged.commit().unwrap();
        assert_eq!(names(&dest), ["x"]);
        assert!(StagedDir::create(&dest).unwrap().merging());
        assert_eq!(names(&dest), ["x"]);
        assert!(StagedDir::create(&dest.join("x")).is_err());
    }
}
