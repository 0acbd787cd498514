//! The store as a whole: views against the kernel's overlay, tar round trips, steps, cache mounts.

mod random;

use std::sync::Arc;
use std::time::Duration;

use rbuild_graph::CacheSharing;
use rbuild_ports::{CancelToken, ErrorKind, LayerId, Snapshot, Snapshots};
use rbuild_tree::RelPath;

use crate::testing::*;
use crate::{LayerStore, LayerStoreOptions};

/// The kernel's own view of a snapshot.
fn kernel(test: &TestStore, snapshot: &Snapshot) -> String {
    let dirs = test.store.lower_dirs(snapshot).unwrap();
    let mut lower: Vec<String> = dirs.lower.iter().rev().cloned().collect();
    // The kernel wants two lower directories where there is no upper one.
    std::fs::create_dir_all(test.dir.path().join("layers/zz")).unwrap();
    lower.push("zz".to_owned());
    let base = dirs.base.display().to_string();
    let script = format!(
        r#"mkdir /tmp/rbuild-mnt-$$; trap 'rmdir /tmp/rbuild-mnt-$$' EXIT
cd "$1"; mount -t overlay overlay -o "ro,lowerdir=$2" /tmp/rbuild-mnt-$$
set -- /tmp/rbuild-mnt-$$; {FIND}; cd /; umount "$1""#
    );
    found(&in_namespace(&script, &[&base, &lower.join(":")]))
}

#[test]
fn views_are_what_the_kernel_shows() {
    if !root() {
        return;
    }
    let test = store();
    let snapshot = test.snapshot(&[
        "d etc 755 @5\nf etc/a 600 1:2 @6.5 =aa\nd usr/lib\nf usr/lib/x =x\nl lib ->usr/lib @7\nd gone\nf gone/f\nd opaque 700\nf opaque/old\nf file =f\nd dir\nf dir/f\nc null 666 #1,3\np pipe 600\nd d1/d2/d3\nf d1/d2/d3/f",
        "d etc 711 @8\nf etc/b 4755 =bb\nw gone\nd opaque\no opaque\nf opaque/new\nd file\nf file/inside\nf dir =now-a-file\nw d1/d2/d3",
        "d gone 1777\nf gone/other\nl dir ->etc\nw etc/a\nd d1\nd d1/d2\nd d1/d2/d3\nf d1/d2/d3/g",
    ]);
    let view = test.view(&snapshot);
    assert_eq!(listing(view.as_ref()), kernel(&test, &snapshot));
    let text = test.dump(&snapshot);
    for (line, there) in [
        ("/etc/b f 4755", true),
        ("/etc/a", false),
        ("/gone/other", true),
        ("/gone/f", false),
        ("/opaque/new", true),
        ("/opaque/old", false),
        ("/file/inside", true),
        ("/dir l", true),
        ("/d1/d2/d3/g", true),
        ("/d1/d2/d3/f", false),
        ("/null c 0666 0:0 @0 1:3", true),
    ] {
        assert_eq!(text.contains(line), there, "{line}\n{text}");
    }
    let none = view.open(&RelPath::parse("lib/x").unwrap()).unwrap_err();
    assert_eq!(none.kind, ErrorKind::NotFound, "links are not followed");
    assert_eq!(view.open(&RelPath::parse("pipe").unwrap()).unwrap_err().kind, ErrorKind::NotFound);
    assert!(view.children(&RelPath::parse("etc/b").unwrap()).is_err());
}

#[test]
fn scratch_is_an_empty_directory() {
    let test = store();
    assert_eq!(test.dump(&Snapshot::default()), "/ d 0755 0:0 @0\n");
    let missing = Snapshot { layers: vec!["nope".parse().unwrap()] };
    assert_eq!(test.store.view(&missing).err().map(|e| e.kind), Some(ErrorKind::NotFound));
    assert_eq!(test.store.lower_dirs(&missing).err().map(|e| e.kind), Some(ErrorKind::NotFound));
    assert_eq!(test.store.prepare(&missing).err().map(|e| e.kind), Some(ErrorKind::NotFound));
}

