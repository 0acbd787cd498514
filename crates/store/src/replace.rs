//! Small files that are complete or absent, and not synced: readers see the old one or the new one, and check what they read,
//! since the machine may lose it. A killed writer leaves nothing where the file system knows files without names.

use std::fs::{DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};

use crate::fs::random_name;

/// Puts a file with these bytes in the place of `file`, and makes its directory if need be.
///
/// # Errors
/// If it cannot be written; what was there is still there then.
pub fn replace_file(file: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let new = dir.join(format!(".new-{}", random_name()));
    let attempt = || write_new(dir, &new, bytes).and_then(|()| std::fs::rename(&new, file));
    let replaced = attempt().or_else(|error| match error.kind() {
        // There is no directory yet, or somebody tidied it up just now.
        io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            attempt()
        }
        _ => Err(error),
    });
    if replaced.is_err() {
        // It may never have been there.
        let _ = std::fs::remove_file(&new);
    }
    replaced
}

/// Writes a file that gets the name `new` when it is whole, or at once where that cannot be done.
fn write_new(dir: &Path, new: &Path, bytes: &[u8]) -> io::Result<()> {
    let mode = Mode::from_raw_mode(0o600);
    if let Ok(fd) = open(dir, OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC, mode) {
        let mut file = File::from(fd);
        file.write_all(bytes)?;
        let unnamed = format!("/proc/self/fd/{}", file.as_raw_fd());
        if linkat(CWD, unnamed.as_str(), CWD, new, AtFlags::SYMLINK_FOLLOW).is_ok() {
            return Ok(());
        }
    }
    std::fs::write(new, bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_new_file_takes_the_place_of_the_old_one_or_nothing_changes() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a/b/file");
        replace_file(&file, b"one").unwrap();
        replace_file(&file, b"two").unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), b"two");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(dir.path().join("a/b")).unwrap().count(), 1);

        let taken = dir.path().join("taken");
        std::fs::create_dir_all(taken.join("full")).unwrap();
        assert!(replace_file(&taken, b"x").is_err(), "a directory cannot be replaced");
        assert!(replace_file(&file.join("below"), b"x").is_err(), "nor is a file a directory");
        let mut names = crate::fs::names(dir.path()).unwrap();
        names.sort();
        assert_eq!(names, ["a", "taken"], "nothing is left of what failed");
    }
}
