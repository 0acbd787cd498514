//! Exported caches: what they say is what BuildKit's say, and from them another store builds the same with as little work as
//! there can be.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rbuild::{BuildRequest, CacheTo};
use rbuild_cache_remote::{CacheConfig, RemoteDocument, inline_config, read_document};
use rbuild_digest::Digest;
use rbuild_testkit::fixture::make_tree;
use rbuild_testkit::normalize::Times;
use rbuild_testkit::registry::{Fault, TestRegistry};
use rbuild_testkit::space::Space;
use serde_json::Value;

use crate::buildkit::{base, read_json, request_of};
use crate::common::{
    Built, assert_same_lines, build, data, image_of, output, request, require_root, require_sandbox,
};
use crate::imports::{from, local};

/// Two build stages and a small final one.
const APP: &str = "FROM BASE AS deps\nRUN echo deps > /deps\n\
    FROM deps AS build\nCOPY src /src\nRUN cat /src/* /deps > /out\n\
    FROM BASE AS lint\nCOPY src /src\nRUN cat /src/a > /lint\n\
    FROM scratch\nCOPY --from=build /out /out\nCOPY --from=lint /lint /lint\nCOPY note /note\n";
pub(crate) const TREE: &str = "f src/a 644 one\nf src/b 644 two\nf note 644 note";

pub(crate) fn to(text: &str) -> Vec<CacheTo> {
    vec![text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))]
}

pub(crate) fn to_dir(dir: &Path, more: &str) -> Vec<CacheTo> {
    to(&format!("type=local,dest={}{more}", dir.display()))
}

pub(crate) fn able() -> bool {
    require_root() && require_sandbox()
}

/// The manifest and the config of a cache in a layout.
pub(crate) fn read_cache(dir: &Path) -> (Value, CacheConfig) {
    let blob = |digest: &Digest| fs::read(dir.join("blobs/sha256").join(digest.hex())).expect("a blob");
    let index = read_json(&dir.join("index.json"));
    let manifest =
        blob(&index["manifests"][0]["digest"].as_str().expect("a digest").parse().expect("a digest"));
    let RemoteDocument::Cache(cache) = read_document(&manifest, "").expect("a manifest") else {
        panic!("no cache")
    };
    for layer in &cache.layers {
        let stored = dir.join("blobs/sha256").join(layer.digest.hex());
        assert!(dir.starts_with(data("")) || stored.exists(), "layer {} is missing", layer.digest);
    }
    let config = CacheConfig::parse(&blob(&cache.config.digest)).expect("a config");
    (serde_json::from_slice(&manifest).expect("JSON"), config)
}

/// Records and links by what they are, and of results how many layers they have and whose they are: which other records'
/// layers they begin with.
fn described(config: &CacheConfig) -> BTreeSet<String> {
    let mut out = BTreeSet::new();
    let mut tops: BTreeMap<Vec<Digest>, Digest> = BTreeMap::new();
    for record in &config.records {
        for result in &record.results {
            tops.insert(config.blobs(result).expect("layers"), record.digest.expect("a digest"));
        }
    }
    for record in &config.records {
        let digest = record.digest.expect("a digest");
        out.insert(format!("record {digest}"));
        for (input, links) in record.inputs.iter().enumerate() {
            for link in links {
                let source = config.records[link.record].digest.expect("a digest");
                out.insert(format!("{digest} input {input} from {source} selector {:?}", link.selector));
            }
        }
        for result in &record.results {
            let blobs = config.blobs(result).expect("layers");
            let below: Vec<String> =
                (1..blobs.len()).filter_map(|n| tops.get(&blobs[..n])).map(ToString::to_string).collect();
            out.insert(format!("{digest} has a result of {} layers on {below:?}", blobs.len()));
        }
    }
    out
}

#[track_caller]
fn assert_same_cache(recorded: &CacheConfig, own: &CacheConfig, what: &str) {
    let text = |config| described(config).into_iter().map(|line| format!("{line}\n")).collect::<String>();
    assert_same_lines(&text(recorded), &text(own), &format!("{what}: the cache differs from BuildKit's (-)"));
}

