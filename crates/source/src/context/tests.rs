//! The local context: filters against a naive reading of the rules, what the stat cache may and may not believe,
//! links, races.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use rbuild_digest::Digest;
use rbuild_graph::LocalSource;
use rbuild_ports::{CancelToken, ErrorKind, View};
use rbuild_tree::{Entry, Kind, MatchInfo, PatternMatcher, RelPath, entry_hasher, header_digest};

use super::Contexts;

struct Space {
    dir: tempfile::TempDir,
}

impl Space {
    fn new(files: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("ctx")).unwrap();
        let space = Self { dir };
        for file in files {
            space.write(file, file);
        }
        space
    }

    fn ctx(&self) -> PathBuf {
        self.dir.path().join("ctx")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Writes a file; a name that ends in a slash is a directory.
    fn write(&self, path: &str, content: &str) {
        let full = self.ctx().join(path);
        if path.ends_with('/') {
            fs::create_dir_all(full).unwrap();
        } else {
            fs::create_dir_all(full.parent().unwrap()).unwrap();
            fs::write(full, content).unwrap();
        }
    }

    /// Makes everything look as if it had been there for long: the clock cannot be turned back, so it waits.
    fn settle(&self) {
        std::thread::sleep(Duration::from_millis(160));
    }

    fn view(&self, source: &LocalSource) -> Arc<dyn View> {
        let contexts = Contexts::new(Some(self.state()));
        contexts.view(&self.ctx(), source, &CancelToken::new()).unwrap()
    }

    fn all(&self) -> Arc<dyn View> {
        self.view(&source(&[], &[], &[]))
    }
}

fn source(include: &[&str], exclude: &[&str], follow: &[&str]) -> LocalSource {
    let list = |items: &[&str]| items.iter().map(|&item| item.to_owned()).collect();
    LocalSource {
        name: "context".to_owned(),
        include: list(include),
        exclude: list(exclude),
        follow_paths: list(follow),
    }
}

fn path(text: &str) -> RelPath {
    if text.is_empty() { RelPath::root() } else { RelPath::parse(text).unwrap() }
}

/// All paths of a view in walk order, directories with a slash behind.
fn list(view: &dyn View) -> Vec<String> {
    let mut out = Vec::new();
    let mut todo = vec![RelPath::root()];
    while let Some(dir) = todo.pop() {
        let mut below = Vec::new();
        for name in view.children(&dir).unwrap() {
            let child = dir.child(&name).unwrap();
            let entry = view.lookup(&child).unwrap().unwrap();
            let slash = if entry.is_dir() { "/" } else { "" };
            out.push(format!("{}{slash}", child.to_string().trim_start_matches('/')));
            if entry.is_dir() {
                below.push(child);
            }
        }
        todo.extend(below);
    }
    out.sort();
    out
}

fn digests(view: &dyn View) -> BTreeMap<String, Digest> {
    let files: Vec<RelPath> =
        list(view).iter().filter(|name| !name.ends_with('/')).map(|name| path(name)).collect();
    let digests = view.entry_digests(&files).unwrap();
    files.iter().map(ToString::to_string).zip(digests).collect()
}

fn expected(content: &[u8], mode: u32) -> Digest {
    let entry = Entry::new(RelPath::root(), Kind::File { size: content.len() as u64 }, mode);
    let mut hasher = entry_hasher(&entry);
    hasher.update(content);
    hasher.finish()
}

