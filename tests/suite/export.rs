//! Every output read again: by the harness, which shares no code with the exporter, and by other programs.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::{Child, Command, Stdio};

use rbuild_testkit::fixture::{have, make_tree, run};
use rbuild_testkit::images::{files, read};
use rbuild_testkit::normalize::{Rootfs, Times};
use rbuild_testkit::space::Space;

use crate::common::{assert_same_lines, build, note, output, registry, request, require_root};

const TREE: &str = "f a 644 one\nf d/b 4755 two\nl d/link b\nh d/hard d/b\nd d/e 1777\nf del 644 gone";
const DOCKERFILE: &str =
    "FROM scratch\nCOPY . /x/\nCOPY --chown=5:6 a /owned/a\nENV KEY=value\nCMD [\"/x/d/b\"]\nLABEL l=v\n";
const EXPECTED: &str = "/owned d 0755 5:6
/owned/a f 0644 5:6 \"one\"
/x d 0755 0:0
/x/a f 0644 0:0 \"one\"
/x/d d 0755 0:0
/x/d/b f 4755 0:0 \"two\"
/x/d/e d 1777 0:0
/x/d/hard f 4755 0:0 \"two\" = /x/d/b
/x/d/link l 0777 0:0 -> b
/x/del f 0644 0:0 \"gone\"
";

/// A space with one build's outputs; `{}` in a spec is the space's directory.
fn space_with(outputs: &[&str], names: &[&str]) -> Option<Space> {
    if !require_root() {
        return None;
    }
    let space = Space::new();
    make_tree(&space.context(), TREE);
    let mut request = request(&space, DOCKERFILE);
    let dir = space.root().display().to_string();
    request.outputs = outputs.iter().map(|spec| output(&spec.replace("{}", &dir))).collect();
    request.tags = names.iter().map(|name| name.parse().expect("a name")).collect();
    build(&space, &request).ok();
    Some(space)
}

#[test]
fn oci_archives_of_every_compression() {
    for (compression, media_type) in [
        ("gzip", "application/vnd.oci.image.layer.v1.tar+gzip"),
        ("zstd", "application/vnd.oci.image.layer.v1.tar+zstd"),
        ("uncompressed", "application/vnd.oci.image.layer.v1.tar"),
    ] {
        let Some(space) = space_with(&[&format!("type=oci,compression={compression},dest={{}}/i.tar")], &[])
        else {
            return;
        };
        let image = read(&space.path("i.tar"));
        assert_eq!(image.manifest["layers"][0]["mediaType"], media_type);
        assert_same_lines(EXPECTED, &image.rootfs().listing(Times::Hidden), compression);
        assert_eq!(image.config["config"]["Env"][1], "KEY=value");
        assert_eq!(image.config["config"]["Cmd"][0], "/x/d/b");
        assert_eq!(image.config["config"]["Labels"]["l"], "v");
    }
}

#[test]
fn layout_directories() {
    let Some(space) = space_with(&["type=oci,tar=false,dest={}/layout"], &[]) else { return };
    assert_same_lines(EXPECTED, &read(&space.path("layout")).rootfs().listing(Times::Hidden), "layout");
}

#[test]
fn docker_archives() {
    let Some(space) = space_with(&["type=docker,dest={}/d.tar"], &["localhost/export:1"]) else { return };
    let files = files(&space.path("d.tar"));
    let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"]).unwrap();
    assert_eq!(manifest[0]["RepoTags"][0], "localhost/export:1");
    let mut rootfs = Rootfs::default();
    for layer in manifest[0]["Layers"].as_array().unwrap() {
        let bytes = files[layer.as_str().unwrap()].clone();
        let kind = if bytes.starts_with(&[0x1f, 0x8b]) { "gzip" } else { "tar" };
        rootfs.apply(&rbuild_testkit::images::unpack(kind, bytes));
    }
    assert_same_lines(EXPECTED, &rootfs.listing(Times::Hidden), "docker archive");
}

#[test]
fn tars() {
    let Some(space) = space_with(&["type=tar,dest={}/t.tar"], &[]) else { return };
    let tar = fs::read(space.path("t.tar")).unwrap();
    assert_same_lines(EXPECTED, &Rootfs::from_layers([tar.as_slice()]).listing(Times::Hidden), "tar");
}