const STEP: &str = r#"
mkdir /tmp/rbuild-mnt-$$; trap 'rmdir /tmp/rbuild-mnt-$$' EXIT
cd "$1"; mount -t overlay overlay -o "redirect_dir=off,metacopy=off,index=off,lowerdir=$2,upperdir=$3,workdir=$4" /tmp/rbuild-mnt-$$
cd /tmp/rbuild-mnt-$$; eval "$5"; cd /
set -- /tmp/rbuild-mnt-$$
"#;

/// Runs a script as a step would, and gives the listing before it was unmounted, and the layer.
fn step(test: &TestStore, parent: &Snapshot, script: &str) -> rbuild_ports::Result<(String, Snapshot, u64)> {
    let active = test.store.prepare(parent)?;
    let dirs = active.dirs();
    let lower: Vec<&str> = dirs.lower.iter().rev().map(String::as_str).collect();
    let show = format!("{STEP}\n{FIND}; umount \"$1\"");
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let arguments =
        [&dirs.base.display().to_string(), &lower.join(":"), &path(&dirs.upper), &path(&dirs.work), script];
    let listing = in_namespace(&show, &arguments);
    let layer = active.commit()?;
    let entries = layer.entries;
    Ok((found(&listing), parent.with(layer.layer), entries))
}

#[test]
fn steps_become_layers() {
    if !root() {
        return;
    }
    let test = store();
    let base = test.snapshot(&[
        "d . 555 3:4 @9\nd etc\nf etc/a =a\nd usr\nd usr/old\nf usr/old/f =x\nf top =t\nd keep\nf keep/k",
    ]);
    let script = "rm etc/a; echo b > etc/b; rm -r usr/old; mkdir usr/old; touch usr/old/new; mkdir -p fresh/sub; \
                  mv top top2; chmod 1777 keep; ln etc/b etc/c; mknod -m 600 n c 1 5; rm -rf keep; mkdir keep";
    let (shown, after, _) = step(&test, &base, script).unwrap();
    let view = test.view(&after);
    assert_eq!(listing(view.as_ref()), shown);
    let top = after.layers.last().unwrap();
    let layer = test.dump_layer(top);
    // What hides nothing is not opaque, so that the layer says only what the step did.
    assert!(layer.contains("/usr/old o\n") && layer.contains("/keep o\n"), "{layer}");
    assert!(!layer.contains("/fresh o\n") && !layer.contains("/fresh/sub o\n"), "{layer}");
    assert!(layer.starts_with("/ d 0555 3:4 @"), "{layer}");
    let again = test.unpack_tar("again", &base, &test.tar(top)).unwrap();
    // In a tar times are whole seconds.
    let whole = |word: &str| match word.split_once('.') {
        Some((secs, _)) if word.starts_with('@') => secs.to_owned(),
        _ => word.to_owned(),
    };
    let line = |line: &str| line.split(' ').map(whole).collect::<Vec<_>>().join(" ");
    let dump = |id| test.dump_layer(id).lines().skip(1).map(line).collect::<Vec<_>>();
    assert_eq!(dump(&again.layer), dump(top));
    let (shown, empty, entries) = step(&test, &after, "true").unwrap();
    assert_eq!((listing(test.view(&empty).as_ref()), entries), (shown, 0));
    test.assert_clean();
}

