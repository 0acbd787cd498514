//! File operations: actions on small trees, and the layer directory that they make.

use std::fs::File;
use std::sync::{Arc, Mutex};

use rbuild_digest::Digest;
use rbuild_graph::{
    Chown, CopyAction, FileAction, FileKind, FileOp, MkdirAction, MkfileAction, RmAction, SymlinkAction,
    UserRef,
};
use rbuild_ports::{
    CancelToken, ErrorKind, FileInput, PortError, Result, SilentProgress, Snapshot, Snapshots, View,
};
use rbuild_tree::{Entry, RelPath};

use crate::testing::*;

/// A tree as a local context is one; it knows one file that changes while it is copied.
struct Local {
    tree: Arc<dyn View>,
    verified: Mutex<Vec<String>>,
}

impl View for Local {
    fn lookup(&self, path: &RelPath) -> Result<Option<Entry>> {
        self.tree.lookup(path)
    }
    fn children(&self, path: &RelPath) -> Result<Vec<Vec<u8>>> {
        self.tree.children(path)
    }
    fn open(&self, path: &RelPath) -> Result<File> {
        self.tree.open(path)
    }
    fn entry_digest(&self, path: &RelPath) -> Result<Digest> {
        self.tree.entry_digest(path)
    }
    fn is_local(&self) -> bool {
        true
    }
    fn verify_copied(&self, path: &RelPath, size: u64, _: i128) -> Result<()> {
        self.verified.lock().unwrap().push(format!("{path} {size}"));
        if path.as_bytes() == b"changing" {
            return Err(PortError::new(ErrorKind::Invalid, "/changing changed while it was copied"));
        }
        Ok(())
    }
}

fn copy(src: &str, dest: &str) -> CopyAction {
    CopyAction {
        src: src.to_owned(),
        dest: dest.to_owned(),
        follow_symlink: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    }
}

/// Actions one after the other on input 0; copies read input 1.
fn chain(kinds: Vec<FileKind>) -> FileOp {
    let count = kinds.len();
    let actions = kinds.into_iter().enumerate().map(|(i, kind)| FileAction {
        input: Some(if i == 0 { 0 } else { u32::try_from(i).unwrap() + 1 }),
        secondary_input: matches!(kind, FileKind::Copy(_)).then_some(1),
        output: (i + 1 == count).then_some(0),
        kind,
    });
    FileOp { actions: actions.collect(), epoch: None }
}

fn run(test: &TestStore, op: &FileOp, inputs: &[FileInput]) -> Result<Vec<Snapshot>> {
    let result = test.store.run_file_op(op, inputs, &SilentProgress, &CancelToken::new());
    test.assert_clean();
    Ok(result?.into_iter().map(|(snapshot, _)| snapshot).collect())
}

/// Runs actions on `base` and `source`; the layer without its root.
fn layer(base: &str, source: &str, kinds: Vec<FileKind>) -> Result<String> {
    let test = store();
    let (base, source) = (test.snapshot(&[base]), test.snapshot(&[source]));
    let inputs = [FileInput::Snapshot(base.clone()), FileInput::Snapshot(source)];
    let out = run(&test, &chain(kinds), &inputs)?;
    assert_eq!(out[0].layers.len(), base.layers.len() + 1);
    let text = test.dump_layer(out[0].layers.last().unwrap());
    Ok(text.split_once('\n').unwrap().1.to_owned())
}

fn check(base: &str, source: &str, kinds: Vec<FileKind>, want: &str) {
    if !root() {
        return;
    }
    let name = format!("{kinds:?}");
    let got = layer(base, source, kinds).unwrap_or_else(|e| panic!("{e}\n{name}"));
    let want: String = want.lines().map(|line| format!("{}\n", line.trim())).collect();
    assert_eq!(got, want, "{name}");
}

fn check_copy(base: &str, source: &str, action: CopyAction, want: &str) {
    check(base, source, vec![FileKind::Copy(action)], want);
}

fn fails(base: &str, source: &str, kind: FileKind, error: ErrorKind, words: &str) {
    let result = layer(base, source, vec![kind]).unwrap_err();
    assert_eq!(result.kind, error, "{result}");
    assert!(result.message.contains(words), "{result}");
}

const SOURCE: &str = "d dir 711 5:5 @3\nf dir/a 640 6:7 @4.5 =aa\nd dir/sub 700 @5\nf dir/sub/b =b\nf file 4755 1:2 @6 =file\n\
                      l link ->dir/a\nl dlink ->dir\np dir/pipe 600 @7\nl dir/l 8:9 @8 ->nowhere";