#[test]
fn exports_say_what_those_of_buildkit_say() {
    if !able() || !cfg!(target_arch = "x86_64") {
        return;
    }
    for project in ["linear", "copy", "stages", "mounts"] {
        let (space, registry) = (Space::new(), base());
        let mut request = request_of(&space, &registry, project, |text| text);
        let (max, min) = (space.path("max"), space.path("min"));
        request.cache_to = [to_dir(&max, ",mode=max"), to_dir(&min, "")].concat();
        build(&space, &request).ok();
        for (dir, name) in [(&max, "cache-max"), (&min, "cache-min")] {
            let (recorded, own) = (read_cache(&data("buildkit").join(project).join(name)), read_cache(dir));
            assert_same_cache(&recorded.1, &own.1, &format!("{project} {name}"));
            assert_eq!(recorded.0["mediaType"], own.0["mediaType"]);
            assert_eq!(recorded.0["config"]["mediaType"], own.0["config"]["mediaType"]);
            let keys = |manifest: &Value| {
                let layers = manifest["layers"].as_array().expect("layers");
                // What the cache tells of its build is no layer.
                let layer = |it: &&Value| it["annotations"].get("rbuild/notes").is_none();
                let mut layer = layers.iter().find(layer).expect("a layer").clone();
                layer["annotations"].as_object_mut().expect("annotations").remove("rbuild/exportedat");
                format!(
                    "{:?} {:?}",
                    layer.as_object().map(|it| it.keys().collect::<Vec<_>>()),
                    layer["annotations"].as_object().map(|it| it.keys().collect::<Vec<_>>())
                )
            };
            assert_eq!(keys(&recorded.0), keys(&own.0));
        }
        // A cached build exports the same as the one that made everything.
        let again = space.path("again");
        request.cache_to = to_dir(&again, ",mode=max");
        let built = build(&space, &request);
        assert_eq!(built.ok().ran, 0);
        assert_same_cache(&read_cache(&max).1, &read_cache(&again).1, &format!("{project}, cached"));
        assert_eq!(read_cache(&max).1.to_json(), read_cache(&again).1.to_json());
    }
}

#[test]
fn inline_caches_say_what_those_of_buildkit_say() {
    if !able() || !cfg!(target_arch = "x86_64") {
        return;
    }
    for project in ["linear", "copy", "stages", "mounts"] {
        let (space, registry) = (Space::new(), base());
        let mut request = request_of(&space, &registry, project, |text| text);
        request.cache_to = to("type=inline");
        let (built, image) = image_of(&space, request);
        built.ok();
        let inline = |config: &Value| {
            let layers = config["rootfs"]["diff_ids"].as_array().expect("layers").len();
            let blobs: Vec<Digest> = (0..layers).map(|at| Digest::of(at.to_string())).collect();
            inline_config(config["moby.buildkit.cache.v0"].as_str().expect("a cache"), &blobs)
                .expect("records")
        };
        let dir = data("buildkit").join(project).join("inline");
        let blob = |digest: &Value| {
            let name = digest.as_str().expect("a digest").replace(':', "/");
            read_json(&dir.join("blobs").join(name))
        };
        let manifest = blob(&read_json(&dir.join("index.json"))["manifests"][0]["digest"]);
        let recorded = inline(&blob(&manifest["config"]["digest"]));
        assert_same_cache(&recorded, &inline(&image.expect("it was built").config), project);
    }
}

/// An app in a space of its own.
pub(crate) fn app(space: &Space) -> BuildRequest {
    make_tree(&space.context(), TREE);
    request(space, APP)
}

