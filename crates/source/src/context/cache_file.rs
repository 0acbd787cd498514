//! The stat cache of one context directory: a flat file of sorted records, read at once and searched in place. Format,
//! version 1, all numbers little-endian: see `FORMAT.md`. A file that is damaged, of another version or of another
//! directory is no cache; a record whose file might have changed within the clock's grain is never written.

use rbuild_digest::Digest;

use super::stat::Stat;

const MAGIC: &[u8; 8] = b"rbstat\0\x01";
const HEADER: usize = 48;
const DIR: usize = 20;
const RECORD: usize = 96;
/// The file has extended attributes that go along.
pub(crate) const HAS_XATTRS: u32 = 1;

/// A stat cache as read from a file, or none.
#[derive(Default)]
pub(crate) struct CacheFile {
    bytes: Vec<u8>,
    dirs: usize,
    records: usize,
}

/// One remembered digest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Record {
    pub(crate) stat: Stat,
    pub(crate) digest: Digest,
    pub(crate) flags: u32,
}

/// The records of one directory.
#[derive(Clone, Copy)]
pub(crate) struct DirRecords<'a> {
    file: &'a CacheFile,
    first: usize,
    count: usize,
    /// Days since 1970 when it was last looked at.
    pub(crate) used: u32,
}

impl CacheFile {
    /// Takes the bytes of a file, if they are a whole cache of the directory `root`.
    pub(crate) fn parse(bytes: Vec<u8>, root: &[u8]) -> Option<Self> {
        let number =
            |at: usize| bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        if bytes.get(..8)? != MAGIC || number(8)? != checksum(bytes.get(16..)?) {
            return None;
        }
        let dirs = usize::try_from(number(16)?).ok()?;
        let records = usize::try_from(number(24)?).ok()?;
        let names = usize::try_from(number(32)?).ok()?;
        let root_length = usize::try_from(number(40)?).ok()?;
        let size = dirs
            .checked_mul(DIR)?
            .checked_add(records.checked_mul(RECORD)?)?
            .checked_add(names)?
            .checked_add(HEADER)?;
        let file = Self { bytes, dirs, records };
        // The names begin with the path of the directory itself.
        (file.bytes.len() == size && file.name(0, root_length) == root && file.is_sound()).then_some(file)
    }

    /// Whether all positions lie inside: then no later access can fail.
    fn is_sound(&self) -> bool {
        let names = self.bytes.len() - self.names_start();
        let inside = |offset: u32, length: u32| {
            (offset as usize).checked_add(length as usize).is_some_and(|end| end <= names)
        };
        let dirs = (0..self.dirs).all(|n| {
            let at = HEADER + n * DIR;
            let end = (self.u32(at + 8) as usize).checked_add(self.u32(at + 12) as usize);
            inside(self.u32(at), self.u32(at + 4)) && end.is_some_and(|end| end <= self.records)
        });
        dirs && (0..self.records).all(|n| {
            let at = self.record_at(n);
            inside(self.u32(at + 56), self.u32(at + 60))
        })
    }

    /// How many records.
    pub(crate) fn len(&self) -> usize {
        self.records
    }

    /// The directories in order: path and records.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&[u8], DirRecords<'_>)> {
        (0..self.dirs).map(|n| self.dir_at(n))
    }

    /// The records of the directory at `path`.
    pub(crate) fn dir(&self, path: &[u8]) -> Option<DirRecords<'_>> {
        let (mut low, mut high) = (0, self.dirs);
        while low < high {
            let middle = low.midpoint(high);
            let (found, records) = self.dir_at(middle);
            match found.cmp(path) {
                std::cmp::Ordering::Equal => return Some(records),
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }

    fn dir_at(&self, n: usize) -> (&[u8], DirRecords<'_>) {
        let at = HEADER + n * DIR;
        let path = self.name(self.u32(at) as usize, self.u32(at + 4) as usize);
        let (first, count) = (self.u32(at + 8) as usize, self.u32(at + 12) as usize);
        (path, DirRecords { file: self, first, count, used: self.u32(at + 16) })
    }

    fn record_at(&self, n: usize) -> usize {
        HEADER + self.dirs * DIR + n * RECORD
    }

    fn names_start(&self) -> usize {
        self.record_at(self.records)
    }

    fn name(&self, offset: usize, length: usize) -> &[u8] {
        let start = self.names_start().saturating_add(offset);
        self.bytes.get(start..start.saturating_add(length)).unwrap_or_default()
    }

    fn u32(&self, at: usize) -> u32 {
        self.bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes)
    }

    fn u64(&self, at: usize) -> u64 {
        self.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_le_bytes)
    }
}

