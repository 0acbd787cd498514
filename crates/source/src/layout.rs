//! OCI image layouts: directories with `index.json` and `blobs/sha256/…`. Read with the same care as what comes from
//! a registry.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rbuild_digest::Digest;
use rbuild_oci::{Descriptor, Document, Index, parse_document};
use rbuild_ports::{ErrorKind, PortError, Result};
use serde::Deserialize;

use crate::registry::{MAX_CONFIG, MAX_MANIFEST};

/// Before the directory in a blob's location.
pub(crate) const LOCATION: &str = "oci-layout:";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// A layout directory.
pub struct Layout {
    dir: PathBuf,
}

/// What a layout calls an image.
pub struct LayoutDocument {
    /// Manifest or index.
    pub digest: Digest,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// As `index.json` says; empty when it does not.
    pub media_type: String,
}

impl Layout {
    /// A layout.
    ///
    /// # Errors
    /// When the directory is none.
    pub fn open(dir: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Marker {
            image_layout_version: String,
        }
        let layout = Self { dir: dir.to_owned() };
        let no_layout = |why: &str| {
            PortError::new(ErrorKind::Invalid, format!("{} is no OCI image layout: {why}", dir.display()))
        };
        let bytes = match layout.read("oci-layout", 4096) {
            Err(error) if error.kind == ErrorKind::NotFound && !dir.is_dir() => {
                return Err(PortError::new(
                    ErrorKind::NotFound,
                    format!("there is no directory {}", dir.display()),
                ));
            }
            Err(error) if error.kind == ErrorKind::NotFound => {
                return Err(no_layout("it has no file oci-layout"));
            }
            outcome => outcome?,
        };
        let marker: Marker = serde_json::from_slice(&bytes).map_err(|error| no_layout(&error.to_string()))?;
        if !marker.image_layout_version.starts_with("1.") {
            return Err(no_layout(&format!("its version is {:?}", marker.image_layout_version)));
        }
        Ok(layout)
    }

    /// The layout of a blob's location.
    pub(crate) fn of_location(location: &str) -> Option<Self> {
        location.strip_prefix(LOCATION).map(|dir| Self { dir: PathBuf::from(dir) })
    }

    /// As `RemoteBlob::location` names it.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{LOCATION}{}", self.dir.display())
    }

    /// The image of this digest, or of this tag.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Invalid` for an `index.json` that makes no sense.
    pub fn choose(&self, tag: Option<&str>, digest: Option<&Digest>) -> Result<LayoutDocument> {
        if let Some(digest) = digest {
            let bytes = self.document(digest, MAX_MANIFEST)?;
            return Ok(LayoutDocument { digest: *digest, bytes, media_type: String::new() });
        }
        let bytes = self.read("index.json", MAX_MANIFEST)?;
        let index = match parse_document(&bytes, None) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_)) => return Err(self.malformed("index.json is a manifest")),
            Err(error) => return Err(self.malformed(&format!("index.json: {error}"))),
        };
        if let Some(chosen) = pick(&index, tag) {
            let bytes = self.document(&chosen.digest, MAX_MANIFEST)?;
            return Ok(LayoutDocument {
                digest: chosen.digest,
                bytes,
                media_type: chosen.media_type.clone(),
            });
        }
        // Platforms side by side, without names: the file itself is the image's index.
        let nameless =
            index.manifests.iter().all(|entry| name_of(entry).is_none() && entry.platform.is_some());
        if tag.is_none() && nameless && !index.manifests.is_empty() {
            return Ok(LayoutDocument { digest: Digest::of(&bytes), bytes, media_type: String::new() });
        }
        Err(self.no_such_tag(&index, tag))
    }

    /// A document of the layout of at most `limit` bytes, verified.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Invalid` when it is larger.
    pub fn document(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_path(digest), limit)?;
        if Digest::of(&bytes) != *digest {
            let message =
                format!("{} in {} has other content than its name says", digest, self.dir.display());
            return Err(PortError::new(ErrorKind::Corrupt, message));
        }
        Ok(bytes)
    }

    pub(crate) fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        self.document(&descriptor.digest, MAX_CONFIG)
    }

    /// Opens a blob. The caller verifies it.
    pub(crate) fn open_blob(&self, descriptor: &Descriptor) -> Result<File> {
        let path = self.dir.join(blob_path(&descriptor.digest));
        let (file, length) = open_regular(&path)?;
        if length != descriptor.size {
            let message = format!("{} has {length} bytes instead of {}", path.display(), descriptor.size);
            return Err(PortError::new(ErrorKind::Corrupt, message));
        }
        Ok(file)
    }

    fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let path = self.dir.join(name);
        let (file, length) = open_regular(&path)?;
        let mut bytes = Vec::new();
        if length <= limit {
            file.take(limit + 1)
                .read_to_end(&mut bytes)
                .map_err(|error| PortError::io("read", &path, error))?;
        }
        if length > limit || bytes.len() as u64 > limit {
            let message = format!("{} has {length} bytes, more than the {limit} allowed", path.display());
            return Err(PortError::new(ErrorKind::Invalid, message));
        }
        Ok(bytes)
    }

    fn malformed(&self, what: &str) -> PortError {
        PortError::new(ErrorKind::Invalid, format!("the OCI layout {}: {what}", self.dir.display()))
    }

    fn no_such_tag(&self, index: &Index, tag: Option<&str>) -> PortError {
        let mut names: Vec<&str> = index.manifests.iter().filter_map(name_of).collect();
        names.sort_unstable();
        names.truncate(20);
        let wanted = tag.map_or_else(
            || "several images and none with tag latest".to_owned(),
            |tag| format!("no image {tag:?}"),
        );
        let error = PortError::new(
            ErrorKind::NotFound,
            format!("the OCI layout {} has {wanted}", self.dir.display()),
        );
        if names.is_empty() {
            error.help("its images have no names: name one by digest, as in oci-layout://directory@sha256:…")
        } else {
            error.help(format!("it has {}", names.join(", ")))
        }
    }
}

/// The entry of this tag; without one `latest`, or the only one.
fn pick<'a>(index: &'a Index, tag: Option<&str>) -> Option<&'a Descriptor> {
    let wanted = tag.unwrap_or("latest");
    let by_name = |entry: &&Descriptor| name_of(entry) == Some(wanted);
    let by_suffix = |entry: &&Descriptor| {
        let names = [REF_NAME, CONTAINERD_NAME].map(|key| entry.annotations.get(key));
        names.into_iter().flatten().any(|name| name.rsplit_once(':').is_some_and(|(_, end)| end == wanted))
    };
    let entries = || index.manifests.iter();
    let only = if let ([one], None) = (index.manifests.as_slice(), tag) { Some(one) } else { None };
    entries().find(by_name).or_else(|| entries().find(by_suffix)).or(only)
}

fn name_of(entry: &Descriptor) -> Option<&str> {
    entry.annotations.get(REF_NAME).map(String::as_str)
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Opens a regular file: a pipe in its place would wait forever.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = open(path, flags, Mode::empty()).map_err(|error| PortError::io("open", path, error))?;
    let file = File::from(fd);
    let metadata = file.metadata().map_err(|error| PortError::io("look at", path, error))?;
    if !metadata.is_file() {
        return Err(PortError::new(ErrorKind::Invalid, format!("{} is not a regular file", path.display())));
    }
    Ok((file, metadata.len()))
}
