//! The client against the distribution project's registry, where it is installed.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a test may panic, and says why it skips")]

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Reference};
use rbuild_ports::{CancelToken, ErrorKind, Result};
use rbuild_source::{Registry, RegistryOptions, Repository};

struct Running {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `None` where there is no such program.
fn start() -> Option<Running> {
    let dir = tempfile::tempdir().unwrap();
    let host = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let config = dir.path().join("config.yml");
    let root = dir.path().join("data");
    let text = format!(
        "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {host}\n",
        root.display()
    );
    std::fs::write(&config, text).unwrap();
    let child = Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| println!("skipped: docker-registry: {error}"))
        .ok()?;
    let running = Running { child, host, _dir: dir };
    for _ in 0..200 {
        if TcpStream::connect(&running.host).is_ok() {
            return Some(running);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    println!("skipped: docker-registry did not start");
    None
}

#[test]
fn pushes_and_pulls() {
    let Some(server) = start() else { return };
    let go = CancelToken::new();
    let client = Registry::new(RegistryOptions::anonymous());
    let layer: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    let config =
        br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#.to_vec();
    let to = Repository { domain: server.host.clone(), path: "team/app".to_owned() };
    let push = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        assert_eq!(client.blob_exists(&to, &digest, &go).unwrap(), None);
        let mut open = || -> Result<Box<dyn Read + '_>> { Ok(Box::new(bytes)) };
        client.push_blob(&to, &digest, bytes.len() as u64, &mut open, &go).unwrap();
        assert_eq!(client.blob_exists(&to, &digest, &go).unwrap(), Some(bytes.len() as u64));
        digest
    };
    let (layer_digest, config_digest) = (push(&layer), push(&config));
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config_digest}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"{layer_digest}","size":{}}}]}}"#,
        config.len(),
        layer.len()
    );
    let reference: Reference = format!("{}/team/app:v1", server.host).parse().unwrap();
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let digest = client.put_manifest(&reference, media_type, manifest.as_bytes(), &go).unwrap();
    assert_eq!(client.resolve(&reference, &go).unwrap().digest, digest);
    assert_eq!(client.fetch_manifest(&reference, &go).unwrap().bytes, manifest.as_bytes());
    let other = Repository { path: "team/other".to_owned(), ..to.clone() };
    assert!(client.mount_blob(&other, &layer_digest, &to, &go).unwrap());
    let descriptor = Descriptor::new("x", layer_digest, layer.len() as u64);
    let mut pulled = Vec::new();
    client.fetch_blob(&other, &descriptor, &go).unwrap().read_to_end(&mut pulled).unwrap();
    assert_eq!(pulled, layer);
    let missing: Reference = format!("{}/team/app:v2", server.host).parse().unwrap();
    let error = client.fetch_manifest(&missing, &go).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    let refused = client.put_manifest(&reference, media_type, b"{\"schemaVersion\":2}", &go).unwrap_err();
    assert_eq!(refused.kind, ErrorKind::Invalid, "{refused}");
    let nowhere = Repository { path: "no/such".to_owned(), ..to };
    let error = client.fetch_blob(&nowhere, &descriptor, &go).err().unwrap();
    assert_eq!(error.kind, ErrorKind::NotFound);
}