#[test]
fn where_sources_go() {
    // A directory's contents, into one that is made with plain metadata and the source's time.
    let dir = "/d d 0755 0:0 @3
        /d/a f 0640 6:7 @4.5 2 =aa
        /d/l l 0777 8:9 @8 -> nowhere
        /d/pipe p 0600 0:0 @7
        /d/sub d 0700 0:0 @5
        /d/sub/b f 0644 0:0 @0 1 =b";
    check_copy("", SOURCE, copy("dir", "/d"), dir);
    check_copy("", SOURCE, copy("/dir/", "/d/"), dir);
    check_copy("", SOURCE, copy("../../dir/./", "d"), dir);
    check_copy("", SOURCE, copy("dlink", "/d"), dir);
    let file = "f 4755 1:2 @6 4 =file";
    check_copy("", SOURCE, copy("file", "/n"), &format!("/n {file}"));
    check_copy("", SOURCE, copy("file", "/n/"), &format!("/n d 0755 0:0 @1\n/n/file {file}"));
    check_copy(
        "",
        SOURCE,
        copy("file", "/x/y/n"),
        &format!("/x d 0755 0:0 @1\n/x/y d 0755 0:0 @1\n/x/y/n {file}"),
    );
    // Directories of the base keep their metadata.
    check_copy("d x 1777 3:3 @9", SOURCE, copy("file", "/x"), &format!("/x d 1777 3:3 @9\n/x/file {file}"));
    check_copy("d x 1777 3:3 @9", SOURCE, copy("file", "/x/n"), &format!("/x d 1777 3:3 @9\n/x/n {file}"));
    check_copy("f x =old", SOURCE, copy("file", "/x"), &format!("/x {file}"));
    check_copy("", SOURCE, copy("link", "/n"), "/n f 0640 6:7 @4.5 2 =aa");
    let plain = CopyAction { follow_symlink: false, ..copy("link", "/n") };
    check_copy("", SOURCE, plain, "/n l 0777 0:0 @0 -> dir/a");
    let itself = CopyAction { dir_copy_contents: false, ..copy("dir/sub", "/d/") };
    check_copy(
        "",
        SOURCE,
        itself.clone(),
        "/d d 0755 0:0 @1\n/d/sub d 0700 0:0 @5\n/d/sub/b f 0644 0:0 @0 1 =b",
    );
    let itself = CopyAction { dest: "/d".to_owned(), ..itself };
    check_copy("", SOURCE, itself, "/d d 0700 0:0 @5\n/d/b f 0644 0:0 @0 1 =b");
    check_copy("", SOURCE, copy("dir/sub/", "/"), "/b f 0644 0:0 @0 1 =b");
}

#[test]
fn links_of_the_destination_stay_inside_it() {
    let base = "l out ->/../../../../tmp/canary\nl abs ->/real/dir\nd real/dir 711 @9\nl rel ->real/../real/dir\nl f ->real/file";
    let source = "f s =s\nd t\nf t/x =x";
    for (dest, want) in [
        ("/out/s", "/tmp d 0755 0:0 @1\n/tmp/canary d 0755 0:0 @1\n/tmp/canary/s f 0644 0:0 @0 1 =s"),
        ("/abs/s", "/real d 0755 0:0 @0\n/real/dir d 0711 0:0 @9\n/real/dir/s f 0644 0:0 @0 1 =s"),
        ("/rel/", "/real d 0755 0:0 @0\n/real/dir d 0711 0:0 @9\n/real/dir/s f 0644 0:0 @0 1 =s"),
        ("/abs", "/real d 0755 0:0 @0\n/real/dir d 0711 0:0 @9\n/real/dir/s f 0644 0:0 @0 1 =s"),
        ("/f", "/real d 0755 0:0 @0\n/real/file f 0644 0:0 @0 1 =s"),
    ] {
        check_copy(base, source, copy("s", dest), want);
    }
    fails("l loop ->loop", "f s", FileKind::Copy(copy("s", "/loop/x")), ErrorKind::Invalid, "symbolic links");
}

