//! Images resolved through the `Sources` port: platforms, what is remembered, strange documents, layouts.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Read;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_ports::{
    CancelToken, ErrorKind, ImageRequest, ImageSelector, ResolveMode, ResolvedImage, Result, Sources,
};
use rbuild_source::{HostSources, Limits, Registry, RegistryOptions, SourceOptions};
use rbuild_testkit::registry::{Fault, TestImage, TestRegistry};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Build {
    sources: HostSources,
    warnings: Arc<Mutex<Vec<String>>>,
}

fn build(state: Option<&Path>) -> Build {
    let mut registry = RegistryOptions::anonymous();
    registry.limits = Limits {
        attempts: 2,
        backoff: Duration::from_millis(1),
        stall_timeout: Duration::from_secs(2),
        ..Limits::default()
    };
    let mut options = SourceOptions::new(state.map(Path::to_owned), Registry::new(registry));
    let warnings: Arc<Mutex<Vec<String>>> = Arc::default();
    let sink = warnings.clone();
    options.warn = Arc::new(move |text| sink.lock().unwrap().push(text.to_owned()));
    Build { sources: HostSources::new(options), warnings }
}

impl Build {
    fn resolve_as(&self, name: &str, platform: &str, mode: ResolveMode) -> Result<ResolvedImage> {
        let request = ImageRequest {
            image: ImageSelector::Registry(name.parse().unwrap()),
            platform: platform.parse().unwrap(),
        };
        self.sources.resolve_image(&request, mode, &CancelToken::new())
    }

    fn resolve(&self, name: &str, platform: &str) -> Result<ResolvedImage> {
        self.resolve_as(name, platform, ResolveMode::Default)
    }

    fn layout(
        &self,
        path: &Path,
        tag: Option<&str>,
        digest: Option<Digest>,
        platform: &str,
    ) -> Result<ResolvedImage> {
        let image = ImageSelector::OciLayout { path: path.to_owned(), tag: tag.map(str::to_owned), digest };
        let request = ImageRequest { image, platform: platform.parse().unwrap() };
        self.sources.resolve_image(&request, ResolveMode::Default, &CancelToken::new())
    }
}

fn name(server: &TestRegistry, rest: &str) -> String {
    format!("{}/{rest}", server.host())
}

#[test]
fn the_platform_decides() {
    let server = TestRegistry::start();
    let amd = server.put_image("a/b", "amd", "amd64", &[b"amd layer".to_vec()]);
    let arm = server.put_image("a/b", "arm", "arm64", &[b"arm layer".to_vec()]);
    let index = server.put_index("a/b", "v1", &[("linux/amd64", &amd), ("linux/arm64", &arm)]);
    let build = build(None);
    for (platform, image) in [("linux/amd64", &amd), ("linux/arm64/v8", &arm)] {
        let resolved = build.resolve(&name(&server, "a/b:v1"), platform).unwrap();
        assert_eq!((resolved.digest, resolved.manifest), (index, image.manifest));
        assert_eq!(resolved.platform, platform.parse().unwrap());
        let layer = &resolved.layers[0];
        assert_eq!((layer.diff_id, layer.remote.descriptor.digest), (image.layers[0], image.layers[0]));
        assert_eq!(layer.remote.location, name(&server, "a/b"));
        assert_eq!(resolved.config.config.env, ["PATH=/bin"]);
        let mut content = String::new();
        let mut blob = build.sources.fetch_blob(&layer.remote, &CancelToken::new()).unwrap();
        blob.read_to_string(&mut content).unwrap();
        assert!(content.ends_with(" layer"));
    }
    // One build asks for a tag once, whatever the platforms.
    let asked = server.lines().into_iter().filter(|line| line.ends_with("/v1")).count();
    assert_eq!(asked, 1, "{:?}", server.lines());
    let error = build.resolve(&name(&server, "a/b:v1"), "linux/s390x").unwrap_err();
    assert_eq!(error.to_string(), format!("{}/a/b:v1 has no image for linux/s390x", server.host()));
    assert!(error.help.unwrap().contains("it has linux/amd64, linux/arm64; choose with --platform"));
    // A single image is taken as it is.
    let single = build.resolve(&name(&server, "a/b:amd"), "linux/arm64").unwrap();
    assert_eq!((single.digest, single.platform.to_string()), (amd.manifest, "linux/amd64".to_owned()));
}

