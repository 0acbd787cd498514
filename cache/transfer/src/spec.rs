//! `--cache-from` and `--cache-to`: what they name and their attributes, with buildx's syntax. Everything is checked
//! here, before the build starts; nothing is looked up.

use std::path::PathBuf;
use std::str::FromStr;

use rbuild_digest::Digest;
use rbuild_export::{Attributes, CompressionSpec, OutputError, csv_fields};
use rbuild_oci::Reference;
use rbuild_oci::media_type::Compression;

/// Where a cache is imported from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheFrom {
    /// `type=registry`: a cache, or an image with an inline cache.
    Registry {
        /// Its name.
        reference: Reference,
        /// Over plain HTTP. Whoever makes the registry client tells it so.
        insecure: bool,
    },
    /// `type=local`: an OCI layout.
    Local {
        /// Its directory.
        src: PathBuf,
        /// `latest` if there is neither this nor a digest.
        tag: Option<String>,
        /// Of the manifest.
        digest: Option<Digest>,
    },
}

/// Where a cache is exported to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CacheTo {
    /// `type=registry`
    Registry {
        /// Its name.
        reference: Reference,
        /// Over plain HTTP. Whoever makes the registry client tells it so.
        insecure: bool,
        /// What all exports have.
        options: CacheOptions,
    },
    /// `type=local`: an OCI layout.
    Local {
        /// Its directory.
        dest: PathBuf,
        /// Under which name in it.
        tag: String,
        /// What all exports have.
        options: CacheOptions,
    },
    /// `type=inline`: in the config of the images that are exported.
    Inline,
}

/// Which steps' results are exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CacheMode {
    /// Those that the final image is made of.
    #[default]
    Min,
    /// All.
    Max,
}

/// What all exports but inline ones have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CacheOptions {
    /// `mode`
    pub mode: CacheMode,
    /// `image-manifest`
    pub image_manifest: bool,
    /// `oci-mediatypes`
    pub oci_media_types: bool,
    /// `compression`, `compression-level`, `force-compression`
    pub compression: CompressionSpec,
    /// `ignore-error`: a failed export is a warning.
    pub ignore_error: bool,
    /// `mounts`: contents of cache mounts too.
    pub mounts: bool,
    /// `mounts-size`: what they may have together, compressed.
    pub mounts_size: u64,
    /// `merge`: what others exported to the same place stays.
    pub merge: bool,
    /// `explain`: arguments, instructions and names of files too, so that others see why a step of theirs runs.
    pub explain: bool,
}

/// Why a text is no cache.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CacheSpecError {
    /// Not a list of `key=value`.
    #[error("invalid cache {text:?}: {reason}")]
    Syntax {
        /// What was given.
        text: String,
        /// Why not.
        reason: String,
    },
    /// There is no such type.
    #[error("unknown cache type {kind:?}{hint}: expected {expected}")]
    UnknownType {
        /// What was given.
        kind: String,
        /// Did you mean, or empty.
        hint: String,
        /// What there is.
        expected: String,
    },
    /// BuildKit has it and rbuild does not.
    #[error("cache type={kind} is not supported yet: use type=registry or type=local")]
    Unsupported {
        /// What was given.
        kind: String,
    },
    /// An attribute.
    #[error(transparent)]
    Attribute(#[from] OutputError),
}

/// Backends of BuildKit that are not here.
const LATER: [&str; 3] = ["gha", "s3", "azblob"];
const FROM_TYPES: [&str; 2] = ["registry", "local"];
const TO_TYPES: [&str; 3] = ["registry", "local", "inline"];
const EXPORT: [&str; 11] = [
    "mode",
    "image-manifest",
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
    "ignore-error",
    "merge",
    "explain",
    "mounts",
    "mounts-size",
];
/// What cache mounts may have together.
const MOUNTS_SIZE: u64 = 1 << 30;

impl CacheFrom {
    /// `ref[,ref…]` or `type=…,key=value,…` as CSV.
    ///
    /// # Errors
    /// If the type or an attribute is unknown or missing, or a value makes no sense.
    pub fn parse(text: &str) -> Result<Vec<Self>, CacheSpecError> {
        match fields(text)? {
            Fields::Names(names) => {
                let registry =
                    |name: String| Ok(Self::Registry { reference: name_of(text, &name)?, insecure: false });
                names.into_iter().map(registry).collect()
            }
            Fields::Typed(kind, pairs) => Ok(vec![Self::typed(&kind, pairs)?]),
        }
    }

