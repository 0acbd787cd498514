//! Layers: known cases as text, and for random trees that applying a difference gives the other tree, also
//! through tar.

use proptest::prelude::*;

use crate::{
    Change, Entry, Kind, RelPath, TarWriter, Time, Tree, apply, diff, dump_entry, read_changes, write_changes,
};

fn path(text: &str) -> RelPath {
    RelPath::parse(text).unwrap()
}

/// A tree of lines: path, then `dir`, `file CONTENT`, `link TARGET` or `as PATH`.
fn tree(text: &str) -> Tree {
    let mut tree = Tree::new();
    put(&mut tree, text);
    tree
}

fn put(tree: &mut Tree, text: &str) {
    for change in changes(text) {
        if let Change::Put(entry, content) = change {
            tree.put(&entry, content).unwrap();
        }
    }
}

fn changes(text: &str) -> Vec<Change> {
    let line = |line: &str| {
        let (name, what) = line.split_once(' ').unwrap();
        let (word, rest) = what.split_once(' ').unwrap_or((what, ""));
        let (kind, mode) = match word {
            "dir" => (Kind::Dir, 0o755),
            "file" => (Kind::File { size: rest.len() as u64 }, 0o644),
            "link" => (Kind::Symlink { target: rest.into() }, 0o777),
            "as" => (Kind::Hardlink { target: path(rest) }, 0o644),
            "gone" => return Change::Delete(path(name)),
            "opaque" => return Change::Opaque(path(name)),
            other => panic!("{other}"),
        };
        let content = if word == "file" { rest.as_bytes() } else { b"" };
        Change::Put(Entry::new(path(name), kind, mode), content.into())
    };
    text.lines().map(str::trim).filter(|text| !text.is_empty()).map(line).collect()
}

