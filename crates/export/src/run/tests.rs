//! All outputs together, the own store, and engines played by small servers.

use super::*;
use crate::testing::{World, tar};
use crate::{BuiltImage, EngineAccess, iidfile};
use rbuild_oci::{ImageConfig, Reference};
use rbuild_ports::{CacheIndex, Snapshot};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};

fn image(world: &World) -> BuiltImage {
    let layers =
        vec![world.layer("s1", &tar(&[("one", "1")]), 7), world.layer("s2", &tar(&[("two", "2")]), 8)];
    let config = ImageConfig { architecture: "amd64".into(), os: "linux".into(), ..ImageConfig::default() };
    let platform = "linux/amd64".parse().unwrap();
    BuiltImage { platform, snapshot: Snapshot { layers }, config, base_history: 0 }
}

fn request<'a>(
    images: &'a [BuiltImage],
    outputs: &'a [OutputSpec],
    names: &'a [Reference],
) -> ExportRequest<'a> {
    ExportRequest {
        images,
        indexed: images.len() > 1,
        outputs,
        names,
        annotations: &[],
        source_date_epoch: None,
        inline_cache: None,
        want: Digests::None,
    }
}

#[test]
fn names_in_the_own_store_cost_nothing() {
    let world = World::default();
    let images = [image(&world)];
    let outputs = [OutputSpec::store(), OutputSpec::CacheOnly];
    let names: Vec<Reference> = vec!["app".parse().unwrap(), "app:2".parse().unwrap()];
    let exported = export(&world.cx(), &request(&images, &outputs, &names)).unwrap();
    assert_eq!(exported.names, ["docker.io/library/app:latest", "docker.io/library/app:2"]);
    assert_eq!((exported.outputs[1].kind, iidfile(&exported)), ("cacheonly", None));
    assert_eq!(*world.layers.written.lock().unwrap(), 0);
    let record = world.index.image("docker.io/library/app:2").unwrap().unwrap();
    assert_eq!((&record.snapshot, record.platform.as_str()), (&images[0].snapshot, "linux/amd64"));
    assert_eq!(record.config, r#"{"architecture":"amd64","os":"linux","config":{}}"#);
    // The image id needs the diff ids, and nothing more.
    let wanted = ExportRequest { want: Digests::Id, ..request(&images, &outputs, &names) };
    let exported = export(&world.cx(), &wanted).unwrap();
    assert_eq!(*world.layers.written.lock().unwrap(), 2);
    assert!(world.blobs.is_empty() && exported.descriptor.is_none());
    let wanted = ExportRequest { want: Digests::Manifest, ..request(&images, &outputs, &names) };
    let all = export(&world.cx(), &wanted).unwrap();
    assert_eq!(all.config_digest, exported.config_digest);
    let record = world.index.image("docker.io/library/app:2").unwrap().unwrap();
    assert_eq!(record.manifest, all.descriptor.map(|descriptor| descriptor.digest));
    let dir = tempfile::tempdir().unwrap();
    let outputs = [format!("type=oci,dest={}", dir.path().join("x").display()).parse().unwrap()];
    let archive = export(&world.cx(), &request(&images, &outputs, &names)).unwrap();
    assert_eq!(archive.config_digest, exported.config_digest);
}

#[test]
fn the_inline_cache_is_part_of_the_config() {
    let (world, dir) = (World::default(), tempfile::tempdir().unwrap());
    let images = [image(&world)];
    let outputs = [format!("type=oci,tar=false,dest={}", dir.path().join("x").display()).parse().unwrap()];
    let inline =
        |_: &BuiltImage, layers: &[crate::LayerDescriptor]| Ok(Some(format!("layers{}", layers.len())));
    let with = ExportRequest { inline_cache: Some(&inline), ..request(&images, &outputs, &[]) };
    let exported = export(&world.cx(), &with).unwrap();
    let path = dir.path().join(format!("x/blobs/sha256/{}", exported.config_digest.unwrap().hex()));
    let config = std::fs::read_to_string(path).unwrap();
    assert!(config.contains(r#""moby.buildkit.cache.v0":"layers2""#), "{config}");
}

#[test]
fn impossible_requests() {
    let world = World::default();
    let error = export(&world.cx(), &request(&[], &[], &[])).unwrap_err();
    assert!(error.message.contains("no image"), "{error}");
    let outputs: Vec<OutputSpec> = vec!["-".parse().unwrap(), "type=oci".parse().unwrap()];
    let error = export(&world.cx(), &request(&[image(&world)], &outputs, &[])).unwrap_err();
    assert!(error.message.contains("two outputs go to standard output"), "{error}");
    let error =
        export(&world.cx(), &request(&[image(&world)], &["type=docker".parse().unwrap()], &[])).unwrap_err();
    assert!(error.message.contains("neither Docker nor podman"), "{error}");
}

/// An engine that writes down what it is asked. Loads are answered with `loaded`.
struct Engine {
    dir: tempfile::TempDir,
    log: Arc<Mutex<Vec<String>>>,
}

type Reply = dyn Fn(&str, &[u8]) -> (u16, String) + Send + Sync;

impl Engine {
    fn start(reply: Box<Reply>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let log = Arc::new(Mutex::new(vec![]));
        let written = log.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                serve(&stream, &reply, &written);
            }
        });
        Self { dir, log }
    }

    fn access(&self) -> EngineAccess {
        EngineAccess { docker_socket: Some(self.dir.path().join("sock")), podman: None }
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn serve(stream: &UnixStream, reply: &Reply, log: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    let request = line.rsplit_once(' ').unwrap().0.to_owned();
    let mut chunked = false;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        chunked |= line.starts_with("Transfer-Encoding: chunked");
        if line.trim().is_empty() {
            break;
        }
    }
    let mut body = vec![];
    while chunked {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        let before = body.len();
        reader.by_ref().take(size as u64 + 2).read_to_end(&mut body).unwrap();
        body.truncate(before + size);
        chunked = size > 0;
    }
    log.lock().unwrap().push(request.clone());
    let (status, text) = reply(&request, &body);
    let mut out = stream;
    write!(out, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
}

/// Names of the blobs and files in a tar.
fn names(tar: &[u8]) -> usize {
    let mut reader = rbuild_tree::TarReader::new(tar, rbuild_tree::Limits::default());
    let mut count = 0;
    while reader.next_entry().unwrap().is_some() {
        count += 1;
    }
    count
}

#[test]
fn docker_gets_what_it_has_not() {
    let mut world = World::default();
    let images = [image(&world)];
    let one = rbuild_digest::Digest::of(tar(&[("one", "1")]));
    let sent = Arc::new(Mutex::new(vec![]));
    let there = Arc::new(Mutex::new(false));
    let (bodies, all) = (sent.clone(), there.clone());
    let engine = Engine::start(Box::new(move |request, body| match request {
        "GET /info" => {
            (200, r#"{"Driver":"overlay2","DriverStatus":[["Backing Filesystem","extfs"]]}"#.to_owned())
        }
        "GET /images/json" => (200, format!(r#"[{{"Id":"{}"}}]"#, rbuild_digest::Digest::of("x"))),
        "POST /images/load?quiet=1" => {
            bodies.lock().unwrap().push(body.to_vec());
            (200, "{\"stream\":\"Loaded image: app\"}\n".to_owned())
        }
        _ if request.starts_with("POST /images/sha256:") => (201, String::new()),
        _ if request == format!("GET /images/{}/json", rbuild_digest::Digest::of("x")) => {
            (200, format!(r#"{{"RootFS":{{"Layers":["{one}","{}"]}}}}"#, rbuild_digest::Digest::of("y")))
        }
        _ if request.starts_with("GET /images/sha256:") && *all.lock().unwrap() => (200, "{}".to_owned()),
        _ => (404, r#"{"message":"no such image"}"#.to_owned()),
    }));
    world.engine = engine.access();
    let outputs = ["type=docker".parse().unwrap()];
    let app: Vec<Reference> = vec!["app".parse().unwrap(), "r.io/app:2".parse().unwrap()];
    let exported = export(&world.cx(), &request(&images, &outputs, &app)).unwrap();
    let body = sent.lock().unwrap().pop().unwrap();
    // blobs/, blobs/sha256/, config, manifest, one of two layers, index.json, manifest.json, oci-layout
    assert_eq!(names(&body), 8);
    assert!(exported.outputs[0].skipped > 0 && exported.outputs[0].bytes > 0);
    assert!(world.blobs.is_empty(), "plain tars are not stored");
    assert_eq!(exported.outputs[0].target, "app:latest, r.io/app:2");
    drop(engine.log());
    // It is there: one question, and names.
    *there.lock().unwrap() = true;
    let again = export(&world.cx(), &request(&images, &outputs, &app)).unwrap();
    assert_eq!(again.descriptor, exported.descriptor);
    let id = exported.config_digest.unwrap();
    assert_eq!(
        engine.log(),
        [
            "GET /info".to_owned(),
            format!("GET /images/{id}/json"),
            format!("POST /images/{id}/tag?repo=app&tag=latest"),
            format!("POST /images/{id}/tag?repo=r.io/app&tag=2"),
        ]
    );
    assert!(sent.lock().unwrap().is_empty());
}

#[test]
fn what_the_engine_says_is_told() {
    for (status, text, says) in [
        (200, r#"{"errorDetail":{"message":"no space left"},"error":"no space left"}"#, "no space left"),
        (500, r#"{"message":"broken store"}"#, "(500): broken store"),
        (400, "what?", "(400): it gives no reason"),
    ] {
        let mut world = World::default();
        let images = [image(&world)];
        let engine = Engine::start(Box::new(move |request, _| match request {
            "GET /info" => {
                (200, r#"{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}"#.to_owned())
            }
            "POST /images/load?quiet=1" => (status, text.to_owned()),
            _ => (404, "{}".to_owned()),
        }));
        world.engine = engine.access();
        let error =
            export(&world.cx(), &request(&images, &["type=docker".parse().unwrap()], &[])).unwrap_err();
        assert!(error.message.contains(says), "{error}");
        // The containerd store is not asked what it has.
        assert_eq!(engine.log(), ["GET /info", "POST /images/load?quiet=1"]);
    }
}

#[test]
fn an_engine_that_hangs_up_is_heard() {
    let mut world = World::default();
    let big = world.layer("big", &vec![7; 3 << 20], 7);
    let images = [BuiltImage { snapshot: Snapshot { layers: vec![big] }, ..image(&world) }];
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
    world.engine = EngineAccess { docker_socket: Some(dir.path().join("sock")), podman: None };
    let answer = std::thread::spawn(move || {
        let containerd = r#"{"DriverStatus":[["driver-type","io.containerd.snapshotter.v1"]]}"#;
        for (status, text) in [(200, containerd), (500, r#"{"message":"too large"}"#)] {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4000]).unwrap();
            write!(stream, "HTTP/1.1 {status} X\r\nContent-Length: {}\r\n\r\n{text}", text.len()).unwrap();
        }
    });
    let error = export(&world.cx(), &request(&images, &["type=docker".parse().unwrap()], &[])).unwrap_err();
    assert!(error.message.contains("(500): too large"), "{error}");
    answer.join().unwrap();
}

#[test]
fn podman_is_fed() {
    let mut world = World::default();
    let images = [image(&world)];
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("podman");
    let script = |text: &str| {
        crate::write_file(&program, format!("#!/bin/sh\n{text}\n").as_bytes()).unwrap();
        std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    world.engine =
        EngineAccess { docker_socket: Some(dir.path().join("none")), podman: Some(program.clone()) };
    // A fork of another test may still hold the script open for writing.
    let run = |world: &World| loop {
        let outputs = ["type=docker".parse().unwrap()];
        match export(&world.cx(), &request(&images, &outputs, &[])) {
            Err(error) if error.message.contains("text file busy") => std::thread::yield_now(),
            result => return result,
        }
    };
    script(&format!("echo $1 > {0}/args; cat > {0}/tar", dir.path().display()));
    assert!(run(&world).unwrap().outputs[0].bytes > 0);
    assert_eq!(std::fs::read_to_string(dir.path().join("args")).unwrap(), "load\n");
    assert_eq!(names(&std::fs::read(dir.path().join("tar")).unwrap()), 9);
    for failing in ["echo first >&2; echo no space >&2; exit 3", "cat > /dev/null; echo no space >&2; exit 3"]
    {
        script(failing);
        let error = run(&world).unwrap_err();
        assert!(error.message.contains("podman could not load the image: no space"), "{error}");
    }
}
