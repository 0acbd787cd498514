//! Base images as blobs in a cache directory: busybox, a Debian rootfs from mmdebstrap, and the large one. Made once per
//! seed and scale; a directory appears only when it is complete.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use rbuild_digest::{Digest, HashingWriter};
use rbuild_tree::{Entry, Kind, Limits, RelPath, TarReader, TarWriter};
use serde_json::{Value, json};

use crate::error::{BenchError, Doing as _, Result};
use crate::measure::{Invocation, Runner, find};
use crate::workload::{FileSpec, Scale, rootfs};

/// Part of every cache name: to be raised when what is generated changes.
const GENERATION: u32 = 1;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image in the cache directory.
#[derive(Clone, Debug)]
pub(crate) struct BaseImage {
    /// Its repository: `bench/NAME`.
    pub(crate) repository: String,
    /// Bytes of its layers as stored.
    pub(crate) compressed: u64,
    /// Bytes of its layers as tar archives.
    pub(crate) unpacked: u64,
    /// Bytes of the files that `gzip` copies: `/usr`, or `/bin` where there is none.
    pub(crate) copied: u64,
    dir: PathBuf,
}

/// A blob and what it is.
pub(crate) struct Blob {
    /// Its digest.
    pub(crate) digest: String,
    /// Where it is.
    pub(crate) path: PathBuf,
}

impl BaseImage {
    /// Config and layers.
    pub(crate) fn blobs(&self) -> Result<Vec<Blob>> {
        let manifest: Value = parse(&self.manifest()?, &self.dir)?;
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let digests =
            std::iter::once(&manifest["config"]).chain(layers).filter_map(|item| item["digest"].as_str());
        Ok(digests
            .map(|digest| Blob { digest: digest.to_owned(), path: self.dir.join(digest.replace(':', "-")) })
            .collect())
    }

    /// The manifest's bytes.
    pub(crate) fn manifest(&self) -> Result<Vec<u8>> {
        let path = self.dir.join("manifest.json");
        fs::read(&path).doing("read", &path)
    }

    /// The manifest's media type.
    pub(crate) fn media_type(&self) -> &'static str {
        MANIFEST
    }

    fn open(name: &str, dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("facts.json");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.doing("read", &path)?,
        };
        let facts: Value = parse(&bytes, &path)?;
        let number = |key: &str| facts[key].as_u64().unwrap_or(0);
        Ok(Some(Self {
            repository: format!("bench/{name}"),
            compressed: number("compressed"),
            unpacked: number("unpacked"),
            copied: number("copied"),
            dir: dir.to_owned(),
        }))
    }
}

fn parse(bytes: &[u8], path: &Path) -> Result<Value> {
    serde_json::from_slice(bytes)
        .map_err(|error| BenchError::Other(format!("{} is damaged: {error}", path.display())))
}

/// A static busybox with links for its applets.
pub(crate) fn busybox(cache: &Path, runner: &Runner) -> Result<BaseImage> {
    image("busybox", &format!("busybox-{GENERATION}"), cache, |dir| {
        let layer = busybox_layer(dir, runner)?;
        let copied = layer.files;
        Ok((vec![layer], copied))
    })
}

/// A minimal Debian; from `tar` if given, else made by mmdebstrap.
pub(crate) fn debian(cache: &Path, runner: &Runner, tar: Option<&Path>) -> Result<BaseImage> {
    image("debian", &format!("debian-{GENERATION}"), cache, |dir| {
        let made = dir.join("rootfs.tar");
        let tar = match tar {
            Some(tar) => tar,
            None => {
                mmdebstrap(&made, runner)?;
                &made
            }
        };
        let mut layer = Layer::create(dir)?;
        io::copy(&mut open(tar)?, &mut layer).doing("read", tar)?;
        let layer = layer.finish(dir)?;
        let copied = bytes_below(tar, "usr")?;
        drop(fs::remove_file(&made));
        Ok((vec![layer], copied))
    })
}