#[test]
fn entries_are_as_on_disk_and_owned_by_root() {
    let space = Space::new(&["b/x", "a", "empty/"]);
    symlink("../a", space.ctx().join("b/link")).unwrap();
    fs::set_permissions(space.ctx().join("a"), fs::Permissions::from_mode(0o640)).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        space.ctx().join("pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(space.ctx().join("socket")).unwrap();
    let view = space.all();
    assert!(view.is_local());
    assert_eq!(list(&*view), ["a", "b/", "b/link", "b/x", "empty/", "pipe"]);
    let entry = view.lookup(&path("a")).unwrap().unwrap();
    assert_eq!((entry.mode, entry.uid, entry.gid, entry.kind), (0o640, 0, 0, Kind::File { size: 1 }));
    let mtime = fs::metadata(space.ctx().join("a")).unwrap().modified().unwrap();
    let mtime = mtime.duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!((entry.mtime.secs, entry.mtime.nanos), (mtime.as_secs() as i64, mtime.subsec_nanos()));
    let link = view.lookup(&path("b/link")).unwrap().unwrap();
    assert_eq!(link.kind, Kind::Symlink { target: b"../a".to_vec() });
    assert_eq!(view.entry_digest(&path("b/link")).unwrap(), header_digest(&link));
    assert_eq!(view.entry_digest(&path("a")).unwrap(), expected(b"a", 0o640));
    assert_eq!(view.entry_digest(&RelPath::root()).unwrap(), Digest::of(""));
    assert_eq!(view.lookup(&path("pipe")).unwrap().unwrap().kind, Kind::Fifo);
    let mut text = String::new();
    view.open(&path("b/x")).unwrap().read_to_string(&mut text).unwrap();
    assert_eq!(text, "b/x");
    for missing in ["nope", "a/x", "b/link/x", "socket"] {
        assert!(view.lookup(&path(missing)).unwrap().is_none(), "{missing}");
    }
    for no_file in ["b", "b/link", "pipe", "nope"] {
        assert_eq!(view.open(&path(no_file)).unwrap_err().kind, ErrorKind::NotFound, "{no_file}");
    }
    for no_dir in ["a", "b/link", "nope"] {
        assert_eq!(view.children(&path(no_dir)).unwrap_err().kind, ErrorKind::NotFound, "{no_dir}");
    }
}

#[test]
fn a_known_vector() {
    let space = Space::new(&[]);
    space.write("f", "data0");
    fs::set_permissions(space.ctx().join("f"), fs::Permissions::from_mode(0o644)).unwrap();
    let digest = space.all().entry_digest(&path("f")).unwrap();
    assert!(digest.to_string().starts_with("sha256:cd8e75bc"), "{digest}");
}

#[test]
fn extended_attributes_count() {
    let space = Space::new(&["a", "d/"]);
    let set = |name: &str, on: &str| {
        rustix::fs::lsetxattr(space.ctx().join(on), name, b"v", rustix::fs::XattrFlags::empty()).is_ok()
    };
    let plain = space.all().entry_digest(&path("a")).unwrap();
    if !set("user.test", "a") || !set("user.dir", "d") {
        println!("skipped: this file system has no user attributes");
        return;
    }
    space.settle();
    for _ in 0..2 {
        let view = space.all();
        let with = digests(&*view)["/a"];
        assert_ne!(with, plain);
        let entry = view.lookup(&path("a")).unwrap().unwrap();
        assert_eq!(entry.xattrs.get(&b"user.test"[..]).map(Vec::as_slice), Some(&b"v"[..]));
        assert!(view.lookup(&path("d")).unwrap().unwrap().xattrs.contains_key(&b"user.dir"[..]));
    }
}

#[test]
fn ignore_patterns() {
    let files = [
        "a.txt",
        "b.md",
        "src/main.c",
        "src/main.o",
        "src/lib/x.o",
        "node_modules/p/index.js",
        "node_modules/p/keep/y",
    ];
    for (exclude, want) in [
        (
            &["*.md"][..],
            "a.txt node_modules/ node_modules/p/ node_modules/p/index.js node_modules/p/keep/ node_modules/p/keep/y src/ src/lib/ src/lib/x.o src/main.c src/main.o",
        ),
        (&["node_modules", "**/*.o"], "a.txt b.md src/ src/lib/ src/main.c"),
        (&["*"], ""),
        (&["*", "!src"], "src/ src/lib/ src/lib/x.o src/main.c src/main.o"),
        (&["*", "!src/main.c"], "src/ src/main.c"),
        (
            &["node_modules", "!node_modules/p/keep", "src", "*.*"],
            "node_modules/ node_modules/p/ node_modules/p/keep/ node_modules/p/keep/y",
        ),
        (&["**", "!**/*.txt"], "a.txt"),
        (
            &["src", "!**/nothing"],
            "a.txt b.md node_modules/ node_modules/p/ node_modules/p/index.js node_modules/p/keep/ node_modules/p/keep/y",
        ),
    ] {
        let space = Space::new(&files);
        let view = space.view(&source(&[], exclude, &[]));
        assert_eq!(list(&*view).join(" "), want, "{exclude:?}");
        // The same, looked at one by one, in a view that has listed nothing.
        let lazy = space.view(&source(&[], exclude, &[]));
        for name in list(&*space.all()) {
            let seen = lazy.lookup(&path(name.trim_end_matches('/'))).unwrap().is_some();
            assert_eq!(seen, want.split(' ').any(|shown| shown == name), "{exclude:?} {name}");
        }
    }
    let space = Space::new(&files);
    let contexts = Contexts::new(None);
    let bad = contexts.view(&space.ctx(), &source(&[], &["[a"], &[]), &CancelToken::new()).err().unwrap();
    assert!(bad.to_string().contains("[a"), "{bad}");
}

#[test]
fn hidden_files_stay_hidden() {
    let space = Space::new(&["secret/key", "a"]);
    let view = space.view(&source(&[], &["secret"], &[]));
    for _ in 0..2 {
        assert!(view.lookup(&path("secret")).unwrap().is_none());
        assert!(view.lookup(&path("secret/key")).unwrap().is_none());
        assert!(view.open(&path("secret/key")).is_err());
        assert!(view.children(&path("secret")).is_err());
        assert!(view.entry_digest(&path("secret/key")).is_err());
        assert_eq!(list(&*view), ["a"]);
    }
}

#[test]
fn only_what_is_asked_for_and_what_it_links_to() {
    let space = Space::new(&[
        "a",
        "dir/x",
        "dir/y",
        "other/z",
        "real/deep/file",
        "w1.txt",
        "w2.txt",
        "w3.md",
        "target",
    ]);
    let link = |to: &str, at: &str| symlink(to, space.ctx().join(at)).unwrap();
    link("real/deep", "short");
    link("/target", "abs");
    link("w3.md", "w4.txt");
    link("loop2", "loop1");
    link("loop1", "loop2");
    link("../../../etc/passwd", "out");
    for (follow, want) in [
        (&["a"][..], "a"),
        (&["dir"], "dir/ dir/x dir/y"),
        (&["dir/x"], "dir/ dir/x"),
        (&["/dir/x", "./a"], "a dir/ dir/x"),
        (&["short/file"], "real/ real/deep/ real/deep/file short"),
        (&["abs"], "abs target"),
        (&["w*.txt"], "w1.txt w2.txt w3.md w4.txt"),
        (&["loop1"], "loop1 loop2"),
        (&["out"], "out"),
        (&["missing"], ""),
        (&["dir/../other"], "other/ other/z"),
        (&["d*/x"], "dir/ dir/x"),
    ] {
        assert_eq!(list(&*space.view(&source(&[], &[], follow))).join(" "), want, "{follow:?}");
    }
    let everything = list(&*space.all());
    for follow in [&["."][..], &["/"], &["a", "."]] {
        assert_eq!(list(&*space.view(&source(&[], &[], follow))), everything, "{follow:?}");
    }
    assert_eq!(list(&*space.view(&source(&["w1.txt"], &[], &["a"]))), ["a", "w1.txt"]);
    assert_eq!(list(&*space.view(&source(&[], &["dir/x"], &["dir"]))), ["dir/", "dir/y"]);
}

#[test]
fn what_is_not_asked_for_is_not_read() {
    let space = Space::new(&["wanted/x", "locked/y"]);
    let locked = space.ctx().join("locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o000)).unwrap();
    assert_eq!(list(&*space.view(&source(&[], &[], &["wanted"]))), ["wanted/", "wanted/x"]);
    assert_eq!(list(&*space.view(&source(&[], &["locked"], &[]))), ["wanted/", "wanted/x"]);
    let error = space.all().children(&RelPath::root());
    if !rustix::process::geteuid().is_root() {
        assert!(error.unwrap_err().to_string().contains("locked"));
    }
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn digests_are_remembered_and_doubted() {
    let space = Space::new(&["a", "d/b", "d/c"]);
    space.settle();
    let first = digests(&*space.all());
    assert_eq!(
        first["/a"],
        expected(b"a", fs::metadata(space.ctx().join("a")).unwrap().permissions().mode() & 0o7777)
    );
    // Proof that the second time believes the cache: its record is changed behind its back.
    let cache = fs::read_dir(space.state().join("statcache")).unwrap().next().unwrap().unwrap().path();
    forge(&cache, first["/a"], Digest::of("forged"));
    assert_eq!(digests(&*space.all())["/a"], Digest::of("forged"));
    // Same size, same mtime, other content (CAC-01): the ctime tells.
    let file = space.ctx().join("d/b");
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    fs::write(&file, "D/B").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(before).unwrap();
    let again = digests(&*space.all());
    assert_ne!(again["/d/b"], first["/d/b"]);
    assert_eq!(again["/d/c"], first["/d/c"]);
    // Another file of the same size and mtime in its place: the inode tells.
    let (other, file) = (space.dir.path().join("other"), space.ctx().join("d/c"));
    fs::write(&other, "D/C").unwrap();
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    fs::File::options().write(true).open(&other).unwrap().set_modified(modified).unwrap();
    fs::rename(&other, &file).unwrap();
    assert_ne!(digests(&*space.all())["/d/c"], first["/d/c"]);
    // Permissions are part of the digest.
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    assert_eq!(digests(&*space.all())["/d/c"], expected(b"D/C", 0o755));
}

/// Replaces a digest in a cache file and makes its checksum right.
fn forge(file: &Path, from: Digest, to: Digest) {
    use super::cache_file::{CacheFile, CacheWriter};
    let bytes = fs::read(file).unwrap();
    let length = u64::from_le_bytes(bytes[40..48].try_into().unwrap()) as usize;
    let (dirs, records) = (bytes[16] as usize, bytes[24] as usize);
    let names = 48 + dirs * 20 + records * 96;
    let root = bytes[names..names + length].to_vec();
    let cache = CacheFile::parse(bytes, &root).unwrap();
    let mut writer = CacheWriter::new(&root);
    for (path, records) in cache.all() {
        writer.dir(path, records.used);
        for n in 0..records.len() {
            let mut record = records.record(n);
            if record.digest == from {
                record.digest = to;
            }
            writer.record(records.name(n), &record);
        }
    }
    fs::write(file, writer.finish().unwrap()).unwrap();
}

#[test]
fn files_that_just_changed_are_not_remembered() {
    let space = Space::new(&["old"]);
    space.settle();
    space.write("new", "1");
    let first = digests(&*space.all());
    let cache = fs::read_dir(space.state().join("statcache")).unwrap().next().unwrap().unwrap().path();
    forge(&cache, first["/old"], Digest::of("x"));
    forge(&cache, first["/new"], Digest::of("y"));
    let second = digests(&*space.all());
    assert_eq!(second["/old"], Digest::of("x"), "remembered");
    assert_eq!(second["/new"], first["/new"], "hashed again");
}

#[test]
fn a_damaged_cache_is_no_cache() {
    let space = Space::new(&["a", "b/c"]);
    space.settle();
    let first = digests(&*space.all());
    let cache = fs::read_dir(space.state().join("statcache")).unwrap().next().unwrap().unwrap().path();
    let whole = fs::read(&cache).unwrap();
    for broken in
        [&whole[..whole.len() / 2], b"", b"rbstat\0\x02xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"]
    {
        fs::write(&cache, broken).unwrap();
        assert_eq!(digests(&*space.all()), first);
    }
    assert_eq!(digests(&*space.all()), first);
    // Nobody can write it: then it is not written.
    fs::remove_file(&cache).unwrap();
    fs::create_dir(&cache).unwrap();
    assert_eq!(digests(&*space.all()), first);
}

#[test]
fn different_views_share_one_cache() {
    let space = Space::new(&["a/x", "b/y"]);
    space.settle();
    let a = digests(&*space.view(&source(&[], &[], &["a"])));
    let b = digests(&*space.view(&source(&[], &[], &["b"])));
    let cache = fs::read_dir(space.state().join("statcache")).unwrap().next().unwrap().unwrap().path();
    forge(&cache, a["/a/x"], Digest::of("x"));
    forge(&cache, b["/b/y"], Digest::of("y"));
    let all = digests(&*space.all());
    assert_eq!((all["/a/x"], all["/b/y"]), (Digest::of("x"), Digest::of("y")));
}

#[test]
fn changes_under_the_build_are_found_out() {
    let space = Space::new(&["a", "b"]);
    let view = space.all();
    let a = path("a");
    let entry = view.lookup(&a).unwrap().unwrap();
    view.entry_digest(&a).unwrap();
    let nanos = i128::from(entry.mtime.secs) * 1_000_000_000 + i128::from(entry.mtime.nanos);
    view.verify_copied(&a, 1, nanos).unwrap();
    for (size, nanos) in [(2, nanos), (1, nanos + 1)] {
        let error = view.verify_copied(&a, size, nanos).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.to_string().ends_with("/ctx/a changed during the build"), "{error}");
    }
    // Same size and mtime: opening sees that it is another.
    let file = space.ctx().join("a");
    let modified = fs::metadata(&file).unwrap().modified().unwrap();
    std::thread::sleep(Duration::from_millis(20));
    fs::write(&file, "A").unwrap();
    fs::File::options().write(true).open(&file).unwrap().set_modified(modified).unwrap();
    assert!(view.open(&a).unwrap_err().to_string().contains("changed during the build"));
    view.lookup(&path("b")).unwrap();
    fs::remove_file(space.ctx().join("b")).unwrap();
    assert!(view.open(&path("b")).unwrap_err().to_string().contains("changed during the build"));
}

#[test]
fn nothing_outside_is_read_while_links_are_swapped_in() {
    // ESC-07: a process swaps a directory for a link to another place as fast as it can.
    let space = Space::new(&["d/x", "outside/"]);
    let outside = space.dir.path().join("outside");
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("x"), "SECRET").unwrap();
    fs::write(outside.join("only-here"), "SECRET").unwrap();
    let (real, link, d) =
        (space.dir.path().join("real"), space.dir.path().join("link"), space.ctx().join("d"));
    symlink(&outside, &link).unwrap();
    let done = Arc::new(AtomicBool::new(false));
    let swapper = {
        let done = done.clone();
        std::thread::spawn(move || {
            let mut swaps = 0;
            while !done.load(Ordering::Relaxed) {
                fs::rename(&d, &real).unwrap();
                fs::rename(&link, &d).unwrap();
                fs::rename(&d, &link).unwrap();
                fs::rename(&real, &d).unwrap();
                swaps += 1;
            }
            swaps
        })
    };
    let secret = expected(b"SECRET", 0o644);
    let mut seen = 0;
    for round in 0..150 {
        let view =
            Contexts::new(None).view(&space.ctx(), &source(&[], &[], &[]), &CancelToken::new()).unwrap();
        if round % 2 == 0 {
            let _ = view.children(&RelPath::root());
        }
        for name in ["d/x", "d/only-here"] {
            if let Ok(digest) = view.entry_digest(&path(name)) {
                assert_ne!(digest, secret);
            }
            if let Ok(mut file) = view.open(&path(name)) {
                let mut text = String::new();
                file.read_to_string(&mut text).unwrap();
                assert_eq!(text, "d/x");
                seen += 1;
            }
        }
        assert!(view.lookup(&path("d/only-here")).map_or(true, |entry| entry.is_none()));
    }
    done.store(true, Ordering::Relaxed);
    assert!(swapper.join().unwrap() > 0);
    println!("read the true file {seen} times");
}

#[test]
fn strange_names_and_deep_trees() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let space = Space::new(&[]);
    for name in [&b"\xff\xfe"[..], b"new\nline", b"-rf", b"trailing ", b"back\\slash", &[b'x'; 255]] {
        fs::write(space.ctx().join(OsStr::from_bytes(name)), name).unwrap();
    }
    let view = space.all();
    let names = view.children(&RelPath::root()).unwrap();
    assert_eq!(names.len(), 6);
    assert!(names.is_sorted());
    for name in names {
        let file = RelPath::root().child(&name).unwrap();
        assert_eq!(view.lookup(&file).unwrap().unwrap().kind, Kind::File { size: name.len() as u64 });
        view.entry_digest(&file).unwrap();
    }
    // Deeper than a path may be long.
    let deep = Space::new(&[]);
    let name = "n".repeat(200);
    let mut fd =
        rustix::fs::open(deep.ctx(), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty()).unwrap();
    for _ in 0..60 {
        rustix::fs::mkdirat(&fd, name.as_str(), 0o755.into()).unwrap();
        fd = rustix::fs::openat(&fd, name.as_str(), rustix::fs::OFlags::DIRECTORY, rustix::fs::Mode::empty())
            .unwrap();
    }
    let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
    drop(rustix::fs::openat(&fd, "file", flags, 0o644.into()).unwrap());
    let view = deep.all();
    let listed = list(&*view);
    assert_eq!(listed.len(), 61);
    let last = path(&listed[60]);
    assert!(last.as_bytes().ends_with(b"/file") && last.as_bytes().len() > 12_000);
    view.entry_digest(&last).unwrap();
    view.open(&last).unwrap();
    remove_deep(&deep.ctx(), &name);
}