    fn typed(kind: &str, pairs: Vec<(String, String)>) -> Result<Self, CacheSpecError> {
        const NOUN: &str = "--cache-from";
        match kind {
            "registry" => {
                let mut attrs = Attributes::new(NOUN, kind, vec!["ref", "registry.insecure"], pairs)?;
                let insecure = attrs.bool("registry.insecure")?.unwrap_or(false);
                Ok(Self::Registry { reference: reference(&mut attrs)?, insecure })
            }
            "local" => {
                let mut attrs = Attributes::new(NOUN, kind, vec!["src", "tag", "digest"], pairs)?;
                let Some(src) = attrs.take("src").filter(|src| !src.is_empty()) else {
                    return Err(attrs.missing("src", "the directory to read").into());
                };
                let tag = attrs.take("tag").filter(|tag| !tag.is_empty());
                let digest = match attrs.take("digest").filter(|text| !text.is_empty()) {
                    None => None,
                    Some(text) => match text.parse() {
                        Ok(digest) => Some(digest),
                        Err(_) => return Err(attrs.value("digest", &text, "expected sha256:…").into()),
                    },
                };
                Ok(Self::Local { src: src.into(), tag, digest })
            }
            "inline" => {
                let reason = "an image with an inline cache is imported with type=registry".to_owned();
                Err(CacheSpecError::Syntax { text: "type=inline".to_owned(), reason })
            }
            _ => Err(unknown(kind, &FROM_TYPES)),
        }
    }
}

impl FromStr for CacheTo {
    type Err = CacheSpecError;

    /// `ref` or `type=…,key=value,…` as CSV.
    fn from_str(text: &str) -> Result<Self, CacheSpecError> {
        match fields(text)? {
            Fields::Typed(kind, pairs) => Self::typed(&kind, pairs),
            Fields::Names(names) => match names.as_slice() {
                [name] => Ok(Self::Registry {
                    reference: name_of(text, name)?,
                    insecure: false,
                    options: CacheOptions::default(),
                }),
                _ => Err(CacheSpecError::Syntax {
                    text: text.to_owned(),
                    reason: "give --cache-to once for each of several names".to_owned(),
                }),
            },
        }
    }
}

impl CacheTo {
    fn typed(kind: &str, pairs: Vec<(String, String)>) -> Result<Self, CacheSpecError> {
        let attributes = |own: &[&'static str], pairs| {
            let known = EXPORT.iter().chain(own).copied().collect();
            Attributes::new("--cache-to", kind, known, pairs)
        };
        match kind {
            "registry" => {
                let mut attrs = attributes(&["ref", "registry.insecure"], pairs)?;
                let options = options(&mut attrs)?;
                let insecure = attrs.bool("registry.insecure")?.unwrap_or(false);
                let reference = reference(&mut attrs)?;
                if reference.digest.is_some() {
                    let reason = "a cache is exported to a tag, not to a digest";
                    return Err(attrs.value("ref", &reference.to_string(), reason).into());
                }
                Ok(Self::Registry { reference, insecure, options })
            }
            "local" => {
                let mut attrs = attributes(&["dest", "tag", "reset"], pairs)?;
                let options = options(&mut attrs)?;
                // What no name needs is always removed.
                attrs.bool("reset")?;
                let Some(dest) = attrs.take("dest").filter(|dest| !dest.is_empty()) else {
                    return Err(attrs.missing("dest", "the directory to write to").into());
                };
                let tag = attrs.take("tag").filter(|tag| !tag.is_empty());
                let tag = tag.unwrap_or_else(|| "latest".to_owned());
                Ok(Self::Local { dest: dest.into(), tag, options })
            }
            "inline" => {
                // There is one mode of it, and buildx takes the word without using it.
                let mut attrs = Attributes::new("--cache-to", kind, vec!["mode", "ignore-error"], pairs)?;
                mode(&mut attrs)?;
                attrs.bool("ignore-error")?;
                Ok(Self::Inline)
            }
            _ => Err(unknown(kind, &TO_TYPES)),
        }
    }

