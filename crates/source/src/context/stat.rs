//! What the file system says of an entry: enough to know whether a remembered digest still holds. Content that changed
//! without a trace in size and mtime still changes the ctime, which nobody can set.

use rustix::fs::FileType;

/// Identity and times of an entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Stat {
    pub(crate) ino: u64,
    pub(crate) dev: u64,
    pub(crate) size: u64,
    /// Type and permission bits.
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) ctime: (i64, u32),
}

impl Stat {
    #[expect(clippy::unnecessary_cast, reason = "the fields' types differ between architectures")]
    pub(crate) fn new(stat: &rustix::fs::Stat) -> Self {
        let nanos = |n: i128| u32::try_from(n).unwrap_or(0).min(999_999_999);
        Self {
            ino: stat.st_ino as u64,
            dev: stat.st_dev as u64,
            size: stat.st_size as u64,
            mode: stat.st_mode as u32,
            mtime: (stat.st_mtime as i64, nanos(stat.st_mtime_nsec as i128)),
            ctime: (stat.st_ctime as i64, nanos(stat.st_ctime_nsec as i128)),
        }
    }

    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.file_type() == FileType::Directory
    }

    pub(crate) fn is_file(&self) -> bool {
        self.file_type() == FileType::RegularFile
    }

    /// Nanoseconds since 1970 of the later of the two times.
    pub(crate) fn changed_nanos(&self) -> i128 {
        nanos(self.mtime).max(nanos(self.ctime))
    }

    pub(crate) fn mtime_nanos(&self) -> i128 {
        nanos(self.mtime)
    }
}

fn nanos((secs, nanos): (i64, u32)) -> i128 {
    i128::from(secs) * 1_000_000_000 + i128::from(nanos)
}
