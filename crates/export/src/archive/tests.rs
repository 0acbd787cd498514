//! Archives and layouts, read back: every descriptor leads to its blob.

use super::*;
use crate::testing::{World, tar};
use crate::{BuiltImage, Digests, ExportRequest, Exported, OutputSpec};
use rbuild_oci::{History, ImageConfig, Manifest, Reference};
use rbuild_ports::Snapshot;

fn image(world: &World, platform: &str, layer: &str) -> BuiltImage {
    let platform: rbuild_oci::Platform = platform.parse().unwrap();
    let base = world.remote_layer(&tar(&[("base", "b")]), "r.io/library/base").0;
    let top = world.layer(layer, &tar(&[("top", layer)]), 1_700_000_000);
    let entry = |by: &str| History { created_by: by.to_owned(), ..History::default() };
    let config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        history: vec![entry("base"), entry("top")],
        ..ImageConfig::default()
    };
    BuiltImage { platform, snapshot: Snapshot { layers: vec![base, top] }, config, base_history: 1 }
}

fn run(world: &World, images: &[BuiltImage], output: &str, names: &[&str]) -> Result<Exported> {
    let outputs = [output.parse::<OutputSpec>().unwrap()];
    let names: Vec<Reference> = names.iter().map(|name| name.parse().unwrap()).collect();
    let request = ExportRequest {
        images,
        indexed: images.len() > 1,
        outputs: &outputs,
        names: &names,
        annotations: &[],
        source_date_epoch: None,
        inline_cache: None,
        want: Digests::None,
    };
    crate::export(&world.cx(), &request)
}

/// Names in the order of the archive, `H` for digests.
fn entries(archive: &Path) -> Vec<String> {
    let text = std::process::Command::new("tar").arg("-tf").arg(archive).output().unwrap().stdout;
    let text = String::from_utf8(text).unwrap();
    text.lines()
        .map(|name| if name.len() > 70 { "blobs/sha256/H".to_owned() } else { name.to_owned() })
        .collect()
}

fn unpack(archive: &Path, dir: &Path) {
    fs::create_dir(dir).unwrap();
    assert!(
        std::process::Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(dir)
            .status()
            .unwrap()
            .success()
    );
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Every descriptor leads to a blob of its digest and size; returns how many there are.
fn check_layout(dir: &Path) -> usize {
    fn follow(dir: &Path, descriptor: &Descriptor) -> usize {
        let bytes = fs::read(dir.join(blob_name(&descriptor.digest))).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (descriptor.digest, descriptor.size));
        if rbuild_oci::media_type::is_manifest(&descriptor.media_type) {
            let manifest: Manifest = serde_json::from_slice(&bytes).unwrap();
            return 1
                + follow(dir, &manifest.config)
                + manifest.layers.iter().map(|d| follow(dir, d)).sum::<usize>();
        }
        if rbuild_oci::media_type::is_index(&descriptor.media_type) {
            let index: Index = serde_json::from_slice(&bytes).unwrap();
            return 1 + index.manifests.iter().map(|d| follow(dir, d)).sum::<usize>();
        }
        1
    }
    let index: Index = serde_json::from_slice(&fs::read(dir.join("index.json")).unwrap()).unwrap();
    index.manifests.iter().map(|d| follow(dir, d)).sum()
}

#[test]
fn an_oci_archive() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let path = dir.path().join("x.tar");
    let images = [image(&world, "linux/amd64", "s1")];
    let output = format!("type=oci,dest={}", path.display());
    let exported = run(&world, &images, &output, &["app", "r.io/app:2"]).unwrap();
    assert_eq!(
        entries(&path),
        [
            "blobs/",
            "blobs/sha256/",
            "blobs/sha256/H",
            "blobs/sha256/H",
            "blobs/sha256/H",
            "blobs/sha256/H",
            "index.json",
            "oci-layout"
        ]
    );
    unpack(&path, &dir.path().join("x"));
    assert_eq!(check_layout(&dir.path().join("x")), 8, "two names, four blobs each");
    let index = json(&dir.path().join("x/index.json"));
    let digest = exported.descriptor.as_ref().unwrap().digest.to_string();
    for (i, (name, tag)) in
        [("docker.io/library/app:latest", "latest"), ("r.io/app:2", "2")].iter().enumerate()
    {
        let entry = &index["manifests"][i];
        assert_eq!(entry["digest"], digest);
        assert_eq!(entry["annotations"]["io.containerd.image.name"], *name);
        assert_eq!(entry["annotations"]["org.opencontainers.image.ref.name"], *tag);
        assert_eq!(entry["annotations"]["org.opencontainers.image.created"], "2023-11-14T22:13:20Z");
    }
    assert_eq!(exported.names, ["docker.io/library/app:latest", "r.io/app:2"]);
    assert!(exported.config_digest.is_some());
    // The same again, though nothing is compressed any more.
    let first = fs::read(&path).unwrap();
    let again = run(&world, &images, &output, &["app", "r.io/app:2"]).unwrap();
    assert!(fs::read(&path).unwrap() == first);
    assert_eq!(again, exported);
    assert_eq!(*world.layers.written.lock().unwrap(), 1);
}

