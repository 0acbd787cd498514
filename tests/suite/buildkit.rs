//! The same projects as BuildKit built them: keys, root file systems and configs must be what it recorded in
//! `test_data/buildkit`.

use std::collections::BTreeSet;
use std::fs;

use rbuild::{BuildRequest, DockerfileSource};
use rbuild_testkit::fixture::set_times_to;
use rbuild_testkit::images::{Image, unpack};
use rbuild_testkit::normalize::{Rootfs, Times};
use rbuild_testkit::registry::TestRegistry;
use rbuild_testkit::space::Space;
use serde_json::Value;

use crate::common::{
    Built, assert_same_lines, copy_context, data, image_of, note, require_root, require_sandbox,
};

/// What all files of the recorded contexts have.
const CONTEXT_TIME: i64 = 1_704_067_200;

/// Serves the recorded base image.
pub(crate) fn base() -> TestRegistry {
    let registry = TestRegistry::start();
    let dir = data("buildkit/base");
    let index: Value = read_json(&dir.join("index.json"));
    let descriptor = &index["manifests"][0];
    let blob = |digest: &Value| {
        let name = digest.as_str().expect("a digest").replace(':', "/");
        fs::read(dir.join("blobs").join(name)).expect("a blob of the base image")
    };
    let manifest = blob(&descriptor["digest"]);
    let document: Value = serde_json::from_slice(&manifest).expect("a manifest");
    registry.put_blob("library/busybox", blob(&document["config"]["digest"]));
    for layer in document["layers"].as_array().expect("layers") {
        registry.put_blob("library/busybox", blob(&layer["digest"]));
    }
    let media_type = descriptor["mediaType"].as_str().expect("a media type");
    registry.put_manifest("library/busybox", "latest", media_type, manifest);
    registry
}

pub(crate) fn read_json(path: &std::path::Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("test data")).expect("JSON")
}

/// The request for a project, with its context in the space.
pub(crate) fn request_of(
    space: &Space,
    registry: &TestRegistry,
    project: &str,
    edit: impl Fn(String) -> String,
) -> BuildRequest {
    let dir = data("buildkit").join(project).join("context");
    copy_context(&dir, &space.context());
    set_times_to(&space.context(), CONTEXT_TIME);
    let mut request = BuildRequest::new(space.context());
    let text = fs::read_to_string(dir.join("Dockerfile")).expect("a Dockerfile");
    let text = edit(text.replace("127.0.0.1:5000", &registry.host()));
    request.dockerfile = DockerfileSource::Text { name: "Dockerfile".to_owned(), text: text.into_bytes() };
    request
}

fn build(
    space: &Space,
    registry: &TestRegistry,
    project: &str,
    edit: impl Fn(String) -> String,
) -> (Built, Image) {
    let (built, image) = image_of(space, request_of(space, registry, project, edit));
    built.ok();
    (built, image.expect("it was built"))
}

/// Input, operation, output and selector of every link that a later build can find: those that start at a key that BuildKit
/// drew at random for one client's context lead nowhere for all others.
fn recorded_links(project: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(data("buildkit").join(project).join("links.txt")).expect("links");
    let mut out = BTreeSet::new();
    for line in text.lines().filter(|line| !line.starts_with("random:")) {
        let (_, rest) = line.split_once(" -- ").expect("source and link");
        let (link, _) = rest.split_once(" -> ").expect("link and target");
        let link: Value = serde_json::from_str(link).expect("a link is JSON");
        out.insert(format!(
            "input {} op {} output {} selector {}",
            link["Input"].as_u64().unwrap_or(0),
            link["Digest"].as_str().expect("a digest"),
            link["Output"].as_u64().unwrap_or(0),
            link["Selector"].as_str().unwrap_or("-"),
        ));
    }
    out
}

