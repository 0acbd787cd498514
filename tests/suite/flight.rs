//! Several processes on one store: a step that one runs is waited for by the others, and taken over when it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use rbuild_testkit::space::Space;

use crate::command::rbuild;
use crate::common::require_sandbox;

/// A context whose Dockerfile has a busybox and these lines.
fn context(space: &Space, lines: &str) {
    space.write("Dockerfile", &format!("FROM scratch\nCOPY busybox /bin/sh\n{lines}"));
    fs::copy("/bin/busybox", space.context().join("busybox")).expect("busybox is installed");
}

fn start(space: &Space) -> Child {
    rbuild(&space.context(), &space.store())
        .args(["build", "--progress", "plain", "."])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command starts")
}

/// The file `name` of the only cache mount.
fn mounted(space: &Space, name: &str) -> Option<PathBuf> {
    let homes = fs::read_dir(space.store().join("cachemounts")).ok()?;
    homes.flatten().map(|home| home.path().join("0").join(name)).find(|path| path.exists())
}

fn leftovers(store: &Path) -> usize {
    fs::read_dir(store.join("flights")).map_or(0, Iterator::count)
}

#[test]
fn each_step_runs_once() {
    if !require_sandbox() {
        return;
    }
    let space = Space::new();
    let step = |n: u32| {
        format!(
            "RUN --mount=type=cache,target=/c echo {n} >> /c/ran; head -c 30000000 /dev/zero | sha256sum > /{n}\n"
        )
    };
    context(&space, &(1..=3).map(step).collect::<String>());
    let children: Vec<Child> = (0..4).map(|_| start(&space)).collect();
    for child in children {
        let output = child.wait_with_output().expect("it can be waited for");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let ran = fs::read_to_string(mounted(&space, "ran").expect("the steps ran")).expect("it can be read");
    assert_eq!(ran, "1\n2\n3\n");
    assert_eq!(leftovers(&space.store()), 0);
}

#[test]
fn another_takes_over_from_a_killed_one() {
    if !require_sandbox() {
        return;
    }
    let space = Space::new();
    let step =
        "RUN --mount=type=cache,target=/c echo x >> /c/ran; until [ -e /c/go ]; do usleep 20000; done\n";
    context(&space, step);
    let mut first = start(&space);
    while mounted(&space, "ran").is_none() {
        std::thread::yield_now();
    }
    let mut second = start(&space);
    let mut lines = BufReader::new(second.stderr.take().expect("it is a pipe")).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("waiting for another build")), "the second waits");
    first.kill().expect("it is there");
    first.wait().expect("it ended");
    let ran = mounted(&space, "ran").expect("it ran");
    while fs::read_to_string(&ran).is_ok_and(|text| text.lines().count() < 2) {
        std::thread::yield_now();
    }
    fs::write(ran.with_file_name("go"), "").expect("it can be written");
    assert!(second.wait().expect("it ends").success(), "{:?}", lines.collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(&ran).expect("it can be read"), "x\nx\n");
    assert_eq!(leftovers(&space.store()), 0);
}

/// Builds, prunes and checks at the same time: all results are right, and nothing is damaged or left behind.
#[test]
fn prune_and_check_beside_builds() {
    if !require_sandbox() {
        return;
    }
    let space = Space::new();
    let succeed = |args: &[&str], dir: &Path| {
        let output = rbuild(dir, &space.store()).args(args).output().expect("the command runs");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
        text
    };
    let builder = |name: usize| {
        let dir = space.path(&format!("c{name}"));
        fs::create_dir(&dir).expect("a directory can be made");
        fs::copy("/bin/busybox", dir.join("busybox")).expect("busybox is installed");
        for round in 0..3 {
            let text = format!(
                "FROM scratch AS a\nCOPY busybox /bin/sh\nRUN echo {round} > /a\nFROM a\nCOPY f /f\nRUN cat /a /f > /all\n"
            );
            fs::write(dir.join("Dockerfile"), text).expect("it can be written");
            fs::write(dir.join("f"), format!("{round}\n")).expect("it can be written");
            succeed(&["build", "--progress", "quiet", "-o", "out", "."], &dir);
            let all = fs::read_to_string(dir.join("out/all")).expect("it was made");
            assert_eq!(all, format!("{round}\n{round}\n"));
        }
    };
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4)
            .map(|name| {
                let builder = &builder;
                scope.spawn(move || builder(name))
            })
            .collect();
        while builders.iter().any(|builder| !builder.is_finished()) {
            succeed(&["prune", "--all", "--force"], space.root());
            succeed(&["check"], space.root());
        }
    });
    let last = succeed(&["check", "--read-data"], space.root());
    assert!(last.contains("nothing is"), "{last}");
    assert_eq!(leftovers(&space.store()), 0);
}