/// What was read of a repository's blobs since the log was cleared, without configs.
pub(crate) fn layers_read(registry: &TestRegistry, repository: &str) -> BTreeSet<String> {
    let prefix = format!("/v2/{repository}/blobs/");
    let read = registry.requests().into_iter().filter(|request| request.method == "GET");
    let digests = read.filter_map(|request| request.path.strip_prefix(&prefix).map(str::to_owned));
    let layer = |digest: &String| {
        let digest = digest.parse().expect("a digest");
        registry.blob(&digest).is_some_and(|bytes| bytes.starts_with(&[0x1f, 0x8b]))
    };
    digests.filter(layer).collect()
}

/// Builds the app in a store of its own and exports it to the registry; gives its files.
fn exported(registry: &TestRegistry, cache: &str) -> String {
    let space = Space::new();
    let mut request = app(&space);
    request.cache_to = to(&cache.replace("HOST", &registry.host()));
    let (built, image) = image_of(&space, request);
    built.ok();
    assert_eq!(built.warnings, [""; 0]);
    registry.clear_log();
    image.expect("it was built").rootfs().listing(Times::Hidden)
}

fn steps(built: &Built, part: &str) -> Vec<String> {
    built.ok();
    built.steps.iter().filter(|step| step.contains(part)).cloned().collect()
}

#[test]
fn with_max_another_store_finds_everything_and_reads_only_the_final_stage() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let files = exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    let built = build(&space, &request);
    assert_eq!(built.ok().ran, 0, "{}", built.text());
    assert_eq!(layers_read(&registry, "app").len(), 0);
    let (built, image) = image_of(&space, request);
    assert_eq!(built.ok().ran, 0, "{}", built.text());
    assert_eq!(image.expect("it was built").rootfs().listing(Times::Hidden), files);
    assert_eq!(layers_read(&registry, "app").len(), 3, "the final stage has three layers");
}

#[test]
fn with_min_only_the_final_stage_is_there() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let files = exported(&registry, "type=registry,ref=HOST/app:cache");
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    let (built, image) = image_of(&space, request.clone());
    assert_eq!(built.ok().ran, 0, "{}", built.text());
    assert_eq!(image.expect("it was built").rootfs().listing(Times::Hidden), files);
    // Whoever needs a build stage has to make it.
    let other = Space::new();
    let mut stage = app(&other);
    stage.cache_from = request.cache_from;
    stage.target = Some("build".to_owned());
    let built = build(&other, &stage);
    assert_eq!(
        steps(&built, "RUN").iter().filter(|step| step.contains(": ran")).count(),
        2,
        "{}",
        built.text()
    );
}

#[test]
fn an_image_with_an_inline_cache_serves_as_one() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let first = Space::new();
    let mut request = app(&first);
    request.cache_to = to("type=inline");
    request.outputs = vec![output(&format!("type=registry,name={}/app:1", registry.host()))];
    build(&first, &request).ok();
    registry.clear_log();
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = from(&format!("{}/app:1", registry.host()));
    let built = build(&space, &request);
    assert_eq!(built.ok().ran, 0, "{}", built.text());
    assert_eq!(layers_read(&registry, "app").len(), 0);
}

#[test]
fn after_a_change_only_what_follows_it_runs() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    let space = Space::new();
    let mut request = app(&space);
    space.write("src/b", "changed");
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    let (built, image) = image_of(&space, request.clone());
    built.ok();
    assert_eq!(
        built.text(),
        "[build 1/2] COPY src /src: ran, not in the cache\n[build 2/2] RUN cat /src/* /deps > /out: ran, not in the cache\n\
        [deps 2/2] RUN echo deps > /deps: cached\n\
        [lint 2/3] COPY src /src: ran, not in the cache\n[lint 3/3] RUN cat /src/a > /lint: ran, not in the cache\n\
        [stage-3 1/3] COPY --from=build /out /out: ran, not in the cache\n\
        [stage-3 2/3] COPY --from=lint /lint /lint: ran, not in the cache\n\
        [stage-3 3/3] COPY note /note: ran, not in the cache\n"
    );
    let clean = Space::new();
    let mut fresh = app(&clean);
    clean.write("src/b", "changed");
    fresh.cache_from = vec![];
    let (_, cold) = image_of(&clean, fresh);
    let files = |image: Option<rbuild_testkit::images::Image>| {
        image.expect("an image").rootfs().listing(Times::Hidden)
    };
    assert_eq!(files(image), files(cold));
}

