//! Layers, mounts on them, and what stays of mount points: nothing.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use rbuild_ports::{ErrorKind, MountSource, OverlayDirs, SecretBytes};

use crate::space::{Space, lend_programs, listing, mount};

#[test]
fn a_step_that_changes_nothing_leaves_nothing() {
    let Some(space) = Space::new() else { return };
    // Mount points are missing in the image: `/etc/hosts`, `/etc/resolv.conf`, and these.
    let mut request = space.sh("cat /run/secrets/a");
    let secret = MountSource::Secret { data: SecretBytes(b"s3cret".to_vec()), uid: 0, gid: 0, mode: 0o400 };
    request.mounts =
        vec![mount("/run/secrets/a", true, secret), mount("/a/b/c", false, MountSource::Tmpfs { size: 0 })];
    let before = listing(&space.upper());
    assert_eq!(space.run(&request).success(), "s3cret");
    assert_eq!(listing(&space.upper()), before);
    // Also when the command fails, and when it does not start.
    request.root = space.changes("");
    request.args = vec!["nope".to_owned()];
    let before = listing(&space.upper());
    space.run(&request);
    assert_eq!(listing(&space.upper()), before);
}

#[test]
fn only_changes_of_the_step_are_in_the_layer() {
    let Some(space) = Space::new() else { return };
    fs::create_dir(space.root().join("data")).unwrap();
    space.output("echo x > /etc/new; rm /etc/group; mkdir /data/sub; chmod 700 /tmp");
    assert_eq!(space.changed(), ["data", "data/sub", "etc", "etc/group", "etc/new", "tmp"]);
    let whiteout = fs::symlink_metadata(space.upper().join("etc/group")).unwrap();
    assert_eq!((whiteout.mode() & 0o170_000, whiteout.rdev()), (0o020_000, 0));
    // Directories where mount points were made and removed again keep the times they had.
    let etc = |root: &std::path::Path| fs::metadata(root.join("etc")).unwrap().mtime_nsec();
    let old = etc(&space.root());
    space.output("touch -d '2001-02-03 04:05:06' /etc/passwd");
    assert_eq!(
        (space.changed(), etc(&space.upper())),
        (vec!["etc".to_owned(), "etc/passwd".to_owned()], old)
    );
}

#[test]
fn mount_points_that_a_step_uses_for_itself_stay() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh("echo mine > /opt/file; mkdir /opt/dir; rm -rf /opt/gone");
    request.mounts = vec![mount("/opt/gone", false, MountSource::Tmpfs { size: 0 })];
    let ran = space.run(&request);
    assert!(ran.stderr.contains("busy"), "{}", ran.stderr);
    assert_eq!(space.changed(), ["opt", "opt/dir", "opt/file"]);
}

#[test]
fn links_instead_of_files_are_followed_inside() {
    let Some(space) = Space::new() else { return };
    symlink("../run/systemd/resolve/stub-resolv.conf", space.root().join("etc/resolv.conf")).unwrap();
    symlink("/etc/nothosts", space.root().join("etc/hosts")).unwrap();
    let text = space.output("cat /etc/hosts; ls /run/systemd/resolve; ls /etc");
    assert!(
        text.contains("buildkitsandbox") && text.contains("stub-resolv.conf") && text.contains("nothosts"),
        "{text}"
    );
    assert_eq!(space.changed(), Vec::<String>::new());
}

#[test]
fn many_layers_and_the_same_one_twice() {
    let Some(mut space) = Space::new() else { return };
    for n in 0..300 {
        let layer = space.layer(&format!("layer{n}"));
        fs::write(layer.join(format!("f{n}")), n.to_string()).unwrap();
        fs::write(layer.join("top"), n.to_string()).unwrap();
    }
    let mut request = space.sh("cat /f0 /f150 /f299 /top; ls / | grep -c ^f");
    request.root.lower.insert(1, "layer299".to_owned());
    assert_eq!(space.run(&request).success(), "0150299299300\n");
    request.root = space.changes("");
    request.root.lower.extend((0..300).map(|n| format!("none{n}")));
    let error = space.refused(&request);
    assert_eq!(
        (error.kind, error.message.contains("601 layers are too many")),
        (ErrorKind::Unsupported, true),
        "{error}"
    );
}