#[test]
fn directories() {
    let Some(space) = space_with(&["type=local,dest={}/out"], &[]) else { return };
    let out = space.path("out");
    assert_eq!(fs::read_to_string(out.join("x/a")).unwrap(), "one");
    assert_eq!(fs::read_link(out.join("x/d/link")).unwrap().to_str(), Some("b"));
    let mode = |name: &str| fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("x/d/b"), mode("x/a")), (0o755, 0o644));
    let inode = |name: &str| fs::metadata(out.join(name)).unwrap().ino();
    assert_eq!(inode("x/d/b"), inode("x/d/hard"));
}

/// A directory output must not follow links that lie in its destination, nor leave it.
#[test]
fn directories_stay_inside() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), "f x/a 644 one");
    fs::create_dir_all(space.path("out")).unwrap();
    fs::create_dir_all(space.path("canary")).unwrap();
    std::os::unix::fs::symlink(space.path("canary"), space.path("out/x")).unwrap();
    let mut request = request(&space, "FROM scratch\nCOPY . /");
    request.outputs = vec![output(&format!("type=local,dest={}", space.path("out").display()))];
    drop(build(&space, &request).result);
    assert_eq!(fs::read_dir(space.path("canary")).unwrap().count(), 0);
}

/// OUT-01: what failed leaves what was there before.
#[test]
fn failed_builds_leave_old_outputs_alone() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    make_tree(&space.context(), "f a 644 one");
    for spec in ["type=oci,dest=", "type=docker,dest=", "type=tar,dest="] {
        let path = space.path("o.tar");
        fs::write(&path, "old").unwrap();
        let mut request = request(&space, "FROM scratch\nCOPY a /\nCOPY missing /");
        request.outputs = vec![output(&format!("{spec}{}", path.display()))];
        build(&space, &request).error();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old", "{spec}");
        let names: Vec<_> = fs::read_dir(space.root()).unwrap().flatten().map(|e| e.file_name()).collect();
        assert_eq!(names.len(), 3, "something is left beside context, store and output: {names:?}");
    }
}

#[test]
fn several_outputs_of_one_build_agree() {
    let Some(space) =
        space_with(&["type=oci,dest={}/a.tar", "type=oci,dest={}/b.tar", "type=tar,dest={}/c.tar"], &[])
    else {
        return;
    };
    assert_eq!(read(&space.path("a.tar")).digest, read(&space.path("b.tar")).digest);
}

#[test]
fn other_programs_read_archives() {
    let Some(space) = space_with(
        &["type=oci,tar=false,name=localhost/x:1,dest={}/layout", "type=docker,dest={}/d.tar"],
        &["localhost/x:1"],
    ) else {
        return;
    };
    if have("skopeo") {
        for source in [
            format!("oci:{}:1", space.path("layout").display()),
            format!("docker-archive:{}", space.path("d.tar").display()),
        ] {
            let text = run(Command::new("skopeo").args(["inspect", "--config", &source]));
            assert!(text.contains("KEY=value"), "{source}: {text}");
        }
    } else {
        note("skipped: skopeo is not installed");
    }
    if have("umoci") {
        let bundle = space.path("bundle");
        run(Command::new("umoci")
            .args(["unpack", "--image", &format!("{}:1", space.path("layout").display())])
            .arg(&bundle));
        assert_eq!(fs::read_to_string(bundle.join("rootfs/x/d/b")).unwrap(), "two");
        let owned = fs::metadata(bundle.join("rootfs/owned/a")).unwrap();
        assert_eq!((owned.uid(), owned.gid()), (5, 6));
    } else {
        note("skipped: umoci is not installed");
    }
}

#[test]
fn pushes_to_the_test_registry() {
    let name = format!("{}/pushed/app:1", registry().host());
    let Some(_space) = space_with(&[&format!("type=image,push=true,name={name}")], &[]) else { return };
    let manifest = registry().manifest("pushed/app", "1").expect("it was pushed");
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let digest = layer["digest"].as_str().unwrap().parse().unwrap();
        assert!(registry().has_blob("pushed/app", &digest));
    }
}

