//! `type=oci` and `type=docker`: an image layout as a tar or a directory. Docker's variant has a `manifest.json` besides,
//! which older engines and podman read. Entries are sorted, root's, and of 1970, as containerd writes them.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Index};
use rbuild_ports::{ErrorKind, PortError, Result};
use rbuild_tree::{Entry, Kind, RelPath, TarWriter};
use serde_json::json;

use crate::assemble::layout_index;
use crate::atomic::{StagedDir, write_file};
use crate::content::{Attempt, Meter};
use crate::image::PreparedImage;
use crate::json::compact;
use crate::layers::PreparedLayer;
use crate::rootfs_tar::{archive_error, to_dest};
use crate::{ArchiveOutput, Dest, OutputReport};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// The largest `index.json` that is added to.
const MAX_INDEX: u64 = 4 << 20;

/// What a layout holds, by name.
pub(crate) struct Layout<'a> {
    files: BTreeMap<String, Content<'a>>,
}

enum Content<'a> {
    Dir,
    Bytes(Vec<u8>, u32),
    Document(&'a [u8]),
    Layer(&'a PreparedLayer),
}

/// Writes the image where `output` says.
pub(crate) fn export(
    attempt: &Attempt<'_>,
    image: &PreparedImage,
    output: &ArchiveOutput,
    docker: bool,
) -> Result<OutputReport> {
    let kind = if docker { "docker" } else { "oci" };
    let layers: Vec<PreparedLayer> = image.layers().into_iter().cloned().collect();
    attempt.fetch(&layers)?;
    let layout = Layout::new(image, docker, &|_| true)?;
    let bytes = match (&output.dest, output.tar) {
        (Dest::Path(path), false) => layout.write_dir(attempt, image, path)?,
        (dest, _) => to_dest(attempt.cx, dest, &mut |out| layout.write_tar(attempt, out, &dest.to_string()))?,
    };
    Ok(OutputReport { kind, target: output.dest.to_string(), bytes, skipped: 0 })
}

impl<'a> Layout<'a> {
    /// The layout of an image. Layers that `wanted` does not want are named in the documents but not there.
    pub(crate) fn new(
        image: &'a PreparedImage,
        docker: bool,
        wanted: &dyn Fn(&PreparedLayer) -> bool,
    ) -> Result<Self> {
        if docker && image.index.is_some() {
            let message = "Docker's archive holds one platform, and there are several";
            return Err(
                PortError::new(ErrorKind::Unsupported, message).help("use type=oci, or build one platform")
            );
        }
        let mut files = BTreeMap::new();
        files.insert("blobs/".to_owned(), Content::Dir);
        files.insert("blobs/sha256/".to_owned(), Content::Dir);
        files.insert("oci-layout".to_owned(), Content::Bytes(LAYOUT.to_vec(), 0o444));
        files.insert("index.json".to_owned(), Content::Bytes(layout_index(image.layout_entries())?, 0o644));
        if docker {
            files.insert("manifest.json".to_owned(), Content::Bytes(docker_manifest(image)?, 0o644));
        }
        for layer in image.layers().into_iter().filter(|layer| wanted(layer)) {
            files.insert(blob_name(&layer.descriptor.descriptor.digest), Content::Layer(layer));
        }
        for (digest, bytes) in image.documents() {
            files.insert(blob_name(&digest), Content::Document(bytes));
        }
        Ok(Self { files })
    }

    fn total(&self) -> u64 {
        self.files.values().map(Content::size).sum()
    }

    /// Writes it as a tar; `shown` is where it goes, for messages.
    pub(crate) fn write_tar(&self, attempt: &Attempt<'_>, out: &mut dyn Write, shown: &str) -> Result<()> {
        let failed = |error| archive_error(error, shown);
        let meter = Meter::new(attempt.cx.progress, "sending tarball", self.total());
        let mut tar = TarWriter::new(out);
        for (name, content) in &self.files {
            attempt.cx.cancel.check()?;
            let path = RelPath::parse(name)
                .map_err(|error| PortError::new(ErrorKind::Internal, error.to_string()))?;
            let file = |mode| Entry::new(path.clone(), Kind::File { size: content.size() }, mode);
            match content {
                Content::Dir => tar.bare(&Entry::new(path, Kind::Dir, 0o755)).map_err(failed)?,
                Content::Bytes(bytes, mode) => tar.entry(&file(*mode), bytes.as_slice()).map_err(failed)?,
                Content::Document(bytes) => tar.entry(&file(0o444), *bytes).map_err(failed)?,
                Content::Layer(layer) => attempt.with_reader(layer, |reader| {
                    let reader = Metered { reader, meter: &meter };
                    tar.entry(&file(0o444), reader).map_err(failed)
                })?,
            }
        }
        tar.finish().map_err(failed)?;
        meter.done();
        Ok(())
    }

    /// Writes it as a directory, or into the layout that is there: blobs first, then the index that names them.
    fn write_dir(&self, attempt: &Attempt<'_>, image: &PreparedImage, dest: &Path) -> Result<u64> {
        let staged = StagedDir::create(dest)?;
        let meter = Meter::new(attempt.cx.progress, "writing layout", self.total());
        for (name, content) in &self.files {
            attempt.cx.cancel.check()?;
            let path = staged.path().join(name);
            let failed = |error: io::Error| PortError::io("write", dest.join(name), error);
            match content {
                Content::Dir => fs::create_dir(&path).map_err(failed)?,
                Content::Bytes(bytes, _) => fs::write(&path, bytes).map_err(failed)?,
                Content::Document(bytes) => fs::write(&path, bytes).map_err(failed)?,
                Content::Layer(layer) => attempt.with_reader(layer, |reader| {
                    let mut file = fs::File::create(&path).map_err(failed)?;
                    io::copy(&mut Metered { reader, meter: &meter }, &mut file).map(drop).map_err(|error| {
                        match error.kind() {
                            io::ErrorKind::InvalidData => {
                                PortError::new(ErrorKind::Corrupt, error.to_string())
                            }
                            _ => failed(error),
                        }
                    })
                })?,
            }
            if name.starts_with("blobs/") && !matches!(content, Content::Dir) {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).map_err(failed)?;
            }
        }
        if staged.merging() {
            self.move_into(image, staged.path(), dest)?;
            drop(staged);
        } else {
            staged.commit()?;
        }
        meter.done();
        Ok(self.total())
    }

    fn move_into(&self, image: &PreparedImage, staged: &Path, dest: &Path) -> Result<()> {
        let index = merged_index(&dest.join("index.json"), image.layout_entries())?;
        for (name, content) in &self.files {
            let target = dest.join(name);
            let failed = |error: io::Error| PortError::io("write", &target, error);
            match content {
                Content::Dir => match fs::create_dir(&target) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
                    _ => {}
                },
                _ if name == "index.json" => {}
                _ => fs::rename(staged.join(name), &target).map_err(failed)?,
            }
        }
        write_file(&dest.join("index.json"), &index)
    }
}

