//! Paths inside the root of a step that is not set up yet: the mounts it will have are known but attached nowhere.
//! Every path is walked once, component by component, by descriptor; links are followed inside the root only. What is
//! missing is made, and remembered so that it can be removed again.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps};

use crate::mnt;
use crate::stubs::{DirState, Stub, Stubs};

/// Links followed in one walk, as many as the kernel allows.
const MAX_LINKS: usize = 40;

/// What a path shall be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Want {
    /// A directory, made and later removed if missing.
    StubDir,
    /// No directory, made and later removed if missing.
    StubFile,
    /// A directory, made if missing, to stay.
    KeptDir,
    /// A directory that is no link, made if missing, to stay: runtimes leave the places of the kernel's file systems
    /// in the root.
    RealDir,
}

/// Where a walk ended.
pub(crate) struct Found {
    /// The path without links, `a/b/c`; the root is empty.
    pub(crate) path: Vec<u8>,
    /// Open there, on top of any mount.
    pub(crate) at: Rc<OwnedFd>,
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WalkError {
    #[error("{path} is inside {mount}, which the kernel makes")]
    InKernel { path: String, mount: String },
    #[error("{path}: {}", mnt::plain(error))]
    Io { path: String, error: io::Error },
    #[error("{path} is a symbolic link in the image, which is not allowed there")]
    Link { path: String },
    #[error("{path} is {is} in the image, not {wanted}")]
    Kind { path: String, is: &'static str, wanted: &'static str },
}

/// What is mounted somewhere.
enum Mounted {
    /// A tree that walks go on in, or a file.
    Tree(Rc<OwnedFd>),
    /// A file system that the child makes.
    Kernel,
}

/// The tree that a step is going to see.
pub(crate) struct Walker<'a> {
    root: Rc<OwnedFd>,
    upper: Option<BorrowedFd<'a>>,
    mounts: BTreeMap<Vec<u8>, Mounted>,
    stubs: Stubs,
}

/// One step of the way down.
struct Level {
    name: Vec<u8>,
    at: Rc<OwnedFd>,
}

impl<'a> Walker<'a> {
    /// Begins at a detached mount whose changes go to `upper`.
    pub(crate) fn new(root: Rc<OwnedFd>, upper: Option<BorrowedFd<'a>>) -> Self {
        Self { root, upper, mounts: BTreeMap::new(), stubs: Stubs::default() }
    }

    /// What was made in the root so far.
    pub(crate) fn into_stubs(self) -> Stubs {
        self.stubs
    }

    /// What was made in the root so far, for use before the end.
    #[cfg(test)]
    pub(crate) fn stubs(&self) -> &Stubs {
        &self.stubs
    }

    /// From now on this tree or file is at `path`, as a walk returned it.
    pub(crate) fn mount(&mut self, path: &[u8], tree: Rc<OwnedFd>) {
        self.mounts.insert(path.to_vec(), Mounted::Tree(tree));
    }

    /// From now on something that the child makes is at `path`.
    pub(crate) fn mount_kernel(&mut self, path: &[u8]) {
        self.mounts.insert(path.to_vec(), Mounted::Kernel);
    }