/// Makes all layers of a cache but the base's unreadable.
fn break_layers(registry: &TestRegistry, fault: &Fault) {
    let manifest: Value =
        serde_json::from_slice(&registry.manifest("app", "cache").expect("a cache")).expect("JSON");
    for layer in manifest["layers"].as_array().expect("layers") {
        registry.fail("GET", layer["digest"].as_str().expect("a digest"), 100, fault.clone());
    }
}

#[test]
fn layers_that_are_gone_or_damaged_are_made_again() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let files = exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    break_layers(&registry, &Fault::Status(404, vec![], String::new()));
    let import = || from(&format!("{}/app:cache", registry.host()));
    // Needed by a step.
    let space = Space::new();
    let mut request = app(&space);
    space.write("note", "new");
    request.cache_from = import();
    let (built, image) = image_of(&space, request);
    built.ok();
    assert!(
        steps(&built, "RUN").iter().all(|step| step.contains("ran, its layers are lost")),
        "{}",
        built.text()
    );
    assert_eq!(image.expect("it was built").rootfs().paths().len(), files.lines().count());
    // Needed by the output.
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = import();
    let (built, image) = image_of(&space, request);
    built.ok();
    assert_eq!(image.expect("it was built").rootfs().listing(Times::Hidden), files);
    assert!(built.warnings.iter().any(|warning| warning.contains("run again")), "{:?}", built.warnings);
    // Afterwards it is here.
    let (again, _) = image_of(&space, app(&space));
    assert_eq!(again.ok().ran, 0, "{}", again.text());
}

/// A step of this build put the layers of cached ones together, and two others find out at once that one is gone.
#[test]
fn linked_layers_that_are_gone_are_made_again() {
    if !able() {
        return;
    }
    let text = "FROM BASE AS libs\nCOPY --link src /src\nCOPY --link note /note\n\
        FROM libs AS one\nRUN cat /src/a /note > /one\n\
        FROM libs AS two\nRUN cat /src/b /note > /two\n\
        FROM scratch\nCOPY --from=one /one /\nCOPY --from=two /two /\n";
    let registry = TestRegistry::start();
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let mut first = request(&space, text);
    first.cache_to = to(&format!("type=registry,ref={}/app:cache,mode=max", registry.host()));
    build(&space, &first).ok();
    break_layers(&registry, &Fault::Status(404, vec![], String::new()));
    for _ in 0..4 {
        let space = Space::new();
        make_tree(&space.context(), TREE);
        space.write("note", " new");
        let mut changed = request(&space, text);
        changed.cache_from = from(&format!("{}/app:cache", registry.host()));
        let (built, image) = image_of(&space, changed);
        built.ok();
        let files = image.expect("it was built").rootfs();
        assert_eq!(files.listing(Times::Hidden).lines().count(), 2, "{}", built.text());
        assert!(steps(&built, "RUN").iter().all(|step| step.contains("ran")), "{}", built.text());
    }
}

#[test]
fn damaged_layers_are_found_out() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let files = exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    break_layers(&registry, &Fault::FlipBit);
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    let (built, image) = image_of(&space, request);
    built.ok();
    assert_eq!(image.expect("it was built").rootfs().listing(Times::Hidden), files);
}

#[test]
fn an_import_that_cannot_be_read_is_no_reason_to_stop() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    let manifest: Value =
        serde_json::from_slice(&registry.manifest("app", "cache").expect("a cache")).expect("JSON");
    let config = manifest["config"]["digest"].as_str().expect("a digest").to_owned();
    registry.fail("GET", &config, 1, Fault::FlipBit);
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = [
        from(&format!("{}/app:missing", registry.host())),
        local(&space.path("nowhere")),
        from(&format!("{}/app:cache", registry.host())),
        from(&crate::common::busybox()),
    ]
    .concat();
    let built = build(&space, &request);
    assert_eq!(built.ok().cached, 0, "{}", built.text());
    // The next one is read again.
    let space = Space::new();
    let built = build(&space, &BuildRequest { cache_from: request.cache_from, ..app(&space) });
    assert_eq!(built.ok().ran, 0, "{}", built.text());
}