/// As BuildKit's layers: `chown -R` to the same owner doubled the size of an image.
#[test]
fn what_a_step_left_as_it_was_is_no_part_of_its_layer() {
    if !root() {
        return;
    }
    let test = store();
    let base = test.snapshot(&[
        "d bin @9\nf bin/tool 755 @7 =tool\nl bin/t @7 ->tool\nd etc @9\nd etc/deep @9\nf etc/deep/a @7 =a\nf etc/b @7 =b\n\
         d var @9\nf var/x @7 =x\nf var/y @7 =y",
    ]);
    let layer = |script: &str| {
        let (_, after, entries) = step(&test, &base, script).unwrap();
        let top = after.layers.last().unwrap();
        assert!(test.store.matches(&test.store.measure(top).unwrap()).unwrap());
        let dump = test.dump_layer(top);
        let lines = dump.lines().filter(|line| !line.ends_with(" o")).count();
        assert_eq!(lines as u64, entries + 1, "{dump}");
        dump.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(layer("chown -R 0:0 .; chmod 755 bin bin/tool; touch -d @7 etc/b"), Vec::<String>::new());
    assert_eq!(layer("touch etc/deep/new; rm etc/deep/new"), Vec::<String>::new());
    // Another name of a file is a file; the first one is below.
    assert_eq!(
        layer("ln bin/tool bin/tool2; touch -d @8 bin"),
        ["/bin d 0755 0:0 @8", "/bin/tool2 f 0755 0:0 @7 4 =tool"]
    );
    // Other bytes of the same length and time, another mode, owner, link.
    assert_eq!(
        layer(
            "printf B > etc/b; touch -d @7 etc/b; chmod 600 etc/deep/a; touch -d @5 etc etc/deep; chown 0:0 var/x"
        ),
        [
            "/etc d 0755 0:0 @5",
            "/etc/b f 0644 0:0 @7 1 =B",
            "/etc/deep d 0755 0:0 @5",
            "/etc/deep/a f 0600 0:0 @7 1 =a"
        ]
    );
    assert_eq!(
        layer(
            "ln -sfn tooL bin/t; touch -hd @7 bin/t; chmod 700 bin; touch -d @8 bin; chown 1 var/y; touch -d @8 var"
        ),
        [
            "/bin d 0700 0:0 @8",
            "/bin/t l 0777 0:0 @7 -> tooL",
            "/var d 0755 0:0 @8",
            "/var/y f 0644 1:0 @7 1 =y"
        ]
    );
    // What was deleted and made again is new.
    assert_eq!(
        layer(
            "rm -r etc/deep; mkdir etc/deep; printf a > etc/deep/a; touch -d @7 etc/deep/a; touch -d @8 etc/deep etc"
        ),
        ["/etc d 0755 0:0 @8", "/etc/deep d 0755 0:0 @8", "/etc/deep o", "/etc/deep/a f 0644 0:0 @7 1 =a"]
    );
    test.assert_clean();
}

#[test]
fn a_step_cannot_leave_names_that_delete() {
    if !root() {
        return;
    }
    let test = store();
    let base = test.snapshot(&["f keep"]);
    let error = step(&test, &base, "touch .wh.keep").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("/.wh.keep"), "{error}");
    test.assert_clean();
    assert_eq!(test.store.layers().unwrap(), base.layers);
}

#[test]
fn an_abandoned_layer_leaves_nothing() {
    let test = store();
    let active = test.store.prepare(&Snapshot::default()).unwrap();
    let upper = active.dirs().upper.unwrap();
    std::fs::create_dir_all(upper.join("a/b")).unwrap();
    drop(active);
    assert!(!upper.exists());
    test.assert_clean();
}

#[test]
fn damage_is_found_and_layers_are_removed() {
    let test = store();
    let layer = test.unpack("x", &Snapshot::default(), "d a\nf a/f =12345\nf g").unwrap();
    assert_eq!((layer.entries, layer.bytes), (3, 5));
    assert!(test.store.matches(&layer).unwrap());
    let path = test.dir.path().join("layers/x");
    std::fs::write(path.join("a/f"), "").unwrap();
    assert!(!test.store.matches(&layer).unwrap());
    std::os::unix::fs::symlink(test.dir.path().join("layers"), path.join("link")).unwrap();
    test.store.remove(&layer.layer).unwrap();
    test.store.remove(&layer.layer).unwrap();
    assert!(!test.store.present(&layer.layer) && !test.store.matches(&layer).unwrap());
    assert_eq!(test.store.layers().unwrap(), Vec::<LayerId>::new());
    test.assert_clean();
}

