//! Ways out of a sandbox that others had. The numbers are those of the list of security tests in the design.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use rbuild_ports::{ErrorKind, MountSource, OverlayDirs, SecretBytes};

use crate::space::{Space, lend_programs, listing, mount};

/// ESC-01: sources of bind mounts that are links out of their image.
#[test]
fn selectors_stay_inside_their_source() {
    let Some(mut space) = Space::new() else { return };
    let src = space.layer("src");
    symlink("/", src.join("link")).unwrap();
    symlink("../../../../..", src.join("link2")).unwrap();
    fs::create_dir(src.join("etc")).unwrap();
    fs::write(src.join("etc/mine"), "").unwrap();
    for (selector, expected) in [
        ("/link", "etc\nlink\nlink2\n"),
        ("/link2", "etc\nlink\nlink2\n"),
        ("/link/etc", "mine\n"),
        ("link2/link/../../etc", "mine\n"),
        ("../../etc", "mine\n"),
    ] {
        for cache in [false, true] {
            let mut request = space.sh("ls /m; touch /m/CANARY; true");
            let source = if cache {
                MountSource::Dir(src.clone())
            } else {
                let upper = space.changes("-rw");
                MountSource::Layers(OverlayDirs { lower: vec!["src".to_owned()], ..upper })
            };
            request.mounts = vec![mount("/m", false, source)];
            request.mounts[0].selector = selector.to_owned();
            assert_eq!(space.run(&request).success().replace("CANARY\n", ""), expected, "{selector}");
            assert!(!Path::new("/CANARY").exists() && !Path::new("/etc/CANARY").exists());
        }
    }
}

/// ESC-04, ESC-20: mount points below links out of the image, and stubs that the step swaps.
#[test]
fn mount_points_stay_inside_the_root() {
    let Some(space) = Space::new() else { return };
    let canary = space.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "").unwrap();
    let before = listing(&canary);
    let target = format!("/../../../..{}", canary.display());
    symlink(&target, space.root().join("tmp/x")).unwrap();
    let mut request = space.sh(&format!("mv /made /moved; ln -s {} /made; ls /made/", canary.display()));
    request.mounts = vec![
        mount("/tmp/x/newfile", false, MountSource::Tmpfs { size: 0 }),
        mount(
            "/made/file",
            false,
            MountSource::Secret { data: SecretBytes(b"x".to_vec()), uid: 0, gid: 0, mode: 0o400 },
        ),
    ];
    space.run(&request);
    assert_eq!(listing(&canary), before);
    // The directory moved away belongs to the step now; the file in it does not.
    let changed = space.changed();
    assert!(changed.contains(&"made".to_owned()), "{changed:?}");
    assert!(!changed.iter().any(|path| path.ends_with("newfile")), "{changed:?}");
}

/// ESC-09: user databases that are something else.
#[test]
fn user_databases_are_small_regular_files() {
    let Some(space) = Space::new() else { return };
    let passwd = space.root().join("etc/passwd");
    let check = |make: &dyn Fn(), expected: &str| {
        fs::remove_file(&passwd).unwrap();
        make();
        let mut request = space.sh("true");
        request.user = "app".to_owned();
        let begun = Instant::now();
        let error = space.refused(&request);
        assert!(begun.elapsed() < Duration::from_secs(2));
        assert!(error.message.contains(expected), "{error}");
        // Root needs no database.
        assert_eq!(space.output("echo ok"), "ok\n");
    };
    check(
        &|| symlink("../../../../../../etc/shadow", &passwd).unwrap(),
        "no matching entries in passwd file",
    );
    check(&|| mkfifo(&passwd), "it is no regular file");
    check(
        &|| fs::create_dir_all(passwd.with_file_name("dir")).and_then(|()| symlink("dir", &passwd)).unwrap(),
        "it is no regular file",
    );
    check(&|| symlink("/proc/self/root/etc/passwd", &passwd).unwrap(), "no matching entries in passwd file");
    check(
        &|| fs::File::create(&passwd).and_then(|file| file.set_len(100 << 30)).unwrap(),
        "bytes, more than 10485760",
    );
    let device = |path: &Path| {
        let device = rustix::fs::makedev(1, 5);
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path,
            rustix::fs::FileType::CharacterDevice,
            0o666.into(),
            device,
        )
        .unwrap();
    };
    check(&|| device(&passwd), "it is no regular file");
}

fn mkfifo(path: &Path) {
    rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
}

