//! The stat cache of a context directory between builds: loaded once, written again when new digests were computed.
//! Losing it costs time, never correctness.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use rbuild_digest::Digest;
use rbuild_store::replace_file;

use super::cache_file::{CacheFile, CacheWriter, Record};

/// Directories that nobody looked at for so many days are forgotten.
const KEEP_DAYS: u32 = 30;
/// A file larger than this is no cache.
const MAX_FILE: u64 = 1 << 30;

/// A clock's grain, with room to spare: file systems of this machine stamp with the kernel's clock tick.
const MARGIN: Duration = Duration::from_millis(100);
/// Others stamp with the clock of a server, or in whole seconds.
const MARGIN_FOREIGN: Duration = Duration::from_secs(5);

/// Digests by directory and name.
pub(crate) type Fresh = BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Record>>;

/// The cache of one context directory.
pub(crate) struct StatCache {
    shared: Arc<Shared>,
    /// Threads that write; waited for in the end.
    writers: Mutex<Vec<JoinHandle<()>>>,
    margin: Duration,
}

struct Shared {
    /// `None` remembers nothing.
    file: Option<PathBuf>,
    root: Vec<u8>,
    known: Mutex<Arc<CacheFile>>,
}

impl StatCache {
    /// Loads the cache of `root`, kept below `state`.
    pub(crate) fn load(state: Option<&Path>, root: &Path) -> Self {
        let root_bytes = root.as_os_str().as_bytes().to_vec();
        let file = state.map(|state| state.join("statcache").join(Digest::of(&root_bytes).hex()));
        let known = file.as_deref().and_then(|file| read_file(file, &root_bytes)).unwrap_or_default();
        let shared = Shared { file, root: root_bytes, known: Mutex::new(Arc::new(known)) };
        Self { shared: Arc::new(shared), writers: Mutex::default(), margin: margin(root) }
    }

    pub(crate) fn known(&self) -> Arc<CacheFile> {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The time before which a file must have changed last, to be remembered by a walk that starts now. What changed
    /// later might change again without another time stamp.
    pub(crate) fn horizon(&self) -> i128 {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i128::try_from(now.saturating_sub(self.margin).as_nanos()).unwrap_or(0)
    }

    /// Whether writing the file for so many new digests is cheaper than computing them again in the next build.
    pub(crate) fn is_worth_writing(&self, files: u64, bytes: u64) -> bool {
        const FILES: u64 = 100;
        const BYTES: u64 = 8 << 20;
        self.shared.file.is_some()
            && (files >= FILES || bytes >= BYTES || files * 20 >= self.known().len() as u64)
    }

    /// Adds `fresh` to what is known and writes it, while others go on. Errors are none: then the next build hashes
    /// again.
    pub(crate) fn save(&self, fresh: Fresh) {
        let shared = self.shared.clone();
        let writer =
            std::thread::Builder::new().name("rbuild-stat".to_owned()).spawn(move || shared.save(&fresh));
        if let Ok(writer) = writer {
            self.writers.lock().unwrap_or_else(PoisonError::into_inner).push(writer);
        }
    }
}

impl Drop for StatCache {
    fn drop(&mut self) {
        let writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        for writer in writers {
            let _ = writer.join();
        }
    }
}

impl Shared {
    fn save(&self, fresh: &Fresh) {
        let Some(file) = &self.file else { return };
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bytes) = merge(&known, fresh, &self.root, today()) else { return };
        if replace_file(file, &bytes).is_ok()
            && let Some(merged) = CacheFile::parse(bytes, &self.root)
        {
            *known = Arc::new(merged);
        }
    }
}

/// Old and new records in order; new ones win.
fn merge(known: &CacheFile, fresh: &Fresh, root: &[u8], today: u32) -> Option<Vec<u8>> {
    let mut writer = CacheWriter::new(root);
    let mut fresh = fresh.iter().peekable();
    let mut old =
        known.all().filter(|(_, records)| records.used.saturating_add(KEEP_DAYS) >= today).peekable();
    loop {
        let next = match (old.peek(), fresh.peek()) {
            (None, None) => break,
            (Some((path, _)), None) => *path,
            (None, Some((path, _))) => path.as_slice(),
            (Some((a, _)), Some((b, _))) => (*a).min(b.as_slice()),
        };
        let old_dir = old.next_if(|(path, _)| *path == next).map(|(_, records)| records);
        let fresh_dir = fresh.next_if(|(path, _)| path.as_slice() == next);
        let used = if fresh_dir.is_some() { today } else { old_dir.map_or(today, |records| records.used) };
        writer.dir(next, used);
        let empty = BTreeMap::new();
        let mut new = fresh_dir.map_or(&empty, |(_, records)| records).iter().peekable();
        let count = old_dir.map_or(0, |records| records.len());
        let mut n = 0;
        loop {
            let name = old_dir.filter(|_| n < count).map(|records| records.name(n));
            match (name, new.peek()) {
                (None, None) => break,
                (Some(name), Some((other, _))) if name == other.as_slice() => n += 1,
                (Some(name), other) if other.is_none_or(|(other, _)| name < other.as_slice()) => {
                    if let Some(records) = old_dir {
                        writer.record(name, &records.record(n));
                    }
                    n += 1;
                }
                _ => {
                    if let Some((name, record)) = new.next() {
                        writer.record(name, record);
                    }
                }
            }
        }
    }
    writer.finish()
}

fn read_file(file: &Path, root: &[u8]) -> Option<CacheFile> {
    let length = std::fs::metadata(file).ok()?.len();
    if length > MAX_FILE {
        return None;
    }
    CacheFile::parse(std::fs::read(file).ok()?, root)
}

fn today() -> u32 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u32::try_from(now.as_secs() / 86_400).unwrap_or(0)
}

/// How long ago a change must be. Known local file systems use the kernel's clock.
fn margin(root: &Path) -> Duration {
    const LOCAL: [u32; 10] = [
        0xEF53,      // ext
        0x5846_5342, // xfs
        0x9123_683E, // btrfs
        0x0102_1994, // tmpfs
        0x794C_7630, // overlayfs
        0x2FC1_2FC1, // zfs
        0xF2F5_2010, // f2fs
        0xCA45_1A4E, // bcachefs
        0x8584_58F6, // ramfs
        0xE0F5_E1E2, // erofs
    ];
    let local = rustix::fs::statfs(root).is_ok_and(|stat| {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "magic numbers have 32 bits"
        )]
        let kind = stat.f_type as u32;
        LOCAL.contains(&kind)
    });
    if local { MARGIN } else { MARGIN_FOREIGN }
}