#[test]
fn what_is_in_the_way() {
    let source = "d s\nd s/x 711 @3\nf s/x/f =f\nf s/y =new";
    // Merged, with the source's metadata for directories below.
    check_copy(
        "d t\nd t/x 700 4:4 @9\nf t/x/old =o\nf t/y =old\nf t/keep",
        source,
        copy("s", "/t"),
        "/t d 0755 0:0 @0\n/t/x d 0711 0:0 @3\n/t/x/f f 0644 0:0 @0 1 =f\n/t/y f 0644 0:0 @0 3 =new",
    );
    let action = || FileKind::Copy(copy("s", "/t"));
    fails("d t\nf t/x", source, action(), ErrorKind::Invalid, "cannot copy to non-directory: /t/x");
    fails(
        "d t\nl t/x ->y\nd t/y",
        source,
        action(),
        ErrorKind::Invalid,
        "cannot copy to non-directory: /t/x",
    );
    fails("d t/y/z", source, action(), ErrorKind::Invalid, "cannot replace the directory /t/y with a file");
    fails("f t", source, action(), ErrorKind::Invalid, "cannot copy to non-directory: /t");
    fails("f t", source, FileKind::Copy(copy("s/y", "/t/y")), ErrorKind::Invalid, "not a directory");
    check_copy(
        "l t/y ->/etc/passwd\nd t",
        source,
        copy("s/y", "/t/"),
        "/t d 0755 0:0 @0\n/t/y f 0644 0:0 @0 3 =new",
    );
    let replace = CopyAction { always_replace_existing: true, ..copy("s", "/t") };
    check_copy(
        "d t\nf t/x\nd t/y/z",
        source,
        replace.clone(),
        "/t d 0755 0:0 @0\n/t/x d 0711 0:0 @3\n/t/x/f f 0644 0:0 @0 1 =f\n/t/y f 0644 0:0 @0 3 =new",
    );
    check_copy(
        "d t\nl t/x ->y\nd t/y",
        source,
        replace,
        "/t d 0755 0:0 @0\n/t/x d 0711 0:0 @3\n/t/x/f f 0644 0:0 @0 1 =f\n/t/y f 0644 0:0 @0 3 =new",
    );
    let strict = CopyAction { create_dest_path: false, ..copy("s/y", "/no/y") };
    fails("", source, FileKind::Copy(strict), ErrorKind::NotFound, "does not exist");
}

#[test]
fn wildcards() {
    let source = "f b.txt =b\nf a.txt =a\nf c.md\nd d1\nf d1/x.txt =x\nd d2\nf d2/x.txt =y\nl l.txt ->a.txt";
    let all = "/t d 0755 0:0 @1\n/t/a.txt f 0644 0:0 @0 1 =a\n/t/b.txt f 0644 0:0 @0 1 =b\n/t/l.txt f 0644 0:0 @0 1 =a";
    check_copy("", source, copy("*.txt", "/t/"), all);
    check_copy("", source, copy("/[abl].t?t", "/t/"), all);
    // Of the same name the last wins.
    check_copy("", source, copy("d*/*.txt", "/t/"), "/t d 0755 0:0 @1\n/t/x.txt f 0644 0:0 @0 1 =y");
    check_copy("", source, copy("a*", "/one"), "/one f 0644 0:0 @0 1 =a");
    check_copy("", source, copy("?.txt", "/one"), "/one f 0644 0:0 @0 1 =a");
    check_copy("", source, copy("d?", "/t/"), "/t d 0755 0:0 @0\n/t/x.txt f 0644 0:0 @0 1 =y");
    check_copy("", source, copy("no*", "/t/"), "");
    check_copy("", source, copy("a.txt/*", "/t/"), "");
    fails("", source, FileKind::Copy(copy("no/*", "/t/")), ErrorKind::NotFound, "\"/no\": not found");
    check_copy("", "f a*b =s\nf axb", copy("a[*]b", "/t/"), "/t d 0755 0:0 @1\n/t/a*b f 0644 0:0 @0 1 =s");
    // As in BuildKit, an escape without a wildcard beside it is a backslash.
    fails("", "f a*b", FileKind::Copy(copy("a\\*b", "/t")), ErrorKind::NotFound, "not found");
    let strict = CopyAction { allow_empty_wildcard: false, ..copy("no*", "/t") };
    fails("", source, FileKind::Copy(strict), ErrorKind::NotFound, "\"no*\"");
    fails("", source, FileKind::Copy(copy("[", "/t")), ErrorKind::Invalid, "invalid pattern");
}

#[test]
fn missing_sources_are_named_with_what_is_there() {
    let test = store();
    let source = test.snapshot(&["d src/main\nf src/main/app.rs\nf Readme.md"]);
    for (src, message, help) in [
        ("readme.md", "\"/readme.md\": not found", Some("did you mean \"/Readme.md\"?")),
        ("/src/main/ap.rs", "\"/src/main/ap.rs\": not found", Some("did you mean \"/src/main/app.rs\"?")),
        ("scr/main", "\"/scr/main\": not found", Some("did you mean \"/src\"?")),
        ("nothing-like-it", "\"/nothing-like-it\": not found", None),
    ] {
        let inputs = [FileInput::Snapshot(Snapshot::default()), FileInput::Snapshot(source.clone())];
        let error = run(&test, &chain(vec![FileKind::Copy(copy(src, "/x"))]), &inputs).unwrap_err();
        assert_eq!(
            (error.kind, error.message.as_str(), error.help.as_deref()),
            (ErrorKind::NotFound, message, help)
        );
    }
}