/// ESC-11: working directories that lead out through descriptors.
#[test]
fn working_directories_stay_inside() {
    let Some(space) = Space::new() else { return };
    let canary = space.dir.path().join("canary");
    fs::write(&canary, "").unwrap();
    let mut paths: Vec<String> = (3..64).map(|n| format!("/proc/self/fd/{n}")).collect();
    paths.extend(
        ["/proc/1/cwd", "/proc/self/cwd/..", "/proc/1/root", "/proc/thread-self/fd/5"].map(str::to_owned),
    );
    for path in paths {
        let mut request = space.sh(&format!("cat ../../../../../../..{} && echo ESCAPED", canary.display()));
        request.cwd = path.clone();
        let error = space.refused(&request);
        assert!(error.message.starts_with("cannot use the working directory"), "{path}: {error}");
    }
    symlink("/proc/self/fd/7", space.root().join("link")).unwrap();
    let mut request = space.sh("true");
    request.cwd = "/link".to_owned();
    assert_eq!(space.refused(&request).kind, ErrorKind::Invalid);
}

/// ESC-12: descriptors of the host.
#[test]
fn only_standard_descriptors_are_open() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh("ls /proc/self/fd; ls /proc/1/fd; true");
    request.mounts = vec![
        mount(
            "/run/s",
            true,
            MountSource::Secret { data: SecretBytes(b"x".to_vec()), uid: 0, gid: 0, mode: 0o400 },
        ),
        mount("/cache", false, MountSource::Dir(space.dir.path().to_owned())),
    ];
    // One of `ls`'s own, and of the shell only three. It may still have an end of a pipe, and becomes its last command.
    assert_eq!(space.run(&request).success(), "0\n1\n2\n3\n0\n1\n2\n");
}

/// ESC-13, ESC-14: `/dev`, `/proc` and `/sys` of the image are links or files.
#[test]
fn kernel_directories_must_be_directories() {
    let Some(space) = Space::new() else { return };
    let canary = space.dir.path().join("canary");
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("ptmx"), "").unwrap();
    let before = listing(&canary);
    for name in ["dev", "proc", "sys"] {
        let path = space.root().join(name);
        fs::remove_dir(&path).unwrap();
        symlink(format!("../../..{}", canary.display()), &path).unwrap();
        let error = space.refused(&space.sh("true"));
        assert!(error.message.contains(&format!("/{name} is a symbolic link")), "{error}");
        fs::remove_file(&path).unwrap();
        fs::write(&path, "").unwrap();
        assert!(space.refused(&space.sh("true")).message.contains(&format!("/{name} is a file")));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    // Inside `/dev` nothing of the image counts.
    symlink("/etc", space.root().join("dev/pts")).unwrap();
    symlink(&canary, space.root().join("dev/null")).unwrap();
    symlink(&canary, space.root().join("dev/shm")).unwrap();
    assert_eq!(space.output("cat /dev/null; stat -c %t:%T /dev/null; ls /dev/pts"), "1:3\nptmx\n");
    assert_eq!(listing(&canary), before);
    assert_eq!(space.changed(), Vec::<String>::new());
}

/// ESC-15, ESC-19, RUN-06: nothing of the kernel can be read or changed that is the host's.
#[test]
fn kernel_files_are_masked_and_locked() {
    let Some(space) = Space::new() else { return };
    let script = "for f in kcore keys timer_list interrupts kallsyms latency_stats sched_debug; do [ -e /proc/$f ] && \
        [ -n \"$(head -c1 /proc/$f 2>/dev/null)\" ] && echo readable $f; done; \
        for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && \
        [ -n \"$(ls $d 2>/dev/null)\" ] && echo readable $d; done; \
        for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/sys/fs/binfmt_misc/register \
        /proc/irq/default_smp_affinity /proc/bus/x /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/x \
        /sys/fs/cgroup/release_agent /proc/kcore /proc/acpi/x; do (echo x > $f) 2>/dev/null && echo writable $f; done; \
        umount /proc/sys 2>/dev/null && echo unmounted; mount -o remount,rw /proc/sys 2>/dev/null && echo remounted; \
        mount -t proc none /tmp 2>/dev/null && echo mounted; find /sys/fs/cgroup -name release_agent; true";
    assert_eq!(space.output(script), "");
    // A cache over `/dev` changes nothing of that: masks are not made from what the step can reach.
    let cache = space.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    symlink("/etc/passwd", cache.join("null")).unwrap();
    let mut request = space.sh(script);
    request.mounts = vec![mount("/dev", false, MountSource::Dir(cache))];
    assert_eq!(space.run(&request).success(), "");
}

/// Devices that the image or the step makes cannot be opened.
#[test]
fn devices_of_images_are_dead() {
    let Some(space) = Space::new() else { return };
    let zero = space.root().join("zero");
    let device = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(rustix::fs::CWD, &zero, rustix::fs::FileType::CharacterDevice, 0o666.into(), device)
        .unwrap();
    let text = space
        .output("head -c1 /zero 2>&1; mknod /x c 1 5 2>&1; head -c1 /dev/zero | wc -c; mkfifo /fifo; true");
    assert_eq!(text, "head: /zero: Permission denied\nmknod: /x: Operation not permitted\n1\n");
}

