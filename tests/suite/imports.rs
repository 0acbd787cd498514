//! Caches from elsewhere: what BuildKit exported makes every step a hit in an empty store, and no layer is read for it.

use std::fs;
use std::path::{Path, PathBuf};

use rbuild::{BuildRequest, CacheFrom};
use rbuild_testkit::registry::TestRegistry;
use rbuild_testkit::space::Space;
use serde_json::Value;

use crate::buildkit::{base, read_json, request_of};
use crate::common::{Built, build, data, require_root};

const PROJECTS: [&str; 4] = ["linear", "copy", "stages", "mounts"];

/// A cache or an image that BuildKit wrote, whole: test data has the base's layer only once.
pub(crate) fn recorded(space: &Space, project: &str, cache: &str) -> PathBuf {
    let to = space.path(&format!("{project}-{cache}"));
    let from = data("buildkit").join(project).join(cache);
    fs::create_dir_all(to.join("blobs/sha256")).expect("a directory of the test");
    for dir in [from.join("blobs/sha256"), data("buildkit/base/blobs/sha256")] {
        for entry in fs::read_dir(dir).expect("test data").flatten() {
            fs::copy(entry.path(), to.join("blobs/sha256").join(entry.file_name())).expect("a blob");
        }
    }
    for name in ["index.json", "oci-layout"] {
        fs::copy(from.join(name), to.join(name)).expect("a document");
    }
    to
}

/// Puts the image of a layout into a registry.
fn serve(layout: &Path, registry: &TestRegistry, repository: &str, tag: &str) {
    for entry in fs::read_dir(layout.join("blobs/sha256")).expect("blobs").flatten() {
        registry.put_blob(repository, fs::read(entry.path()).expect("a blob"));
    }
    let index = read_json(&layout.join("index.json"));
    let descriptor: &Value = &index["manifests"][0];
    let name = descriptor["digest"].as_str().expect("a digest").replace(':', "/");
    let bytes = fs::read(layout.join("blobs").join(name)).expect("the manifest");
    registry.put_manifest(repository, tag, descriptor["mediaType"].as_str().expect("a type"), bytes);
}

pub(crate) fn from(text: &str) -> Vec<CacheFrom> {
    CacheFrom::parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

pub(crate) fn local(dir: &Path) -> Vec<CacheFrom> {
    from(&format!("type=local,src={}", dir.display()))
}

/// Steps that ran.
#[track_caller]
fn assert_nothing_ran(built: &Built, what: &str) {
    let report = built.ok();
    assert_eq!(report.ran, 0, "{what}:\n{}", built.text());
    assert!(report.cached > 0, "{what}: nothing was found\n{}", built.text());
}

fn project(space: &Space, registry: &TestRegistry, name: &str) -> BuildRequest {
    request_of(space, registry, name, |text| text)
}

/// Requests for layers.
fn layers_read(registry: &TestRegistry) -> Vec<String> {
    let read = registry.requests().into_iter().filter(|request| request.method == "GET");
    let layer = |path: &str| {
        let digest = path.rsplit_once("/blobs/").and_then(|(_, digest)| digest.parse().ok());
        digest.and_then(|digest| registry.blob(&digest)).is_some_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]))
    };
    read.map(|request| request.path).filter(|path| layer(path)).collect()
}

/// BuildKit's keys are of linux/amd64.
fn able() -> bool {
    require_root() && cfg!(target_arch = "x86_64")
}

#[test]
fn every_step_is_in_a_cache_that_buildkit_exported() {
    if !able() {
        return;
    }
    for name in PROJECTS {
        for cache in ["cache-max", "cache-min"] {
            let (space, registry) = (Space::new(), base());
            let mut request = project(&space, &registry, name);
            request.cache_from = local(&recorded(&space, name, cache));
            assert_nothing_ran(&build(&space, &request), &format!("{name} {cache}"));
            assert_eq!(layers_read(&registry), [""; 0], "{name} {cache}");
            // Afterwards it is known here.
            request.cache_from = vec![];
            assert_nothing_ran(&build(&space, &request), &format!("{name} {cache}, again without"));
        }
    }
}

#[test]
fn every_step_is_in_an_image_with_an_inline_cache() {
    if !able() {
        return;
    }
    for name in PROJECTS {
        let (space, registry) = (Space::new(), base());
        let mut request = project(&space, &registry, name);
        serve(&recorded(&space, name, "inline"), &registry, "user/app", "latest");
        registry.clear_log();
        request.cache_from = from(&format!("{}/user/app", registry.host()));
        assert_nothing_ran(&build(&space, &request), name);
        assert_eq!(layers_read(&registry), [""; 0], "{name}");
    }
}
