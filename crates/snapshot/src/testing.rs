//! What the tests share: a store in a temporary directory, layers written as lines of text, trees read back as
//! lines of text.
//!
//! A line is `<kind> <path> [mode] [uid:gid] [@time] [#major,minor] [x:name=value] [=content | ->target]`; kinds are
//! those of `dump_entry` (d f l h c b p), `w` for a whiteout and `o` for an opaque directory.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::Arc;

use rbuild_ports::{
    CancelToken, Clock, CommittedLayer, LayerId, Result, Snapshot, Snapshots, Timestamp, View,
};
use rbuild_tree::{Entry, Kind, RelPath, TarWriter, Time, dump_entry};
use rustix::fs;

use crate::meta::Meta;
use crate::sys::{self, Place};
use crate::walk::walk;
use crate::{LayerStore, LayerStoreOptions};

pub(crate) struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp(1_000_000_000)
    }
}

pub(crate) struct TestStore {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: LayerStore,
}

pub(crate) fn store() -> TestStore {
    let dir = tempfile::tempdir().unwrap();
    let store = LayerStore::open(dir.path(), options(&dir)).unwrap();
    TestStore { dir, store }
}

pub(crate) fn options(_: &tempfile::TempDir) -> LayerStoreOptions {
    let clock = Arc::new(FixedClock);
    LayerStoreOptions { userns: false, squash_owners: false, clock, pin: Arc::new(|_| Ok(())) }
}

/// Tests that make owners and devices need root. Where it is not there they say so; with `RBUILD_REQUIRE_SANDBOX` they
/// fail instead.
pub(crate) fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "this test needs root");
        let _ = writeln!(std::io::stderr(), "skipped: needs root");
    }
    root
}

impl TestStore {
    pub(crate) fn unpack(&self, id: &str, parents: &Snapshot, lines: &str) -> Result<CommittedLayer> {
        self.unpack_tar(id, parents, &tar(lines))
    }

    pub(crate) fn unpack_tar(&self, id: &str, parents: &Snapshot, tar: &[u8]) -> Result<CommittedLayer> {
        let id: LayerId = id.parse().unwrap();
        self.store.unpack(&id, &parents.layers, &mut &*tar, &CancelToken::new())
    }

    /// A snapshot of layers, given from the bottom up.
    pub(crate) fn snapshot(&self, layers: &[&str]) -> Snapshot {
        let mut snapshot = Snapshot::default();
        for lines in layers {
            let id = format!("t{}", std::fs::read_dir(self.dir.path().join("layers")).unwrap().count());
            let layer = self.unpack(&id, &snapshot, lines).unwrap();
            snapshot = snapshot.with(layer.layer);
        }
        snapshot
    }

    pub(crate) fn view(&self, snapshot: &Snapshot) -> Arc<dyn View> {
        self.store.view(snapshot).unwrap()
    }

    pub(crate) fn dump(&self, snapshot: &Snapshot) -> String {
        dump_view(self.view(snapshot).as_ref())
    }

    /// The layer directory itself, with whiteouts and opaque directories.
    pub(crate) fn dump_layer(&self, layer: &LayerId) -> String {
        let path = self.dir.path().join("layers").join(layer.as_str());
        let root = sys::open_at(fs::CWD, path.as_os_str().as_encoded_bytes(), sys::DIR).unwrap();
        dump_dir(root, true)
    }

    pub(crate) fn tar(&self, layer: &LayerId) -> Vec<u8> {
        let mut out = Vec::new();
        self.store.write_tar(layer, None, &mut out).unwrap();
        out
    }

