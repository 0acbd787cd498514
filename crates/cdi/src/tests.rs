//! Specs in, devices out.

use rbuild_graph::CdiDevice;
use rbuild_ports::{DeviceEdits, DeviceKind};

use crate::{Grants, Registry, parse};

const VENDOR: &str = r#"
cdiVersion: "0.6.0"
kind: vendor.com/gpu
annotations:
  org.mobyproject.buildkit.device.autoallow: false
containerEdits:
  env: [ALL=1]
devices:
- name: "0"
  annotations:
    org.mobyproject.buildkit.device.class: fast
  containerEdits:
    env:
    - GPU=0
    deviceNodes:
    - path: /dev/gpu0
      hostPath: /dev/null
      type: c
      major: 1
      minor: 3
      fileMode: 0660
      uid: 5
    additionalGids: [0, 44]
- name: one
  annotations: {org.mobyproject.buildkit.device.class: fast, org.mobyproject.buildkit.device.autoallow: true}
  containerEdits:
    mounts:
    - {hostPath: /usr/lib/gpu, containerPath: /opt/gpu, options: [ro, nosuid, rbind]}
- name: hooked
  containerEdits:
    hooks:
    - hookName: createContainer
      path: /usr/bin/vendor-hook
      args: [vendor-hook, link]
"#;

fn registry(texts: &[(usize, &str)]) -> Registry {
    let specs = texts.iter().map(|(priority, text)| (*priority, parse(text, false).unwrap()));
    Registry::new(specs.collect::<Vec<_>>()).0
}

fn wanted(names: &[&str]) -> Vec<CdiDevice> {
    let device = |name: &&str| match name.strip_suffix('?') {
        Some(name) => CdiDevice { name: name.to_owned(), optional: true },
        None => CdiDevice { name: (*name).to_owned(), optional: false },
    };
    names.iter().map(device).collect()
}

fn granted(registry: &Registry, names: &[&str], grants: &Grants) -> String {
    match registry.grant(&wanted(names), grants) {
        Ok(devices) => devices
            .iter()
            .map(|device| format!("{}{}", device.name, if device.optional { "?" } else { "" }))
            .collect::<Vec<_>>()
            .join(" "),
        Err(error) => format!("error: {error}"),
    }
}

fn allow(names: &[&str]) -> Grants {
    let devices = names.iter().map(|name| match name.split_once('>') {
        Some((alias, name)) => (alias.to_owned(), Some(name.to_owned())),
        None => ((*name).to_owned(), None),
    });
    Grants { all: names == ["all"], devices: devices.collect() }
}

#[test]
fn grants() {
    let registry = registry(&[(0, VENDOR)]);
    let check = |wanted: &[&str], allowed: &[&str], expected: &str| {
        assert_eq!(granted(&registry, wanted, &allow(allowed)), expected, "{wanted:?} {allowed:?}");
    };
    // Everything: the definition stays as it is, known or not.
    check(&["vendor.com/gpu?", "nobody.com/x=1"], &["all"], "vendor.com/gpu? nobody.com/x=1");
    check(&["vendor.com/gpu=0?"], &["vendor.com/gpu=0"], "vendor.com/gpu=0");
    check(&["vendor.com/gpu"], &["vendor.com/gpu=*"], "vendor.com/gpu=0");
    check(
        &["vendor.com/gpu=*"],
        &["vendor.com/gpu=*"],
        "vendor.com/gpu=0 vendor.com/gpu=hooked vendor.com/gpu=one",
    );
    check(&["vendor.com/gpu=fast"], &["vendor.com/gpu=0"], "vendor.com/gpu=0 vendor.com/gpu=one");
    check(&["vendor.com/gpu=one", "vendor.com/gpu=one"], &[], "vendor.com/gpu=one");
    check(&["mine", "vendor.com/gpu=one"], &["mine>vendor.com/gpu=0"], "vendor.com/gpu=0 vendor.com/gpu=one");
    check(&["nobody.com/x=1?", "vendor.com/none?"], &[], "");
    check(&["nobody.com/x=1"], &[], "error: required device \"nobody.com/x=1\" is not registered");
    check(
        &["vendor.com/gpu=0?"],
        &[],
        "error: device vendor.com/gpu=0 is requested by the build but not allowed",
    );
    check(
        &["vendor.com/gpu=*"],
        &["vendor.com/gpu=0"],
        "error: device vendor.com/gpu=hooked is requested by the build but not allowed",
    );
    check(
        &["vendor.com/gpu=*"],
        &[],
        "error: devices vendor.com/gpu=0, vendor.com/gpu=hooked are requested by the build but not allowed",
    );
    check(&["gpu"], &[], "error: invalid device \"gpu\": it is not of the form vendor.com/class=name");
    check(&["/gpu=1?"], &[], "error: invalid device \"/gpu=1\": its vendor is empty");
    check(
        &["v_/c=1"],
        &[],
        "error: invalid device \"v_/c=1\": the vendor \"v_\" must end with a letter or digit",
    );
}