/// The large base: busybox, and one layer on top.
pub(crate) fn large(cache: &Path, runner: &Runner, scale: &Scale, seed: u64) -> Result<BaseImage> {
    image("large", &format!("large-{}-{seed}-{GENERATION}", scale.name), cache, |dir| {
        let below = busybox_layer(dir, runner)?;
        let mut tar = TarWriter::layer(Layer::create(dir)?);
        write_files(&mut tar, &rootfs(scale, seed))?;
        let layer = tar.finish().map_err(|error| BenchError::Other(error.to_string()))?.finish(dir)?;
        Ok((vec![below, layer], 0))
    })
}

fn mmdebstrap(out: &Path, runner: &Runner) -> Result<()> {
    let Some(program) = find("mmdebstrap") else {
        return Err(BenchError::Other(
            "mmdebstrap is not installed; give a rootfs with --debian-tar, or use --quick".into(),
        ));
    };
    let invocation = Invocation::new(&program)
        .args(["--quiet", "--variant=minbase", "bookworm"])
        .arg(out)
        .env("SOURCE_DATE_EPOCH", "1700000000");
    runner.run(&invocation).map(drop)
}

/// Bytes of the regular files below the top directory `name` of an archive.
fn bytes_below(tar: &Path, name: &str) -> Result<u64> {
    let mut reader = TarReader::new(open(tar)?, Limits::default());
    let top = RelPath::clean(name).map_err(|error| BenchError::Other(error.to_string()))?;
    let mut total = 0;
    while let Some(entry) =
        reader.next_entry().map_err(|error| BenchError::Other(format!("{}: {error}", tar.display())))?
    {
        if entry.path.starts_with(&top) {
            total += entry.content_size();
        }
    }
    Ok(total)
}

fn open(path: &Path) -> Result<BufReader<File>> {
    Ok(BufReader::with_capacity(1 << 18, File::open(path).doing("open", path)?))
}

/// Makes an image unless the cache has it. `make` writes the layers into the directory it is given.
fn image(
    name: &str,
    folder: &str,
    cache: &Path,
    make: impl FnOnce(&Path) -> Result<(Vec<FinishedLayer>, u64)>,
) -> Result<BaseImage> {
    let dir = cache.join(folder);
    if let Some(image) = BaseImage::open(name, &dir)? {
        return Ok(image);
    }
    fs::create_dir_all(cache).doing("create", cache)?;
    let unfinished = tempfile::tempdir_in(cache).doing("create a directory in", cache)?;
    let (layers, copied) = make(unfinished.path())?;
    let write = |name: &str, bytes: &[u8]| {
        let path = unfinished.path().join(name);
        fs::write(&path, bytes).doing("write", &path)
    };
    let config = config(&layers).to_string();
    let config_digest = Digest::of(&config).to_string();
    write(&config_digest.replace(':', "-"), config.as_bytes())?;
    let descriptors: Vec<Value> = layers
        .iter()
        .map(|layer| json!({"mediaType": LAYER, "digest": layer.digest, "size": layer.compressed}))
        .collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "digest": config_digest, "size": config.len()},
        "layers": descriptors,
    });
    write("manifest.json", manifest.to_string().as_bytes())?;
    let sum = |f: fn(&FinishedLayer) -> u64| layers.iter().map(f).sum::<u64>();
    let facts =
        json!({"compressed": sum(|l| l.compressed), "unpacked": sum(|l| l.unpacked), "copied": copied});
    write("facts.json", facts.to_string().as_bytes())?;
    fs::rename(unfinished.keep(), &dir).doing("create", &dir)?;
    BaseImage::open(name, &dir)?.ok_or_else(|| BenchError::Other(format!("{} vanished", dir.display())))
}

fn config(layers: &[FinishedLayer]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    json!({
        "created": "2024-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": layers.iter().map(|_| json!({"created": "2024-01-01T00:00:00Z", "created_by": "bench"})).collect::<Vec<_>>(),
    })
}

/// A layer on the disk.
struct FinishedLayer {
    digest: String,
    diff_id: String,
    compressed: u64,
    unpacked: u64,
    /// Bytes of the files in it, where the maker counted them.
    files: u64,
}

/// A layer being written: tar in, gzip to a file, both hashed.
struct Layer {
    out: HashingWriter<GzEncoder<HashingWriter<BufWriter<File>>>>,
    path: PathBuf,
}

