//! Reads images as rbuild writes them (OCI and Docker archives, layout directories), and makes a small one to start from.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use rbuild_digest::Digest;
use serde_json::Value;

use crate::normalize::Rootfs;
use crate::registry::{TestImage, TestRegistry};

/// An image, read and checked: every blob has the digest and the size that its descriptor says, every layer its diff id.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest.
    pub manifest: Value,
    /// Its digest.
    pub digest: Digest,
    /// The config.
    pub config: Value,
    /// Plain tars, from the bottom up.
    pub layers: Vec<Vec<u8>>,
}

impl Image {
    /// All layers as one root file system.
    #[must_use]
    pub fn rootfs(&self) -> Rootfs {
        Rootfs::from_layers(self.layers.iter().map(Vec::as_slice))
    }
}

/// The files of a tar, or of a directory, by path.
///
/// # Panics
/// When it cannot be read.
#[must_use]
pub fn files(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    if path.is_dir() {
        let mut stack = vec![path.to_owned()];
        while let Some(dir) = stack.pop() {
            for entry in fs::read_dir(dir).expect("a directory of the layout").flatten() {
                let file = entry.path();
                if file.is_dir() {
                    stack.push(file);
                } else {
                    let name = file.strip_prefix(path).expect("it lies below").to_string_lossy().into_owned();
                    out.insert(name, fs::read(&file).expect("a file of the layout"));
                }
            }
        }
        return out;
    }
    let file = fs::File::open(path).unwrap_or_else(|error| panic!("open {}: {error}", path.display()));
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("a tar entry");
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).expect("the content of a tar entry");
        if entry.header().entry_type().is_file() {
            out.insert(name.trim_start_matches("./").to_owned(), bytes);
        }
    }
    out
}

/// The images of a layout (tar or directory), each with its platform.
///
/// # Panics
/// When something in it is not as the specification says.
#[must_use]
pub fn read_all(path: &Path) -> Vec<(String, Image)> {
    let files = files(path);
    assert!(files.contains_key("oci-layout"), "{} has no oci-layout", path.display());
    let index: Value = serde_json::from_slice(&files["index.json"]).expect("index.json is JSON");
    let mut out = Vec::new();
    collect(&files, &index, &mut out);
    out
}

/// The only image of a layout.
///
/// # Panics
/// When there are none or several.
#[must_use]
pub fn read(path: &Path) -> Image {
    let mut images = read_all(path);
    assert_eq!(images.len(), 1, "one image in {}", path.display());
    images.remove(0).1
}

fn collect(files: &BTreeMap<String, Vec<u8>>, index: &Value, out: &mut Vec<(String, Image)>) {
    for descriptor in index["manifests"].as_array().expect("an index has manifests") {
        let (digest, bytes) = blob(files, descriptor);
        let document: Value = serde_json::from_slice(&bytes).expect("a manifest is JSON");
        if document.get("manifests").is_some() {
            collect(files, &document, out);
            continue;
        }
        let config: Value =
            serde_json::from_slice(&blob(files, &document["config"]).1).expect("a config is JSON");
        let layers: Vec<Vec<u8>> = document["layers"]
            .as_array()
            .expect("a manifest has layers")
            .iter()
            .map(|layer| unpack(layer["mediaType"].as_str().unwrap_or_default(), blob(files, layer).1))
            .collect();
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!(diff_ids), "diff ids of {digest}");
        let platform = format!(
            "{}/{}",
            config["os"].as_str().unwrap_or_default(),
            config["architecture"].as_str().unwrap_or_default()
        );
        out.push((platform, Image { manifest: document, digest, config, layers }));
    }
}

fn blob(files: &BTreeMap<String, Vec<u8>>, descriptor: &Value) -> (Digest, Vec<u8>) {
    let name = descriptor["digest"].as_str().expect("a descriptor has a digest");
    let bytes = files
        .get(&format!("blobs/{}", name.replace(':', "/")))
        .unwrap_or_else(|| panic!("blob {name} is missing"));
    assert_eq!(Digest::of(bytes).to_string(), name, "a blob is what its name says");
    assert_eq!(descriptor["size"].as_u64(), Some(bytes.len() as u64), "size of {name}");
    (Digest::of(bytes), bytes.clone())
}

