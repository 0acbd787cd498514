//! Writing files while the stream is read (and decompressed) further. Files and links of one directory are made by
//! one thread in the order of the tar; whoever needs to see them waits with `settle`. Directories are made by the
//! reader itself: one that a file meets in its place came later, and stays.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Scope;

use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::RelPath;
use rustix::fs::{self, AtFlags, FileType};
use rustix::io::Errno;

use super::write_all;
use crate::meta::{Maker, Meta, failed};
use crate::sys;

/// Jobs that wait at most in one lane; each holds at most a chunk.
const WAITING: usize = 32;

/// Something to make in an open directory.
pub(super) enum Job {
    /// A regular file that starts with `data`; chunks follow if there is `more`.
    File { dir: Arc<OwnedFd>, path: RelPath, meta: Meta, data: Vec<u8>, more: bool },
    /// The next bytes of the file before it.
    Chunk { data: Vec<u8>, more: bool },
    /// A symbolic link.
    Symlink { dir: Arc<OwnedFd>, path: RelPath, meta: Meta, target: Vec<u8> },
    /// Says when everything before it is done.
    Mark(SyncSender<()>),
}

/// The first error of any lane.
#[derive(Default)]
pub(super) struct Outcome {
    failed: AtomicBool,
    error: Mutex<Option<PortError>>,
}

/// Threads that write.
pub(super) struct Lanes<'a> {
    lanes: Vec<(SyncSender<Job>, bool)>,
    outcome: &'a Outcome,
}

impl Outcome {
    fn note(&self, error: PortError) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.failed.store(true, Ordering::Release);
    }

    /// The error, if a lane failed.
    fn check(&self) -> Result<()> {
        if !self.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = self.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        Err(error.unwrap_or_else(|| PortError::new(ErrorKind::Internal, "unpacking failed before")))
    }
}

impl<'a> Lanes<'a> {
    /// Starts threads that end when this is dropped.
    pub(super) fn start<'s>(scope: &'s Scope<'s, '_>, maker: &'a Maker, outcome: &'a Outcome) -> Self
    where
        'a: 's,
    {
        let count = std::thread::available_parallelism().map_or(2, usize::from).clamp(1, 4);
        let lanes = (0..count).map(|_| {
            let (sender, receiver) = sync_channel(WAITING);
            scope.spawn(move || Lane { maker, outcome, open: None }.run(&receiver));
            (sender, false)
        });
        Self { lanes: lanes.collect(), outcome }
    }

    /// The lane of a directory.
    pub(super) fn of(&self, dir: &RelPath) -> usize {
        let hash = dir
            .as_bytes()
            .iter()
            .fold(0u32, |hash, byte| hash.wrapping_mul(31).wrapping_add(u32::from(*byte)));
        hash as usize % self.lanes.len().max(1)
    }

    /// Gives `job` to a lane.
    pub(super) fn send(&mut self, lane: usize, job: Job) -> Result<()> {
        self.outcome.check()?;
        let (sender, busy) = self.lanes.get_mut(lane).ok_or_else(gone)?;
        *busy = true;
        sender.send(job).map_err(|_| gone())
    }

    /// Waits until everything is made.
    pub(super) fn settle(&mut self) -> Result<()> {
        let mut waiting = Vec::new();
        for (sender, busy) in self.lanes.iter_mut().filter(|(_, busy)| *busy) {
            let (mark, done) = sync_channel(1);
            sender.send(Job::Mark(mark)).map_err(|_| gone())?;
            *busy = false;
            waiting.push(done);
        }
        for done in waiting {
            done.recv().map_err(|_| gone())?;
        }
        self.outcome.check()
    }
}

fn gone() -> PortError {
    PortError::new(ErrorKind::Internal, "a thread that unpacks has ended early")
}

struct Lane<'a> {
    maker: &'a Maker,
    outcome: &'a Outcome,
    /// The file that more chunks belong to.
    open: Option<(OwnedFd, RelPath, Meta)>,
}

impl Lane<'_> {
    fn run(mut self, jobs: &Receiver<Job>) {
        while let Ok(job) = jobs.recv() {
            if let Job::Mark(mark) = job {
                // Whoever waits may have given up.
                let _ = mark.send(());
            } else if !self.outcome.failed.load(Ordering::Acquire)
                && let Err(error) = self.job(job)
            {
                self.outcome.note(error);
            }
        }
    }

    fn job(&mut self, job: Job) -> Result<()> {
        match job {
            Job::File { dir, path, meta, data, more } => {
                let name = path.file_name().unwrap_or_default();
                let made = make(&dir, &path, || self.maker.file(&*dir, name, meta.mode))?;
                self.open = made.map(|file| (file, path, meta));
                self.write(&data, more)
            }
            Job::Chunk { data, more } => self.write(&data, more),
            Job::Symlink { dir, path, meta, target } => {
                let name = path.file_name().unwrap_or_default();
                make(&dir, &path, || self.maker.symlink(&*dir, name, &target, &meta)).map(drop)
            }
            Job::Mark(_) => Ok(()),
        }
    }

    fn write(&mut self, data: &[u8], more: bool) -> Result<()> {
        let Some((file, path, meta)) = &self.open else { return Ok(()) };
        write_all(file, data).map_err(|e| failed("write", path, e))?;
        if !more {
            let done = self.maker.finish_file(file, meta);
            done.map_err(|e| failed("set the owner, mode or attributes of", path, e))?;
            self.open = None;
        }
        Ok(())
    }
}

/// Makes something in the place of what earlier entries made; `None` where a later directory is.
fn make<T>(
    dir: &OwnedFd,
    path: &RelPath,
    make: impl Fn() -> std::result::Result<T, Errno>,
) -> Result<Option<T>> {
    let fail = |error: Errno| failed("create", path, error);
    let name = path.file_name().unwrap_or_default();
    loop {
        match make() {
            Err(Errno::EXIST) => {}
            other => return other.map(Some).map_err(fail),
        }
        let stat = sys::stat_at(dir, name).map_err(fail)?;
        if stat.is_some_and(|stat| sys::file_type(&stat) == FileType::Directory) {
            return Ok(None);
        }
        match fs::unlinkat(dir, name, AtFlags::empty()) {
            // A directory that came just now.
            Ok(()) | Err(Errno::NOENT | Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(fail(error)),
        }
    }
}
