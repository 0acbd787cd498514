//! Walks in plain directories: which need neither mounts nor root.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use super::*;
use crate::stubs;

fn open_root(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

/// Makes `tree`, walks to `path` in `tree/root`, and says where that led.
fn check(tree: impl FnOnce(&Path), path: &str, want: Want, expected: &str) {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path().join("root");
    fs::create_dir(&root).unwrap();
    tree(&root);
    let outside = listing(temp.path());
    let at = open_root(&root);
    let mut walker = Walker::new(Rc::new(open_root(&root)), Some(at.as_fd()));
    let got = match walker.walk(path, want) {
        Ok(found) => show(&found.path),
        Err(error) => format!("error: {error}"),
    };
    assert_eq!(got, expected, "{path}");
    stubs::remove(at.as_fd(), walker.stubs(), false).unwrap();
    if want != Want::KeptDir {
        assert_eq!(listing(temp.path()), outside, "{path} left something");
    }
}

/// Every path with type and time.
fn listing(root: &Path) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        out.push(format!("{} {:o} {}.{}", path.display(), meta.mode(), meta.mtime(), meta.mtime_nsec()));
        if meta.is_dir() {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    out.sort();
    out
}

#[test]
fn links_stay_inside() {
    let links = |root: &Path| {
        fs::create_dir_all(root.join("real/deep")).unwrap();
        symlink("/real", root.join("abs")).unwrap();
        symlink("../../../../../real", root.join("up")).unwrap();
        symlink("real/deep/..", root.join("back")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/", root.join("top")).unwrap();
        fs::write(root.join("file"), "").unwrap();
    };
    check(links, "/abs/deep", Want::StubDir, "/real/deep");
    check(links, "/up/new/dir", Want::StubDir, "/real/new/dir");
    check(links, "/top/top/abs/f", Want::StubFile, "/real/f");
    check(links, "back/x", Want::StubDir, "/real/x");
    check(links, "/../..", Want::StubDir, "/");
    check(links, "/real/./deep//../deep", Want::StubDir, "/real/deep");
    check(links, "/loop/x", Want::StubDir, "error: /loop/x: too many levels of symbolic links");
    check(links, "/file/x", Want::StubDir, "error: /file/x: not a directory");
    check(links, "/file", Want::StubDir, "error: /file is a file in the image, not a directory");
    check(links, "/real", Want::StubFile, "error: /real is a directory in the image, not a file");
    check(
        links,
        "/abs",
        Want::RealDir,
        "error: /abs is a symbolic link in the image, which is not allowed there",
    );
    check(links, "/abs/kept/dir", Want::KeptDir, "/real/kept/dir");
}

#[test]
fn dangling_links_are_filled_where_they_point() {
    let links = |root: &Path| {
        fs::create_dir(root.join("etc")).unwrap();
        symlink("../run/systemd/resolve/stub.conf", root.join("etc/resolv.conf")).unwrap();
    };
    check(links, "/etc/resolv.conf", Want::StubFile, "/run/systemd/resolve/stub.conf");
}

#[test]
fn mounts_are_entered_and_kernel_mounts_refused() {
    let temp = tempfile::tempdir().unwrap();
    let (root, other) = (temp.path().join("root"), temp.path().join("other"));
    fs::create_dir_all(root.join("a")).unwrap();
    fs::create_dir_all(other.join("inner")).unwrap();
    symlink("/a/inner", root.join("link")).unwrap();
    let at = open_root(&root);
    let mut walker = Walker::new(Rc::new(open_root(&root)), Some(at.as_fd()));
    let a = walker.walk("/a", Want::StubDir).unwrap();
    walker.mount(&a.path, Rc::new(open_root(&other)));
    let proc = walker.walk("/proc", Want::RealDir).unwrap();
    walker.mount_kernel(&proc.path);
    let inner = walker.walk("/link", Want::StubDir).unwrap();
    let expected = fs::metadata(other.join("inner")).unwrap().ino();
    assert_eq!(mnt::stat(inner.at.as_fd()).unwrap().st_ino, expected);
    // What is made inside a mount belongs to it.
    walker.walk("/a/new", Want::StubDir).unwrap();
    assert!(other.join("new").is_dir() && !root.join("a/new").exists());
    let error = walker.walk("/a/../proc/self/fd/7", Want::KeptDir).map(|_| ()).unwrap_err();
    assert_eq!(error.to_string(), "/a/../proc/self/fd/7 is inside /proc, which the kernel makes");
    assert_eq!(walker.stubs().made.len(), 0);
    stubs::remove(at.as_fd(), &walker.into_stubs(), false).unwrap();
    // The kernel's place stays, with the time of the directory that it is in.
    let time = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert_eq!(time(&root.join("proc")), time(&root));
    assert!(other.join("new").exists());
}

#[test]
fn only_what_was_made_is_removed() {
    let temp = tempfile::tempdir().unwrap();
    let root = temp.path();
    fs::create_dir(root.join("canary")).unwrap();
    let at = open_root(root);
    let mut walker = Walker::new(Rc::new(open_root(root)), Some(at.as_fd()));
    for path in ["/x/f", "/swapped", "/filled", "/parent/f", "/written"] {
        walker.walk(path, if path == "/filled" { Want::StubDir } else { Want::StubFile }).unwrap();
    }
    fs::write(root.join("other"), "").unwrap();
    fs::remove_file(root.join("swapped")).unwrap();
    fs::rename(root.join("other"), root.join("swapped")).unwrap();
    fs::write(root.join("filled/data"), "").unwrap();
    fs::write(root.join("written"), "data").unwrap();
    fs::rename(root.join("parent"), root.join("gone")).unwrap();
    symlink("canary", root.join("parent")).unwrap();
    fs::write(root.join("canary/f"), "").unwrap();
    stubs::remove(at.as_fd(), &walker.into_stubs(), false).unwrap();
    assert!(!root.join("x").exists());
    for kept in ["swapped", "filled/data", "written", "canary/f", "gone/f"] {
        assert!(root.join(kept).exists(), "{kept}");
    }
}