#[test]
fn include_and_exclude() {
    let source = "d s 711 @1\nd s/a 700 @2\nf s/a/x.go =1\nf s/a/x.md\nd s/b 701 @3\nd s/b/c 702 @4\nf s/b/c/y.go =2\nd s/empty\nf s/z.go =3";
    let with = |include: &[&str], exclude: &[&str]| CopyAction {
        include: include.iter().map(ToString::to_string).collect(),
        exclude: exclude.iter().map(ToString::to_string).collect(),
        ..copy("s", "/t")
    };
    let t = "/t d 0755 0:0 @1\n";
    let a = "/t/a d 0700 0:0 @2\n/t/a/x.go f 0644 0:0 @0 1 =1\n";
    let b = "/t/b d 0701 0:0 @3\n/t/b/c d 0702 0:0 @4\n/t/b/c/y.go f 0644 0:0 @0 1 =2\n";
    let z = "/t/z.go f 0644 0:0 @0 1 =3\n";
    check_copy("", source, with(&["**/*.go"], &[]), &format!("{t}{a}{b}{z}"));
    check_copy("", source, with(&["b"], &[]), &format!("{t}{b}"));
    check_copy("", source, with(&["b/c/*.go"], &[]), &format!("{t}{b}"));
    check_copy("", source, with(&["**/*.go"], &["b", "z*"]), &format!("{t}{a}"));
    check_copy("", source, with(&[], &["**", "!b/c/y.go"]), &format!("{t}{b}"));
    check_copy("", source, with(&["none"], &[]), t);
    // Directories that are made only for what is in them change nothing but the mode of those that are there.
    check_copy(
        "d t/a 755 9:9 @9",
        source,
        with(&["a/*.go"], &[]),
        "/t d 0755 0:0 @1\n/t/a d 0700 9:9 @9\n/t/a/x.go f 0644 0:0 @0 1 =1",
    );
    let required = |paths: &[&str]| CopyAction {
        required_paths: paths.iter().map(ToString::to_string).collect(),
        ..with(&["a/x.go"], &[])
    };
    check_copy("", source, required(&["a/x.go"]), &format!("{t}{a}"));
    // COPY --parents s/./a/x.go: what is required is named from the root of the source.
    let pivot = |path: &str| CopyAction { src: "/s".to_owned(), ..required(&[path]) };
    check_copy("", source, pivot("/s/a/x.go"), &format!("{t}{a}"));
    fails("", source, FileKind::Copy(pivot("/s/q")), ErrorKind::NotFound, "\"/s/q\": not found");
    fails("", source, FileKind::Copy(required(&["a/x.go", "q"])), ErrorKind::NotFound, "\"/q\": not found");
}

