//! Devices of the machine in a step: nodes with owner and mode, mounts, variables, groups.

use std::fs;
use std::path::PathBuf;

use rbuild_ports::{DeviceKind, DeviceNode, ErrorKind, HostMount};

use crate::space::Space;

fn node(path: &str, host_path: &str) -> DeviceNode {
    DeviceNode {
        path: path.to_owned(),
        host_path: PathBuf::from(host_path),
        kind: None,
        number: None,
        mode: None,
        uid: None,
        gid: None,
        permissions: String::new(),
    }
}

fn host_mount(source: PathBuf, dest: &str) -> HostMount {
    let dest = dest.to_owned();
    HostMount { source, dest, recursive: true, readonly: false, nosuid: true, nodev: true, noexec: true }
}

#[test]
fn nodes() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh(
        "stat -c '%n %F %t:%T %a %u:%g' /dev/plain /opt/own /dev/made /dev/pipe; head -c 3 /opt/own | wc -c; \
         echo x > /dev/plain && echo written; id -G",
    );
    let own = DeviceNode { mode: Some(0o640), uid: Some(7), gid: Some(8), ..node("/opt/own", "/dev/zero") };
    let kind = Some(DeviceKind::Character);
    // Not on this machine: its numbers are enough.
    let made = DeviceNode { kind, number: Some((1, 7)), ..node("/dev/made", "/dev/nowhere") };
    let pipe = DeviceNode { kind: Some(DeviceKind::Pipe), ..node("/dev/pipe", "/dev/nowhere") };
    request.devices.nodes = vec![node("/dev/plain", "/dev/null"), own, made, pipe];
    request.devices.groups = vec![44];
    let text = space.run(&request).success();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(
        lines,
        [
            "/dev/plain character special file 1:3 666 0:0",
            "/opt/own character special file 1:5 640 7:8",
            "/dev/made character special file 1:7 666 0:0",
            "/dev/pipe fifo 0:0 666 0:0",
            "3",
            "written",
            "0 10 44",
        ]
    );
    assert_eq!(space.changed(), Vec::<String>::new());
}

#[test]
fn nodes_that_there_are_not() {
    let Some(space) = Space::new() else { return };
    let mut request = space.sh("true");
    for (node, expected) in [
        (node("/dev/x", "/dev/nowhere"), "cannot lend the device /dev/nowhere: no such file or directory"),
        (node("/dev/x", "/etc/passwd"), "cannot lend the device /etc/passwd: it is of another type"),
        (
            DeviceNode { kind: Some(DeviceKind::Block), ..node("/dev/x", "/dev/null") },
            "cannot lend the device /dev/null: it is of another type",
        ),
        (node("/dev/x", "dev/null"), "cannot lend the device dev/null: its path is not absolute"),
        (node("/", "/dev/null"), "cannot mount on \"/\": it must be an absolute path below /"),
    ] {
        request.root = space.changes("");
        request.devices.nodes = vec![node];
        let error = space.refused(&request);
        assert!(error.to_string().starts_with(expected), "{error}");
        assert_eq!(error.kind, ErrorKind::Invalid);
    }
}

#[test]
fn mounts_and_variables() {
    let Some(space) = Space::new() else { return };
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("lib"), "from the machine").unwrap();
    let mut request =
        space.sh("cat /usr/lib/vendor/lib; echo \" $A$B\"; touch /usr/lib/vendor/x 2>/dev/null || echo locked; touch /rw/made");
    request.env = vec!["A=1".to_owned(), "B=2".to_owned()];
    request.devices.env = vec!["A=device".to_owned()];
    let locked = HostMount { readonly: true, ..host_mount(host.path().to_owned(), "/usr/lib/vendor") };
    request.devices.mounts = vec![locked, host_mount(host.path().to_owned(), "/rw")];
    assert_eq!(space.run(&request).success(), "from the machine device2\nlocked\n");
    assert!(host.path().join("made").exists());
    assert_eq!(space.changed(), Vec::<String>::new());
    request.root = space.changes("");
    request.devices.mounts = vec![host_mount(host.path().join("gone"), "/x")];
    let error = space.refused(&request);
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.to_string().contains("which a device needs"), "{error}");
}
