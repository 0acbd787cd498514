//! Steps of an ordinary user. As root a user is made for it and removed again.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::space::{Space, example};

/// An ordinary user with subordinate ids or without.
struct User {
    name: String,
    id: u32,
}

impl User {
    fn new(ids: bool) -> Option<Self> {
        let name = format!("rbt{}{}", std::process::id() % 1_000_000, if ids { "a" } else { "b" });
        let added = Command::new("useradd").args(["--no-create-home", "--shell", "/bin/sh", &name]).output();
        if !added.is_ok_and(|output| output.status.success()) {
            assert!(
                std::env::var_os("RBUILD_REQUIRE_SANDBOX").is_none(),
                "cannot add a user (package passwd)"
            );
            eprintln!("skipped: cannot add a user");
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap();
        let line = passwd.lines().find(|line| line.starts_with(&format!("{name}:"))).unwrap();
        let user = Self { id: line.split(':').nth(2).unwrap().parse().unwrap(), name };
        let range = format!("{}-{}", 4_000_000, 4_065_535);
        // Some systems give every new user ids of its own.
        let has = |file: &str| fs::read_to_string(file).is_ok_and(|text| text.contains(&user.name));
        match (ids, has("/etc/subuid")) {
            (true, false) => user.modify(&["--add-subuids", &range, "--add-subgids", &range]),
            (false, true) => {
                for file in ["/etc/subuid", "/etc/subgid"] {
                    let text = fs::read_to_string(file).unwrap();
                    let rest: Vec<&str> = text.lines().filter(|line| !line.starts_with(&user.name)).collect();
                    fs::write(file, rest.join("\n") + "\n").unwrap();
                }
            }
            _ => {}
        }
        Some(user)
    }

    fn modify(&self, args: &[&str]) {
        assert!(Command::new("usermod").args(args).arg(&self.name).status().unwrap().success());
    }

    /// Runs the example as this user.
    fn step(&self, program: &Path, args: &[&str]) -> Output {
        let id = self.id.to_string();
        let set = ["--reuid", &id, "--regid", &id, "--init-groups", "--inh-caps=-all"];
        Command::new("setpriv").args(set).arg(program).args(args).env_clear().output().unwrap()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let _removed = Command::new("userdel").arg(&self.name).output();
    }
}

/// A root that the user owns, and a copy of the example where the user can read it.
fn give(space: &Space, user: &User) -> (PathBuf, String) {
    let dir = space.dir.path();
    let program = dir.join("step");
    fs::copy(example(), &program).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    for path in crate::space::paths(dir).iter().chain([&dir.to_owned()]) {
        std::os::unix::fs::lchown(path, Some(user.id), Some(user.id)).unwrap();
    }
    chown(dir, Some(user.id), Some(user.id)).unwrap();
    (program, space.root().to_str().unwrap().to_owned())
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn an_ordinary_user_runs_steps_as_any_user_of_the_image() {
    let Some(space) = Space::new() else { return };
    let Some(user) = User::new(true) else { return };
    let (program, root) = give(&space, &user);
    let script = "id -u; chown app:app /tmp; stat -c %u /tmp; head -c1 /dev/zero | wc -c; sed -n 's/^CapBnd:.//p;s/^Seccomp:.//p' \
        /proc/self/status; rm /etc/group; test -e /etc/group || echo gone; ls /dev/pts; (echo x > /proc/sys/kernel/hostname) 2>&1; \
        touch /sys/x 2>&1; readlink /proc/self/fd/3; ls /proc | grep -c '^[0-9]'";
    let output = user.step(&program, &[&root, "/bin/sh", "-c", script]);
    let said = text(&output);
    assert!(said.starts_with("0\n1000\n1\n00000000880405fb\n2\ngone\nptmx\n"), "{said}");
    assert!(said.contains("Mapped") && said.contains("Read-only file system"), "{said}");
    let output = user.step(
        &program,
        &["--user", "app", &root, "/bin/sh", "-c", "id -u; id -G; cat /dev/null && echo fine"],
    );
    assert!(text(&output).starts_with("1000\n1000 10 50\nfine\n"), "{}", text(&output));
    // The host's network is the host's; its `/sys` is lent.
    let output = user.step(
        &program,
        &["--network", "host", &root, "/bin/sh", "-c", "ls /sys/class/net; touch /sys/x || echo locked"],
    );
    assert!(text(&output).contains("lo\n") && text(&output).contains("locked\n"), "{}", text(&output));
    let output =
        user.step(&program, &["--network", "sandbox", &root, "/bin/sh", "-c", "grep -c : /proc/net/dev"]);
    let said = text(&output);
    assert!(said.starts_with("2\n") || said.contains("warning: steps have no network"), "{said}");
}

#[test]
fn without_subordinate_ids_there_is_one_user_and_that_is_said() {
    let Some(space) = Space::new() else { return };
    let Some(user) = User::new(false) else { return };
    let (program, root) = give(&space, &user);
    let output = user.step(&program, &[&root, "/bin/sh", "-c", "id -u; touch /x && echo made"]);
    let said = text(&output);
    assert!(
        said.starts_with("0\nmade\n") && said.contains("SingleUser") && said.contains("usermod"),
        "{said}"
    );
    let said = text(&user.step(&program, &["--user", "app", &root, "/bin/true"]));
    assert!(said.contains("error: user 1000:1000 does not exist in this user namespace"), "{said}");
    assert!(said.contains("help: give yourself more ids"), "{said}");
}

#[test]
fn nothing_survives_a_killed_builder() {
    let Some(space) = Space::new() else { return };
    let Some(user) = User::new(true) else { return };
    let (program, root) = give(&space, &user);
    // Numbers of users are used again, and others may have left something under this one.
    let before = processes(&user);
    let left = || processes(&user).into_iter().filter(|it| !before.contains(it)).collect::<Vec<_>>();
    let id = user.id.to_string();
    let script = "sleep 98765 & echo ready; sleep 98765";
    let mut builder = Command::new("setpriv")
        .args(["--reuid", &id, "--regid", &id, "--init-groups"])
        .arg(&program)
        .args(["--network", "sandbox", &root, "/bin/sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(builder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert!(left().len() >= 3, "the builder, its guard and the step");
    builder.kill().unwrap();
    builder.wait().unwrap();
    let begun = Instant::now();
    while !left().is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "left: {:?}", left());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Numbers and command lines of the processes of a user.
fn processes(user: &User) -> Vec<String> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let own = all.filter(|entry| fs::metadata(entry.path()).is_ok_and(|meta| meta.uid() == user.id));
    own.filter_map(|entry| {
        let line = fs::read_to_string(entry.path().join("cmdline")).ok()?;
        Some(format!("{} {line}", entry.file_name().to_string_lossy()))
    })
    .collect()
}