impl Content<'_> {
    fn size(&self) -> u64 {
        match self {
            Self::Dir => 0,
            Self::Bytes(bytes, _) => bytes.len() as u64,
            Self::Document(bytes) => bytes.len() as u64,
            Self::Layer(layer) => layer.descriptor.descriptor.size,
        }
    }
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// `manifest.json` as `docker save` writes it.
fn docker_manifest(image: &PreparedImage) -> Result<Vec<u8>> {
    let platform = image.platforms.first();
    let config = platform.map(|platform| blob_name(&platform.config.digest)).unwrap_or_default();
    let layers: Vec<String> = platform
        .iter()
        .flat_map(|platform| &platform.layers)
        .map(|layer| blob_name(&layer.descriptor.descriptor.digest))
        .collect();
    let names: Vec<String> =
        image.names.iter().filter(|name| name.tag.is_some()).map(|name| name.familiar()).collect();
    let tags = if names.is_empty() { serde_json::Value::Null } else { json!(names) };
    compact(&json!([{ "Config": config, "RepoTags": tags, "Layers": layers }]))
        .map_err(|error| PortError::new(ErrorKind::Internal, error.to_string()))
}

/// The entries of the layout's index that stay, and the new ones behind them.
fn merged_index(path: &Path, new: Vec<Descriptor>) -> Result<Vec<u8>> {
    let failed = |error: io::Error| PortError::io("read", path, error);
    let mut text = vec![];
    match fs::File::open(path) {
        Ok(file) => drop(file.take(MAX_INDEX + 1).read_to_end(&mut text).map_err(failed)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return layout_index(new),
        Err(error) => return Err(failed(error)),
    }
    let index: Index = serde_json::from_slice(&text).map_err(|error| {
        let message = format!("{} is not the index of an image layout: {error}", path.display());
        PortError::new(ErrorKind::Invalid, message).help("write to another directory")
    })?;
    let name = |entry: &Descriptor| {
        ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .find_map(|key| entry.annotations.get(*key).cloned())
    };
    let replaced = |old: &Descriptor| {
        new.iter().any(|new| match name(old) {
            Some(old) => name(new) == Some(old),
            None => new.digest == old.digest,
        })
    };
    let kept: Vec<Descriptor> = index.manifests.iter().filter(|old| !replaced(old)).cloned().collect();
    layout_index(kept.into_iter().chain(new).collect())
}

struct Metered<'a, 'm> {
    reader: &'a mut dyn Read,
    meter: &'a Meter<'m>,
}

impl Read for Metered<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.reader.read(buf)?;
        self.meter.add(n as u64);
        Ok(n)
    }
}

#[cfg(test)]
mod tests;