#[test]
fn several_platforms_are_an_index() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let images = [image(&world, "linux/amd64", "s1"), image(&world, "linux/arm/v7", "s2")];
    let path = dir.path().join("layout");
    let output = format!(
        "type=oci,tar=false,dest={},annotation-index.a=1,annotation[linux/arm/v7].b=2,annotation-index-descriptor.c=3",
        path.display()
    );
    let exported = run(&world, &images, &output, &["app"]).unwrap();
    assert_eq!(check_layout(&path), 9);
    let descriptor = exported.descriptor.unwrap();
    assert_eq!(
        (exported.config_digest, descriptor.media_type.as_str()),
        (None, rbuild_oci::media_type::OCI_INDEX)
    );
    assert_eq!(descriptor.annotations["c"], "3");
    let index = json(&path.join(blob_name(&descriptor.digest)));
    assert_eq!(index["annotations"]["a"], "1");
    assert_eq!(index["manifests"][1]["platform"]["variant"], "v7");
    let arm: Digest = index["manifests"][1]["digest"].as_str().unwrap().parse().unwrap();
    assert_eq!(json(&path.join(blob_name(&arm)))["annotations"]["b"], "2");
    let error =
        run(&world, &images, &format!("type=docker,dest={}", path.join("d").display()), &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
}

#[test]
fn a_layout_is_added_to() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let path = dir.path().join("made/layout");
    let output = format!("type=oci,tar=false,dest={}", path.display());
    let (one, two) = ([image(&world, "linux/amd64", "s1")], [image(&world, "linux/amd64", "s2")]);
    run(&world, &one, &output, &["a:1"]).unwrap();
    run(&world, &two, &output, &["a:2"]).unwrap();
    assert_eq!(json(&path.join("index.json"))["manifests"].as_array().unwrap().len(), 2);
    assert_eq!(check_layout(&path), 8);
    // A name moves.
    let last = run(&world, &two, &output, &["a:1"]).unwrap();
    let index = json(&path.join("index.json"));
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 2);
    assert!(
        entries.iter().all(|entry| entry["digest"] == last.descriptor.as_ref().unwrap().digest.to_string())
    );
    // Something else is not touched.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("index.json"), "[]").unwrap();
    let error = run(&world, &one, &format!("type=oci,tar=false,dest={}", other.display()), &[]).unwrap_err();
    assert!(error.message.contains("not the index of an image layout"), "{error}");
    assert_eq!(fs::read_dir(&other).unwrap().count(), 1);
}

#[test]
fn dockers_manifest() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let path = dir.path().join("x.tar");
    let images = [image(&world, "linux/amd64", "s1")];
    let output = format!("type=docker,dest={},oci-mediatypes=false", path.display());
    let exported = run(&world, &images, &output, &["app:1", "r.io/a/b"]).unwrap();
    assert_eq!(exported.descriptor.unwrap().media_type, rbuild_oci::media_type::DOCKER_MANIFEST);
    unpack(&path, &dir.path().join("x"));
    check_layout(&dir.path().join("x"));
    let manifest = json(&dir.path().join("x/manifest.json"));
    assert_eq!(manifest[0]["RepoTags"], json!(["app:1", "r.io/a/b:latest"]));
    assert_eq!(manifest[0]["Config"], blob_name(&exported.config_digest.unwrap()));
    assert_eq!(manifest[0]["Layers"].as_array().unwrap().len(), 2);
    run(&world, &images, &output, &[]).unwrap();
    fs::remove_dir_all(dir.path().join("x")).unwrap();
    unpack(&path, &dir.path().join("x"));
    assert_eq!(json(&dir.path().join("x/manifest.json"))[0]["RepoTags"], serde_json::Value::Null);
}

#[test]
fn damage_heals_in_the_same_command() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let path = dir.path().join("x.tar");
    let images = [image(&world, "linux/amd64", "s1")];
    let output = format!("type=oci,dest={}", path.display());
    run(&world, &images, &output, &[]).unwrap();
    let first = fs::read(&path).unwrap();
    let digests: Vec<Digest> = world.blobs.all().keys().copied().collect();
    assert_eq!(digests.len(), 2);
    digests.iter().for_each(|digest| world.blobs.damage(digest));
    run(&world, &images, &output, &[]).unwrap();
    assert!(fs::read(&path).unwrap() == first);
    assert_eq!(world.warnings.0.lock().unwrap().len(), 2);
    // Nobody has the base any more: its files stand in.
    world.blobs.all().clear();
    world.remote.blobs.lock().unwrap().clear();
    let error = run(&world, &images, &output, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(fs::read(&path).unwrap() == first, "the old archive stays");
    let base = images[0].snapshot.layers[0].clone();
    world.layers.tars.lock().unwrap().insert(base, tar(&[("base", "again")]));
    run(&world, &images, &output, &[]).unwrap();
    unpack(&path, &dir.path().join("x"));
    check_layout(&dir.path().join("x"));
    assert!(world.warnings.0.lock().unwrap().last().unwrap().contains("written anew"));
}

#[test]
fn failures_leave_no_archive() {
    let (mut world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let images = [image(&world, "linux/amd64", "s1")];
    let path = dir.path().join("x.tar");
    world.blobs = crate::testing::Blobs::full_after(10);
    let output = format!("type=oci,dest={}", path.display());
    assert_eq!(run(&world, &images, &output, &[]).unwrap_err().kind, ErrorKind::NoSpace);
    let error = run(&world, &images, &format!("type=oci,dest={}", dir.path().display()), &[]).unwrap_err();
    world.blobs = crate::testing::Blobs::default();
    assert_eq!(error.kind, ErrorKind::NoSpace);
    world.cancel.cancel();
    assert_eq!(run(&world, &images, &output, &[]).unwrap_err().kind, ErrorKind::Cancelled);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    for (annotation, says) in
        [("annotation-index.a=1", "has none"), ("annotation[linux/s390x].a=1", "which is not built")]
    {
        world.cancel = rbuild_ports::CancelToken::new();
        let error = run(&world, &images, &format!("{output},{annotation}"), &[]).unwrap_err();
        assert!(error.message.contains(says), "{error}");
    }
}