#[test]
fn owners_modes_and_times() {
    let source = "d s 700 5:5 @3 x:user.d=1\nf s/f 644 6:6 @4 x:user.f=1\nl s/l 7:7 @5 ->f\nf s/x 755";
    // Lines of the tree cannot hold a line feed: the base is made by actions.
    let setup = |kind: FileKind| {
        let file = |path: &str, data: &str| {
            let (path, data) = (path.to_owned(), data.as_bytes().to_vec());
            FileKind::Mkfile(MkfileAction { path, mode: 0o644, data, owner: None, timestamp: Some(0) })
        };
        vec![
            file("/etc/passwd", "root:x:0:0::/:/bin/sh\nbob:x:1000:1001::/:/bin/sh\n"),
            file("/etc/g", "staff:x:50:\n"),
            kind,
        ]
    };
    let name = |name: &str| Some(UserRef::Name { name: name.to_owned(), input: Some(3) });
    for (user, group, want) in [
        (Some(UserRef::Id(9)), None, "9:9"),
        (Some(UserRef::Id(9)), Some(UserRef::Id(8)), "9:8"),
        (None, Some(UserRef::Id(8)), "0:8"),
        (name("bob"), None, "1000:1001"),
        (name("bob"), name("staff"), "1000:50"),
        (name("nobody"), None, "0:0"),
        (Some(UserRef::Id(9)), name("none"), "9:9"),
        // The kernel's "as it is"; what is new is root's.
        (Some(UserRef::Id(u32::MAX)), None, "0:0"),
    ] {
        let action = CopyAction { owner: Some(Chown { user, group }), ..copy("s/f", "/n/f") };
        if !root() {
            continue;
        }
        let text = layer("d etc\nl etc/group ->g", source, setup(FileKind::Copy(action))).unwrap();
        assert!(text.contains(&format!("/n d 0755 {want} @1\n/n/f f 0644 {want} @4 0 user.f=1\n")), "{text}");
    }
    let action = |mode: Option<u32>, mode_str: &str| CopyAction {
        mode,
        mode_str: mode_str.to_owned(),
        ..copy("s", "/t/")
    };
    let tree = |d: &str, f: &str, x: &str| {
        format!("/t d {d} 0:0 @3\n/t/f f {f} 6:6 @4 0 user.f=1\n/t/l l 0777 7:7 @5 -> f\n/t/x f {x} 0:0 @0 0")
    };
    // BuildKit makes directories on the way with an octal mode, but with the mask and without special bits.
    check_copy("", source, action(Some(0o4700), ""), &tree("0700", "4700", "4700"));
    check_copy("", source, action(Some(0o777), ""), &tree("0755", "0777", "0777"));
    check_copy("", source, action(None, "u=rwX,go=rX"), &tree("0755", "0644", "0755"));
    check_copy("", source, action(None, "600"), &tree("0755", "0600", "0600"));
    fails("", source, FileKind::Copy(action(None, "u+q")), ErrorKind::Invalid, "invalid mode");
    let timed = CopyAction { timestamp: Some(7_500_000_000), ..copy("s", "/p/t") };
    let want = "/p d 0755 0:0 @7.5\n/p/t d 0755 0:0 @7.5\n/p/t/f f 0644 6:6 @7.5 0 user.f=1\n/p/t/l l 0777 7:7 @7.5 -> f\n/p/t/x f 0755 0:0 @7.5 0";
    check_copy("", source, timed, want);
    let on_scratch = CopyAction {
        owner: Some(Chown { user: Some(UserRef::Name { name: "bob".into(), input: None }), group: None }),
        ..copy("s", "/t")
    };
    fails("", source, FileKind::Copy(on_scratch), ErrorKind::Invalid, "invalid user index: -1");
}

#[test]
fn user_databases_that_are_none_are_refused() {
    let bob = |kind: &str| {
        let user = Some(UserRef::Name { name: "bob".to_owned(), input: Some(0) });
        let action = CopyAction { owner: Some(Chown { user, group: None }), ..copy("f", "/f") };
        layer(kind, "f f", vec![FileKind::Copy(action)])
    };
    if root() {
        for base in ["p etc/passwd", "c etc/passwd #1,5", "d etc/passwd"] {
            let error = bob(base).unwrap_err();
            assert!(error.kind == ErrorKind::Invalid && error.message.contains("/etc/passwd"), "{error}");
        }
    }
    // A link that leads out of the tree leads nowhere in it.
    assert_eq!(bob("l etc/passwd ->../../../etc/shadow").unwrap(), "/f f 0644 0:0 @0 0\n");
    let test = store();
    let base = test.snapshot(&["f etc/passwd =x"]);
    let path = test.dir.path().join("layers").join(base.layers[0].as_str()).join("etc/passwd");
    File::options().write(true).open(path).unwrap().set_len(100 << 30).unwrap();
    let user = Some(UserRef::Name { name: "bob".to_owned(), input: Some(0) });
    let action = CopyAction { owner: Some(Chown { user, group: None }), ..copy("etc", "/f") };
    let inputs = [FileInput::Snapshot(base.clone()), FileInput::Snapshot(Snapshot::default())];
    assert_eq!(
        run(&test, &chain(vec![FileKind::Copy(action)]), &inputs).unwrap_err().kind,
        ErrorKind::Invalid
    );
}

#[test]
fn contexts_belong_to_root_and_are_verified() {
    let test = store();
    let tree = test.view(&test.snapshot(&["d d 700 @2\nf d/f 600 5:5 @3 =abc\nf e =e"]));
    let local = Arc::new(Local { tree, verified: Mutex::default() });
    let inputs =
        |local: &Arc<Local>| [FileInput::Snapshot(Snapshot::default()), FileInput::View(local.clone())];
    let out = run(&test, &chain(vec![FileKind::Copy(copy(".", "/app/"))]), &inputs(&local)).unwrap();
    let want = "/ d 0755 0:0 @0\n/app d 0755 0:0 @0\n/app/d d 0700 0:0 @2\n/app/d/f f 0600 0:0 @3 3 =abc\n/app/e f 0644 0:0 @0 1 =e\n";
    assert_eq!(test.dump(&out[0]), want);
    let mut verified = local.verified.lock().unwrap().clone();
    verified.sort();
    assert_eq!(verified, ["/d/f 3", "/e 1"]);
    let tree = test.view(&test.snapshot(&["f changing =x\nf other"]));
    let local = Arc::new(Local { tree, verified: Mutex::default() });
    let error = run(&test, &chain(vec![FileKind::Copy(copy(".", "/app/"))]), &inputs(&local)).unwrap_err();
    assert!(error.message.contains("/changing"), "{error}");
    // As the base of an operation it is copied first.
    let mkdir = FileKind::Mkdir(MkdirAction {
        path: "/new".into(),
        mode: 0o700,
        make_parents: false,
        owner: None,
        timestamp: Some(0),
    });
    let tree = test.view(&test.snapshot(&["f e 600 5:5 =e"]));
    let local = Arc::new(Local { tree, verified: Mutex::default() });
    let out = run(&test, &chain(vec![mkdir]), &[FileInput::View(local)]).unwrap();
    assert_eq!(test.dump(&out[0]), "/ d 0755 0:0 @0\n/e f 0600 0:0 @0 1 =e\n/new d 0700 0:0 @0\n");
}

