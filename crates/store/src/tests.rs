//! What the blob store promises: whole blobs or none, whatever happens to processes, bytes and power.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use crate::{BootId, Pin, Root, Store};
use rbuild_digest::Digest;
use rbuild_ports::{BlobStore, ErrorKind, PortError};

/// Tells a process of this test binary to be the other process of a test, on this store.
const CHILD: &str = "RBUILD_STORE_TEST_CHILD";

struct Space {
    dir: tempfile::TempDir,
}

impl Space {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn open(&self, boot: &str) -> (Arc<Root>, Store) {
        open(&self.path(), boot)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.path().join("blobs/sha256").join(&hex[..2]).join(hex)
    }

    /// Overwrites a blob, which is read-only, in place.
    fn damage(&self, digest: &Digest, bytes: &[u8]) {
        let path = self.blob_path(digest);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, bytes).unwrap();
    }
}

fn open(path: &Path, boot: &str) -> (Arc<Root>, Store) {
    let root = Root::open(path, BootId::new(boot).unwrap()).unwrap();
    let store = Store::open(&root).unwrap();
    (root, store)
}

fn put(store: &Store, bytes: &[u8]) -> Digest {
    let mut writer = store.writer().unwrap();
    writer.write_all(bytes).unwrap();
    let (digest, size) = writer.commit(None).unwrap();
    assert_eq!((digest, size), (Digest::of(bytes), bytes.len() as u64));
    digest
}

fn read(store: &Store, digest: &Digest) -> Result<Vec<u8>, PortError> {
    let mut out = vec![];
    let mut reader = store.open(digest)?;
    reader.read_to_end(&mut out).map_err(|error| PortError::io("read", "blob", error))?;
    Ok(out)
}

fn files(dir: &Path) -> usize {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files(&entry.path()) } else { 1 }).sum()
}

#[test]
fn a_blob_is_found_under_its_digest() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    for bytes in [&b""[..], b"x", &vec![7; 1 << 20]] {
        let digest = put(&store, bytes);
        assert_eq!(store.size(&digest).unwrap(), Some(bytes.len() as u64));
        assert_eq!(read(&store, &digest).unwrap(), bytes);
        assert!(store.verify(&digest).unwrap());
    }
    assert_eq!(store.list().unwrap().len(), 3);
    let absent = Digest::of("absent");
    assert_eq!(store.size(&absent).unwrap(), None);
    assert_eq!(store.open(&absent).err().unwrap().kind, ErrorKind::NotFound);
    assert!(!store.verify(&absent).unwrap());
}

#[test]
fn a_part_can_be_read() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let digest = put(&store, b"0123456789");
    let mut reader = store.open(&digest).unwrap();
    let mut two = [0; 2];
    reader.seek(SeekFrom::Start(4)).unwrap();
    reader.read_exact(&mut two).unwrap();
    assert_eq!(&two, b"45");
    let mut all = String::new();
    reader.rewind().unwrap();
    reader.read_to_string(&mut all).unwrap();
    assert_eq!(all, "0123456789");
}

#[test]
fn what_is_not_committed_leaves_nothing() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let mut dropped = store.writer().unwrap();
    dropped.write_all(b"x").unwrap();
    drop(dropped);
    let mut other = store.writer().unwrap();
    other.write_all(b"x").unwrap();
    let error = other.commit(Some(&Digest::of("y"))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    assert!(error.message.contains(&Digest::of("x").to_string()), "{error}");
    assert_eq!(store.list().unwrap(), vec![]);
    assert_eq!(files(&space.path().join("tmp")), 0);
    assert_eq!(files(&space.path().join("unsynced")), 0);
}

#[test]
fn a_removed_blob_is_gone() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let digest = put(&store, b"x");
    store.remove(&digest).unwrap();
    store.remove(&digest).unwrap();
    assert_eq!(store.size(&digest).unwrap(), None);
}

#[test]
fn equal_blobs_may_be_written_at_once() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let bytes = vec![1; 300_000];
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| put(&store, &bytes));
        }
    });
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(read(&store, &Digest::of(&bytes)).unwrap(), bytes);
}