/// `remove_dir_all` of temporary directories gives up on such trees.
fn remove_deep(top: &Path, name: &str) {
    let inner = top.join(name);
    let aside = top.join("aside");
    while inner.join(name).exists() {
        fs::rename(inner.join(name), &aside).unwrap();
        fs::remove_dir(&inner).unwrap();
        fs::rename(&aside, &inner).unwrap();
    }
}

#[test]
fn many_files_in_one_directory_and_many_directories() {
    let space = Space::new(&[]);
    for n in 0..600 {
        space.write(&format!("flat/{n:03}"), &n.to_string());
        space.write(&format!("dirs/{}/{n}", n % 50), &n.to_string());
    }
    space.settle();
    let first = digests(&*space.all());
    assert_eq!(first.len(), 1200);
    assert_eq!(digests(&*space.all()), first);
    let serial = space.all();
    for (name, digest) in first.iter().step_by(7) {
        assert_eq!(serial.entry_digest(&path(name)).unwrap(), *digest);
    }
}

#[test]
fn cancelled_walks_end() {
    let space = Space::new(&["a", "b/c"]);
    let cancel = CancelToken::new();
    let view = Contexts::new(None).view(&space.ctx(), &source(&[], &[], &[]), &cancel).unwrap();
    cancel.cancel();
    assert_eq!(view.children(&RelPath::root()).unwrap_err().kind, ErrorKind::Cancelled);
    let missing =
        Contexts::new(None).view(Path::new("/no/such/dir"), &source(&[], &[], &[]), &CancelToken::new());
    assert_eq!(missing.err().unwrap().kind, ErrorKind::NotFound);
}

