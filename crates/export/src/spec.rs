//! `-o`: what an output is and its attributes, with buildx's syntax. Everything is checked here, before the build
//! starts; nothing is looked up on the disk.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use rbuild_oci::Reference;
use rbuild_oci::media_type::Compression;

use crate::Annotation;
use crate::spec_attrs::{Attributes, csv_fields};

/// One output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OutputSpec {
    /// Files into a directory.
    Local(LocalOutput),
    /// The root file system as a tar.
    Tar(TarOutput),
    /// An OCI image layout, as a tar or a directory.
    Oci(ArchiveOutput),
    /// The same with Docker's `manifest.json`.
    Docker(ArchiveOutput),
    /// Into the Docker (or podman) of this machine.
    Load(LoadOutput),
    /// Into the own store, and to registries.
    Image(ImageOutput),
    /// Nothing but the cache.
    CacheOnly,
}

/// Where a single file goes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Dest {
    /// `-`
    Stdout,
    /// A file, or a directory for `tar=false`.
    Path(PathBuf),
}

/// What happens to what is in the directory already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LocalMode {
    /// It stays unless it is overwritten.
    #[default]
    Copy,
    /// It goes.
    Delete,
}

/// `type=local`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalOutput {
    /// The directory.
    pub dest: PathBuf,
    /// What happens to what is there.
    pub mode: LocalMode,
    /// A directory for each platform; by default when there are several.
    pub platform_split: Option<bool>,
    /// The mtime of every file.
    pub source_date_epoch: Option<i64>,
}

/// `type=tar`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TarOutput {
    /// The file.
    pub dest: Dest,
    /// A directory for each platform; by default when there are several.
    pub platform_split: Option<bool>,
    /// The mtime of every file.
    pub source_date_epoch: Option<i64>,
}

/// `type=oci`, `type=docker` with a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ArchiveOutput {
    /// The file, or the directory of the layout.
    pub dest: Dest,
    /// A tar, or a directory.
    pub tar: bool,
    /// The image.
    pub image: ImageOptions,
}

/// `type=docker` without a destination.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LoadOutput {
    /// The image.
    pub image: ImageOptions,
}

/// `type=image`, `type=registry`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageOutput {
    /// The image.
    pub image: ImageOptions,
    /// Into the own store.
    pub store: bool,
    /// To the registries of its names.
    pub push: bool,
    /// Without tags.
    pub push_by_digest: bool,
    /// Over plain HTTP, or TLS that is not verified. Whoever makes the registry client tells it so.
    pub insecure: bool,
}

/// What all image outputs have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageOptions {
    /// `name=`, with tags.
    pub names: Vec<Reference>,
    /// `None`: what suits the output: gzip, but for an engine on this machine none.
    pub compression: Option<CompressionSpec>,
    /// OCI media types, otherwise Docker's.
    pub oci_media_types: bool,
    /// `annotation…=`
    pub annotations: Vec<Annotation>,
    /// Later times are clamped to it.
    pub source_date_epoch: Option<i64>,
    /// Times of files in the layers that this build made are clamped, too.
    pub rewrite_timestamp: bool,
}

/// How layers are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CompressionSpec {
    /// Kind.
    pub kind: Compression,
    /// `None` is the kind's usual level.
    pub level: Option<i32>,
    /// Also layers that have another kind already.
    pub force: bool,
}

impl CompressionSpec {
    /// gzip at its usual level.
    pub const GZIP: Self = Self { kind: Compression::Gzip, level: None, force: false };
    /// Plain tars.
    pub const NONE: Self = Self { kind: Compression::None, level: None, force: false };
}

/// Why a text is no output.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OutputError {
    /// Not a list of `key=value`.
    #[error("invalid output {text:?}: {reason}")]
    Syntax {
        /// What was given.
        text: String,
        /// Why not.
        reason: String,
    },
    /// There is no such type.
    #[error(
        "unknown output type {kind:?}{hint}: expected local, tar, oci, docker, image, registry or cacheonly"
    )]
    UnknownType {
        /// What was given.
        kind: String,
        /// Did you mean, or empty.
        hint: String,
    },
    /// The type has no such attribute.
    #[error("unknown attribute {name:?} of {kind}{hint}")]
    UnknownAttribute {
        /// What has it: `output type=oci`.
        kind: String,
        /// What was given.
        name: String,
        /// Did you mean, or the list.
        hint: String,
    },
    /// A value that makes no sense.
    #[error("invalid {name}={value:?} of {kind}: {reason}")]
    Value {
        /// What has it: `output type=oci`.
        kind: String,
        /// The attribute.
        name: String,
        /// What was given.
        value: String,
        /// Why not.
        reason: String,
    },
    /// Something that BuildKit has and rbuild does not.
    #[error("{name}={value} of {kind} is not supported yet: {reason}")]
    Unsupported {
        /// What has it: `output type=oci`.
        kind: String,
        /// The attribute.
        name: String,
        /// What was given.
        value: String,
        /// Why, or what to do instead.
        reason: String,
    },
    /// A needed attribute is not there.
    #[error("{kind} needs {name}: {reason}")]
    Missing {
        /// What has it: `output type=oci`.
        kind: String,
        /// The attribute.
        name: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// An annotation that makes no sense.
    #[error("invalid annotation {text:?}: {reason}")]
    Annotation {
        /// What was given.
        text: String,
        /// Why not.
        reason: String,
    },
}