impl<'a> DirRecords<'a> {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The name of the `n`th.
    pub(crate) fn name(&self, n: usize) -> &'a [u8] {
        let at = self.file.record_at(self.first + n);
        self.file.name(self.file.u32(at + 56) as usize, self.file.u32(at + 60) as usize)
    }

    /// The `n`th.
    pub(crate) fn record(&self, n: usize) -> Record {
        let (file, at) = (self.file, self.file.record_at(self.first + n));
        let seconds = |at| i64::from_le_bytes(file.u64(at).to_le_bytes());
        let stat = Stat {
            ino: file.u64(at),
            dev: file.u64(at + 8),
            size: file.u64(at + 16),
            mtime: (seconds(at + 24), file.u32(at + 40)),
            ctime: (seconds(at + 32), file.u32(at + 44)),
            mode: file.u32(at + 48),
        };
        let digest = file.bytes.get(at + 64..at + 96).and_then(|b| b.try_into().ok()).unwrap_or([0; 32]);
        Record { stat, digest: Digest::from_bytes(digest), flags: file.u32(at + 52) }
    }

    /// The record of `name`, searched from `hint` on: a walk in order finds each at once. Updates the hint.
    pub(crate) fn find(&self, name: &[u8], hint: &mut usize) -> Option<Record> {
        while *hint < self.count {
            match self.name(*hint).cmp(name) {
                std::cmp::Ordering::Less => *hint += 1,
                std::cmp::Ordering::Equal => {
                    *hint += 1;
                    return Some(self.record(*hint - 1));
                }
                std::cmp::Ordering::Greater => return None,
            }
        }
        None
    }

    /// Where a search for names from `name` on begins.
    pub(crate) fn lower_bound(&self, name: &[u8]) -> usize {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            if self.name(middle) < name { low = middle + 1 } else { high = middle }
        }
        low
    }
}

/// Writes a cache file. Directories, and records in one, must come in order.
pub(crate) struct CacheWriter {
    dirs: Vec<u8>,
    records: Vec<u8>,
    names: Vec<u8>,
    root_length: usize,
}

impl CacheWriter {
    pub(crate) fn new(root: &[u8]) -> Self {
        Self { dirs: vec![], records: vec![], names: root.to_vec(), root_length: root.len() }
    }

    /// Starts a directory; its records follow.
    pub(crate) fn dir(&mut self, path: &[u8], used: u32) {
        let offset = self.add_name(path);
        let first = self.records.len() / RECORD;
        for number in [offset, size32(path.len()), size32(first), 0, used] {
            self.dirs.extend_from_slice(&number.to_le_bytes());
        }
    }

    /// Adds a record to the directory started last.
    pub(crate) fn record(&mut self, name: &[u8], record: &Record) {
        let offset = self.add_name(name);
        let stat = &record.stat;
        for number in [stat.ino, stat.dev, stat.size] {
            self.records.extend_from_slice(&number.to_le_bytes());
        }
        for number in [stat.mtime.0, stat.ctime.0] {
            self.records.extend_from_slice(&number.to_le_bytes());
        }
        for number in [stat.mtime.1, stat.ctime.1, stat.mode, record.flags, offset, size32(name.len())] {
            self.records.extend_from_slice(&number.to_le_bytes());
        }
        self.records.extend_from_slice(record.digest.as_bytes());
        if let Some(at) = self.dirs.len().checked_sub(8)
            && let Some(count) = self.dirs.get_mut(at..at + 4)
        {
            let n = u32::from_le_bytes([count[0], count[1], count[2], count[3]]).wrapping_add(1);
            count.copy_from_slice(&n.to_le_bytes());
        }
    }

