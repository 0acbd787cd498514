//! Small helpers over the file system whose errors name the path.

use std::fs::{DirBuilder, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rbuild_ports::{PortError, Result};

/// Thirteen characters of `a-z2-7` that no other call, thread or process returns: a counter hashed under a key
/// that the system's random source gave.
pub(crate) fn random_name() -> String {
    const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(COUNTER.fetch_add(1, Ordering::Relaxed));
    hasher.write_u32(std::process::id());
    let bits = hasher.finish();
    (0..13).map(|i| char::from(ALPHABET[(bits >> (i * 5) & 31) as usize])).collect()
}

/// Makes a directory of mode 0700 unless it is there.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(PortError::io("create", path, error)),
    }
}

/// The names in a directory, sorted; none when it is not there. Names that are no UTF-8 are not ours and left out.
pub(crate) fn names(path: &Path) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(PortError::io("read", path, error)),
    };
    let mut out = vec![];
    for entry in entries {
        let entry = entry.map_err(|error| PortError::io("read", path, error))?;
        out.extend(entry.file_name().into_string());
    }
    out.sort_unstable();
    Ok(out)
}

/// Removes a file; one that is not there is fine.
pub(crate) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PortError::io("remove", path, error)),
        _ => Ok(()),
    }
}

/// Whether `path` is still the name of the open `file`.
pub(crate) fn still_named(file: &File, path: &Path) -> io::Result<bool> {
    let open = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