#[test]
fn exporting_again_sends_nothing() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    exported(&registry, "type=registry,ref=HOST/app:cache,mode=max");
    let writes = |registry: &TestRegistry| {
        let lines = registry.lines();
        lines
            .into_iter()
            .filter(|line| line.starts_with("PUT") || line.starts_with("POST"))
            .collect::<Vec<_>>()
    };
    let space = Space::new();
    let mut request = app(&space);
    request.cache_from = from(&format!("{}/app:cache", registry.host()));
    request.cache_to = to(&format!("type=registry,ref={}/app:cache,mode=max", registry.host()));
    let built = build(&space, &request);
    assert_eq!((built.ok().ran, built.warnings.as_slice()), (0, &[][..]));
    assert_eq!(writes(&registry), [""; 0]);
    assert_eq!(layers_read(&registry, "app").len(), 0);
    // Another repository of the registry takes the layers over.
    request.cache_to = to(&format!("type=registry,ref={}/other:cache,mode=max", registry.host()));
    build(&space, &request).ok();
    assert_eq!(layers_read(&registry, "app").len(), 0);
    let mounts = registry.requests().into_iter().filter(|request| request.query.contains("mount=")).count();
    assert!(mounts >= 6, "{:#?}", registry.lines());
    let report = build(&space, &request);
    let report = report.ok();
    assert!(report.metadata_file(false).contains("\"cache.manifest\""), "{}", report.metadata_file(false));
}

#[test]
fn what_others_exported_to_the_same_place_stays() {
    if !able() {
        return;
    }
    let cache = Space::new();
    let dir = cache.path("cache");
    let branch = |note: &str| {
        let space = Space::new();
        let mut request = app(&space);
        space.write("src/a", note);
        request.cache_to = to_dir(&dir, ",mode=max");
        let built = build(&space, &request);
        built.ok();
        assert_eq!(built.warnings, [""; 0]);
    };
    branch("main");
    branch("feature");
    let finds = |note: &str| {
        let space = Space::new();
        let mut request = app(&space);
        space.write("src/a", note);
        request.cache_from = local(&dir);
        build(&space, &request).ok().ran
    };
    assert_eq!((finds("main"), finds("feature")), (0, 0));
    assert!(finds("other") > 0);
    // A name of its own in the same directory, and what no name needs goes.
    let space = Space::new();
    let mut request = app(&space);
    request.cache_to = to_dir(&dir, ",mode=max,merge=false");
    build(&space, &request).ok();
    assert!(finds("main") > 0 && finds("feature") > 0);
    assert_eq!(finds("one"), 0);
    let (manifest, _) = read_cache(&dir);
    let blobs = fs::read_dir(dir.join("blobs/sha256")).expect("blobs").count();
    assert_eq!(blobs, manifest["layers"].as_array().expect("layers").len() + 2);
}

#[test]
fn who_was_overwritten_by_another_writer_joins_both() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let branch = |note: &str| {
        let space = Space::new();
        let mut request = app(&space);
        space.write("src/a", note);
        request.cache_to = to(&format!("type=registry,ref={}/app:cache,mode=max", registry.host()));
        let built = build(&space, &request);
        built.ok();
        assert_eq!(built.warnings, [""; 0]);
    };
    let writes = || {
        let lines = registry.lines();
        lines.iter().filter(|line| line.starts_with("PUT") && line.contains("/manifests/")).count()
    };
    branch("main");
    registry.clear_log();
    // What is written is gone at once, as if the other had written over it.
    registry.fail("PUT", "/manifests/", 1, Fault::Status(201, vec![], String::new()));
    branch("feature");
    assert_eq!(writes(), 2);
    for note in ["main", "feature"] {
        let space = Space::new();
        let mut request = app(&space);
        space.write("src/a", note);
        request.cache_from = from(&format!("{}/app:cache", registry.host()));
        let built = build(&space, &request);
        assert_eq!(built.ok().ran, 0, "{note}:\n{}", built.text());
    }
}