#[test]
fn edits() {
    let registry = registry(&[(0, VENDOR)]);
    let edits = registry.edits(&wanted(&["vendor.com/gpu=fast", "nobody.com/x=1?"])).unwrap();
    assert_eq!(edits.env, ["ALL=1", "GPU=0"]);
    assert_eq!(edits.groups, [44]);
    let [node] = edits.nodes.as_slice() else { panic!("{:?}", edits.nodes) };
    assert_eq!((node.path.as_str(), node.host_path.to_str()), ("/dev/gpu0", Some("/dev/null")));
    assert_eq!((node.kind, node.number), (Some(DeviceKind::Character), Some((1, 3))));
    assert_eq!((node.mode, node.uid, node.gid), (Some(0o660), Some(5), None));
    let [mount] = edits.mounts.as_slice() else { panic!("{:?}", edits.mounts) };
    assert!(mount.readonly && mount.nosuid && mount.recursive && !mount.nodev && !mount.noexec);
    assert_eq!(registry.edits(&wanted(&["nobody.com/x=1?"])).unwrap(), DeviceEdits::default());
    assert_eq!(
        registry.edits(&wanted(&["vendor.com/gpu=hooked"])).unwrap_err().to_string(),
        "the device vendor.com/gpu=hooked needs the createContainer hook /usr/bin/vendor-hook, and hooks of devices \
         are not run"
    );
}

#[test]
fn later_directories_win() {
    let spec = |value: &str| {
        format!(
            "{{cdiVersion: 0.5.0, kind: a.b/c, devices: [{{name: x, containerEdits: {{env: [V={value}]}}}}]}}"
        )
    };
    let (low, high) = (spec("low"), spec("high"));
    for order in [[(0, &low), (1, &high)], [(1, &high), (0, &low)]] {
        let registry = registry(&order.map(|(priority, text)| (priority, text.as_str())));
        assert_eq!(registry.edits(&wanted(&["a.b/c=x"])).unwrap().env, ["V=high"]);
    }
    let twice = [(0, parse(&low, false).unwrap()), (0, parse(&high, false).unwrap())];
    let (registry, conflicts) = Registry::new(twice);
    assert_eq!((registry.names().count(), conflicts), (0, vec!["a.b/c=x".to_owned()]));
}

#[test]
fn texts_that_are_no_specs() {
    let device = "devices: [{name: x, containerEdits: {env: [A=1]}}]";
    for (text, expected) in [
        ("", "it cannot be read: it is empty"),
        ("a: *b", "it cannot be read:"),
        ("- 1", "it cannot be read: it is no mapping"),
        (&format!("cdiVersion: 9.0.0\nkind: a/b\n{device}"), "cdiVersion is \"9.0.0\", which is not known"),
        (
            &format!("cdiVersion: 0.5.0\nkind: a\n{device}"),
            "the kind \"a\" is invalid: it is not of the form",
        ),
        (
            &format!("cdiVersion: 0.5.0\nkind: a/b\nmore: 1\n{device}"),
            "it cannot be read: unknown field `more`",
        ),
        ("cdiVersion: 0.5.0\nkind: a/b", "it has no devices"),
        ("cdiVersion: 0.5.0\nkind: a/b\ndevices: [{name: x}]", "the device \"x\" has no containerEdits"),
        (
            "cdiVersion: 0.5.0\nkind: a/b\ndevices: [{name: x, containerEdits: {env: [A]}}]",
            "the variable \"A\" is not NAME=value",
        ),
        (
            "cdiVersion: 0.5.0\nkind: a/b\ndevices: [{name: x/y, containerEdits: {env: [A=]}}]",
            "the device \"x/y\" is invalid: the name \"x/y\" has the character '/'",
        ),
        (
            &format!("cdiVersion: 0.5.0\nkind: a/b\nkind: a/c\n{device}"),
            "it cannot be read: the key \"kind\"",
        ),
        (&"[".repeat(100), "it cannot be read: nesting is too deep at line 1"),
    ] {
        let error = parse(text, false).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
    let json = r#"{"cdiVersion":"0.5.0","kind":"a/b","devices":[{"name":"x","containerEdits":{"deviceNodes":[{"path":"/dev/x","fileMode":438}]}}]}"#;
    let yaml = parse(json, false).unwrap();
    assert_eq!(parse(json, true).unwrap(), yaml);
    assert!(parse("{", true).unwrap_err().to_string().starts_with("it cannot be read: EOF"));
}