#[test]
fn many_files_and_hard_links() {
    let test = store();
    let mut lines = String::from("d many\n");
    for i in 0..500 {
        lines.push_str(&format!("d many/d{:02}\nf many/d{:02}/f{i} 640 @{i} =content-{i}\n", i % 50, i % 50));
        if i % 7 == 0 {
            lines.push_str(&format!("h many/link{i} ->many/d{:02}/f{i}\n", i % 50));
        }
    }
    for i in 0..300 {
        lines.push_str(&format!("f many/g{i} =g\n"));
    }
    let source = test.snapshot(&[&lines]);
    let inputs = [FileInput::Snapshot(Snapshot::default()), FileInput::Snapshot(source.clone())];
    let op = chain(vec![FileKind::Copy(copy("/", "/"))]);
    let one = run(&test, &op, &inputs).unwrap().remove(0);
    assert_eq!(test.dump(&one), test.dump(&source));
    let two = run(&test, &op, &inputs).unwrap().remove(0);
    let tar = |snapshot: &Snapshot| test.tar(&snapshot.layers[0]);
    assert!(tar(&one) == tar(&two) && tar(&one) == tar(&source), "the same bytes whoever was faster");
}

fn mkdir(path: &str, parents: bool) -> MkdirAction {
    MkdirAction {
        path: path.to_owned(),
        mode: 0o40_711,
        make_parents: parents,
        owner: None,
        timestamp: Some(2_000_000_000),
    }
}

#[test]
fn mkdir_mkfile_symlink_rm() {
    let owner = || Some(Chown { user: Some(UserRef::Id(3)), group: None });
    let dir =
        |path: &str, parents| vec![FileKind::Mkdir(MkdirAction { owner: owner(), ..mkdir(path, parents) })];
    check("", "", dir("/a", false), "/a d 0711 3:3 @2");
    check("", "", dir("a/b/c", true), "/a d 0711 3:3 @2\n/a/b d 0711 3:3 @2\n/a/b/c d 0711 3:3 @2");
    check("d a 700 @1", "", dir("/a", false), "");
    check("l l ->/x/y", "", dir("/l", true), "/x d 0711 3:3 @2\n/x/y d 0711 3:3 @2");
    fails("", "", FileKind::Mkdir(mkdir("/a/b", false)), ErrorKind::NotFound, "/a does not exist");
    fails("f a", "", FileKind::Mkdir(mkdir("/a/b", true)), ErrorKind::Invalid, "not a directory");

    let file = |path: &str, owner| {
        FileKind::Mkfile(MkfileAction {
            path: path.to_owned(),
            mode: 0o4640,
            data: b"new".to_vec(),
            owner,
            timestamp: Some(5_000_000_000),
        })
    };
    check("", "", vec![file("/f", None)], "/f f 0640 0:0 @5 3 =new");
    check("f f 755 1:2 =old", "", vec![file("/f", None)], "/f f 0755 1:2 @5 3 =new");
    check("f f 755 1:2 =old", "", vec![file("/f", owner())], "/f f 0755 3:3 @5 3 =new");
    check("l f ->/d/g\nd d 700", "", vec![file("/f", None)], "/d d 0700 0:0 @0\n/d/g f 0640 0:0 @5 3 =new");
    fails("d f", "", file("/f", None), ErrorKind::Invalid, "no regular file");
    fails("", "", file("/d/f", None), ErrorKind::NotFound, "/d does not exist");
    fails("", "", file("/.wh.f", None), ErrorKind::Invalid, "/.wh.f");

    let link = |path: &str| {
        FileKind::Symlink(SymlinkAction {
            oldpath: "../x".into(),
            newpath: path.into(),
            owner: owner(),
            timestamp: Some(5_000_000_000),
        })
    };
    check("", "", vec![link("/l")], "/l l 0777 3:3 @5 -> ../x");
    fails("f l", "", link("/l"), ErrorKind::Invalid, "something already");

    let rm = |path: &str, missing, wild| {
        FileKind::Rm(RmAction { path: path.to_owned(), allow_not_found: missing, allow_wildcard: wild })
    };
    let base = "d a\nf a/x\nf a/y\nd b\nl l ->/a\nf c.o\nf d.o";
    check(base, "", vec![rm("/a", false, false)], "/a w");
    check(base, "", vec![rm("/l/x", false, false)], "/a d 0755 0:0 @0\n/a/x w");
    check(base, "", vec![rm("l", false, false)], "/l w");
    check(base, "", vec![rm("/*.o", false, true)], "/c.o w\n/d.o w");
    check(base, "", vec![rm("/a/../../b", false, false)], "/b w");
    check(base, "", vec![rm("/none", true, false)], "");
    fails(base, "", rm("/none", false, false), ErrorKind::NotFound, "/none");
    fails(base, "", rm("/", false, false), ErrorKind::Invalid, "root");
    fails(base, "", rm("/a/..", false, false), ErrorKind::Invalid, "root");
    // What was removed does not come back with a new directory; what was made here is simply gone.
    check(
        base,
        "",
        vec![rm("/a", false, false), FileKind::Mkdir(mkdir("/a", false))],
        "/a d 0711 0:0 @2\n/a o",
    );
    check(base, "", vec![FileKind::Mkdir(mkdir("/n", false)), rm("/n", false, false)], "");
    check(
        base,
        "f a =f",
        vec![rm("/a", false, false), FileKind::Copy(copy("a", "/a"))],
        "/a f 0644 0:0 @0 1 =f",
    );
    check(
        base,
        "",
        vec![file("/a/x", None), rm("/a/x", false, false), rm("/a/x", true, false)],
        "/a d 0755 0:0 @0\n/a/x w",
    );
}