impl Layer {
    fn create(dir: &Path) -> Result<Self> {
        let path = dir.join("layer.partial");
        let file = BufWriter::with_capacity(1 << 18, File::create(&path).doing("create", &path)?);
        Ok(Self {
            out: HashingWriter::new(GzEncoder::new(HashingWriter::new(file), Compression::new(6))),
            path,
        })
    }

    fn finish(self, dir: &Path) -> Result<FinishedLayer> {
        let Self { out, path } = self;
        let (gzip, diff_id, unpacked) = out.finish();
        let (mut file, digest, compressed) = gzip.finish().doing("write", &path)?.finish();
        file.flush().doing("write", &path)?;
        let digest = digest.to_string();
        let name = dir.join(digest.replace(':', "-"));
        fs::rename(&path, &name).doing("create", &name)?;
        Ok(FinishedLayer { digest, diff_id: diff_id.to_string(), compressed, unpacked, files: 0 })
    }
}

impl Write for Layer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn busybox_layer(dir: &Path, runner: &Runner) -> Result<FinishedLayer> {
    let Some(program) = find("busybox") else {
        return Err(BenchError::Other(
            "busybox is not installed (a static one is needed: busybox-static)".into(),
        ));
    };
    let applets = runner.run(&Invocation::new(&program).arg("--list"))?;
    let bytes = fs::read(&program).doing("read", &program)?;
    let mut tar = TarWriter::layer(Layer::create(dir)?);
    let mut add = |path: &str, kind: Kind, mode: u32, content: &[u8]| {
        let path = RelPath::clean(path).map_err(|error| BenchError::Other(error.to_string()))?;
        tar.entry(&Entry::new(path, kind, mode), content)
            .map_err(|error| BenchError::Other(error.to_string()))
    };
    add("bin", Kind::Dir, 0o755, b"")?;
    add("bin/busybox", Kind::File { size: bytes.len() as u64 }, 0o755, &bytes)?;
    for name in applets
        .lines()
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "busybox" && !name.contains('/'))
    {
        add(&format!("bin/{name}"), Kind::Symlink { target: b"busybox".to_vec() }, 0o777, b"")?;
    }
    add("etc", Kind::Dir, 0o755, b"")?;
    let passwd = b"root:x:0:0:root:/root:/bin/sh\n";
    add("etc/passwd", Kind::File { size: passwd.len() as u64 }, 0o644, passwd)?;
    add("root", Kind::Dir, 0o700, b"")?;
    add("tmp", Kind::Dir, 0o1777, b"")?;
    let layer = tar.finish().map_err(|error| BenchError::Other(error.to_string()))?.finish(dir)?;
    Ok(FinishedLayer { files: bytes.len() as u64, ..layer })
}

fn write_files<W: Write>(tar: &mut TarWriter<W>, files: &[FileSpec]) -> Result<()> {
    let fail = |error: &dyn std::fmt::Display| BenchError::Other(error.to_string());
    let mut known = std::collections::BTreeSet::new();
    let mut content = Vec::new();
    for file in files {
        let path = RelPath::clean(&file.path).map_err(|error| fail(&error))?;
        let mut parents: Vec<RelPath> =
            path.ancestors().filter(|parent| !parent.is_root() && *parent != path).collect();
        parents.sort();
        for parent in parents {
            if known.insert(parent.clone()) {
                tar.bare(&Entry::new(parent, Kind::Dir, 0o755)).map_err(|error| fail(&error))?;
            }
        }
        content.clear();
        file.write(&mut content).map_err(|error| fail(&error))?;
        let entry = Entry::new(path, Kind::File { size: file.length }, 0o644);
        tar.entry(&entry, content.as_slice() as &[u8]).map_err(|error| fail(&error))?;
    }
    Ok(())
}

/// What an OCI archive that an engine wrote holds: layers and their bytes as stored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ArchiveFacts {
    /// Bytes of all gzip layers as stored.
    pub(crate) gzip_bytes: u64,
    /// Layers that are not gzip.
    pub(crate) other_layers: usize,
}

