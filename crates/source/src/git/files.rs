//! A checkout's files as a build sees them: the same modes on every machine, and nothing of git itself.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Modes become 0755 and 0644, whatever the umask is. Without `keep_git_dir`, what is called `.git` goes: the directory at the
/// root, and the files of submodules.
pub(super) fn normalise(root: &Path, keep_git_dir: bool) -> io::Result<()> {
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            if entry.file_name() == ".git" {
                match (keep_git_dir, kind.is_dir()) {
                    (true, _) => {}
                    (false, true) => fs::remove_dir_all(&path)?,
                    (false, false) => fs::remove_file(&path)?,
                }
                continue;
            }
            if kind.is_dir() {
                set_mode(&path, 0o755)?;
                dirs.push(path);
            } else if kind.is_file() {
                let executable = entry.metadata()?.permissions().mode() & 0o100 != 0;
                set_mode(&path, if executable { 0o755 } else { 0o644 })?;
            }
        }
    }
    set_mode(root, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> io::Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
}

/// The directory `subdir` of a checkout; symbolic links do not count, since they could lead out of it.
pub(super) fn subdirectory(root: &Path, subdir: &str) -> Result<PathBuf, String> {
    let mut dir = root.to_owned();
    for part in subdir.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(format!("the directory {subdir:?} leads out of the repository"));
        }
        dir.push(part);
        match fs::symlink_metadata(&dir) {
            Ok(found) if found.is_dir() => {}
            Ok(_) => return Err(format!("{subdir:?} is no directory")),
            Err(_) => return Err(format!("there is no directory {subdir:?}")),
        }
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_are_made_equal() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["sub/.git", "sub/deep", ".git/objects"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for (name, mode) in [("a", 0o600), ("run", 0o700), ("sub/deep/.git", 0o644), (".gitignore", 0o664)] {
            fs::write(at(name), "x").unwrap();
            set_mode(&at(name), mode).unwrap();
        }
        std::os::unix::fs::symlink("/etc", at("link")).unwrap();
        set_mode(&at("sub"), 0o700).unwrap();
        normalise(dir.path(), true).unwrap();
        assert!(at(".git/objects").exists() && at("sub/.git").exists());
        normalise(dir.path(), false).unwrap();
        for gone in [".git", "sub/.git", "sub/deep/.git"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        let mode = |name: &str| fs::symlink_metadata(at(name)).unwrap().permissions().mode() & 0o7777;
        assert_eq!([mode("a"), mode("run"), mode(".gitignore")], [0o644, 0o755, 0o644]);
        assert_eq!([mode("sub"), mode("sub/deep")], [0o755, 0o755]);
        assert_eq!(
            subdirectory(dir.path(), "/sub/./deep/").unwrap(),
            at("sub/./deep".replace("./", "").as_str())
        );
        for bad in ["link", "sub/../..", "nowhere", "a"] {
            assert!(subdirectory(dir.path(), bad).is_err(), "{bad}");
        }
    }
}