    /// The options, where there are any.
    #[must_use]
    pub fn options(&self) -> Option<&CacheOptions> {
        match self {
            Self::Registry { options, .. } | Self::Local { options, .. } => Some(options),
            Self::Inline => None,
        }
    }
}

impl Default for CacheOptions {
    fn default() -> Self {
        Self {
            mode: CacheMode::Min,
            image_manifest: true,
            oci_media_types: true,
            compression: CompressionSpec::GZIP,
            ignore_error: true,
            merge: true,
            explain: true,
            mounts: false,
            mounts_size: MOUNTS_SIZE,
        }
    }
}

enum Fields {
    Names(Vec<String>),
    Typed(String, Vec<(String, String)>),
}

fn fields(text: &str) -> Result<Fields, CacheSpecError> {
    let syntax = |reason: String| CacheSpecError::Syntax { text: text.to_owned(), reason };
    let fields = csv_fields(text).map_err(syntax)?;
    if fields.iter().all(|field| !field.contains('=')) {
        return Ok(Fields::Names(fields));
    }
    let mut kind = None;
    let mut pairs = vec![];
    for field in fields {
        let (key, value) =
            field.split_once('=').ok_or_else(|| syntax(format!("{field:?} is not of the form key=value")))?;
        let key = key.trim().to_lowercase();
        if key == "type" {
            kind = Some(value.to_owned());
        } else {
            pairs.push((key, value.to_owned()));
        }
    }
    Ok(Fields::Typed(kind.ok_or_else(|| syntax("type= is required".to_owned()))?, pairs))
}

fn name_of(text: &str, name: &str) -> Result<Reference, CacheSpecError> {
    match name.parse::<Reference>() {
        Ok(reference) => Ok(reference.with_default_tag()),
        Err(error) => Err(CacheSpecError::Syntax { text: text.to_owned(), reason: error.to_string() }),
    }
}

fn reference(attrs: &mut Attributes) -> Result<Reference, CacheSpecError> {
    let Some(text) = attrs.take("ref").filter(|text| !text.is_empty()) else {
        return Err(attrs.missing("ref", "the cache's name in the registry").into());
    };
    match text.parse::<Reference>() {
        Ok(reference) => Ok(reference.with_default_tag()),
        Err(error) => Err(attrs.value("ref", &text, &error.to_string()).into()),
    }
}

fn mode(attrs: &mut Attributes) -> Result<CacheMode, CacheSpecError> {
    match attrs.take("mode").as_deref() {
        None | Some("" | "min") => Ok(CacheMode::Min),
        Some("max") => Ok(CacheMode::Max),
        Some(other) => Err(attrs.value("mode", other, "expected min or max").into()),
    }
}

fn options(attrs: &mut Attributes) -> Result<CacheOptions, CacheSpecError> {
    let mode = mode(attrs)?;
    let default = CacheOptions::default();
    let oci_media_types = attrs.bool("oci-mediatypes")?;
    let image_manifest = attrs.bool("image-manifest")?;
    let compression = attrs.compression()?.unwrap_or(default.compression);
    let zstd = compression.kind == Compression::Zstd;
    // Docker has no media types for it.
    if image_manifest == Some(true) && oci_media_types == Some(false) {
        let reason = "image-manifest=true needs OCI media types";
        return Err(attrs.value("oci-mediatypes", "false", reason).into());
    }
    let oci = oci_media_types.unwrap_or(true);
    Ok(CacheOptions {
        mode,
        image_manifest: image_manifest.unwrap_or(oci),
        oci_media_types: oci || zstd,
        compression,
        ignore_error: attrs.bool("ignore-error")?.unwrap_or(default.ignore_error),
        mounts: attrs.bool("mounts")?.unwrap_or(default.mounts),
        mounts_size: size(attrs, "mounts-size")?.unwrap_or(default.mounts_size),
        merge: attrs.bool("merge")?.unwrap_or(default.merge),
        explain: attrs.bool("explain")?.unwrap_or(default.explain),
    })
}

/// Bytes, with a unit of 1024s.
fn size(attrs: &mut Attributes, name: &str) -> Result<Option<u64>, CacheSpecError> {
    let Some(text) = attrs.take(name).filter(|text| !text.is_empty()) else { return Ok(None) };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim().to_lowercase().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => 64,
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(1u64.checked_shl(shift)?)) {
        Some(bytes) => Ok(Some(bytes)),
        None => Err(attrs.value(name, &text, "expected a size such as 500MB or 2GB").into()),
    }
}