/// A layer as a plain tar.
///
/// # Panics
/// When it is not compressed as its media type says.
#[must_use]
pub fn unpack(media_type: &str, bytes: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    if media_type.ends_with("gzip") {
        flate2::read::MultiGzDecoder::new(bytes.as_slice()).read_to_end(&mut out).expect("gzip");
        out
    } else if media_type.ends_with("zstd") {
        zstd::stream::copy_decode(bytes.as_slice(), &mut out).expect("zstd");
        out
    } else {
        bytes
    }
}

/// Puts an image with busybox into the registry as `library/busybox:latest`: every applet that tests use in `/bin`,
/// users in `/etc`, a `/tmp`.
///
/// # Panics
/// When this machine has no `/bin/busybox`.
pub fn put_busybox(registry: &TestRegistry) -> TestImage {
    put_busybox_as(registry, "library/busybox", "latest", &[])
}

/// The same under another name, with more files in the image.
///
/// # Panics
/// When this machine has no `/bin/busybox`.
pub fn put_busybox_as(
    registry: &TestRegistry,
    repository: &str,
    tag: &str,
    more: &[(&str, &str)],
) -> TestImage {
    let busybox = fs::read("/bin/busybox").expect("the package busybox-static is installed");
    let mut tar = tar::Builder::new(Vec::new());
    for (dir, mode) in [("bin", 0o755), ("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777)] {
        append(&mut tar, &format!("{dir}/"), mode, tar::EntryType::Directory, &[], None);
    }
    append(&mut tar, "bin/busybox", 0o755, tar::EntryType::Regular, &busybox, None);
    for applet in APPLETS {
        append(&mut tar, &format!("bin/{applet}"), 0o777, tar::EntryType::Symlink, &[], Some("busybox"));
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\napp:x:1000:1001:app:/home:/bin/sh\n";
    let group = "root:x:0:\nnogroup:x:65534:\napp:x:1001:\nextra:x:2000:app\n";
    append(&mut tar, "etc/passwd", 0o644, tar::EntryType::Regular, passwd.as_bytes(), None);
    append(&mut tar, "etc/group", 0o644, tar::EntryType::Regular, group.as_bytes(), None);
    for (name, text) in more {
        append(&mut tar, name, 0o644, tar::EntryType::Regular, text.as_bytes(), None);
    }
    let layer = tar.into_inner().expect("a tar in memory");
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    registry.put_image(repository, tag, architecture, &[layer])
}

const APPLETS: [&str; 47] = [
    "sh",
    "ash",
    "cat",
    "cp",
    "mv",
    "rm",
    "ls",
    "ln",
    "mkdir",
    "rmdir",
    "touch",
    "chmod",
    "chown",
    "chgrp",
    "echo",
    "env",
    "id",
    "ip",
    "find",
    "grep",
    "sed",
    "sort",
    "sleep",
    "stat",
    "test",
    "true",
    "false",
    "wc",
    "wget",
    "head",
    "tail",
    "tar",
    "date",
    "dd",
    "df",
    "mount",
    "umount",
    "ps",
    "pwd",
    "readlink",
    "uname",
    "hostname",
    "sha256sum",
    "mkfifo",
    "nc",
    "seq",
    "kill",
];

/// Adds an entry of root with a fixed time.
///
/// # Panics
/// Never in memory.
pub fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    name: &str,
    mode: u32,
    kind: tar::EntryType,
    content: &[u8],
    link: Option<&str>,
) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(crate::fixture::TIME.unsigned_abs());
    header.set_entry_type(kind);
    header.set_size(content.len() as u64);
    match link {
        Some(link) => tar.append_link(&mut header, name, link),
        None => tar.append_data(&mut header, name, content),
    }
    .expect("a tar in memory");
}