    /// Nothing is left of unfinished work.
    pub(crate) fn assert_clean(&self) {
        let inside = |dir: std::path::PathBuf| -> Vec<_> {
            std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
        };
        let homes: Vec<_> = inside(self.dir.path().join("work")).into_iter().flat_map(inside).collect();
        assert!(homes.len() < 2, "{homes:?}");
        let left: Vec<_> = homes.into_iter().flat_map(inside).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// One line a path below the root, files with their content.
pub(crate) fn dump_view(view: &dyn View) -> String {
    let mut out = String::new();
    let mut open = vec![RelPath::root()];
    while let Some(path) = open.pop() {
        let entry = view.lookup(&path).unwrap().unwrap();
        out.push_str(&line(&entry, || std::io::read_to_string(view.open(&path).unwrap()).unwrap()));
        if entry.is_dir() {
            for name in view.children(&path).unwrap().iter().rev() {
                open.push(path.child(name).unwrap());
            }
        }
    }
    out
}

/// The same of a directory; whiteouts and opaque directories are marked if `overlay`.
pub(crate) fn dump_dir(root: std::os::fd::OwnedFd, overlay: bool) -> String {
    let mut out = String::new();
    let entry_of = |dir: std::os::fd::BorrowedFd<'_>, name: &[u8], path: &RelPath| {
        let stat = sys::stat_at(dir, name).unwrap().unwrap();
        let (major, minor) = (fs::major(stat.st_rdev), fs::minor(stat.st_rdev));
        let kind = match sys::file_type(&stat) {
            fs::FileType::RegularFile => Kind::File { size: u64::try_from(stat.st_size).unwrap() },
            fs::FileType::Directory => Kind::Dir,
            fs::FileType::Symlink => Kind::Symlink { target: sys::read_link(dir, name).unwrap() },
            fs::FileType::CharacterDevice => Kind::CharDevice { major, minor },
            fs::FileType::BlockDevice => Kind::BlockDevice { major, minor },
            _ => Kind::Fifo,
        };
        Meta::read(&stat, Place::At(dir, name)).unwrap().into_entry(path.clone(), kind)
    };
    let top = sys::open_at(&root, b".", sys::DIR).unwrap();
    out.push_str(&line(&entry_of(top.as_fd(), b".", &RelPath::root()), String::new));
    walk(root, &mut |step| {
        let entry = entry_of(step.dir, step.name, step.path);
        if overlay && matches!(entry.kind, Kind::CharDevice { major: 0, minor: 0 }) {
            out.push_str(&format!("{:?} w\n", step.path));
            return Ok(());
        }
        out.push_str(&line(&entry, || {
            let file = sys::open_at(step.dir, step.name, sys::READ).unwrap();
            std::io::read_to_string(std::fs::File::from(file)).unwrap()
        }));
        if let Some(dir) = step.opened
            && overlay
            && Place::Fd(dir).get(b"trusted.overlay.opaque").unwrap().is_some()
        {
            out.push_str(&format!("{:?} o\n", step.path));
        }
        Ok(())
    })
    .unwrap();
    out
}

fn line(entry: &Entry, content: impl FnOnce() -> String) -> String {
    let mut line = dump_entry(entry);
    if let Kind::File { size } = entry.kind
        && (1..100).contains(&size)
    {
        line.push_str(" =");
        line.push_str(&content());
    }
    line.push('\n');
    line
}

/// Lines as a tar, in their order. Nothing is checked, so that hostile archives can be written too.
pub(crate) fn tar(lines: &str) -> Vec<u8> {
    let mut writer = TarWriter::new(Vec::new());
    for text in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let mut words = text.split(' ');
        let (kind, path) = (words.next().unwrap(), RelPath::parse(words.next().unwrap()).unwrap());
        match kind {
            "w" => writer.whiteout(&path, Time::default()).unwrap(),
            "o" => writer.opaque(&path, Time::default()).unwrap(),
            _ => {
                let (entry, content) = entry(kind, path, words);
                writer.entry(&entry, content.as_bytes()).unwrap();
            }
        }
    }
    writer.finish().unwrap()
}

