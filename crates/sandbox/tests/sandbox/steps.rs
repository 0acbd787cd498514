//! What a command sees.

use std::fs;

use rbuild_graph::{HostIp, SecurityMode, Ulimit};
use rbuild_ports::{ErrorKind, ExecOutcome, SecretBytes};

use crate::space::Space;

#[test]
fn only_documented_variables_and_nodes() {
    let Some(space) = Space::new() else { return };
    let ran = space.run(&space.command(&["/bin/env"]));
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nHOME=/root\n";
    assert_eq!(ran.success(), path);
    let listed = space.output("ls /dev /dev/pts /dev/shm /run /var/run 2>&1; true");
    assert_eq!(
        listed,
        "ls: /run: No such file or directory\nls: /var/run: No such file or directory\n/dev:\nfd\nfull\nmqueue\nnull\nptmx\n\
         pts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\n\n/dev/pts:\nptmx\n\n/dev/shm:\n"
    );
    let mut request = space.sh("echo $A $B $TOKEN $HOME; env | wc -l");
    request.env = ["A=1", "B=2", "A=3", "HOME=/x"].map(str::to_owned).to_vec();
    request.secret_env = vec![("TOKEN".to_owned(), SecretBytes(b"s".to_vec()))];
    // With PATH, and SHLVL and PWD of the shell.
    assert_eq!(space.run(&request).success(), "3 2 s /x\n7\n");
}

#[test]
fn a_process_has_what_it_should_and_no_more() {
    let Some(space) = Space::new() else { return };
    let status = space.output("cat /proc/self/status; umask; hostname; readlink /proc/1/exe; echo $$");
    for line in [
        "CapInh:\t0000000000000000",
        "CapPrm:\t00000000800405fb",
        "CapEff:\t00000000800405fb",
        "CapBnd:\t00000000800405fb",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "SigBlk:\t0000000000000000",
        "SigIgn:\t0000000000000000",
        "0022",
        "buildkitsandbox",
        "/bin/busybox",
    ] {
        assert!(status.lines().any(|it| it == line), "{line}\n{status}");
    }
    assert!(status.ends_with("\n1\n"), "the command is the first process\n{status}");
    assert_eq!(space.output("cat /proc/self/oom_score_adj"), "500\n");
    // A user that is not root has no capabilities at all.
    let mut request = space.sh("grep -c '0000000000000000$' /proc/self/status || cat /proc/self/status");
    request.args =
        ["/bin/sh", "-c", "sed -n 's/^Cap[PEA][a-z]*:.//p' /proc/self/status"].map(str::to_owned).to_vec();
    request.user = "app".to_owned();
    assert_eq!(space.run(&request).success(), "0000000000000000\n".repeat(3));
}

#[test]
fn users_and_groups_are_those_of_the_image() {
    let Some(space) = Space::new() else { return };
    let check = |user: &str, expected: &str| {
        let mut request = space.sh("echo $(id -u) $(id -g) $(id -G) $HOME");
        request.user = user.to_owned();
        let got = match space.try_run(&request) {
            Ok(ran) => ran.success(),
            Err(error) => format!("{error}\n"),
        };
        assert_eq!(got, format!("{expected}\n"), "{user:?}");
    };
    check("", "0 0 0 10 /root");
    check("root", "0 0 0 10 /root");
    check("app", "1000 1000 1000 10 50 /home/app");
    check("app:staff", "1000 50 50 /home/app");
    check("1000", "1000 1000 1000 10 50 /home/app");
    check("1000:1000", "1000 1000 1000 /home/app");
    check("2000", "2000 0 0 /");
    check("2000:3000", "2000 3000 3000 /");
    check("bob", "unable to find user bob: no matching entries in passwd file");
    check("app:bob", "unable to find group bob: no matching entries in group file");
    let range = "uids and gids must be in range 0-2147483647";
    for bad in ["4294967296", "2147483648", "18446744073709551616"] {
        check(bad, &format!("unable to use {bad:?} as user: {range}"));
    }
    for bad in ["-1", "0x0", " 0", "+5"] {
        check(bad, &format!("unable to find user {bad}: no matching entries in passwd file"));
    }
    check("1000:4294967295", &format!("unable to use \"4294967295\" as user: {range}"));
    fs::remove_file(space.root().join("etc/group")).unwrap();
    check("app", "1000 1000 1000 /home/app");
    fs::remove_file(space.root().join("etc/passwd")).unwrap();
    check("", "0 0 0 /");
    check("7", "7 0 0 /");
    check("root", "unable to find user root: no matching entries in passwd file");
}

#[test]
fn endings() {
    let Some(space) = Space::new() else { return };
    for code in [0, 1, 42, 255] {
        assert_eq!(space.run(&space.sh(&format!("exit {code}"))).outcome, ExecOutcome::Exited(code));
    }
    // The first process of a namespace gets no signals that it does not handle; its children do.
    assert_eq!(space.run(&space.sh("sh -c 'kill -9 $$'; exit $?")).outcome, ExecOutcome::Exited(137));
}

