//! What `COPY`, `ADD` and `WORKDIR` put where, against listings: `test_data/copy/*.txt`. The rules are BuildKit's.
//! `UPDATE_EXPECT=1` writes the listings anew.

use std::fs;

use rbuild_testkit::fixture::{Case, cases, write_cases};
use rbuild_testkit::normalize::{Rootfs, Times};
use rbuild_testkit::space::Space;

use crate::common::{data, image, require_root, updating};

fn check_file(name: &str) {
    if !require_root() {
        return;
    }
    let path = data("copy").join(name);
    let text = fs::read_to_string(&path).expect("a file of cases");
    let expected = cases(&text);
    assert!(!expected.is_empty(), "{name} has no cases");
    let (first, second) = expected.split_at(expected.len() / 2);
    let found: Vec<Case> = std::thread::scope(|scope| {
        let second = scope.spawn(|| second.iter().map(run).collect::<Vec<_>>());
        let mut found: Vec<Case> = first.iter().map(run).collect();
        found.extend(second.join().expect("no case panics"));
        found
    });
    if updating() {
        fs::write(&path, write_cases(&text, &found)).expect("a file of cases");
        return;
    }
    for (expected, found) in expected.iter().zip(&found) {
        for section in ["result", "error"] {
            assert_eq!(
                expected.section(section),
                found.section(section),
                "{name}, {:?}: {section} differs (left is expected)",
                expected.name
            );
        }
    }
}

/// The case with what came out in place of what was expected.
fn run(case: &Case) -> Case {
    let space = Space::new();
    let (built, image) = image(&space, case.section("context"), case.section("Dockerfile"));
    let mut out = case.clone();
    out.sections.retain(|(name, _)| name != "result" && name != "error");
    match image {
        Some(image) => {
            // What is as in the base image is not shown.
            let base = match case.section("Dockerfile").contains("BASE") {
                true => Rootfs::from_layers(image.layers.iter().take(1).map(Vec::as_slice)),
                false => Rootfs::default(),
            };
            out.set("result", &image.rootfs().without(&base).listing(Times::Shown));
        }
        None => out.set("error", &format!("{}\n", built.error())),
    }
    out
}

#[test]
fn destinations() {
    check_file("destinations.txt");
}

#[test]
fn sources() {
    check_file("sources.txt");
}

#[test]
fn links() {
    check_file("links.txt");
}

#[test]
fn owners_and_modes() {
    check_file("owners.txt");
}

#[test]
fn ignore_files() {
    check_file("ignore.txt");
}

#[test]
fn flags() {
    check_file("flags.txt");
}

#[test]
fn archives() {
    check_file("archives.txt");
}

#[test]
fn heredocs() {
    check_file("heredocs.txt");
}

#[test]
fn mistakes() {
    check_file("mistakes.txt");
}