fn entry<'a>(kind: &str, path: RelPath, words: impl Iterator<Item = &'a str>) -> (Entry, String) {
    let mode = match kind {
        "d" => 0o755,
        "l" => 0o777,
        _ => 0o644,
    };
    let mut out = Entry::new(path, Kind::Dir, mode);
    let (mut content, mut target, mut device) = (String::new(), Vec::new(), (0, 0));
    for word in words {
        if let Some(text) = word.strip_prefix('=') {
            text.clone_into(&mut content);
        } else if let Some(text) = word.strip_prefix("->") {
            target = text.as_bytes().to_vec();
        } else if let Some(text) = word.strip_prefix('@') {
            let (secs, nanos) = text.split_once('.').unwrap_or((text, "0"));
            out.mtime = Time { secs: secs.parse().unwrap(), nanos: format!("{nanos:0<9}").parse().unwrap() };
        } else if let Some(text) = word.strip_prefix("x:") {
            let (name, value) = text.split_once('=').unwrap();
            out.xattrs.insert(name.into(), value.into());
        } else if let Some(text) = word.strip_prefix('#') {
            let (major, minor) = text.split_once(',').unwrap();
            device = (major.parse().unwrap(), minor.parse().unwrap());
        } else if let Some((uid, gid)) = word.split_once(':') {
            (out.uid, out.gid) = (uid.parse().unwrap(), gid.parse().unwrap());
        } else {
            out.mode = u32::from_str_radix(word, 8).unwrap();
        }
    }
    let (major, minor) = device;
    out.kind = match kind {
        "d" => Kind::Dir,
        "f" => Kind::File { size: content.len() as u64 },
        "l" => Kind::Symlink { target },
        "h" => Kind::Hardlink { target: RelPath::parse(target).unwrap() },
        "c" => Kind::CharDevice { major, minor },
        "b" => Kind::BlockDevice { major, minor },
        "p" => Kind::Fifo,
        other => panic!("unknown kind {other}"),
    };
    (out, content)
}

/// Runs a shell script in a mount namespace of its own, in which it may mount. Its output.
pub(crate) fn in_namespace(script: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]).args(arguments);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What `find` says of a tree, in `listing`'s words.
pub(crate) const FIND: &str = r#"(cd "$1" && find . -printf '%P %y %m %U:%G %T@ %s %l\n' | LC_ALL=C sort)"#;

/// A view as `FIND` would print it. Sizes only of files and links: those of directories are the file system's.
pub(crate) fn listing(view: &dyn View) -> String {
    let mut lines = Vec::new();
    let mut open = vec![RelPath::root()];
    while let Some(path) = open.pop() {
        let entry = view.lookup(&path).unwrap().unwrap();
        let (letter, size, target) = match &entry.kind {
            Kind::File { size } => ('f', *size, String::new()),
            Kind::Symlink { target } => {
                ('l', target.len() as u64, String::from_utf8(target.clone()).unwrap())
            }
            Kind::Dir => ('d', 0, String::new()),
            Kind::CharDevice { .. } => ('c', 0, String::new()),
            Kind::BlockDevice { .. } => ('b', 0, String::new()),
            Kind::Fifo | Kind::Hardlink { .. } => ('p', 0, String::new()),
        };
        let name = String::from_utf8(path.as_bytes().to_vec()).unwrap();
        let Time { secs, nanos } = entry.mtime;
        let (mode, uid, gid) = (entry.mode, entry.uid, entry.gid);
        lines.push(format!("{name} {letter} {mode:o} {uid}:{gid} {secs}.{nanos:09}0 {size} {target}"));
        if entry.is_dir() {
            open.extend(view.children(&path).unwrap().iter().map(|name| path.child(name).unwrap()));
        }
    }
    lines.sort();
    lines.join("\n")
}

/// `FIND`'s output without the sizes that mean nothing.
pub(crate) fn found(text: &str) -> String {
    let line = |line: &str| {
        let mut fields: Vec<&str> = line.split(' ').collect();
        if fields.get(1) == Some(&"d") {
            fields[5] = "0";
        }
        fields.join(" ")
    };
    let mut lines: Vec<String> = text.lines().map(line).collect();
    lines.sort();
    lines.join("\n")
}