fn show(changes: &[Change]) -> String {
    let line = |change: &Change| match change {
        Change::Put(entry, _) => format!("+ {}", dump_entry(entry)),
        Change::Delete(path) => format!("- {path}"),
        Change::Opaque(path) => format!("o {path}"),
    };
    changes.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn differences() {
    for (old, new, want) in [
        ("a file x", "a file x", ""),
        ("a file x", "a file y", "+ /a f 0644 0:0 @0 1"),
        ("d dir\nd/x file 1\nd/y dir\nd/y/z file 2", "d dir\nd/x file 1", "- /d/y"),
        ("d dir\nd/x file 1", "d file 2", "+ /d f 0644 0:0 @0 1"),
        ("d file 2", "d dir\nd/x file 1", "+ /d d 0755 0:0 @0\n+ /d/x f 0644 0:0 @0 1"),
        ("d dir\nd/x file 1", "d link e", "+ /d l 0777 0:0 @0 -> e"),
        // A new name of a file: all its names are written again.
        ("a file x", "a file x\nb as a", "+ /a f 0644 0:0 @0 1\n+ /b h 0644 0:0 @0 -> /a"),
        // One name of two goes: the other is still the same file.
        ("a file x\nb as a", "b file x", "- /a"),
        // Two names of one file become two files.
        ("a file x\nb as a", "a file x\nb file x", "+ /a f 0644 0:0 @0 1\n+ /b f 0644 0:0 @0 1"),
        ("a-b file 1\na dir\na/c file 1", "b file 1", "- /a\n- /a-b\n+ /b f 0644 0:0 @0 1"),
    ] {
        let (old, new) = (tree(old), tree(new));
        assert_eq!(show(&diff(&old, &new)), want);
    }
}

#[test]
fn layers() {
    let base = "etc dir\netc/a file 1\netc/b file 2\nlib link usr/lib\nusr dir\nusr/lib dir\nusr/lib/x file x\nh1 file h\nh2 as h1";
    for (layer, want) in [
        // Deletions concern only what is below, wherever they stand.
        ("etc/a file 3\netc opaque", "etc dir\netc/a file 3"),
        ("etc opaque\netc/a file 3", "etc dir\netc/a file 3"),
        ("etc/a file 3\netc/a gone", "etc dir\netc/a file 3\netc/b file 2"),
        ("etc gone\netc dir\netc/n file n", "etc dir\netc/n file n"),
        ("etc/nothing gone", "etc dir\netc/a file 1\netc/b file 2"),
        ("etc file f", "etc file f"),
        ("etc dir", "etc dir\netc/a file 1\netc/b file 2"),
    ] {
        let mut got = tree(base);
        apply(&mut got, &changes(layer)).unwrap();
        let rest = "lib link usr/lib\nusr dir\nusr/lib dir\nusr/lib/x file x\nh1 file h\nh2 as h1";
        assert_eq!(got.dump(), tree(&format!("{want}\n{rest}")).dump(), "{layer}");
    }
}

#[test]
fn links_on_the_way_are_followed_inside() {
    let mut got = tree("lib link usr/lib\nusr dir\nusr/lib dir\nout link ../../../tmp\nabs link /usr");
    put(&mut got, "lib/x file x\nout/y file y\nabs/z file z");
    for name in ["usr/lib/x", "tmp/y", "usr/z"] {
        assert!(matches!(got.kind(&path(name)), Some(Kind::File { .. })), "{name}\n{}", got.dump());
    }
    let mut circle = tree("a link b\nb link a");
    let file = Entry::new(path("a/x"), Kind::File { size: 0 }, 0o644);
    assert!(circle.put(&file, *b"").unwrap_err().to_string().contains("too many"));
    let mut blocked = tree("f file x");
    assert!(
        blocked
            .put(&Entry::new(path("f/x"), Kind::Dir, 0o755), *b"")
            .unwrap_err()
            .to_string()
            .contains("/f is no directory")
    );
}

#[test]
fn bad_entries() {
    let mut got = tree("d dir\nf file x");
    let link = |target: &str| Entry::new(path("l"), Kind::Hardlink { target: path(target) }, 0o644);
    for (target, want) in
        [("d", "a directory"), ("nothing", "not there"), ("no/thing", "not there"), ("f/x", "not there")]
    {
        assert!(got.put(&link(target), *b"").unwrap_err().to_string().contains(want), "{target}");
    }
    let file = Entry::new(path("g"), Kind::File { size: 3 }, 0o644);
    assert!(got.put(&file, *b"ab").unwrap_err().to_string().contains("2 bytes instead of 3"));
    assert!(got.put(&Entry::new(RelPath::root(), Kind::Fifo, 0o644), *b"").is_err());
    assert!(apply(&mut got, &[Change::Delete(RelPath::root())]).is_err());
    assert_eq!(got.dump(), tree("d dir\nf file x").dump());
}

#[test]
fn layers_through_tar() {
    let said = changes("etc dir\netc/a file 1\netc/b gone\nusr opaque\nh as etc/a");
    let layer = write_changes(&said, Vec::new(), Time::from_secs(7)).unwrap();
    assert_eq!(read_changes(&layer[..], 10).unwrap(), said);
    assert!(read_changes(&layer[..], 0).unwrap_err().to_string().contains("more than 0 bytes"));
    assert!(read_changes(&layer[..600], 10).is_err());
    let mut plain = TarWriter::new(Vec::new());
    plain.bare(&Entry::new(path(".wh.x"), Kind::File { size: 0 }, 0o644)).unwrap();
    assert_eq!(read_changes(&plain.finish().unwrap()[..], 0).unwrap(), changes("x gone"));
    assert!(write_changes(&changes(".wh.x file"), Vec::new(), Time::default()).is_err());
}

/// A random tree: what is left of random puts and removals.
fn trees() -> impl Strategy<Value = Tree> {
    let name = prop::collection::vec(prop_oneof![Just("a"), Just("b"), Just("a-"), Just("c")], 1..4)
        .prop_map(|parts| path(&parts.join("/")));
    let kind = prop_oneof![
        3 => Just(Kind::Dir),
        4 => (0..3u64).prop_map(|size| Kind::File { size }),
        1 => prop_oneof![Just("a"), Just("../b"), Just("/c"), Just("x")].prop_map(|to| Kind::Symlink { target: to.into() }),
        3 => name.clone().prop_map(|target| Kind::Hardlink { target }),
        1 => Just(Kind::Fifo),
    ];
    let step = (name, kind, prop_oneof![Just(0o755), Just(0o700)], 0..2u32, 0..2i64, any::<bool>(), 0..8u8);
    prop::collection::vec(step, 0..24).prop_map(|steps| {
        let mut tree = Tree::new();
        for (path, kind, mode, uid, secs, attribute, remove) in steps {
            if remove == 0 {
                tree.remove(&path);
                continue;
            }
            let mut entry = Entry::new(path, kind, mode);
            entry.uid = uid;
            // Layers have whole seconds.
            entry.mtime = Time { secs, nanos: 0 };
            if attribute {
                entry.xattrs.insert(b"user.x".to_vec(), vec![0, 255]);
            }
            let content = vec![b'x'; entry.content_size() as usize];
            let _ = tree.put(&entry, content);
        }
        tree
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_a_difference_gives_the_other(old in trees(), new in trees()) {
        let changes = diff(&old, &new);
        let mut got = old.clone();
        apply(&mut got, &changes).unwrap();
        prop_assert_eq!(got.dump(), new.dump());
        prop_assert_eq!(&got, &new);
        let layer = write_changes(&changes, Vec::new(), Time::default()).unwrap();
        let read = read_changes(&layer[..], 1 << 20).unwrap();
        prop_assert_eq!(&read, &changes);
        prop_assert!(diff(&new, &got).is_empty());
    }

    #[test]
    fn a_difference_from_nothing_is_everything(new in trees()) {
        let mut got = Tree::new();
        apply(&mut got, &diff(&Tree::new(), &new)).unwrap();
        prop_assert_eq!(got, new);
    }
}
