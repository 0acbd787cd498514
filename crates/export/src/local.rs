//! `type=local`: the image's files in a directory, owned by whoever exports. They are written into a closed directory
//! beside it (or in it) first, so that a failure leaves what was there.
//!
//! Files, links and directories of the image replace what has their name; a link in the destination is replaced,
//! never followed. The setuid and setgid bits stay only where the owner stays the same.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread;

use rbuild_ports::{ErrorKind, PortError, Result, View};
use rbuild_tree::{Entry, Kind, RelPath, Time};
use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::atomic::StagedDir;
use crate::walk::{platform_dir, walk};
use crate::{ExportContext, ExportRequest, LocalMode, LocalOutput, OutputReport, merge};

/// Open files on their way to the threads that copy them.
const OPEN_FILES: usize = 32;

/// Writes the files of all images.
pub(crate) fn export(
    cx: &ExportContext<'_>,
    request: &ExportRequest<'_>,
    output: &LocalOutput,
) -> Result<OutputReport> {
    let staged = StagedDir::create(&output.dest)?;
    let split = output.platform_split.unwrap_or(request.indexed);
    let mut bytes = 0;
    for image in request.images {
        (cx.materialise)(&image.snapshot)?;
        let view = cx.snapshots.view(&image.snapshot)?;
        let root =
            if split { staged.path().join(platform_dir(&image.platform)) } else { staged.path().to_owned() };
        let epoch = output.source_date_epoch.or(request.source_date_epoch).map(Time::from_secs);
        let writer = TreeWriter::new(cx, &root, &output.dest, epoch);
        if split {
            make_dir(&root)?;
            writer.later(&Entry::new(RelPath::root(), Kind::Dir, 0o755));
        }
        bytes += writer.write(&*view)?;
    }
    cx.cancel.check()?;
    cx.progress.status("copying files", bytes, Some(bytes), true);
    if staged.merging() {
        merge::merge(staged.path(), &output.dest, output.mode == LocalMode::Delete)?;
        drop(staged);
    } else {
        staged.commit()?;
    }
    Ok(OutputReport { kind: "local", target: output.dest.display().to_string(), bytes, skipped: 0 })
}

/// Writes one tree into a directory that nobody else may enter.
struct TreeWriter<'a> {
    cx: &'a ExportContext<'a>,
    root: &'a Path,
    /// Where it will be, for messages.
    shown: &'a Path,
    epoch: Option<Time>,
    uid: u32,
    gid: u32,
    /// Directories get their permissions and times when all is in them.
    dirs: Mutex<Vec<Entry>>,
    failure: Mutex<Option<PortError>>,
}

impl<'a> TreeWriter<'a> {
    fn new(cx: &'a ExportContext<'a>, root: &'a Path, shown: &'a Path, epoch: Option<Time>) -> Self {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Self { cx, root, shown, epoch, uid, gid, dirs: Mutex::default(), failure: Mutex::default() }
    }