/// Looks into an OCI archive: every small JSON blob is read, a manifest is what has layers.
pub(crate) fn inspect_archive(path: &Path) -> Result<ArchiveFacts> {
    let bad = |why: &str| BenchError::Other(format!("{} is no OCI archive: {why}", path.display()));
    let mut reader = TarReader::new(open(path)?, Limits::default());
    let (mut layout, mut layers, mut sizes) = (false, Vec::new(), std::collections::BTreeMap::new());
    while let Some(entry) = reader.next_entry().map_err(|error| bad(&error.to_string()))? {
        let name = String::from_utf8_lossy(entry.path.as_bytes()).into_owned();
        layout |= name == "oci-layout";
        let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
        sizes.insert(format!("sha256:{hex}"), entry.content_size());
        if entry.content_size() < 1 << 20 {
            let mut bytes = Vec::new();
            reader.content().read_to_end(&mut bytes).map_err(|error| bad(&error.to_string()))?;
            let value: Value = serde_json::from_slice(&bytes).unwrap_or_default();
            layers.extend(value["layers"].as_array().cloned().unwrap_or_default());
        }
    }
    if !layout || layers.is_empty() {
        return Err(bad("it has no layout or no manifest with layers"));
    }
    let mut facts = ArchiveFacts { gzip_bytes: 0, other_layers: 0 };
    for layer in &layers {
        let digest = layer["digest"].as_str().unwrap_or_default();
        let size = sizes.get(digest).ok_or_else(|| bad(&format!("layer {digest} is missing")))?;
        let media_type = layer["mediaType"].as_str().unwrap_or_default();
        if media_type.ends_with("gzip") {
            facts.gzip_bytes += size;
        } else {
            facts.other_layers += 1;
        }
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_large_base_is_the_same_each_time_and_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let cache = dir.path().join(name);
            let made = image("large", "l", &cache, |dir| {
                let mut tar = TarWriter::layer(Layer::create(dir)?);
                write_files(&mut tar, &rootfs(&Scale::QUICK, 1))?;
                Ok((vec![tar.finish().unwrap().finish(dir)?], 0))
            });
            made.unwrap()
        };
        let (one, two) = (make("one"), make("two"));
        assert_eq!(one.manifest().unwrap(), two.manifest().unwrap());
        assert!(one.unpacked > 3_000_000 && one.compressed < one.unpacked * 6 / 10, "{one:?}");
        assert_eq!(one.blobs().unwrap().len(), 2);
        assert!(one.blobs().unwrap().iter().all(|blob| blob.path.is_file()));
        let again =
            image("large", "l", &dir.path().join("one"), |_| Err(BenchError::Other("made twice".into())));
        assert_eq!(again.unwrap().compressed, one.compressed);
    }

    #[test]
    fn an_archive_is_looked_into() {
        let dir = tempfile::tempdir().unwrap();
        let write = |files: &[(&str, String)]| {
            let mut tar = TarWriter::new(Vec::new());
            for (name, text) in files {
                let entry =
                    Entry::new(RelPath::clean(name).unwrap(), Kind::File { size: text.len() as u64 }, 0o644);
                tar.entry(&entry, text.as_bytes()).unwrap();
            }
            let path = dir.path().join("a.tar");
            fs::write(&path, tar.finish().unwrap()).unwrap();
            inspect_archive(&path)
        };
        let manifest = json!({"layers": [
            {"mediaType": LAYER, "digest": "sha256:aa"},
            {"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": "sha256:bb"},
        ]});
        let blob = |name: &'static str, text: &str| (name, text.to_owned());
        let mut files = vec![
            blob("oci-layout", "{}"),
            blob("blobs/sha256/aa", "12345"),
            blob("blobs/sha256/bb", "1"),
            blob("blobs/sha256/mm", &manifest.to_string()),
        ];
        assert_eq!(write(&files).unwrap(), ArchiveFacts { gzip_bytes: 5, other_layers: 1 });
        files.remove(2);
        assert!(write(&files).unwrap_err().to_string().contains("sha256:bb is missing"));
        assert!(write(&files[..1]).is_err());
    }
}