#[test]
fn chains_make_one_layer_and_branches_one_each() {
    let test = store();
    let base = test.snapshot(&["f base =b"]);
    let file = |path: &str| {
        FileKind::Mkfile(MkfileAction {
            path: path.into(),
            mode: 0o644,
            data: path.into(),
            owner: None,
            timestamp: Some(0),
        })
    };
    let action = |input: Option<u32>, secondary: Option<u32>, output: Option<u32>, kind| FileAction {
        input,
        secondary_input: secondary,
        output,
        kind,
    };
    let inputs = [FileInput::Snapshot(base.clone())];
    // 1: base + a (an output and the start of 2 and 3); 2: + b; 3: + c from 2; 4: scratch, copied from 1.
    let op = FileOp {
        actions: vec![
            action(Some(0), None, Some(0), file("/a")),
            action(Some(1), None, Some(2), file("/b")),
            action(Some(1), Some(2), Some(1), FileKind::Copy(copy("b", "/c"))),
            action(None, Some(1), Some(3), FileKind::Copy(copy("/", "/all/"))),
        ],
        epoch: None,
    };
    let out = run(&test, &op, &inputs).unwrap();
    let names = |snapshot: &Snapshot| {
        let view = test.view(snapshot);
        let names = view.children(&RelPath::root()).unwrap();
        (snapshot.layers.len(), String::from_utf8(names.join(&b' ')).unwrap())
    };
    assert_eq!(
        out.iter().map(names).collect::<Vec<_>>(),
        [(2, "a base".into()), (2, "a base c".into()), (2, "a b base".into()), (1, "all".into())]
    );
    for (op, words) in [
        (FileOp { actions: vec![action(Some(5), None, Some(0), file("/a"))], epoch: None }, "index 5"),
        (FileOp { actions: vec![action(Some(1), None, Some(0), file("/a"))], epoch: None }, "index 1"),
        (FileOp { actions: vec![action(Some(0), None, None, file("/a"))], epoch: None }, "without outputs"),
        (FileOp { actions: vec![action(Some(0), None, Some(1), file("/a"))], epoch: None }, "output 0"),
    ] {
        let error = run(&test, &op, &inputs).unwrap_err();
        assert!(error.kind == ErrorKind::Invalid && error.message.contains(words), "{error}");
    }
}

fn compressed(tool: &str, data: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write;
    let mut child = std::process::Command::new(tool)
        .arg("-c")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(data).ok()?;
    Some(child.wait_with_output().ok()?.stdout)
}

