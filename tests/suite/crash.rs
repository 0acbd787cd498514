//! `kill -9` at any moment, damage on the disk, and two processes at once: the next build is right and nothing is left.

use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rbuild::BuildRequest;
use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::images::{Image, read};
use rbuild_testkit::leaks;
use rbuild_testkit::normalize::Times;
use rbuild_testkit::space::Space;

use crate::common::{
    Built, assert_same_lines, build, build_with, builder, busybox, image_of, open_builder, output, request,
    require_root, require_sandbox,
};

const TREE: &str = "f a 644 one\nf d/b 755 two\nl d/link b\nf round 644 0";
const ROUNDS: usize = 30;

/// Steps of every kind: some depend on the round, some are cached.
fn dockerfile() -> &'static str {
    if require_sandbox() {
        "FROM BASE AS one\nRUN mkdir /o && echo kept > /o/kept\nCOPY round /o/round\nRUN cat /o/round > /o/copy && rm -f /bin/nc\nFROM BASE\nRUN --mount=type=cache,target=/c --mount=type=tmpfs,target=/t touch /c/x /t/x && echo y > /y\nCOPY --from=one /o /o\nCOPY . /all"
    } else {
        "FROM scratch AS one\nCOPY d /o\nCOPY round /o/round\nFROM scratch\nCOPY --from=one /o /o\nCOPY . /all"
    }
}

/// Not a test of its own: what the killed processes run.
#[test]
fn child() {
    let Some(root) = std::env::var_os("RBUILD_CRASH_CHILD").map(PathBuf::from) else { return };
    let text = std::env::var("RBUILD_CRASH_DOCKERFILE").expect("it comes with the other");
    let out = std::env::var("RBUILD_CRASH_OUTPUT").expect("it comes with the other");
    let mut request = BuildRequest::new(root.join("context"));
    request.dockerfile =
        rbuild::DockerfileSource::Text { name: "Dockerfile".to_owned(), text: text.into_bytes() };
    request.outputs = vec![output(&format!("type=oci,dest={out}"))];
    let built = build_with(&open_builder(&root.join("store")), &request);
    built.ok();
}

fn spawn(space: &Space, out: &Path) -> Child {
    Command::new(std::env::current_exe().expect("a process knows its executable"))
        .args(["--exact", "crash::child", "--nocapture"])
        .env("RBUILD_CRASH_CHILD", space.root())
        .env("RBUILD_CRASH_DOCKERFILE", dockerfile().replace("BASE", &busybox()))
        .env("RBUILD_CRASH_OUTPUT", out)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the test can run itself")
}

/// What the build must give, from an empty store.
fn reference(context: &Path) -> String {
    let space = Space::new();
    let mut request = request(&space, dockerfile());
    request.context = rbuild::Context::Dir(context.to_owned());
    listing(image_of(&space, request))
}

fn listing((built, image): (Built, Option<Image>)) -> String {
    built.ok();
    image.expect("it was built").rootfs().listing(Times::Hidden)
}

#[test]
fn killed_at_any_moment() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    // How long a build takes here decides when it is killed.
    let started = Instant::now();
    let expected = reference(&space.context());
    let whole = started.elapsed().min(Duration::from_millis(700));
    let mut random: u64 = 0x2545_f491_4f6c_dd1d;
    let limit = Instant::now() + Duration::from_secs(35);
    let out = space.path("out.tar");
    for round in 0..ROUNDS {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let part = u32::try_from(random >> 56).expect("eight bits");
        space.write("round", &round.to_string());
        let mut child = spawn(&space, &out);
        // A moment of the build, not a pause for something to happen.
        std::thread::sleep(whole * part / 256);
        child.kill().expect("it is ours");
        child.wait().expect("it is ours");
        if out.exists() {
            drop(read(&out));
            fs::remove_file(&out).expect("ours");
        }
        let mut request = request(&space, dockerfile());
        request.outputs = vec![output(&format!("type=oci,dest={}", out.display()))];
        build_with(&builder(&space), &request).ok();
        let found = read(&out).rootfs().listing(Times::Hidden);
        fs::remove_file(&out).expect("ours");
        let expected = expected.replace("\"0\"", &format!("\"{round}\""));
        assert_same_lines(&expected, &found, &format!("round {round}, killed after {part}/256"));
        // Files are looked at in the end: while the killed step dies, its lease still looks alive.
        leaks::assert_none(space.root(), Path::new("/nonexistent"));
        assert!(Instant::now() < limit || round > ROUNDS / 2, "rounds take too long: {round} in 35 s");
        if Instant::now() > limit {
            break;
        }
    }
    drop(builder(&space));
    let left: Vec<_> = fs::read_dir(space.root()).expect("ours").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("tmp")), "beside the output: {left:?}");
    space.assert_no_leaks();
}