#[test]
fn commands_that_cannot_be_executed() {
    let Some(space) = Space::new() else { return };
    let root = space.root();
    fs::write(root.join("bin/plain"), "#!/bin/sh\n").unwrap();
    fs::write(root.join("bin/lost"), "#!/no/such/shell\n").unwrap();
    fs::write(root.join("bin/garbage"), "\x01\x02\x03").unwrap();
    for name in ["lost", "garbage"] {
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(root.join("bin").join(name), fs::Permissions::from_mode(0o755)).unwrap();
    }
    let check = |args: &[&str], code: i32, expected: &str| {
        let ran = space.run(&space.command(args));
        assert_eq!(ran.outcome, ExecOutcome::Exited(code), "{args:?}");
        assert!(ran.stderr.starts_with(expected), "{args:?}: {}", ran.stderr);
    };
    check(&["nope"], 127, "exec: \"nope\": executable file not found in $PATH\n");
    check(&["/nope"], 127, "exec: \"/nope\": no such file or directory\n");
    check(&["/bin/sh/nope"], 127, "exec: \"/bin/sh/nope\": not a directory\n");
    check(&["plain"], 126, "exec: \"plain\": permission denied\n");
    check(&["/tmp"], 126, "exec: \"/tmp\": permission denied\n");
    check(&["lost"], 127, "exec: \"lost\": no such file or directory: the file is there");
    check(&["garbage"], 126, "exec: \"garbage\": exec format error");
    let long = "x".repeat(200_000);
    check(
        &["/bin/true", &long],
        126,
        "exec: \"/bin/true\": argument list too long: arguments and environment have 2000",
    );
    let many: Vec<String> = (0..10_000).map(|n| format!("V{n}=value")).collect();
    let mut request = space.sh("env | wc -l");
    request.env = many;
    assert_eq!(space.run(&request).success().trim(), "10004");
}

#[test]
fn output_of_any_size_comes_through_both_streams() {
    let Some(space) = Space::new() else { return };
    let ran = space
        .run(&space.sh("echo out; echo err >&2; head -c 20000000 /dev/zero; head -c 3000000 /dev/zero >&2"));
    assert_eq!((ran.stdout.len(), ran.stderr.len()), (20_000_004, 3_000_004));
    assert!(ran.stdout.starts_with("out\n") && ran.stderr.starts_with("err\n"));
    assert_eq!(space.output("cat; readlink /proc/self/fd/0"), "/dev/null\n");
}

#[test]
fn working_directories() {
    let Some(space) = Space::new() else { return };
    let pwd = |cwd: &str| {
        let mut request = space.sh("pwd; touch here 2>/dev/null; true");
        request.cwd = cwd.to_owned();
        space.run(&request).success()
    };
    assert_eq!(pwd("/tmp"), "/tmp\n");
    assert_eq!(pwd("/new/dir"), "/new/dir\n");
    assert_eq!(space.changed(), ["new", "new/dir", "new/dir/here"]);
    std::os::unix::fs::symlink("../../../tmp", space.root().join("link")).unwrap();
    assert_eq!(pwd("/link/x"), "/tmp/x\n");
    assert_eq!(pwd("/proc/self"), "/proc/1\n");
    let mut request = space.sh("true");
    request.cwd = "/bin/sh".to_owned();
    let error = space.refused(&request);
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert_eq!(
        error.message,
        "cannot use the working directory /bin/sh: /bin/busybox is a file in the image, not a directory"
    );
}

#[test]
fn names_hosts_and_limits() {
    let Some(space) = Space::new() else { return };
    let mut request =
        space.sh("hostname; cat /etc/hosts; ulimit -n; ulimit -Hn; echo x > /etc/hosts || echo locked");
    request.hostname = "other".to_owned();
    request.extra_hosts = vec![HostIp { host: "db".to_owned(), ip: "10.1.2.3".to_owned() }];
    request.ulimits = vec![Ulimit { name: "nofile".to_owned(), soft: 77, hard: 88 }];
    assert_eq!(
        space.run(&request).success(),
        "other\n127.0.0.1\tlocalhost other\n::1\tlocalhost ip6-localhost ip6-loopback\n10.1.2.3\tdb\n77\n88\nlocked\n"
    );
}

#[test]
fn insecure_steps_have_everything() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh(
        "mount -t tmpfs none /tmp && echo mounted; sed -n 's/^Seccomp:.//p' /proc/self/status; \
         ls /proc/acpi /sys/firmware >/dev/null; touch /proc/sys/kernel/ostype 2>/dev/null; mount | grep -c masked; true",
    );
    request.security = SecurityMode::Insecure;
    let ran = space.run(&request);
    assert_eq!(ran.stdout, "mounted\n0\n0\n", "{}", ran.stderr);
}