#[test]
fn archives_are_unpacked() {
    if !root() {
        return;
    }
    let archive = tar(
        "d . 700\nd d 711 5:6 @3\nf d/f 4755 7:8 @4 =hi\nh d/h ->d/f\nl etc/l ->/d\nf etc/l/via =v\np d/p 600 @5",
    );
    let base = "d t 700 @9\nd t/d 755 @9\nf t/d/keep =k\nd etc\nl t/etc ->/real\nd t/real";
    let want = "/t d 0700 0:0 @9
        /t/d d 0711 5:6 @3
        /t/d/f f 4755 7:8 @4 2 =hi
        /t/d/h f 4755 7:8 @4 2 =hi
        /t/d/p p 0600 0:0 @5
        /t/d/via f 0644 0:0 @0 1 =v
        /t/real d 0755 0:0 @0
        /t/real/l l 0777 0:0 @0 -> /d";
    for tool in ["cat", "gzip", "bzip2", "zstd", "xz"] {
        let data = if tool == "cat" { Some(archive.clone()) } else { compressed(tool, &archive) };
        let Some(data) = data else { continue };
        let test = store();
        let (base, source) = (test.snapshot(&[base]), test.snapshot(&["f a =x\nf plain.gz =plain"]));
        let file = test.dir.path().join("layers").join(source.layers[0].as_str()).join("a");
        std::fs::write(file, data).unwrap();
        let add =
            |src: &str, dest: &str| FileKind::Copy(CopyAction { attempt_unpack: true, ..copy(src, dest) });
        let inputs = [FileInput::Snapshot(base), FileInput::Snapshot(source)];
        let out = run(&test, &chain(vec![add("a", "/t")]), &inputs).unwrap();
        let text = test.dump_layer(out[0].layers.last().unwrap());
        let want: String = want.lines().map(|line| format!("{}\n", line.trim())).collect();
        assert_eq!(text.split_once('\n').unwrap().1, want, "{tool}");
        let out = run(&test, &chain(vec![add("plain.gz", "/t/")]), &inputs).unwrap();
        let text = test.dump_layer(out[0].layers.last().unwrap());
        assert!(text.ends_with("/t/plain.gz f 0644 0:0 @0 5 =plain\n"), "{text}");
    }
}

/// `..` in names stops at the destination, as for a tool that has made it its root.
#[test]
fn archives_do_not_lead_out() {
    let mut archive = tar("f xx/escaped =x\nh xx/again ->xx/escaped");
    for start in [0, 1024] {
        archive[start..start + 2].copy_from_slice(b"..");
        if archive[start + 157..].starts_with(b"xx/") {
            archive[start + 157..start + 159].copy_from_slice(b"..");
        }
        archive[start + 148..start + 156].copy_from_slice(b"        ");
        let sum: u32 = archive[start..start + 512].iter().map(|byte| u32::from(*byte)).sum();
        archive[start + 148..start + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    let test = store();
    let source = test.snapshot(&["f a.tar =x"]);
    let place = test.dir.path().join("layers").join(source.layers[0].as_str()).join("a.tar");
    std::fs::write(place, archive).unwrap();
    let add = FileKind::Copy(CopyAction { attempt_unpack: true, ..copy("a.tar", "/t/u/") });
    let inputs = [FileInput::Snapshot(test.snapshot(&["d etc"])), FileInput::Snapshot(source)];
    let text = test.dump(&run(&test, &chain(vec![add]), &inputs).unwrap()[0]);
    assert!(text.contains("/t/u/escaped f") && text.contains("/t/u/again f"), "{text}");
}

#[test]
fn hostile_archives_stay_inside() {
    let test = store();
    for (lines, words) in [
        ("l l ->../../..\nf l/escaped =x", ""),
        ("w etc/passwd", ".wh.passwd"),
        ("h x ->../../etc/passwd", "\"..\""),
        ("h x ->none", "no file"),
    ] {
        let archive = if lines.contains("../../etc") { continue } else { tar(lines) };
        let source = test.snapshot(&["f a.tar =x"]);
        std::fs::write(test.dir.path().join("layers").join(source.layers[0].as_str()).join("a.tar"), archive)
            .unwrap();
        let add = FileKind::Copy(CopyAction { attempt_unpack: true, ..copy("a.tar", "/t/") });
        let base = test.snapshot(&["d etc\nf etc/passwd =p"]);
        let result = run(&test, &chain(vec![add]), &[FileInput::Snapshot(base), FileInput::Snapshot(source)]);
        match result {
            Ok(out) => {
                assert!(words.is_empty(), "{lines}");
                assert!(test.dump(&out[0]).contains("/t/escaped f"), "{lines}");
            }
            Err(error) => assert!(!words.is_empty() && error.message.contains(words), "{error}"),
        }
    }
}