#[test]
fn walks_may_wait_inside_other_pools() {
    use rayon::prelude::*;
    let space = Space::new(&["a/1", "b/2", "c/3", "d/4"]);
    let view = space.all();
    let counts: Vec<usize> =
        (0..64).into_par_iter().map(|_| view.children(&RelPath::root()).unwrap().len()).collect();
    assert!(counts.iter().all(|count| *count == 4));
}

/// Whether the last of `patterns` that speaks of `path` takes it, as BuildKit's walk asks: what was found of a directory
/// holds for what is in it.
fn matches(patterns: &[String], path: &str) -> bool {
    let matcher = PatternMatcher::new(patterns).unwrap();
    let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let step = |(_, info): (bool, MatchInfo), end: usize| matcher.matches_in(&path[..end], &info);
    ends.fold((false, MatchInfo::default()), step).0
}

/// The rules, naively: an entry is shown when it passes both lists, or when something in it does.
fn naive(all: &[String], include: &[String], exclude: &[String]) -> Vec<String> {
    let passes = |path: &str| (include.is_empty() || matches(include, path)) && !matches(exclude, path);
    let bare = |name: &str| name.trim_end_matches('/').to_owned();
    let shown = |name: &&String| {
        let below = format!("{}/", bare(name));
        passes(&bare(name))
            || all.iter().any(|other| other.starts_with(&below) && other != *name && passes(&bare(other)))
    };
    all.iter().filter(shown).cloned().collect()
}