#[test]
fn damage_is_found_when_read_and_healed_by_writing_again() {
    let whole = vec![3; 200_000];
    let mut flipped = whole.clone();
    flipped[100_000] ^= 1;
    for damaged in [flipped, whole[..150_000].to_vec(), vec![], [&whole[..], b"x"].concat()] {
        let space = Space::new();
        let (_root, store) = space.open("a");
        let digest = put(&store, &whole);
        space.damage(&digest, &damaged);
        // Another process: this one has hashed the blob while it wrote it.
        let (_other_root, other) = space.open("a");
        let error = read(&other, &digest).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Corrupt, "{error}");
        assert!(error.message.contains(&digest.to_string()));
        assert_eq!(other.size(&digest).unwrap(), None, "a miss from now on");
        space.damage_again(&digest, &damaged);
        put(&store, &whole);
        assert_eq!(read(&other, &digest).unwrap(), whole);
    }
}

impl Space {
    /// Puts damaged bytes where there is no blob.
    fn damage_again(&self, digest: &Digest, bytes: &[u8]) {
        std::fs::write(self.blob_path(digest), bytes).unwrap();
    }
}

#[test]
fn the_last_bytes_of_a_damaged_blob_are_not_handed_out() {
    let space = Space::new();
    let (root, store) = space.open("a");
    let digest = put(&store, b"right");
    space.damage(&digest, b"wrong");
    drop((store, root));
    let (_root, store) = space.open("a");
    let mut reader = store.open(&digest).unwrap();
    let mut buffer = [0; 5];
    assert!(reader.read_exact(&mut buffer).is_err());
}

#[test]
fn files_that_are_no_blobs_are_left_alone() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let digest = put(&store, b"x");
    let top = space.path().join("blobs/sha256");
    std::fs::create_dir_all(top.join("00")).unwrap();
    for junk in ["00/README", &format!("00/{}", digest.hex())] {
        std::fs::write(top.join(junk), "junk").unwrap();
    }
    let listed: Vec<Digest> = store.list().unwrap().iter().map(|blob| blob.digest).collect();
    assert_eq!(listed, [digest]);
}

#[test]
fn after_a_power_cut_what_was_not_synced_is_verified_before_use() {
    let space = Space::new();
    let (root, store) = space.open("boot-1");
    let synced = put(&store, b"synced");
    assert!(store.unsynced().unwrap());
    sync(&root, &store);
    assert!(!store.unsynced().unwrap());
    let (good, torn) = (put(&store, b"good"), put(&store, b"torn"));
    assert!(store.unsynced().unwrap());
    drop((root, store));
    space.damage(&torn, b"\0\0\0\0");
    space.damage(&synced, b"\0\0\0\0\0\0");
    let (_root, store) = space.open("boot-2");
    assert_eq!(store.size(&good).unwrap(), Some(4));
    assert_eq!(store.size(&torn).unwrap(), None, "torn by the power cut");
    assert_eq!(store.size(&synced).unwrap(), Some(6), "what was synced is not read for that");
    assert_eq!(read(&store, &synced).unwrap_err().kind, ErrorKind::Corrupt, "but when it is read");
    assert_eq!(files(&space.path().join("unsynced/boot-1")), 0, "settled once");
    put(&store, b"torn");
    assert_eq!(read(&store, &torn).unwrap(), b"torn");
}

fn sync(root: &Root, store: &Store) {
    let alone = root.exclusive(Duration::from_secs(60)).unwrap().unwrap();
    let marks = store.begin_sync(&alone).unwrap();
    drop(alone);
    root.sync().unwrap();
    marks.synced().unwrap();
}

#[test]
fn a_sync_that_was_cut_short_settles_nothing() {
    let space = Space::new();
    let (root, store) = space.open("boot-1");
    let torn = put(&store, b"torn");
    let alone = root.exclusive(Duration::from_secs(60)).unwrap().unwrap();
    let marks = store.begin_sync(&alone).unwrap();
    drop((alone, marks, store, root));
    space.damage(&torn, b"\0\0\0\0");
    let (_root, store) = space.open("boot-2");
    assert_eq!(store.size(&torn).unwrap(), None);
}