#[test]
fn layers_of_an_image_unpack_side_by_side() {
    let test = store();
    let ids: Vec<LayerId> = (0..6).map(|i| format!("p{i}").parse().unwrap()).collect();
    let lines = |i: usize| match i {
        0 => "d usr 711\nd usr/lib 700 @3\nl lib ->usr/lib\nf usr/lib/zero =0".to_owned(),
        i => format!("f lib/f{i} =x\nh usr/lib/h{i} ->lib/zero"),
    };
    std::thread::scope(|scope| {
        // The lowest comes last: all others wait for it.
        for i in (0..ids.len()).rev() {
            let (test, ids, tar) = (&test, &ids, tar(&lines(i)));
            scope.spawn(move || {
                if i == 0 {
                    std::thread::sleep(Duration::from_millis(100));
                }
                test.store.unpack(&ids[i], &ids[..i], &mut &*tar, &CancelToken::new()).unwrap();
            });
        }
    });
    let text = test.dump(&Snapshot { layers: ids });
    assert!(text.contains("/lib l 0777"), "{text}");
    assert!(text.contains("/usr/lib d 0700 0:0 @3\n/usr/lib/f1 f"), "{text}");
    assert!(text.contains("/usr/lib/h5 f 0644 0:0 @0 1 =0"), "{text}");
    test.assert_clean();
}

#[test]
fn the_same_layer_twice_is_unpacked_once() {
    let test = store();
    let tar = tar("f a =1\nf b =2");
    let layers: Vec<_> = std::thread::scope(|scope| {
        let run = || test.unpack_tar("same", &Snapshot::default(), &tar).unwrap();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]));
    // Another process may have the store open too.
    let other = LayerStore::open(test.dir.path(), options(&test.dir)).unwrap();
    assert!(other.present(&layers[0].layer));
    test.assert_clean();
}

#[test]
fn pinned_before_visible() {
    let dir = tempfile::tempdir().unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (log, layers) = (seen.clone(), dir.path().join("layers"));
    let pin: crate::PinLayer = Arc::new(move |layer| {
        log.lock().unwrap().push((layer.clone(), layers.join(layer.as_str()).exists()));
        Ok(())
    });
    let options = LayerStoreOptions { pin, ..options(&dir) };
    let store = LayerStore::open(dir.path(), options).unwrap();
    let layer = store.prepare(&Snapshot::default()).unwrap().commit().unwrap();
    assert_eq!(*seen.lock().unwrap(), [(layer.layer.clone(), false)]);
    assert!(store.present(&layer.layer));
}