    /// Walks to `path`.
    pub(crate) fn walk(&mut self, path: &str, want: Want) -> Result<Found, WalkError> {
        let mut todo: VecDeque<Vec<u8>> = split(path.as_bytes());
        let mut levels: Vec<Level> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                levels.pop();
                continue;
            }
            let here = join(&levels, &name);
            match self.mounts.get(&here) {
                Some(Mounted::Kernel) => {
                    return Err(WalkError::InKernel { path: path.to_owned(), mount: show(&here) });
                }
                Some(Mounted::Tree(at)) => {
                    let at = at.clone();
                    levels.push(Level { name, at });
                    continue;
                }
                None => {}
            }
            let dir = levels.last().map_or(&self.root, |level| &level.at).clone();
            let at = match open(dir.as_fd(), &name) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    let last = todo.is_empty();
                    self.make(dir.as_fd(), &levels, &name, want, last)
                        .and_then(|()| open(dir.as_fd(), &name))
                        .map_err(|error| WalkError::Io { path: show(&here), error })?
                }
                other => other.map_err(|error| WalkError::Io { path: show(&here), error })?,
            };
            let stat = mnt::stat(at.as_fd()).map_err(|error| WalkError::Io { path: show(&here), error })?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
                levels.push(Level { name, at: Rc::new(at) });
                continue;
            }
            links += 1;
            if want == Want::RealDir {
                return Err(WalkError::Link { path: show(&here) });
            }
            if links > MAX_LINKS {
                let error = io::Error::from_raw_os_error(libc::ELOOP);
                return Err(WalkError::Io { path: path.to_owned(), error });
            }
            let target = rustix::fs::readlinkat(&at, c"", Vec::new())
                .map_err(|error| WalkError::Io { path: show(&here), error: error.into() })?;
            if target.as_bytes().first() == Some(&b'/') {
                levels.clear();
            }
            for part in split(target.as_bytes()).into_iter().rev() {
                todo.push_front(part);
            }
        }
        self.arrive(levels, want)
    }

    fn arrive(&self, levels: Vec<Level>, want: Want) -> Result<Found, WalkError> {
        let path = levels.iter().map(|level| level.name.as_slice()).collect::<Vec<_>>().join(&b'/');
        let at = levels.last().map_or(&self.root, |level| &level.at).clone();
        let stat = mnt::stat(at.as_fd()).map_err(|error| WalkError::Io { path: show(&path), error })?;
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        match (want, is_dir) {
            (Want::StubFile, true) => {
                Err(WalkError::Kind { path: show(&path), is: "a directory", wanted: "a file" })
            }
            (Want::StubDir | Want::KeptDir | Want::RealDir, false) => {
                Err(WalkError::Kind { path: show(&path), is: "a file", wanted: "a directory" })
            }
            _ => Ok(Found { path, at }),
        }
    }

    /// Makes the missing `name` in `dir`, which `levels` lead to.
    fn make(
        &mut self,
        dir: BorrowedFd<'_>,
        levels: &[Level],
        name: &[u8],
        want: Want,
        last: bool,
    ) -> io::Result<()> {
        // Inside another mount what is made stays, as the content of that mount.
        let in_root = !levels
            .iter()
            .scan(Vec::new(), |at, level| {
                extend(at, &level.name);
                Some(self.mounts.contains_key(at.as_slice()))
            })
            .any(|mounted| mounted);
        let remember = in_root && !matches!(want, Want::KeptDir | Want::RealDir);
        if remember {
            self.remember_dirs(levels)?;
        }
        let before = mnt::stat(dir)?;
        let file = last && want == Want::StubFile;
        if file {
            // Not opened: a descriptor for writing would keep the mount from becoming read-only.
            rustix::fs::mknodat(dir, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
        } else {
            match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Err(rustix::io::Errno::EXIST) => {}
                other => other?,
            }
        }
        // Whatever the process's umask is.
        let mode = Mode::from_raw_mode(if file { 0o644 } else { 0o755 });
        rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
        if in_root && want == Want::RealDir {
            // Not the time of the build: the layer shall be the same every time.
            let times = times_of(&before);
            rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
            restore_times(dir, &before)?;
        }
        if !remember {
            return Ok(());
        }
        restore_times(dir, &before)?;
        let path = join(levels, name);
        if let Some(upper) = self.upper {
            self.stubs.made.push(Stub::look(upper, path, !file)?);
        }
        Ok(())
    }

    /// What the directories on the way looked like, before anything is made in there.
    fn remember_dirs(&mut self, levels: &[Level]) -> io::Result<()> {
        let mut path = Vec::new();
        let root = [(Vec::new(), self.root.clone())];
        let below = levels.iter().map(|level| {
            extend(&mut path, &level.name);
            (path.clone(), level.at.clone())
        });
        for (path, at) in root.into_iter().chain(below) {
            if self.stubs.dirs.contains_key(&path) || self.stubs.made.iter().any(|stub| stub.path == path) {
                continue;
            }
            let state = DirState::of(&mnt::stat(at.as_fd())?);
            self.stubs.dirs.insert(path, state);
        }
        Ok(())
    }
}

/// Puts back the times that a directory had.
pub(crate) fn restore_times(dir: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    Ok(rustix::fs::utimensat(dir, c"", &times_of(stat), AtFlags::EMPTY_PATH)?)
}

fn times_of(stat: &Stat) -> Timestamps {
    let time = |sec: i64, nsec: u64| Timespec { tv_sec: sec, tv_nsec: nsec as _ };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

fn open(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::empty())?)
}

/// Components, without empty ones and `.`.
fn split(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".").map(<[u8]>::to_vec).collect()
}

fn extend(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn join(levels: &[Level], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    for level in levels {
        extend(&mut path, &level.name);
    }
    extend(&mut path, name);
    path
}

fn show(path: &[u8]) -> String {
    format!("/{}", String::from_utf8_lossy(path))
}

#[cfg(test)]
mod tests;