const TYPES: [&str; 7] = ["local", "tar", "oci", "docker", "image", "registry", "cacheonly"];
const IMAGE: [&str; 11] = [
    "name",
    "compression",
    "compression-level",
    "force-compression",
    "oci-mediatypes",
    "oci-artifact",
    "attestation-inline",
    "prefer-nondist-layers",
    "source-date-epoch",
    "rewrite-timestamp",
    "annotation.<key>",
];
const ARCHIVE: [&str; 2] = ["dest", "tar"];
const STORE: [&str; 9] = [
    "push",
    "push-by-digest",
    "registry.insecure",
    "store",
    "unpack",
    "name-canonical",
    "dangling-name-prefix",
    "danging-name-empty-only",
    "dest",
];
const FILES: [&str; 4] = ["dest", "platform-split", "source-date-epoch", "attestation-prefix"];

impl FromStr for OutputSpec {
    type Err = OutputError;

    /// `dir`, `-`, or `type=…,key=value,…` as CSV. A word without `=` is a directory.
    fn from_str(text: &str) -> Result<Self, OutputError> {
        let syntax = |reason: String| OutputError::Syntax { text: text.to_owned(), reason };
        let fields = csv_fields(text).map_err(syntax)?;
        if let [field] = fields.as_slice()
            && field == text
            && !text.starts_with("type=")
        {
            return match text {
                "" => Err(syntax("it is empty".to_owned())),
                "-" => Self::from_pairs("tar", vec![("dest".to_owned(), "-".to_owned())]),
                dir => Self::from_pairs("local", vec![("dest".to_owned(), dir.to_owned())]),
            };
        }
        let mut kind = None;
        let mut pairs = vec![];
        for field in &fields {
            let (key, value) = field
                .split_once('=')
                .ok_or_else(|| syntax(format!("{field:?} is not of the form key=value")))?;
            let key = if key.starts_with("annotation") { key.to_owned() } else { key.trim().to_lowercase() };
            if key == "type" {
                kind = Some(value);
            } else {
                pairs.push((key, value.to_owned()));
            }
        }
        Self::from_pairs(kind.ok_or_else(|| syntax("type= is required".to_owned()))?, pairs)
    }
}

impl OutputSpec {
    /// An output of the type `kind` with these attributes, as a client of the API gives them.
    ///
    /// # Errors
    /// If the type or an attribute is unknown, or a value makes no sense.
    pub fn from_pairs(
        kind: &str,
        pairs: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self, OutputError> {
        let known: Vec<&'static str> = match kind {
            "local" => FILES.iter().copied().chain(["mode"]).collect(),
            "tar" => FILES.to_vec(),
            "oci" => IMAGE.into_iter().chain(ARCHIVE).collect(),
            "docker" => IMAGE.into_iter().chain(ARCHIVE).chain(["context"]).collect(),
            "image" | "registry" => IMAGE.into_iter().chain(STORE).collect(),
            "cacheonly" => vec![],
            _ => {
                let hint = rbuild_diag::nearest(kind, TYPES).map(|near| format!(" (did you mean {near:?}?)"));
                return Err(OutputError::UnknownType {
                    kind: kind.to_owned(),
                    hint: hint.unwrap_or_default(),
                });
            }
        };
        let mut attrs = Attributes::new("output", kind, known, pairs)?;
        match kind {
            "local" => local(&mut attrs).map(Self::Local),
            "tar" => tar(&mut attrs).map(Self::Tar),
            "oci" => archive(&mut attrs, Dest::Stdout).map(Self::Oci),
            "docker" => docker(&mut attrs),
            "image" => store(&mut attrs, false).map(Self::Image),
            "registry" => store(&mut attrs, true).map(Self::Image),
            _ => Ok(Self::CacheOnly),
        }
    }