#[test]
fn two_processes_at_once() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let expected = reference(&space.context());
    for round in 0..3 {
        space.write("round", &round.to_string());
        let outs = [space.path("1.tar"), space.path("2.tar")];
        let mut children = outs.each_ref().map(|out| spawn(&space, out));
        for child in &mut children {
            assert!(child.wait().expect("it is ours").success(), "a build beside another failed");
        }
        let expected = expected.replace("\"0\"", &format!("\"{round}\""));
        for out in &outs {
            assert_same_lines(&expected, &read(out).rootfs().listing(Times::Hidden), "two at once");
        }
    }
    space.assert_no_leaks();
}

#[test]
fn two_threads_at_once() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let expected = reference(&space.context());
    let builder = builder(&space);
    std::thread::scope(|scope| {
        for name in ["1.tar", "2.tar", "3.tar"] {
            let (space, builder, expected) = (&space, &builder, &expected);
            scope.spawn(move || {
                let mut request = request(space, dockerfile());
                request.outputs = vec![output(&format!("type=oci,dest={}", space.path(name).display()))];
                build_with(builder, &request).ok();
                let found = read(&space.path(name)).rootfs().listing(Times::Hidden);
                assert_same_lines(expected, &found, name);
            });
        }
    });
    drop(builder);
    space.assert_no_leaks();
}

/// Files of the store below `dir`, sorted.
fn store_files(space: &Space, dir: &str) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut stack = vec![space.store().join(dir)];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let kind = entry.file_type().expect("a type");
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                out.push(entry.path());
            }
        }
    }
    out.sort();
    out
}

fn truncate(path: &Path) {
    let file = fs::OpenOptions::new().write(true).open(path).expect("ours");
    file.set_len(file.metadata().expect("ours").len() / 2).expect("ours");
}

fn flip(path: &Path) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).expect("ours");
    let mut byte = [0];
    file.read_exact(&mut byte).expect("it is not empty");
    file.seek(SeekFrom::Start(0)).expect("ours");
    file.write_all(&[byte[0] ^ 0x40]).expect("ours");
}

/// Damages every blob in turn; the build heals it in the same command.
#[test]
fn damaged_blobs() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let expected = reference(&space.context());
    let path = space.path("o.tar");
    let export = |space: &Space| {
        let mut request = request(space, dockerfile());
        request.outputs = vec![output(&format!("type=oci,dest={}", path.display()))];
        let built = build(space, &request);
        built.ok();
        assert_same_lines(&expected, &read(&path).rootfs().listing(Times::Hidden), "after damage");
        built.warnings
    };
    assert!(export(&space).is_empty());
    let gone = |path: &Path| fs::remove_file(path).expect("ours");
    let mut warnings = Vec::new();
    for damage in [truncate as fn(&Path), flip, gone] {
        for file in store_files(&space, "blobs") {
            if fs::metadata(&file).is_ok_and(|meta| meta.len() > 1) {
                damage(&file);
            }
        }
        warnings.extend(export(&space));
    }
    // Of a length that is wrong or a file that is gone nobody is told: it is as if it had never been there.
    assert!(warnings.iter().any(|warning| warning.contains("was damaged")), "{warnings:?}");
}

/// Removes layers from under the index: what is lost is made again.
#[test]
fn lost_layers() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let expected = reference(&space.context());
    let first = listing(image_of(&space, request(&space, dockerfile())));
    assert_same_lines(&expected, &first, "before");
    let layers: Vec<PathBuf> =
        fs::read_dir(space.store().join("layers")).expect("layers").flatten().map(|e| e.path()).collect();
    assert!(!layers.is_empty());
    for layer in layers {
        fs::remove_dir_all(&layer).expect("ours");
        let found = listing(image_of(&space, request(&space, dockerfile())));
        assert_same_lines(&expected, &found, &format!("without {}", layer.display()));
    }
}

/// An index that is no database begins anew.
#[test]
fn a_damaged_index() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let expected = reference(&space.context());
    let first = listing(image_of(&space, request(&space, dockerfile())));
    assert_same_lines(&expected, &first, "before");
    let index = space.store().join("index.db");
    fs::write(&index, "this is no database, and it is long enough to be taken for one ".repeat(64))
        .expect("ours");
    for journal in ["index.db-wal", "index.db-shm"] {
        drop(fs::remove_file(space.store().join(journal)));
    }
    let found = listing(image_of(&space, request(&space, dockerfile())));
    assert_same_lines(&expected, &found, "after damage");
}