#[test]
fn indexes_in_indexes_and_without_labels() {
    let server = TestRegistry::start();
    let amd = server.put_image("a/b", "amd", "amd64", &[]);
    let arm = server.put_image("a/b", "arm", "arm64", &[]);
    server.put_index("a/b", "plain", &[("", &arm), ("", &amd)]);
    let build = build(None);
    assert_eq!(build.resolve(&name(&server, "a/b:plain"), "linux/amd64").unwrap().manifest, amd.manifest);
    let inner = server.put_index("a/b", "inner", &[("linux/amd64", &amd)]);
    let size = server.manifest("a/b", "inner").unwrap().len();
    let wrap = |digest: Digest, size: usize| {
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{INDEX}","digest":"{digest}","size":{size}}}]}}"#
        )
    };
    let outer = server.put_manifest("a/b", "outer", INDEX, wrap(inner, size));
    let resolved = build.resolve(&name(&server, "a/b:outer"), "linux/amd64").unwrap();
    assert_eq!((resolved.digest, resolved.manifest), (outer, amd.manifest));
    let (mut digest, mut size) = (inner, size);
    for _ in 0..6 {
        let text = wrap(digest, size);
        size = text.len();
        digest = server.put_manifest("a/b", "deep", INDEX, text);
    }
    let error = build.resolve(&name(&server, "a/b:deep"), "linux/amd64").unwrap_err();
    assert!(error.to_string().contains("indexes in each other"), "{error}");
}

#[test]
fn a_cached_build_asks_one_head() {
    let server = TestRegistry::start();
    let state = tempfile::tempdir().unwrap();
    let image = server.put_image("a/b", "v1", "amd64", &[]);
    let index = server.put_index("a/b", "v1", &[("linux/amd64", &image)]);
    let first = build(Some(state.path())).resolve(&name(&server, "a/b:v1"), "linux/amd64").unwrap();
    let config = format!("GET /v2/a/b/blobs/{}", image.config);
    let manifest = format!("GET /v2/a/b/manifests/{}", image.manifest);
    assert_eq!(server.lines(), ["GET /v2/a/b/manifests/v1".to_owned(), manifest, config]);
    server.clear_log();
    let again = build(Some(state.path()));
    assert_eq!(again.resolve(&name(&server, "a/b:v1"), "linux/amd64").unwrap(), first);
    assert_eq!(again.resolve(&name(&server, "a/b:v1"), "linux/amd64").unwrap(), first);
    assert_eq!(server.lines(), ["HEAD /v2/a/b/manifests/v1"]);
    // Pinned by digest, nobody is asked.
    server.clear_log();
    let pinned =
        build(Some(state.path())).resolve(&name(&server, &format!("a/b:v1@{index}")), "linux/amd64").unwrap();
    assert_eq!(pinned.layers, first.layers);
    assert!(server.lines().is_empty());
    // The tag moves: the next build sees it, and damage is healed by asking.
    let other = server.put_image("a/b", "v1", "amd64", &[b"new".to_vec()]);
    for entry in std::fs::read_dir(state.path().join("images-meta")).unwrap().flatten() {
        if entry.path().is_file() {
            std::fs::write(entry.path(), "damaged").unwrap();
        }
    }
    let moved = build(Some(state.path())).resolve(&name(&server, "a/b:v1"), "linux/amd64").unwrap();
    assert_eq!(moved.manifest, other.manifest);
}

#[test]
fn without_the_network_the_last_answer_holds_with_a_warning() {
    let server = TestRegistry::start();
    let state = tempfile::tempdir().unwrap();
    server.put_image("a/b", "v1", "amd64", &[]);
    let image = name(&server, "a/b:v1");
    let first = build(Some(state.path())).resolve(&image, "linux/amd64").unwrap();
    server.fail("HEAD", "manifests", 2, Fault::Status(503, vec![], String::new()));
    let offline = build(Some(state.path()));
    assert_eq!(offline.resolve(&image, "linux/amd64").unwrap(), first);
    drop(server);
    let offline = build(Some(state.path()));
    assert_eq!(offline.resolve(&image, "linux/amd64").unwrap(), first);
    let warnings = offline.warnings.lock().unwrap().clone();
    assert_eq!(warnings.len(), 1);
    assert!(warnings[0].contains("refused the connection"), "{warnings:?}");
    assert!(warnings[0].ends_with(&format!("going on with {image} as it was last time: {}", first.digest)));
    // Not for --pull, not for what was never here.
    let error = build(Some(state.path())).resolve_as(&image, "linux/amd64", ResolveMode::Pull).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Network);
    let error = build(Some(state.path())).resolve(&image.replace("v1", "v2"), "linux/amd64").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Network);
}