    /// The type, as people write it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Local(_) => "local",
            Self::Tar(_) => "tar",
            Self::Oci(_) => "oci",
            Self::Docker(_) => "docker",
            Self::Load(_) => "load",
            Self::Image(output) if output.push => "registry",
            Self::Image(_) => "image",
            Self::CacheOnly => "cacheonly",
        }
    }

    /// Whether it goes to `-`.
    #[must_use]
    pub fn uses_stdout(&self) -> bool {
        let dest = match self {
            Self::Tar(output) => &output.dest,
            Self::Oci(output) | Self::Docker(output) => &output.dest,
            _ => return false,
        };
        *dest == Dest::Stdout
    }

    /// Into the own store under the build's names.
    #[must_use]
    pub fn store() -> Self {
        Self::Image(ImageOutput::plain(false))
    }
}

impl ImageOutput {
    fn plain(push: bool) -> Self {
        Self { image: ImageOptions::default(), store: true, push, push_by_digest: false, insecure: false }
    }
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self {
            names: vec![],
            compression: None,
            oci_media_types: true,
            annotations: vec![],
            source_date_epoch: None,
            rewrite_timestamp: false,
        }
    }
}

impl fmt::Display for Dest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stdout => f.write_str("-"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

fn local(attrs: &mut Attributes) -> Result<LocalOutput, OutputError> {
    attrs.ignore("attestation-prefix");
    let dest = match attrs.take("dest") {
        None => return Err(attrs.missing("dest", "the directory to write to")),
        Some(dest) if dest == "-" => {
            return Err(attrs.value("dest", &dest, "files cannot go to standard output; type=tar can"));
        }
        Some(dest) if dest.is_empty() => return Err(attrs.value("dest", &dest, "it is empty")),
        Some(dest) => PathBuf::from(dest),
    };
    let mode = match attrs.take("mode").as_deref() {
        None | Some("copy") => LocalMode::Copy,
        Some("delete") => LocalMode::Delete,
        Some(other) => return Err(attrs.value("mode", other, "expected copy or delete")),
    };
    Ok(LocalOutput {
        dest,
        mode,
        platform_split: attrs.bool("platform-split")?,
        source_date_epoch: attrs.epoch()?,
    })
}

fn tar(attrs: &mut Attributes) -> Result<TarOutput, OutputError> {
    attrs.ignore("attestation-prefix");
    Ok(TarOutput {
        dest: attrs.dest().unwrap_or(Dest::Stdout),
        platform_split: attrs.bool("platform-split")?,
        source_date_epoch: attrs.epoch()?,
    })
}

fn archive(attrs: &mut Attributes, default: Dest) -> Result<ArchiveOutput, OutputError> {
    let tar = attrs.bool("tar")?.unwrap_or(true);
    let dest = attrs.dest().unwrap_or(default);
    if !tar && dest == Dest::Stdout {
        return Err(attrs.missing("dest", "with tar=false it is written as a directory"));
    }
    let image = attrs.image_options()?;
    if attrs.kind() == "oci" && !image.oci_media_types {
        return Err(attrs.value("oci-mediatypes", "false", "an OCI layout always has OCI media types"));
    }
    Ok(ArchiveOutput { dest, tar, image })
}

fn docker(attrs: &mut Attributes) -> Result<OutputSpec, OutputError> {
    if let Some(context) = attrs.take("context") {
        let reason = "point DOCKER_HOST at the engine's socket instead";
        return Err(attrs.unsupported("context", &context, reason));
    }
    if attrs.has("dest") || attrs.bool_value("tar")? == Some(false) {
        return archive(attrs, Dest::Stdout).map(OutputSpec::Docker);
    }
    attrs.ignore("tar");
    Ok(OutputSpec::Load(LoadOutput { image: attrs.image_options()? }))
}

fn store(attrs: &mut Attributes, registry: bool) -> Result<ImageOutput, OutputError> {
    if let Some(dest) = attrs.take("dest") {
        return Err(attrs.value("dest", &dest, "an image goes to its name=; type=oci writes a file"));
    }
    // The own store needs no unpacking: its images are layers on the disk already.
    let unpack = attrs.bool("unpack")? == Some(true);
    for name in ["dangling-name-prefix", "danging-name-empty-only"] {
        if let Some(value) = attrs.take(name) {
            return Err(attrs.unsupported(name, &value, "give the image a name=, or none"));
        }
    }
    let mut out = ImageOutput::plain(registry);
    out.push = attrs.bool("push")?.unwrap_or(registry);
    out.push_by_digest = attrs.bool("push-by-digest")?.unwrap_or(false);
    out.insecure = attrs.bool("registry.insecure")?.unwrap_or(false);
    out.store = attrs.bool("store")?.unwrap_or(true);
    // A second name with the digest is for image stores that list names; it says nothing new here.
    attrs.bool("name-canonical")?;
    out.image = attrs.image_options()?;
    if out.image.rewrite_timestamp && (unpack || !out.push) {
        let reason =
            "only layers that leave the store are rewritten: push it, or use type=oci or type=docker";
        return Err(attrs.unsupported("rewrite-timestamp", "true", reason));
    }
    Ok(out)
}