#[test]
fn a_damaged_blob_of_the_store_is_made_again() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    let space = Space::new();
    let mut request = app(&space);
    request.cache_to = to_dir(&space.path("first"), ",mode=max");
    build(&space, &request).ok();
    let blobs = space.store().join("blobs");
    let mut damaged = 0;
    let mut dirs = vec![blobs];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).expect("the store").flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(mut bytes) = fs::read(&path)
                && bytes.starts_with(&[0x1f, 0x8b])
            {
                *bytes.last_mut().expect("a layer") ^= 1;
                fs::remove_file(&path).expect("a blob");
                fs::write(&path, bytes).expect("a blob");
                damaged += 1;
            }
        }
    }
    assert!(damaged > 3);
    let place = format!("type=registry,ref={}/app:cache,mode=max", registry.host());
    request.cache_to = [to_dir(&space.path("second"), ",mode=max"), to(&place)].concat();
    let built = build(&space, &request);
    built.ok();
    assert!(built.warnings.iter().all(|warning| warning.contains("made again")), "{:?}", built.warnings);
    let config = |name: &str| read_cache(&space.path(name)).1.to_json();
    assert_eq!(config("first"), config("second"));
    assert!(registry.manifest("app", "cache").is_some());
}

#[test]
fn a_failed_export_is_a_warning_unless_asked() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    registry.fail("PUT", "/manifests/", 100, Fault::Status(403, vec![], String::new()));
    let space = Space::new();
    let mut request = app(&space);
    let place = format!("type=registry,ref={}/app:cache", registry.host());
    request.cache_to = to(&place);
    let built = build(&space, &request);
    built.ok();
    assert!(
        built.warnings.iter().any(|it| it.contains("the cache was not exported to")),
        "{:?}",
        built.warnings
    );
    request.cache_to = to(&format!("{place},ignore-error=false"));
    assert!(build(&space, &request).result.is_err());
    let file = space.path("file");
    fs::write(&file, "").expect("a file");
    request.cache_to = to_dir(&file, "");
    build(&space, &request).ok();
    // Nothing to write it into.
    request.cache_to = to("type=inline");
    let built = build(&space, &request);
    assert!(
        built.warnings.iter().any(|it| it.contains("inline cache was not written")),
        "{:?}",
        built.warnings
    );
    // Nothing to export.
    let empty = crate::common::request(&space, "FROM scratch\nLABEL a=b");
    request = BuildRequest { cache_to: to_dir(&space.path("empty"), ""), ..empty };
    let built = build(&space, &request);
    assert_eq!(built.ok().cache_manifest, None);
    assert!(built.warnings.iter().any(|it| it.contains("empty result")), "{:?}", built.warnings);
}

#[test]
fn other_forms_and_compressions_are_found_too() {
    if !able() {
        return;
    }
    let registry = TestRegistry::start();
    for (tag, more) in [
        ("index", "image-manifest=false"),
        ("docker", "oci-mediatypes=false"),
        ("zstd", "compression=zstd,force-compression=true"),
        ("plain", "compression=uncompressed,force-compression=true"),
    ] {
        exported(&registry, &format!("type=registry,ref=HOST/app:{tag},mode=max,{more}"));
        let space = Space::new();
        let mut request = app(&space);
        request.cache_from = from(&format!("{}/app:{tag}", registry.host()));
        let (built, image) = image_of(&space, request);
        assert_eq!(built.ok().ran, 0, "{tag}: {}", built.text());
        assert_eq!(image.expect("it was built").rootfs().paths(), ["/lint", "/note", "/out"], "{tag}");
    }
}