#[test]
fn roots_of_all_shapes() {
    let Some(mut space) = Space::new() else { return };
    // Nothing below: what is written is the layer.
    let mut request = space.sh("echo hi > /made; ls /");
    request.root.lower.clear();
    let base = space.root();
    request.mounts.push(mount("/bin", true, MountSource::Dir(base.join("bin"))));
    assert_eq!(space.run(&request).success(), "bin\ndev\netc\nmade\nproc\nsys\n");
    // As runtimes do, it leaves the places of the kernel's file systems, and of no other mount.
    assert_eq!(space.changed(), ["dev", "made", "proc", "sys"]);
    // Read-only.
    let mut request = space.sh("touch /x || echo locked; touch /tmp/x || echo locked");
    request.root_readonly = true;
    request.mounts = vec![mount("/tmp", false, MountSource::Tmpfs { size: 0 })];
    assert_eq!(space.run(&request).success(), "locked\n");
    assert_eq!(space.changed(), Vec::<String>::new());
    // Without a place for changes, when all mount points are there.
    for file in ["hosts", "resolv.conf"] {
        fs::write(space.root().join("etc").join(file), "").unwrap();
    }
    space.layer("more");
    for single in [false, true] {
        let mut request = space.sh("touch /x || echo locked");
        request.root = OverlayDirs { upper: None, work: None, ..request.root };
        request.root.lower.truncate(if single { 1 } else { 2 });
        assert_eq!(space.run(&request).success(), "locked\n");
    }
}

#[test]
fn bind_mounts() {
    let Some(mut space) = Space::new() else { return };
    let src = space.layer("src");
    fs::create_dir_all(src.join("sub/deep")).unwrap();
    fs::write(src.join("sub/file"), "file").unwrap();
    symlink("/sub/file", src.join("link")).unwrap();
    let dirs = |upper: Option<OverlayDirs>| OverlayDirs {
        base: space.dir.path().to_owned(),
        lower: vec!["src".to_owned()],
        ..upper.unwrap_or_default()
    };
    let with = |dest: &str, readonly: bool, selector: &str, source: MountSource| {
        let mut out = mount(dest, readonly, source);
        out.selector = selector.to_owned();
        out
    };
    let mut request = space.sh(
        "cat /m/sub/file /one /two; touch /m/x || echo locked; touch /rw/sub/x /rw/x && ls /rw; touch /deep/y || echo locked; ls /m/sub/deep",
    );
    let own = || OverlayDirs {
        upper: space.changes("-rw").upper,
        work: space.changes("-rw").work,
        ..OverlayDirs::default()
    };
    request.mounts = vec![
        with("/m", true, "", MountSource::Layers(dirs(None))),
        with("/m/sub/deep", false, "", MountSource::Tmpfs { size: 0 }),
        with("/one", true, "sub/file", MountSource::Layers(dirs(None))),
        with("/two", true, "/link", MountSource::Layers(dirs(None))),
        with("/rw", false, "", MountSource::Layers(dirs(Some(own())))),
        with("/deep", true, "sub/deep", MountSource::Layers(dirs(None))),
    ];
    assert_eq!(space.run(&request).success(), "filefilefilelocked\nlink\nsub\nx\nlocked\n");
    assert_eq!(space.changed(), Vec::<String>::new());
    assert!(!src.join("x").exists(), "the source is untouched");
    request.root = space.changes("");
    request.mounts = vec![with("/m", true, "no/such", MountSource::Layers(dirs(None)))];
    let error = space.refused(&request);
    assert_eq!((error.kind, error.message.as_str()), (ErrorKind::NotFound, "\"no/such\": not found"));
    request.mounts = vec![
        with("/m", true, "", MountSource::Layers(dirs(None))),
        with("/m/missing", false, "", MountSource::Tmpfs { size: 0 }),
    ];
    let error = space.refused(&request);
    assert_eq!(error.message, "cannot mount on /m/missing: /m/missing: read-only file system");
    request.mounts = vec![with("/bin/sh", true, "", MountSource::Layers(dirs(None)))];
    assert!(space.refused(&request).message.contains("/bin/busybox is a file in the image, not a directory"));
    request.mounts = vec![with("/proc/x", true, "", MountSource::Tmpfs { size: 0 })];
    assert!(space.refused(&request).message.contains("is inside /proc"));
}