/// ESC-16: the program of the host cannot be reached.
#[test]
fn own_executable_is_out_of_reach() {
    let Some(space) = Space::new() else { return };
    let root = space.root();
    fs::write(root.join("bin/self"), "#!/proc/self/exe\n").unwrap();
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(root.join("bin/self"), fs::Permissions::from_mode(0o755)).unwrap();
    let own = fs::metadata("/proc/self/exe").unwrap();
    space.run(&space.command(&["self"]));
    space.run(&space.sh("for p in /proc/[0-9]*; do echo x > $p/exe; done 2>/dev/null; true"));
    let after = fs::metadata("/proc/self/exe").unwrap();
    assert_eq!((own.ino(), own.len(), own.mtime_nsec()), (after.ino(), after.len(), after.mtime_nsec()));
}

/// RUN-01: what the filter refuses, on the real kernel.
#[test]
fn system_calls() {
    let Some(space) = Space::new() else { return };
    let mut request = space.command(&["/probe/step", "probe"]);
    lend_programs(&mut request);
    let text = space.run(&request).success();
    let mut expected = "mount umount2 setns unshare pivot_root keyctl add_key request_key bpf perf_event_open userfaultfd \
        io_uring_setup open_by_handle_at kexec_load init_module fsopen open_tree mount_setattr reboot sethostname personality \
        socket-alg socket-vsock socket-packet socket-raw mknod"
        .split_whitespace()
        .map(|name| format!("{name} EPERM"))
        .collect::<Vec<_>>();
    expected.extend(["clone3 ENOSYS", "socket-can EAFNOSUPPORT", "socket-inet ok"].map(str::to_owned));
    if cfg!(target_arch = "x86_64") && text.contains("i386-getpid ok") {
        let old =
            ["i386-socketcall EPERM", "i386-socket-alg EPERM", "i386-unshare EPERM", "x32-getpid EPERM"];
        expected.extend(old.map(str::to_owned));
    }
    for line in &expected {
        assert!(text.lines().any(|it| it == line), "{line}\n{text}");
    }
}

/// RUN-12: a step that removes everything it can reach.
#[test]
fn removing_everything_removes_only_what_is_the_steps() {
    let Some(mut space) = Space::new() else { return };
    let src = space.layer("src");
    fs::write(src.join("precious"), "").unwrap();
    let cache = space.dir.path().join("cache");
    fs::create_dir(&cache).unwrap();
    fs::write(cache.join("old"), "").unwrap();
    let (base, kept) = (listing(&space.root()), listing(&src));
    let mut request = space.sh("rm -rf /bin/../* 2>/dev/null; true");
    let layers = OverlayDirs {
        base: space.dir.path().to_owned(),
        lower: vec!["src".to_owned()],
        ..OverlayDirs::default()
    };
    request.mounts = vec![
        mount("/src", true, MountSource::Layers(layers)),
        mount("/cache", false, MountSource::Dir(cache.clone())),
        mount(
            "/run/s",
            true,
            MountSource::Secret { data: SecretBytes(b"x".to_vec()), uid: 0, gid: 0, mode: 0o400 },
        ),
    ];
    request.args = [
        "/bin/busybox",
        "rm",
        "-rf",
        "/bin",
        "/etc",
        "/src",
        "/cache",
        "/run",
        "/tmp",
        "/root",
        "/dev",
        "/proc",
        "/sys",
    ]
    .map(str::to_owned)
    .to_vec();
    space.run(&request);
    assert_eq!((listing(&space.root()), listing(&src)), (base, kept));
    assert!(!cache.join("old").exists(), "the cache is the step's to write");
}

/// RUN-15: processes of the host and of other steps.
#[test]
fn other_processes_do_not_exist() {
    let Some(space) = Space::new() else { return };
    let me = std::process::id();
    let text = space.output(&format!(
        "ls /proc | grep -c '^[0-9]'; kill -0 {me} 2>&1; ls /proc/{me} 2>&1 | head -1; ls -l /proc/1/root"
    ));
    assert!(text.contains("No such process"), "{text}");
    // The shell and what runs in its pipe.
    assert!(text.starts_with('3') || text.starts_with('2'), "{text}");
    let mounts = space.output("cat /proc/self/mountinfo");
    let host = space.dir.path().display().to_string();
    assert!(
        !mounts.contains(&host) && !mounts.contains("/dev/vda"),
        "paths of the host are shown:\n{mounts}"
    );
}
