//! Where things come from.

use rbuild_digest::Digest;
use rbuild_oci::Reference;

/// A source operation.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum SourceOp {
    /// An image of a registry or of the own store.
    Image(ImageSource),
    /// An image in an OCI layout directory.
    OciLayout(OciLayoutSource),
    /// A local directory.
    Local(LocalSource),
    /// A git repository.
    Git(GitSource),
    /// A file from a web server.
    Http(HttpSource),
}

/// An image, resolved to a digest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ImageSource {
    /// Where to fetch it; its name is not part of the key.
    pub reference: Reference,
    /// What the reference resolved to: the index for multi-platform images. Part of the key.
    pub digest: Digest,
    /// The platform's manifest: what is fetched.
    pub manifest: Digest,
    /// The image's layers from the bottom up (of the platform's manifest).
    pub diff_ids: Vec<Digest>,
}

/// An image in an OCI layout directory, resolved to a digest.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct OciLayoutSource {
    /// The named context (`oci-layout://` store) it came from.
    pub store: String,
    /// Directory of the layout.
    pub path: String,
    /// What the reference resolved to. Part of the key.
    pub digest: Digest,
    /// The platform's manifest.
    pub manifest: Digest,
    /// The image's layers from the bottom up.
    pub diff_ids: Vec<Digest>,
}

/// A local directory by its context name; the caller maps names to directories.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct LocalSource {
    /// `context`, or the name of a named context.
    pub name: String,
    /// Only what matches (patternmatcher syntax); empty is everything.
    pub include: Vec<String>,
    /// Not what matches (the ignore file's patterns).
    pub exclude: Vec<String>,
    /// Only these paths and what they link to; empty is everything.
    pub follow_paths: Vec<String>,
}

/// A git repository at a commit.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GitSource {
    /// Repository.
    pub url: String,
    /// The whole name of the branch or tag, `refs/heads/main`; empty when a commit was asked for.
    pub reference: String,
    /// Directory inside; empty is the root.
    pub subdir: String,
    /// The commit it resolved to, 40 or 64 hexadecimal digits.
    pub commit: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Do not check submodules out.
    pub skip_submodules: bool,
}

/// A file from a web server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HttpSource {
    /// Address.
    pub url: String,
    /// The name the file gets.
    pub filename: String,
    /// What it must be, where pinned.
    pub checksum: Option<Digest>,
    /// Permission bits; 0 is the default (0600).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl SourceOp {
    /// The platform-independent short name for people: `docker.io/library/busybox:latest@sha256:…`.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Image(image) => image.reference.clone().with_digest(image.digest).to_string(),
            Self::OciLayout(layout) => format!("oci-layout://{}@{}", layout.store, layout.digest),
            Self::Local(local) => format!("local://{}", local.name),
            Self::Git(git) => format!("git {}#{}", git.url, git.commit),
            Self::Http(http) => http.url.clone(),
        }
    }
}