    /// The file, or `None` when it became too large for its format.
    pub(crate) fn finish(self) -> Option<Vec<u8>> {
        let total = HEADER + self.dirs.len() + self.records.len() + self.names.len();
        if total >= u32::MAX as usize {
            return None;
        }
        let mut out = Vec::with_capacity(total);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 8]);
        for number in [self.dirs.len() / DIR, self.records.len() / RECORD, self.names.len(), self.root_length]
        {
            out.extend_from_slice(&(number as u64).to_le_bytes());
        }
        out.extend_from_slice(&self.dirs);
        out.extend_from_slice(&self.records);
        out.extend_from_slice(&self.names);
        let sum = checksum(&out[16..]);
        out[8..16].copy_from_slice(&sum.to_le_bytes());
        Some(out)
    }

    fn add_name(&mut self, name: &[u8]) -> u32 {
        let offset = size32(self.names.len());
        self.names.extend_from_slice(name);
        offset
    }
}

fn size32(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Tells damage from a whole file; no protection against intent. Four lanes, so that it keeps up with reading.
fn checksum(bytes: &[u8]) -> u64 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut lanes = [K, K.rotate_left(16), K.rotate_left(32), K.rotate_left(48)];
    let mut blocks = bytes.chunks_exact(32);
    for block in &mut blocks {
        for (lane, word) in lanes.iter_mut().zip(block.chunks_exact(8)) {
            let word = word.try_into().map_or(0, u64::from_le_bytes);
            *lane = (*lane ^ word).wrapping_mul(K).rotate_left(29);
        }
    }
    let mut sum = bytes.len() as u64;
    for byte in blocks.remainder() {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(K).rotate_left(29);
    }
    for lane in lanes {
        sum = (sum ^ lane).wrapping_mul(K).rotate_left(31);
    }
    sum ^ sum >> 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = CacheWriter::new(b"/ctx");
        for dir in ["", "a", "a/b"] {
            writer.dir(dir.as_bytes(), 7);
            for name in ["m", "n", "z"] {
                let stat = Stat {
                    ino: 9,
                    size: dir.len() as u64,
                    mtime: (-5, 6),
                    mode: 0o100_644,
                    ..Stat::default()
                };
                let digest = Digest::of(format!("{dir}/{name}"));
                writer.record(name.as_bytes(), &Record { stat, digest, flags: HAS_XATTRS });
            }
        }
        writer.finish().unwrap()
    }

    #[test]
    fn what_is_written_is_found() {
        let file = CacheFile::parse(sample(), b"/ctx").unwrap();
        let dir = file.dir(b"a/b").unwrap();
        assert_eq!((dir.len(), dir.used), (3, 7));
        let mut hint = 0;
        assert_eq!(dir.find(b"k", &mut hint), None);
        let record = dir.find(b"n", &mut hint).unwrap();
        assert_eq!((record.digest, record.flags), (Digest::of("a/b/n"), HAS_XATTRS));
        assert_eq!((record.stat.mtime, record.stat.mode, record.stat.size), ((-5, 6), 0o100_644, 3));
        assert_eq!(dir.find(b"zz", &mut hint), None);
        assert_eq!((dir.lower_bound(b"n"), dir.lower_bound(b"zz")), (1, 3));
        assert!(file.dir(b"b").is_none());
        assert_eq!(file.all().count(), 3);
    }

    #[test]
    fn damage_is_no_cache() {
        let whole = sample();
        assert!(CacheFile::parse(whole.clone(), b"/other").is_none());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert!(CacheFile::parse(bytes, b"/ctx").is_none(), "byte {at}");
            assert!(CacheFile::parse(whole[..at].to_vec(), b"/ctx").is_none(), "length {at}");
        }
    }
}