/// `docker-registry` on a free port; ends when dropped.
struct Distribution {
    child: Child,
    address: String,
}

impl Drop for Distribution {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn distribution(space: &Space) -> Distribution {
    // The port is free a moment before it is used: the program cannot be told to choose one.
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("an address")
        .port();
    let address = format!("127.0.0.1:{port}");
    let config = space.path("registry.yml");
    fs::write(
        &config,
        format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n",
            space.path("registry").display()
        ),
    )
    .expect("ours");
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .current_dir("/")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it is installed");
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while std::net::TcpStream::connect(&address).is_err() {
        assert!(std::time::Instant::now() < patience, "docker-registry does not listen");
        std::thread::yield_now();
    }
    Distribution { child, address }
}

#[test]
fn a_real_registry_takes_it_and_gives_it_back() {
    if !require_root() {
        return;
    }
    if !have("docker-registry") || !have("skopeo") {
        return note("skipped: docker-registry or skopeo is not installed");
    }
    let other = Space::new();
    let served = distribution(&other);
    let name = format!("{}/library/app:1", served.address);
    let space = space_with(&[&format!("type=image,push=true,name={name}")], &[]).expect("this is root");
    let layout = other.path("pulled");
    run(Command::new("skopeo")
        .args(["copy", "--src-tls-verify=false", &format!("docker://{name}")])
        .arg(format!("oci:{}:1", layout.display())));
    assert_same_lines(EXPECTED, &read(&layout).rootfs().listing(Times::Hidden), "pulled by skopeo");
    // And back: the next build starts from it.
    let mut next = request(&space, &format!("FROM {name}\nCOPY a /more"));
    next.pull = true;
    let path = space.path("next.tar");
    next.outputs = vec![output(&format!("type=oci,dest={}", path.display()))];
    build(&space, &next).ok();
    let expected = format!("/more f 0644 0:0 \"one\"\n{EXPECTED}");
    assert_same_lines(&expected, &read(&path).rootfs().listing(Times::Hidden), "built on it");
}

/// Everything else of an image is checked by the exporter's own tests; this is what users see.
#[test]
fn annotations_and_names_are_where_others_look() {
    let Some(space) =
        space_with(&["type=oci,name=localhost/x:1,annotation.org.example=yes,dest={}/a.tar"], &[])
    else {
        return;
    };
    let image = read(&space.path("a.tar"));
    assert_eq!(image.manifest["annotations"]["org.example"], "yes");
    let files: BTreeMap<String, Vec<u8>> = files(&space.path("a.tar"));
    let index: serde_json::Value = serde_json::from_slice(&files["index.json"]).unwrap();
    let annotations = &index["manifests"][0]["annotations"];
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "1");
}

/// `BUILDKIT_MULTI_PLATFORM` makes an index of one platform, and a directory for it; it can forbid several.
#[test]
fn one_platform_can_be_an_index() {
    if !require_root() {
        return;
    }
    let space = Space::new();
    let mut request = request(&space, "FROM scratch\nLABEL a=b\nCOPY --from=scratch / /x\n");
    request.build_args = vec![("BUILDKIT_MULTI_PLATFORM".to_owned(), "1".to_owned())];
    let dir = space.path("files");
    request.outputs = vec![output(&format!("type=local,dest={}", dir.display()))];
    build(&space, &request).ok();
    let platform = rbuild::Platform::host().to_string().replace('/', "_");
    assert!(dir.join(platform).is_dir(), "{:?}", std::fs::read_dir(&dir).expect("it was written").count());
    request.platforms =
        vec!["linux/amd64".parse().expect("a platform"), "linux/arm64".parse().expect("a platform")];
    request.build_args = vec![("BUILDKIT_MULTI_PLATFORM".to_owned(), "false".to_owned())];
    assert!(build(&space, &request).error().contains("forbids"));
    request.build_args = vec![("BUILDKIT_MULTI_PLATFORM".to_owned(), "maybe".to_owned())];
    assert!(build(&space, &request).error().contains("neither true nor false"));
}
