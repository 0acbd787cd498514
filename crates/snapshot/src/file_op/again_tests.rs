//! A COPY of the same local directory, run again: which files were read, and that the tree is that of a first run.

use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use rbuild_digest::Digest;
use rbuild_graph::{CopyAction, FileAction, FileKind, FileOp};
use rbuild_ports::{CancelToken, FileInput, Result, SilentProgress, Snapshot, Snapshots, View};
use rbuild_tree::{Entry, RelPath};

use crate::testing::*;

/// A local context that notes which files are read, and knows all digests but those of files called `linked`.
struct Context {
    tree: Arc<dyn View>,
    read: Mutex<Vec<String>>,
}

impl View for Context {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        self.tree.lookup(path)
    }
    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        self.tree.children(path)
    }
    fn open(&self, path: &RelPath) -> Result<File> {
        self.read.lock().unwrap().push(path.to_string());
        self.tree.open(path)
    }
    fn entry_digest(&self, path: &RelPath) -> Result<Digest> {
        self.tree.entry_digest(path)
    }
    fn origin(&self) -> Option<&[u8]> {
        Some(b"/home/user/app")
    }
    fn known_digest(&self, path: &RelPath) -> Option<Digest> {
        if path.file_name() == Some(b"linked") { None } else { self.tree.entry_digest(path).ok() }
    }
    fn is_local(&self) -> bool {
        true
    }
}

/// Twenty files in two directories, and the lines given.
fn context(more: &str) -> String {
    let mut lines = String::from("d a 700 @1\nd b 750 @2\n");
    for n in 0..10 {
        let _ = write!(lines, "f a/{n} 640 @{n}.5 =a{n}\nf b/{n} @{n} =b{n}\n");
    }
    lines + more
}

fn copies(actions: &[CopyAction]) -> FileOp {
    let last = actions.len() - 1;
    let actions = actions.iter().enumerate().map(|(n, copy)| FileAction {
        input: Some(if n == 0 { 0 } else { u32::try_from(n).unwrap() + 1 }),
        secondary_input: Some(1),
        output: (n == last).then_some(0),
        kind: FileKind::Copy(copy.clone()),
    });
    FileOp { actions: actions.collect(), epoch: None }
}

fn copy(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dest: dest.to_owned(),
        dir_copy_contents: true,
        create_dest_path: true,
        ..CopyAction::default()
    }
}

struct Ran {
    read: Vec<String>,
    tree: String,
    snapshot: Snapshot,
}

fn run(test: &TestStore, op: &FileOp, lines: &str) -> Ran {
    let tree = test.view(&test.snapshot(&[lines]));
    let context = Arc::new(Context { tree, read: Mutex::default() });
    let inputs = [FileInput::Snapshot(Snapshot::default()), FileInput::View(context.clone())];
    let made = test.store.run_file_op(op, &inputs, &SilentProgress, &CancelToken::new()).unwrap();
    test.assert_clean();
    let (snapshot, committed) = made.into_iter().next().unwrap();
    assert!(test.store.matches(&committed).unwrap());
    let mut read = context.read.lock().unwrap().clone();
    read.sort();
    Ran { read, tree: test.dump(&snapshot), snapshot }
}

/// Runs `op` on one context after the other in one store, and each in a store of its own; which files the last one read.
fn check(op: &FileOp, contexts: &[&str]) -> Vec<String> {
    let test = store();
    let mut last = Vec::new();
    for lines in contexts {
        let fresh = store();
        let clean = run(&fresh, op, lines);
        let again = run(&test, op, lines);
        assert_eq!(again.tree, clean.tree);
        let layer = |test: &TestStore, ran: &Ran| test.tar(ran.snapshot.layers.last().unwrap());
        assert_eq!(layer(&test, &again), layer(&fresh, &clean), "the layer's bytes");
        last = again.read;
    }
    last
}