    fn write(&self, view: &dyn View) -> Result<u64> {
        let mut bytes = 0;
        let mut links = vec![];
        let (send, receive) = sync_channel::<(Entry, File)>(OPEN_FILES);
        let receive = Mutex::new(receive);
        let walked = thread::scope(|scope| {
            for _ in 0..self.cx.threads.clamp(1, 8) {
                scope.spawn(|| self.copy_files(&receive));
            }
            // Moved in, so that the threads end when the walk does.
            let send = send;
            walk(view, self.cx.cancel, &mut |entry, file| {
                bytes += entry.content_size();
                match (&entry.kind, file) {
                    (Kind::File { .. }, Some(file)) => {
                        if send.send((entry, file)).is_err() || self.has_failed() {
                            return Err(PortError::cancelled());
                        }
                        self.cx.progress.status("copying files", bytes, None, false);
                        Ok(())
                    }
                    (Kind::Hardlink { .. }, _) => {
                        links.push(entry);
                        Ok(())
                    }
                    _ => self.special(entry),
                }
            })
        });
        if let Some(failure) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(failure);
        }
        walked?;
        for link in links {
            self.link(&link)?;
        }
        let dirs = std::mem::take(&mut *self.dirs.lock().unwrap_or_else(PoisonError::into_inner));
        for dir in dirs.iter().rev() {
            self.finish(dir, &self.path(&dir.path))?;
        }
        Ok(bytes)
    }

    /// One of the threads that copy.
    fn copy_files(&self, receive: &Mutex<Receiver<(Entry, File)>>) {
        loop {
            let next = receive.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((entry, file)) = next else { return };
            if self.has_failed() {
                // Drain, so that nobody waits for a free place.
                continue;
            }
            if let Err(error) = self.file(&entry, file) {
                self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            }
        }
    }

    fn has_failed(&self) -> bool {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn path(&self, path: &RelPath) -> PathBuf {
        if path.is_root() { self.root.to_owned() } else { self.root.join(path.as_path()) }
    }

    fn failed(&self, entry: &Entry, error: io::Error) -> PortError {
        if error.kind() == io::ErrorKind::AlreadyExists {
            let message = format!("cannot overwrite {}: two platforms have it", entry.path);
            return PortError::new(ErrorKind::Invalid, message).help("leave out platform-split=false");
        }
        PortError::io("write", self.shown.join(entry.path.as_path()), error)
    }

    fn later(&self, dir: &Entry) {
        self.dirs.lock().unwrap_or_else(PoisonError::into_inner).push(dir.clone());
    }

    fn file(&self, entry: &Entry, mut from: File) -> Result<()> {
        let path = self.path(&entry.path);
        let failed = |error| self.failed(entry, error);
        let mut to =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        copy(&mut from, &mut to).map_err(failed)?;
        self.xattrs(entry, &path);
        to.set_permissions(fs::Permissions::from_mode(self.mode(entry))).map_err(failed)?;
        rustix::fs::futimens(&to, &self.times(entry)).map_err(|error| failed(error.into()))
    }

    fn special(&self, entry: Entry) -> Result<()> {
        let path = self.path(&entry.path);
        let failed = |error| self.failed(&entry, error);
        let node = |kind, major, minor| {
            let device = rustix::fs::makedev(major, minor);
            rustix::fs::mknodat(CWD, &path, kind, Mode::from(0o600), device)
        };
        let made = match &entry.kind {
            Kind::Dir => {
                make_dir(&path)?;
                self.later(&entry);
                return Ok(());
            }
            Kind::Symlink { target } => {
                std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(target), &path).map_err(failed)?;
                Ok(())
            }
            Kind::Fifo => node(FileType::Fifo, 0, 0),
            Kind::CharDevice { major, minor } => node(FileType::CharacterDevice, *major, *minor),
            Kind::BlockDevice { major, minor } => node(FileType::BlockDevice, *major, *minor),
            Kind::File { .. } | Kind::Hardlink { .. } => Ok(()),
        };
        match made {
            Err(rustix::io::Errno::PERM) => {
                let text = format!("the device {} was not written: only root may make devices", entry.path);
                self.cx.progress.warn(&text);
                Ok(())
            }
            Err(error) => Err(failed(error.into())),
            Ok(()) => self.finish(&entry, &path),
        }
    }

    fn link(&self, entry: &Entry) -> Result<()> {
        let Kind::Hardlink { target } = &entry.kind else { return Ok(()) };
        let path = self.path(&entry.path);
        fs::hard_link(self.path(target), &path).map_err(|error| self.failed(entry, error))
    }

    /// Permissions and time of what is no regular file.
    fn finish(&self, entry: &Entry, path: &Path) -> Result<()> {
        let failed = |error: rustix::io::Errno| self.failed(entry, error.into());
        self.xattrs(entry, path);
        if !matches!(entry.kind, Kind::Symlink { .. }) {
            rustix::fs::chmod(path, Mode::from(self.mode(entry))).map_err(failed)?;
        }
        rustix::fs::utimensat(CWD, path, &self.times(entry), AtFlags::SYMLINK_NOFOLLOW).map_err(failed)
    }

    fn mode(&self, entry: &Entry) -> u32 {
        let mut mode = entry.mode & 0o7777;
        if entry.uid != self.uid {
            mode &= !0o4000;
        }
        if entry.gid != self.gid && !entry.is_dir() {
            mode &= !0o2000;
        }
        mode
    }

    fn times(&self, entry: &Entry) -> Timestamps {
        let time = self.epoch.unwrap_or(entry.mtime);
        let time = Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) };
        Timestamps { last_access: time, last_modification: time }
    }

    /// The user's own attributes, where the file system takes them; capabilities as the setuid bit.
    fn xattrs(&self, entry: &Entry, path: &Path) {
        for (name, value) in &entry.xattrs {
            let same_owner = name == b"security.capability" && self.uid == 0 && entry.uid == 0;
            if name.starts_with(b"user.") || same_owner {
                // Not every file system has them.
                let _ = rustix::fs::lsetxattr(path, name.as_slice(), value, XattrFlags::empty());
            }
        }
    }
}

fn make_dir(path: &Path) -> Result<()> {
    fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .map_err(|error| PortError::io("create", path, error))
        .or_else(|error| {
            // Images of several platforms in one directory share their directories.
            if path.symlink_metadata().is_ok_and(|meta| meta.is_dir()) { Ok(()) } else { Err(error) }
        })
}

/// Copies the content; holes stay holes.
fn copy(from: &mut File, to: &mut File) -> io::Result<()> {
    let meta = from.metadata()?;
    if meta.blocks().saturating_mul(512) >= meta.len() {
        return io::copy(from, to).map(drop);
    }
    let mut at = 0;
    loop {
        let data = match rustix::fs::seek(&*from, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(rustix::io::Errno::NXIO) => break,
            // A file system without holes.
            Err(_) => {
                io::Seek::seek(from, io::SeekFrom::Start(0))?;
                io::Seek::seek(to, io::SeekFrom::Start(0))?;
                return io::copy(from, to).map(drop);
            }
        };
        let hole = rustix::fs::seek(&*from, rustix::fs::SeekFrom::Hole(data))?;
        io::Seek::seek(from, io::SeekFrom::Start(data))?;
        io::Seek::seek(to, io::SeekFrom::Start(data))?;
        io::copy(&mut io::Read::take(&mut *from, hole.saturating_sub(data)), to)?;
        at = hole;
    }
    to.set_len(meta.len())
}

#[cfg(test)]
mod tests;