fn own_links(space: &Space) -> BTreeSet<String> {
    let hex = |bytes: Vec<u8>| match bytes.is_empty() {
        true => "-".to_owned(),
        false => format!("sha256:{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    };
    let db = rusqlite::Connection::open(space.store().join("index.db")).expect("the index");
    let mut query = db.prepare("SELECT input, op, output, selector FROM links").expect("the table");
    let rows = query.query_map([], |row| {
        let (input, output): (i64, i64) = (row.get(0)?, row.get(2)?);
        let (op, selector) = (hex(row.get(1)?), hex(row.get(3)?));
        Ok(format!("input {input} op {op} output {output} selector {selector}"))
    });
    rows.expect("rows").map(|row| row.expect("a row")).collect()
}

fn recorded_rootfs(project: &str, registry: &TestRegistry) -> Rootfs {
    let dir = data("buildkit").join(project).join("image");
    let mut rootfs = Rootfs::default();
    if project != "stages" {
        let manifest = registry.manifest("library/busybox", "latest").expect("the base image");
        let manifest: Value = serde_json::from_slice(&manifest).expect("a manifest");
        let digest = manifest["layers"][0]["digest"].as_str().expect("a digest").parse().expect("a digest");
        rootfs.apply(&unpack("gzip", registry.blob(&digest).expect("the base's layer").to_vec()));
    }
    for at in 0..20 {
        if let Ok(layer) = fs::read(dir.join(format!("{at}.tar.gz"))) {
            rootfs.apply(&unpack("gzip", layer));
        }
    }
    rootfs
}

/// The config without what must differ: times, and layers that hold times.
fn comparable(mut config: Value) -> Value {
    let object = config.as_object_mut().expect("a config is an object");
    object.remove("created");
    object.remove("rootfs");
    object.remove("moby.buildkit.cache.v0");
    for entry in config["history"].as_array_mut().expect("a history") {
        let recent = entry["comment"] == "buildkit.dockerfile.v0";
        if recent {
            entry.as_object_mut().expect("an entry is an object").remove("created");
        }
    }
    config
}

fn check(project: &str, differs: &[(&str, &str)]) {
    if !require_root() || !require_sandbox() {
        return;
    }
    if !cfg!(target_arch = "x86_64") {
        return note("skipped: BuildKit's records are of linux/amd64");
    }
    let (space, registry) = (Space::new(), base());
    let (_, image) = build(&space, &registry, project, |text| text);
    assert_image(project, &image, &registry, differs);
    let (recorded, own) = (recorded_links(project), own_links(&space));
    let missing: Vec<&String> = recorded.difference(&own).collect();
    assert!(
        missing.is_empty(),
        "{project}: BuildKit has these links, rbuild has not: {missing:#?}\nrbuild has {own:#?}"
    );
}

fn assert_image(project: &str, image: &Image, registry: &TestRegistry, differs: &[(&str, &str)]) {
    let keep = |path: &str| differs.iter().all(|(name, _)| *name != path);
    assert_same_lines(
        &recorded_rootfs(project, registry).filter(keep).listing(Times::Hidden),
        &image.rootfs().filter(keep).listing(Times::Hidden),
        &format!("{project}: the root file system differs from BuildKit's (-)"),
    );
    let recorded = read_json(&data("buildkit").join(project).join("image/config.json"));
    assert_eq!(
        serde_json::to_string_pretty(&comparable(recorded)).expect("JSON"),
        serde_json::to_string_pretty(&comparable(image.config.clone())).expect("JSON"),
        "{project}: the config differs from BuildKit's (left)"
    );
}

#[test]
fn linear() {
    check("linear", &[]);
}

#[test]
fn copy() {
    check("copy", &[]);
}

#[test]
fn stages() {
    check("stages", &[]);
}

#[test]
fn mounts() {
    let of_the_machine =
        [("/o4", "it holds the times of the cache mounts"), ("/o5", "it holds the kernel's network devices")];
    check("mounts", &of_the_machine);
}

/// What the projects do before their first `RUN`: tested even where no step can run.
#[test]
fn copies_without_steps() {
    if !require_root() || !cfg!(target_arch = "x86_64") {
        return;
    }
    let (space, registry) = (Space::new(), base());
    let without_run = |text: String| {
        text.lines().filter(|line| !line.starts_with("RUN")).map(|line| format!("{line}\n")).collect()
    };
    let (_, image) = build(&space, &registry, "copy", without_run);
    let not_of_steps = |path: &str| !["/proc", "/sys"].contains(&path);
    assert_same_lines(
        &recorded_rootfs("copy", &registry).filter(not_of_steps).listing(Times::Hidden),
        &image.rootfs().filter(not_of_steps).listing(Times::Hidden),
        "the root file system differs from BuildKit's (-)",
    );
    let (recorded, own) = (recorded_links("copy"), own_links(&space));
    let missing: Vec<&String> = recorded.difference(&own).collect();
    // The step that does not run is the only one that is missing.
    assert_eq!(
        missing.len(),
        1,
        "BuildKit has these links, rbuild has not: {missing:#?}\nrbuild has {own:#?}"
    );
}
