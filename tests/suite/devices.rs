//! `RUN --device`: specs in a directory of the test, grants, keys, what the step gets, and what users are told.

use std::fs;

use rbuild::{BuildRequest, Diagnostic, Entitlement, RenderOptions};
use rbuild_testkit::space::Space;

use crate::common::{Built, build, request, require_root, require_sandbox};

const SPEC: &str = "
cdiVersion: 0.6.0
kind: vendor.com/gpu
containerEdits:
  env: [VENDOR=1]
devices:
- name: zero
  containerEdits:
    env: [GPU=zero]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/zero, fileMode: 0640}]
- name: one
  annotations: {org.mobyproject.buildkit.device.autoallow: true}
  containerEdits:
    env: [GPU=one]
- name: with-hook
  containerEdits:
    hooks: [{hookName: createContainer, path: /usr/bin/vendor-hook}]
";

/// A place whose machine has the devices of `SPEC`.
struct Machine {
    space: Space,
}

impl Machine {
    fn new() -> Self {
        let space = Space::new();
        fs::create_dir(space.path("cdi")).expect("ours");
        fs::write(space.path("cdi").join("vendor.yaml"), SPEC).expect("ours");
        Self { space }
    }

    fn request(&self, dockerfile: &str, allow: &[&str]) -> BuildRequest {
        let mut request = request(&self.space, dockerfile);
        request.cdi_spec_dirs = vec![self.space.path("absent"), self.space.path("cdi")];
        request.allow = allow.iter().map(|word| Entitlement::parse(word).expect("an entitlement")).collect();
        request
    }

    fn build(&self, dockerfile: &str, allow: &[&str]) -> Built {
        build(&self.space, &self.request(dockerfile, allow))
    }

    #[track_caller]
    fn refused(&self, dockerfile: &str, allow: &[&str], expected: &[&str]) {
        let built = self.build(dockerfile, allow);
        let Err(error) = built.result else { panic!("it was built: {:?}", built.steps) };
        let error = render(&error.diagnostics);
        for part in expected {
            assert!(error.contains(part), "{part:?} is not in {error}");
        }
    }
}

/// As the user reads it.
fn render(all: &[Diagnostic]) -> String {
    all.iter().map(|one| rbuild::render(one, RenderOptions { color: false, width: 200 })).collect()
}

#[test]
fn a_step_gets_what_is_granted() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let machine = Machine::new();
    let show = "echo \"GPU=$GPU VENDOR=$VENDOR\"; ls /dev/gpu0 2>&1 || true";
    let log = |flags: &str, allow: &[&str]| {
        // The flags in the command, too: what is granted is the same for some of them, and so is the key.
        let built = machine.build(&format!("FROM BASE\nRUN {flags} : {flags}; {show}"), allow);
        built.ok();
        built.log
    };
    let all = log("--device=vendor.com/gpu=zero,required", &["device"]);
    assert!(all.contains("GPU=zero VENDOR=1") && all.contains("\n/dev/gpu0"), "{all}");
    // The first of a kind by name, and by an alias; one that its spec allows; one that is not there.
    assert!(log("--device=vendor.com/gpu", &["device=vendor.com/gpu=*"]).contains("VENDOR=1"));
    assert!(log("--device=mine", &["device=vendor.com/gpu=one,alias=mine"]).contains("GPU=one VENDOR=1"));
    assert!(log("--device=vendor.com/gpu=one", &[]).contains("GPU=one VENDOR=1"));
    assert!(log("--device=vendor.com/nothing", &[]).contains("GPU= VENDOR=\n"));
    // Nothing of it stays, and what was asked for is in the key.
    let text =
        "FROM BASE\nRUN --device=vendor.com/gpu=one true\nRUN --device=vendor.com/gpu=zero true\nRUN true";
    assert!(machine.build(text, &["device"]).steps.iter().any(|step| step.contains("ran")));
    let again = machine.build(text, &["device"]);
    assert!(again.steps.iter().all(|step| !step.contains(": ran")), "{:?}", again.steps);
}

#[test]
fn what_is_not_granted() {
    if !require_root() || !require_sandbox() {
        return;
    }
    let machine = Machine::new();
    let run = |flag: &str| format!("FROM BASE\nRUN --device={flag} true");
    machine.refused(
        &run("vendor.com/gpu=zero"),
        &[],
        &[
            "RB2012",
            "device vendor.com/gpu=zero is requested by the build but not allowed",
            "--allow device=vendor.com/gpu=zero",
            "Dockerfile:2:",
        ],
    );
    machine.refused(
        &run("vendor.com/gpu=zeroo,required"),
        &[],
        &["required device \"vendor.com/gpu=zeroo\" is not registered", "did you mean vendor.com/gpu=zero?"],
    );
    // With everything allowed it is the step that finds out.
    machine.refused(
        &run("other.org/x=1,required"),
        &["device"],
        &["required device \"other.org/x=1\" is not registered", "this machine has vendor.com/gpu=one, "],
    );
    machine.refused(
        &run("vendor.com/gpu=with-hook"),
        &["device"],
        &["needs the createContainer hook /usr/bin/vendor-hook", "hooks of devices are not run"],
    );
    fs::write(machine.space.path("cdi").join("vendor.yaml"), "kind: [").expect("ours");
    machine.refused(
        &run("vendor.com/gpu=zero,required"),
        &[],
        &["is not registered", "vendor.yaml is not used: it cannot be read"],
    );
}

#[test]
fn words_of_allow() {
    for (text, expected) in [
        ("device", "Ok(Devices)"),
        ("device=a.b/c=d,alias=x", "Ok(Device { name: \"a.b/c=d\", alias: Some(\"x\") })"),
        ("device=a.b/c", "Ok(Device { name: \"a.b/c\", alias: None })"),
        ("device=a.b/c,x", "Err(\"invalid device config \\\"x\\\"\")"),
        ("device=a.b/c,x=y", "Err(\"unknown device config key \\\"x\\\"\")"),
    ] {
        assert_eq!(format!("{:?}", Entitlement::parse(text)), expected, "{text}");
    }
}