fn pattern() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("a".to_owned()),
        Just("b".to_owned()),
        Just("c.x".to_owned()),
        Just("*".to_owned()),
        Just("**".to_owned()),
        Just("*.x".to_owned()),
        Just("?".to_owned()),
        Just("[ab]".to_owned()),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..4))
        .prop_map(|(negated, parts)| format!("{}{}", if negated { "!" } else { "" }, parts.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn filters_agree_with_the_naive_reading(
        exclude in prop::collection::vec(pattern(), 0..5),
        include in prop::collection::vec(pattern().prop_map(|p| p.trim_start_matches('!').to_owned()), 0..3),
    ) {
        let space = Space::new(&["a/a/b", "a/b/c.x", "a/c.x", "b/a", "b/b/b/c.x", "c.x", "b/c.x/a", "a/e/"]);
        let everything = list(&*space.all());
        let source = LocalSource {
            name: "context".to_owned(), include: include.clone(), exclude: exclude.clone(), follow_paths: vec![],
        };
        let want = naive(&everything, &include, &exclude);
        prop_assert_eq!(&list(&*space.view(&source)), &want);
        let lazy = space.view(&source);
        for name in &everything {
            let seen = lazy.lookup(&path(name.trim_end_matches('/'))).unwrap().is_some();
            prop_assert_eq!(seen, want.contains(name), "{}", name);
        }
    }
}
