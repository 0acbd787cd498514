//! Beginnings and ends: cancelling, background processes, many at once, and a builder that is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rbuild_graph::NetMode;
use rbuild_ports::{CancelToken, ErrorKind, ExecOutcome, Executor};

use crate::space::{Log, Space, devices, example};

/// RUN-11: a step that ignores signals.
#[test]
fn cancelling_ends_everything_at_once() {
    let Some(space) = Space::new() else { return };
    let request = space.sh("trap '' TERM INT HUP; (trap '' TERM; sleep 1000) & touch /made; echo ready; while true; do sleep 1; done");
    let (log, cancel) = (Log::default(), CancelToken::new());
    let begun = thread::scope(|scope| {
        let step = scope.spawn(|| space.sandbox.run(&request, &log, &cancel));
        while !log.has("ready") {
            thread::sleep(Duration::from_millis(5));
        }
        let begun = Instant::now();
        cancel.cancel();
        assert_eq!(step.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
        begun
    });
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(space.changed(), ["made"]);
    // Cancelled before it began.
    let error = space.sandbox.run(&space.sh("true"), &log, &cancel).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
}

#[test]
fn cancelling_at_any_moment_leaves_nothing() {
    let Some(space) = Space::new() else { return };
    for n in 0..40u64 {
        let request = space.sh("sleep 1000");
        let cancel = CancelToken::new();
        thread::scope(|scope| {
            let step = scope.spawn(|| space.sandbox.run(&request, &Log::default(), &cancel));
            thread::sleep(Duration::from_micros(n * 200));
            cancel.cancel();
            assert_eq!(step.join().unwrap().unwrap_err().kind, ErrorKind::Cancelled);
        });
        assert_eq!(space.changed(), Vec::<String>::new());
    }
}

#[test]
fn processes_in_the_background_end_with_the_step() {
    let Some(space) = Space::new() else { return };
    let begun = Instant::now();
    assert_eq!(space.output("sleep 1000 & (sleep 1000 &) ; echo done"), "done\n");
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn many_at_once() {
    let Some(space) = Space::new() else { return };
    let requests: Vec<_> = (0..32)
        .map(|n| {
            let mut request = space
                .sh(&format!("echo {n} > /x; ls /proc/self/fd | wc -l; cat /x; readlink /proc/self/ns/net"));
            request.root = space.changes(&n.to_string());
            request.network = if n % 2 == 0 { NetMode::None } else { NetMode::Sandbox };
            request
        })
        .collect();
    let mut namespaces = Vec::new();
    thread::scope(|scope| {
        let steps: Vec<_> =
            requests.iter().map(|request| scope.spawn(|| space.run(request).success())).collect();
        for (n, step) in steps.into_iter().enumerate() {
            let text = step.join().unwrap();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines[..2], ["4", n.to_string().as_str()]);
            namespaces.push(lines[2].to_owned());
        }
    });
    assert!(!namespaces.contains(&fs::read_link("/proc/self/ns/net").unwrap().display().to_string()));
}

#[test]
fn secrets_are_in_no_environment_of_the_host() {
    let Some(space) = Space::new() else { return };
    let own = fs::read("/proc/self/environ").unwrap();
    let mut request = space.sh("test ${#TOKEN} = 12");
    request.secret_env = vec![("TOKEN".to_owned(), rbuild_ports::SecretBytes(b"s3cret-value".to_vec()))];
    assert!(!format!("{request:?}").contains("s3cret-value"));
    assert_eq!(space.run(&request).outcome, ExecOutcome::Exited(0));
    assert_eq!(fs::read("/proc/self/environ").unwrap(), own);
}

#[test]
fn parent_control_groups() {
    let Some(space) = Space::new() else { return };
    let unified = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(Path::new);
    let Some(root) = unified.into_iter().find(|path| path.join("cgroup.procs").exists()) else {
        eprintln!("skipped: no version 2 of control groups");
        return;
    };
    let parent = format!("rbuild-test-{}", std::process::id());
    let mut request = space.sh("cat /proc/self/cgroup");
    request.cgroup_parent = format!("/{parent}");
    let text = space.run(&request).success();
    assert!(text.lines().any(|line| line == "0::/"), "the step sees its group as the root:\n{text}");
    assert!(!root.join(&parent).exists(), "the group is left");
    request.cgroup_parent = "../x".to_owned();
    assert_eq!(space.refused(&request).kind, ErrorKind::Invalid);
}

/// Kills the builder in the middle of a step that did its best to survive.
fn kill_builder(network: &str, user: &str, command: &[&str]) {
    let Some(space) = Space::new() else { return };
    let root = space.root();
    // Executing a set-user-ID program clears the parent-death signal.
    fs::copy("/bin/busybox", root.join("bin/elevated")).unwrap();
    fs::set_permissions(root.join("bin/elevated"), fs::Permissions::from_mode(0o4755)).unwrap();
    let mut args = vec!["--network", network, "--user", user, root.to_str().unwrap()];
    args.extend_from_slice(command);
    let mut builder =
        Command::new(example()).args(args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(builder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let mark = format!("{}", root.display());
    builder.kill().unwrap();
    builder.wait().unwrap();
    let begun = Instant::now();
    loop {
        let left = survivors(&mark);
        if left.is_empty() && devices(builder.id()).is_empty() {
            break;
        }
        assert!(
            begun.elapsed() < Duration::from_secs(10),
            "left: {left:?} {:?} {mark}",
            devices(builder.id())
        );
        thread::sleep(Duration::from_millis(10));
    }
    for entry in fs::read_dir(space.dir.path()).unwrap().flatten() {
        if entry.file_name().to_string_lossy().starts_with("step-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

/// Processes of the step, and helpers of its builder. Guards have their builder's command line, with the root's path in it.
fn survivors(root: &str) -> Vec<String> {
    let mut out = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let (line, name) = (read("cmdline").replace('\0', " "), read("comm"));
        let stack = ["pasta", "slirp4netns"].iter().any(|it| name.starts_with(it));
        let guard = name.starts_with("rbuild-guard") && line.contains(root);
        if stack || guard || line.contains("sleep 98765") {
            out.push(format!("{} {name} {line}", entry.file_name().to_string_lossy()));
        }
    }
    out
}

#[test]
fn nothing_survives_its_builder() {
    kill_builder("none", "", &["/bin/sh", "-c", "sleep 98765 & echo ready; sleep 98765"]);
}

#[test]
fn nothing_survives_its_builder_with_a_network() {
    kill_builder("sandbox", "", &["/bin/sh", "-c", "(setsid sleep 98765 &) ; echo ready; sleep 98765"]);
}

#[test]
fn set_user_id_programs_do_not_survive_either() {
    kill_builder("none", "app", &["/bin/sh", "-c", "echo ready; exec /bin/elevated sleep 98765"]);
}