#[test]
fn what_was_looked_up_or_written_is_pinned() {
    let space = Space::new();
    let (first, store) = space.open("a");
    let (a, b, c) = (put(&store, b"a"), put(&store, b"b"), put(&store, b"c"));
    drop((first, store));
    let (root, store) = space.open("a");
    store.size(&a).unwrap();
    drop(store.open(&b).unwrap());
    let d = put(&store, b"d");
    let (other, _) = space.open("a");
    let mut pins = other.pins();
    pins.refresh().unwrap();
    let pinned = [a, b, c, d].map(|digest| pins.contains(&Pin::Blob(digest)));
    assert_eq!(pinned, [true, true, false, true]);
    drop((root, store));
    let mut pins = other.pins();
    pins.refresh().unwrap();
    assert!(!pins.contains(&Pin::Blob(a)));
}

/// A process that writes blobs until it is killed; not a test of its own.
#[test]
fn child() {
    let Some(path) = std::env::var_os(CHILD) else { return };
    let (_root, store) = open(Path::new(&path), "a");
    for number in 0_u64.. {
        let bytes: Vec<u8> = number.to_le_bytes().repeat(5000);
        let mut writer = store.writer().unwrap();
        match writer.write_all(&bytes).map_err(|error| PortError::io("write", "blob", error)) {
            Ok(()) => {}
            Err(error) => return full(&error),
        }
        if let Err(error) = writer.commit(None) {
            return full(&error);
        }
    }
}

/// How a child ends whose disk is full.
fn full(error: &PortError) {
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(error.help.as_deref().unwrap_or_default().contains("rbuild prune"));
    println!("the disk is full: {error}");
}

fn start_child(path: &Path, wrap: &[&str]) -> Child {
    let exe = std::env::current_exe().unwrap();
    let args = ["--exact", "tests::child", "--nocapture"];
    let mut command = match wrap {
        [] => Command::new(&exe),
        [program, rest @ ..] => {
            let mut command = Command::new(program);
            command.args(rest).arg(&exe);
            command
        }
    };
    command.args(args).env(CHILD, path).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn killed_writers_leave_whole_blobs_and_no_rest() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    for round in 0..15 {
        let mut children = [start_child(&space.path(), &[]), start_child(&space.path(), &[])];
        while store.list().unwrap().len() < 3 + round % 5 {
            std::thread::yield_now();
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
        // The next ones write the same again.
        for blob in store.list().unwrap() {
            assert!(store.verify(&blob.digest).unwrap());
            store.remove(&blob.digest).unwrap();
        }
    }
    let (_root, store) = space.open("a");
    assert_eq!(files(&space.path().join("tmp")), 0, "what the dead left is swept");
    assert_eq!(std::fs::read_dir(space.path().join("leases")).unwrap().count(), 2);
    put(&store, b"fine");
}

#[test]
fn a_file_size_limit_is_an_error_that_leaves_nothing() {
    let space = Space::new();
    let (_root, store) = space.open("a");
    let script = "trap '' XFSZ; ulimit -f 16; exec \"$0\" \"$@\"";
    let output = start_child(&space.path(), &["sh", "-c", script]).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(String::from_utf8_lossy(&output.stdout).contains("the disk is full"));
    assert_eq!(store.list().unwrap(), vec![]);
    assert_eq!(files(&space.path().join("tmp")), 0);
}

#[test]
fn a_full_disk_is_an_error_that_leaves_whole_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let script = "mount -t tmpfs -o size=6m none \"$1\" && shift && \"$0\" \"$@\" && ls -R \"$RBUILD_STORE_TEST_CHILD/tmp\"";
    let mount = dir.path().to_str().unwrap();
    let probe = Command::new("unshare").args(["-rm", "true"]).status();
    if !probe.is_ok_and(|status| status.success()) {
        assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "namespaces are required");
        println!("skipped: no user namespaces here");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(["-rm", "sh", "-c", script])
        .arg(exe)
        .args([mount, "--exact", "tests::child", "--nocapture"])
        .env(CHILD, &path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("the disk is full"), "{text}");
    assert!(text.trim_end().ends_with("/tmp:"), "scratch files are left: {text}");
}