#[test]
fn cache_mounts_are_shared_private_or_locked() {
    let test = store();
    let init = test.snapshot(&["d . 700 5:6 @1\nd d 711\nf d/f =x"]);
    let cancel = CancelToken::new();
    let open = |sharing| test.store.cache_mount("a/../b", sharing, Some(&init), &cancel).unwrap();
    let one = open(CacheSharing::Shared);
    if rustix::process::geteuid().is_root() {
        let root =
            crate::sys::open_at(rustix::fs::CWD, one.path().as_os_str().as_encoded_bytes(), crate::sys::DIR);
        assert_eq!(
            dump_dir(root.unwrap(), false),
            "/ d 0700 5:6 @1\n/d d 0711 0:0 @0\n/d/f f 0644 0:0 @0 1 =x\n"
        );
    }
    std::fs::write(one.path().join("d/f"), "changed").unwrap();
    let two = open(CacheSharing::Shared);
    assert_eq!(std::fs::read_to_string(two.path().join("d/f")).unwrap(), "changed");
    let private = open(CacheSharing::Private);
    assert_ne!(private.path(), one.path());
    let listed = test.store.cache_mounts().unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!((listed[0].id.as_str(), listed[0].bytes, listed[0].in_use), ("a/../b", 8, true));
    assert!(!test.store.remove_cache_mount("a/../b").unwrap());
    std::thread::scope(|scope| {
        let locked = scope.spawn(|| drop(open(CacheSharing::Locked)));
        std::thread::sleep(Duration::from_millis(120));
        assert!(!locked.is_finished());
        drop((one, two));
        locked.join().unwrap();
    });
    let held = open(CacheSharing::Locked);
    let stop = CancelToken::new();
    stop.cancel();
    let waiting = test.store.cache_mount("a/../b", CacheSharing::Locked, None, &stop);
    assert_eq!(waiting.err().map(|e| e.kind), Some(ErrorKind::Cancelled));
    drop((held, private));
    assert!(test.store.remove_cache_mount("a/../b").unwrap());
    assert!(test.store.remove_cache_mount("never").unwrap());
    assert_eq!(test.store.cache_mounts().unwrap(), vec![]);
    let again = test.store.cache_mount("a/../b", CacheSharing::Private, None, &cancel).unwrap();
    assert_eq!(std::fs::read_dir(again.path()).unwrap().count(), 0);
    test.assert_clean();
}

#[test]
fn digests_are_computed_for_many() {
    let test = store();
    let lines: Vec<String> =
        (0..200).map(|i| format!("f f{i} =hello")).chain(["l l ->x".to_owned()]).collect();
    let view = test.view(&test.snapshot(&[&lines.join("\n")]));
    let paths: Vec<RelPath> =
        view.children(&RelPath::root()).unwrap().iter().map(|n| RelPath::parse(n).unwrap()).collect();
    let all = view.entry_digests(&paths).unwrap();
    let one: Vec<_> = paths.iter().map(|path| view.entry_digest(path).unwrap()).collect();
    assert_eq!(all, one);
    assert!(view.entry_digest(&RelPath::parse("nope").unwrap()).is_err());
    // The vector of BuildKit's contenthash for a regular file with `data0`.
    let view = test.view(&test.snapshot(&["f data =data0"]));
    let digest = view.entry_digest(&RelPath::parse("data").unwrap()).unwrap();
    assert_eq!(digest.to_string(), "sha256:cd8e75bca50f2d695f220d0cb0997d8ead387e4f926e8669a92d7f104cc9885b");
}