#[test]
fn cache_mounts_keep_what_is_written() {
    let Some(space) = Space::new() else { return };
    let cache = space.dir.path().join("cache");
    fs::create_dir_all(cache.join("part")).unwrap();
    let mut request = space.sh("echo kept > /root/.cache/x; cat /p/y 2>/dev/null; echo more > /p/y");
    let source = || MountSource::Dir(cache.clone());
    request.mounts = vec![mount("/root/.cache", false, source()), mount("/p", false, source())];
    request.mounts[1].selector = "part".to_owned();
    space.run(&request).success();
    request.root = space.changes("");
    assert_eq!(space.run(&request).success(), "more\n");
    assert_eq!(fs::read_to_string(cache.join("x")).unwrap(), "kept\n");
    assert_eq!(space.changed(), Vec::<String>::new());
}

#[test]
fn memory_is_limited_and_secrets_are_locked() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh(
        "dd if=/dev/zero of=/t/x bs=64k count=100 2>/dev/null || echo full; stat -c '%a %u:%g %s' /run/s; \
         echo x > /run/s || echo locked; chmod 777 /run/s 2>/dev/null || echo locked; cp /bin/busybox /t/b; grep ' /run/s ' /proc/mounts",
    );
    let secret = MountSource::Secret { data: SecretBytes(b"12345".to_vec()), uid: 7, gid: 8, mode: 0o440 };
    request.mounts =
        vec![mount("/t", false, MountSource::Tmpfs { size: 1 << 20 }), mount("/run/s", true, secret)];
    let ran = space.run(&request);
    let expected = "full\n440 7:8 5\nlocked\nlocked\n";
    assert!(ran.stdout.starts_with(expected), "{}{}", ran.stdout, ran.stderr);
    assert!(ran.stdout.contains("ro,nosuid,nodev,noexec"), "{}", ran.stdout);
    assert_eq!(space.changed(), Vec::<String>::new());
}

#[test]
fn ssh_agents_are_reached_through_a_socket_of_the_step() {
    let Some(space) = Space::new() else { return };
    let socket = space.dir.path().join("agent");
    let agent = UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o600)).unwrap();
    let serving = std::thread::spawn(move || {
        let (mut stream, _) = agent.accept().unwrap();
        let mut word = [0; 5];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(b"hello ").unwrap();
        stream.write_all(&word).unwrap();
    });
    let dest = "/run/buildkit/ssh_agent.0";
    let mut request = space.sh(&format!("stat -c '%a %u:%g %F' {dest}; /probe/step ask {dest}"));
    request.user = "app".to_owned();
    let source = MountSource::SshAgent { socket, uid: 1000, gid: 1000, mode: 0o600 };
    request.mounts = vec![mount(dest, true, source)];
    lend_programs(&mut request);
    assert_eq!(space.run(&request).success(), "600 1000:1000 socket\nhello step!\n");
    serving.join().unwrap();
    assert_eq!(space.changed(), Vec::<String>::new());
}

#[test]
fn a_hundred_mounts() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh("grep -c ' /m[0-9]* ' /proc/mounts");
    for n in 0..100 {
        request.mounts.push(mount(&format!("/m{n}"), false, MountSource::Tmpfs { size: 0 }));
    }
    assert_eq!(space.run(&request).success(), "100\n");
    assert_eq!(space.changed(), Vec::<String>::new());
}