fn unknown(kind: &str, types: &[&'static str]) -> CacheSpecError {
    if LATER.contains(&kind) {
        return CacheSpecError::Unsupported { kind: kind.to_owned() };
    }
    let near = rbuild_diag::nearest(kind, types.iter().copied());
    CacheSpecError::UnknownType {
        kind: kind.to_owned(),
        hint: near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default(),
        expected: types.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn from(text: &str) -> CacheFrom {
        let mut all = CacheFrom::parse(text).unwrap();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    #[test]
    fn imports() {
        let app = || "user/app".parse::<Reference>().unwrap().with_default_tag();
        assert_eq!(from("user/app"), CacheFrom::Registry { reference: app(), insecure: false });
        assert_eq!(from("type=registry,ref=user/app"), from("user/app"));
        assert_eq!(CacheFrom::parse("user/app,user/b").unwrap().len(), 2);
        let local = CacheFrom::Local { src: "a b".into(), tag: Some("t".to_owned()), digest: None };
        assert_eq!(from("type=local,\"src=a b\",tag=t"), local);
        let digest = format!("type=local,src=d,digest={}", Digest::of(""));
        assert!(matches!(from(&digest), CacheFrom::Local { digest: Some(_), .. }));
    }

    #[test]
    fn exports() {
        let to = |text: &str| text.parse::<CacheTo>().unwrap();
        let options = |text: &str| to(text).options().unwrap().clone();
        assert_eq!(to("type=inline"), CacheTo::Inline);
        assert_eq!(to("type=inline,mode=max"), CacheTo::Inline);
        assert_eq!(options("user/app"), CacheOptions::default());
        let max =
            options("type=registry,ref=a/b,mode=max,ignore-error=false,compression=zstd,compression-level=3");
        assert_eq!((max.mode, max.ignore_error), (CacheMode::Max, false));
        assert_eq!((max.compression.kind, max.compression.level), (Compression::Zstd, Some(3)));
        let old = options("type=registry,ref=a/b,oci-mediatypes=false");
        assert_eq!((old.image_manifest, old.oci_media_types), (false, false));
        assert!(options("type=local,dest=d").explain && !options("type=local,dest=d,explain=false").explain);
        let mounts = options("type=local,dest=d,mounts=true,mounts-size=2GB");
        assert_eq!((mounts.mounts, mounts.mounts_size), (true, 2 << 30));
        let local = to("type=local,dest=d,tag=x,reset=true,image-manifest=false");
        assert!(matches!(local, CacheTo::Local { tag, .. } if tag == "x"));
    }

    #[test]
    fn mistakes_are_told_with_what_to_write() {
        for (text, part) in [
            ("type=registry,rf=a", "did you mean \"ref\"?"),
            ("type=registry", "needs ref"),
            ("type=registery,ref=a", "did you mean \"registry\"?"),
            ("ref=a", "type= is required"),
            ("type=gha", "not supported yet"),
            ("type=s3,bucket=b", "not supported yet"),
            ("type=registry,ref=A B", "ref"),
            ("UPPER", "UPPER"),
            ("type=local,x", "key=value"),
        ] {
            for error in [CacheFrom::parse(text).unwrap_err(), text.parse::<CacheTo>().unwrap_err()] {
                assert!(error.to_string().contains(part), "{text}: {error}");
            }
        }
        for (text, part) in [
            ("type=local", "needs dest"),
            ("type=local,dest=d,mounts-size=2XB", "500MB"),
            ("type=local,dest=d,mode=mx", "expected min or max"),
            ("type=local,dest=d,modes=max", "did you mean \"mode\"?"),
            ("type=inline,dest=d", "expected one of mode, ignore-error"),
            ("type=registry,ref=a,image-manifest=true,oci-mediatypes=false", "needs OCI media types"),
            ("a,b", "once for each"),
            (&format!("type=registry,ref=a@{}", Digest::of("")), "not to a digest"),
        ] {
            let error = text.parse::<CacheTo>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        for (text, part) in [
            ("type=local", "needs src"),
            ("type=local,src=d,digest=x", "sha256"),
            ("type=inline,ref=a", "type=registry"),
            ("type=local,dest=d", "src"),
        ] {
            let error = CacheFrom::parse(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