#[test]
fn only_what_changed_is_read() {
    if !root() {
        return;
    }
    let op = copies(&[copy("/", "/src")]);
    let first = context("f a/new =1");
    assert_eq!(check(&op, &[&first]).len(), 21);
    assert_eq!(check(&op, &[&first, &first]), Vec::<String>::new());
    assert_eq!(check(&op, &[&first, &context("f a/new =2")]), ["/a/new"]);
    assert_eq!(check(&op, &[&first, &context("f a/new 755 =1")]), ["/a/new"], "another mode");
    assert_eq!(check(&op, &[&first, &context("f a/new @7 =1")]), ["/a/new"], "another time");
    assert_eq!(check(&op, &[&first, &context("f b/new =1")]), ["/b/new"], "at another path");
    assert_eq!(check(&op, &[&first, &context("d a/new\nf a/new/x =1")]), ["/a/new/x"]);
    assert_eq!(check(&op, &[&first, &context("l a/new ->0"), &first]), ["/a/new"]);
    assert_eq!(check(&op, &[&first, &context(""), &first]), ["/a/new"]);
}

#[test]
fn files_with_other_names_are_copied() {
    if !root() {
        return;
    }
    let op = copies(&[copy("/", "/src")]);
    let linked = context("f a/linked =1\nh b/linked ->a/linked");
    let read = check(&op, &[&linked, &linked]);
    assert_eq!(read, ["/a/linked", "/a/linked", "/b/linked"]);
    let apart = context("f a/linked =1\nf b/linked =1");
    assert_eq!(check(&op, &[&linked, &apart, &linked]), ["/a/linked", "/a/linked", "/b/linked"]);
}

#[test]
fn another_operation_takes_nothing() {
    if !root() {
        return;
    }
    let owned = |id| {
        let owner = rbuild_graph::Chown { user: Some(rbuild_graph::UserRef::Id(id)), group: None };
        CopyAction { owner: Some(owner), ..copy("/", "/src") }
    };
    let test = store();
    let lines = context("");
    for (op, reads) in [
        (copies(&[copy("/", "/src")]), 20),
        (copies(&[copy("/", "/other")]), 20),
        (copies(&[owned(5)]), 20),
        (copies(&[owned(6)]), 20),
        (copies(&[owned(5)]), 0),
        (copies(&[CopyAction { attempt_unpack: true, ..copy("/a", "/src") }]), 10),
        (copies(&[CopyAction { attempt_unpack: true, ..copy("/a", "/src") }]), 10),
    ] {
        assert_eq!(run(&test, &op, &lines).read.len(), reads, "{op:?}");
    }
}

#[test]
fn of_two_copies_to_one_place_the_later_counts() {
    if !root() {
        return;
    }
    let op = copies(&[copy("/a", "/src"), copy("/b", "/src")]);
    let lines = context("");
    // What the first copy makes is replaced by the second, so only that is there to be taken again.
    let read = check(&op, &[&lines, &lines]);
    assert!(read.iter().all(|path| path.starts_with("/a/")), "{read:?}");
    assert_eq!(read.len(), 10);
}

#[test]
fn a_layer_that_is_gone_or_changed_is_not_used() {
    if !root() {
        return;
    }
    let (test, op, lines) = (store(), copies(&[copy("/", "/src")]), context(""));
    let first = run(&test, &op, &lines);
    let layer = first.snapshot.layers.last().unwrap();
    let file = test.dir.path().join("layers").join(layer.as_str()).join("src/a/3");
    let inode = |path: &std::path::Path| std::fs::metadata(path).unwrap().ino();
    let second = run(&test, &op, &lines);
    let again = test.dir.path().join("layers").join(second.snapshot.layers.last().unwrap().as_str());
    assert_eq!(inode(&file), inode(&again.join("src/a/3")), "linked");
    std::fs::write(&file, "longer than it was").unwrap();
    assert_eq!(run(&test, &op, &lines).read, ["/a/3"], "the size tells");
    test.store.remove(layer).unwrap();
    let remembered =
        std::fs::read_dir(test.dir.path().join("copies")).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&remembered, b"rbuild copies 1\nnonsense").unwrap();
    let damaged = run(&test, &op, &lines);
    assert_eq!((damaged.read.len(), damaged.tree), (20, first.tree));
}

#[test]
fn what_has_no_time_has_that_of_the_operation() {
    if !root() {
        return;
    }
    let test = store();
    let op = FileOp { epoch: Some(77), ..copies(&[copy("/a/1", "/new/dir/f")]) };
    let tree = run(&test, &op, "d a\nf a/1 @5 =x").tree;
    assert_eq!(
        tree,
        "/ d 0755 0:0 @0\n/new d 0755 0:0 @77\n/new/dir d 0755 0:0 @77\n/new/dir/f f 0644 0:0 @5 1 =x\n"
    );
}