#[test]
fn many_ask_once() {
    let server = TestRegistry::start();
    server.put_image("a/b", "v1", "amd64", &[]);
    let build = build(None);
    let image = name(&server, "a/b:v1");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| build.resolve(&image, "linux/amd64").unwrap());
        }
    });
    assert_eq!(server.lines().len(), 2);
}

#[test]
fn strange_documents_are_refused() {
    let server = TestRegistry::start();
    let image = server.put_image("a/b", "good", "amd64", &[b"x".to_vec()]);
    let text = String::from_utf8(image.manifest_bytes.clone()).unwrap();
    let layer = image.layers[0].to_string();
    let config = image.config.to_string();
    let put = |tag: &str, media_type: &str, text: &str| server.put_manifest("a/b", tag, media_type, text);
    put("both", MANIFEST, &text.replacen("\"layers\"", "\"manifests\":[],\"layers\"", 1));
    put("contradiction", INDEX, &text);
    put("schema1", "application/vnd.docker.distribution.manifest.v1+json", r#"{"schemaVersion":1}"#);
    put("garbage", MANIFEST, "{");
    put("traversal", MANIFEST, &text.replace(&layer, "sha256:../../../../etc/passwd"));
    put("upper", MANIFEST, &text.replace(&layer, &layer.to_uppercase().replace("SHA256", "sha256")));
    put("short", MANIFEST, &text.replace(&layer, &layer[..70]));
    put("negative", MANIFEST, &text.replace("\"size\":1}", "\"size\":-1}"));
    put("fewer-layers", MANIFEST, &format!("{}[]}}", text.split("[{").next().unwrap()));
    put(
        "chart",
        MANIFEST,
        &text.replace("image.config.v1", "cncf.helm.config.v1").replace("layer.v1.tar", "chart"),
    );
    put("no-config", MANIFEST, &text.replace(&config, &Digest::of("gone").to_string()));
    let big = format!(
        r#""config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":99999999}}"#
    );
    let start = text.find("\"config\"").unwrap();
    let end = text.find(",\"layers\"").unwrap();
    put("big-config", MANIFEST, &format!("{}{big}{}", &text[..start], &text[end..]));
    for (tag, kind, words) in [
        ("both", ErrorKind::Invalid, "both layers and manifests"),
        ("contradiction", ErrorKind::Invalid, "contradicts the media type"),
        ("schema1", ErrorKind::Invalid, "schema version 1"),
        ("garbage", ErrorKind::Invalid, "malformed image manifest"),
        ("traversal", ErrorKind::Invalid, "invalid digest"),
        ("upper", ErrorKind::Invalid, "invalid digest"),
        ("short", ErrorKind::Invalid, "invalid digest"),
        ("negative", ErrorKind::Invalid, "malformed image manifest"),
        ("fewer-layers", ErrorKind::Corrupt, "lists 1 layers and its manifest 0"),
        ("chart", ErrorKind::Invalid, "is no container image"),
        ("no-config", ErrorKind::NotFound, "has no such thing"),
        ("big-config", ErrorKind::Invalid, "more than the 8388608 allowed"),
    ] {
        let error = build(None).resolve(&name(&server, &format!("a/b:{tag}")), "linux/amd64").unwrap_err();
        assert_eq!(error.kind, kind, "{tag}: {error}");
        assert!(error.to_string().contains(words), "{tag}: {error}");
    }
    let lines = server.lines();
    assert!(lines.iter().all(|line| !line.contains("passwd")), "{lines:?}");
}

#[test]
fn strange_configs_are_refused() {
    let server = TestRegistry::start();
    let deep = "[".repeat(100_000);
    for (config, works) in [
        (r#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]},"history":null}"#.to_owned(), true),
        (r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#.to_owned(), true),
        (deep, false),
        ("null".to_owned(), false),
        (r#"{"rootfs":{"diff_ids":[1e400]}}"#.to_owned(), false),
        (r#"{"config":{"Env":"x"}}"#.to_owned(), false),
    ] {
        let digest = server.put_blob("a/b", config.clone());
        let size = config.len();
        let text = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{digest}","size":{size}}},"layers":[]}}"#
        );
        server.put_manifest("a/b", "v1", MANIFEST, text);
        let outcome = build(None).resolve(&name(&server, "a/b:v1"), "linux/amd64");
        assert_eq!(outcome.is_ok(), works, "{}", config.chars().take(50).collect::<String>());
    }
}

/// Writes what a registry has as a layout.
fn write_layout(server: &TestRegistry, dir: &Path, images: &[(&str, &TestImage)]) {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let mut entries = vec![];
    for (tag, image) in images {
        std::fs::write(blobs.join(image.manifest.hex()), &image.manifest_bytes).unwrap();
        for digest in image.layers.iter().chain([&image.config]) {
            std::fs::write(blobs.join(digest.hex()), server.blob(digest).unwrap().as_slice()).unwrap();
        }
        let annotations = if tag.is_empty() {
            String::new()
        } else {
            format!(r#","annotations":{{"org.opencontainers.image.ref.name":"{tag}"}}"#)
        };
        let (digest, size) = (image.manifest, image.manifest_bytes.len());
        entries
            .push(format!(r#"{{"mediaType":"{MANIFEST}","digest":"{digest}","size":{size}{annotations}}}"#));
    }
    std::fs::write(
        dir.join("index.json"),
        format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, entries.join(",")),
    )
    .unwrap();
}

#[test]
fn layouts_by_tag_and_digest() {
    let server = TestRegistry::start();
    let one = server.put_image("a", "1", "amd64", &[b"one".to_vec()]);
    let two = server.put_image("a", "2", "amd64", &[b"two".to_vec()]);
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    write_layout(&server, dir, &[("v1", &one), ("docker.io/library/x:v2", &two)]);
    let build = build(None);
    let first = build.layout(dir, Some("v1"), None, "linux/amd64").unwrap();
    assert_eq!((first.digest, first.manifest), (one.manifest, one.manifest));
    let mut content = String::new();
    let mut blob = build.sources.fetch_blob(&first.layers[0].remote, &CancelToken::new()).unwrap();
    blob.read_to_string(&mut content).unwrap();
    assert_eq!(content, "one");
    assert_eq!(build.layout(dir, Some("v2"), None, "linux/amd64").unwrap().manifest, two.manifest);
    assert_eq!(build.layout(dir, None, Some(two.manifest), "linux/amd64").unwrap().manifest, two.manifest);
    let error = build.layout(dir, Some("v3"), None, "linux/amd64").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.help.unwrap().contains("v1"));
    assert!(build.layout(dir, None, None, "linux/amd64").is_err());
    write_layout(&server, dir, &[("v1", &one)]);
    assert_eq!(self::build(None).layout(dir, None, None, "linux/amd64").unwrap().manifest, one.manifest);
    // Damage and what is no layout.
    std::fs::write(dir.join("blobs/sha256").join(one.config.hex()), "damaged").unwrap();
    let error = self::build(None).layout(dir, Some("v1"), None, "linux/amd64").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    std::fs::write(dir.join("blobs/sha256").join(one.layers[0].hex()), "longer than it was").unwrap();
    let error = build.sources.fetch_blob(&first.layers[0].remote, &CancelToken::new()).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Corrupt);
    for missing in ["index.json", "oci-layout"] {
        std::fs::remove_file(dir.join(missing)).unwrap();
        let error = self::build(None).layout(dir, Some("v1"), None, "linux/amd64").unwrap_err();
        assert!(error.to_string().contains(missing), "{error}");
    }
    let error = build.layout(Path::new("/no/such"), None, None, "linux/amd64").unwrap_err();
    assert_eq!(error.to_string(), "there is no directory /no/such");
}

#[test]
fn layouts_made_by_other_tools() {
    // skopeo writes layouts, if it is here.
    let server = TestRegistry::start();
    server.put_image("a/b", "v1", "amd64", &[b"layer".to_vec()]);
    let dir = tempfile::tempdir().unwrap();
    let target = format!("oci:{}:tagged", dir.path().join("layout").display());
    let source = format!("docker://{}", name(&server, "a/b:v1"));
    let policy = dir.path().join("policy.json");
    std::fs::write(&policy, r#"{"default":[{"type":"insecureAcceptAnything"}]}"#).unwrap();
    let outcome = std::process::Command::new("skopeo")
        .args(["copy", "--quiet", "--src-tls-verify=false", "--policy"])
        .arg(&policy)
        .args([&source, &target])
        .output();
    match outcome {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            // Older versions know --policy only before the command.
            println!("skipped: skopeo: {}", String::from_utf8_lossy(&output.stderr));
            return;
        }
        Err(error) => {
            println!("skipped: skopeo: {error}");
            return;
        }
    }
    let resolved =
        build(None).layout(&dir.path().join("layout"), Some("tagged"), None, "linux/amd64").unwrap();
    assert_eq!(resolved.layers.len(), 1);
}