/// Runs the test `name` of this program again as root of a user namespace with one user.
fn in_user_namespace(name: &str) {
    let run = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture", "--test-threads=1"])
        .env("RBUILD_TEST_IN_USERNS", "1")
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    if text.contains("Operation not permitted") && text.starts_with("unshare:") {
        assert!(std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(), "user namespaces are not available");
        return;
    }
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn works_in_a_user_namespace() {
    if std::env::var_os("RBUILD_TEST_IN_USERNS").is_none() {
        return in_user_namespace("tests::works_in_a_user_namespace");
    }
    let dir = tempfile::tempdir().unwrap();
    let open = |squash_owners| {
        let options = LayerStoreOptions { userns: true, squash_owners, ..options(&dir) };
        LayerStore::open(dir.path(), options).unwrap()
    };
    let lines =
        "d d 711 1:2 @3\nf d/old 600 3:4 @4 =x\nd o\nf o/old\nc null 666 #1,3\np p 600\nl l 5:6 ->d\nf gone";
    let strict = open(false);
    let id: LayerId = "a".parse().unwrap();
    let unpack = |store: &LayerStore, name: &str, parents: &[LayerId], lines: &str| {
        store.unpack(&name.parse().unwrap(), parents, &mut &*tar(lines), &CancelToken::new())
    };
    assert!(unpack(&strict, "a", &[], lines).is_err());
    let store = open(true);
    unpack(&store, "a", &[], lines).unwrap();
    let top =
        unpack(&store, "b", std::slice::from_ref(&id), "w gone\nd o\no o\nf o/new\nf d/new =y").unwrap();
    let snapshot = Snapshot { layers: vec![id.clone(), top.layer.clone()] };
    let view = store.view(&snapshot).unwrap();
    let want = "/ d 0755 0:0 @0\n/d d 0711 0:0 @3\n/d/new f 0644 0:0 @0 1 =y\n/d/old f 0600 0:0 @4 1 =x\n/l l 0777 0:0 @0 -> d\n/o d 0755 0:0 @0\n/o/new f 0644 0:0 @0 0\n/p p 0600 0:0 @0\n";
    assert_eq!(dump_view(view.as_ref()), want);
    let mut out = Vec::new();
    store.write_tar(&top.layer, None, &mut out).unwrap();
    assert_eq!(
        store.unpack(&"c".parse().unwrap(), &[id], &mut &*out, &CancelToken::new()).unwrap().entries,
        top.entries
    );
    // A step's overlay, mounted as the sandbox does it there.
    let active = store.prepare(&snapshot).unwrap();
    let dirs = active.dirs();
    let lower: Vec<&str> = dirs.lower.iter().rev().map(String::as_str).collect();
    let script = r#"mkdir "$1/../mnt"; cd "$1"
mount -t overlay overlay -o "userxattr,lowerdir=$2,upperdir=$3,workdir=$4" ../mnt
cd ../mnt; rm -r d; mkdir d; touch d/fresh; rm p; cd ..
set -- mnt; "#;
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().unwrap().display().to_string();
    let shown = in_namespace(
        &format!("{script}{FIND}; umount mnt; rmdir mnt"),
        &[&dirs.base.display().to_string(), &lower.join(":"), &path(&dirs.upper), &path(&dirs.work)],
    );
    let layer = active.commit().unwrap();
    let view = store.view(&snapshot.with(layer.layer.clone())).unwrap();
    assert_eq!(listing(view.as_ref()), found(&shown));
    assert!(view.lookup(&RelPath::parse("d/old").unwrap()).unwrap().is_none());
    assert!(store.remove(&layer.layer).is_ok());
}

#[test]
fn trees_deeper_than_any_path() {
    let test = store();
    let active = test.store.prepare(&Snapshot::default()).unwrap();
    let upper = active.dirs().upper.unwrap();
    let mut fd =
        crate::sys::open_at(rustix::fs::CWD, upper.as_os_str().as_encoded_bytes(), crate::sys::DIR).unwrap();
    let name = "d".repeat(200);
    let mut path = RelPath::root();
    for _ in 0..300 {
        rustix::fs::mkdirat(&fd, name.as_str(), rustix::fs::Mode::RWXU).unwrap();
        fd = crate::sys::open_at(&fd, name.as_bytes(), crate::sys::DIR).unwrap();
        path = path.child(&name).unwrap();
    }
    drop(rustix::fs::openat(&fd, "leaf", rustix::fs::OFlags::CREATE, rustix::fs::Mode::RWXU).unwrap());
    let layer = active.commit().unwrap();
    assert_eq!(layer.entries, 301);
    assert!(test.store.matches(&layer).unwrap());
    let snapshot = Snapshot::default().with(layer.layer.clone());
    assert_eq!(test.view(&snapshot).children(&path).unwrap(), [b"leaf".to_vec()]);
    let again = test.unpack_tar("again", &Snapshot::default(), &test.tar(&layer.layer)).unwrap();
    assert_eq!(again.entries, 301);
    test.store.remove(&layer.layer).unwrap();
    test.store.remove(&again.layer).unwrap();
    assert_eq!(test.store.layers().unwrap(), []);
    test.assert_clean();
}
